"""What a node has to say: frames in order, questions not repeated, notes bounded and forgotten."""

from __future__ import annotations

import msgspec
import pytest
from session_network import Network, Node

from roost_crdt.home import (
    Ack,
    Deposed,
    Epoch,
    Erase,
    Frame,
    Merge,
    Merged,
    Offer,
    Want,
    decode_frame,
)
from roost_crdt.sessions import outbox as outbox_module
from roost_crdt.sessions.copy import SessionCopy
from roost_crdt.sessions.outbox import (
    ERASE_AGAIN_MS,
    ERASE_TIMES,
    MERGE_AGAIN_MS,
    MERGE_WAITS_MAX,
    WANT_AGAIN_MS,
    Copying,
    Outbox,
)

SID = "s1"


def node_of(*names: str) -> Node:
    return Network(names)["eu"]


def held(node: Node, sid: str = SID, **more: object) -> SessionCopy:
    """A copy with one turn, changed as given."""
    node.stream.begin(sid)
    node.commit(sid, "one")
    live = node.live(sid)
    live.set_meta(msgspec.structs.replace(live.meta, **more))
    return live


def said(out: Outbox) -> list[tuple[str, Frame]]:
    return [(node, decode_frame(frame)) for node, frame in out.take()]


def test_frames_are_taken_once_in_order() -> None:
    out = Outbox(node_of("eu").shelf)
    out.send("us", Want("a", (1, "us")))
    out.send("ap", Want("b", (1, "ap")))
    assert said(out) == [("us", Want("a", (1, "us"))), ("ap", Want("b", (1, "ap")))]
    assert out.take() == []


def test_a_session_that_is_gone_awaits_nothing() -> None:
    node = node_of("eu", "us")
    out = Outbox(node.shelf)
    for noted in (out.unacked, out.unmerged, out.wanted, out.candidates):
        noted.update({SID: 1, "other": 2})  # type: ignore[dict-item]
    out.forget(SID)
    out.forget("unknown")
    for noted in (out.unacked, out.unmerged, out.wanted, out.candidates):
        assert noted == {"other": 2}


def test_an_offer_says_where_the_copy_is_and_awaits_its_acknowledgement() -> None:
    node = node_of("eu", "us")
    live = held(node)
    out = Outbox(node.shelf)
    out.offer(live)
    meta = live.meta
    assert said(out) == [("us", Offer(SID, (1, "eu"), "us", 1, meta.chain, meta.used_ms))]
    assert out.unacked == {SID: node.network.now_ms}


def test_without_a_standby_nothing_is_said_and_the_lack_is_noted() -> None:
    node = node_of("eu")
    live = held(node)
    out = Outbox(node.shelf)
    out.offer(live)
    assert said(out) == []
    assert SID in out.unacked, "a standby is still to be found"


def test_an_acknowledgement_says_how_far_this_copy_is() -> None:
    node = node_of("eu", "us")
    live = held(node)
    out = Outbox(node.shelf)
    out.acknowledge("us", live)
    assert said(out) == [("us", Ack(SID, (1, "eu"), 1, live.meta.chain))]


def test_a_whole_document_is_asked_for_once_a_second() -> None:
    node = node_of("eu", "us")
    out = Outbox(node.shelf)
    for _ in range(3):
        out.want("us", SID, (1, "us"))
    out.want("us", "s2", (1, "us"))
    assert said(out) == [("us", Want(SID, (1, "us"))), ("us", Want("s2", (1, "us")))]
    node.network.now_ms += WANT_AGAIN_MS
    out.want("us", SID, (1, "us"))
    assert len(said(out)) == 1


def test_what_is_noted_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "NOTED_MAX", 2)
    node = node_of("eu", "us")
    away: list[Epoch] = [(2, "us")]
    lives = [held(node, f"s{at}", epoch=away[0], unmerged=True) for at in range(3)]
    out = Outbox(node.shelf)
    for live in lives:
        out.note_unacked(live)
        out.want("us", live.meta.sid, (1, "us"))
        out.send_unmerged(live.meta.sid)
    for noted in (out.unacked, out.unmerged, out.wanted):
        assert len(noted) <= 2
    assert "s2" in out.wanted, "a question that is not noted would be repeated at once"
    assert len([frame for _, frame in said(out) if isinstance(frame, Merge)]) == 3


def test_a_full_note_still_learns_when_it_was_last_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a session noted in time would be sent at each tick from then on."""
    monkeypatch.setattr(outbox_module, "NOTED_MAX", 1)
    node = node_of("eu", "us")
    live = held(node, epoch=(2, "us"), unmerged=True)
    out = Outbox(node.shelf)
    for _ in range(2):
        node.network.now_ms += 700
        out.note_unacked(live)
        out.send_unmerged(SID)
    assert out.unacked == {SID: node.network.now_ms}
    assert out.unmerged == {SID: (node.network.now_ms, 1)}


def test_who_is_behind_is_told_the_epoch_and_by_the_home_what_it_holds() -> None:
    node = node_of("eu", "us")
    live = held(node, epoch=(4, "eu"))
    out = Outbox(node.shelf)
    out.depose("ap", SID)
    first, second = said(out)
    assert first == ("ap", Deposed(SID, (4, "eu"), "us"))
    assert second[0] == "us"
    assert isinstance(second[1], Offer)
    live.set_meta(msgspec.structs.replace(live.meta, epoch=(5, "ap"), standby="eu"))
    out.depose("us", SID)
    assert said(out) == [("us", Deposed(SID, (5, "ap"), "eu"))], "its home offers it"


def test_a_stub_is_enough_to_tell_the_epoch() -> None:
    node = node_of("eu", "us")
    node.shelf.remember_stub(SID, (3, "ap"), None)
    out = Outbox(node.shelf)
    out.depose("us", SID)
    assert said(out) == [("us", Deposed(SID, (3, "ap"), None))]


def test_turns_that_a_new_home_lacks_are_sent_to_it_whole() -> None:
    node = node_of("eu", "us")
    live = held(node, epoch=(2, "us"), standby="eu", unmerged=True)
    out = Outbox(node.shelf)
    out.send_unmerged(SID)
    ((to, frame),) = said(out)
    assert (to, frame) == ("us", Merge(SID, (2, "us"), live.document.encode(), live.meta.chain))
    assert out.unmerged == {SID: (node.network.now_ms, 1)}


@pytest.mark.parametrize(
    "meta", [{"unmerged": False, "epoch": (2, "us")}, {"unmerged": True, "epoch": (2, "eu")}]
)
def test_what_is_merged_or_at_home_is_sent_nowhere(meta: dict[str, object]) -> None:
    node = node_of("eu", "us")
    held(node, **meta)
    out = Outbox(node.shelf)
    out.send_unmerged(SID)
    out.send_unmerged("unknown")
    assert said(out) == []
    assert out.unmerged == {}


def test_a_session_whose_home_is_elsewhere_owes_its_standby_nothing() -> None:
    out = Outbox(node_of("eu", "us").shelf)
    for noted in (out.unacked, out.candidates, out.owed, out.unmerged, out.wanted):
        noted.update({SID: 1, "other": 2})  # type: ignore[dict-item]
    out.let_go(SID)
    for noted in (out.unacked, out.candidates, out.owed):
        assert noted == {"other": 2}
    assert SID in out.unmerged, "its turns are still to be merged there"
    assert SID in out.wanted


def test_what_is_not_merged_is_sent_again_less_and_less_often() -> None:
    node = node_of("eu", "us")
    held(node, epoch=(2, "us"), unmerged=True)
    out = Outbox(node.shelf)
    out.send_unmerged(SID)
    for times in [*range(1, MERGE_WAITS_MAX + 1), MERGE_WAITS_MAX]:
        node.network.now_ms += MERGE_AGAIN_MS * times
        assert out.due_to_merge(node.network.now_ms) == []
        node.network.now_ms += 1
        assert out.due_to_merge(node.network.now_ms) == [SID]
        out.send_unmerged(SID, again=True)
    out.send_unmerged(SID)
    assert out.unmerged[SID].times == 1, "something new is to be merged"


def test_a_merge_is_acknowledged_once_the_standby_holds_it_too() -> None:
    node = node_of("eu", "us", "ap")
    live = held(node, standby="us", acked_n=0, n=4)
    out = Outbox(node.shelf)
    out.owe("ap", live, b"c" * 16)
    assert said(out) == []
    out.pay(live)
    assert said(out) == []
    live.set_meta(msgspec.structs.replace(live.meta, acked_n=4))
    out.pay(live)
    assert said(out) == [("ap", Merged(SID, (1, "eu"), b"c" * 16))]
    out.pay(live)
    assert said(out) == [], "once"
    assert out.owed == {}


@pytest.mark.parametrize("standby", [None, "ap"])
def test_a_merge_that_nobody_else_could_hold_is_acknowledged_at_once(standby: str | None) -> None:
    node = node_of("eu", "us", "ap")
    live = held(node, standby=standby, acked_n=0, n=4)
    out = Outbox(node.shelf)
    out.owe("ap", live, b"c" * 16)
    assert said(out) == [("ap", Merged(SID, (1, "eu"), b"c" * 16))]


def test_a_former_home_that_becomes_the_standby_needs_its_answer_to_be_it() -> None:
    node = node_of("eu", "us", "ap")
    live = held(node, standby="us", acked_n=0, n=4)
    out = Outbox(node.shelf)
    out.candidates[SID] = Copying("ap", 0)
    out.owe("ap", live, b"c" * 16)
    assert [type(frame) for _, frame in said(out)] == [Merged]


def test_what_is_owed_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "NOTED_MAX", 1)
    node = node_of("eu", "us", "ap")
    first, second = (held(node, f"s{at}", standby="us", acked_n=0, n=4) for at in range(2))
    out = Outbox(node.shelf)
    out.owe("ap", first, b"c" * 16)
    out.owe("ap", second, b"c" * 16)
    out.owe("us", first, b"d" * 16)
    assert set(out.owed) == {"s0"}
    assert [to for to, _ in said(out)] == ["us"], "its standby is who asks"


def erased(node: Node, *sids: str) -> Outbox:
    """An outbox that tells us of erasures."""
    out = Outbox(node.shelf)
    for sid in sids:
        node.stream.erase_here(sid, 7)
        out.erase("us", sid, 7)
    return out


def test_an_erasure_is_said_again_until_it_was_said_often_enough() -> None:
    node = node_of("eu", "us")
    out = erased(node, SID)
    told = len(said(out))
    for _ in range(2 * ERASE_TIMES):
        node.network.now_ms += ERASE_AGAIN_MS - 1
        out.erase_again(["us"])
        assert said(out) == [], "not yet"
        node.network.now_ms += 1
        out.erase_again(["us"])
        told += len(said(out))
    assert told == ERASE_TIMES
    assert out.erasures == {}


def test_an_erasure_is_not_said_to_who_is_not_there_nor_of_what_is_not_erased() -> None:
    node = node_of("eu", "us")
    out = erased(node, SID)
    out.erase("us", "unknown", 7)
    said(out)
    node.network.now_ms += ERASE_AGAIN_MS
    out.erase_again(["us"])
    assert said(out) == [("us", Erase(SID, 7))]
    node.network.now_ms += ERASE_AGAIN_MS
    out.erase_again(["ap"])
    assert said(out) == []
    assert out.erasures == {}


def test_erasures_that_are_not_noted_are_still_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "NOTED_MAX", 1)
    node = node_of("eu", "us")
    out = erased(node, "a", "b", "a")
    assert [frame.sid for _, frame in said(out)] == ["a", "b", "a"]
    assert set(out.erasures) == {("a", "us")}
