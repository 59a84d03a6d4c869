"""Gossip over real sockets on loopback, under both event loops."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from loopback import LOOPS, LoopbackNode, make_ca, make_tls, run, until, wall_ms
from ports import free_port
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosedError, InvalidStatus

from roost_crdt import frames
from roost_crdt.errors import PeerError
from roost_crdt.limits import Limits
from roostd import wire

pytestmark = pytest.mark.parametrize("loop", sorted(LOOPS))


@asynccontextmanager
async def running(*nodes: LoopbackNode) -> AsyncIterator[None]:
    for node in nodes:
        await node.start()
    try:
        yield
    finally:
        for node in nodes:
            await node.stop()


async def last_frame(stranger: ClientConnection) -> object:
    """What came before the connection was closed for a broken protocol."""
    seen: list[bytes] = []

    async def read() -> None:
        while True:
            seen.append(await stranger.recv(decode=False))

    with pytest.raises(ConnectionClosedError, match="1008"):
        await read()
    return frames._decode(seen[-1])


def pair(limits: Limits | None = None) -> tuple[LoopbackNode, LoopbackNode]:
    """Two nodes that both dial."""
    limits = limits or Limits()
    ports = free_port(), free_port()
    urls = [f"ws://127.0.0.1:{port}" for port in ports]
    return (
        LoopbackNode("a", 1, neighbours=[("b", urls[1])], port=ports[0], limits=limits),
        LoopbackNode("b", 2, neighbours=[("a", urls[0])], port=ports[1], limits=limits),
    )


def dialled(limits: Limits | None = None) -> tuple[LoopbackNode, LoopbackNode]:
    """Two nodes of which the second alone dials: their link is not replaced by another."""
    a, b = pair(limits)
    a.gossip._neighbours.clear()
    return a, b


def linked(*nodes: LoopbackNode) -> bool:
    return all(status.state == "up" for node in nodes for status in node.gossip.links()) and all(
        node.replica.peers for node in nodes
    )


def test_records_travel_both_ways_over_one_link(loop: str) -> None:
    async def main() -> None:
        a, b = pair(Limits(heartbeat_ms=20_000, ihave_ms=20_000))
        async with running(a, b):
            await until(lambda: linked(a, b))
            a.put(b"k", b"from a")
            b.put(b"l", b"from b")
            took_s = await until(lambda: a.store.rows == b.store.rows and len(a.store.rows) == 2)
            assert took_s < 10, "it was asked for, not sent"
            assert a.store.vv == b.store.vv
            assert a.store.flushes > 0
            status = a.status("b")
            assert (status.region, status.state, status.mode) == ("region-b", "up", "Stream")
            assert (status.received, status.duplicates, status.lag_ms) == (1, 0, 0)

    run(loop, main)


def diallers(a: LoopbackNode, b: LoopbackNode) -> set[str]:
    return {node.gossip._links[peer].dialler for node, peer in ((a, "b"), (b, "a"))}


def test_of_duelling_dials_the_lower_ids_stays(loop: str) -> None:
    async def main() -> None:
        for _ in range(5):
            a, b = pair(Limits(heartbeat_ms=20_000))
            async with running(a, b):
                await until(lambda a=a, b=b: linked(a, b))
                await asyncio.sleep(0.3)
                await until(lambda a=a, b=b: linked(a, b) and len(diallers(a, b)) == 1)
                a.put(b"k", b"v")
                await until(lambda a=a, b=b: a.store.rows == b.store.rows)
                # The link that gives way to the other is no lost neighbour: calls go on.
                assert not [event for event in a.events + b.events if event[0] == "down"]

    run(loop, main)


def test_a_line_of_three_passes_records_on(loop: str) -> None:
    async def main() -> None:
        a = LoopbackNode("a", 1)
        await a.start()
        b = LoopbackNode("b", 2, neighbours=[("a", a.url)])
        await b.start()
        c = LoopbackNode("c", 3, neighbours=[("b", b.url)])
        async with running(c):
            await until(lambda: linked(a, b, c))
            for turn in range(50):
                a.put(b"k%d" % turn, b"a")
                c.put(b"k%d" % turn, b"c")
            await until(lambda: a.store.rows == c.store.rows and a.store.vv == c.store.vv)
            assert [c.status("b").received, c.status("b").duplicates] == [50, 0]
            await until(lambda: a.gossip.routes("c") == ["b"])

    run(loop, main)


def test_what_was_written_while_apart_arrives_after_the_reconnect(loop: str) -> None:
    async def main() -> None:
        a, b = pair()
        await a.start()
        for turn in range(2_000):
            a.put(b"k%d" % turn, b"x" * 500)
        async with running(b):
            await until(lambda: b.store.vv == a.store.vv)
            b.gossip._links["a"].wire.transport.abort()
            a.put(b"later", b"1")
            b.put(b"later too", b"1")
            await until(lambda: a.store.rows == b.store.rows and a.store.vv == b.store.vv)
        await until(lambda: ("down", "b") in a.events)
        assert a.status("b").state == "down"
        assert a.status("b").last_error

    run(loop, main)


def test_a_snapshot_brings_what_the_log_no_longer_holds(loop: str) -> None:
    async def main() -> None:
        a, b = pair(Limits(frame_bytes=2_000))
        await a.start()
        for turn in range(200):
            a.put(b"k%d" % turn, b"x" * 100)
        a.store.forget_log()
        b.put(b"own", b"1")
        async with running(b):
            await until(lambda: a.store.rows == b.store.rows and a.store.vv == b.store.vv)
            assert len(b.store.rows) == 201
            a.put(b"after", b"1")
            await until(lambda: a.store.rows == b.store.rows)

    run(loop, main)


def test_session_bytes_and_their_refusal_without_a_link(loop: str) -> None:
    async def main() -> None:
        a, b = pair()
        async with running(a, b):
            await until(lambda: linked(a, b))
            assert a.gossip.send_session("b", b"payload")
            assert not a.gossip.send_session("nobody", b"payload")
            await until(lambda: ("session", "a", b"payload") in b.events)
            await until(lambda: a.status("b").rtt_ms is not None)

    run(loop, main)


def test_another_cluster_is_refused_at_both_ends(loop: str) -> None:
    async def main() -> None:
        a = LoopbackNode("a", 1, cluster="other")
        await a.start()
        b = LoopbackNode("b", 2, neighbours=[("a", a.url)])
        async with running(b):
            await until(lambda: "cluster" in b.status("a").last_error)
            assert "cluster" in a.status("b").last_error
            assert not a.replica.peers
            assert not b.replica.peers

    run(loop, main)


def test_a_node_with_my_own_id_is_refused(loop: str) -> None:
    async def main() -> None:
        a = LoopbackNode("a", 1)
        await a.start()
        async with connect(a.url + "/gossip", compression=None) as stranger:
            greeting = frames.Greeting(versions=(1,), cluster="test", node="a", actor=9)
            await stranger.send(frames.encode_greeting(greeting))
            answer = frames._decode(await stranger.recv(decode=False))
            assert isinstance(answer, frames.Error)
            assert "own id" in answer.text

    run(loop, main)


@pytest.mark.parametrize(
    "garbage",
    [b"", b"\xc1", b"\x92\x63\x00", b"\x92\x01\x90", b"\x92\x01\x91\xc4\x01x", b"[1, 2]"],
)
def test_a_neighbour_that_breaks_the_protocol_is_cut_off(loop: str, garbage: bytes) -> None:
    async def main() -> None:
        a = LoopbackNode("a", 1)
        await a.start()
        a.put(b"k", b"v")
        before = dict(a.store.vv), dict(a.store.rows)
        async with connect(a.url + "/gossip", compression=None) as stranger:
            greeting = frames.Greeting(versions=(1,), cluster="test", node="x", actor=9)
            await stranger.send(frames.encode_greeting(greeting))
            frames.decode_greeting(await stranger.recv(decode=False))
            await until(lambda: "x" in a.replica.peers)
            await stranger.send(garbage)
            last = await last_frame(stranger)
            assert isinstance(last, frames.Error)
        await until(lambda: not a.replica.peers)
        assert a.status("x").last_error
        assert (a.store.vv, a.store.rows) == before

    run(loop, main)


@pytest.mark.parametrize("fault", [{"cluster": "other"}, {"versions": (99,)}, {"node": "a"}])
def test_a_stranger_does_not_end_the_link_of_the_neighbour_it_says_to_be(
    loop: str, fault: dict[str, object]
) -> None:
    async def main() -> None:
        a, b = dialled()
        async with running(a, b):
            await until(lambda: linked(a, b))
            link = a.gossip._links["b"]
            asked = {"versions": (1,), "cluster": "test", "node": "b", "actor": 9} | fault
            async with connect(a.url + "/gossip", compression=None) as stranger:
                await stranger.send(frames.encode_greeting(frames.Greeting(**asked)))
                assert isinstance(await last_frame(stranger), frames.Error)
            assert a.gossip._links["b"] is link
            a.put(b"k", b"v")
            await until(lambda: a.store.rows == b.store.rows)

    run(loop, main)


def test_a_refused_session_frame_ends_that_link_only(loop: str) -> None:
    async def main() -> None:
        a, b = dialled()

        def refuse(peer: str, payload: bytes) -> None:
            if payload == b"nonsense":
                raise PeerError("no session frame")
            a.events.append(("session", peer, payload))

        a.gossip._events = dataclasses.replace(a.gossip._events, session=refuse)
        async with running(a, b):
            await until(lambda: linked(a, b))
            assert b.gossip.send_session("a", b"nonsense")
            await until(lambda: "no session frame" in b.status("a").last_error)
            await until(lambda: linked(a, b))
            assert b.gossip.send_session("a", b"good")
            await until(lambda: ("session", "b", b"good") in a.events)
            a.put(b"k", b"v")
            await until(lambda: a.store.rows == b.store.rows)

    run(loop, main)


def test_silent_newcomers_and_other_paths_do_not_hold_the_port(loop: str) -> None:
    async def main() -> None:
        a = LoopbackNode("a", 1)
        await a.start()
        with pytest.raises(InvalidStatus, match="404"):
            await connect(a.url + "/other", compression=None)
        with pytest.raises(InvalidStatus, match="400"):
            await connect(a.url + "/gossip", compression="deflate")
        async with connect(a.url + "/gossip", compression=None) as stranger:
            await stranger.send(b"\x92\x04\x01")
            message = await stranger.recv(decode=False)
            assert "not a greeting" in frames._decode(message).text

    run(loop, main)


def test_a_silent_neighbour_is_suspect_then_down(
    loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_ms = 1_000_000
    monkeypatch.setattr(wire, "boot_ms", lambda: now_ms)

    async def main() -> None:
        nonlocal now_ms
        a = LoopbackNode("a", 1, limits=Limits(heartbeat_ms=60))
        await a.start()
        async with connect(a.url + "/gossip", compression=None) as stranger:
            greeting = frames.Greeting(versions=(1,), cluster="test", node="x", actor=9)
            await stranger.send(frames.encode_greeting(greeting))
            await until(lambda: "x" in a.replica.peers)
            for passed_ms, state in ((50, "up"), (35, "up"), (10, "suspect"), (50, "suspect")):
                now_ms += passed_ms
                await until(lambda due=now_ms: a.replica._ticked_ms == due)
                assert a.status("x").state == state
            now_ms += 40
            await until(lambda: ("down", "x") in a.events)
            assert "nothing heard" in a.status("x").last_error

    run(loop, main)


def test_a_peer_that_does_not_read_is_cut_and_bounded(loop: str) -> None:
    async def main() -> None:
        limits = Limits(heartbeat_ms=60, window_bytes=200_000, frame_bytes=50_000)
        a = LoopbackNode("a", 1, limits=limits)
        await a.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", a.gossip.port)
        writer.write(
            b"GET /gossip HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        await reader.readuntil(b"\r\n\r\n")
        greeting = frames.encode_greeting(
            frames.Greeting(versions=(1,), cluster="test", node="x", actor=9)
        )
        writer.write(b"\x82" + bytes([0x80 | 126]) + len(greeting).to_bytes(2, "big") + bytes(4))
        writer.write(greeting)
        writer.transport.pause_reading()
        await until(lambda: "x" in a.replica.peers)
        peak = 0
        for _ in range(2_000):
            a.put(b"k", b"x" * 20_000)
            await asyncio.sleep(0)
            peer = a.replica.peers.get("x")
            if peer is None:
                break
            beat = frames.Heartbeat(id=1, echo=0, held_ms=0, vv_hash=b"")
            data = frames.encode_frame(beat)
            writer.write(b"\x82" + bytes([0x80 | len(data)]) + bytes(4) + data)
            link = a.gossip._links["x"]
            peak = max(peak, sum(map(len, link.queue)) + peer.batch_bytes)
        await until(lambda: ("down", "x") in a.events)
        assert peak <= limits.window_bytes + limits.frame_bytes
        writer.close()

    run(loop, main)


def test_a_clock_far_ahead_is_waited_for_and_named_at_both_ends(loop: str) -> None:
    async def main() -> None:
        a, b = pair(Limits(heartbeat_ms=60, clock_offset_max_ms=100))
        hour_ms = 3_600_000
        a.clock_ahead_ms = hour_ms
        async with running(a, b):
            await until(lambda: linked(a, b))
            a.put(b"k", b"future")
            await until(lambda: b.status("a").mode == a.status("b").mode == "ClockSkew")
            assert a.replica.clock_refused()
            assert b.status("a").clock_offset_ms == pytest.approx(-hour_ms, abs=60_000)
            await asyncio.sleep(0.3)
            assert not b.store.rows
            b.clock_ahead_ms = hour_ms
            await until(lambda: bool(b.store.rows))
            await until(lambda: a.status("b").mode == b.status("a").mode == "Stream")

    run(loop, main)


def test_mutual_tls_and_the_certificates_name(loop: str, tmp_path: Path) -> None:
    async def main() -> None:
        ca = make_ca(tmp_path)
        a = LoopbackNode("a", 1, tls=make_tls(tmp_path, "a", ca))
        await a.start()
        url = f"wss://127.0.0.1:{a.gossip.port}"
        b = LoopbackNode("b", 2, neighbours=[("a", url)], tls=make_tls(tmp_path, "b", ca))
        thief = LoopbackNode("c", 3, neighbours=[("a", url)], tls=make_tls(tmp_path, "d", ca))
        fooled = LoopbackNode("e", 4, neighbours=[("f", url)], tls=make_tls(tmp_path, "e", ca))
        async with running(b, thief, fooled):
            await until(lambda: linked(a, b))
            a.put(b"k", b"v")
            await until(lambda: b.store.rows == a.store.rows)
            await until(lambda: "made out to d" in thief.status("a").last_error)
            await until(lambda: "made out to a" in fooled.status("f").last_error)
            assert "c" not in a.replica.peers

    run(loop, main)


def test_a_certificate_of_another_authority_is_refused(loop: str, tmp_path: Path) -> None:
    async def main() -> None:
        (tmp_path / "other").mkdir()
        ca, other = make_ca(tmp_path), make_ca(tmp_path / "other")
        a = LoopbackNode("a", 1, tls=make_tls(tmp_path, "a", ca))
        await a.start()
        url = f"wss://127.0.0.1:{a.gossip.port}"
        tls = make_tls(tmp_path / "other", "b", other)
        b = LoopbackNode("b", 2, neighbours=[("a", url)], tls=tls)
        plain = LoopbackNode("c", 3, neighbours=[("a", url)])
        async with running(b, plain):
            await until(lambda: bool(b.status("a").last_error))
            await until(lambda: "insecure" in plain.status("a").last_error)
            assert not a.replica.peers

    run(loop, main)


def test_a_full_store_takes_nothing_and_catches_up_later(loop: str) -> None:
    async def main() -> None:
        a, b = pair()
        async with running(a, b):
            await until(lambda: linked(a, b))
            b.store.full = True
            for turn in range(20):
                a.put(b"k%d" % turn, b"v")
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.1)
            assert not b.store.rows
            await until(lambda: linked(a, b))
            b.put(b"own", b"goes on")
            await until(lambda: len(a.store.rows) == 21)
            b.store.full = False
            await until(lambda: a.store.rows == b.store.rows and a.store.vv == b.store.vv)

    run(loop, main)


def test_a_rolled_back_node_learns_it_from_its_neighbour(loop: str) -> None:
    async def main() -> None:
        a, b = pair()
        await a.start()
        b.store.put(b"k", b"v", wall_ms())
        record, raw = b.store.put(b"k", b"w", wall_ms())
        assert not a.store.accept(raw, record)
        a.store.vv[2] = a.replica._near.vv[2] = record.hlc + 5
        async with running(b):
            await until(lambda: any(event[0] == "rollback" for event in b.events))
            rollback = next(event for event in b.events if event[0] == "rollback")
            assert rollback == ("rollback", "a", 2, record.hlc + 5)
            assert "Rollback" in b.status("a").last_error
            b.store.actor = 22
            b.gossip.new_actor(22)
            await until(lambda: linked(a, b))

    run(loop, main)
