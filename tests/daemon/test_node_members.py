"""Members, reports and collection at real nodes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from api_node import served
from cluster_kit import cluster, linked, make, rows_of, same, start, until

from roost_crdt.errors import BadRequest
from roost_crdt.members import Member, covers


async def test_what_was_deleted_is_collected_at_every_member(tmp_path: Path) -> None:
    async with cluster(make(tmp_path, ["a", "b"])) as nodes:
        a, b = nodes["a"], nodes["b"]
        await until(lambda: linked(a, b))
        a.keys.put(b"str:x", b"v")
        a.keys.put(b"str:stays", b"v")
        b.keys.add(b"set:y", [b"e"])
        await until(lambda: b.keys.get(b"str:x") == b"v" and a.keys.members(b"set:y") == [b"e"])
        b.keys.delete(b"str:x")
        a.keys.delete(b"set:y")
        await until(
            lambda: not any(rows_of(node, key) for node in (a, b) for key in (b"str:x", b"set:y"))
        )
        assert a.membership.collector.dropped >= 2
        await until(lambda: same(a, b))
        assert b.keys.get(b"str:stays") == b"v"
        assert b.keys.get(b"str:x") is None
        for node in (a, b):
            floor = node.gossip.replica.gc_floor
            assert floor
            assert covers(node.store.vv, floor)


async def test_the_roster_is_replicated_and_not_shown(tmp_path: Path) -> None:
    async with cluster(make(tmp_path, ["a", "b"])) as nodes:
        a, b = nodes["a"], nodes["b"]
        seen: list[bytes] = []
        a.watch(b"", seen.append)
        await until(lambda: linked(a, b))
        a.keys.put(b"str:x", b"v")
        await until(lambda: all(len(node.membership.listed()) == 2 for node in (a, b)))
        await until(lambda: all(m["current"] for n in (a, b) for m in n.membership.listed()))
        await until(lambda: same(a, b))
        for node in (a, b):
            assert [member["node"] for member in node.cluster()["members"]] == ["a", "b"]
            assert node.keys.scan(b"", b"", 10) == [b"str:x"]
        assert set(seen) == {b"str:x"}
        assert a.gossip.replica.roster_hash == b.gossip.replica.roster_hash
        quiet = False
        for _ in range(20):
            written = sum(a.store.vv.values())
            await asyncio.sleep(0.6)
            if quiet := sum(a.store.vv.values()) == written:
                break
        assert quiet, "reports chase each other"


async def test_a_member_that_is_away_stops_collection_until_it_is_removed(tmp_path: Path) -> None:
    async with cluster(make(tmp_path, ["a", "b", "c"])) as nodes:
        a, b = nodes["a"], nodes["b"]
        await until(lambda: linked(*nodes.values()))
        a.keys.put(b"str:x", b"v")
        await until(lambda: nodes["c"].keys.get(b"str:x") == b"v" and same(*nodes.values()))
        await until(lambda: len(a.membership.listed()) == 3)
        away = nodes.pop("c")
        await away.stop()
        a.keys.delete(b"str:x")
        await until(lambda: "c" in a.membership.collector.collection.waits_for())
        await asyncio.sleep(0.5)
        assert rows_of(a, b"str:x") == 1
        with pytest.raises(BadRequest, match="'d' is no member; members are a, b, c"):
            a.membership.members.remove("d")
        with pytest.raises(BadRequest, match="is this node"):
            a.membership.members.remove("a")
        b.membership.members.remove("c")
        await until(lambda: not rows_of(a, b"str:x") and not rows_of(b, b"str:x"))
        assert [member["node"] for member in a.membership.listed()] == ["a", "b"]


async def test_a_new_life_after_collection_outlives_an_old_expiry_elsewhere(
    tmp_path: Path,
) -> None:
    """One node has dropped an expired key, another still hides it: a new write shows at both."""
    files = make(tmp_path, ["a", "b"])
    async with cluster(files) as nodes:
        a, b = nodes["a"], nodes["b"]
        b.membership.collector.tick = lambda: None  # type: ignore[method-assign]
        await until(lambda: linked(a, b))
        a.keys.incr(b"cnt:x", 5)
        a.keys.add(b"set:x", [b"e"])
        for key in (b"cnt:x", b"set:x"):
            a.keys.expire(key, a.now_ms() + 50)
        await until(lambda: not rows_of(a, b"cnt:x") and not rows_of(a, b"set:x"))
        assert rows_of(b, b"cnt:x")
        assert a.keys.incr(b"cnt:x", 2) == 2
        a.keys.add(b"set:x", [b"f"])
        await until(lambda: b.keys.count(b"cnt:x") == 2)
        await until(lambda: b.keys.members(b"set:x") == [b"f"])


async def test_members_are_listed_and_removed_through_a_face(tmp_path: Path) -> None:
    async with served(tmp_path) as running:
        await until(lambda: running.node.membership.members.roster.members)
        client = await running.client(resp3=True)
        (member,) = json.loads((await client.do("ROOST.MEMBERS"))[b"members_json"])
        assert member["node"] == "eu-1"
        assert member["actor"] == f"{running.node.store.actor:016x}"
        running.node.membership.members._write_member(Member("lost", 7, (), {}, 0))
        assert (await client.do("ROOST.MEMBER", "REMOVE", "lost"))[b"actor"] == b"%016x" % 7
        assert running.node.gossip.replica.removed == {7}
        again = await client.do("ROOST.MEMBER", "REMOVE", "lost")
        assert "is no member; members are eu-1" in str(again)
        assert "syntax" in str(await client.do("ROOST.MEMBER", "ADD", "x"))
        assert "NOPOLICY" in str(await client.do("GET", b"\x01meu-1"))


async def test_the_floor_survives_a_restart(tmp_path: Path) -> None:
    files = make(tmp_path, ["a"])
    async with cluster(files) as nodes:
        a = nodes["a"]
        a.keys.put(b"str:x", b"v")
        a.keys.delete(b"str:x")
        await until(lambda: not rows_of(a, b"str:x"))
        floor = dict(a.gossip.replica.gc_floor)
        await nodes.pop("a").stop()
        nodes["a"] = again = await start(files["a"], gc_pause_ms=600_000)
        assert dict(again.gossip.replica.gc_floor) == floor
        assert again.membership.members.roster.nodes["a"].actor == again.store.actor


async def test_a_row_that_was_lost_is_fetched_again(tmp_path: Path) -> None:
    async with cluster(make(tmp_path, ["a", "b"]), gc_pause_ms=600_000) as nodes:
        a, b = nodes["a"], nodes["b"]
        await until(lambda: linked(a, b))
        for at in range(20):
            a.keys.put(b"str:%d" % at, b"v%d" % at)
        await until(lambda: b.keys.get(b"str:19") == b"v19" and same(a, b))
        b.store.drop_rows([b"str:7\0\x02"])
        await b.durable()
        assert b.keys.get(b"str:7") is None
        await until(lambda: b.keys.get(b"str:7") == b"v7")
        await until(lambda: same(a, b))
        assert b.gossip.replica.antientropy.buckets_repaired == 1
