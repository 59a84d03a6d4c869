"""The roster: rows that every node reads alike, and vectors without their reports."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost_crdt.errors import BadRequest
from roost_crdt.members import (
    Member,
    Roster,
    covers,
    is_behind,
    join,
    member_delta,
    member_key,
    outdated,
    removal_delta,
    removal_key,
    rewritten_delta,
    rewritten_key,
)
from roost_crdt.rows import register
from roost_crdt.rows.layout import KEY_BYTES_MAX, check_key

vectors = st.dictionaries(st.integers(1, 5), st.integers(1, 9), max_size=5)


def entered(roster: Roster, member: Member, hlc: int) -> None:
    rows = member_delta({}, member, (hlc, member.actor))
    assert roster.load(member_key(member.node), rows)


def test_a_member_reads_back_as_it_was_written() -> None:
    roster = Roster()
    member = Member("eu-1", 7, (5, 6), {7: 30, 8: 20}, 25)
    entered(roster, member, 40)
    assert roster.members == {"eu-1": member._replace(stamp=(40, 7))}
    assert roster.members["eu-1"].told_ms == 0


def test_a_removed_actor_is_no_member_until_the_node_writes_as_another() -> None:
    roster = Roster()
    entered(roster, Member("eu-1", 7, (), {}, 0), 40)
    before = roster.hash()
    assert roster.load(removal_key(7), removal_delta({}, "eu-1", (50, 9)))
    assert roster.members == {}
    assert roster.removed == {7: "eu-1"}
    assert roster.hash() != before
    entered(roster, Member("eu-1", 8, (7,), {}, 0), 60)
    assert roster.members["eu-1"].actor == 8


def test_of_two_that_wrote_an_actors_writes_again_the_one_who_held_more_is_believed() -> None:
    roster = Roster()
    first, more = (rewritten_delta({}, hlc, (90, actor)) for hlc, actor in ((50, 9), (60, 8)))
    for a, b in ((first, more), (more, first)):
        rows = {part: register.join(a[part], b[part]) for part in a}
        assert roster.load(rewritten_key(7), rows)
        assert roster.rewritten == {7: 60}
    assert rewritten_delta(more, 60, (95, 3)) == rewritten_delta(more, 55, (95, 3)) == {}
    assert rewritten_delta(more, 61, (95, 3)) != {}
    ahead = rewritten_delta({}, 1_000, (95, 3))
    assert roster.load(rewritten_key(7), ahead)
    assert roster.rewritten == {7: 1_000}
    assert [row[:2] for row in ahead.values()] == [(95, 3)], "no row is stamped after its record"


@pytest.mark.parametrize("value", [b"", b"\xff", "null", b"\x93\x01\xa1x\x01"])
def test_rows_that_cannot_be_read_change_nothing(value: bytes | str) -> None:
    roster = Roster()
    rows = register.put({}, value, (1, 1))
    keys = (member_key("eu-1"), removal_key(7), rewritten_key(7))
    for key in (*keys, b"\x01r" + b"zz", b"\x01w" + b"zz", b"\x01mx"):
        assert not roster.load(key, rows)
    assert not roster.load(member_key("eu-1"), {})
    assert not roster.load(member_key("us-1"), member_delta({}, Member("eu", 1, (), {}, 0), (1, 1)))
    assert not roster.nodes
    assert not roster.removed


def test_no_client_can_name_these_keys() -> None:
    for node in ("eu-1", "n" * 255):
        key = member_key(node)
        assert len(key) <= KEY_BYTES_MAX
        with pytest.raises(BadRequest, match="the cluster's own"):
            check_key(key)
    assert member_key("n" * 255) != member_key("n" * 254)
    with pytest.raises(BadRequest):
        check_key(removal_key(1))


def test_of_an_actor_that_was_given_up_no_more_comes_than_somebody_reports() -> None:
    roster = Roster()
    entered(roster, Member("eu", 8, (7,), {7: 30, 8: 20}, 0), 40)
    entered(roster, Member("us", 9, (), {7: 35}, 0), 41)
    assert roster.load(removal_key(9), removal_delta({}, "us", (50, 8)))
    vv = {7: 90, 8: 90, 9: 90, 10: 90}
    assert roster.coming(vv) == {7: 35, 8: 90, 9: 0, 10: 90}
    assert roster.coming({7: 33}) == {7: 33}


def test_content_leaves_out_a_report_at_the_end_and_nothing_else() -> None:
    roster = Roster()
    entered(roster, Member("a", 1, (), {1: 90}, 80), 100)
    assert roster.content({1: 100, 2: 5}) == {1: 80, 2: 5}
    assert roster.content({1: 99}) == {1: 99}, "the report is not here yet"
    assert roster.content({1: 101}) == {1: 101}, "something follows the report"
    roster.load(member_key("b"), member_delta({}, Member("b", 2, (), {}, 0), (50, 1)))
    assert roster.content({1: 50, 2: 50}) == {1: 50, 2: 50}, "entered by another node"


@given(vectors, vectors)
def test_the_join_is_the_least_vector_that_covers_both(
    a: dict[int, int], b: dict[int, int]
) -> None:
    joined = join((a, b))
    assert covers(joined, a)
    assert covers(joined, b)
    assert all(a.get(actor) == hlc or b.get(actor) == hlc for actor, hlc in joined.items())
    assert covers(a, b) == (join((a, b)) == a)


def test_who_holds_nothing_is_behind_nothing() -> None:
    """It can bring nothing back; who holds some and not all that was collected can."""
    assert not is_behind({}, {1: 5})
    assert not is_behind({1: 0}, {1: 5})
    assert not is_behind({1: 5, 2: 1}, {1: 5})
    assert is_behind({1: 4}, {1: 5})
    assert is_behind({2: 9}, {1: 5})
    assert not is_behind({2: 9}, {})


def test_a_removal_outdates_more_than_a_floor_does() -> None:
    assert outdated(7, frozenset({7}), {}, {}) == "was removed from the members that {} knows"
    assert outdated(7, frozenset({8}), {7: 4}, {7: 5}) == "is behind what {} has collected"
    assert outdated(7, frozenset({8}), {7: 5}, {7: 5}) == ""


def test_an_actor_is_known_once_a_report_or_a_removal_names_it() -> None:
    roster = Roster()
    entered(roster, Member("eu-1", 7, (5,), {}, 0), 40)
    assert roster.load(removal_key(6), removal_delta({}, "us-1", (50, 9)))
    assert roster.unknown((5, 6, 7, 8, 9)) == {8, 9}
