"""Sessions of nodes that are no neighbours: found, erased, made one again; in a line of daemons."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from cluster_kit import make, start, until

from roost_crdt.errors import NoSession
from roost_crdt.home import ACTOR_LEAP, Deposed, Frame, Meta, decode_frame
from roostd.node import Node
from roostd.sessions import delivery
from roostd.sessions.erasure import Erasure
from roostd.sessions.forward import LOCATE

NAMES = ("a", "b", "c", "d")
SID = "named"
MESSAGE = b'{"role":"user","content":"hello"}'

Line = dict[str, Node]


@pytest_asyncio.fixture
async def line(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Line]:
    files = make(tmp_path_factory.mktemp("line"), NAMES, line=True)
    nodes = {name: await start(file) for name, file in files.items()}
    try:
        await until(lambda: all(len(reached(node)) == len(NAMES) - 1 for node in nodes.values()))
        yield nodes
    finally:
        for node in nodes.values():
            await node.stop()


def reached(node: Node) -> set[str]:
    neighbours = node.sessions.context.neighbours
    return {c.node for c in neighbours.candidates()} | set(neighbours.beyond())


def head(node: Node) -> Meta | None:
    return node.shelf.meta(SID)


async def commit(node: Node, text: bytes = MESSAGE) -> str:
    return (await node.sessions.commit(SID, None, messages=[text])).home


async def test_a_session_is_found_beyond_the_neighbours(line: Line) -> None:
    await line["a"].sessions.open(None, SID)
    await commit(line["a"])
    found = await line["d"].sessions.open(None, SID)
    assert (found.home, found.turn, found.created) == ("a", 1, False)


async def test_two_homes_at_the_ends_become_one_and_no_turn_is_lost(line: Line) -> None:
    for name in ("a", "d"):
        sessions = line[name].sessions
        sessions.stream.announce(sessions.stream.begin(SID))
        await sessions.commit(SID, None, messages=[b'"of %s"' % name.encode()])
    await until(lambda: [head(line["a"]).home, head(line["a"]).unmerged] == ["d", False])  # type: ignore[union-attr]
    view = await line["d"].sessions.show(SID, None)
    assert (view.home, view.turn) == ("d", 1)
    assert [branch.messages for branch in view.reconciled] == [[b'"of a"']]


async def test_an_erasure_that_is_heard_of_is_passed_on(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    await line["d"].sessions.open(None, SID)
    await commit(line["d"])
    await line["a"].sessions.turns(SID, None, None)
    copies = line["a"].sessions._copies
    await until(lambda: copies.get(SID) is not None)

    async def nobody(*_: Any) -> list[dict[str, Any]]:
        return []

    monkeypatch.setattr(Erasure, "_ask", nobody)
    await line["d"].sessions.erase(SID, None)
    await until(lambda: all((meta := head(node)) and meta.erased_ms for node in line.values()))
    assert copies.get(SID) is None
    for node in line.values():
        with pytest.raises(NoSession, match="erased"):
            await node.sessions.turns(SID, None, None)


async def test_a_session_erased_while_its_move_waits_is_not_moved(line: Line) -> None:
    await line["a"].sessions.open(None, SID)
    await commit(line["a"])
    live = line["a"].shelf.live(SID)
    assert live is not None
    async with line["a"].sessions.context.lock(live):
        moving = asyncio.ensure_future(line["a"].sessions.move(SID, "b"))
        await until(lambda: live.handing_over)
        await line["a"].sessions.erase(SID, None)
    with pytest.raises(NoSession, match=f"{SID} was erased; there is nothing to move"):
        await moving
    await asyncio.sleep(0.05)
    for node in line.values():
        assert (meta := head(node)) is not None
        assert meta.erased_ms


async def test_what_a_sweep_could_not_say_to_a_newcomer_is_said_again(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "SWEEP_AGAIN_S", 0.05)
    node = line["b"]
    await node.sessions.open(None, SID)
    neighbours, sent = node.sessions.context.neighbours, node.sessions.context.neighbours.send
    dropped: list[Frame] = []
    told: list[Frame] = []

    def no_room_at_first(to: str, payload: bytes) -> bool:
        frame = decode_frame(payload)
        if to != "c" or not isinstance(frame, Deposed):
            return sent(to, payload)
        (dropped if len(dropped) < 3 else told).append(frame)
        return len(dropped) == 3 and bool(told)

    monkeypatch.setattr(neighbours, "send", no_room_at_first)
    node.sessions.delivery.sweep("c")
    await until(lambda: told)
    assert len(dropped) == 3, "three sweeps were in vain"


@pytest.mark.parametrize("shows_steps", [True, False], ids=["now", "the release before"])
async def test_home_finds_at_its_standby_that_it_has_lost_a_tail(
    line: Line, monkeypatch: pytest.MonkeyPatch, shows_steps: bool
) -> None:
    node = line["b"]
    await node.sessions.open(None, SID)
    await commit(node)
    live = node.shelf.live(SID)
    assert live is not None
    await until(lambda: live.meta.acked_n == live.meta.n)
    before = live.meta
    call = node.sessions.context.neighbours.call

    async def ahead(to: str, method: str, args: dict[str, Any], *, deadline_ms: int) -> Any:
        if method != LOCATE:
            return await call(to, method, args, deadline_ms=deadline_ms)
        shown = [list(before.epoch), before.standby, 0, before.turn + 1]
        return [*shown, before.n + 1, b"another chain 16"] if shows_steps else shown

    monkeypatch.setattr(node.sessions.context.neighbours, "call", ahead)
    node.shelf.generation += 1
    await commit(node)
    leap = ACTOR_LEAP if shows_steps else 0
    assert live.meta.epoch == (before.epoch[0] + leap, "b")
    assert live.confirmed == node.shelf.generation
