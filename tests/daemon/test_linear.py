"""Linearizable registers and counters, over a wire that loses what it can."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from typing import Any

import pytest
from faulty_wire import POLICIES, Hosting
from linear_client import BASE_MS, DEADLINE_MS, Client, clients
from virtual_time import virtual

from roost_crdt.errors import (
    BadRequest,
    NoPolicy,
    RoostError,
    TooLarge,
    Unsupported,
    WrongType,
)
from roost_crdt.linear.cells import INT64_MAX, INT64_MIN, Cell, Delete, Get, Incr, Put, Reply, step
from roost_crdt.policy import PolicyTable
from roostd.consensus.base import Txn

# --- registers ------------------------------------------------------------------------------------


@virtual
async def test_a_register_keeps_bytes_and_json_apart() -> None:
    one, two = await clients(2)
    assert await one.linear.get(b"flags:a") is None
    for leaf in (b"text", b"\xff\x00", b"", "1.50", "null", '{"b":1,"a":2}', b"1"):
        assert await one.linear.put(b"flags:a", leaf)
        assert await two.linear.get(b"flags:a") == leaf
    assert await two.linear.delete(b"flags:a")
    assert not await one.linear.delete(b"flags:a")
    assert await one.linear.get(b"flags:a") is None


@virtual
async def test_nx_and_xx() -> None:
    one, two = await clients(2)
    assert not await one.linear.put(b"flags:a", b"x", xx=True)
    assert await one.linear.put(b"flags:a", b"1", nx=True)
    assert not await two.linear.put(b"flags:a", b"2", nx=True)
    assert await two.linear.get(b"flags:a") == b"1"
    assert await two.linear.put(b"flags:a", b"3", xx=True)
    assert await one.linear.get(b"flags:a") == b"3"
    with pytest.raises(BadRequest, match="exclude each other"):
        await one.linear.put(b"flags:a", b"3", xx=True, nx=True)


@virtual
async def test_of_many_who_want_a_lock_one_gets_it() -> None:
    many = await clients(5)
    won = await asyncio.gather(
        *(client.linear.put(b"flags:lock", b"%d" % n, nx=True) for n, client in enumerate(many))
    )
    assert won.count(True) == 1
    assert await many[0].linear.get(b"flags:lock") == b"%d" % won.index(True)


@virtual
async def test_swap_and_take_give_the_old_value() -> None:
    [one] = await clients()
    assert await one.linear.swap(b"flags:a", b"1") == Reply(True, None)
    assert await one.linear.swap(b"flags:a", b"2") == Reply(True, b"1")
    assert await one.linear.swap(b"flags:a", b"3", nx=True) == Reply(False, b"2")
    assert await one.linear.take(b"flags:a") == Reply(True, b"2")
    assert await one.linear.take(b"flags:a") == Reply(False, None)


@virtual
async def test_read_gives_one_snapshot_of_many_keys() -> None:
    [one] = await clients()
    await one.linear.put(b"flags:a", b"1")
    await one.linear.incr(b"hits", 3)
    assert await one.linear.read([b"hits", b"flags:x", b"flags:a", b"hits"]) == [3, None, b"1", 3]
    assert await one.linear.read([b"flags:%d" % n for n in range(500)]) == [None] * 500
    assert await one.linear.read([]) == []
    with pytest.raises(BadRequest, match="at most 1000"):
        await one.linear.read([b"flags:%d" % n for n in range(1_001)])


@virtual
async def test_scan_gives_live_keys_of_a_prefix_in_order() -> None:
    [one] = await clients()
    for key in (b"flags:b", b"flags:a", b"hits", b"flags:c"):
        await one.linear.put(key, b"1")
    await one.linear.put(b"flags:aa", b"1", expires_ms=one.now_ms() + 10)
    await asyncio.sleep(0.02)
    assert await one.linear.scan(b"flags:", b"", 10) == [b"flags:a", b"flags:b", b"flags:c"]
    assert await one.linear.scan(b"flags:", b"flags:a", 1) == [b"flags:b"]
    assert await one.linear.scan(b"", b"", 2) == [b"flags:a", b"flags:b"]


# --- counters -------------------------------------------------------------------------------------


@virtual
async def test_a_counter_counts_from_every_node() -> None:
    many = await clients(3)
    await asyncio.gather(
        *(client.linear.incr(b"hits", by) for client in many for by in (1, 2, -1) * 5)
    )
    assert await many[0].linear.get(b"hits") == 30


@virtual
async def test_a_busy_counter_costs_one_round_trip_an_increment() -> None:
    [one] = await clients()
    await one.linear.incr(b"hits", 1)
    one.wire.calls.clear()
    for n in range(10):
        assert await one.linear.incr(b"hits", 1) == n + 2
    assert one.wire.calls == ["consensus.txn"] * 10


@virtual
async def test_a_counter_is_set_by_a_number_and_holds_64_bits() -> None:
    [one] = await clients()
    for leaf in (b"41", "41", 41):
        assert await one.linear.put(b"hits", leaf)
        assert await one.linear.get(b"hits") == 41
    await one.linear.assign(b"hits", INT64_MAX)
    with pytest.raises(BadRequest, match="overflow"):
        await one.linear.incr(b"hits", 1)
    assert await one.linear.get(b"hits") == INT64_MAX
    await one.linear.assign(b"hits", INT64_MIN)
    with pytest.raises(BadRequest, match="overflow"):
        await one.linear.incr(b"hits", -1)
    assert await one.linear.incr(b"hits", INT64_MAX) == -1


@pytest.mark.parametrize(
    "leaf", [b"x", b"", "1.5", b"1 ", "true", INT64_MAX + 1, b"9" * 30, b"\xff"]
)
def test_what_is_no_number_does_not_set_a_counter(leaf: Any) -> None:
    @virtual
    async def run() -> None:
        [one] = await clients()
        with pytest.raises(BadRequest):
            await one.linear.put(b"hits", leaf)
        assert await one.linear.get(b"hits") is None

    run()


@virtual
async def test_a_float_counter_counts_in_units_of_a_billionth() -> None:
    [one] = await clients()
    assert await one.linear.incr(b"money", 1_500_000_000) == 1_500_000_000
    assert await one.linear.incr(b"money", 1) == 1_500_000_001


# --- expiry ---------------------------------------------------------------------------------------


@virtual
async def test_a_key_that_one_reader_saw_expire_is_gone_for_all() -> None:
    hosting = Hosting()
    await hosting.start()
    late, early = Client(hosting, 1, skew_ms=-5_000), Client(hosting, 2, skew_ms=5_000)
    assert await late.linear.put(b"flags:a", b"1", expires_ms=BASE_MS + 3_000)
    assert await late.linear.get(b"flags:a") == b"1"
    assert await early.linear.get(b"flags:a") is None
    assert await late.linear.get(b"flags:a") is None, "seen, then unseen, then seen"
    assert await late.linear.put(b"flags:a", b"2", nx=True)


@virtual
async def test_an_expired_lock_can_be_taken_by_one() -> None:
    many = await clients(4)
    await many[0].linear.put(b"leases:l", b"old", expires_ms=BASE_MS + 1_000)
    assert await many[1].linear.expires_ms(b"leases:l") == BASE_MS + 1_000
    await asyncio.sleep(1.1)
    won = await asyncio.gather(*(c.linear.put(b"leases:l", b"new", nx=True) for c in many))
    assert won.count(True) == 1


@virtual
async def test_ttls() -> None:
    [one] = await clients()
    assert await one.linear.expires_ms(b"leases:a") is None
    await one.linear.put(b"leases:a", b"1")
    assert await one.linear.expires_ms(b"leases:a") == 0
    assert await one.linear.expire(b"leases:a", BASE_MS + 77_000)
    await one.linear.put(b"leases:a", b"3", keep_ttl=True)
    assert await one.linear.expires_ms(b"leases:a") == BASE_MS + 77_000
    assert await one.linear.expire(b"leases:a", one.now_ms()), "due at once"
    assert await one.linear.get(b"leases:a") is None
    assert not await one.linear.expire(b"leases:a", BASE_MS + 77_000)
    assert await one.linear.put(b"leases:a", b"4", expires_ms=1)
    assert await one.linear.get(b"leases:a") is None
    await one.linear.incr(b"hits", 1)
    assert await one.linear.expire(b"hits", BASE_MS + 50_000)
    await one.linear.incr(b"hits", 1)
    assert await one.linear.expires_ms(b"hits") == BASE_MS + 50_000, "INCR keeps the ttl"


def test_a_policys_ttl_counts_from_the_last_write() -> None:
    counter = replace(POLICIES.find(b"hits"), ttl_ms=10_000)
    first = step(Incr(b"hits", 1), None, counter, 5_000)
    assert first.cell == Cell(1, 15_000)
    assert step(Incr(b"hits", 1), first.cell, counter, 6_000).cell == Cell(2, 16_000)
    put = step(Put(b"hits", 7, keep_ttl=True), first.cell, counter, 6_000)
    assert put.cell == Cell(7, 15_000)
    assert step(Put(b"hits", 7, keep_ttl=True), None, counter, 6_000).cell == Cell(7, 16_000)
    assert step(Put(b"hits", 7, expires_ms=0), None, counter, 6_000).cell == Cell(7, 0)


# --- several keys ---------------------------------------------------------------------------------


@virtual
async def test_commands_of_one_transaction_apply_together() -> None:
    one, two = await clients(2)
    replies = await one.linear.transact(
        [
            Put(b"flags:a", b"1"),
            Incr(b"hits", 2),
            Incr(b"hits", 3),
            Get(b"flags:a"),
            Delete(b"flags:a"),
        ]
    )
    assert replies == [
        Reply(True),
        Reply(True, 2),
        Reply(True, 5),
        Reply(True, b"1"),
        Reply(True),
    ]
    assert await two.linear.read([b"hits", b"flags:a"]) == [5, None]


@virtual
async def test_a_refused_command_refuses_the_whole_transaction() -> None:
    [one] = await clients()
    await one.linear.assign(b"hits", INT64_MAX)
    with pytest.raises(BadRequest):
        await one.linear.transact([Put(b"flags:a", b"1"), Incr(b"hits", 1)])
    assert await one.linear.get(b"flags:a") is None


@virtual
async def test_a_watched_key_that_changed_stops_the_transaction() -> None:
    one, two = await clients(2)
    watched = await one.linear.revisions([b"flags:a", b"hits"])
    assert watched == {b"flags:a": 0, b"hits": 0}
    assert await one.linear.transact([Put(b"flags:b", b"1")], watched=watched) == [Reply(True)]
    await two.linear.incr(b"hits", 1)
    assert await one.linear.transact([Put(b"flags:b", b"2")], watched=watched) is None
    assert await one.linear.get(b"flags:b") == b"1"


@virtual
async def test_too_many_keys_for_one_transaction() -> None:
    [one] = await clients()
    with pytest.raises(BadRequest, match="at most 128"):
        await one.linear.transact([Put(b"flags:%d" % n, b"1") for n in range(129)])
    assert await one.linear.transact([]) == []


# --- refusals -------------------------------------------------------------------------------------


@virtual
async def test_what_the_key_cannot_do_is_refused_before_anything_is_sent() -> None:
    [one] = await clients()
    linear = one.linear
    one.policies = PolicyTable.parse(
        POLICIES.text + '\n[weights]\nreaders="cross-session"\nstale_read_cost="annoying"\n'
        'type="register"\n',
        "p",
    )
    refused: list[tuple[type[RoostError], Awaitable[Any]]] = [
        (WrongType, linear.incr(b"flags:a", 1)),
        (WrongType, linear.put(b"usage_quota:u", b"1")),
        (WrongType, linear.get(b"billing:u")),
        (WrongType, linear.assign(b"flags:a", 3)),
        (Unsupported, linear.get(b"weights:a")),
        (NoPolicy, linear.get(b"unknown:a")),
        (BadRequest, linear.get(b"")),
        (BadRequest, linear.get(b"flags:\0")),
        (BadRequest, linear.get(b"flags:" + b"x" * 200)),
        (BadRequest, linear.incr(b"hits", INT64_MAX + 1)),
        (BadRequest, linear.incr(b"hits", 1, request_id="")),
        (TooLarge, linear.put(b"flags:a", b"x" * 1_001)),
        (TooLarge, linear.put(b"flags:a", "é" * 501)),
    ]
    for kind, work in refused:
        with pytest.raises(kind):
            await work
    assert one.wire.calls == []


@virtual
async def test_a_foreign_value_refuses_its_key_and_is_never_taken_for_none() -> None:
    [one] = await clients()
    for value in (b"", b"garbage", b"\x93\x01\xa1x\xff", b"\x93\x01\xa1x\x00"):
        await one.remote.txn(Txn((), ((b"k/hits", value),)), deadline_ms=DEADLINE_MS)
        for work in (one.linear.get(b"hits"), one.linear.incr(b"hits", 1)):
            with pytest.raises(WrongType, match="consensus holds something else"):
                await work
    assert await one.linear.put(b"hits", b"7"), "an operator can set it anew"
    assert await one.linear.incr(b"hits", 1) == 8
