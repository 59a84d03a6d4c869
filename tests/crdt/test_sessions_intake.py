"""Frames of sessions taken in: what fits is appended, what does not is asked for or refused."""

from __future__ import annotations

import msgspec
import pytest
from session_network import Network

from roost_crdt.errors import PeerError
from roost_crdt.home import Deposed, Frame, Merge, Merged, Want, decode_frame, encode_frame

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
    assert frames_after(network, Deposed("alone", (3, "us"), None)) == []
    us.shelf.remember_stub("merge", (3, "us"), "ap")
    assert frames_after(network, Merge("merge", (3, "us"), b"")) == [
        Deposed("merge", (3, "us"), "ap"),
        Want("merge", (3, "us")),
    ]
    us.stream.erase_here("gone", 5)
    answers = frames_after(network, Deposed("gone", (3, "us"), "ap"))
    assert [type(answer).__name__ for answer in answers] == ["Erase"]
