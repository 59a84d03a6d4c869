"""Calls between nodes over real sockets, under both event loops."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from loopback import LOOPS, LoopbackNode, run, until
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from roost_crdt import frames
from roost_crdt.errors import (
    BadRequest,
    CorruptData,
    RoostError,
    TooLarge,
    TurnConflict,
    Unavailable,
    UnknownOutcome,
)
from roost_crdt.limits import Limits

pytestmark = pytest.mark.parametrize("loop", sorted(LOOPS))


async def line(*names: str, limits: Limits | None = None) -> list[LoopbackNode]:
    """Nodes of which each dials the one before it."""
    nodes: list[LoopbackNode] = []
    for actor, name in enumerate(names, start=1):
        before = [(nodes[-1].name, nodes[-1].url)] if nodes else []
        node = LoopbackNode(name, actor, neighbours=before, limits=limits or Limits())
        node.rpc.register("echo", echo)
        await node.start()
        nodes.append(node)
    await until(lambda: all(nodes[0].gossip.routes(name) for name in names[1:]))
    await until(lambda: all(nodes[-1].gossip.routes(name) for name in names[:-1]))
    return nodes


async def echo(origin: str, args: dict[str, Any]) -> Any:
    return {"origin": origin, **args}


def test_calls_go_both_ways_over_one_connection(loop: str) -> None:
    async def main() -> None:
        a, b = await line("a", "b")
        args = {"raw": b"\x00\xff", "n": 2**63, "list": [1, None, "x"]}
        for caller, target in ((a, "b"), (b, "a"), (a, "a")):
            answer = await caller.rpc.call(target, "echo", args, deadline_ms=60_000)
            assert answer == {"origin": caller.name, **args}

    run(loop, main)


def test_errors_come_back_as_what_they_were(loop: str) -> None:
    async def main() -> None:
        a, b = await line("a", "b")

        async def conflict(origin: str, args: dict[str, Any]) -> None:
            raise TurnConflict("behind", retry_after_ms=7, turn=12, code="x")

        async def corrupt(origin: str, args: dict[str, Any]) -> None:
            raise CorruptData("not a frame")

        async def bug(origin: str, args: dict[str, Any]) -> None:
            raise KeyError("oops")

        async def odd(origin: str, args: dict[str, Any]) -> object:
            return object()

        for handler in (conflict, corrupt, bug, odd):
            b.rpc.register(handler.__name__, handler)
        with pytest.raises(TurnConflict, match="behind") as caught:
            await a.rpc.call("b", "conflict", {}, deadline_ms=60_000)
        assert caught.value.retry_after_ms == 7
        assert caught.value.details["turn"] == 12
        with pytest.raises(BadRequest, match="not a frame"):
            await a.rpc.call("b", "corrupt", {}, deadline_ms=60_000)
        with pytest.raises(BadRequest, match="no method"):
            await a.rpc.call("b", "unheard of", {}, deadline_ms=60_000)
        for method in ("bug", "odd"):
            with pytest.raises(RoostError, match=f"{method} failed at b"):
                await a.rpc.call("b", method, {}, deadline_ms=60_000)

    run(loop, main)


def test_no_answer_is_an_unknown_outcome_and_no_connection_is_unavailable(loop: str) -> None:
    async def main() -> None:
        a, b = await line("a", "b")
        begun, cancelled = list[str](), list[str]()

        async def hang(origin: str, args: dict[str, Any]) -> None:
            begun.append(origin)
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.append(origin)
                raise

        for node in (a, b):
            node.rpc.register("hang", hang)
        await until(lambda: a.rpc._connected("b") is not None)
        for target in ("b", "a"):
            with pytest.raises(UnknownOutcome, match="no answer in"):
                await a.rpc.call(target, "hang", {}, deadline_ms=100)
        await until(lambda: cancelled == ["a", "a"])
        with pytest.raises(Unavailable, match="no neighbour reaches it"):
            await a.rpc.call("nowhere", "echo", {}, deadline_ms=1_000)
        with pytest.raises(Unavailable, match="no time"):
            await a.rpc.call("b", "echo", {}, deadline_ms=0)
        call = asyncio.create_task(a.rpc.call("b", "hang", {}, deadline_ms=60_000))
        await until(lambda: len(begun) == 3)
        await b.stop()
        with pytest.raises(UnknownOutcome, match="broke"):
            await call
        with pytest.raises(Unavailable):
            await a.rpc.call("b", "echo", {}, deadline_ms=1_000)

    run(loop, main)


def test_a_neighbour_given_up_ends_the_calls_that_wait_for_it(loop: str) -> None:
    async def main() -> None:
        a, b = await line("a", "b")
        started = asyncio.Event()

        async def hang(origin: str, args: dict[str, Any]) -> None:
            started.set()
            await asyncio.sleep(60)

        b.rpc.register("hang", hang)
        call = asyncio.create_task(a.rpc.call("b", "hang", {}, deadline_ms=60_000))
        await asyncio.wait_for(started.wait(), 30)
        a.rpc.peer_down("b")
        with pytest.raises(UnknownOutcome):
            await asyncio.wait_for(call, 30)
        await until(lambda: a.rpc._connected("b") is not None)
        assert await a.rpc.call("b", "echo", {}, deadline_ms=60_000)

    run(loop, main)


def test_calls_are_relayed_along_a_line(loop: str) -> None:
    async def main() -> None:
        a, _, c, d = await line("a", "b", "c", "d")
        for caller, target in ((a, "c"), (a, "d"), (d, "a")):
            answer = await caller.rpc.call(target, "echo", {"x": 1}, deadline_ms=60_000)
            assert answer == {"origin": caller.name, "x": 1}

        async def conflict(origin: str, args: dict[str, Any]) -> None:
            raise TurnConflict(f"for {origin}", turn=3)

        d.rpc.register("conflict", conflict)
        with pytest.raises(TurnConflict, match="for a"):
            await a.rpc.call("d", "conflict", {}, deadline_ms=60_000)
        await c.stop()
        await until(lambda: not a.gossip.routes("d"))
        with pytest.raises(Unavailable):
            await a.rpc.call("d", "echo", {}, deadline_ms=1_000)
        assert await a.rpc.call("b", "echo", {}, deadline_ms=60_000)

    run(loop, main)


def test_sizes_are_bounded_both_ways(loop: str) -> None:
    async def main() -> None:
        a, b = await line("a", "b", limits=Limits(body_bytes_max=100_000))

        async def big(origin: str, args: dict[str, Any]) -> bytes:
            return bytes(200_000)

        b.rpc.register("big", big)
        with pytest.raises(TooLarge, match="at most 100000"):
            await a.rpc.call("b", "echo", {"x": bytes(200_000)}, deadline_ms=60_000)
        with pytest.raises(TooLarge, match="at most 100000"):
            await a.rpc.call("b", "big", {}, deadline_ms=60_000)
        assert await a.rpc.call("b", "echo", {"x": bytes(90_000)}, deadline_ms=60_000)

    run(loop, main)


def test_many_calls_at_once_each_get_their_own_answer(loop: str) -> None:
    async def main() -> None:
        a, b = await line("a", "b")
        calls = [a.rpc.call("b", "echo", {"n": n}, deadline_ms=60_000) for n in range(500)]
        answers = await asyncio.gather(*calls)
        assert [answer["n"] for answer in answers] == list(range(500))
        assert len(b.rpc._channels["a"]) == 1

    run(loop, main)


@pytest.mark.parametrize(
    "message",
    [
        b"\xc1",
        b"\x91\x01",
        msgspec.msgpack.encode([1, 2, 3]),
        msgspec.msgpack.encode(["1", "echo", {}, 1, "a", 4, "x"]),
        msgspec.msgpack.encode([1, 1, "CODE"]),
        b"\x91" * 50_000,
    ],
)
def test_a_caller_that_breaks_the_protocol_is_cut_off(loop: str, message: bytes) -> None:
    async def main() -> None:
        a = LoopbackNode("a", 1)
        await a.start()
        async with connect(a.url + "/rpc", compression=None) as stranger:
            hello = frames.Greeting(versions=(1,), cluster="test", node="x")
            await stranger.send(frames.encode_greeting(hello))
            assert frames.decode_greeting(await stranger.recv(decode=False)).node == "a"
            await stranger.send(message)
            assert isinstance(frames._decode(await stranger.recv(decode=False)), frames.Error)
            with pytest.raises(ConnectionClosed):
                await stranger.recv()
        await until(lambda: not a.rpc._channels)

    run(loop, main)


@pytest.mark.parametrize("change", [{"cluster": "other"}, {"node": "a"}, {"versions": (9,)}])
def test_strangers_are_refused(loop: str, change: dict[str, Any]) -> None:
    async def main() -> None:
        a = LoopbackNode("a", 1)
        await a.start()
        hello = msgspec.structs.replace(
            frames.Greeting(versions=(1,), cluster="test", node="x"), **change
        )
        async with connect(a.url + "/rpc", compression=None) as stranger:
            await stranger.send(frames.encode_greeting(hello))
            answer = frames._decode(await stranger.recv(decode=False))
            assert isinstance(answer, frames.Error)
        assert not a.rpc._channels

    run(loop, main)
