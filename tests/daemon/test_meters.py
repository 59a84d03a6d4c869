"""Meters: nothing acknowledged is lost or doubled, whatever is lost on the way."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quota_cluster import DEADLINE_MS, Node, cluster
from virtual_time import run_virtual, virtual

from roost_crdt.errors import BadRequest, CorruptData, Full, Unavailable, WrongType
from roost_crdt.limits import Limits
from roostd.consensus.base import Txn
from roostd.node.meters import Meters

KEY = b"billing:u"


async def put_by_hand(node: Node, key: bytes, value: bytes | None) -> None:
    remote = node.wire.remote(node.spends)
    await remote.txn(Txn((), ((key, value),)), deadline_ms=DEADLINE_MS)


def mark_key(node: Node) -> bytes:
    return b"a/" + KEY + b"\0" + node.actor.to_bytes(8, "big")


@virtual
async def test_an_addition_is_durable_here_and_soon_in_consensus() -> None:
    one, two = await cluster(2)
    assert await one.quotas.meter_add(KEY, 5, "r") == {"committed": 0, "pending": 5}
    assert one.outbox.safe == one.outbox.seen
    await two.quotas.meter_add(KEY, 7)
    await asyncio.sleep(1)
    for node in (one, two):
        assert await node.quotas.meter(KEY) == {"committed": 12, "pending": 0}
    assert await one.quotas.meter_add(KEY, 1) == {"committed": 5, "pending": 1}


@virtual
async def test_a_meter_that_was_never_added_to_is_empty() -> None:
    [one] = await cluster()
    assert await one.quotas.meter(KEY) == {"committed": 0, "pending": 0}


@virtual
async def test_additions_go_on_while_consensus_is_away() -> None:
    [one] = await cluster()
    one.wire.chance, one.wire.WAYS = 1.0, ("cut",)  # type: ignore[misc]
    for n in range(20):
        assert (await one.quotas.meter_add(KEY, 1))["pending"] == n + 1
        await asyncio.sleep(0.3)
    with pytest.raises(Unavailable):
        await one.quotas.meter(KEY)
    assert "no route" in str(one.quotas.meters.last_error)
    assert len(one.wire.calls) < 60, "it keeps asking less and less often"
    one.wire.chance = 0.0
    assert await one.quotas.meter(KEY) == {"committed": 0, "pending": 20}
    await asyncio.sleep(6)
    assert await one.quotas.meter(KEY) == {"committed": 20, "pending": 0}
    assert one.quotas.meters.last_error is None


@pytest.mark.parametrize("way", ["request", "reply", "late"])
def test_a_lost_transaction_is_made_up_for_once(way: str) -> None:
    @virtual
    async def run() -> None:
        [one] = await cluster()
        one.wire.script = ["", way]
        await one.quotas.meter_add(KEY, 5)
        await asyncio.sleep(1)
        await one.wire.deliver()
        await one.quotas.meter_add(KEY, 1)
        await asyncio.sleep(1)
        assert await one.quotas.meter(KEY) == {"committed": 6, "pending": 0}

    run()


@virtual
async def test_a_request_id_adds_once() -> None:
    [one] = await cluster()
    for _ in range(3):
        await one.quotas.meter_add(KEY, 5, "r")
    await one.crash()
    await one.quotas.meter_add(KEY, 5, "r")
    await one.quotas.meter_add(b"billing:v", 5, "r")
    await asyncio.sleep(1)
    assert (await one.quotas.meter(KEY))["committed"] == 5
    assert (await one.quotas.meter(b"billing:v"))["committed"] == 5
    with pytest.raises(BadRequest, match="to add 5 units, not 6"):
        await one.quotas.meter_add(KEY, 6, "r")


@virtual
async def test_an_actor_that_was_given_up_still_brings_what_it_counted() -> None:
    [one] = await cluster()
    await one.quotas.meter_add(KEY, 5)
    await asyncio.sleep(0.5)
    one.wire.chance, one.wire.WAYS = 1.0, ("cut",)  # type: ignore[misc]
    await one.quotas.meter_add(KEY, 3)
    await one.crash(lost=True)
    await one.quotas.meter_add(KEY, 4)
    one.wire.chance = 0.0
    assert await one.quotas.meter(KEY) == {"committed": 5, "pending": 7}
    await asyncio.sleep(6)
    assert await one.quotas.meter(KEY) == {"committed": 12, "pending": 0}
    rows = [key for key in one.outbox.seen if key.startswith(b"t")]
    assert len(rows) == 1, "the old actor's row is gone"


@virtual
async def test_a_stopping_node_sends_what_is_pending() -> None:
    one, two = await cluster(2)
    await one.quotas.meter_add(KEY, 5)
    assert await one.stop() == 0
    assert (await two.quotas.meter(KEY))["committed"] == 5


@virtual
async def test_a_stopping_node_says_what_it_could_not_send() -> None:
    [one] = await cluster()
    one.wire.chance, one.wire.WAYS = 1.0, ("request",)  # type: ignore[misc]
    await one.quotas.meter_add(KEY, 5)
    assert await one.stop() == 1


@virtual
async def test_consensus_that_lost_the_meter_is_not_begun_anew() -> None:
    [one] = await cluster()
    await one.quotas.meter_add(KEY, 5)
    await asyncio.sleep(0.5)
    await put_by_hand(one, b"m/" + KEY, None)
    await one.quotas.meter_add(KEY, 1)
    await asyncio.sleep(1)
    with pytest.raises(Unavailable, match="has lost what meter billing:u contained"):
        await one.quotas.meter(KEY)
    await put_by_hand(one, b"m/" + KEY, b"5")
    await put_by_hand(one, mark_key(one), b"3")
    with pytest.raises(Unavailable, match="mark 3, 5 was seen"):
        await one.quotas.meter(KEY)
    await put_by_hand(one, mark_key(one), b"5")
    await asyncio.sleep(6)
    assert await one.quotas.meter(KEY) == {"committed": 6, "pending": 0}


@pytest.mark.parametrize("value", [b"", b"x", b"-1", b"1.5", b"9" * 101])
def test_a_foreign_value_is_refused_and_the_additions_kept(value: bytes) -> None:
    @virtual
    async def run() -> None:
        [one] = await cluster()
        await put_by_hand(one, b"m/" + KEY, value)
        await one.quotas.meter_add(KEY, 5)
        await asyncio.sleep(1)
        with pytest.raises(WrongType, match="no number"):
            await one.quotas.meter(KEY)
        assert one.quotas.meters.pending == 1

    run()


@virtual
async def test_bad_amounts_and_full_disks_add_nothing() -> None:
    [one] = await cluster()
    for n in (0, -1, 1 << 63, 1.5, "1", None, True):
        with pytest.raises(BadRequest):
            await one.quotas.meter_add(KEY, n)  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match="request id"):
        await one.quotas.meter_add(KEY, 1, "")
    one.outbox.refuse = Full("the store has reached its bound")
    with pytest.raises(Full):
        await one.quotas.meter_add(KEY, 1, "r")
    one.outbox.refuse = None
    await one.quotas.meter_add(KEY, (1 << 63) - 1, "r")
    with pytest.raises(BadRequest, match="cannot count more"):
        await one.quotas.meter_add(KEY, 1)
    await asyncio.sleep(1)
    assert (await one.quotas.meter(KEY))["committed"] == (1 << 63) - 1


@virtual
async def test_a_total_of_many_nodes_may_pass_64_bits() -> None:
    nodes = await cluster(4)
    for node in nodes:
        await node.quotas.meter_add(KEY, (1 << 63) - 1)
    await asyncio.sleep(8)
    assert (await nodes[0].quotas.meter(KEY))["committed"] == 4 * ((1 << 63) - 1)


@virtual
async def test_request_ids_of_meters_are_bounded() -> None:
    [one] = await cluster(limits=Limits(request_ids_kept=5))
    for n in range(50):
        await one.quotas.meter_add(KEY, 1, f"r{n}")
    assert len(one.outbox.seen) < 15


@virtual
async def test_a_damaged_row_is_named_at_the_start() -> None:
    [one] = await cluster()
    await one.quotas.meter_add(KEY, 1)
    [row_key] = [key for key in one.outbox.seen if key.startswith(b"t")]
    one.outbox.seen[row_key] = b"damaged"
    fresh = Meters(
        one.wire.remote(one.spends),
        outbox=one.outbox.table(),
        actor=lambda: 1,
        now_ms=one.now_ms,
        random=random.random,
        deadline_ms=DEADLINE_MS,
    )
    with pytest.raises(CorruptData, match="billing:u"):
        fresh.load()


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.2, 0.5]))
def test_every_acknowledged_unit_is_counted_once(seed: int, chance: float) -> None:
    run_virtual(_count(seed, chance))


async def _count(seed: int, chance: float) -> None:
    rng = random.Random(seed)
    nodes = await cluster(3, seed=seed)
    answered = unknown = 0

    async def work(node: Node, worker: int) -> None:
        nonlocal answered, unknown
        for n in range(8):
            await asyncio.sleep(rng.random() * 0.2)
            amount = rng.randrange(1, 9)
            adding = node.call(
                node.quotas.meter_add(KEY, amount, f"{worker}-{n}" if rng.random() < 0.5 else None)
            )
            if rng.random() < 0.2:
                await asyncio.sleep(0)
                await node.crash(lost=rng.random() < 0.3)
            await asyncio.wait((adding,), timeout=0.1)
            if adding.done() and not adding.cancelled() and adding.exception() is None:
                answered += amount
            else:
                unknown += amount

    for node in nodes:
        node.wire.chance = chance
        node.wire.delay_s = 0.05
    await asyncio.gather(*(work(node, n) for n, node in enumerate(nodes)))
    for node in nodes:
        await node.wire.deliver()
        node.wire.chance = 0.0
    await asyncio.sleep(11)
    total = await nodes[0].quotas.meter(KEY)
    assert total["pending"] == 0
    assert answered <= total["committed"] <= answered + unknown
