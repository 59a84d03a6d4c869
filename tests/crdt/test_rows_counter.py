"""Counters: nothing lost, nothing doubled; a reset takes away what it saw."""

from __future__ import annotations

import pytest

from roost_crdt.errors import BadRequest, CorruptData
from roost_crdt.rows import Rows, StampReused, counter, decode_row, encode_row, join_delta
from roost_crdt.rows.layout import HEAD, INT64_MAX, INT64_MIN, TYPE_COUNTER, U64_MAX, actor_part

A, B = 1, 2


def _add(rows: Rows, by: int, hlc: int, actor: int = A, now_ms: int = 0) -> Rows:
    return {**rows, **counter.add(rows, by, (hlc, actor), now_ms)}


def _join(a: Rows, b: Rows) -> Rows:
    return {**a, **join_delta(TYPE_COUNTER, a, b)}


def test_two_regions_begin_at_once() -> None:
    joined = _join(_add({}, 3, 1, A), _add({}, -1, 1, B))
    assert counter.value(joined, 0) == 2
    assert counter.value(_join(joined, _add({}, 3, 1, A)), 0) == 2, "nothing is doubled"


def test_an_increment_survives_a_concurrent_delete() -> None:
    base = _add({}, 5, 1, A)
    deleted = {**base, **counter.delete(base, (2, B), 0)}
    assert counter.value(deleted, 0) is None
    assert counter.value(_join(deleted, _add(base, 2, 3, A)), 0) == 2
    assert counter.delete(deleted, (4, B), 0) == {}


def test_assigning_resets_what_it_saw_and_no_more() -> None:
    base = _add(_add({}, 5, 1, A), 4, 2, B)
    assigned = {**base, **counter.assign(base, -7, (3, A), 0)}
    assert counter.value(assigned, 0) == -7
    assert counter.value(_join(assigned, _add(base, 1, 4, B)), 0) == -6


def test_zero_exists() -> None:
    assert counter.value({}, 0) is None
    rows = counter.assign({}, 0, (1, A), 0)
    assert counter.value(rows, 0) == 0
    assert counter.value(_add({}, 0, 1), 0) == 0
    assert counter.value(_add(_add({}, 1, 1), -1, 2), 0) == 0
    assert counter.add(rows, 0, (2, A), 0) == {}


def test_an_increment_survives_the_expiry_that_did_not_see_it() -> None:
    base = _add({}, 5, 1, A)
    base |= counter.expire(base, (2, A), 100)
    elsewhere = _add(base, 2, 3, A, now_ms=99)
    here = _add(base, 1, 4, B, now_ms=100)
    assert counter.value(base, 100) is None
    assert counter.value(here, 100) == 1
    assert counter.value(here, 10**6) == 1, "the new life has no expiry"
    assert counter.value(_join(here, elsewhere), 10**6) == 3


def test_a_deleted_counter_begins_again_without_its_expiry() -> None:
    rows = _add({}, 5, 1)
    rows |= counter.expire(rows, (2, A), 100)
    rows |= counter.delete(rows, (3, A), 0)
    rows = _add(rows, 1, 4)
    assert counter.value(rows, 200) == 1


def test_ending_takes_away_what_was_seen_and_the_expiry_that_would_hide_the_next_life() -> None:
    rows = _add(_add({}, 5, 1, A), 2, 2, B)
    rows |= counter.expire(rows, (3, A), 100)
    ended = {**rows, **counter.end(rows, (4, A))}
    assert counter.value(ended, 0) is None
    assert counter.value(_add(ended, 1, 5, B), 200) == 1
    late = {**rows, **counter.add(rows, 3, (5, B), 99)}
    assert counter.value(_join(ended, late), 200) == 3, "an increment that it did not see"


def test_assigning_ends_the_expiry_unless_told_to_keep_it() -> None:
    rows = _add({}, 5, 1)
    rows |= counter.expire(rows, (2, A), 100)
    assert counter.value({**rows, **counter.assign(rows, 9, (3, A), 0)}, 100) == 9
    kept = {**rows, **counter.assign(rows, 9, (3, A), 0, keep_ttl=True)}
    assert (counter.value(kept, 99), counter.value(kept, 100)) == (9, None)
    late = {**rows, **counter.assign(rows, 9, (3, A), 100, keep_ttl=True)}
    assert counter.value(late, 100) == 9, "what has expired leaves no expiry to keep"


def test_expire_of_nothing_writes_nothing() -> None:
    assert counter.expire({}, (1, A), 100) == {}


def test_an_assignment_and_its_expire_may_share_a_stamp() -> None:
    rows = _add({}, 5, 1)
    rows |= counter.expire(rows, (2, A), 100)
    rows |= counter.assign(rows, 1, (3, A), 0)
    rows |= counter.expire(rows, (3, A), 200)
    assert (counter.value(rows, 199), counter.value(rows, 200)) == (1, None)
    with pytest.raises(AssertionError):
        counter.expire(rows, (2, A), 300)


@pytest.mark.parametrize(("held", "by"), [(INT64_MAX, 1), (INT64_MIN, -1)])
def test_a_value_beyond_int64_is_refused(held: int, by: int) -> None:
    rows = counter.assign({}, held, (1, A), 0)
    assert counter.value(rows, 0) == held
    with pytest.raises(BadRequest, match="overflow"):
        counter.add(rows, by, (2, A), 0)
    with pytest.raises(BadRequest, match="overflow"):
        counter.assign(rows, held + by, (2, A), 0)


@pytest.mark.parametrize("value", [INT64_MAX, INT64_MIN])
def test_a_row_without_room_is_followed_by_another(value: int) -> None:
    rows: Rows = {}
    for hlc in range(1, 7):
        rows |= counter.assign(rows, value, (hlc, A), 0)
        assert counter.value(rows, 0) == value
        assert all(number <= U64_MAX for row in rows.values() for number in row)
    assert len(rows) > 1
    step = -1 if value > 0 else 1
    rows |= counter.add(rows, step, (7, A), 0)
    assert counter.value(rows, 0) == value + step


@pytest.mark.parametrize("sign", [1, -1])
def test_a_row_is_filled_to_its_last_unit(sign: int) -> None:
    part, full = actor_part(A, 1), U64_MAX - 1
    row = (full, 0, full, 0) if sign > 0 else (0, full, 0, full)
    filled = counter.add({part: row}, sign, (2, A), 0)
    assert list(filled) == [part]
    assert U64_MAX in filled[part]
    assert list(counter.add(filled, sign, (3, A), 0)) == [actor_part(A, 3)]


def test_an_actor_goes_on_in_its_newest_row() -> None:
    rows: Rows = {actor_part(A, 3): (1, 0, 1, 0), actor_part(A, 9): (4, 0, 0, 0)}
    assert counter.add(rows, 1, (10, A), 0) == {actor_part(A, 9): (5, 0, 0, 0)}
    backwards = dict(reversed(rows.items()))
    assert counter.add(backwards, 1, (10, A), 0) == {actor_part(A, 9): (5, 0, 0, 0)}


def test_an_hlc_used_twice_is_our_own_fault() -> None:
    rows: Rows = {actor_part(A, 5): (U64_MAX, 0, U64_MAX, 0)}
    with pytest.raises(AssertionError, match="two operations"):
        counter.add(rows, 1, (5, A), 0)


def test_a_collected_row_that_comes_back_is_not_counted_again() -> None:
    old = _add({}, 5, 1)
    dead = {**old, **counter.delete(old, (2, A), 0)}
    fresh = _add({}, 1, 3)  # the dead row was collected here
    assert counter.value(_join(fresh, dead), 0) == 1


def test_joins_keep_the_row_that_already_holds_all() -> None:
    row = (5, 4, 3, 2)
    assert counter.join(row, (5, 1, 0, 2)) is row
    assert counter.join(row, (5, 4, 3, 2)) is row
    assert counter.join((1, 9, 1, 0), (2, 3, 0, 1)) == (2, 9, 1, 1)


def test_heads_join_by_stamp() -> None:
    early, late = (1, A, 500), (2, A, 100)
    rows = {HEAD: early}
    assert join_delta(TYPE_COUNTER, rows, {HEAD: late}) == {HEAD: late}
    assert join_delta(TYPE_COUNTER, {HEAD: late}, rows) == {}
    assert join_delta(TYPE_COUNTER, rows, {HEAD: (1, A, 500)}) == {}


def test_one_stamp_with_two_expiries_keeps_the_later_everywhere() -> None:
    for a, b in (((1, A, 5), (1, A, 6)), ((1, A, 6), (1, A, 5))):
        with pytest.raises(StampReused) as raised:
            join_delta(TYPE_COUNTER, {HEAD: a}, {HEAD: b, actor_part(A, 1): (1, 0, 0, 0)})
        assert {HEAD: a, **raised.value.kept} == {HEAD: (1, A, 6), actor_part(A, 1): (1, 0, 0, 0)}


def test_the_highest_hlc_is_the_birth_or_the_expirys() -> None:
    assert counter.row_hlc(actor_part(A, 7), (1, 0, 0, 0)) == 7
    assert counter.head_hlc(HEAD, (8, A, 0)) == 8


@pytest.mark.parametrize("row", [(1, 1, 2, 0), (1, 1, 0, 2), (1, 1, 0), (-1, 0, 0, 0), (1.0,) * 4])
def test_impossible_rows_are_refused(row: tuple[object, ...]) -> None:
    part = actor_part(A, 1)
    with pytest.raises(CorruptData):
        decode_row(TYPE_COUNTER, part, encode_row(TYPE_COUNTER, part, row))


@pytest.mark.parametrize(
    ("part", "row"), [(actor_part(A, 1), (U64_MAX, 3, U64_MAX, 2)), (HEAD, (5, A, 99))]
)
def test_rows_come_back_as_they_were(part: bytes, row: tuple[int, ...]) -> None:
    assert decode_row(TYPE_COUNTER, part, encode_row(TYPE_COUNTER, part, row)) == row


@pytest.mark.parametrize("by", [INT64_MAX, INT64_MIN])
def test_the_first_increment_may_be_as_large_as_any(by: int) -> None:
    assert counter.value(_add({}, by, 1), 0) == by


def test_deleting_what_has_expired_writes_nothing() -> None:
    rows = _add({}, 5, 1)
    rows |= counter.expire(rows, (2, A), 50)
    assert counter.delete(rows, (3, A), 50) == {}
    assert counter.value({**rows, **counter.delete(rows, (3, A), 49)}, 0) is None
