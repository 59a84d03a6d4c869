"""Session frames to nodes without a link: by way of others, bounded, and to nobody unreachable."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from virtual_time import virtual

from roost_crdt.errors import BadRequest, Unavailable
from roostd.gossip import Gossip
from roostd.node.neighbours import FRAME, RELAY_BYTES, RELAYS_MAX, Links
from roostd.rpc import Rpc
from roostd.sessions.types import NEVER_MS


class FakeGossip:
    """us is linked, ap is reached through it."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes]] = []
        self.room = True
        self.far = {"ap"}

    def send_session(self, peer: str, payload: bytes) -> bool:
        if peer == "us" and self.room:
            self.sent.append((peer, payload))
            return True
        return False

    def linked(self, peer: str) -> bool:
        return peer == "us"

    def routes(self, target: str) -> list[str]:
        return ["us"] if target == "us" or target in self.far else []

    def beyond(self) -> set[str]:
        return self.far

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


@virtual
async def test_a_neighbour_gets_frames_over_its_link_alone() -> None:
    near, gossip, rpc = links()
    assert near.send("us", b"1")
    gossip.room = False
    assert not near.send("us", b"2"), "the link's window is not gone around"
    await asyncio.sleep(0)
    assert (gossip.sent, rpc.calls) == ([("us", b"1")], [])
    assert (near.silent_ms("us"), near.silent_ms("ap")) == (7, NEVER_MS)


@pytest.mark.parametrize("fails", [False, True])
def test_a_node_behind_a_neighbour_is_reached_through_it(fails: bool) -> None:
    @virtual
    async def run() -> None:
        near, _, rpc = links()
        rpc.fails = fails
        assert near.send("ap", b"1")
        assert not near.send("nowhere", b"2")
        rpc.go_on.set()
        await asyncio.sleep(0.01)
        assert rpc.calls == [("ap", FRAME, {"frame": b"1", "more": []})]
        await near.stop()

    run()


@virtual
async def test_frames_that_wait_for_a_call_go_together_and_in_order() -> None:
    near, _, rpc = links()
    assert near.send("ap", b"1")
    await asyncio.sleep(0)
    assert near.send("ap", b"2")
    assert near.send("ap", b"3")
    rpc.go_on.set()
    await asyncio.sleep(0.01)
    frames = [[args["frame"], *args["more"]] for _, _, args in rpc.calls]
    assert frames == [[b"1"], [b"2", b"3"]]
    assert near.beyond() == {"ap"}


@virtual
async def test_frames_under_way_are_bounded() -> None:
    near, gossip, rpc = links()
    assert near.send("ap", b"x" * (RELAY_BYTES + 1)), "one goes, however large"
    await asyncio.sleep(0)
    assert near.send("ap", b"x" * (RELAY_BYTES - 1))
    assert near.send("ap", b"x")
    assert not near.send("ap", b"x")
    others = [f"n{at}" for at in range(RELAYS_MAX)]
    gossip.far.update(others)
    assert [near.send(node, b"") for node in others].count(False) == 1
    rpc.go_on.set()
    await asyncio.sleep(0.01)
    assert near.send("ap", b"room again")
    rpc.go_on.clear()
    assert near.send("ap", b"held up")
    await near.stop()


@virtual
async def test_relayed_frames_are_taken_as_their_origins() -> None:
    near, _, rpc = links()
    taken: list[tuple[str, bytes]] = []
    near.receive(lambda origin, payload: taken.append((origin, payload)))
    await rpc.handlers[FRAME]("eu", {"frame": b"1"})
    with pytest.raises(BadRequest, match="eu relayed no session frame"):
        await rpc.handlers[FRAME]("eu", {"frame": "text"})
    with pytest.raises(BadRequest, match="eu relayed no session frame"):
        await rpc.handlers[FRAME]("eu", {"frame": b"1", "more": [b"2", 3]})
    assert taken == [("eu", b"1")]
    await rpc.handlers[FRAME]("eu", {"frame": b"2", "more": [b"3"]})
    assert taken[1:] == [("eu", b"2"), ("eu", b"3")]
