"""Frames that find no room: epochs are told again to who has missed one, all else waits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from session_network import Network, Node, held_by_both

from roost_crdt.home import Deposed, Merge, decode_frame, encode_frame
from roostd.sessions import delivery
from roostd.sessions.delivery import Delivery


class Links:
    """Neighbours with room for so many bytes at a time."""

    def __init__(self, node: Node, room: int) -> None:
        self.node = node
        self.room = self.left = room
        self.sent: list[tuple[str, bytes]] = []
        self.dropped: list[tuple[str, bytes]] = []

    def candidates(self) -> object:
        return self.node.candidates()

    def beyond(self) -> set[str]:
        return set()

    def send(self, node: str, frame: bytes) -> bool:
        if len(frame) > self.left:
            self.dropped.append((node, frame))
            return False
        self.left -= len(frame)
        self.sent.append((node, frame))
        return True

    def drain(self) -> list[type]:
        """All that was sent has arrived."""
        sent, self.sent, self.left = self.sent, [], self.room
        return [type(decode_frame(frame)) for _, frame in sent]


def delivering(node: Node, room: int) -> tuple[Delivery, Links]:
    links = Links(node, room)

    async def durable() -> None:
        node.rows.flush()

    return Delivery(node.stream, links, durable), links  # type: ignore[arg-type]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "SWEEP_PAUSE_S", 0.0)
    monkeypatch.setattr(delivery, "SWEEP_AGAIN_S", 0.0)


async def until(done: Callable[[], bool], each: Callable[[], Awaitable[None]]) -> None:
    for _ in range(200):
        if done():
            return
        await each()
    raise AssertionError("it never ends")


def with_large_turns(sids: int) -> tuple[Network, Node]:
    """Sessions of eu, one of which has to be merged into us and fills most of a window."""
    network = held_by_both("a")
    eu = network["eu"]
    for number in range(sids):
        eu.stream.begin(f"b{number}")
    eu.stream.begin("large")
    eu.commit("large", "x" * 3_000)
    eu.shelf.learn("large", (2, "us"), "eu")
    network.deliver_all()
    return network, eu


async def test_a_large_frame_without_room_does_not_sweep_for_ever(at_once: None) -> None:
    network, eu = with_large_turns(20)
    room = len(encode_frame(eu.live("large").whole())) + 100
    sweeping, links = delivering(eu, room)
    sweeping.sweep("us")

    async def pause() -> None:
        await asyncio.sleep(0)
        links.drain()

    def ended() -> bool:
        task = sweeping._sweeping
        return task is not None and task.done()

    await until(ended, pause)
    kinds = [type(decode_frame(frame)) for _, frame in links.dropped]
    assert Merge in kinds
    links.drain()
    network.now_ms += 10_000
    eu.stream.tick()
    eu.rows.flush()
    sweeping.after_flush()
    assert Merge in links.drain(), "the next tick has room for it"


async def test_who_misses_an_epoch_is_told_all_of_them_again(at_once: None) -> None:
    _, eu = with_large_turns(20)
    sweeping, links = delivering(eu, 600)
    heard: set[str] = set()
    sweeping.sweep("us")

    async def pause() -> None:
        await asyncio.sleep(0)
        for _, frame in links.sent:
            epoch = decode_frame(frame)
            if isinstance(epoch, Deposed):
                heard.add(epoch.sid)
        if len(links.sent) > 5:
            links.room = 5_000
        links.drain()

    await until(lambda: len(heard) == 22, pause)
    assert any(isinstance(decode_frame(frame), Deposed) for _, frame in links.dropped)
    await sweeping.stop()
