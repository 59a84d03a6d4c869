"""What a replica keeps of one neighbour: state, mode, window, round trip time."""

from __future__ import annotations

import pytest

from roost_crdt.frames import Greeting
from roost_crdt.limits import Limits
from roost_crdt.peer import (
    CLOCKS_KEPT,
    HEARTBEATS_KEPT,
    RTT_GUESS_MS,
    LinkState,
    Mode,
    Peer,
    SnapshotIn,
    SnapshotOut,
)

LIMITS = Limits(heartbeat_ms=250, window_bytes=1_000)


def peer() -> Peer:
    greeting = Greeting(versions=(1,), cluster="c", node="x", actor=7)
    return Peer("x", greeting, LIMITS, up_ms=10_000, heard_ms=10_000)


@pytest.mark.parametrize(
    ("silent_ms", "state"),
    [
        (0, LinkState.UP),
        (374, LinkState.UP),
        (375, LinkState.SUSPECT),
        (749, LinkState.SUSPECT),
        (750, LinkState.DOWN),
    ],
)
def test_suspect_after_a_missed_heartbeat_down_after_three(
    silent_ms: int, state: LinkState
) -> None:
    assert peer().state(10_000 + silent_ms) is state


def test_the_mode_names_what_is_open() -> None:
    one = peer()
    assert one.mode is Mode.STREAM
    one.window_bytes = 1_000
    assert one.mode is Mode.PROBE
    one.window_bytes = 0
    one.catch_up[5] = None
    assert one.mode is Mode.PROBE
    one.snapshot_in = SnapshotIn(1, 0)
    assert one.mode is Mode.SNAPSHOT
    one.skew[5] = 1
    assert one.mode is Mode.CLOCK_SKEW
    one.skew.clear()
    one.told_ahead_ms = 3
    assert one.mode is Mode.CLOCK_SKEW
    assert [str(mode) for mode in Mode] == ["Probe", "Stream", "Snapshot", "Reseed", "ClockSkew"]


def test_one_frame_of_any_size_fits_a_window_that_is_nearly_empty() -> None:
    one = peer()
    assert one.room(5_000)
    one.window_bytes = 125
    assert one.room(5_000)
    one.window_bytes = 126
    assert not one.room(1_000)
    assert one.room(874)
    one.batch_bytes = 1
    assert not one.room(874)


def test_what_it_holds_only_grows() -> None:
    one = peer()
    one.holds(5, 10)
    one.holds(5, 8)
    one.cursor[5] = 30
    one.holds(5, 20)
    assert (one.held[5], one.cursor[5]) == (20, 30)


def test_the_round_trip_time_leaves_out_what_the_peer_held() -> None:
    one = peer()
    assert one.want_after_ms() == 2 * RTT_GUESS_MS + LIMITS.want_slack_ms
    assert one.one_way_ms() == RTT_GUESS_MS / 2
    first = one.heartbeat_sent(10_000)
    one.heartbeat_answered(first, held_ms=70, now_ms=10_100)
    assert one.rtt_ms == 30
    second = one.heartbeat_sent(10_250)
    one.heartbeat_answered(second, held_ms=0, now_ms=10_360)
    assert one.rtt_ms == 30 * 7 / 8 + 110 / 8
    assert one.want_after_ms() == 2 * 40 + 60
    assert one.one_way_ms() == 40 / 2


def test_a_snapshot_that_begins_again_stands_for_what_it_stood_for() -> None:
    out = SnapshotOut(3, {5: 9}, after=b"k", scanning=True)
    out.begin()
    assert out == SnapshotOut(3, {5: 9}, after=b"", scanning=False)


def test_an_answer_to_no_heartbeat_changes_nothing() -> None:
    one = peer()
    one.heartbeat_answered(5, 0, 10_000)
    assert one.rtt_ms is None
    for _ in range(2 * HEARTBEATS_KEPT):
        one.heartbeat_sent(10_000)
    assert len(one.heartbeats) == HEARTBEATS_KEPT
    one.heartbeat_answered(one.heartbeat_id, -500, 10_010)
    assert one.rtt_ms == 10
    assert not one.heartbeats


def test_of_the_last_clocks_the_one_that_was_least_under_way_counts() -> None:
    one = peer()
    assert one.clock_ahead_ms is None
    for ahead_ms in (-40, 7, -90):
        one.clocks.append(ahead_ms)
    assert one.clock_ahead_ms == 7
    for _ in range(CLOCKS_KEPT):
        one.clocks.append(-30)
    assert one.clock_ahead_ms == -30, "its clock was set back: the old ones are forgotten"
