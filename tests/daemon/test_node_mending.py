"""Rows that a disk has lost come back from the log and from neighbours, and are never missed."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest
from cluster_kit import cluster, linked, make, same, start, until
from prometheus_client import generate_latest

from roost_crdt.digest import bucket_of
from roost_crdt.errors import CorruptData, Full
from roost_crdt.members import covers
from roostd import pages, wire
from roostd.index import Index
from roostd.log import Log
from roostd.node import Node
from roostd.node.mending import Mending
from roostd.store import check, restore, scrub

NUMBERS = range(300)


def fill(node: Node) -> None:
    with node.keys.batch():
        for number in NUMBERS:
            node.keys.put(b"str:%03d" % number, b"value %d" % number)
            if not number % 10:
                node.keys.incr(b"cnt:%03d" % number, number + 1)
                node.keys.add(b"set:%03d" % number, [b"%d" % n for n in range(20)])
                node.keys.map_put(b"map:%03d" % number, {b"f%d" % n: b"x" for n in range(20)})
                node.keys.incr(b"rate:%03d" % number, 5)


def reads(node: Node) -> dict[str, Callable[[], Any]]:
    """Reads by name, of every key and kind."""
    keys = node.keys
    found: dict[str, Callable[[], Any]] = {}
    for n in NUMBERS:
        found[f"str{n}"] = lambda n=n: keys.get(b"str:%03d" % n)
        if not n % 10:
            found[f"cnt{n}"] = lambda n=n: keys.count(b"cnt:%03d" % n)
            found[f"set{n}"] = lambda n=n: sorted(keys.members(b"set:%03d" % n))
            found[f"map{n}"] = lambda n=n: keys.fields(b"map:%03d" % n)
    found["keys"] = lambda: keys.scan(b"", b"", 1_000)
    return found


def shown(node: Node) -> dict[str, Any]:
    """What every read shows; refusals are left out."""
    answers: dict[str, Any] = {}
    for name, read in reads(node).items():
        try:
            answers[name] = read()
        except CorruptData:
            continue
    return answers


async def filled(tmp_path: Path) -> tuple[dict[str, Path], dict[str, Any]]:
    """Two stopped nodes that hold the same, and what each of them shows."""
    files = make(tmp_path, ["a", "b"])
    async with cluster(files) as nodes:
        a, b = nodes.values()
        await until(lambda: linked(a, b))
        fill(a)
        await until(lambda: same(a, b) and len(shown(b)) == len(reads(b)))
        return files, shown(a)


async def come_back(
    files: dict[str, Path], whole: dict[str, Any], *, scrubbed: bool = False, **limits: int
) -> None:
    """Start the damaged b, then a: nothing wrong is shown, and in the end everything is."""
    b = await start(files["b"], **limits)
    nodes = [b]
    try:
        if scrubbed:
            await until(lambda: b.store.suspects.buckets)

        def right() -> bool:
            answers = shown(b)
            wrong = {n: v for n, v in answers.items() if v != whole[n]}
            assert not wrong
            return len(answers) == len(whole)

        right()
        a = await start(files["a"])
        nodes.append(a)
        await until(lambda: right() and same(a, b) and not b.store.suspects.buckets)
        assert a.store.digest()[1] == b.store.digest()[1]
    finally:
        for node in nodes:
            await node.stop()
    assert check(files["b"].parent / "data").problems == []


@pytest.mark.parametrize("at_start", [False, True], ids=["while it runs", "at the start"])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"value 123", b"value 103"),
        (b"str:123\0", b"str:!23\0"),
        (b"set:120\0\x047", b"set:120\0\x04?"),
    ],
    ids=["a value", "a name", "an element"],
)
async def test_damaged_rows_come_back(
    tmp_path: Path, old: bytes, new: bytes, at_start: bool
) -> None:
    files, whole = await filled(tmp_path)
    path = files["b"].parent / "data" / "index" / "data.mdb"
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))
    await come_back(files, whole, start_check_bytes=1 << 30 if at_start else 0)


async def test_rows_that_are_gone_come_back(tmp_path: Path) -> None:
    """Nothing but the sums tells of them."""
    files, whole = await filled(tmp_path)
    lose_rows(files["b"].parent / "data")
    await come_back(files, whole, scrubbed=True)


async def test_rows_of_a_restored_store_come_back(tmp_path: Path) -> None:
    """Its log begins at entry 1, and tells nothing of what the backup held."""
    files, whole = await filled(tmp_path)
    data = files["b"].parent / "data"
    b = await start(files["b"])
    cursor, raw = b"", b""
    while cursor or not raw:
        page = b.store.backup(cursor, {}, 0, bytes(16))
        cursor, raw = page.cursor, raw + page.chunk
    await b.stop()
    (tmp_path / "backup").write_bytes(raw)
    shutil.rmtree(data)
    restore(tmp_path / "backup", data, random_bytes=os.urandom)
    lose_rows(data)
    await come_back(files, whole, scrubbed=True)


def lose_rows(data: Path) -> None:
    """Remove rows past the store."""
    index = Index(data / "index", 64 << 20)
    names = [b"str:%03d\0\x02" % n for n in range(0, 300, 7)]
    assert index.get_rows(names)
    index.write([(name, None) for name in names], {})
    index.close()


@pytest.mark.parametrize("seed", range(6))
async def test_flipped_pages(tmp_path: Path, seed: int) -> None:
    """Bits in several pages of rows."""
    files, whole = await filled(tmp_path)
    path = files["b"].parent / "data" / "index" / "data.mdb"
    data = bytearray(path.read_bytes())
    with pages.PageFile(path) as file:
        walk = pages._Walk(file, file.newest(), lambda done, total: None)
        rows = pages.named_trees(file, file.newest())[b"rows"]
        leaves = sorted({page for page, _ in walk.entries(rows, b"rows")})
    rng = random.Random(seed)
    assert len(leaves) > 5
    for page in rng.sample(leaves, 3):
        used = [at for at in range(16, 4096) if data[page * 4096 + at]]
        data[page * 4096 + rng.choice(used)] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    await come_back(files, whole)


async def test_rows_stand_for_a_damaged_place_of_the_log(tmp_path: Path) -> None:
    """A neighbour that asks for records gets a snapshot, not what the damage left."""
    files = make(tmp_path, ["a", "b"])
    async with cluster({"a": files["a"]}) as nodes:
        a = nodes["a"]
        fill(a)
        a.groups.flush()
        (path,) = (
            path
            for path in (files["a"].parent / "data" / "log").iterdir()
            if b"value 123" in path.read_bytes()
        )
        path.write_bytes(path.read_bytes().replace(b"value 123", b"value 103"))
        with pytest.raises(CorruptData, match="roost check DIR --repair"):
            a.store.records_after(a.store.actor, 0, 1 << 20)
        nodes["b"] = b = await start(files["b"])
        await until(lambda: linked(a, b) and same(a, b))
        assert shown(b) == shown(a)
        assert b.keys.get(b"str:123") == b"value 123"


@pytest.mark.interpreted
async def test_what_the_store_refuses_is_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, whole = await filled(tmp_path)
    lose_rows(files["b"].parent / "data")
    b = await start(files["b"])
    a = None
    try:
        monkeypatch.setattr(scrub, "_HURRY_PAUSE_S", 0.0)
        await until(lambda: b.store.suspects.buckets)
        accept, refused = b.store.accept_rows, [2]

        def full(*args: Any) -> None:
            if refused[0]:
                refused[0] -= 1
                raise Full("no room just now")
            accept(*args)

        monkeypatch.setattr(b.store, "accept_rows", full)
        monkeypatch.setattr(type(b.mending), "_read_log", lambda self: True)
        a = await start(files["a"])
        await until(lambda: not b.store.suspects.buckets)
        assert refused == [0]
        assert shown(b) == whole
    finally:
        for node in filter(None, (a, b)):
            await node.stop()


async def test_what_fetched_rows_may_show_is_known_after_a_restart(tmp_path: Path) -> None:
    """They come before their records: until those are here nothing is collected."""
    files = make(tmp_path, ["a", "b"])
    async with cluster(files) as nodes:
        a, b = nodes.values()
        await until(lambda: linked(a, b))
        a.keys.put(b"str:1", b"v")
        await until(lambda: same(a, b))
        held, replica = dict(a.store.vv), b.gossip.replica
        assert not replica.rows_vv
        assert replica.antientropy.fetch("a", [bucket_of(b"str:1")], wire.boot_ms())
        b.gossip.schedule()
        await until(lambda: replica.rows_vv)
        known = dict(replica.rows_vv)
        assert covers(known, held)
    async with cluster({"b": files["b"]}) as nodes:
        assert nodes["b"].gossip.replica.rows_vv == known


@pytest.mark.interpreted
async def test_no_snapshot_is_sent_before_the_rows_are_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that joins at a damaged one waits, rather than hold less than it says."""
    files = make(tmp_path, ["a", "b", "c"], line=True)
    async with cluster({name: files[name] for name in "ab"}) as nodes:
        a, b = nodes["a"], nodes["b"]
        await until(lambda: linked(a, b))
        fill(a)
        await until(lambda: same(a, b) and len(shown(b)) == len(reads(b)))
        whole, writer = shown(a), a.store.actor
    path = files["b"].parent / "data" / "index" / "data.mdb"
    data = path.read_bytes()
    assert b"value 123" in data
    path.write_bytes(data.replace(b"value 123", b"value 103"))
    monkeypatch.setattr(Mending, "_read_log", lambda self: True)
    # This node's log holds nothing of the other one any more.
    short, records_after, follows = (
        files["b"].parent / "data" / "log",
        Log.records_after,
        Log.follows,
    )
    monkeypatch.setattr(
        Log,
        "records_after",
        lambda self, origin, *args: (
            []
            if (self.directory, origin) == (short, writer)
            else records_after(self, origin, *args)
        ),
    )
    monkeypatch.setattr(
        Log,
        "follows",
        lambda self, origin, hlc: (
            (self.directory, origin) != (short, writer) and follows(self, origin, hlc)
        ),
    )
    async with cluster({"b": files["b"], "c": files["c"]}, start_check_bytes=0) as nodes:
        b, c = nodes["b"], nodes["c"]
        await until(lambda: c.gossip.replica.peers and b.store.suspects.buckets)
        await until(lambda: c.gossip.replica.peers["b"].snapshot_in is not None)
        await asyncio.sleep(0.5)
        assert b.gossip.replica.peers["c"].snapshot_out is not None
        assert writer not in c.store.vv, "it claims to hold what it was not sent"
        nodes["a"] = await start(files["a"])
        await until(lambda: not b.store.suspects.buckets)
        monkeypatch.undo()
        await until(lambda: same(b, c) and len(shown(c)) == len(reads(c)))
        assert shown(c) == whole


async def test_a_store_without_room_says_so_and_says_when_there_is_some_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_space(*_: Any) -> None:
        raise lmdb.MapFullError("mdb_put: MDB_MAP_FULL")

    def said() -> list[str]:
        return [r.getMessage() for r in caplog.records if r.name == "roostd.node.mending"]

    a = await start(make(tmp_path, ["a"])["a"])
    monkeypatch.setattr("roostd.node.mending.ROOM_MS", 300)
    try:
        assert a.cluster()["store"]["full"] == ""
        with monkeypatch.context() as patched:
            patched.setattr(Index, "write", no_space)
            a.keys.put(b"str:1", b"v")
            await a.durable()
            await until(lambda: len(said()) == 1)
            full = a.cluster()["store"]["full"]
            assert "cannot take" in full
            assert f"free on the disk of {a.config.node.data}" in full
            assert b"roost_store_full 1.0" in generate_latest(a.metrics)
        await until(lambda: len(said()) == 2)
        assert a.cluster()["store"]["full"] == ""
        assert said()[0].startswith("the store takes no writes (FULL): the index cannot take")
        assert said()[1] == "there is room again: the store takes writes"
    finally:
        await a.stop()


async def test_a_store_at_its_bound_still_takes_what_deletes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = await start(make(tmp_path, ["a"])["a"])
    try:
        a.keys.put(b"str:1", b"v")
        a.keys.incr(b"cnt:1", 3)
        a.keys.add(b"set:1", [b"x", b"y"])
        a.keys.map_put(b"map:1", {b"f": b"v", b"g": b"v"})
        sid = (await a.sessions.open(None, None)).sid
        await a.sessions.commit(sid, None, messages=[b'{"a":1}'])
        used = a.store.size_max * 92 // 100
        monkeypatch.setattr(Index, "used_bytes", lambda _: used)
        a.keys.put(b"str:2", b"v")
        await a.durable()
        await until(lambda: a.store.full() and a.store.applied_seq == a.store.seq)
        a.store._admission.credit = 0
        with pytest.raises(Full, match="delete keys"):
            a.keys.put(b"str:1", b"w")

        def both() -> None:
            with a.keys.batch():
                a.keys.delete(b"str:2")
                a.keys.put(b"str:3", b"w")

        with pytest.raises(Full):
            both()
        assert a.keys.remove(b"set:1", [b"x"]) == 1
        assert a.keys.map_drop(b"map:1", [b"f"]) == 1
        with a.keys.batch():
            assert a.keys.delete(b"str:1")
            assert a.keys.delete(b"cnt:1")
        assert await a.sessions.erase(sid, None)
        with pytest.raises(Full):
            a.keys.put(b"str:1", b"w")
        await a.durable()
        assert a.keys.scan(b"", b"", 10) == [b"map:1", b"set:1", b"str:2"]
    finally:
        await a.stop()
