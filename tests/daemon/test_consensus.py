"""The embedded consensus: transactions, request ids, crashes, and the way from another node."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
from virtual_time import virtual
from volatile_table import Disk

from roost_crdt.errors import (
    BadRequest,
    CorruptData,
    Full,
    TooLarge,
    Unavailable,
    UnknownOutcome,
)
from roost_crdt.limits import Limits
from roost_crdt.linear.request_ids import RequestIds
from roostd.consensus.base import Compare, Disabled, Item, Outcome, Txn
from roostd.consensus.embedded import EmbeddedHost, EmbeddedRemote
from roostd.consensus.witness import Witness

SMALL = Limits(request_ids_kept=3)
MS = 60_000


async def hosted(disk: Disk, limits: Limits = SMALL) -> EmbeddedHost:
    host = EmbeddedHost(disk.table(), random_bytes=os.urandom, limits=limits)
    await host.start()
    return host


def put(key: bytes, value: bytes | None, revision: int | None = None) -> Txn:
    compares = () if revision is None else (Compare(key, revision),)
    return Txn(compares, ((key, value),))


class Wire:
    """The neighbours' rpc to a host, with faults: `drop` says what to lose, call by call."""

    def __init__(self, host: EmbeddedHost) -> None:
        self.handlers = host.handlers()
        self.drop: list[str] = []
        self.calls: list[tuple[str, int]] = []
        self.change: dict[str, Any] = {}

    async def call(self, method: str, args: dict[str, Any], deadline_ms: int) -> Any:
        self.calls.append((method, deadline_ms))
        fault = self.drop.pop(0) if self.drop else ""
        if fault == "route":
            raise Unavailable("no route to eu-1")
        if fault == "silence":
            await asyncio.sleep(deadline_ms / 1000 + 1)
        if fault == "request":
            raise UnknownOutcome("sent, no answer")
        reply = await self.handlers[method]("us-1", args)
        if fault == "reply":
            raise UnknownOutcome("sent, no answer")
        return {**reply, **self.change}


async def remote(host: EmbeddedHost, disk: Disk | None = None) -> tuple[EmbeddedRemote, Wire]:
    wire = Wire(host)
    witness = Witness((disk or Disk()).table())
    client = EmbeddedRemote(wire.call, host="eu-1", witness=witness)
    await client.start()
    return client, wire


# --- the host -------------------------------------------------------------------------------------


async def test_a_put_is_read_back_with_a_growing_revision() -> None:
    host = await hosted(Disk())
    assert await host.get([b"a"], deadline_ms=MS) == [None]
    first = await host.txn(put(b"a", b"1"), deadline_ms=MS)
    second = await host.txn(put(b"b", b"2"), deadline_ms=MS)
    assert first.ok
    assert second.revision > first.revision
    assert await host.get([b"b", b"x", b"a"], deadline_ms=MS) == [
        Item(b"2", second.revision),
        None,
        Item(b"1", first.revision),
    ]


async def test_a_failed_comparison_changes_nothing_and_tells_what_is_there() -> None:
    host = await hosted(Disk())
    made = await host.txn(put(b"a", b"1", 0), deadline_ms=MS)
    again = await host.txn(
        Txn((Compare(b"a", 0), Compare(b"b", 0)), ((b"a", b"2"), (b"b", b"3"))), deadline_ms=MS
    )
    assert again == Outcome(False, items=(Item(b"1", made.revision), None))
    assert await host.get([b"a", b"b"], deadline_ms=MS) == [Item(b"1", made.revision), None]


async def test_a_deleted_key_compares_as_absent_and_its_revision_never_returns() -> None:
    host = await hosted(Disk())
    made = await host.txn(put(b"a", b"1"), deadline_ms=MS)
    assert (await host.txn(put(b"a", None, made.revision), deadline_ms=MS)).ok
    assert not (await host.txn(put(b"a", b"2", made.revision), deadline_ms=MS)).ok
    remade = await host.txn(put(b"a", b"2", 0), deadline_ms=MS)
    assert remade.revision > made.revision + 1


async def test_revisions_grow_over_restarts() -> None:
    disk = Disk()
    host = await hosted(disk)
    before = await host.txn(put(b"a", b"1"), deadline_ms=MS)
    disk.crash()
    after = await (await hosted(disk)).txn(put(b"a", b"2"), deadline_ms=MS)
    assert after.revision > before.revision


async def test_a_repeated_request_id_answers_the_first_result_even_after_a_restart() -> None:
    disk = Disk()
    host = await hosted(disk)
    await host.txn(put(b"a", b"1"), request_id=b"r", result=b"one", deadline_ms=MS)
    for _ in range(2):
        again = await host.txn(put(b"a", b"2"), request_id=b"r", result=b"two", deadline_ms=MS)
        assert (again.ok, again.duplicate, again.result) == (True, True, b"one")
        disk.crash()
        host = await hosted(disk)
    assert (await host.get([b"a"], deadline_ms=MS))[0].value == b"1"  # type: ignore[union-attr]


async def test_a_failed_comparison_does_not_use_up_its_request_id() -> None:
    host = await hosted(Disk())
    assert not (await host.txn(put(b"a", b"1", 9), request_id=b"r", deadline_ms=MS)).ok
    fine = await host.txn(put(b"a", b"1", 0), request_id=b"r", result=b"x", deadline_ms=MS)
    assert fine.ok
    assert not fine.duplicate


async def test_request_ids_are_bounded_and_the_oldest_is_forgotten_first() -> None:
    disk = Disk()
    host = await hosted(disk)
    for n in range(10):
        await host.txn(put(b"a", b"%d" % n), request_id=b"r%d" % n, result=b"", deadline_ms=MS)
    known = RequestIds(disk.table(), b"q", 3)
    assert [known.find(b"r%d" % n) is not None for n in range(10)] == [False] * 7 + [True] * 3
    assert len(disk.seen) < 12


async def test_an_answer_waits_for_the_disk() -> None:
    disk = Disk()
    host = await hosted(disk)
    disk.stall = asyncio.Event()
    writing = asyncio.create_task(host.txn(put(b"a", b"1"), deadline_ms=5_000))
    await asyncio.sleep(0)
    reading = asyncio.create_task(host.get([b"a"], deadline_ms=5_000))
    await asyncio.sleep(0.01)
    assert not writing.done()
    assert not reading.done(), "a reader saw what a crash would take back"
    disk.stall.set()
    assert (await writing).ok
    assert (await reading)[0] is not None


@virtual
async def test_a_disk_that_stalls_is_unavailable_to_readers_and_unknown_to_writers() -> None:
    disk = Disk()
    host = await hosted(disk)
    disk.stall = asyncio.Event()
    with pytest.raises(Unavailable):
        await host.get([b"a"], deadline_ms=20)
    with pytest.raises(UnknownOutcome) as unknown:
        await host.txn(put(b"a", b"1"), request_id=b"r7", deadline_ms=20)
    assert unknown.value.details["request_id"] == "r7"
    assert host.status().last_error is not None


async def test_a_refused_write_changes_nothing() -> None:
    disk = Disk()
    host = await hosted(disk)
    disk.refuse = Full("the store has reached its bound")
    with pytest.raises(Full):
        await host.txn(put(b"a", b"1"), request_id=b"r", deadline_ms=MS)
    disk.refuse = None
    outcome = await host.txn(put(b"a", b"1", 0), request_id=b"r", deadline_ms=MS)
    assert outcome.ok
    assert not outcome.duplicate


async def test_scan_gives_a_prefix_in_order_and_in_pages() -> None:
    host = await hosted(Disk())
    for key in (b"g/b", b"g/a", b"h", b"g/c", b"f"):
        await host.txn(put(key, key), deadline_ms=MS)
    first = await host.scan(b"g/", 2, deadline_ms=MS)
    rest = await host.scan(b"g/", 2, after=first[-1][0], deadline_ms=MS)
    assert [key for key, _ in first] == [b"g/a", b"g/b"]
    assert [(key, item.value) for key, item in rest] == [(b"g/c", b"g/c")]


async def test_a_damaged_row_refuses_its_key_and_no_other() -> None:
    disk = Disk()
    host = await hosted(disk)
    await host.txn(put(b"a", b"1"), deadline_ms=MS)
    await host.txn(put(b"b", b"2"), deadline_ms=MS)
    disk.seen[b"da"] = disk.seen[b"da"][:-1] + b"x"
    with pytest.raises(Unavailable, match="checksum"):
        await host.get([b"a"], deadline_ms=MS)
    with pytest.raises(Unavailable, match="checksum"):
        await host.txn(put(b"a", b"1", 0), deadline_ms=MS)
    assert (await host.get([b"b"], deadline_ms=MS))[0] is not None


@pytest.mark.parametrize(
    "txn",
    [
        put(b"", b"1"),
        put(b"k" * 501, b"1"),
        Txn((Compare(b"", 0),), ()),
        Txn((), ((b"a", b"1"), (b"a", b"2"))),
    ],
)
async def test_malformed_transactions_are_refused(txn: Txn) -> None:
    disk = Disk()
    host = await hosted(disk)
    before = dict(disk.seen)
    with pytest.raises(BadRequest):
        await host.txn(txn, deadline_ms=MS)
    assert disk.seen == before


async def test_a_value_beyond_the_bound_is_too_large() -> None:
    host = await hosted(Disk(), Limits(value_bytes_max=10))
    with pytest.raises(TooLarge):
        await host.txn(put(b"a", b"1" * 70_000), deadline_ms=MS)


async def test_a_history_without_its_head_is_refused_at_the_start() -> None:
    disk = Disk()
    host = await hosted(disk)
    await host.txn(put(b"a", b"1"), deadline_ms=MS)
    del disk.seen[b"meta"]
    with pytest.raises(CorruptData):
        await hosted(disk)


async def test_concurrent_compare_and_swaps_apply_one_by_one() -> None:
    host = await hosted(Disk())

    async def add() -> None:
        item = None
        while True:
            [item] = await host.get([b"n"], deadline_ms=MS)
            value = b"%d" % (int(item.value) + 1 if item else 1)
            if (await host.txn(put(b"n", value, item.revision if item else 0), deadline_ms=MS)).ok:
                return

    await asyncio.gather(*(add() for _ in range(20)))
    [item] = await host.get([b"n"], deadline_ms=MS)
    assert item is not None
    assert item.value == b"20"


# --- from another node ----------------------------------------------------------------------------


async def test_a_remote_node_sees_what_the_host_holds() -> None:
    host = await hosted(Disk())
    client, _ = await remote(host)
    made = await client.txn(put(b"a", b"1", 0), request_id=b"r", result=b"x", deadline_ms=MS)
    assert (made.ok, made.duplicate, made.result) == (True, False, b"x")
    assert await client.get([b"a", b"b"], deadline_ms=MS) == [Item(b"1", made.revision), None]
    assert await client.scan(b"", 10, deadline_ms=MS) == [(b"a", Item(b"1", made.revision))]
    failed = await client.txn(put(b"a", b"2", 0), deadline_ms=MS)
    assert failed == Outcome(False, items=(Item(b"1", made.revision),))
    assert client.status() == ("embedded", "up", None)


@pytest.mark.parametrize("fault", ["request", "reply"])
async def test_a_lost_message_is_repeated_and_applies_once(fault: str) -> None:
    host = await hosted(Disk())
    client, wire = await remote(host)
    wire.drop = [fault]
    outcome = await client.txn(put(b"a", b"1", 0), request_id=b"r", result=b"x", deadline_ms=MS)
    assert outcome.ok
    assert outcome.result == b"x"
    assert outcome.duplicate == (fault == "reply")
    assert len(wire.calls) == 2


@pytest.mark.parametrize("fault", ["request", "reply"])
async def test_without_a_request_id_a_lost_message_is_unknown(fault: str) -> None:
    host = await hosted(Disk())
    client, wire = await remote(host)
    wire.drop = [fault]
    with pytest.raises(UnknownOutcome):
        await client.txn(put(b"a", b"1", 0), deadline_ms=MS)
    assert len(wire.calls) == 1


async def test_a_lost_read_is_repeated() -> None:
    host = await hosted(Disk())
    client, wire = await remote(host)
    wire.drop = ["reply", "request"]
    assert await client.get([b"a"], deadline_ms=MS) == [None]


@virtual
async def test_silence_ends_within_the_deadline() -> None:
    host = await hosted(Disk())
    client, wire = await remote(host)
    loop = asyncio.get_running_loop()
    wire.drop = ["silence"] * 20
    began = loop.time()
    with pytest.raises(UnknownOutcome) as unknown:
        await client.txn(put(b"a", b"1"), request_id=b"r1", deadline_ms=200)
    wire.drop = ["silence"] * 20
    with pytest.raises(Unavailable):
        await client.get([b"a"], deadline_ms=200)
    assert loop.time() - began < 0.5
    assert unknown.value.details["request_id"] == "r1"
    assert client.status().state == "down"
    assert all(deadline_ms <= 200 for _, deadline_ms in wire.calls)


async def test_no_route_is_unavailable_at_once() -> None:
    host = await hosted(Disk())
    client, wire = await remote(host)
    wire.drop = ["route"]
    with pytest.raises(Unavailable, match="no route"):
        await client.txn(put(b"a", b"1"), request_id=b"r", deadline_ms=MS)
    assert len(wire.calls) == 1
    assert client.status().last_error == "no route to eu-1"


@virtual
async def test_no_route_after_a_lost_answer_is_still_unknown() -> None:
    host = await hosted(Disk())
    client, wire = await remote(host)
    wire.drop = ["reply"] + ["route"] * 50
    with pytest.raises(UnknownOutcome):
        await client.txn(put(b"a", b"1"), request_id=b"r", deadline_ms=200)


@pytest.mark.parametrize(
    "change",
    [
        {"items": [[b"1", 0]]},
        {"items": []},
        {"items": "x"},
        {"revision": "9"},
        {"history": b"short"},
    ],
)
async def test_a_malformed_answer_is_no_answer(change: dict[str, Any]) -> None:
    host = await hosted(Disk())
    await host.txn(put(b"a", b"1"), deadline_ms=MS)
    client, wire = await remote(host)
    wire.change = change
    with pytest.raises(Unavailable):
        await client.get([b"a"], deadline_ms=100)


@pytest.mark.parametrize(
    ("method", "args"),
    [
        ("consensus.get", {}),
        ("consensus.get", {"keys": [1], "deadline_ms": 9}),
        ("consensus.get", {"keys": [b"a"] * 1_001, "deadline_ms": 9}),
        ("consensus.scan", {"prefix": b"", "after": b"", "limit": 0, "deadline_ms": 9}),
        ("consensus.txn", {"compares": [], "puts": [[b"a"]], "deadline_ms": 9}),
        (
            "consensus.txn",
            {
                "compares": [],
                "puts": [[b"%d" % n, b""] for n in range(200)],
                "request_id": None,
                "result": b"",
                "deadline_ms": 9,
            },
        ),
    ],
)
async def test_a_malformed_call_is_refused(method: str, args: dict[str, Any]) -> None:
    host = await hosted(Disk())
    with pytest.raises(BadRequest):
        await host.handlers()[method]("us-1", args)


# --- history lost ---------------------------------------------------------------------------------


async def test_a_host_restored_from_a_backup_is_not_believed() -> None:
    disk, seen = Disk(), Disk()
    host = await hosted(disk)
    client, _ = await remote(host, seen)
    await client.txn(put(b"a", b"1"), deadline_ms=MS)
    backup = dict(disk.seen)
    await client.txn(put(b"a", b"2"), deadline_ms=MS)
    seen.sync()
    disk.seen = backup
    client, _ = await remote(await hosted(disk), seen)
    with pytest.raises(Unavailable, match="back in time"):
        await client.get([b"a"], deadline_ms=MS)
    for _ in range(3):
        await host.txn(put(b"a", b"3"), deadline_ms=MS)
    with pytest.raises(Unavailable, match="back in time"):
        await client.get([b"a"], deadline_ms=MS)
    with pytest.raises(Unavailable, match="back in time"):
        client.check()
    restarted, _ = await remote(host, seen)
    with pytest.raises(Unavailable, match="back in time"):
        await restarted.get([b"a"], deadline_ms=MS)


async def test_another_history_at_the_address_is_not_believed_until_accepted() -> None:
    seen = Disk()
    client, _ = await remote(await hosted(Disk()), seen)
    await client.txn(put(b"a", b"1"), deadline_ms=MS)
    client, _ = await remote(await hosted(Disk()), seen)
    with pytest.raises(UnknownOutcome, match=r"back in time: .* an empty node\.data"):
        await client.txn(put(b"a", b"1"), deadline_ms=MS)
    assert str(client.status().last_error).startswith("history ")
    witness = Witness(seen.table())
    witness.load()
    assert witness.lost
    witness.accept()
    client, _ = await remote(await hosted(Disk()), seen)
    assert await client.get([b"a"], deadline_ms=MS) == [None]


def test_answers_that_overtake_each_other_are_no_loss() -> None:
    witness = Witness(Disk().table())
    history = b"h" * 16
    early = witness.floor
    witness.saw(history, 7, early)
    witness.saw(history, 5, early)
    with pytest.raises(Unavailable):
        witness.saw(history, 6, witness.floor)


async def test_a_disabled_consensus_says_how_to_enable_it() -> None:
    none = Disabled()
    await none.start()
    with pytest.raises(Unavailable, match="etcd or embedded"):
        await none.get([b"a"], deadline_ms=MS)
    with pytest.raises(Unavailable):
        await none.scan(b"a", 1, deadline_ms=MS)
    with pytest.raises(Unavailable):
        await none.txn(put(b"a", b"1"), deadline_ms=MS)
    with pytest.raises(Unavailable):
        none.check()
    assert none.status().as_dict() == {"backend": "none", "state": "off", "last_error": None}
    await none.stop()
