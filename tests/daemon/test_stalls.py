"""The loop goes on: what would hold it up for long is refused by its bound, or done in parts."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pycrdt
import pytest
from cluster_kit import cluster, linked, make, start, until

from roost_crdt.errors import TooLarge
from roost_crdt.frames import Frame, Records, decode_frame

STALL_MS = 250
SLOW = float(os.environ.get("ROOST_TEST_SLOW", "2"))
"""Other processes have the CPU too, and both nodes run in one loop."""
REFERENCE_MS = 30.0
"""What `reference_ms` takes on the machine that STALL_MS is said of."""


def reference_ms() -> float:
    """CPU of work that does not change, on this machine, as it is now."""
    began = time.thread_time()
    kept: dict[bytes, tuple[int, bytes]] = {}
    for number in range(60_000):
        name = b"%d" % (number * 7_919 % 10_007)
        kept[name] = (number, kept.get(name, (0, b""))[1][-8:] + name)
    return (time.thread_time() - began) * 1000


def stall_ms() -> float:
    """How long a turn of the loop may last on this machine."""
    return STALL_MS * SLOW * max(1.0, reference_ms() / REFERENCE_MS)


@asynccontextmanager
async def watched() -> AsyncIterator[list[float]]:
    """Milliseconds of CPU between two turns of the loop; the longest comes first at the end."""
    turns: list[float] = []

    async def beat() -> None:
        last = time.process_time()
        while True:
            await asyncio.sleep(0)
            now = time.process_time()
            turns.append((now - last) * 1000)
            last = now

    beating = asyncio.create_task(beat())
    await asyncio.sleep(0.01)
    try:
        yield turns
    finally:
        beating.cancel()
        turns.sort(reverse=True)


async def test_who_comes_back_catches_up_in_small_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = make(tmp_path, ["a", "b"])
    frames: list[int] = []
    async with cluster(files) as nodes:
        a = nodes["a"]
        await until(lambda: linked(*nodes.values()))
        await nodes.pop("b").stop()
        for number in range(12_000):
            a.keys.put(b"str:%d" % number, b"v")
            if not number % 400:
                a.groups.flush()
                await asyncio.sleep(0)
        a.groups.flush()
        b = nodes["b"] = await start(files["b"])
        replica = b.gossip.replica
        real = type(replica).receive

        def note(self: object, node: str, data: bytes, now_ms: int) -> None:
            frame: Frame = decode_frame(data)
            if isinstance(frame, Records):
                frames.append(len(frame.raws))
            real(self, node, data, now_ms)  # type: ignore[arg-type]

        monkeypatch.setattr(type(replica), "receive", note)
        async with watched() as turns:
            await until(lambda: b.store.vv.get(a.store.actor) == a.store.vv[a.store.actor])
    assert len(frames) > 4, "it came in one"
    assert max(frames) < 4_000
    print("CPU ms", turns[:3])
    assert turns[0] < stall_ms(), turns[:5]


async def test_a_transaction_of_too_many_rows_is_refused(tmp_path: Path) -> None:
    async with cluster(make(tmp_path, ["a"])) as nodes:
        keys = nodes["a"].keys
        names = [b"%d" % number for number in range(1_000)]

        def add(sets: int) -> None:
            with keys.batch():
                for number in range(sets):
                    keys.add(b"set:%d" % number, names)

        with pytest.raises(TooLarge, match="changes more than 4000 rows"):
            add(5)
        assert keys.scan(b"", b"", 10) == [], "half of it was written"
        async with watched() as turns:
            add(3)
            await asyncio.sleep(0.01)
        print("CPU ms", turns[:3])
        assert turns[0] < stall_ms(), turns[:5]
        assert len(keys.members(b"set:2")) == 1_000


def text_update(client: int, length: int) -> bytes:
    yjs: pycrdt.Doc[pycrdt.Text] = pycrdt.Doc(client_id=client)
    yjs.get("t", type=pycrdt.Text).insert(0, "x" * length)
    return yjs.get_update()


async def test_several_large_documents_are_several_writes(tmp_path: Path) -> None:
    async with cluster(make(tmp_path, ["a"])) as nodes:
        keys = nodes["a"].keys

        def put(documents: int, length: int) -> None:
            with keys.batch():
                for number in range(documents):
                    keys.doc_put(b"doc:%d" % number, text_update(number + 1, length), "somebody")

        with pytest.raises(TooLarge, match="of 2 documents; several together may have 65536"):
            put(2, 40_000)
        assert keys.doc(b"doc:0") is None
        put(1, 100_000)
        put(20, 100)
        assert keys.doc(b"doc:19") is not None


async def test_the_largest_update_of_a_document_is_taken_in_time(tmp_path: Path) -> None:
    """As many changes as the bound lets through, of the smallest kind."""
    async with cluster(make(tmp_path, ["a"])) as nodes:
        node = nodes["a"]
        yjs: pycrdt.Doc[pycrdt.Array[int]] = pycrdt.Doc(client_id=9)
        items = yjs.get("a", type=pycrdt.Array)
        with yjs.transaction():
            for number in range(node.limits.doc_structs_max):
                items.insert(0, number % 10)
        async with watched() as turns:
            assert node.keys.doc_put(b"doc:big", yjs.get_update(), "somebody")
            await asyncio.sleep(0.01)
        print("CPU ms", turns[:3])
        assert turns[0] < stall_ms(), turns[:5]
        items.insert(0, 1)
        for number in range(3):
            items.insert(0, number)
        with pytest.raises(TooLarge, match="at most 20000 changes"):
            node.keys.doc_put(b"doc:big", yjs.get_update(), "somebody")
