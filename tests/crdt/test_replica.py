"""Replicas on a network in memory: any topology, any fault, always equal in the end."""

from __future__ import annotations

from contextlib import suppress
from random import Random

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from replication_network import START_MS, MemoryStore, Network, edges_of, network

from roost_crdt import frames as f
from roost_crdt.errors import PeerError, TooLarge
from roost_crdt.limits import Limits
from roost_crdt.peer import LinkState, Mode
from roost_crdt.replica import Replica

TOPOLOGIES = ("line", "ring", "star", "mesh")


def alone(**changes: object) -> Replica:
    settings_ = {
        "node": "me",
        "region": "r",
        "cluster": "test",
        "store_id": bytes(16),
        "actor": 1,
        "vv": {1: 50},
    }
    return Replica(**(settings_ | changes))  # type: ignore[arg-type]


def greeting(**changes: object) -> f.Greeting:
    plain = f.Greeting(versions=(1,), cluster="test", node="x", actor=9, vv={9: 5})
    return msgspec.structs.replace(plain, **changes)


# -- convergence


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("count", [2, 3, 6])
def test_steady_state_copies(topology: str, count: int) -> None:
    """1.00 copies a node in a line, star or mesh, at most 1.03 in a ring."""
    net = network(topology, count)
    for turn in range(300):
        net.put(net.random.choice(net.names), b"k%d" % (turn % 20), b"v%d" % turn)
        net.run(10)
    net.run_until_converged(2_000)
    received, duplicates = net.copies()
    assert received == 300 * (count - 1)
    share = (received + duplicates) / received
    assert share <= (1.03 if topology == "ring" else 1.0)
    assert all(
        peer.mode is Mode.STREAM for node in net.replicas.values() for peer in node.peers.values()
    )


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_flapping_links_cost_few_duplicates(topology: str) -> None:
    net = network(topology, 5)
    edges = edges_of(topology, net.names)
    for turn in range(600):
        net.put(net.random.choice(net.names), b"k%d" % (turn % 20), b"v%d" % turn)
        if turn % 100 == 50:
            net.cut(*edges[turn // 100 % len(edges)])
        if turn % 100 == 80:
            net.link(*edges[turn // 100 % len(edges)])
        net.run(10)
    net.run_until_converged(5_000)
    received, duplicates = net.copies()
    assert duplicates <= 0.05 * received


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["put"] * 6
            + ["burst", "cut", "cut", "heal", "heal", "restart", "forget", "full", "stop"]
        ),
        st.integers(0, 10_000),
        st.sampled_from([0, 5, 20, 100, 400]),
    ),
    max_size=60,
)


def fault(net: Network, step: str, edges: list[tuple[str, str]], draw: Random) -> None:
    name = draw.choice(net.names)
    match step:
        case "put":
            net.put(name, b"k%d" % draw.randrange(8), b"v" * draw.choice([1, 50, 900]))
        case "burst":
            for _ in range(40):
                net.put(name, b"k%d" % draw.randrange(8), b"v%d" % draw.randrange(100))
        case "cut":
            net.cut(*draw.choice(edges))
        case "heal":
            net.link(*draw.choice(edges), delay_ms=draw.choice([1, 5, 40]))
        case "restart":
            net.restart(name)
        case "forget":
            net.stores[name].forget_log()
        case "full":
            net.stores[name].full ^= True
        case "stop":
            net.stopped ^= {name}


@settings(max_examples=40)
@given(
    st.sampled_from(TOPOLOGIES),
    st.integers(2, 6),
    st.sampled_from([(600, 200), (4_000, 1_000), (4 << 20, 1 << 20)]),
    st.sampled_from([0.0, 0.1]),
    STEPS,
)
@example("ring", 3, (600, 200), 0.1, [("burst", 1, 0), ("forget", 1, 0), ("cut", 2, 5)] * 5)
def test_it_always_converges_after_the_last_fault(
    topology: str,
    count: int,
    sizes: tuple[int, int],
    duplicate_share: float,
    steps: list[tuple[str, int, int]],
) -> None:
    limits = Limits(window_bytes=sizes[0], frame_bytes=sizes[1])
    net = network(topology, count, limits=limits, seed=len(steps))
    net.duplicate_share = duplicate_share
    edges = edges_of(topology, net.names)
    for step, seed, pause_ms in steps:
        fault(net, step, edges, Random(seed))
        net.run(pause_ms)
    net.duplicate_share = 0.0
    net.stopped.clear()
    for store in net.stores.values():
        store.full = False
    for edge in edges:
        net.link(*edge)
    for _ in range(20):
        if net.converged() and all(edge in net.pipes for edge in edges):
            break
        net.run(1_000)
        for edge in edges:
            net.link(*edge)
    assert net.converged(), net.describe()
    assert not net.rollbacks
    assert all("nothing heard" in reason for _, _, reason in net.cuts), net.cuts
    highest = max(p.window_bytes for r in net.replicas.values() for p in r.peers.values())
    assert highest <= limits.window_bytes + 2_000


def test_a_window_that_overflows_moves_to_probe_and_back() -> None:
    limits = Limits(window_bytes=5_000, frame_bytes=2_000)
    net = network("line", 2, limits=limits)
    net.stopped = {"n1"}
    for turn in range(100):
        net.put("n0", b"k%d" % turn, b"v" * 200)
        peer = net.replicas["n0"].peers["n1"]
        assert peer.window_bytes + peer.batch_bytes <= limits.window_bytes + 500
    assert peer.mode is Mode.PROBE
    assert sum(peer.waiting.values()) > 50
    net.stopped = set()
    net.run_until_converged(2_000)
    net.run(600)
    assert net.replicas["n0"].mode("n1") is Mode.STREAM
    assert net.copies() == (100, 0)
    assert net.replicas["n1"].peers["n0"].reported_waiting == 0


def test_session_bytes_share_the_window() -> None:
    net = network("line", 2, limits=Limits(window_bytes=1_000))
    replica = net.replicas["n0"]
    assert replica.send_session("n1", b"x" * 800)
    assert not replica.send_session("n1", b"x" * 800)
    assert not replica.send_session("nobody", b"x")
    with pytest.raises(TooLarge, match="at most"):
        replica.send_session("n1", bytes(Limits().body_bytes_max + 1))
    net.run(100)
    assert net.sessions == [("n0", "n1", b"x" * 800)]
    assert replica.send_session("n1", b"x" * 800)


# -- snapshots


def test_a_snapshot_bridges_what_the_log_forgot() -> None:
    net = Network(["a", "b", "c"], limits=Limits(frame_bytes=500, window_bytes=1_000))
    for turn in range(100):
        net.put("a", b"k%d" % turn, b"v" * 30)
    net.put("b", b"own", b"kept")
    net.stores["a"].forget_log()
    net.link("a", "b")
    net.run(20)
    assert net.replicas["b"].mode("a") is Mode.SNAPSHOT
    assert net.replicas["a"].mode("b") is Mode.SNAPSHOT
    net.put("a", b"meanwhile", b"1")
    net.link("b", "c")
    took_ms = net.run_until_converged(5_000)
    assert took_ms < 2_000
    assert len(net.stores["c"].rows) == 102
    net.run(600)
    assert net.replicas["b"].mode("a") is Mode.STREAM


def test_a_snapshot_that_breaks_off_claims_nothing() -> None:
    net = Network(["a", "b"], limits=Limits(frame_bytes=500, window_bytes=1_000))
    for turn in range(100):
        net.put("a", b"k%d" % turn, b"v" * 30)
    net.stores["a"].forget_log()
    net.link("a", "b")
    net.run(60)
    assert 0 < len(net.stores["b"].rows) < 100
    net.cut("a", "b")
    assert net.stores["b"].vv == {} == net.replicas["b"].vv
    net.link("a", "b")
    net.run_until_converged(5_000)


def test_rows_of_another_snapshot_or_of_none_are_ignored() -> None:
    replica = alone()
    replica.link_up("x", greeting(), START_MS)
    replica.take_effects()
    for frame in (f.SnapshotRows(3, [(b"garbage", 1, b"")]), f.SnapshotEnd(3, {9: 40})):
        replica.receive("x", f.encode_frame(frame), START_MS)
    effects = replica.take_effects()
    assert not effects.rows
    assert replica.vv == {1: 50}


def test_rows_that_cannot_be_read_break_the_protocol() -> None:
    replica = alone()
    replica.link_up("x", greeting(), START_MS)
    replica.receive("x", f.encode_frame(f.SnapshotOffer(9)), START_MS)
    wants = [f.decode_frame(data) for _, data in replica.take_effects().frames]
    wanted = next(frame for frame in wants if isinstance(frame, f.SnapshotWant))
    rows = f.SnapshotRows(wanted.id, [(b"garbage", 1, b"")])
    with pytest.raises(PeerError, match="row that cannot be read"):
        replica.receive("x", f.encode_frame(rows), START_MS)
    assert not replica.take_effects().rows


@pytest.mark.parametrize("logged", [True, False])
def test_a_snapshot_that_waits_for_its_time_holds_up_nobody_else(logged: bool) -> None:
    net = Network(["a", "b", "c"], limits=Limits(clock_offset_max_ms=500))
    net.clocks_ms["a"] = 6_000
    net.put("a", b"ahead", b"v")
    net.stores["a"].forget_log()
    net.link("a", "b")
    net.run(400)
    assert net.replicas["b"].mode("a") is Mode.CLOCK_SKEW
    net.put("c", b"now", b"v")
    if not logged:
        net.stores["c"].forget_log()
    net.link("b", "c")
    net.run(1_000)
    assert len(net.stores["b"].rows) == 1, "b waits for a, and with it for c"
    assert len(net.stores["c"].rows) == 1
    net.run_until_converged(20_000)
    assert len(net.stores["c"].rows) == 2


def test_rows_from_the_future_are_asked_for_again_in_time() -> None:
    net = Network(["a", "b"], limits=Limits(clock_offset_max_ms=500))
    net.clocks_ms["a"] = 3_000
    net.put("a", b"k", b"v")
    net.stores["a"].forget_log()
    net.link("a", "b")
    net.run(400)
    assert net.replicas["b"].mode("a") is Mode.CLOCK_SKEW
    assert not net.stores["b"].rows
    net.run_until_converged(5_000)
    assert net.now_ms - START_MS >= 2_500


# -- greetings


@pytest.mark.parametrize(
    ("node", "change", "why"),
    [
        ("x", {"versions": (7,)}, "speaks protocol versions"),
        ("x", {"cluster": "prod"}, "belongs to cluster 'prod'"),
        ("me", {"node": "me"}, "own id"),
        ("x", {"node": "y"}, "greets as 'y'"),
        ("x", {"actor": 0}, "without an actor"),
        ("x", {"gc_floor": {9: 3}}, "Reseed: me is behind what x"),
    ],
)
def test_a_greeting_that_does_not_fit_is_refused(
    node: str, change: dict[str, object], why: str
) -> None:
    replica = alone()
    with pytest.raises(PeerError, match=why):
        replica.link_up(node, greeting(**change), START_MS)
    effects = replica.take_effects()
    assert not replica.peers
    assert not effects.frames
    assert not effects.rollbacks
    assert replica.vv == {1: 50}


def test_one_actor_at_two_neighbours_is_refused() -> None:
    replica = alone()
    replica.link_up("x", greeting(), START_MS)
    with pytest.raises(PeerError, match="y and x both write as 0x9") as refused:
        replica.link_up("y", greeting(node="y"), START_MS)
    assert refused.value.code == f.SHARED_ACTOR


def test_who_is_told_that_its_actor_is_another_nodes_takes_a_new_one() -> None:
    replica = alone()
    replica.link_up("x", greeting(), START_MS)
    told = f.Error(f.SHARED_ACTOR, "me and y both write as 0x1")
    replica.receive("x", f.encode_frame(told), START_MS)
    effects = replica.take_effects()
    assert effects.rollbacks == [("x", 1, 50)]
    assert [node for node, _ in effects.cuts] == ["x"]


@pytest.mark.parametrize(
    "change",
    [{"vv": {1: 51}}, {"head": (1, 60, b"")}, {"actor": 1}],
)
def test_a_neighbour_that_knows_more_of_this_actor_reports_a_rollback(
    change: dict[str, object],
) -> None:
    replica = alone()
    with pytest.raises(PeerError, match="Rollback: x knows actor 0x1"):
        replica.link_up("x", greeting(**change), START_MS)
    known = {"vv": 51, "head": 60, "actor": 0}[next(iter(change))]
    assert replica.take_effects().rollbacks == [("x", 1, known)]
    replica.chain = (50, b"c" * 16)
    replica.new_actor(2)
    assert replica.chain is None, "it is the chain of the actor that was given up"
    replica.link_up("x", greeting(**(change if "vv" in change else {})), START_MS)
    assert replica.peers["x"].mode is Mode.STREAM


def test_a_rollback_seen_later_cuts_the_link() -> None:
    replica = alone()
    replica.link_up("x", greeting(), START_MS)
    replica.receive("x", f.encode_frame(f.IHave({1: 51})), START_MS)
    effects = replica.take_effects()
    assert effects.rollbacks == [("x", 1, 51)]
    assert effects.cuts[0][0] == "x"


def test_who_is_behind_what_was_collected_reseeds() -> None:
    replica = alone(gc_floor={9: 8})
    with pytest.raises(PeerError, match="Reseed: x is behind what me has collected"):
        replica.link_up("x", greeting(), START_MS)
    assert replica.mode("x") is Mode.RESEED
    replica.link_up("x", greeting(vv={9: 8}), START_MS)
    assert replica.mode("x") is Mode.STREAM
    assert replica.mode("unknown") is Mode.PROBE


def test_an_empty_node_joins_by_a_snapshot() -> None:
    net = Network(["old", "new"])
    for turn in range(30):
        net.put("old", b"k%d" % turn, b"v")
    net.replicas["old"].gc_floor = dict(net.stores["old"].vv)
    net.link("old", "new")
    net.run_until_converged(2_000)
    assert net.replicas["new"].gc_floor == net.replicas["old"].gc_floor


def test_policies_that_differ_are_a_warning() -> None:
    replica = alone(policy_hashes={"same": "1", "other": "2", "mine": "3"})
    replica.link_up(
        "x", greeting(policy_hashes={"same": "1", "other": "9", "theirs": "4"}), START_MS
    )
    assert replica.peers["x"].warnings == ("policy 'other' differs from the neighbour's",)


def test_the_greeting_says_what_this_node_is() -> None:
    replica = alone(public="https://me", public_keys={"k": bytes(32)}, gc_floor={3: 4})
    replica.chain = (50, b"chain")
    replica.link_up("x", greeting(vv={3: 4}), START_MS)
    mine = f.decode_greeting(replica.greeting((9, 5, b"theirs")))
    assert (mine.node, mine.actor, mine.vv, mine.links) == ("me", 1, {1: 50}, ("x",))
    assert (mine.chain, mine.head) == ((50, b"chain"), (9, 5, b"theirs"))
    assert (mine.gc_floor, mine.public) == ({3: 4}, "https://me")


# -- protocol


@pytest.mark.parametrize("kind", ["own", "damaged", "mixed"])
def test_foreign_records_that_break_the_protocol_change_nothing(kind: str) -> None:
    store, theirs = MemoryStore(1), MemoryStore(9)
    own_record, own = store.put(b"k", b"v", START_MS)
    _, good = theirs.put(b"k", b"v", START_MS)
    raws = {"own": [own], "damaged": [good[:-1]], "mixed": [good, own[:-1]]}[kind]
    replica = alone(vv={1: own_record.hlc})
    replica.link_up("x", greeting(vv={}), START_MS)
    replica.take_effects()
    with pytest.raises(PeerError, match="own actor" if kind == "own" else "cannot be read"):
        replica.receive("x", f.encode_frame(f.Records(raws)), START_MS)
    effects = replica.take_effects()
    assert not effects.writes
    assert not effects.frames
    assert replica.vv == {1: own_record.hlc}


def test_more_actors_than_can_be_are_refused() -> None:
    replica = alone()
    replica.link_up("x", greeting(), START_MS)
    half = f.ORIGINS_MAX // 2 + 1
    some, more = (dict.fromkeys(range(start, start + half), 1) for start in (100, 1_000_000))
    replica.receive("x", f.encode_frame(f.IHave(some)), START_MS)
    with pytest.raises(PeerError, match="more than 65536 actors"):
        replica.receive("x", f.encode_frame(f.IHave(more)), START_MS)


def test_an_error_frame_ends_the_link() -> None:
    replica = alone()
    replica.link_up("x", greeting(), START_MS)
    replica.receive("x", f.encode_frame(f.Error("PEER", "you are odd")), START_MS)
    assert replica.take_effects().cuts == [("x", "refused by the neighbour: PEER: you are odd")]


@settings(max_examples=300)
@given(
    st.binary(max_size=60)
    | st.integers(0, 15).flatmap(
        lambda kind: st.recursive(
            st.none() | st.integers(0, 2**64 - 1) | st.binary(max_size=8) | st.text(max_size=4),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.integers(0, 2**64 - 1), inner, max_size=2)
            ),
            max_leaves=6,
        ).map(lambda body: msgspec.msgpack.encode([kind, body, body]))
    )
)
def test_whatever_arrives_is_taken_or_refused_and_own_records_stay(data: bytes) -> None:
    replica = alone()
    replica.link_up("x", greeting(), START_MS)
    with suppress(PeerError):
        replica.receive("x", data, START_MS)
    replica.tick(START_MS + 100)
    assert not replica.take_effects().writes
    assert replica.vv == {1: 50}


# -- links and time


def test_silence_is_suspect_then_cut() -> None:
    net = network("line", 2)
    net.stopped = {"n1"}
    net.run(500)
    assert net.replicas["n0"].peers["n1"].state(net.now_ms) is LinkState.SUSPECT
    net.run(400)
    assert not net.replicas["n0"].peers
    assert "nothing heard for" in net.cuts[0][2]


def test_bytes_in_the_middle_of_a_frame_keep_a_slow_link_up() -> None:
    replica = alone()
    replica.link_up("x", greeting(), START_MS)
    for step in range(40):
        replica.heard("x", START_MS + step * 50)
        replica.tick(START_MS + step * 50)
    assert not replica.take_effects().cuts


def test_a_node_that_stood_still_does_not_blame_its_neighbours() -> None:
    replica = alone()
    replica.link_up("x", greeting(), START_MS)
    replica.tick(START_MS)
    replica.tick(START_MS + 10_000)
    assert not replica.take_effects().cuts
    for step in range(4):
        replica.tick(START_MS + 10_000 + 250 * step)
    assert replica.take_effects().cuts


def test_routes_go_around_and_end_after_four_hops() -> None:
    net = network("line", 7)
    first = net.replicas["n0"]
    assert [bool(first.routes(f"n{at}")) for at in range(1, 7)] == [True] * 4 + [False] * 2
    assert first.routes("n1") == first.routes("n4") == ["n1"]
    net.cut("n2", "n3")
    net.run(100)
    assert first.routes("n3") == []
    ring = network("ring", 5)
    assert ring.replicas["n0"].routes("n2") == ["n1", "n4"]
    assert ring.replicas["n0"].routes("n4") == ["n4"]


def test_it_wakes_for_heartbeats_announcements_and_wants() -> None:
    replica = alone()
    assert replica.take_effects().wake_at_ms > START_MS * 2
    replica.link_up("x", greeting(vv={9: 5, 8: 3}), START_MS)
    assert replica.take_effects().wake_at_ms <= START_MS + 1
    replica.tick(START_MS)
    effects = replica.take_effects()
    kinds = {type(f.decode_frame(data)) for _, data in effects.frames}
    assert f.Heartbeat in kinds
    assert START_MS < effects.wake_at_ms <= START_MS + 250


def test_a_want_without_an_answer_goes_to_the_next_peer() -> None:
    replica = alone()
    replica.link_up("x", greeting(vv={8: 3}), START_MS)
    replica.link_up("y", greeting(node="y", actor=10, vv={8: 3}), START_MS)
    asked: list[str] = []
    now_ms = START_MS
    while len(asked) < 4:
        now_ms += 20
        for node in ("x", "y"):
            replica.heard(node, now_ms)
        replica.tick(now_ms)
        asked += [
            peer
            for peer, data in replica.take_effects().frames
            if f.decode_frame(data) == f.Want(8, 0)
        ]
        assert now_ms < START_MS + 3_000
    assert asked == ["x", "y", "x", "y"]
    assert now_ms - START_MS >= 3 * 160


def test_chains_are_handed_over_once_each() -> None:
    replica = alone()
    replica.link_up("x", greeting(chain=(5, b"c")), START_MS)
    assert replica.take_effects().chains == [("x", 9, 5, b"c")]
    for _ in range(2):
        beat = f.Heartbeat(id=1, echo=0, held_ms=0, vv_hash=b"", chain=(6, b"d"))
        replica.receive("x", f.encode_frame(beat), START_MS)
    assert replica.take_effects().chains == [("x", 9, 6, b"d")]


def test_converged_means_equal_digests_at_equal_vectors() -> None:
    net = network("line", 2)
    net.put("n0", b"k", b"v")
    net.run_until_converged(1_000)
    for name in net.names:
        net.replicas[name].digested(b"root", net.stores[name].vv)
    net.run(600)
    assert net.replicas["n0"].converged("n1")
    net.replicas["n1"].digested(b"another root", net.stores["n1"].vv)
    net.run(600)
    assert not net.replicas["n0"].converged("n1")
    assert net.replicas["n0"].lag_ms(net.now_ms) == 0


def test_a_log_that_is_behind_is_asked_again_instead_of_scanned() -> None:
    net = Network(["a", "b"])
    record = net.put("a", b"k", b"v")
    hidden, net.stores["a"].log = net.stores["a"].log, {100: []}
    net.stores["a"].records_after = lambda *_: []  # type: ignore[method-assign]
    net.link("a", "b")
    net.run(100)
    assert net.replicas["b"].mode("a") is Mode.STREAM
    del net.stores["a"].records_after
    net.stores["a"].log = hidden
    net.run_until_converged(1_000)
    assert net.stores["b"].vv == {100: record.hlc}


def test_a_lost_frame_is_found_by_the_hash_in_the_heartbeats() -> None:
    net = network("line", 2)
    net.put("n0", b"k", b"v")
    net.pipes["n0", "n1"].frames.clear()
    took_ms = net.run_until_converged(3_000)
    assert took_ms > 200
