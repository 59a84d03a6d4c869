"""Maps: the later write wins per field; counter fields count; a clear ends what came before."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from roost_crdt.errors import BadRequest, CorruptData
from roost_crdt.rows import Rows, StampReused, decode_row, encode_row, join_delta
from roost_crdt.rows import map as maps
from roost_crdt.rows.layout import HEAD, INT64_MAX, TYPE_MAP, field_counter_part, field_part

A, B = 1, 2
F = field_part(b"f")


def _put(rows: Rows, hlc: int, actor: int = A, now_ms: int = 0, **fields: str) -> Rows:
    named = {name.encode(): text for name, text in fields.items()}
    return {**rows, **maps.put(rows, named, (hlc, actor), now_ms)}


def _add(rows: Rows, name: bytes, by: int, hlc: int, actor: int = A, now_ms: int = 0) -> Rows:
    return {**rows, **maps.add(rows, name, by, (hlc, actor), now_ms)}


def _join(a: Rows, b: Rows) -> Rows:
    return {**a, **join_delta(TYPE_MAP, a, b)}


def test_the_later_write_of_a_field_wins() -> None:
    one, two = _put({}, 1, B, f="1", g="1"), _put({}, 2, A, f="2")
    assert maps.fields(_join(one, two), 0) == {b"f": "2", b"g": "1"}
    assert _join(one, two) == _join(two, one)
    assert maps.field(one, b"f", 0) == "1"
    assert maps.field(one, b"none", 0) is None


def test_fields_come_in_order_and_an_empty_one_is_a_field() -> None:
    rows = maps.put({}, {b"b": b"2", b"": b"0"}, (1, A), 0)
    rows |= maps.add(rows, b"a", 1, (2, A), 0)
    assert list(maps.fields(rows, 0).items()) == [(b"", b"0"), (b"a", 1), (b"b", b"2")]


def test_a_removed_field_stays_removed_unless_written_later() -> None:
    base = _put({}, 1, f="1")
    removed = {**base, **maps.remove(base, [b"f", b"none"], (3, A))}
    assert maps.fields(removed, 0) == {}
    assert not maps.exists(removed, 0)
    assert maps.fields(_join(removed, _put(base, 2, B, f="2")), 0) == {}
    assert maps.fields(_join(removed, _put(base, 4, B, f="4")), 0) == {b"f": "4"}
    assert maps.remove(removed, [b"f"], (4, A)) == {}


def test_a_clear_ends_what_was_written_before_it() -> None:
    base = _put({}, 1, f="1")
    cleared = {**base, **maps.delete(base, (3, A))}
    assert maps.fields(cleared, 0) == {}
    assert maps.fields(_join(cleared, _put(base, 2, B, g="2")), 0) == {}
    assert maps.fields(_join(cleared, _put(base, 4, B, g="4")), 0) == {b"g": "4"}
    assert maps.delete(cleared, (4, A)) == {}
    assert maps.remove(cleared, [b"f"], (4, A)) == {}


def test_operations_of_one_record_follow_each_other() -> None:
    rows = _put({}, 1, f="1")
    rows |= maps.delete(rows, (2, A))
    rows = _put(rows, 3, g="3")
    assert maps.fields(rows, 0) == {b"g": "3"}
    rows |= maps.delete(rows, (4, A))
    rows = _put(rows, 5, f="5")
    assert maps.fields(rows, 0) == {b"f": "5"}


def test_fields_expire_by_themselves() -> None:
    rows = maps.put({}, {b"f": b"1"}, (1, A), 0, expires_ms=100)
    rows = _put(rows, 2, g="2")
    assert set(maps.fields(rows, 99)) == {b"f", b"g"}
    assert maps.fields(rows, 100) == {b"g": "2"}
    assert maps.field(rows, b"f", 100) is None


def test_the_whole_map_expires_and_begins_again() -> None:
    base = _add(_put({}, 1, f="1"), b"n", 5, 2)
    base |= maps.expire(base, (3, A), 100)
    assert maps.fields(base, 100) == {}
    assert maps.field(base, b"f", 100) is None
    assert not maps.exists(base, 100)
    reborn = _put(base, 5, B, 100, g="5")
    assert maps.fields(reborn, 10**6) == {b"g": "5"}
    elsewhere = _put(_add(base, b"n", 2, 4), 6, f="6")
    assert maps.fields(_join(reborn, elsewhere), 10**6) == {b"f": "6", b"g": "5", b"n": 2}
    assert maps.expire({}, (1, A), 100) == {}


def test_the_last_write_that_a_new_life_saw_is_gone() -> None:
    rows = _put({}, 1, f="1")
    rows |= maps.expire(rows, (2, A), 100)
    rows = _put(rows, 3, now_ms=100, g="3")
    assert maps.clear_stamp(rows) == (1, A)
    assert maps.remove(rows, [b"f"], (4, A)) == {}
    assert maps.fields(rows, 100) == {b"g": "3"}


def test_a_new_life_does_not_lift_an_earlier_clear() -> None:
    rows = _put({}, 1, f="1")
    rows |= maps.delete(rows, (2, A))
    rows = _put(rows, 3, g="3")
    rows |= maps.expire(rows, (4, A), 100)
    rows |= maps.remove(rows, [b"g"], (5, A))
    rows = _add(rows, b"n", 1, 6)
    assert maps.fields(rows, 200) == {b"n": 1}


def test_counter_fields_lose_no_concurrent_increment() -> None:
    joined = _join(_add({}, b"n", 3, 1, A), _add({}, b"n", -1, 1, B))
    assert maps.field(joined, b"n", 0) == 2
    cleared = {**joined, **maps.delete(joined, (2, A))}
    assert maps.fields(cleared, 0) == {}
    assert maps.fields(_join(cleared, _add(joined, b"n", 7, 3, B)), 0) == {b"n": 7}
    removed = {**joined, **maps.remove(joined, [b"n"], (2, A))}
    assert maps.fields(_join(removed, _add(joined, b"n", 7, 3, B)), 0) == {b"n": 7}


def test_counter_fields_are_apart_from_each_other() -> None:
    rows = _add(_add(_add({}, b"", 1, 1), b"n", 2, 2), b"nn", 3, 3)
    assert maps.fields(rows, 0) == {b"": 1, b"n": 2, b"nn": 3}
    assert maps.fields(rows | maps.remove(rows, [b"n"], (4, A)), 0) == {b"": 1, b"nn": 3}


def test_counter_fields_can_be_assigned() -> None:
    rows = _add(_add({}, b"n", 3, 1, A), b"m", 1, 2, B)
    rows |= maps.assign(rows, b"n", 0, (3, B), 0)
    assert maps.fields(rows, 0) == {b"m": 1, b"n": 0}
    rows |= maps.expire(rows, (4, A), 100)
    rows |= maps.assign(rows, b"n", 9, (5, B), 100)
    assert maps.fields(rows, 200) == {b"n": 9}
    assert maps.add(rows, b"n", 0, (6, B), 100) == {}
    assert maps.fields(_add(rows, b"z", 0, 6), 0) == {b"n": 9, b"z": 0}


def test_a_counter_field_beyond_int64_is_refused() -> None:
    rows = maps.add({}, b"n", INT64_MAX, (1, A), 0)
    assert maps.field(rows, b"n", 0) == INT64_MAX
    with pytest.raises(BadRequest, match="overflow"):
        maps.add(rows, b"n", 1, (2, A), 0)
    with pytest.raises(BadRequest, match="overflow"):
        maps.assign(rows, b"n", INT64_MAX + 1, (2, A), 0)


def test_a_field_that_is_both_reads_as_its_counter() -> None:
    rows = _add(_put({}, 1, n="1"), b"n", 5, 2)
    assert maps.field(rows, b"n", 0) == 5
    assert maps.fields(rows, 0) == {b"n": 5}


def test_too_long_a_field_is_refused() -> None:
    for operation in (
        lambda: maps.put({}, {b"x" * 256: b""}, (1, A), 0),
        lambda: maps.add({}, b"x" * 256, 1, (1, A), 0),
        lambda: maps.remove({}, [b"x" * 256], (1, A)),
    ):
        with pytest.raises(BadRequest, match="256 bytes"):
            operation()
    assert maps.fields(maps.put({}, {b"x" * 255: b""}, (1, A), 0), 0) == {b"x" * 255: b""}


_HELD = maps.put({}, {b"f": b"1"}, (5, B), 0)


@pytest.mark.parametrize(
    "operation",
    [
        lambda: maps.put(_HELD, {b"f": b""}, (5, B), 0),
        lambda: maps.remove(_HELD, [b"f"], (4, B)),
        lambda: maps.delete({**_HELD, HEAD: (4, A, 0, 0, 0)}, (3, A)),
        lambda: maps.put({HEAD: (9, A, 0, 0, 0)}, {b"g": b""}, (8, A), 0),
    ],
)
def test_a_stamp_below_what_is_held_is_our_own_fault(operation: Callable[[], Rows]) -> None:
    with pytest.raises(AssertionError, match="is not above"):
        operation()


def test_one_stamp_with_two_bodies_keeps_the_same_one_everywhere() -> None:
    one, two = (5, A, 1, b"two", 0), (5, A, 1, b"more bytes", 0)
    early, late = (9, A, 5, A, 100), (1, A, 5, A, 200)
    for a, b in ((one, two), (two, one)):
        with pytest.raises(StampReused) as raised:
            maps.join(a, b)
        assert raised.value.kept == two
    for a, b in ((early, late), (late, early)):
        with pytest.raises(StampReused) as raised:
            maps.join_head(a, b)
        assert raised.value.kept == (9, A, 5, A, 200)


def test_joins_give_the_first_row_itself_where_nothing_is_new() -> None:
    head = (9, A, 5, A, 100)
    assert maps.join_head(head, (8, B, 4, A, 200)) is head
    assert maps.join_head(head, (9, A, 5, A, 100)) is head
    row = (9, A, 1, b"", 0)
    assert maps.join(row, (8, B, 1, b"x", 0)) is row
    assert maps.join(row, (9, A, 1, b"", 0)) is row


def test_the_highest_hlc_is_a_writes_a_clears_or_the_expirys() -> None:
    assert maps.row_hlc(F, (7, A, 1, b"", 0)) == 7
    assert maps.head_hlc(HEAD, (7, A, 8, A, 0)) == 8
    assert maps.head_hlc(HEAD, (9, A, 8, A, 0)) == 9


@pytest.mark.parametrize(
    ("part", "row"),
    [
        (F, (1, A, 0, b"", 5)),
        (F, (1, A, 0, b"x", 0)),
        (F, (1, A, 9, b"", 0)),
        (F, (1, A, 2, b"{", 0)),
        (F, (1, A, 1, b"")),
        (HEAD, (1, A, 1, A)),
        (field_counter_part(b"f", A, 1), (1, 0, 2, 0)),
    ],
)
def test_impossible_rows_are_refused(part: bytes, row: tuple[object, ...]) -> None:
    with pytest.raises(CorruptData):
        decode_row(TYPE_MAP, part, encode_row(TYPE_MAP, part, row))


@pytest.mark.parametrize(
    ("part", "row"),
    [
        (F, (1, A, 0, b"", 0)),
        (F, (1, A, 1, b"\xff", 5)),
        (F, (1, A, 2, b"{}", 0)),
        (HEAD, (1, A, 2, B, 3)),
        (field_counter_part(b"f", A, 1), (3, 1, 2, 0)),
    ],
)
def test_rows_come_back_as_they_were(part: bytes, row: tuple[object, ...]) -> None:
    assert decode_row(TYPE_MAP, part, encode_row(TYPE_MAP, part, row)) == row


def test_an_actor_adds_to_rows_of_its_own_only() -> None:
    others = maps.add({}, b"n", 5, (1, B), 0)
    delta = maps.add(others, b"n", 3, (2, A), 0)
    assert not others.keys() & delta.keys(), "A and B differ in their last byte"
    assert maps.add({**others, **delta}, b"n", 1, (3, A), 0).keys() == delta.keys()


def test_a_field_is_over_in_the_first_millisecond_that_there_is() -> None:
    rows = {F: (1, A, 1, b"v", 1)}
    assert maps.field(rows, b"f", 0) == b"v"
    assert maps.field(rows, b"f", 1) is None


def test_a_map_that_expires_early_can_be_deleted_and_expire_later() -> None:
    """Whether it exists is the caller's question: it knows the time."""
    rows = _put({}, 1, f="1")
    rows = {**rows, **maps.expire(rows, (2, A), 1)}
    assert maps.expire(rows, (3, A), 9)[HEAD][-1] == 9
    assert maps.fields({**rows, **maps.delete(rows, (3, A))}, 0) == {}


def test_a_count_that_has_expired_is_no_part_of_the_next_one() -> None:
    rows = _add({}, b"n", INT64_MAX, 1)
    rows = {**rows, **maps.expire(rows, (2, A), 5)}
    rows = _add(rows, b"n", 3, 3, now_ms=5)
    assert maps.fields(rows, 6) == {b"n": 3}


def test_no_field_of_a_life_that_is_over_comes_back() -> None:
    rows = _put(_put({}, 1, e="early"), 2, l="late")
    rows = {**rows, **maps.expire(rows, (3, A), 5)}
    assert maps.fields(_put(rows, 4, now_ms=5, n="new"), 6) == {b"n": "new"}
