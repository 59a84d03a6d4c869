"""The receiving half: rows in place of a log, and the moments at which it wakes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inflow_kit import AHEAD_MS, FAR, FARTHER, NOW_MS, OWN, WANT_MS, Receiver, ahead, raw, row

from roost_crdt import frames as f
from roost_crdt.errors import PeerError
from roost_crdt.hlc import hlc_from_ms
from roost_crdt.inflow import REFUSED_PAUSE_MS, SNAPSHOT_STALL_MS
from roost_crdt.neighbourhood import NO_WAKE_MS
from roost_crdt.peer import Mode

# -- snapshots


def test_an_empty_node_takes_the_rows_of_one_that_has_collected() -> None:
    receiver = Receiver("", {})
    receiver.link("a", vv={FAR: 9}, floor={FAR: 4})
    assert receiver.sent() == [("a", f.SnapshotWant(1))], "its log alone would lack the floor"
    receiver.rows("a", 1, [row(3)])
    receiver.rows_end("a", 1, {FAR: 9})
    effects = receiver.take()
    assert [covered for _, covered in effects.rows] == [{}, {FAR: 9}]
    assert receiver.near.gc_floor == {FAR: 4}


@pytest.mark.parametrize(("vv", "floor"), [({OWN: 7}, {FAR: 4}), ({}, {}), ({}, {FAR: 0})])
def test_the_log_will_do_for_one_that_holds_something_or_where_nothing_was_collected(
    vv: dict[int, int], floor: dict[int, int]
) -> None:
    receiver = Receiver("", vv)
    receiver.link("a", vv={FAR: 9}, floor=floor)
    assert receiver.sent() == [("a", f.Want(FAR, 0))]


def test_an_offer_is_accepted_where_something_lacks_and_one_at_a_time() -> None:
    receiver = Receiver()
    receiver.inflow.offered(receiver["a"], FAR, NOW_MS)
    assert receiver.sent() == [], "nothing lacks"
    assert receiver.snapshot_from("a") == 1
    assert receiver["a"].mode is Mode.SNAPSHOT
    receiver.shown("b", FAR, 9)
    receiver.inflow.offered(receiver["b"], FAR, NOW_MS)
    assert receiver.sent() == [], "one snapshot fills it"
    assert receiver.wait(SNAPSHOT_STALL_MS - 1) == [], "and nothing is asked for meanwhile"


def test_rows_are_taken_without_a_vector_and_the_end_says_what_they_cover() -> None:
    receiver = Receiver("abc")
    asked = receiver.snapshot_from("a")
    receiver.rows("a", asked, [row(3), row(4, b"l")], {OWN: 7, FAR: 9})
    receiver.rows("a", asked, [row(3)], {OWN: 6, FAR: 11})
    receiver.rows("a", asked, [], {FAR: 99})
    assert receiver.near.rows_vv == {OWN: 7, FAR: 11}, "rows may show what the end does not cover"
    (ops, covered), _ = receiver.take().rows
    assert ([tuple(op) for op in ops], covered) == ([row(3), row(4, b"l")], {})
    assert FAR not in receiver.near.vv, "a snapshot that breaks off claims nothing"
    receiver.rows_end("a", asked, {OWN: 7, FAR: 9, FARTHER: 2})
    effects = receiver.take()
    assert effects.rows == [((), {FAR: 9, FARTHER: 2})], "own records need nobody's word"
    assert receiver.near.vv == {OWN: 7, FAR: 9, FARTHER: 2}
    assert receiver["a"].mode is Mode.STREAM
    assert receiver.inflow.wake_ms() == NO_WAKE_MS
    assert receiver["b"].announce == receiver["c"].announce == {FAR, FARTHER}
    assert not receiver["a"].announce


def test_an_end_never_takes_back_what_is_held_or_collected() -> None:
    receiver = Receiver("", {OWN: 7, FAR: 20})
    receiver.near.gc_floor = {FAR: 8, OWN: 1}
    peer = receiver.link("a", floor={FAR: 6, FARTHER: 2})
    receiver.shown("a", FARTHER, 3)
    receiver.inflow.offered(peer, FARTHER, NOW_MS)
    receiver.take()
    receiver.rows_end("a", 1, {FAR: 9, FARTHER: 3})
    assert receiver.near.vv == {OWN: 7, FAR: 20, FARTHER: 3}
    assert receiver.near.gc_floor == {FAR: 8, OWN: 1, FARTHER: 2}


def test_rows_that_were_not_asked_for_are_ignored() -> None:
    receiver = Receiver()
    receiver.rows("a", 1, [(b"garbage", 1, b"")])
    receiver.rows_end("a", 1, {FAR: 9})
    asked = receiver.snapshot_from("a")
    receiver.rows("a", asked + 1, [(b"garbage", 1, b"")])
    receiver.rows_end("a", asked + 1, {FAR: 9})
    receiver.rows("b", asked, [row()])
    receiver.rows_end("b", asked, {FAR: 9})
    assert not receiver.take().rows
    assert receiver.near.vv == {OWN: 7}
    assert receiver["a"].mode is Mode.SNAPSHOT


@pytest.mark.parametrize("bad", [(b"garbage", 1, b""), (row()[0], 1, b"\xc1")])
def test_a_page_with_one_unreadable_row_is_refused_whole(bad: tuple[bytes, int, bytes]) -> None:
    receiver = Receiver()
    asked = receiver.snapshot_from("a")
    with pytest.raises(PeerError, match="a sent a row that cannot be read"):
        receiver.rows("a", asked, [row(), bad])
    assert not receiver.take().rows


def test_a_snapshot_that_stalls_is_asked_for_anew_and_the_old_one_is_void() -> None:
    receiver = Receiver()
    asked = receiver.snapshot_from("a")
    receiver.now_ms += SNAPSHOT_STALL_MS - 1
    receiver.rows("a", asked, [row()])
    receiver.take()
    assert receiver.inflow.wake_ms() == receiver.now_ms + SNAPSHOT_STALL_MS
    assert receiver.wait(SNAPSHOT_STALL_MS - 1) == [], "rows are progress"
    assert receiver.wait(1) == [("a", f.SnapshotWant(asked + 1))]
    receiver.rows_end("a", asked, {FAR: 9})
    assert FAR not in receiver.near.vv


def test_a_refused_row_gives_the_snapshot_up() -> None:
    receiver = Receiver()
    asked = receiver.snapshot_from("a")
    receiver.rows("a", asked, [row()])
    receiver.inflow.refused(OWN, 7, receiver.now_ms)
    receiver.rows_end("a", asked, {FAR: 9})
    assert FAR not in receiver.near.vv, "a row is missing"
    assert receiver.wait(REFUSED_PAUSE_MS) == [("a", f.Want(FAR, 0))]


@pytest.mark.parametrize("where", ["row", "end"])
def test_a_snapshot_from_the_future_is_void_and_asked_for_again_in_time(where: str) -> None:
    receiver = Receiver()
    asked = receiver.snapshot_from("a")
    future = ahead(AHEAD_MS + 20_000)
    if where == "row":
        receiver.rows("a", asked, [row(1), row(future)])
    receiver.rows_end("a", asked, {FAR: future})
    assert not receiver.take().rows
    assert FAR not in receiver.near.vv
    assert receiver["a"].mode is Mode.CLOCK_SKEW
    assert receiver.wait(19_999) == []
    assert receiver.inflow.wake_ms() == NOW_MS + 20_000
    (again,) = receiver.wait(1)
    assert again == ("a", f.SnapshotWant(asked + 2))
    receiver.rows("a", asked + 2, [row(future)])
    receiver.rows_end("a", asked + 2, {FAR: future})
    assert receiver.near.vv[FAR] == future


def test_a_snapshot_that_waits_for_its_time_does_not_hold_up_other_neighbours() -> None:
    receiver = Receiver()
    asked = receiver.snapshot_from("a")
    receiver.shown("b", FARTHER, 2)
    receiver.rows("a", asked, [row(ahead(AHEAD_MS + 3_600_000))])
    receiver.take()
    receiver.shown("b", FAR, 4)
    receiver.now_ms += WANT_MS
    assert receiver.wait(0) == [("b", f.Want(FAR, 0)), ("b", f.Want(FARTHER, 0))]
    receiver.inflow.offered(receiver["b"], FAR, receiver.now_ms)
    assert receiver.sent() == [("b", f.SnapshotWant(asked + 2))]


def test_a_peer_whose_snapshot_waits_for_its_time_is_not_made_to_scan_again_and_again() -> None:
    receiver = Receiver()
    asked = receiver.snapshot_from("a")
    receiver.rows("a", asked, [row(ahead(AHEAD_MS + 60_000))])
    receiver.take()
    receiver.shown("a", FARTHER, 2)
    frames = []
    for _ in range(59):
        for node, frame in receiver.wait(1_000):
            frames.append((node, frame))
            if isinstance(frame, f.Want):
                receiver.inflow.offered(receiver[node], frame.origin, receiver.now_ms)
        frames += receiver.sent()
    assert frames == [("a", f.Want(FARTHER, 0))]
    assert receiver.wait(1_000)[0] == ("a", f.SnapshotWant(asked + 2))


# -- the wake-up


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["shown", "record", "gap", "future", "offer", "rows", "end", "refuse"]),
        st.sampled_from("abc"),
        st.integers(FAR, FAR + 2),
        st.integers(0, 400),
    ),
    max_size=25,
)


def apply_step(receiver: Receiver, kind: str, node: str, origin: int) -> None:
    have = receiver.near.vv.get(origin, 0)
    taking = receiver[node].snapshot_in
    match kind:
        case "shown":
            receiver.shown(node, origin, have + 2)
        case "record":
            receiver.records(node, raw(origin, have + 1, have))
        case "gap":
            receiver.records(node, raw(origin, have + 5, have + 3))
        case "future":
            hlc = hlc_from_ms(receiver.now_ms + AHEAD_MS + 300)
            receiver.records(node, raw(origin, hlc, have))
        case "offer":
            receiver.inflow.offered(receiver[node], origin, receiver.now_ms)
        case "rows" if taking is not None:
            receiver.rows(node, taking.id, [row(hlc_from_ms(receiver.now_ms + AHEAD_MS + 300))])
        case "end" if taking is not None:
            receiver.rows_end(node, taking.id, {origin: have + 1})
        case "refuse":
            receiver.inflow.refused(origin, have, receiver.now_ms)


@given(STEPS)
def test_nothing_is_due_before_the_wake_up_and_something_lacking_never_sleeps_for_ever(
    steps: list[tuple[str, str, int, int]],
) -> None:
    receiver = Receiver("abc")
    for kind, node, origin, pause_ms in steps:
        apply_step(receiver, kind, node, origin)
        receiver.take()
        wake_ms = receiver.inflow.wake_ms()
        later_ms = receiver.now_ms + pause_ms
        frames = receiver.wait(pause_ms)
        assert not frames or wake_ms <= later_ms
        assert receiver.inflow.wake_ms() > later_ms
        if receiver.inflow.lag_ms(receiver.now_ms):
            assert receiver.inflow.wake_ms() <= later_ms + 2 * SNAPSHOT_STALL_MS


# -- joining again


def joining(floor: dict[int, int]) -> Receiver:
    """One that gave up its rows for somebody who had collected up to `floor`."""
    receiver = Receiver("", {OWN: 7})
    receiver.near.restart(OWN, floor)
    return receiver


def greeting(vv: dict[int, int], floor: dict[int, int] | None = None) -> f.Greeting:
    return f.Greeting(versions=(1,), cluster="c", node="z", actor=30, vv=vv, gc_floor=floor or {})


def test_who_is_behind_what_is_joined_is_refused_until_its_rows_are_here() -> None:
    receiver = joining({FAR: 8})
    with pytest.raises(PeerError, match="Reseed: me takes rows that z is behind; try again"):
        receiver.inflow.check_joining("z", greeting({FAR: 7}))
    receiver.inflow.check_joining("z", greeting({FAR: 8}))
    receiver.inflow.check_joining("z", greeting({}))
    receiver.link("a", vv={FAR: 9}, floor={FAR: 8})
    receiver.take()
    receiver.rows_end("a", 1, {FAR: 9})
    assert receiver.near.joins == {}
    receiver.inflow.check_joining("z", greeting({FAR: 7}))


def test_rows_of_who_is_behind_a_newcomer_are_not_joined_with_its_rows() -> None:
    receiver = Receiver("", {})
    receiver.link("a", vv={FAR: 5})
    with pytest.raises(PeerError, match="takes the rows of a, who is behind what z has collected"):
        receiver.inflow.check_joining("z", greeting({FAR: 9}, {FAR: 6}))
    receiver.inflow.check_joining("z", greeting({FAR: 9}, {FAR: 5}))
    settled = Receiver("", {FAR: 5})
    settled.link("a", vv={FAR: 5})
    settled.inflow.check_joining("z", greeting({FAR: 9}, {FAR: 6}))


def test_records_below_the_floor_of_what_is_joined_wait_for_the_rows() -> None:
    """They may be older than what was collected there, and would bring it back."""
    receiver = joining({FAR: 8})
    receiver.link("a", vv={FAR: 9}, floor={FAR: 8})
    receiver.link("b", vv={FAR: 9})
    assert [frame for _, frame in receiver.sent()] == [f.SnapshotWant(1)]
    receiver.records("b", raw(FAR, 8, 0))
    assert not receiver.take().writes
    receiver.rows_end("a", 1, {FAR: 8})
    receiver.records("b", raw(FAR, 9, 8))
    assert [record.hlc for _, record in receiver.take().writes] == [9]


def test_a_snapshot_brings_the_floor_of_its_end() -> None:
    receiver = Receiver("", {})
    receiver.link("a", vv={FAR: 9}, floor={FAR: 4})
    receiver.take()
    end = f.SnapshotEnd(1, {FAR: 9}, {FAR: 6, FARTHER: 1})
    receiver.inflow.rows_end(receiver["a"], end, receiver.now_ms)
    assert receiver.near.gc_floor == {FAR: 6, FARTHER: 1}


def test_whoever_is_joined_again_is_asked_whatever_becomes_of_links() -> None:
    receiver = joining({FAR: 8})
    receiver.link("a", vv={FAR: 9}, floor={FAR: 8})
    receiver.unlink("a")
    assert receiver.near.joins == {FAR: 8}
    receiver.link("b", vv={FAR: 9})
    assert receiver.sent()[-1] == ("b", f.SnapshotWant(2))
    receiver.rows_end("b", 2, {FAR: 7})
    receiver.take()
    assert receiver.wait(1)[0] == ("b", f.SnapshotWant(3)), "what came covers too little"


def test_a_newcomer_whose_links_are_gone_begins_with_whoever_comes_next() -> None:
    receiver = Receiver("", {})
    receiver.link("a", vv={FAR: 9}, floor={FAR: 8})
    receiver.unlink("a")
    assert receiver.near.joins == {}
    receiver.link("b", vv={FAR: 7})
    assert ("b", f.Want(FAR, 0)) in receiver.sent()


def test_while_a_snapshot_is_taken_nothing_else_is_asked_for() -> None:
    """It may bring what lacks; what it does not bring is asked for when it has ended."""
    receiver = Receiver("ab", vv={OWN: 7})
    taken = receiver.snapshot_from("a")
    receiver.shown("b", FARTHER, 9)
    for _ in range(4):
        assert receiver.wait(WANT_MS) == []
    receiver.rows_end("a", taken, {FAR: 9})
    assert ("b", f.Want(FARTHER, 0)) in receiver.wait(WANT_MS)
