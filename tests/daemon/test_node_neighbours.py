"""Session frames to nodes without a link: by way of others, bounded, and to nobody unreachable."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from roost_crdt.errors import BadRequest, Unavailable
from roostd.gossip import Gossip
from roostd.node.neighbours import FRAME, RELAYS_MAX, Links
from roostd.rpc import Rpc
from roostd.sessions.types import NEVER_MS


class FakeGossip:
    """us is linked, ap is reached through it."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes]] = []
        self.room = True

    def send_session(self, peer: str, payload: bytes) -> bool:
        if peer == "us" and self.room:
            self.sent.append((peer, payload))
            return True
        return False

    def linked(self, peer: str) -> bool:
        return peer == "us"

    def routes(self, target: str) -> list[str]:
        return ["us"] if target in ("us", "ap") else []

    def silent_ms(self, peer: str) -> int | None:
        return 7 if peer == "us" else None


class FakeRpc:
    def __init__(self) -> None:
        self.calls: list[tuple[str, str, dict[str, Any]]] = []
        self.handlers: dict[str, Any] = {}
        self.go_on = asyncio.Event()
        self.fails = False

    async def call(self, node: str, method: str, args: dict[str, Any], *, deadline_ms: int) -> Any:
        self.calls.append((node, method, args))
        await self.go_on.wait()
        if self.fails:
            raise Unavailable("gone")

    def register(self, method: str, handler: Any) -> None:
        self.handlers[method] = handler


def links() -> tuple[Links, FakeGossip, FakeRpc]:
    gossip, rpc = FakeGossip(), FakeRpc()
    return Links(cast("Gossip", gossip), cast("Rpc", rpc)), gossip, rpc


async def test_a_neighbour_gets_frames_over_its_link_alone() -> None:
    near, gossip, rpc = links()
    assert near.send("us", b"1")
    gossip.room = False
    assert not near.send("us", b"2"), "the link's window is not gone around"
    await asyncio.sleep(0)
    assert (gossip.sent, rpc.calls) == ([("us", b"1")], [])
    assert (near.silent_ms("us"), near.silent_ms("ap")) == (7, NEVER_MS)


@pytest.mark.parametrize("fails", [False, True])
async def test_a_node_behind_a_neighbour_is_reached_through_it(fails: bool) -> None:
    near, _, rpc = links()
    rpc.fails = fails
    assert near.send("ap", b"1")
    assert not near.send("nowhere", b"2")
    rpc.go_on.set()
    await asyncio.sleep(0.01)
    assert rpc.calls == [("ap", FRAME, {"frame": b"1"})]
    await near.stop()


async def test_frames_under_way_are_bounded() -> None:
    near, _, rpc = links()
    assert [near.send("ap", b"") for _ in range(RELAYS_MAX + 5)] == [True] * RELAYS_MAX + [
        False
    ] * 5
    rpc.go_on.set()
    await asyncio.sleep(0.01)
    assert near.send("ap", b"room again")
    rpc.go_on.clear()
    assert near.send("ap", b"held up")
    await near.stop()


async def test_relayed_frames_are_taken_as_their_origins() -> None:
    near, _, rpc = links()
    taken: list[tuple[str, bytes]] = []
    near.receive(lambda origin, payload: taken.append((origin, payload)))
    await rpc.handlers[FRAME]("eu", {"frame": b"1"})
    with pytest.raises(BadRequest, match="eu relayed no session frame"):
        await rpc.handlers[FRAME]("eu", {"frame": "text"})
    assert taken == [("eu", b"1")]
