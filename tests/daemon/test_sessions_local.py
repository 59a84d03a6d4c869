"""Steps of a session at home that wait, while something else happens to the session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import pytest
import pytest_asyncio
from api_node import Served, served

from roost_crdt.errors import NoSession, SessionUnavailable
from roost_crdt.sessions.copy import SessionCopy
from roostd.node import Node
from roostd.sessions.delivery import Delivery
from roostd.sessions.takeover import Takeover


@pytest_asyncio.fixture
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    running: Served
    async with served(tmp_path_factory.mktemp("local")) as running:
        yield running.node


async def commit(node: Node, sid: str) -> None:
    await node.sessions.commit(sid, None, messages=[b'{"a":1}'])


async def call(node: Node, sid: str) -> None:
    await node.sessions.call(sid, None, "c1", status="begun", tool="search", args=b"{}")


def is_gone(node: Node, sid: str) -> bool:
    """Erased, in memory and in what is stored, and nothing of it is left."""
    shelf = node.shelf
    meta, stored = shelf.meta(sid), shelf.table.head(sid)
    assert meta is not None
    assert meta == stored
    view = shelf.table.view(sid)
    return bool(meta.erased_ms) and not meta.held and shelf.live(sid) is None and not any(view)


@pytest.mark.parametrize("step", [commit, call])
async def test_a_step_that_waits_for_its_turn_does_not_bring_an_erased_session_back(
    node: Node, step: Callable[[Node, str], Awaitable[None]]
) -> None:
    opened = await node.sessions.open(None, None)
    await commit(node, opened.sid)
    live = node.shelf.live(opened.sid)
    assert live is not None
    async with node.sessions.context.lock(live):
        waiting = asyncio.ensure_future(step(node, opened.sid))
        while not live.pins:
            await asyncio.sleep(0)
        await node.sessions.erase(opened.sid, None)
        assert not waiting.done()
    with pytest.raises(NoSession, match=f"{opened.sid} was erased"):
        await waiting
    assert is_gone(node, opened.sid)


async def test_a_turn_that_waits_for_the_standby_does_not_either(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = await node.sessions.open(None, None)
    await commit(node, opened.sid)

    async def erased_meanwhile(self: Delivery, live: SessionCopy, n: int, wait_ms: int) -> bool:
        await node.sessions.erase(live.meta.sid, None)
        return False

    monkeypatch.setattr(Delivery, "acknowledged", erased_meanwhile)
    with pytest.raises(NoSession, match=f"{opened.sid} was erased"):
        await commit(node, opened.sid)
    assert is_gone(node, opened.sid)


async def test_a_session_that_is_erased_while_it_is_taken_over_is_gone(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = await node.sessions.open(None, None)
    await commit(node, opened.sid)
    live = node.shelf.live(opened.sid)
    assert live is not None
    live.set_meta(
        msgspec.structs.replace(live.meta, epoch=(2, "away"), standby=node.config.node.id)
    )

    async def erased_meanwhile(self: Takeover, sid: str) -> bool:
        live.enter_epoch(node.config.node.id, None, 9)
        node.sessions.stream.erase_here(sid, 9)
        return True

    monkeypatch.setattr(Takeover, "take_over", erased_meanwhile)
    with pytest.raises(NoSession, match=f"{opened.sid} was erased"):
        await commit(node, opened.sid)
    assert is_gone(node, opened.sid)


async def test_a_session_that_has_ended_was_not_lost(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also once the sweep has dropped its head, so that nothing but the token tells of it."""
    token = (await node.sessions.open(None, "s")).token
    node.shelf.forget("s")
    for ttl_ms in (0, 3_600_000):
        monkeypatch.setattr(node.shelf, "ttl_ms", lambda ttl_ms=ttl_ms: ttl_ms)
        with pytest.raises(SessionUnavailable, match="its home holds nothing of it"):
            await node.sessions.open(token, None)
    monkeypatch.setattr(node.shelf, "ttl_ms", lambda: 1)
    await asyncio.sleep(0.002)
    for _ in range(2):
        with pytest.raises(NoSession, match="s was unused for longer than its ttl; open a new one"):
            await node.sessions.open(token, None)
    monkeypatch.undo()
    assert (await node.sessions.open(None, "s")).created
