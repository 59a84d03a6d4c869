"""What a node does for its sessions with time: page by page, standby by standby, one by one."""

from __future__ import annotations

import msgspec
import pytest
from session_network import Network, Node, held_by_both

from roost_crdt.home import Deposed, Erase, Frame, Merge, Offer, Update, Whole, decode_frame
from roost_crdt.sessions import stream
from roost_crdt.sessions.outbox import MERGE_AGAIN_MS

SID = "s1"


def sent_by(node: Node) -> list[tuple[str, Frame]]:
    node.rows.flush()
    return [(to, decode_frame(frame)) for to, frame in node.stream.take_frames()]


def test_a_step_goes_to_the_standby_and_to_whoever_is_to_be_the_next() -> None:
    network = Network(("eu", "us"))
    network.cut("eu", "us")
    eu = network["eu"]
    eu.stream.begin(SID)
    eu.write(SID, "one")
    assert sent_by(eu) == [], "there is nobody to send it to"
    network.cut_at.clear()
    eu.stream.tick()
    ((to, whole),) = sent_by(eu)
    assert isinstance(whole, Whole)
    eu.write(SID, "two")
    ((also_to, update),) = sent_by(eu)
    assert (to, also_to) == ("us", "us")
    assert isinstance(update, Update)
    assert update.n == whole.n + 1
    assert eu.live(SID).meta.standby is None, "it has said nothing yet"


def test_sessions_that_nobody_can_take_are_left_alone() -> None:
    network = Network(("eu", "us"))
    network.cut("eu", "us")
    eu = network["eu"]
    for number in range(3):
        eu.stream.begin(f"s{number}")
        eu.write(f"s{number}", "one")
    sent_by(eu)
    eu.live("s1")
    used = list(eu.shelf.lives)
    eu.stream.tick()
    assert list(eu.shelf.lives) == used, "none was asked for"
    assert sent_by(eu) == []
    network.cut_at.clear()
    eu.stream.tick()
    assert {to for to, _ in sent_by(eu)} == {"us"}


def test_protected_means_that_the_loss_of_home_costs_one_turn_at_most() -> None:
    network = held_by_both(SID)
    eu, us = network["eu"], network["us"]
    assert eu.stream.protected(eu.live(SID))
    assert us.stream.protected(us.live(SID)), "the copy itself is the evidence"
    eu.write(SID, "two")
    assert eu.stream.protected(eu.live(SID)), "but the newest"
    eu.write(SID, "three")
    assert not eu.stream.protected(eu.live(SID))
    eu.flush()
    network.deliver_all()
    assert eu.stream.protected(eu.live(SID))
    network.cut("eu", "us")
    assert not eu.stream.protected(eu.live(SID)), "its standby is not up"


def test_whoever_waits_for_a_step_is_called_at_once_where_it_is_held() -> None:
    network = held_by_both(SID)
    eu = network["eu"]
    called: list[int] = []
    live = eu.live(SID)
    eu.stream.when_held(live, live.meta.n, lambda: called.append(1))
    eu.write(SID, "two")
    eu.stream.when_held(live, live.meta.n, lambda: called.append(2))
    assert called == [1]
    eu.flush()
    network.deliver_all()
    assert called == [1, 2]


def test_who_knows_more_does_not_adopt_what_is_handed_over() -> None:
    network = held_by_both(SID)
    eu, us = network["eu"], network["us"]
    frame = eu.stream.handover(eu.live(SID), "us")
    old = msgspec.structs.replace(frame, epoch=(1, "us"))
    us.shelf.learn(SID, (2, "ap"), "eu")
    before = us.live(SID).meta
    assert before.epoch > old.epoch
    assert not us.stream.adopt(old)
    assert us.live(SID).meta.unmerged, "a home that it never heard of may lack its turns"
    assert not us.stream.adopt(msgspec.structs.replace(frame, epoch=(9, "us")))
    assert us.live(SID).meta == before
    us.stream.erase_here(SID, 7)
    assert not us.stream.adopt(msgspec.structs.replace(frame, epoch=(99, "us")))
    assert us.shelf.live(SID) is None


def test_turns_of_a_former_home_are_sent_again_until_they_are_merged() -> None:
    network = held_by_both(SID)
    network.cut("eu", "us")
    eu = network["eu"]
    eu.commit(SID, "only at eu")
    eu.shelf.learn(SID, (2, "us"), "eu")
    first = [frame for _, frame in sent_by(eu)]
    assert [type(frame) for frame in first] == [Merge]
    network.now_ms += MERGE_AGAIN_MS
    eu.stream.tick()
    assert sent_by(eu) == [], "not yet"
    network.now_ms += 1
    eu.stream.tick()
    assert [frame for _, frame in sent_by(eu)] == first, "the first was lost"
    live = eu.live(SID)
    live.set_meta(msgspec.structs.replace(live.meta, unmerged=False))
    network.now_ms += 10 * MERGE_AGAIN_MS
    eu.stream.tick()
    assert sent_by(eu) == []
    eu.shelf.learn("gone", (1, "eu"), None)
    eu.stream.tick()
    assert sent_by(eu) == []


def test_a_sweep_goes_page_by_page_over_every_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "SWEEP_PAGE", 2)
    network = Network(("eu", "us"))
    eu = network["eu"]
    sids = [f"s{number}" for number in range(5)]
    for sid in sids:
        eu.stream.begin(sid)
        eu.commit(sid, "one")
    network.deliver_all()
    pages: list[list[str]] = []
    after: str | None = ""
    while after is not None:
        after = eu.stream.sweep_page(after, ["us"])
        told = [frame for _, frame in sent_by(eu) if isinstance(frame, Deposed)]
        pages.append([frame.sid for frame in told])
    assert pages == [sids[:2], sids[2:4], sids[4:]]


def test_a_sweep_drops_what_has_expired_and_no_more() -> None:
    network = held_by_both(SID)
    network.ttl_ms = 60_000
    eu = network["eu"]
    network.now_ms += 30_000
    eu.stream.begin("younger")
    eu.commit("younger", "one")
    network.now_ms += 30_000
    eu.sweep()
    assert eu.shelf.meta(SID) is None
    assert eu.turns("younger") == ["one"]
    assert not [key for key in eu.rows.durable if SID.encode() in key], "its head too"


def test_an_erasure_that_came_another_way_first_still_says_what_it_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A receipt must not deny what the same erasure, passed on by a neighbour, has just dropped."""
    monkeypatch.setattr("roost_crdt.sessions.stream.DROPPED_MAX", 1)
    eu = held_by_both(SID)["eu"]
    assert not eu.stream.erase_here("never held", 7)
    assert not eu.stream.erase_here("never held", 7)
    assert eu.stream.erase_here(SID, 7, "us")
    assert eu.stream.erase_here(SID, 7)
    assert not eu.stream.erase_here(SID, 8), "another erasure found nothing any more"
    eu.stream.begin("next")
    eu.flush()
    assert eu.stream.erase_here("next", 9)
    assert eu.stream.erase_here("next", 9)
    assert not eu.stream.erase_here(SID, 7), "only the newest are remembered"


def test_a_sweep_tells_of_erasures_and_offers_what_a_newcomer_may_have_lost() -> None:
    network = held_by_both(SID)
    eu, us = network["eu"], network["us"]
    eu.stream.begin("gone")
    eu.flush()
    network.deliver_all()
    eu.stream.erase_here("gone", 7)
    eu.flush()
    network.deliver_all()
    assert us.shelf.live("gone") is None
    eu.stream.sweep_page("", ["us"])
    frames = [frame for _, frame in sent_by(eu)]
    assert Erase("gone", 7) in frames
    assert [frame.sid for frame in frames if isinstance(frame, Offer)] == [SID]


def test_a_sweep_sends_what_is_not_merged_to_the_home_in_force() -> None:
    network = held_by_both(SID)
    network.cut("eu", "us")
    eu = network["eu"]
    eu.commit(SID, "only at eu")
    eu.shelf.learn(SID, (2, "us"), "eu")
    sent_by(eu)
    eu.stream.sweep_page("", ["us"])
    told = sent_by(eu)
    assert {to for to, _ in told} == {"us"}
    assert [type(frame) for _, frame in told] == [Deposed, Merge]


def test_a_session_under_a_name_of_its_own_is_announced_to_all_but_its_standby() -> None:
    network = Network(("eu", "us", "ap"))
    eu = network["eu"]
    live = eu.stream.begin(SID)
    sent_by(eu)
    eu.stream.announce(live)
    (other,) = {"us", "ap"} - {live.meta.standby}
    assert sent_by(eu) == [(other, Deposed(SID, live.meta.epoch, live.meta.standby))]


def test_a_repeated_sweep_says_epochs_alone_and_counts_for_no_other() -> None:
    """What waits for an answer would take the room again for which the epochs were dropped."""
    network = held_by_both(SID)
    eu = network["eu"]
    eu.stream.begin("gone")
    eu.stream.erase_here("gone", 7)
    eu.stream.begin("unmerged")
    eu.commit("unmerged", "only at eu")
    eu.shelf.learn("unmerged", (2, "us"), "eu")
    eu.stream.begin("lone")
    live = eu.live("lone")
    live.set_meta(msgspec.structs.replace(live.meta, standby=None))
    sent_by(eu)
    network.now_ms += 2 * stream.SWEEP_EVERY_MS
    first = eu.stream.sweep_page("", ["us"])
    assert first is None
    told = {type(frame) for _, frame in sent_by(eu)}
    assert told == {Deposed, Erase, Merge, Offer, Whole}
    network.now_ms += 2 * stream.SWEEP_EVERY_MS
    assert eu.stream.sweep_due
    assert eu.stream.sweep_page("", ["us"], repeated=True) is None
    again = sent_by(eu)
    assert {type(frame) for _, frame in again} == {Deposed}
    assert {frame.sid for _, frame in again} == {SID, "unmerged", "lone"}
    assert eu.stream.sweep_due, "all else is still due"


def test_a_busy_session_gets_its_standby_though_the_first_copy_was_lost() -> None:
    network = Network(("eu", "us"))
    network.cut("eu", "us")
    eu = network["eu"]
    eu.stream.begin(SID)
    eu.write(SID, "one")
    sent_by(eu)
    network.cut_at.clear()
    eu.stream.tick()
    assert [type(frame) for _, frame in sent_by(eu)] == [Whole], "which is lost"
    copies = 0
    for turn in range(4):
        network.now_ms += stream.COPY_AGAIN_MS // 2
        eu.write(SID, f"turn {turn}")
        eu.stream.tick()
        eu.stream.sweep_page("")
        copies += sum(isinstance(frame, Whole) for _, frame in sent_by(eu))
    assert copies == 2


def test_who_is_drained_takes_no_session_in_and_not_soon_after() -> None:
    network = held_by_both(SID)
    eu, us = network["eu"], network["us"]
    frame = eu.stream.handover(eu.live(SID), "us")
    with us.stream.draining():
        with us.stream.draining():
            assert not us.stream.adopts
        assert not us.stream.adopt(frame), "the other drain goes on"
    network.now_ms += stream.DRAINED_MS - 1
    assert not us.stream.adopt(frame)
    assert us.live(SID).meta.home == "eu", "nothing has changed"
    network.now_ms += 1
    assert us.stream.adopt(frame)


def test_a_session_leaves_for_its_standby_or_else_for_another_neighbour() -> None:
    network = Network(("eu", "us", "ap"))
    eu = network["eu"]
    live = eu.stream.begin(SID)
    standby = live.meta.standby
    assert standby is not None
    (other,) = {"us", "ap"} - {standby}
    assert eu.stream.next_home(live, ()) == standby
    assert eu.stream.next_home(live, {standby}) == other
    assert eu.stream.next_home(live, {standby, other}) is None
    network.residency = (standby,)
    assert eu.stream.next_home(live, {standby}) is None, "the policy keeps it out of there"
    live.set_meta(msgspec.structs.replace(live.meta, standby=None))
    assert eu.stream.next_home(live, ()) == standby
