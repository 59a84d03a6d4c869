"""A session whose stored rows are damaged is dropped only where another node has all of it."""

from __future__ import annotations

import msgspec
import pytest
from session_network import Network, Node, held_by_both

from roost_crdt.errors import CorruptData
from roost_crdt.home import Merge, Want, decode_frame
from roost_crdt.sessions.table import head_key, prefix_of

SID = "s1"


def damage(node: Node) -> list[bytes]:
    """No pair of the session but its head can be read any more, and memory has none of it."""
    node.flush()
    node.shelf.lives.clear()
    stored = [key for key in node.rows.written if key.startswith(prefix_of(SID))]
    node.rows.written.update(dict.fromkeys(stored, b"\xc1"))
    assert stored
    return stored


def unchanged(node: Node, stored: list[bytes]) -> bool:
    """Whether every pair is still there, and nothing was asked of anybody."""
    node.rows.flush()
    return all(key in node.rows.written for key in stored) and not node.stream.take_frames()


def test_a_standby_takes_its_homes_copy() -> None:
    network = held_by_both(SID)
    us = network["us"]
    stored = damage(us)
    assert us.stream.give_up(SID, stored)
    assert not [key for key in stored if key in us.rows.written]
    assert not us.stream.give_up(SID, stored), "it holds nothing any more"
    us.flush()
    network.deliver_all()
    assert us.turns(SID) == ["one"]
    assert network["eu"].is_home(SID)
    network["eu"].commit(SID, "two")
    network.deliver_all()
    assert us.turns(SID) == ["one", "two"]


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_home_gives_way_to_its_standby_and_holds_the_copy_from_then_on(in_memory: bool) -> None:
    """What was acknowledged is known in memory alone; else the standby has to say it itself."""
    network = held_by_both(SID)
    eu, us = network["eu"], network["us"]
    standby_at = us.live(SID).meta.n, us.live(SID).meta.chain
    if in_memory:
        assert eu.shelf.live(SID) is not None
        assert eu.stream.give_up(SID, [])
    else:
        assert eu.stream.give_up(SID, damage(eu), standby_at)
    assert eu.shelf.live(SID) is None
    eu.flush()
    network.settle()
    assert us.is_home(SID)
    assert not eu.is_home(SID)
    us.commit(SID, "two")
    network.settle()
    assert eu.turns(SID) == us.turns(SID) == ["one", "two"]
    assert us.stream.protected(us.live(SID))


def test_what_is_in_memory_goes_too_unless_it_is_in_use() -> None:
    network = held_by_both(SID)
    us = network["us"]
    live = us.live(SID)
    live.pins += 1
    assert not us.stream.give_up(SID, [])
    live.pins -= 1
    assert us.stream.give_up(SID, [])
    assert us.shelf.live(SID) is None


def test_a_home_keeps_what_its_standby_has_not_said_that_it_holds() -> None:
    network = held_by_both(SID)
    eu = network["eu"]
    eu.commit(SID, "two")
    meta = eu.live(SID).meta
    stored = damage(eu)
    assert not eu.stream.give_up(SID, stored)
    assert not eu.stream.give_up(SID, stored, (meta.n, b"of another history"))
    assert not eu.stream.give_up(SID, stored, (meta.n - 1, meta.chain))
    assert unchanged(eu, stored)
    network.deliver_all()
    eu.rows.flush()
    eu.stream.take_frames()
    assert eu.stream.give_up(SID, stored, (meta.n, meta.chain)), "as the standby says itself"


def test_turns_that_nobody_has_merged_are_kept() -> None:
    network = held_by_both(SID)
    eu = network["eu"]
    eu.shelf.learn(SID, (2, "us"), "eu")
    assert any(isinstance(decode_frame(raw), Merge) for _, raw in flushed(eu))
    stored = damage(eu)
    assert not eu.stream.give_up(SID, stored)
    assert unchanged(eu, stored)


def test_so_is_what_no_neighbour_in_reach_could_give_back() -> None:
    network = held_by_both(SID)
    eu = network["eu"]
    network.cut("eu", "us")
    stored = damage(eu)
    assert not eu.stream.give_up(SID, stored)
    assert unchanged(eu, stored)
    alone = Network(("eu",))["eu"]
    alone.stream.begin(SID)
    alone.commit(SID, "one")
    stored = damage(alone)
    head = alone.shelf.table.head(SID)
    assert head is not None
    assert head.standby is None
    assert not alone.stream.give_up(SID, stored, (head.n, head.chain))
    assert unchanged(alone, stored)


def test_nothing_is_asked_of_a_session_that_is_unknown_or_erased() -> None:
    network = held_by_both(SID)
    us = network["us"]
    assert not us.stream.give_up("never", [])
    us.stream.erase_here(SID, 7)
    flushed(us)
    assert not us.stream.give_up(SID, [])
    assert not flushed(us)


def test_without_a_head_nothing_can_be_told() -> None:
    us = held_by_both(SID)["us"]
    stored = damage(us)
    us.rows.written[head_key(SID)] = b"\xc1"
    with pytest.raises(CorruptData):
        us.stream.give_up(SID, stored)
    assert unchanged(us, stored)


def test_the_copy_is_asked_of_its_home_under_the_epoch_in_force() -> None:
    network = held_by_both(SID)
    us = network["us"]
    live = us.live(SID)
    live.set_meta(msgspec.structs.replace(live.meta, epoch=(7, "eu")))
    assert us.stream.give_up(SID, damage(us))
    assert [(to, decode_frame(raw)) for to, raw in flushed(us)] == [("eu", Want(SID, (7, "eu")))]


def flushed(node: Node) -> list[tuple[str, bytes]]:
    node.rows.flush()
    return node.stream.take_frames()
