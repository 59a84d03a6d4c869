"""Foreign bytes on a gossip link: a frame, a greeting, or PeerError; refusals change nothing."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from fuzzing import throw
from replication_network import START_MS, MemoryStore, Network

from roost_crdt import frames as f
from roost_crdt.digest import BUCKETS, bucket_of, contribution, root
from roost_crdt.errors import PeerError
from roost_crdt.hlc import hlc_from_ms
from roost_crdt.record import Record, RowOp, encode_record
from roost_crdt.replica import Replica
from roost_crdt.rows import counter, decode_row, encode_row, map, set  # noqa: A004
from roost_crdt.rows.layout import TYPE_BY_NAME, row_key, split_row_key

PEER_ACTOR = 101
HLC = hlc_from_ms(START_MS)
NO_STAMP_MS = START_MS + 600_000


def foreign_records() -> list[Record]:
    """Records of all types as the neighbour would write them, each on top of the one before."""
    stamps = [(HLC + at, PEER_ACTOR) for at in range(1, 7)]
    a, b = b"a", b"b" * 300
    deltas = [
        ("register", {b"\x02": (*stamps[0], 1, b"value", *stamps[0], NO_STAMP_MS)}),
        ("counter", counter.add({}, -5, stamps[1], START_MS)),
        ("set", set.add({}, [a, b, "[1]"], stamps[2], START_MS)),
        ("map", map.put({}, {b"f": b"v", b"": '{"x":1}'}, stamps[3], START_MS)),
        ("map", map.add({}, b"n", 7, stamps[4], START_MS)),
        ("rate", {b"\x0a" + bytes(7) + b"\x05" + bytes(8): (3, 1, 60_000)}),
    ]
    records = []
    for (name, delta), (hlc, actor) in zip(deltas, stamps, strict=True):
        code = TYPE_BY_NAME[name]
        ops = tuple(
            RowOp(row_key(b"k:" + name.encode(), part), code, encode_row(code, part, row))
            for part, row in delta.items()
        )
        records.append(Record(actor, hlc, hlc - 1 if records else 0, ops))
    return records


def frame_seeds() -> list[bytes]:
    """One frame of each kind, with contents that the replica acts on."""
    records = foreign_records()
    raws = [encode_record(record) for record in records]
    rows = [tuple(op) for record in records for op in record.ops]
    frames: list[f.Frame] = [
        f.Records(raws[:1]),
        f.Records(raws),
        f.IHave({PEER_ACTOR: HLC + 6, 77: HLC}),
        f.Want(100, 0),
        f.Prune(100),
        f.Links(("a", "c"), {"d": 2}),
        f.Heartbeat(1, 1, 3, b"v" * 16, b"d" * 16, b"w" * 16, START_MS, 0, 2, (HLC, b"c" * 16)),
        f.SnapshotWant(1),
        f.SnapshotOffer(PEER_ACTOR),
        f.SnapshotRows(1, rows),
        f.SnapshotEnd(1, {PEER_ACTOR: HLC + 6}),
        f.Session(b"opaque"),
        f.Error("PEER", "go away"),
    ]
    return [f.encode_frame(frame) for frame in frames]


def greeting_seeds() -> list[bytes]:
    greeting = f.Greeting(
        versions=(1,),
        cluster="test",
        node="b",
        region="us",
        store_id=b"s" * 16,
        actor=PEER_ACTOR,
        vv={PEER_ACTOR: HLC, 100: 5},
        gc_floor={100: 3},
        policy_hashes={"routes": "0123456789abcdef"},
        links=("c", "d"),
        public_keys={"k1": b"p" * 32},
        public="https://b",
        head=(100, 5, b"c" * 16),
        chain=(HLC, b"e" * 16),
    )
    bare = f.Greeting(versions=(1, 0), cluster="test", node="b", actor=9)
    return [f.encode_greeting(greeting), f.encode_greeting(bare)]


def digest_of(store: MemoryStore) -> str:
    """The root digest of all rows that a store holds."""
    keys: dict[tuple[int, bytes], dict[bytes, Any]] = {}
    for name, (code, body) in store.rows.items():
        key, part = split_row_key(name)
        keys.setdefault((code, key), {})[part] = decode_row(code, part, body)
    buckets, hours = [0] * BUCKETS, dict[int, int]()
    for (code, key), rows in keys.items():
        added = contribution(code, key, rows)
        buckets[bucket_of(key)] += added.live
        for hour, amount in added.hours.items():
            hours[hour] = hours.get(hour, 0) + amount
    return root([amount % (1 << 128) for amount in buckets], hours, START_MS)


def state_of(replica: Replica) -> str:
    """All that a refusal must leave alone; when the peer was last heard of may move."""
    peers = [
        [(name, getattr(peer, name)) for name in peer.__slots__ if name != "heard_ms"]
        for peer in replica.peers.values()
    ]
    near = replica._near
    return repr((near.vv, near.nodes, near.gc_floor, near.rows_vv, near.effects, peers))


def linked() -> Network:
    """Node `a` under test, linked to `b`, whose frames are mutants."""
    network = Network(["a", "b"])
    network.put("a", b"own", b"1")
    assert network.link("a", "b")
    network.pipes["a", "b"].frames.clear()
    network.pipes["b", "a"].frames.clear()
    return network


def test_frames_decode_or_are_refused() -> None:
    def check(raw: bytes) -> None:
        frame = f.decode_frame(raw)
        again = f.encode_frame(frame)
        assert f.encode_frame(f.decode_frame(again)) == again

    throw("frames", frame_seeds(), check, (PeerError,))


def test_greetings_link_up_or_change_nothing() -> None:
    replica = Network(["a"])._replica("a")
    replica.committed(Record(100, 9, 0, ()), b"")

    def check(raw: bytes) -> None:
        greeting = f.decode_greeting(raw)
        before = state_of(replica)
        try:
            replica.link_up(greeting.node, greeting, START_MS)
        except PeerError:
            replica.take_effects().rollbacks.clear()
            replica.reseeds.clear()
            after = state_of(replica)
            assert after == before
            raise
        replica.tick(START_MS)
        replica.take_effects()
        replica.link_down(greeting.node, START_MS)
        replica.take_effects()
        replica._near.nodes = {100: "a"}

    throw("greetings", greeting_seeds(), check, (PeerError,))


def play(target: str, seeds: list[bytes], prepare: list[bytes]) -> None:
    """Mutants go to a linked replica and its store; a refusal changes neither."""
    network = linked()
    taken = 0

    def fresh() -> Network:
        made = linked()
        for raw in prepare:
            made.replicas["a"].receive("b", raw, made.now_ms)
        made._collect("a")
        return made

    def check(raw: bytes) -> None:
        nonlocal network, taken
        replica, store = network.replicas["a"], network.stores["a"]
        before, flushes = state_of(replica), len(store.rows)
        try:
            replica.receive("b", raw, network.now_ms)
        except PeerError:
            assert state_of(replica) == before
            assert len(store.rows) == flushes
            raise
        network._collect("a")
        taken += 1
        assert all(peer.window_bytes >= 0 for peer in replica.peers.values())
        if taken % 50 == 0 or not replica.peers:
            network.now_ms += 300
            replica.tick(network.now_ms)
            network._collect("a")
            assert replica.vv == store.vv
            assert int(digest_of(store), 16)
            network = fresh()

    network = fresh()
    throw(target, seeds, check, (PeerError,))
    with suppress(PeerError):
        network.replicas["a"].receive("b", b"\xff", network.now_ms)
    assert int(digest_of(network.stores["a"]), 16)


def test_frames_change_a_replica_and_its_store_or_neither() -> None:
    play("replica", frame_seeds(), [])


def test_snapshot_rows_are_taken_or_refused_whole() -> None:
    ahead = f.encode_frame(f.IHave({PEER_ACTOR: HLC + 6}))
    offer = f.encode_frame(f.SnapshotOffer(PEER_ACTOR))
    seeds = [raw for raw in frame_seeds() if raw[1] in (8, 9, 1)]
    play("snapshot rows", seeds, [ahead, offer])


def test_a_snapshot_from_the_future_moves_no_version_vector() -> None:
    """Once it was taken: no record of that actor could follow, and the clock went with it."""
    network = linked()
    replica = network.replicas["a"]
    for frame in (f.IHave({PEER_ACTOR: HLC + 6}), f.SnapshotOffer(PEER_ACTOR)):
        replica.receive("b", f.encode_frame(frame), network.now_ms)
    taking = replica.peers["b"].snapshot_in
    assert taking is not None
    before = dict(replica.vv)
    end = f.SnapshotEnd(taking.id, {PEER_ACTOR: (1 << 64) - 1, 777: 5})
    replica.receive("b", f.encode_frame(end), network.now_ms)
    network._collect("a")
    assert replica.vv == network.stores["a"].vv == before
    assert replica.mode("b") == "ClockSkew"
    assert network.stores["a"].clock.last < hlc_from_ms(START_MS + 1_000)


def test_wants_and_prunes_of_made_up_actors_are_bounded() -> None:
    network = linked()
    replica = network.replicas["a"]
    peer = replica.peers["b"]
    peer.choice = dict.fromkeys(range(f.ORIGINS_MAX), True)
    replica.receive("b", f.encode_frame(f.Prune(5)), network.now_ms)
    for frame in (f.Prune(f.ORIGINS_MAX + 1), f.Want(f.ORIGINS_MAX + 1, 0)):
        with pytest.raises(PeerError, match="more than 65536 actors"):
            replica.receive("b", f.encode_frame(frame), network.now_ms)
    assert len(peer.choice) == f.ORIGINS_MAX
    assert f.ORIGINS_MAX + 1 not in peer.cursor
