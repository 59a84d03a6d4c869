"""Frames of sessions taken in: what fits is appended, what does not is asked for or refused."""

from __future__ import annotations

import msgspec
import pytest
from session_network import Network

from roost_crdt.errors import PeerError
from roost_crdt.home import (
    ACTOR_LEAP,
    Deposed,
    Erase,
    Frame,
    Merge,
    Merged,
    Want,
    decode_frame,
    encode_frame,
)
from roost_crdt.sessions.outbox import ERASE_AGAIN_MS, ERASE_TIMES

SID = "s1"


def test_what_is_no_frame_is_refused() -> None:
    node = Network(("eu",))["eu"]
    with pytest.raises(PeerError):
        node.stream.on_frame("us", b"\xc1")
    assert node.shelf.meta(SID) is None


def test_two_homes_with_one_standby_hear_of_each_other() -> None:
    network = Network(("eu", "us", "ap"))
    for name in ("eu", "us"):
        network[name].stream.begin(SID)
        network[name].commit(SID, f"first of {name}")
    assert {network[name].live(SID).meta.standby for name in ("eu", "us")} == {"ap"}
    network.settle()
    assert {meta.epoch for meta in network.heads(SID).values()} == {(1, "us")}
    assert sorted(network["us"].turns(SID)) == ["first of eu", "first of us"]


def test_a_replaced_standby_that_returns_does_not_take_over() -> None:
    network = Network(("eu", "us", "ap"))
    network["eu"].stream.begin(SID)
    network["eu"].commit(SID, "one")
    network.settle()
    former = network["eu"].live(SID).meta.standby
    assert former is not None
    network.crash(former)
    for _ in range(20):
        network.pass_time(1_000)
        network.deliver_all()
    assert network["eu"].live(SID).meta.standby not in (None, former)
    network.start(former)
    network.deliver_all()
    network.crash("eu")
    network.pass_time(2_000)
    assert not network.take_over(former, SID)


def test_homes_with_standbys_apart_are_found_when_a_link_comes_up() -> None:
    network = Network(("a", "b", "c", "d"))
    for one in ("a", "b"):
        for other in ("c", "d"):
            network.cut(one, other)
    for name in ("a", "c"):
        network[name].stream.begin(SID)
        network[name].commit(SID, f"first of {name}")
    network.deliver_all()
    network.settle()
    homes = {meta.home for meta in network.heads(SID).values()}
    assert homes == {"c"}
    assert sorted(network["c"].turns(SID)) == ["first of a", "first of c"]


def test_an_old_merge_does_not_vouch_for_newer_turns() -> None:
    network = Network(("eu", "us"))
    eu = network["eu"]
    eu.stream.begin(SID)
    network.settle()
    network.cut("eu", "us")
    eu.commit(SID, "only at eu")
    network.pass_time(2_000)
    assert network.take_over("us", SID)
    eu.shelf.learn(SID, (2, "us"), "eu")
    held = eu.live(SID).meta
    assert held.unmerged
    eu.stream.on_frame("us", encode_frame(Merged(SID, (2, "us"), b"of earlier turns")))
    assert eu.live(SID).meta.unmerged
    eu.stream.on_frame("us", encode_frame(Merged(SID, (2, "us"), held.chain)))
    assert not eu.live(SID).meta.unmerged


def test_a_frame_with_a_damaged_document_changes_nothing_and_is_told() -> None:
    network = Network(("eu", "us"))
    network["eu"].stream.begin(SID)
    network["eu"].commit(SID, "one")
    network.settle()
    us = network["us"]
    before, rows = us.live(SID).meta, dict(us.rows.written)
    whole = msgspec.structs.replace(network["eu"].live(SID).whole(), epoch=(9, "eu"))
    damaged = msgspec.structs.replace(whole, document=whole.document[:-3])
    us.stream.on_frame("eu", encode_frame(damaged))
    assert [(node, sid) for node, sid, _ in network.broken] == [("us", SID)]
    assert "Whole from eu" in network.broken[0][2]
    assert (us.live(SID).meta, us.rows.written) == (before, rows)


def restore(network: Network, name: str, rows: dict[bytes, bytes]) -> None:
    """The node's disk is back at an earlier state, and is written as another actor from now on."""
    network.crash(name)
    node = network[name]
    node.rows.written, node.rows.durable = dict(rows), dict(rows)
    node.actor += 1


def test_a_former_holder_brings_what_home_and_standby_have_both_lost() -> None:
    network = Network(("eu", "us", "ap"))
    network["eu"].stream.begin(SID)
    network["eu"].commit(SID, "one")
    network.settle()
    former = network["eu"].live(SID).meta.standby
    (home,) = {"us", "ap"} - {former}
    assert former is not None
    network.cut(former, home)
    network.cut(former, "eu")
    network.hand_over("eu", SID, home)
    network.deliver_all()
    lost = {name: dict(network[name].rows.durable) for name in ("eu", home)}
    network[home].commit(SID, "two")
    network.settle()
    meta = network[former].live(SID).meta
    assert (meta.epoch, meta.standby, meta.unmerged) == ((2, home), "eu", False)
    assert network[former].turns(SID) == ["one", "two"]
    for name, rows in lost.items():
        restore(network, name, rows)
    network.settle()
    heads = network.heads(SID)
    assert {head.home for head in heads.values()} == {home}
    assert not any(head.unmerged for head in heads.values())
    assert network[home].turns(SID) == network["eu"].turns(SID) == ["one", "two"]


def test_a_home_that_holds_nothing_asks_its_standby_to_take_over() -> None:
    network = Network(("eu", "us"))
    network["eu"].stream.begin(SID)
    network["eu"].commit(SID, "one")
    network.settle()
    restore(network, "eu", {})
    network.settle()
    heads = network.heads(SID)
    assert {(head.epoch, head.standby) for head in heads.values()} == {((2, "us"), "eu")}
    assert network["us"].turns(SID) == network["eu"].turns(SID) == ["one"]
    assert network["us"].stream.protected(network["us"].live(SID))


def test_turns_for_a_home_that_holds_nothing_reach_its_standby() -> None:
    network = Network(("eu", "us", "ap"))
    network["eu"].stream.begin(SID)
    network["eu"].commit(SID, "one")
    network.settle()
    standby = network["eu"].live(SID).meta.standby
    (former,) = {"us", "ap"} - {standby}
    assert standby is not None
    network.cut(former, standby)
    network.hand_over("eu", SID, former)
    network.cut(former, "eu")
    network[former].commit(SID, "two")
    network.crash(former)
    network.pass_time(2_000)
    assert network.take_over("eu", SID)
    restore(network, "eu", {})
    network.start("eu")
    network["eu"].shelf.remember_stub(SID, (3, "eu"), standby)
    network.settle()
    heads = network.heads(SID)
    assert len({head.epoch for head in heads.values()}) == 1
    (home,) = {head.home for head in heads.values()}
    assert sorted(network[home].turns(SID)) == ["one", "two"]


def frames_after(network: Network, frame: Frame) -> list[Frame]:
    """What us answers to a frame of eu."""
    us = network["us"]
    us.stream.take_frames()
    us.stream.on_frame("eu", encode_frame(frame))
    return [decode_frame(answer) for _, answer in us.stream.take_frames()]


def test_only_home_itself_under_the_epoch_in_force_makes_its_standby_take_over() -> None:
    network = Network(("eu", "us", "ap"))
    network.cut("eu", "ap")
    network["eu"].stream.begin(SID)
    network["eu"].commit(SID, "one")
    network.settle()
    us = network["us"]
    assert us.live(SID).meta.epoch[1] == "eu"
    epoch = us.live(SID).meta.epoch
    us.stream.on_frame("ap", encode_frame(Want(SID, epoch)))
    assert frames_after(network, Want(SID, (epoch[0] + 1, "eu"))) == []
    network.ttl_ms = 1
    network.now_ms += 1_000
    assert frames_after(network, Want(SID, epoch)) == []
    assert us.live(SID).meta.epoch == epoch
    network.ttl_ms = 0
    frames_after(network, Want(SID, epoch))
    assert (us.live(SID).meta.epoch, us.live(SID).meta.standby) == ((epoch[0] + 1, "us"), "eu")


def test_a_node_that_never_held_a_session_notes_it_only_if_it_is_named_home() -> None:
    network = Network(("eu", "us", "ap"))
    us = network["us"]
    assert frames_after(network, Deposed(SID, (3, "eu"), "ap")) == []
    assert us.shelf.meta(SID) is None
    assert frames_after(network, Deposed(SID, (3, "us"), "ap")) == [Want(SID, (3, "us"))]
    wanted = [Want("alone", (3, "us"))]
    assert frames_after(network, Deposed("alone", (3, "us"), None)) == wanted, "who told it"
    us.shelf.remember_stub("merge", (3, "us"), "ap")
    assert frames_after(network, Merge("merge", (3, "us"), b"")) == [
        Deposed("merge", (3, "us"), "ap"),
        Want("merge", (3, "us")),
    ]
    us.stream.erase_here("gone", 5)
    answers = frames_after(network, Deposed("gone", (3, "us"), "ap"))
    assert [type(answer).__name__ for answer in answers] == ["Erase"]


def line(*names: str) -> Network:
    """Nodes of which each has links to the one before and the one after it alone."""
    network = Network(names)
    for at, name in enumerate(names):
        for other in names[at + 2 :]:
            network.cut(name, other)
    return network


def go_on(network: Network, rounds: int = 20) -> None:
    """Time passes, and what is on its way arrives; cuts stay."""
    for _ in range(rounds):
        network.deliver_all()
        network.pass_time(300)
    network.deliver_all()


def test_an_erasure_is_passed_on_by_whoever_hears_of_it() -> None:
    network = line("a", "b", "c", "d")
    network["d"].stream.begin(SID)
    network["d"].commit(SID, "one")
    go_on(network)
    network["a"].stream.erase_here(SID, 7)
    network["a"].flush()
    go_on(network)
    for name in network.names:
        meta = network[name].shelf.meta(SID)
        assert meta is not None
        assert (meta.erased_ms, meta.held) == (7, False), name
        assert not network[name].stream.take_frames()


def test_an_erasure_that_got_lost_is_told_again_until_it_is_answered() -> None:
    network = Network(("eu", "us"))
    eu, us = network["eu"], network["us"]
    eu.stream.begin(SID)
    eu.commit(SID, "one")
    network.deliver_all()
    eu.stream.erase_here(SID, 7)
    assert [type(decode_frame(raw)) for _, raw in eu.stream.take_frames()] == [Erase]  # lost
    network.pass_time(ERASE_AGAIN_MS - 1)
    network.deliver_all()
    assert us.live(SID).meta.held
    network.pass_time(1)
    network.deliver_all()
    meta = us.shelf.meta(SID)
    assert meta is not None
    assert meta.erased_ms == 7
    network.pass_time(10 * ERASE_AGAIN_MS)
    assert not any(network.ways.values()), "it was answered"


def test_a_neighbour_that_does_not_answer_is_not_told_for_ever() -> None:
    network = Network(("eu", "us"))
    eu, told = network["eu"], 0
    eu.stream.erase_here(SID, 7)
    for _ in range(3 * ERASE_TIMES):
        told += len(eu.stream.take_frames())
        network.now_ms += ERASE_AGAIN_MS
        eu.stream.tick()
    assert told == ERASE_TIMES
    eu.stream.erase_here("s2", 7)
    network.cut("eu", "us")
    network.now_ms += ERASE_AGAIN_MS
    eu.stream.take_frames()
    eu.stream.tick()
    assert not eu.stream.take_frames(), "it has no link; one that comes up begins anew"


def test_a_former_home_keeps_its_turns_until_the_new_ones_standby_has_them() -> None:
    network = Network(("eu", "us", "ap"))
    network["eu"].stream.begin(SID)
    network["eu"].commit(SID, "one")
    network.settle()
    home = network["eu"].live(SID).meta.standby
    assert home is not None
    (standby,) = {"us", "ap"} - {home}
    network.cut("eu", home)
    network["eu"].commit(SID, "only at eu")
    network.pass_time(2_000)
    assert network.take_over(home, SID)
    network.hand_over(home, SID, standby)
    network.hand_over(standby, SID, home)
    assert network[home].live(SID).meta.standby == standby
    network.cut(home, standby)
    network.heal("eu", home)
    network.cut("eu", standby)
    network.deliver_all()
    assert sorted(network[home].turns(SID)) == ["one", "only at eu"], "merged"
    assert network["eu"].live(SID).meta.unmerged, "and nowhere else yet"
    network.heal(home, standby)
    go_on(network)
    assert sorted(network[standby].turns(SID)) == ["one", "only at eu"]
    assert not network["eu"].live(SID).meta.unmerged


def test_a_home_that_lost_everything_begins_again_with_what_a_former_home_holds() -> None:
    network = Network(("eu", "us"))
    eu, us = network["eu"], network["us"]
    eu.stream.begin(SID)
    eu.commit(SID, "one")
    network.settle()
    assert us.live(SID).meta.held
    eu.shelf.learn(SID, (5, "us"), None)  # it was home under an epoch that it has lost
    restore(network, "us", {})
    network.start("us")
    go_on(network)
    assert us.live(SID).meta.epoch[0] >= 5 + ACTOR_LEAP, "clear of what it may have written"
    assert us.turns(SID) == eu.turns(SID) == ["one"]
    assert network.heads(SID)["eu"].home == "us"
    assert not eu.live(SID).meta.unmerged
    us.commit(SID, "two")
    network.settle()
    assert eu.turns(SID) == ["one", "two"]


def test_a_home_without_a_standby_that_lost_everything_asks_for_what_was_merged() -> None:
    network = Network(("eu", "us"))
    eu, us = network["eu"], network["us"]
    eu.stream.begin(SID)
    eu.commit(SID, "one")
    network.settle()
    merged = msgspec.structs.replace(eu.live(SID).meta, epoch=(5, "us"), standby=None)
    eu.live(SID).set_meta(merged)
    eu.rows.flush()
    restore(network, "us", {})
    network.start("us")
    network.settle()
    assert us.live(SID).meta.home == "us"
    assert us.live(SID).meta.epoch[0] >= 5 + ACTOR_LEAP, "clear of what it may have written"
    assert us.turns(SID) == eu.turns(SID) == ["one"]
    assert not eu.live(SID).meta.unmerged


def test_home_and_standby_that_lost_everything_begin_again_with_a_former_home() -> None:
    network = Network(("eu", "us", "ap"))
    eu = network["eu"]
    eu.stream.begin(SID)
    eu.commit(SID, "one")
    network.settle()
    eu.shelf.learn(SID, (5, "us"), "ap")
    eu.rows.flush()
    for name in ("us", "ap"):
        restore(network, name, {})
        network.start(name)
    network.settle()
    heads = network.heads(SID)
    assert {head.home for head in heads.values()} == {"us"}
    assert network["us"].turns(SID) == ["one"]
    assert not any(head.unmerged for head in heads.values())


def test_a_node_without_a_copy_tells_a_home_without_one_which_epoch_is_in_force() -> None:
    eu = Network(("eu", "us"))["eu"]
    eu.shelf.remember_stub(SID, (7, "ap"), None)
    eu.stream.on_frame("us", encode_frame(Want(SID, (5, "us"))))
    eu.stream.on_frame("us", encode_frame(Want("s2", (5, "us"))))
    eu.stream.on_frame("us", encode_frame(Want("s3", (5, "ap"))))
    assert [decode_frame(raw) for _, raw in eu.stream.take_frames()] == [
        Deposed(SID, (7, "ap"), None),
        Deposed("s2", (5, "us"), None),
    ]


def test_a_standby_that_went_back_in_time_is_offered_the_session_when_its_link_comes_up() -> None:
    network = Network(("eu", "us"))
    network["eu"].stream.begin(SID)
    network["eu"].commit(SID, "one")
    network.settle()
    rows = dict(network["us"].rows.durable)
    network["eu"].commit(SID, "two")
    network.settle()
    assert network["eu"].live(SID).meta.acked_n == 2
    for back in (rows, {}):
        restore(network, "us", back)
        network.start("us")
        network.deliver_all()
        assert network["us"].turns(SID) == ["one", "two"]


def test_a_home_that_went_back_in_time_unnoticed_gets_its_tail_from_its_standby() -> None:
    """The same actor, as if nothing had been lost: what it wrote is under its own client id."""
    network = Network(("eu", "us"))
    eu, us = network["eu"], network["us"]
    eu.stream.begin(SID)
    eu.commit(SID, "one")
    network.settle()
    rows = dict(eu.rows.durable)
    eu.commit(SID, "two")
    network.settle()
    network.crash("eu")
    eu.rows.written, eu.rows.durable = dict(rows), dict(rows)
    network.start("eu")
    network.settle()
    assert {meta.home for meta in network.heads(SID).values()} == {"eu"}
    assert eu.live(SID).meta.epoch[0] > ACTOR_LEAP
    assert eu.turns(SID) == us.turns(SID) == ["one", "two"]
    assert not network.broken


@pytest.mark.parametrize("cut", [False, True])
def test_two_homes_meet_though_neither_they_nor_their_standbys_are_neighbours(cut: bool) -> None:
    network = line("a", "b", "c", "d", "e", "f")
    if cut:
        network.cut("c", "d")
    go_on(network, 2)
    for name in ("a", "f"):
        network[name].stream.announce(network[name].stream.begin(SID))
        network[name].commit(SID, f"first of {name}")
    go_on(network)
    if cut:
        assert network["a"].is_home(SID)
        assert network["f"].is_home(SID)
        network.heal("c", "d")
        go_on(network)
    heads = network.heads(SID)
    assert {head.home for head in heads.values()} == {"f"}
    assert not any(head.unmerged for head in heads.values())
    assert sorted(network["f"].turns(SID)) == ["first of a", "first of f"]
