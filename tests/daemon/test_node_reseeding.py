"""Reseed: a node that was away too long comes back with its own writes and without the dead."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster_kit import cluster, linked, make, rows_of, same, start, until
from store_kit import NOW, Stores, count, incr, put, value

from roost_crdt.errors import Busy
from roost_crdt.logformat import KIND_META, KIND_SESSION
from roost_crdt.members import Roster
from roost_crdt.peer import Mode
from roost_crdt.replica import Replica
from roostd.node.reseeding import MARKER, PAGES, Reseeding
from roostd.store import Store


async def test_a_removed_node_comes_back_with_its_own_writes_only(tmp_path: Path) -> None:
    files = make(tmp_path, ["a", "b", "c"])
    async with cluster(files) as nodes:
        a, b, c = nodes.values()
        await until(lambda: linked(a, b, c))
        a.keys.put(b"str:old", b"dead soon")
        c.keys.incr(b"cnt:x", 5)
        await until(lambda: a.keys.count(b"cnt:x") == 5 and same(a, b, c))
        await until(lambda: len(a.membership.listed()) == 3)
        for name in ("a", "b", "c"):
            await nodes.pop(name).stop()
        c = await start(files["c"])
        before = c.store.actor
        c.keys.put(b"str:new", b"unsent")
        c.keys.incr(b"cnt:x", 7)
        c.keys.add(b"set:s", [b"e"])
        c.store.put(KIND_SESSION, {b"kept": b"as it is"})
        await c.durable()
        await c.stop()
        nodes["a"], nodes["b"] = a, b = await start(files["a"]), await start(files["b"])
        await until(lambda: len(a.gossip.replica.peers) == 1)
        a.membership.members.remove("c")
        b.keys.delete(b"str:old")
        b.keys.incr(b"cnt:x", 1)
        await until(lambda: not rows_of(a, b"str:old") and not rows_of(b, b"str:old"))
        nodes["c"] = c = await start(files["c"])
        assert c.keys.get(b"str:old") == b"dead soon"
        await until(lambda: c.membership.reseeding.stage)
        assert c.gossip.replica.mode("a") in (Mode.RESEED, Mode.SNAPSHOT, Mode.STREAM)
        with pytest.raises(Busy, match="takes its neighbours' rows"):
            c.keys.put(b"str:x", b"")
        assert c.ready() == (False, "joining again")
        await until(lambda: not c.membership.reseeding.stage)
        await until(lambda: linked(a, b, c) and same(a, b, c), within_s=30)
        assert c.store.actor != before
        for node in (a, b, c):
            assert node.keys.get(b"str:old") is None
            assert node.keys.get(b"str:new") == b"unsent"
            assert node.keys.count(b"cnt:x") == 13
            assert node.keys.members(b"set:s") == [b"e"]
        assert c.store.get(KIND_SESSION, b"kept") == b"as it is"
        assert c.store.scan(KIND_META, PAGES) == []
        await until(lambda: len(a.membership.listed()) == 3)


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    kit = Stores(tmp_path)
    yield kit
    for store in kit.opened:
        store.close(clean=False)


def reseeding(store: Store) -> Reseeding:
    replica = Replica(
        node="me",
        region="",
        cluster="c",
        store_id=store.store_id,
        actor=store.actor,
        vv=store.vv,
    )
    return Reseeding(
        "me",
        store=store,
        replica=replica,
        roster=Roster(),
        committed=lambda record: None,
        flush=store.flush,
        now_ms=lambda: NOW,
        emptied=lambda actor: None,
        random_bytes=os.urandom,
    )


def take_all(store: Store, peer: Store) -> None:
    """What a snapshot does."""
    store.accept_rows(peer.scan_rows(b"", 1 << 20), {})
    store.accept_rows((), peer.vv)
    store.flush()


def behind(stores: Stores) -> tuple[Store, Store]:
    """A store that wrote more than its peer holds, and whose own peer has collected."""
    mine, peer = stores.open("mine"), stores.open("peer")
    put(mine, b"k", b"old")
    incr(mine, b"n", 5)
    mine.flush()
    take_all(peer, mine)
    put(mine, b"k", b"unsent")
    incr(mine, b"n", 2)
    mine.flush()
    put(peer, b"p", b"theirs")
    peer.flush()
    return mine, peer


@pytest.mark.parametrize("crash_after", range(9))
def test_a_crash_after_any_step_is_gone_on_from(stores: Stores, crash_after: int) -> None:
    mine, peer = behind(stores)
    work = reseeding(mine)
    work.trigger("peer", peer.vv)
    assert work._replica.mode("peer") is Mode.RESEED
    steps = 0

    def crash() -> tuple[Store, Reseeding]:
        again = stores.reopen(mine)
        return again, reseeding(again)

    while True:
        if not work.stage:
            if value(mine, b"p") == b"theirs":
                break
            work.trigger("peer", peer.vv)  # the crash came before anything was given up
        if work.stage == "join" and not mine.vv:
            take_all(mine, peer)
        work.tick()
        mine.flush()
        steps += 1
        if steps == crash_after:
            mine, work = crash()
        assert steps < 40
    assert value(mine, b"k") == b"unsent"
    assert value(mine, b"p") == b"theirs"
    assert count(mine, b"n") == 7
    assert mine.scan(KIND_META, PAGES) == []
    assert mine.get(KIND_META, MARKER) is None


def test_without_the_log_rows_tell_what_they_can(stores: Stores) -> None:
    mine, peer = behind(stores)
    records_after: Callable[[int, int, int], list[bytes] | None] = lambda *_: None  # noqa: E731
    mine.records_after = records_after  # type: ignore[method-assign]
    work = reseeding(mine)
    work.trigger("peer", peer.vv)
    while work.stage:
        if work.stage == "join" and not mine.vv:
            take_all(mine, peer)
        work.tick()
        mine.flush()
    assert value(mine, b"k") == b"unsent"
    assert count(mine, b"n") == 7


def test_a_second_trigger_before_it_has_joined_keeps_the_export(stores: Stores) -> None:
    mine, peer = behind(stores)
    work = reseeding(mine)
    work.trigger("peer", peer.vv)
    while work.stage != "join":
        work.tick()
    mine.accept_rows(peer.scan_rows(b"", 1 << 20), {})
    work.trigger("peer", peer.vv)
    assert work.stage == "wipe"
    while work.stage:
        if work.stage == "join" and not mine.vv:
            assert mine.scan_rows(b"", 1 << 20) == []
            take_all(mine, peer)
        work.tick()
        mine.flush()
    assert value(mine, b"k") == b"unsent"
    assert count(mine, b"n") == 7
