"""The receiving half: which records are taken, what is asked for, of whom, when, and when not."""

from __future__ import annotations

import pytest
from inflow_kit import AHEAD_MS, FAR, FARTHER, NOW_MS, OWN, WANT_MS, Receiver, ahead, raw

from roost_crdt import frames as f
from roost_crdt.errors import PeerError
from roost_crdt.inflow import REFUSED_PAUSE_MS, WANT_DEFER_MS
from roost_crdt.neighbourhood import NO_WAKE_MS
from roost_crdt.peer import Mode
from roost_crdt.record import Record, RowOp, encode_record
from roost_crdt.rows.layout import TYPE_DOC

# -- records


@pytest.mark.parametrize(
    ("prev_hlc", "hlc", "taken"),
    [(5, 6, True), (5, 9, True), (3, 9, True), (0, 6, True), (4, 5, False), (2, 3, False)],
)
def test_a_record_is_taken_iff_it_extends_the_vector(prev_hlc: int, hlc: int, taken: bool) -> None:
    receiver = Receiver(vv={FAR: 5})
    data = raw(FAR, hlc, prev_hlc)
    receiver.records("a", data)
    effects = receiver.take()
    assert [written for written, _ in effects.writes] == ([data] if taken else [])
    assert receiver.near.vv == {FAR: hlc if taken else 5}
    assert (receiver["a"].received, receiver["a"].duplicates) == (taken, not taken)


def test_a_record_is_forwarded_to_all_but_who_brought_it() -> None:
    receiver = Receiver("abc")
    data = raw(FAR, 1)
    receiver.records("b", data)
    assert receiver.sent() == [("a", f.Records([data])), ("c", f.Records([data]))]


def test_a_gap_is_not_taken_and_asked_for_at_once() -> None:
    receiver = Receiver(vv={FAR: 5})
    receiver.records("a", raw(FAR, 9, 8))
    effects = receiver.take()
    assert not effects.writes
    assert receiver.near.vv == {FAR: 5}
    assert [f.decode_frame(data) for _, data in effects.frames] == [f.Want(FAR, 5)]
    receiver.records("a", raw(FAR, 10, 9))
    assert receiver.sent() == [], "the answer is under way"


@pytest.mark.parametrize(
    ("bad", "why"),
    [(b"\xc1", "a sent a record that cannot be read"), (raw(OWN, 9), "this node's own actor")],
)
def test_one_bad_record_refuses_all_that_came_with_it(bad: bytes, why: str) -> None:
    receiver = Receiver()
    with pytest.raises(PeerError, match=why):
        receiver.records("a", raw(FAR, 1), bad)
    effects = receiver.take()
    assert not effects.writes
    assert not effects.frames
    assert receiver.near.vv == {OWN: 7}


# -- prune


def test_of_two_that_bring_the_same_the_later_is_told_to_stop() -> None:
    receiver = Receiver()
    receiver.records("a", raw(FAR, 1))
    receiver.take()
    receiver.records("b", raw(FAR, 1))
    assert receiver.sent() == [("b", f.Prune(FAR))]


def test_the_origin_itself_is_never_told_to_stop() -> None:
    receiver = Receiver()
    origin = receiver["b"].greeting.actor
    receiver.records("a", raw(origin, 1))
    receiver.take()
    receiver.records("b", raw(origin, 1))
    assert receiver.sent() == [("a", f.Prune(origin))]


def test_a_peer_that_repeats_itself_is_still_needed() -> None:
    receiver = Receiver()
    receiver.records("a", raw(FAR, 1))
    receiver.take()
    receiver.records("a", raw(FAR, 1))
    assert receiver.sent() == []
    assert receiver["a"].duplicates == 1


def test_what_is_known_from_before_prunes_nobody() -> None:
    receiver = Receiver(vv={FAR: 5})
    receiver.records("a", raw(FAR, 5))
    assert receiver.sent() == [], "no other link has brought it"


def test_what_was_under_way_when_one_was_pruned_does_not_prune_the_other() -> None:
    receiver = Receiver("abc")
    receiver.records("a", raw(FAR, 1))
    receiver.records("b", raw(FAR, 2))
    receiver.take()
    receiver.records("a", raw(FAR, 2))
    assert receiver.sent() == [("a", f.Prune(FAR))], "b brought the newest"
    receiver.records("a", raw(FAR, 3))
    receiver.take()
    receiver.records("b", raw(FAR, 3))
    assert receiver.sent() == [], "a stops already: without b nobody would send it"
    receiver.now_ms += WANT_MS
    receiver.records("b", raw(FAR, 3))
    assert receiver.sent() == [("b", f.Prune(FAR))], "a goes on, so b may stop"


def test_a_peer_that_is_gone_is_no_reason_to_prune() -> None:
    receiver = Receiver()
    receiver.records("a", raw(FAR, 1))
    receiver.records("b", raw(FARTHER, 1))
    receiver.take()
    receiver.unlink("a")
    receiver.records("b", raw(FAR, 1))
    assert receiver.sent() == []
    receiver.link("c")
    receiver.records("c", raw(FARTHER, 1))
    assert receiver.sent() == [("c", f.Prune(FARTHER))], "b still brings the other origin"


# -- asking


def test_a_new_link_is_asked_for_all_that_it_is_ahead_in() -> None:
    receiver = Receiver("", {FAR: 5, FARTHER: 5})
    receiver.link("a", vv={FAR: 9, FARTHER: 4, 60: 1})
    assert receiver.sent() == [("a", f.Want(FAR, 5)), ("a", f.Want(60, 0))]


def test_what_one_link_was_just_asked_for_a_second_is_not() -> None:
    receiver = Receiver("")
    receiver.link("a", vv={FAR: 9})
    receiver.link("b", vv={FAR: 9})
    assert receiver.sent() == [("a", f.Want(FAR, 0))]


def test_an_announcement_is_asked_for_only_when_it_stays_ahead() -> None:
    receiver = Receiver()
    receiver.shown("a", FAR, 3)
    assert receiver.sent() == [], "it may be under way from anybody"
    assert receiver.inflow.wake_ms() == NOW_MS + WANT_MS
    assert receiver.wait(WANT_MS - 1) == []
    assert receiver.wait(1) == [("a", f.Want(FAR, 0))]


def test_what_is_announced_and_comes_is_not_asked_for() -> None:
    receiver = Receiver()
    receiver.shown("a", FAR, 3)
    receiver.records("b", raw(FAR, 3, 0))
    receiver.take()
    assert receiver.inflow.wake_ms() == NO_WAKE_MS
    assert receiver.wait(10_000) == []


def test_progress_puts_off_the_question_and_does_not_end_the_lack() -> None:
    receiver = Receiver()
    receiver.shown("a", FAR, 3)
    receiver.now_ms += WANT_MS - 10
    receiver.records("b", raw(FAR, 2, 0))
    receiver.take()
    assert receiver.wait(WANT_MS - 1) == []
    assert receiver.wait(1) == [("a", f.Want(FAR, 2))]


def test_each_that_holds_it_is_asked_in_turn_the_quickest_first() -> None:
    receiver = Receiver("abcd")
    receiver["a"].rtt_ms, receiver["b"].rtt_ms, receiver["c"].rtt_ms = 300.0, 20.0, 100.0
    for node in "abc":
        receiver.shown(node, FAR, 3)
    asked = []
    for _ in range(5_000):
        asked += receiver.wait(1)
    order = [node for node, frame in asked if frame == f.Want(FAR, 0)]
    assert order[:6] == ["b", "c", "a", "b", "c", "a"], "and never d, which does not hold it"
    assert len(order) == len(asked)


def test_who_is_busy_with_other_origins_is_waited_for_but_not_for_ever() -> None:
    receiver = Receiver()
    receiver.shown("a", FAR, 3)
    receiver.shown("b", FAR, 3)
    assert receiver.wait(WANT_MS) == [("a", f.Want(FAR, 0))]
    hlc, asked_ms, frames = 0, receiver.now_ms, []
    while receiver.now_ms < asked_ms + WANT_DEFER_MS + WANT_MS:
        assert not frames, f"asked another after {receiver.now_ms - asked_ms} ms"
        hlc += 1
        receiver.records("a", raw(FARTHER, hlc))
        receiver.take()
        frames = receiver.wait(min(100, asked_ms + WANT_DEFER_MS + WANT_MS - receiver.now_ms))
    assert frames == [("b", f.Want(FAR, 0))]


def test_a_link_that_goes_takes_its_lack_and_its_turn_along() -> None:
    receiver = Receiver()
    receiver.shown("a", FAR, 3)
    receiver.shown("a", FARTHER, 3)
    receiver.shown("b", FAR, 2)
    assert receiver.wait(WANT_MS)[0] == ("a", f.Want(FAR, 0))
    receiver.unlink("a")
    assert receiver.wait(1) == [("b", f.Want(FAR, 0))]
    receiver.unlink("b")
    assert receiver.inflow.wake_ms() == NO_WAKE_MS, "nobody holds more than this node"
    assert receiver.inflow.lag_ms(receiver.now_ms) == 0


def test_a_peer_may_not_show_more_actors_than_a_vector_has() -> None:
    receiver = Receiver()
    receiver.inflow.announced(receiver["a"], dict.fromkeys(range(100, 200), 1), NOW_MS)
    full = dict.fromkeys(range(200, 200 + f.ORIGINS_MAX - 100), 1)
    receiver.inflow.announced(receiver["a"], full, NOW_MS)
    with pytest.raises(PeerError, match="a announces more than 65536 actors"):
        receiver.shown("a", 5, 1)
    assert 5 not in receiver["a"].held


@pytest.mark.parametrize("hlc", [6, 7])
def test_who_knows_no_more_of_this_actor_is_not_behind_it(hlc: int) -> None:
    receiver = Receiver()
    receiver.shown("a", OWN, hlc)
    effects = receiver.take()
    assert not effects.rollbacks
    assert not effects.cuts
    assert receiver["a"].held == {OWN: hlc}


def test_who_knows_more_of_this_actor_than_it_does_is_told_and_cut() -> None:
    receiver = Receiver()
    receiver.shown("a", OWN, 8)
    receiver.shown("a", OWN, 8)
    effects = receiver.take()
    assert effects.rollbacks == [("a", OWN, 8)], "named once"
    assert {node for node, _ in effects.cuts} == {"a"}
    assert receiver.inflow.wake_ms() == NO_WAKE_MS, "own records are asked of nobody"


# -- lag


def test_the_lag_counts_from_when_all_that_was_reported_was_held() -> None:
    receiver = Receiver()
    inflow, a, b = receiver.inflow, receiver["a"], receiver["b"]
    assert (inflow.lag_ms(NOW_MS), inflow.peer_lag_ms(a, NOW_MS)) == (0, 0)
    receiver.shown("a", FAR, 3)
    receiver.now_ms += 50
    receiver.shown("a", FAR, 4)
    receiver.shown("b", FARTHER, 1)
    now_ms = NOW_MS + 80
    assert inflow.lag_ms(now_ms) == 80
    assert (inflow.peer_lag_ms(a, now_ms), inflow.peer_lag_ms(b, now_ms)) == (80, 30)
    receiver.records("b", raw(FAR, 4, 0))
    assert (inflow.peer_lag_ms(a, now_ms), inflow.peer_lag_ms(b, now_ms)) == (0, 30)
    receiver.records("b", raw(FARTHER, 1, 0))
    assert inflow.lag_ms(now_ms) == 0


# -- clocks


def test_a_record_at_the_edge_of_the_offset_is_taken() -> None:
    receiver = Receiver()
    receiver.records("a", raw(FAR, ahead(AHEAD_MS), 0))
    assert receiver.near.vv[FAR] == ahead(AHEAD_MS)
    assert receiver["a"].mode is Mode.STREAM


def test_a_record_from_the_future_waits_until_its_time() -> None:
    receiver = Receiver()
    future = ahead(AHEAD_MS + 1_000)
    receiver.records("a", raw(FAR, future, 0), raw(FAR, future + 1))
    assert receiver["a"].mode is Mode.CLOCK_SKEW
    assert receiver.sent() == [("a", f.Prune(FAR))], "once: more of it would be no use"
    assert FAR not in receiver.near.vv
    assert receiver.inflow.wake_ms() == NOW_MS + 1_000
    assert receiver.wait(999) == []
    assert receiver.wait(1) == [("a", f.Want(FAR, 0))]
    assert receiver["a"].mode is Mode.STREAM


def test_a_gap_behind_a_record_from_the_future_is_not_asked_of_the_same_peer() -> None:
    receiver = Receiver()
    future = ahead(AHEAD_MS + 1_000)
    receiver.records("a", raw(FAR, future, 0))
    receiver.take()
    receiver.records("a", raw(FAR, 9, 5))
    assert receiver.sent() == []


def test_another_peer_may_have_the_part_that_is_not_from_the_future() -> None:
    receiver = Receiver()
    receiver.records("a", raw(FAR, ahead(AHEAD_MS + 1_000), 0))
    receiver.shown("b", FAR, 4)
    receiver.take()
    assert receiver.wait(WANT_MS) == [("b", f.Want(FAR, 0))]


def test_a_wait_that_others_have_filled_ends_without_a_question() -> None:
    receiver = Receiver()
    future = ahead(AHEAD_MS + 1_000)
    receiver.records("a", raw(FAR, future, 0))
    receiver.take()
    receiver.now_ms += 999
    receiver.near.wall_ahead_ms = 1
    receiver.records("b", raw(FAR, future, 0))
    receiver.take()
    assert receiver.wait(1) == []
    assert receiver["a"].mode is Mode.STREAM


def test_the_wall_clock_and_not_the_ticking_one_judges_a_record() -> None:
    receiver = Receiver()
    receiver.near.wall_ahead_ms = 5_000
    receiver.records("a", raw(FAR, ahead(AHEAD_MS + 5_000), 0))
    assert receiver.near.vv[FAR] == ahead(AHEAD_MS + 5_000)
    receiver.records("a", raw(FARTHER, ahead(AHEAD_MS + 6_000), 0))
    assert FARTHER not in receiver.near.vv
    assert receiver.inflow.wake_ms() == NOW_MS + 1_000


# -- a store that refuses


def test_a_refused_write_is_taken_back_and_asked_for_after_a_pause() -> None:
    receiver = Receiver()
    receiver.records("a", raw(FAR, 1), raw(FAR, 2))
    receiver.take()
    receiver.inflow.refused(FAR, 1, receiver.now_ms)
    assert receiver.near.vv[FAR] == 1
    assert receiver.inflow.wake_ms() == NOW_MS + REFUSED_PAUSE_MS
    assert receiver.wait(REFUSED_PAUSE_MS - 1) == []
    assert receiver.wait(1) == [("a", f.Want(FAR, 1))]
    receiver.records("a", raw(FAR, 2))
    assert receiver.near.vv[FAR] == 2


def test_nothing_is_taken_or_asked_for_in_the_pause() -> None:
    receiver = Receiver()
    receiver.records("a", raw(FAR, 1))
    receiver.take()
    receiver.inflow.refused(FAR, 0, receiver.now_ms)
    receiver.records("b", raw(FARTHER, 1), raw(60, 9, 5))
    effects = receiver.take()
    assert not effects.writes
    assert not effects.frames
    receiver.link("c", vv={61: 4})
    assert receiver.sent() == []
    later = receiver.wait(REFUSED_PAUSE_MS)
    assert sorted(frame.origin for _, frame in later if isinstance(frame, f.Want)) == [
        FAR,
        FARTHER,
        60,
        61,
    ]


def test_a_refused_write_of_this_node_is_nothing_that_others_hold() -> None:
    receiver = Receiver()
    receiver["a"].holds(OWN, 7)
    receiver.inflow.refused(OWN, 6, receiver.now_ms)
    assert receiver.near.vv[OWN] == 6
    assert receiver.inflow.wake_ms() == NO_WAKE_MS


def test_what_nobody_up_holds_is_not_lacking_after_a_refusal() -> None:
    receiver = Receiver()
    receiver.records("a", raw(FAR, 1))
    receiver.unlink("a")
    receiver.inflow.refused(FAR, 0, receiver.now_ms)
    assert receiver.inflow.wake_ms() == NO_WAKE_MS
    assert receiver.inflow.lag_ms(NOW_MS + 9) == 0


def test_the_origin_itself_is_given_the_time_of_its_own_way() -> None:
    """A detour may be quicker: what comes over it is announced first, and not asked for."""
    receiver = Receiver("ab")
    receiver.near.nodes[FAR] = "b"
    receiver["a"].rtt_ms, receiver["b"].rtt_ms = 2.0, 400.0
    receiver.shown("a", FAR, 9)
    slack_ms = receiver.near.limits.want_slack_ms
    assert receiver.inflow.wake_ms() == receiver.now_ms + 200 + slack_ms
    assert receiver.wait(199 + slack_ms) == []
    assert receiver.wait(1) == [("a", f.Want(FAR, 0))]


def test_a_record_with_too_much_of_documents_is_refused_before_it_is_read() -> None:
    receiver = Receiver()
    rows = [RowOp(b"doc:%d\0\x0b" % at, TYPE_DOC, bytes(1 << 20)) for at in range(3)]
    record = encode_record(Record(FAR, 9, 8, tuple(rows)))
    bound = r"3145728 bytes of rows of documents; at most 2097152"
    with pytest.raises(PeerError, match=bound):
        receiver.records("a", record)


# -- an own actor with two histories


def test_another_history_of_a_given_up_actor_is_asked_for_and_handed_on() -> None:
    receiver = Receiver(vv={FAR: 9})
    receiver.near.parted = {FAR: 5, FARTHER: 5}
    receiver.near.vv[FARTHER] = 5
    peer = receiver.link("c", {FAR: 8, FARTHER: 5})
    assert receiver.sent() == [("c", f.Want(FAR, 5, again=True))], "nobody else has more"
    assert peer.pulls == {FAR: 8}
    other, last = raw(FAR, 6, 5), raw(FAR, 8, 6)
    receiver.records("c", other)
    assert peer.pulls
    receiver.records("c", last)
    assert not peer.pulls
    assert [written for written, _ in receiver.take().writes] == [other, last]
    assert (peer.duplicates, receiver.near.vv[FAR]) == (0, 9)


def test_a_log_that_is_too_short_ends_the_asking() -> None:
    receiver = Receiver(vv={FAR: 9})
    receiver.near.parted = {FAR: 5}
    peer = receiver.link("c", {FAR: 8})
    receiver.inflow.offered(peer, FAR, NOW_MS)
    assert not peer.pulls


@pytest.mark.parametrize("hlc", [NO_WAKE_MS, (1 << 64) - 1])
def test_a_record_above_all_clocks_of_which_nothing_was_pulled_waits_like_any_other(
    hlc: int,
) -> None:
    receiver = Receiver()
    receiver.records("a", raw(FAR, 1), raw(FAR, hlc, 1))
    assert [record.hlc for _, record in receiver.take().writes] == [1]
    assert receiver.near.vv[FAR] == 1
    assert not receiver["a"].pulls
    receiver["a"].pulls[FAR] = 9
    receiver.records("a", raw(FAR, hlc, 1))
    assert not receiver["a"].pulls, "it shows that all that was asked for has come"
