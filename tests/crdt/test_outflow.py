"""The sending half: pushed in batches, caught up from the log, announced, snapshots out."""

from __future__ import annotations

from dataclasses import replace

import pytest
from replication_network import Network

from roost_crdt import frames as f
from roost_crdt.errors import PeerError
from roost_crdt.limits import DEFAULT_LIMITS, Limits
from roost_crdt.neighbourhood import Effects, Neighbourhood
from roost_crdt.outflow import AGAIN_MAX, Outflow
from roost_crdt.peer import Peer
from roost_crdt.record import Record, RowOp, encode_record
from roost_crdt.replica import Replica

OWN, FAR = 1, 50


def raw(origin: int, hlc: int, prev_hlc: int | None = None, *, size: int = 0) -> bytes:
    ops = (RowOp(b"k\0\x02", 1, b"x" * size),) if size else ()
    return encode_record(Record(origin, hlc, hlc - 1 if prev_hlc is None else prev_hlc, ops))


class Sender:
    """An outflow with two peers, `a` and `b`, that hold nothing."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self.peers = {}
        for actor, node in ((2, "a"), (3, "b")):
            greeting = f.Greeting(versions=(1,), cluster="c", node=node, actor=actor)
            self.peers[node] = Peer(node, greeting, limits, up_ms=0, heard_ms=0)
        self.near = Neighbourhood("me", OWN, {}, limits, self.peers)
        self.out = Outflow(self.near)
        self.a, self.b = self.peers["a"], self.peers["b"]

    def take(self, origin: int, hlc: int, source: Peer | None = None, *, size: int = 0) -> bytes:
        """A record is taken and offered to the peers."""
        data = raw(origin, hlc, size=size)
        self.near.advance(origin, hlc)
        record = Record(origin, hlc, hlc - 1, ())
        self.out.forward(data, record, source)
        return data

    def effects(self) -> Effects:
        self.out.serve()
        effects, self.near.effects = self.near.effects, Effects()
        return effects

    def sent(self, node: str) -> list[f.Frame]:
        return [f.decode_frame(data) for to, data in self.effects().frames if to == node]


def test_records_go_to_all_but_their_bringer_in_one_frame() -> None:
    sender = Sender()
    one, two = sender.take(FAR, 1, sender.a), sender.take(FAR, 2, sender.a)
    frames = sender.effects().frames
    assert [(to, f.decode_frame(data)) for to, data in frames] == [("b", f.Records([one, two]))]
    assert sender.b.cursor == {FAR: 2}
    sender.out.forward(one, Record(FAR, 1, 0, ()), None)
    assert sender.sent("b") == [], "it was sent that far"


def test_a_frame_is_closed_at_its_size() -> None:
    sender = Sender(replace(DEFAULT_LIMITS, frame_bytes=300))
    raws = [sender.take(OWN, hlc, size=120) for hlc in (1, 2, 3)]
    assert sender.sent("a") == [f.Records(raws[:2]), f.Records(raws[2:])]


def test_a_lazy_peer_is_told_and_not_sent() -> None:
    sender = Sender()
    sender.out.pruned(sender.a, FAR)
    sender.take(FAR, 1)
    assert sender.sent("a") == []
    sender.out.announce(sender.a, 77)
    assert sender.sent("a") == [f.IHave({FAR: 1})]
    assert (sender.a.announce, sender.a.announced_ms) == (set(), 77)
    sender.out.announce(sender.a, 99)
    assert sender.a.announced_ms == 77, "nothing to tell"
    sender.a.announce = {FAR, 999}
    sender.a.cursor[FAR] = 1
    sender.out.announce(sender.a, 99)
    assert sender.sent("a") == [], "it holds the one, and nobody has heard of the other"


def test_a_full_window_stops_all_but_the_log() -> None:
    sender = Sender()
    sender.b.window_bytes = sender.near.limits.window_bytes
    sender.take(OWN, 1)
    sender.take(OWN, 2)
    assert sender.b.waiting == {OWN: 2}
    assert list(sender.b.catch_up) == [OWN]
    sender.out.announce(sender.b, 5)
    effects = sender.effects()
    assert not effects.reads
    assert [to for to, _ in effects.frames] == ["a"], "no record, no announcement"
    sender.b.window_bytes = 0
    ((node, origin, after, size_max),) = sender.effects().reads
    assert (node, origin, after) == ("b", OWN, 0)
    assert 0 < size_max <= sender.near.limits.frame_bytes
    assert not sender.effects().reads, "one read at a time"
    sender.out.records_read(sender.b, OWN, [raw(OWN, 1)])
    assert (sender.b.cursor, sender.b.waiting) == ({OWN: 1}, {OWN: 1})
    assert sender.effects().reads == [("b", OWN, 1, size_max)]
    sender.out.records_read(sender.b, OWN, [raw(OWN, 2)])
    assert (sender.b.cursor, sender.b.waiting, sender.b.catch_up) == ({OWN: 2}, {}, {})


def test_a_want_is_served_from_the_log() -> None:
    sender = Sender()
    sender.take(FAR, 3, sender.b)
    sender.effects()
    sender.out.wanted(sender.a, FAR, 1)
    assert sender.near.eager(sender.a, FAR)
    assert [read[:3] for read in sender.effects().reads] == [("a", FAR, 1)]
    sender.out.records_read(sender.a, 99, [])
    assert sender.a.reading == (FAR, 1), "an answer to something else"
    sender.out.records_read(sender.a, FAR, [raw(FAR, 2), raw(FAR, 3)])
    assert sender.sent("a") == [f.Records([raw(FAR, 2), raw(FAR, 3)])]
    sender.out.wanted(sender.a, FAR, 3)
    assert not sender.effects().reads, "there is no more"


def test_records_of_the_log_that_were_given_up_stay_here() -> None:
    sender = Sender()
    sender.take(FAR, 2, sender.b)
    sender.effects()
    sender.out.wanted(sender.a, FAR, 1)
    sender.effects()
    # Before it was emptied and filled anew this store had gone on to 3, which is held nowhere now.
    sender.out.records_read(sender.a, FAR, [raw(FAR, 2), raw(FAR, 3)])
    assert sender.sent("a") == [f.Records([raw(FAR, 2)])]
    assert sender.a.cursor[FAR] == 2


def test_an_answer_that_nobody_waits_for_is_dropped() -> None:
    sender = Sender()
    sender.take(FAR, 3, sender.b)
    sender.out.wanted(sender.a, FAR, 1)
    sender.effects()
    sender.out.pruned(sender.a, FAR)
    sender.out.records_read(sender.a, FAR, [raw(FAR, 2)])
    sender.out.records_read(sender.a, FAR, [raw(FAR, 2)])
    assert records_of(sender.sent("a")) == []
    sender.out.wanted(sender.a, FAR, 1)
    sender.effects()
    sender.a.cursor[FAR] = 3
    sender.out.records_read(sender.a, FAR, [raw(FAR, 2)])
    assert records_of(sender.sent("a")) == []
    assert not sender.a.catch_up, "what it holds by now is not read again"


def records_of(frames: list[f.Frame]) -> list[f.Frame]:
    return [frame for frame in frames if isinstance(frame, f.Records)]


@pytest.mark.parametrize("raws", [None, [raw(FAR, 9, 5)]])
def test_a_log_that_does_not_reach_back_is_offered_as_a_snapshot(raws: list[bytes] | None) -> None:
    sender = Sender()
    sender.take(FAR, 9, sender.a)
    sender.effects()
    sender.out.wanted(sender.a, FAR, 1)
    sender.effects()
    sender.out.records_read(sender.a, FAR, raws)
    assert sender.sent("a") == [f.SnapshotOffer(FAR)]
    assert not sender.a.catch_up


def test_a_log_that_is_behind_is_asked_again_by_the_peer() -> None:
    sender = Sender()
    sender.take(FAR, 9, sender.a)
    sender.out.wanted(sender.a, FAR, 1)
    sender.effects()
    sender.out.records_read(sender.a, FAR, [])
    assert not sender.a.catch_up
    sender.out.announce(sender.a, 1)
    assert sender.sent("a") == [f.IHave({FAR: 9})]


def test_a_snapshot_is_scanned_page_by_page() -> None:
    sender = Sender()
    sender.take(FAR, 9, sender.a)
    sender.effects()
    sender.out.snapshot_wanted(sender.a, 4)
    row = RowOp(b"k\0\x02", 1, b"")
    sender.near.took_rows({FAR: 8, OWN: 5})
    held = {FAR: 9, OWN: 5}  # own rows that came before their records are passed on too
    ((node, after, _),) = sender.effects().scans
    assert (node, after) == ("a", b"")
    assert not sender.effects().scans, "one scan at a time"
    sender.out.rows_scanned(sender.a, b"other", [row])
    sender.out.rows_scanned(sender.a, b"", [row])
    frames = sender.effects()
    assert [f.decode_frame(data) for _, data in frames.frames] == [
        f.SnapshotRows(4, [tuple(row)], held)
    ]
    assert [scan[:2] for scan in frames.scans] == [("a", row.row_key)]
    late = sender.take(FAR, 10, sender.b)
    assert sender.a.waiting == {FAR: 1}, "it follows the snapshot"
    with pytest.raises(AssertionError, match="after the last key"):
        sender.out.rows_scanned(sender.a, row.row_key, [row])
    sender.a.snapshot_out.scanning = True  # type: ignore[union-attr]
    sender.out.rows_scanned(sender.a, row.row_key, [])
    assert sender.sent("a") == [f.SnapshotEnd(4, {FAR: 9})]
    assert sender.a.cursor == {FAR: 9}
    sender.out.announce(sender.a, 1)
    assert sender.sent("a") == [f.IHave({FAR: 10})], f"{late!r} is still to come"
    sender.out.rows_scanned(sender.a, b"", [row])
    assert sender.sent("a") == [], "no snapshot is under way"


def test_all_that_it_has_not_shown_is_announced_after_a_loss() -> None:
    sender = Sender()
    sender.near.vv.update({FAR: 9, 51: 3})
    sender.a.held = {51: 3}
    sender.out.announce_all(sender.a)
    assert sender.sent("a") == [f.IHave({FAR: 9})]
    sender.a.held[FAR] = 9
    sender.out.announce_all(sender.a)
    assert sender.sent("a") == []


def test_made_up_actors_are_bounded() -> None:
    sender = Sender()
    sender.a.choice = dict.fromkeys(range(f.ORIGINS_MAX), False)
    sender.out.wanted(sender.a, 5, 0)
    for refused in (
        lambda: sender.out.wanted(sender.a, f.ORIGINS_MAX, 0),
        lambda: sender.out.pruned(sender.a, f.ORIGINS_MAX),
    ):
        with pytest.raises(PeerError, match="a wants or prunes more than"):
            refused()
    assert f.ORIGINS_MAX not in sender.a.choice


@pytest.mark.parametrize(("keys", "most"), [(2, 3), (300, 300)])
def test_catching_up_joins_records_that_write_the_same_rows(keys: int, most: int) -> None:
    net = Network(["a", "b", "c"])
    for at in range(300):
        net.put("a", b"k%d" % (at % keys), b"v%d" % at)
    assert net.link("a", "b")
    assert net.link("b", "c")
    net.run_until_converged(3_000)
    assert net.stores["c"].vv == net.stores["a"].vv
    assert net.replicas["b"].peers["a"].received <= most
    net.put("a", b"k0", b"after")
    net.run_until_converged(1_000)
    assert net.copies()[1] == 0


def test_a_snapshot_on_its_way_out_is_known() -> None:
    replica = Replica(
        node="me", region="r", cluster="c", store_id=bytes(16), actor=OWN, vv={OWN: 50}
    )
    plain = f.Greeting(versions=(1,), cluster="c", node="a", actor=2, vv={2: 5})
    replica.link_up("a", plain, 1_000)
    assert not replica.gives_rows
    replica.receive("a", f.encode_frame(f.SnapshotWant(1)), 1_000)
    assert replica.gives_rows
    (scan,) = replica.take_effects().scans
    replica.rows_scanned("a", scan[1], [], 1_000)
    assert not replica.gives_rows


def test_no_snapshot_is_sent_while_rows_are_missing_here() -> None:
    """It would say that it has all of them; what was sent before may lack some too."""
    sender, lacking = Sender(), set[int]()
    sender.near.lacking = lambda: frozenset(lacking)
    sender.take(FAR, 9, sender.a)
    sender.effects()
    sender.out.snapshot_wanted(sender.a, 4)
    one, two = RowOp(b"k\0\x02", 1, b""), RowOp(b"l\0\x02", 1, b"")
    assert sender.effects().scans
    sender.out.rows_scanned(sender.a, b"", [one])
    assert [scan[:2] for scan in sender.effects().scans] == [("a", one.row_key)]
    lacking.add(7)
    sender.out.rows_scanned(sender.a, one.row_key, [])
    held = sender.effects()
    assert (held.scans, held.frames) == ([], []), "the end was said"
    sender.out.rows_scanned(sender.a, one.row_key, [])
    assert not sender.effects().frames
    lacking.clear()
    assert [scan[:2] for scan in sender.effects().scans] == [("a", b"")], "it begins anew"
    sender.out.rows_scanned(sender.a, b"", [one, two])
    assert sender.effects().scans
    sender.out.rows_scanned(sender.a, two.row_key, [])
    assert sender.sent("a") == [f.SnapshotEnd(4, {FAR: 9})]


def test_what_is_wanted_again_is_sent_as_it_was_written_whatever_the_peer_holds() -> None:
    sender = Sender()
    sender.take(FAR, 3, sender.a)
    sender.effects()
    sender.a.holds(FAR, 3)
    sender.out.wanted(sender.a, FAR, 1, again=True)
    sender.out.wanted(sender.a, OWN, 7, again=True)
    sender.near.vv[OWN] = 9
    assert [read[:3] for read in sender.effects().reads] == [("a", FAR, 1)]
    two, three, given_up = raw(FAR, 2), raw(FAR, 3), raw(FAR, 4)
    sender.out.records_read(sender.a, FAR, [two, three, given_up])
    effects = sender.effects()
    assert [f.decode_frame(data) for _, data in effects.frames] == [f.Records([two, three])]
    assert [read[:3] for read in effects.reads] == [("a", FAR, 3)]
    assert sender.a.cursor[FAR] == 3, "nothing else changes"
    sender.out.records_read(sender.a, FAR, [])
    effects = sender.effects()
    assert not effects.frames, "that was all"
    assert [read[:3] for read in effects.reads] == [("a", OWN, 7)]
    sender.out.records_read(sender.a, OWN, None)
    assert sender.sent("a") == [f.SnapshotOffer(OWN)], "the log is too short"
    assert not sender.a.again


def test_so_many_origins_are_sent_again_at_a_time() -> None:
    sender = Sender()
    for origin in range(AGAIN_MAX + 1):
        sender.out.wanted(sender.a, origin, 0, again=True)
    assert len(sender.a.again) == AGAIN_MAX
    assert not sender.a.choice
