"""Drains that meet: what one node gives away another that drains does not take in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest_asyncio
from api_node import Served, served
from ports import free_port

from roostd.node import Node

NAMES = ("eu-1", "us-1", "ap-1")


@pytest_asyncio.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[list[Node]]:
    ports = {name: free_port() for name in NAMES}

    def others(of: str) -> str:
        return "".join(
            f'[[neighbour]]\nid = "{name}"\nurl = "ws://127.0.0.1:{ports[name]}"\n'
            for name in NAMES
            if name != of
        )

    async with AsyncExitStack() as stack:
        running: list[Served] = [
            await stack.enter_async_context(
                served(tmp_path / name, extra=others(name), name=name, gossip=ports[name])
            )
            for name in NAMES
        ]
        async with asyncio.timeout(60):
            while any(
                len(each.node.sessions.context.neighbours.candidates()) < 2 for each in running
            ):
                await asyncio.sleep(0.02)
        yield [each.node for each in running]


async def moved(source: Node, target: Node) -> str:
    """A session at home at `target` whose standby is `source`, and holds all of it."""
    opened = await source.sessions.open(None, None)
    await source.sessions.commit(opened.sid, None, messages=[b'{"a":1}'])
    await source.sessions.move(opened.sid, target.config.node.id)
    live = target.shelf.live(opened.sid)
    assert live is not None
    assert (live.meta.home, live.meta.standby) == (target.config.node.id, source.config.node.id)
    async with asyncio.timeout(60):
        while live.meta.acked_n < live.meta.n:
            await asyncio.sleep(0.01)
    return opened.sid


def home(node: Node, sid: str) -> str:
    meta = node.shelf.meta(sid)
    assert meta is not None
    return meta.home


async def test_two_nodes_that_drain_at_once_give_their_sessions_to_a_third(
    nodes: list[Node],
) -> None:
    eu, us, ap = nodes
    sids = [await moved(us, eu), await moved(eu, us)]
    assert await asyncio.gather(eu.drain(), us.drain()) == [0, 0]
    assert [home(ap, sid) for sid in sids] == ["ap-1", "ap-1"]
    # And what nobody takes stays, and is counted.
    assert await ap.drain() == 2
    assert [home(ap, sid) for sid in sids] == ["ap-1", "ap-1"]
    read = await ap.sessions.turns(sids[0], None, None)
    assert (read.turn, read.stale_turns) == (1, 0)
