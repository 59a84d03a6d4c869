"""An erased session leaves the disk of every node that held it."""

from __future__ import annotations

from pathlib import Path

from cluster_kit import cluster, linked, make, until

from roostd.node import Node

SECRET = b"nobody else says this"
SID = "sid-1"


def logged(file: Path) -> bytes:
    return b"".join(path.read_bytes() for path in (file.parent / "data" / "log").iterdir())


def everything(file: Path) -> bytes:
    files = [path for path in (file.parent / "data").rglob("*") if path.is_file()]
    return b"".join(path.read_bytes() for path in files)


async def speak(node: Node) -> str:
    token = (await node.sessions.open(None, SID)).token
    for number in range(20):
        done = await node.sessions.commit(
            SID,
            token,
            messages=[b'{"role":"user","content":"%d %s"}' % (number, SECRET * 100)],
            turn_id=None,
            base=None,
            put={"kv_cache_index": {"field": b'"%s"' % SECRET}},
            on_conflict="append",
        )
        token = done.token
    return token


async def test_home_and_standby_both_lose_it(tmp_path: Path) -> None:
    files = make(tmp_path, ["a", "b"])
    async with cluster(files) as nodes:
        a, b = nodes.values()
        await until(lambda: linked(a, b))
        token = await speak(a)
        await until(lambda: all(SECRET in logged(file) for file in files.values()))
        assert a.cluster()["store"]["erasing"] == 0
        mark, marked = a.shelf.before_erasure, list[int]()

        def noted(sid: str) -> None:
            mark(sid)
            marked.append(a.cluster()["store"]["erasing"])

        a.shelf.before_erasure = noted
        receipts = await a.sessions.erase(SID, token)
        assert {receipt["node"] for receipt in receipts} == {"a", "b"}
        assert all(receipt["held"] for receipt in receipts)
        assert marked == [1]
        await until(lambda: not any(n.cluster()["store"]["erasing"] for n in (a, b)))
        assert not any(SECRET in everything(file) for file in files.values())
        assert a.cluster()["store"]["erasing_problem"] == ""
        await until(lambda: all(n.store.applied_seq == n.store.seq for n in (a, b)))
    # This process has had it in its memory, which LMDB's new pages must not show.
    assert not any(SECRET in everything(file) for file in files.values())
