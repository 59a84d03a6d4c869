"""What stands in for stored pairs that are lost: memory, the document, the neighbour, or nothing
that could be spent twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cluster_kit import cluster, linked, make, start, until

from roost_crdt.errors import CorruptData, RoostError
from roost_crdt.logformat import KIND_SESSION, KIND_SPEND
from roost_crdt.sessions.table import head_key, prefix_of
from roostd.index import Index
from roostd.log import Log
from roostd.node import Node
from roostd.store import check

SID = "sid-1"


def spoil(data: Path, kind: int, chosen: Callable[[bytes], bool]) -> list[bytes]:
    """Damage the values of some pairs of a stopped node; their keys."""
    index = Index(data / "index", 64 << 20)
    stored, _ = index.stored_after(kind, b"", 1 << 20, 1 << 30)
    keys = [key for key, _ in stored if chosen(key)]
    for key, raw in stored:
        if key in keys:
            index.write_stored({kind: [(key, raw[:-1] + bytes([raw[-1] ^ 1]))]})
    index.close()
    assert keys
    return keys


def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log holds none of it any more."""

    def trimmed(*_: object) -> None:
        raise CorruptData("not retained any more")

    monkeypatch.setattr(Log, "entries_from", trimmed)


async def speak(node: Node, turns: int = 3) -> str:
    token = (await node.sessions.open(None, SID)).token
    for number in range(turns):
        done = await node.sessions.commit(
            SID,
            token,
            messages=[b'{"role":"user","content":"turn %d"}' % number],
            turn_id=None,
            base=None,
            put={},
            on_conflict="append",
        )
        token = done.token
    return token


async def turns(node: Node, token: str) -> list[bytes]:
    return list((await node.sessions.turns(SID, token, None)).messages)


def acknowledged(a: Node, b: Node) -> bool:
    metas = [node.shelf.meta(SID) for node in (a, b)]
    return all(metas) and metas[0].acked_n == metas[0].n == metas[1].n  # type: ignore[union-attr]


async def held_by_two(tmp_path: Path) -> tuple[dict[str, Path], str, list[bytes]]:
    """Two stopped nodes, home and standby of a session of three turns."""
    files = make(tmp_path, ["a", "b"])
    async with cluster(files) as nodes:
        a, b = nodes.values()
        await until(lambda: linked(a, b))
        token = await speak(a)
        await until(lambda: acknowledged(a, b))
        return files, token, await turns(a, token)


def part(letter: bytes) -> Callable[[bytes], bool]:
    return lambda key: key.startswith(prefix_of(SID) + letter)


PARTS: dict[str, Callable[[bytes], bool]] = {
    "an update": part(b"u"),
    "a turn of the view": part(b"e"),
}


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("where", ["home", "standby"])
async def test_a_session_comes_back_from_its_other_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, name: str
) -> None:
    files, token, said = await held_by_two(tmp_path)
    hurt = "a" if where == "home" else "b"
    spoil(files[hurt].parent / "data", KIND_SESSION, PARTS[name])
    forgetful(monkeypatch)
    async with cluster(files) as nodes:
        a, b = nodes.values()
        await until(lambda: linked(a, b))
        await until(lambda: not nodes[hurt].store.mender.lost.gone)
        await until(lambda: all(node.shelf.table.head(SID) is not None for node in (a, b)))

        async def served(node: Node) -> Any:
            try:
                return await turns(node, token)
            except RoostError as error:
                return error

        for node in (a, b):
            assert await served(node) == said
        await until(lambda: all(node.store.names(KIND_SESSION, prefix_of(SID)) for node in (a, b)))
        assert nodes[hurt].mending.status()["damaged_pairs"] == 0
    for file in files.values():
        assert check(file.parent / "data").problems == []


async def test_nobody_else_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home without a standby keeps what it has, and says what is wrong."""
    files = make(tmp_path, ["a"])
    async with cluster(files) as nodes:
        token = await speak(nodes["a"])
    keys = spoil(files["a"].parent / "data", KIND_SESSION, part(b"u"))
    forgetful(monkeypatch)
    async with cluster(files) as nodes:
        a = nodes["a"]
        for _ in range(10):
            a.mending.tick()
        assert a.mending.status()["damaged_pairs"] == len(keys)
        assert len(await turns(a, token)) == 3, "the plain view is whole"
        with pytest.raises(RoostError, match="damaged"):
            await speak(a, 1)
        assert set(keys) <= set(a.store.names(KIND_SESSION, prefix_of(SID)))


async def test_what_is_in_memory_is_stored_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk goes bad under a node that runs."""
    files = make(tmp_path, ["a"])
    async with cluster(files, start_check_bytes=0) as nodes:
        a = nodes["a"]
        token = await speak(a)
        said = await turns(a, token)
        await until(lambda: a.store.applied_seq == a.store.seq)
        index = a.store._index
        stored, _ = index.stored_after(KIND_SESSION, b"", 1 << 20, 1 << 30)
        forgetful(monkeypatch)
        for key, raw in stored:
            if part(b"u")(key) or key == head_key(SID):
                index.write_stored({KIND_SESSION: [(key, raw[:-1] + b"?")]})
        with pytest.raises(CorruptData):
            a.shelf.table.document(SID)
        with pytest.raises(CorruptData):
            a.shelf.table.head(SID)
        await until(lambda: a.store.mender.lost.mended >= 2 and not a.store.mender.lost.gone)
        assert await turns(a, token) == said
        monkeypatch.undo()
    assert check(files["a"].parent / "data").problems == []
    a = await start(files["a"])
    try:
        assert await turns(a, token) == said
    finally:
        await a.stop()


QUOTA = b"quota:team"


@pytest.mark.parametrize("letter", [b"l", b"v", b"i"])
async def test_what_cannot_be_told_counts_as_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, letter: bytes
) -> None:
    files = make(tmp_path, ["a"])
    async with cluster(files) as nodes:
        a = nodes["a"]
        await a.quotas.set_limit(QUOTA, 1_000)
        await a.quotas.spend(QUOTA, 3, b"request-1")
        await a.quotas.reserve(QUOTA, 4, b"request-2", 600_000)
        a.groups.flush()
        await until(lambda: a.store.applied_seq == a.store.seq)
        taken = 1_000 - (await a.quotas.show(QUOTA))["remaining"]
        a.store.close(clean=False)
        monkeypatch.setattr(type(a.quotas), "stop", nothing)
        monkeypatch.setattr(a.groups, "flush", lambda: None)
    monkeypatch.undo()
    spoil(files["a"].parent / "data", KIND_SPEND, lambda key: key.startswith(letter))
    forgetful(monkeypatch)
    async with cluster(files) as nodes:
        a = nodes["a"]
        shown = await a.quotas.show(QUOTA)
        assert a.store.mender.lost.forgotten
        assert not a.store.mender.lost.gone
        if letter != b"i":
            assert not a.store.names(KIND_SPEND, b"l"), "a grant is believed without its record"
            assert 1_000 - shown["remaining"] >= taken, "something was credited back"
        await a.quotas.spend(QUOTA, 1, b"request-3")


async def nothing(*args: object, **words: object) -> int:
    return 0


async def test_spends_in_memory_are_stored_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = make(tmp_path, ["a"])
    async with cluster(files, start_check_bytes=0) as nodes:
        a = nodes["a"]
        await a.quotas.set_limit(QUOTA, 1_000)
        await a.quotas.spend(QUOTA, 3, b"request-1")
        await a.quotas.reserve(QUOTA, 4, b"request-2", 600_000)
        a.groups.flush()
        await until(lambda: a.store.applied_seq == a.store.seq)
        index = a.store._index
        stored, _ = index.stored_after(KIND_SPEND, b"", 1 << 20, 1 << 30)
        before = {key: a.store.get(KIND_SPEND, key) for key, _ in stored if key[:1] in b"lv"}
        assert len(before) == 2
        forgetful(monkeypatch)
        for key, raw in stored:
            if key in before:
                index.write_stored({KIND_SPEND: [(key, raw[:-1] + bytes([raw[-1] ^ 1]))]})
                with pytest.raises(CorruptData):
                    a.store.get(KIND_SPEND, key)
        await until(lambda: a.store.mender.lost.mended >= 2 and not a.store.mender.lost.gone)
        assert {key: a.store.get(KIND_SPEND, key) for key in before} == before
