"""Sets: add wins over a concurrent remove; a remove or clear takes away what it saw."""

from __future__ import annotations

import pytest

from roost_crdt.errors import CorruptData
from roost_crdt.rows import Rows, StampReused, decode_row, encode_row, join_delta
from roost_crdt.rows import set as sets
from roost_crdt.rows.layout import HEAD, TAG_LONG_ELEMENT, TYPE_SET

A, B, C = 1, 2, 3
X = sets.part_of(b"x")
LONG = b"l" * 256
LONG_JSON = "1" * 256


def _add(rows: Rows, hlc: int, actor: int, *elements: bytes | str, now_ms: int = 0) -> Rows:
    return {**rows, **sets.add(rows, elements, (hlc, actor), now_ms)}


def _join(a: Rows, b: Rows) -> Rows:
    return {**a, **join_delta(TYPE_SET, a, b)}


def test_elements_of_every_kind_come_back() -> None:
    rows = _add({}, 1, A, LONG_JSON, "1", LONG, b"1", b"")
    assert sets.members(rows, 0) == [b"", b"1", LONG, "1", LONG_JSON]
    for element in (LONG_JSON, "1", LONG, b"1", b""):
        assert sets.contains(rows, element, 0)
    assert not sets.contains(rows, "2", 0)


@pytest.mark.parametrize("element", [b"e" * 255, "1" * 255])
def test_an_element_of_255_bytes_stands_in_its_row_key(element: bytes | str) -> None:
    rows = _add({}, 1, A, element)
    assert [len(part) for part in rows] == [256]
    assert sets.members(rows, 0) == [element]
    for part, row in rows.items():
        assert decode_row(TYPE_SET, part, encode_row(TYPE_SET, part, row)) == row


def test_an_add_wins_over_a_concurrent_remove() -> None:
    base = _add({}, 1, A, b"x")
    removed = {**base, **sets.remove(base, [b"x"], 0)}
    assert sets.members(removed, 0) == []
    again = _add(base, 2, A, b"x")
    assert sets.members(_join(removed, again), 0) == [b"x"]
    assert sets.members(_join(again, removed), 0) == [b"x"]


def test_a_remove_takes_away_the_adds_of_all_that_it_saw() -> None:
    both = _join(_add({}, 1, A, b"x"), _add({}, 2, B, b"x"))
    removed = {**both, **sets.remove(both, [b"x", b"y"], 0)}
    assert sets.members(_join(both, removed), 0) == []
    assert sets.remove(removed, [b"x"], 0) == {}


def test_a_clear_takes_away_what_it_saw() -> None:
    base = _add(_add({}, 1, A, b"x"), 2, B, b"y")
    cleared = {**base, **sets.delete(base, {A: 1, B: 2}, (3, C))}
    assert sets.members(cleared, 0) == []
    assert len(sets.delete(base, {A: 1, B: 2}, (3, C))) == 1, "in one row"
    unseen = _join(cleared, _add(base, 3, A, b"z"))
    assert sets.members(unseen, 0) == [b"z"]
    assert sets.delete(cleared, {A: 1, B: 2}, (4, C)) == {}
    assert sets.delete({}, {}, (4, C)) == {}


def test_a_clear_covers_earlier_operations_of_its_own_record_only() -> None:
    vv = {A: 5}  # the record is still open: nothing of it is in the version vector
    rows = _add({}, 6, A, b"x")
    rows |= sets.delete(rows, vv, (7, A))
    assert sets.members(rows, 0) == []
    rows = _add(rows, 8, A, b"y")
    assert sets.members(rows, 0) == [b"y"]
    assert rows[HEAD][0] == ((A, 6),)


def test_a_clear_removes_what_came_ahead_of_its_own_record() -> None:
    # A's add of x came inside a row of B; A's own record has not arrived: vv says A: 3.
    rows = _join(_add({}, 9, A, b"x"), _add({}, 3, A, b"w"))
    cleared = {**rows, **sets.delete(rows, {A: 3}, (10, C))}
    assert sets.members(cleared, 0) == []
    # What A added in between was not seen and stays.
    assert sets.members(_join(cleared, _add({}, 8, A, b"y")), 0) == [b"y"]


def test_a_clear_never_reaches_beyond_its_own_time() -> None:
    rows = _add({}, 3, A, b"x")
    cleared = sets.delete(rows, {A: 99}, (5, C))
    assert sets.head_hlc(HEAD, cleared[HEAD]) <= 5


def test_clears_join() -> None:
    base = _add(_add({}, 1, A, b"x"), 2, B, b"y")
    one = {**base, **sets.delete(base, {A: 1}, (3, C))}
    two = {**base, **sets.delete(base, {B: 2}, (4, B))}
    assert sets.members(_join(one, two), 0) == []
    assert _join(one, two) == _join(two, one)


@pytest.mark.parametrize("vv", [{}, {A: 2, B: 3}])
def test_a_new_life_clears_what_it_sees(vv: dict[int, int]) -> None:
    base = _add(_add({}, 1, A, b"x"), 3, B, b"y")
    base |= sets.expire(base, (4, A), 100)
    assert sets.members(base, 99) == [b"x", b"y"]
    assert sets.members(base, 100) == []
    assert not sets.contains(base, b"x", 100)
    assert sets.remove(base, [b"x"], 100) == {}
    reborn = {**base, **sets.add(base, [b"z"], (5, A), 100, vv=vv)}
    assert sets.members(reborn, 10**6) == [b"z"]
    elsewhere = _add(base, 6, B, b"y", now_ms=99)
    assert sets.members(_join(reborn, elsewhere), 10**6) == [b"y", b"z"]


def test_an_emptied_set_begins_again_without_its_expiry() -> None:
    rows = _add({}, 1, A, b"x")
    rows |= sets.expire(rows, (2, A), 100)
    rows |= sets.remove(rows, [b"x"], 0)
    assert sets.expire(rows, (3, A), 200) == {}
    rows = _add(rows, 4, A, b"y")
    assert sets.members(rows, 200) == [b"y"]


def test_a_living_set_keeps_its_expiry() -> None:
    rows = _add({}, 1, A, b"x")
    rows |= sets.expire(rows, (2, A), 100)
    rows = _add(rows, 3, A, b"y")
    assert (sets.members(rows, 99), sets.members(rows, 100)) == ([b"x", b"y"], [])


def test_an_element_may_stand_twice_in_one_add() -> None:
    assert sets.members(_add({}, 1, A, b"x", b"x"), 0) == [b"x"]


def test_an_expire_of_a_cleared_set_keeps_the_clear() -> None:
    rows = _add({}, 1, A, b"x")
    rows |= sets.delete(rows, {}, (2, A))
    rows = _add(rows, 3, A, b"y")
    rows |= sets.expire(rows, (4, A), 100)
    assert sets.members(rows, 0) == [b"y"]


def test_an_add_below_what_is_held_is_our_own_fault() -> None:
    with pytest.raises(AssertionError):
        _add(_add({}, 5, B, b"x"), 4, A, b"x")


def test_one_stamp_with_two_expiries_keeps_the_later_everywhere() -> None:
    early: tuple[object, ...] = (((A, 4),), 5, A, 100)
    late: tuple[object, ...] = (((B, 3),), 5, A, 200)
    for a, b in ((early, late), (late, early)):
        with pytest.raises(StampReused) as raised:
            sets.join_head(a, b)
        assert raised.value.kept == (((A, 4), (B, 3)), 5, A, 200)


def test_joins_give_the_first_row_itself_where_nothing_is_new() -> None:
    row = (b"", ((A, 5, 3), (B, 2, 0)))
    assert sets.join(row, (b"", ((A, 4, 3),))) is row
    assert sets.join(row, (b"", ((A, 5, 3), (B, 2, 0)))) is row
    head = (((A, 5),), 1, 1, 1)
    assert sets.join_head(head, ((), 0, 0, 0)) is head
    assert sets.join_head(head, (((A, 5),), 1, 1, 1)) is head


def test_the_highest_hlc_is_an_adds_a_clears_or_the_expirys() -> None:
    assert sets.row_hlc(X, (b"", ((A, 5, 3), (B, 7, 0)))) == 7
    assert sets.row_hlc(X, (b"", ())) == 0
    assert sets.head_hlc(HEAD, (((A, 5), (B, 7)), 3, 1, 0)) == 7
    assert sets.head_hlc(HEAD, ((), 3, 1, 0)) == 3


@pytest.mark.parametrize(
    ("part", "row"),
    [
        (X, (b"", ((B, 1, 0), (A, 1, 0)))),
        (X, (b"", ((A, 1, 0), (A, 1, 0)))),
        (X, (b"", ((A, 1, 2),))),
        (X, (b"x", ((A, 1, 0),))),
        (X, (b"", ((A, 1),))),
        (sets.part_of(LONG), (b"", ((A, 1, 0),))),
        (sets.part_of(LONG), (b"m" * 256, ((A, 1, 0),))),
        (sets.part_of(LONG)[:1] + sets.hash_of(b"x"), (b"x", ((A, 1, 0),))),
        (b"\x07" + sets.hash_of(b"{" * 256), (b"{" * 256, ((A, 1, 0),))),
        (HEAD, (((B, 1), (A, 1)), 0, 0, 0)),
        (HEAD, (((A, 1), (A, 1)), 0, 0, 0)),
        (HEAD, ((), 0, 0)),
    ],
)
def test_impossible_rows_are_refused(part: bytes, row: tuple[object, ...]) -> None:
    with pytest.raises(CorruptData):
        decode_row(TYPE_SET, part, encode_row(TYPE_SET, part, row))


@pytest.mark.parametrize(
    ("part", "row"),
    [
        (X, (b"", ((A, 1, 0), (B, 2, 2)))),
        (sets.part_of(LONG), (LONG, ((A, 1, 0),))),
        (sets.part_of(LONG_JSON), (LONG_JSON.encode(), ((A, 1, 0),))),
        (HEAD, (((A, 1), (B, 1)), 3, 2, 1)),
    ],
)
def test_rows_come_back_as_they_were(part: bytes, row: tuple[object, ...]) -> None:
    assert decode_row(TYPE_SET, part, encode_row(TYPE_SET, part, row)) == row


def test_an_element_that_fits_its_row_key_stands_nowhere_else() -> None:
    element = b"e" * 255
    part = bytes([TAG_LONG_ELEMENT]) + sets.hash_of(element)
    body = encode_row(TYPE_SET, part, (element, ((A, 1, 0),)))
    with pytest.raises(CorruptData, match="does not fit its hash"):
        decode_row(TYPE_SET, part, body)


def test_of_two_elements_under_one_hash_both_keep_the_larger() -> None:
    one, other = (LONG, ((A, 1, 0),)), (LONG + b"m", ((B, 1, 0),))
    both = (LONG + b"m", ((A, 1, 0), (B, 1, 0)))
    assert sets.join(one, other) == sets.join(other, one) == both


def test_a_head_joined_with_an_empty_one_is_itself() -> None:
    head, empty = (((A, 0), (B, 7)), 0, 0, 0), ((), 0, 0, 0)
    assert sets.join_head(empty, head) == sets.join_head(head, empty) == head


def test_a_set_that_expires_early_can_be_deleted_and_expire_later() -> None:
    """Whether it exists is the caller's question: it knows the time."""
    rows = _add({}, 1, A, b"x")
    rows = {**rows, **sets.expire(rows, (2, A), 1)}
    assert sets.expire(rows, (3, A), 9)[HEAD][-1] == 9
    assert sets.members({**rows, **sets.delete(rows, {A: 2}, (3, A))}, 0) == []


def test_a_clear_names_only_what_it_has_observed() -> None:
    """Rows may come before their vector (a snapshot), and clears of others know more."""
    rows = _add(_add({}, 1, A, b"x"), 4, B, b"x")
    cleared = sets.delete(rows, {A: 1}, (9, A))
    assert dict(cleared[HEAD][0]) == {A: 8}
    rows = {**rows, HEAD: (((B, 3),), 0, 0, 0)}
    assert dict(sets.delete(rows, {A: 1, B: 2}, (9, A))[HEAD][0]) == {A: 8, B: 3}
