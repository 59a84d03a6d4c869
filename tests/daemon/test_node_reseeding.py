"""Reseed: a node that was away too long comes back with its own writes and without the dead."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster_kit import cluster, linked, make, rows_of, same, start, until

from roost_crdt.errors import Busy
from roost_crdt.logformat import KIND_META, KIND_SESSION
from roost_crdt.membership.reseeding import PAGES
from roost_crdt.peer import Mode


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
        await until(lambda: linked(a, b, c) and same(a, b, c))
        assert c.store.actor != before
        for node in (a, b, c):
            assert node.keys.get(b"str:old") is None
            assert node.keys.get(b"str:new") == b"unsent"
            assert node.keys.count(b"cnt:x") == 13
            assert node.keys.members(b"set:s") == [b"e"]
        assert c.store.get(KIND_SESSION, b"kept") == b"as it is"
        assert c.store.scan(KIND_META, PAGES) == []
        await until(lambda: len(a.membership.listed()) == 3)
