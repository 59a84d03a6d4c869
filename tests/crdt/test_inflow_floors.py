"""Who may be linked while rows are collected, given up and taken; who of two has to reseed."""

from __future__ import annotations

import pytest
from inflow_kit import FAR, OWN, Receiver

from roost_crdt import frames as f
from roost_crdt.errors import PeerError


def greeting(node: str = "x", **changes: object) -> f.Greeting:
    fields: dict[str, object] = {"vv": {9: 5}, **changes}
    return f.Greeting(versions=(1,), cluster="c", node=node, actor=9, **fields)  # type: ignore[arg-type]


def receiver(vv: dict[int, int], floor: dict[int, int]) -> Receiver:
    made = Receiver("", vv=vv)
    made.near.gc_floor = dict(floor)
    return made


def test_neither_behind_the_other_nobody_reseeds() -> None:
    both = receiver({OWN: 7, FAR: 3}, {FAR: 3})
    assert both.inflow.outdated(greeting(vv={9: 5, FAR: 3}), frozenset()) == (False, "")
    assert both.inflow.outdated(greeting(vv={}), frozenset()) == (False, ""), "it is empty"


def test_who_is_behind_takes_the_others_rows() -> None:
    ours = receiver({OWN: 7, FAR: 3}, {FAR: 3})
    reseeds, text = ours.inflow.outdated(greeting(vv={9: 5, FAR: 2}), frozenset())
    assert not reseeds
    assert text == (
        "Reseed: x is behind what me has collected; it takes me's rows and writes its own again"
    )
    theirs = receiver({OWN: 7, FAR: 3}, {})
    reseeds, text = theirs.inflow.outdated(greeting(gc_floor={9: 5}), frozenset())
    assert reseeds
    assert text.startswith("Reseed: me is behind what x has collected; it takes x's rows")


@pytest.mark.parametrize(("node", "reseeds"), [("a", True), ("z", False)])
def test_of_two_behind_each_other_the_lower_name_keeps_what_it_holds(
    node: str, reseeds: bool
) -> None:
    ours = receiver({OWN: 7}, {OWN: 7})
    other = greeting(node, vv={9: 7}, gc_floor={9: 7})
    assert ours.inflow.outdated(other, frozenset())[0] is reseeds


@pytest.mark.parametrize("node", ["a", "z"])
def test_of_two_behind_each_other_who_has_collected_later_keeps_what_it_holds(node: str) -> None:
    """Whatever they are called: who stands between two such parts ends up in the later one."""
    ours = receiver({OWN: 7}, {OWN: 7})
    earlier, later = (greeting(node, vv={9: hlc}, gc_floor={9: hlc}) for hlc in (6, 8))
    assert not ours.inflow.outdated(earlier, frozenset())[0]
    assert ours.inflow.outdated(later, frozenset())[0]


@pytest.mark.parametrize("node", ["a", "z"])
def test_who_is_behind_gives_way_to_who_was_removed(node: str) -> None:
    ours = receiver({OWN: 7}, {OWN: 7})
    behind = greeting(node, vv={9: 5}, removed=(OWN,))
    assert not ours.inflow.outdated(behind, frozenset())[0]
    late = receiver({OWN: 7}, {})
    removed = greeting(node, vv={9: 5}, gc_floor={9: 5})
    assert late.inflow.outdated(removed, frozenset({9}))[0]


@pytest.mark.parametrize(("node", "reseeds"), [("a", True), ("z", False)])
def test_of_two_that_removed_each_other_the_lower_name_keeps_what_it_holds(
    node: str, reseeds: bool
) -> None:
    """Neither is behind what the other has collected; one of them has to begin."""
    ours = receiver({OWN: 7}, {})
    other = greeting(node, removed=(OWN,))
    assert ours.inflow.outdated(other, frozenset({9}))[0] is reseeds


def test_a_removed_actor_reseeds_be_it_up_to_date() -> None:
    ours = receiver({OWN: 7}, {})
    reseeds, text = ours.inflow.outdated(greeting(vv={9: 5, OWN: 7}), frozenset({9}))
    assert (reseeds, "x was removed from the members that me knows" in text) == (False, True)
    reseeds, text = ours.inflow.outdated(greeting(removed=(OWN,)), frozenset())
    assert (reseeds, "me was removed from the members that x knows" in text) == (True, True)


def test_while_rows_are_taken_nobody_behind_them_is_linked() -> None:
    ours = receiver({}, {})
    ours.near.joins = {FAR: 8}
    with pytest.raises(PeerError, match="me takes rows that x is behind; try again"):
        ours.inflow.check_joining("x", greeting(vv={FAR: 7}))
    ours.inflow.check_joining("x", greeting(vv={FAR: 8}))


def test_nobody_is_linked_who_has_collected_what_the_giver_of_rows_lacks() -> None:
    """What that one deleted and dropped would come back from the rows that are being taken."""
    ours = Receiver("", vv={})
    ours.link("a", {FAR: 3})
    with pytest.raises(PeerError, match="takes the rows of a, who is behind what x has collected"):
        ours.inflow.check_joining("x", greeting(vv={FAR: 9}, gc_floor={FAR: 4}))
    ours.inflow.check_joining("x", greeting(vv={FAR: 9}, gc_floor={FAR: 3}))
    full = Receiver("", vv={OWN: 7})
    full.link("a", {FAR: 3})
    full.inflow.check_joining("x", greeting(vv={FAR: 9}, gc_floor={FAR: 4}))


def test_rows_that_are_still_to_be_taken_wait_for_somebody_who_has_them() -> None:
    """After a restart in the middle: no link is up, then one is."""
    ours = Receiver("", vv={})
    ours.near.joins, ours.near.rejoins = {FAR: 8}, True
    assert ours.wait(1_000) == []
    assert ours.near.joins == {FAR: 8}
    ours.link("a", {FAR: 8})
    assert ("a", f.SnapshotWant(1)) in ours.sent()


def test_another_history_is_asked_for_once_the_rows_are_here() -> None:
    """What it brings is joined with rows: it waits for them."""
    ours = Receiver("", vv={})
    ours.near.parted = {FAR: 5}
    ours.link("a", {FAR: 8}, floor={FAR: 6})
    assert [frame for _, frame in ours.sent()] == [f.SnapshotWant(1)]
    ours.inflow.rows_end(ours["a"], f.SnapshotEnd(1, {FAR: 8}, {FAR: 6}), ours.now_ms)
    assert ("a", f.Want(FAR, 5, again=True)) in ours.sent()
    assert ours["a"].pulls == {FAR: 8}
