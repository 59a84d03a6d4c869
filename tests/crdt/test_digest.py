"""Digests: equal where readers see the same, different where they do not; cheap to keep."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roost_crdt import document, values
from roost_crdt.digest import (
    BUCKETS,
    HOUR_MS,
    MODULUS,
    Contribution,
    bucket_of,
    change,
    contribution,
    count_amount,
    register_amount,
    root,
)
from roost_crdt.rows import Rows, counter, doc, join_delta, rate, register
from roost_crdt.rows import map as maps
from roost_crdt.rows import set as sets
from roost_crdt.rows.layout import (
    TYPE_BY_NAME,
    TYPE_COUNTER,
    TYPE_DOC,
    TYPE_MAP,
    TYPE_RATE,
    TYPE_REGISTER,
    TYPE_SET,
    VALUE,
)
from roost_crdt.testing import TYPES, row_states
from roost_crdt.testing.edits import edit

A, B = 1, 2
NOTHING = Contribution(0, {})
K = b"k"


def _plus(a: Contribution, b: Contribution) -> Contribution:
    hours = {
        hour: amount
        for hour in {*a.hours, *b.hours}
        if (amount := (a.hours.get(hour, 0) + b.hours.get(hour, 0)) % MODULUS)
    }
    return Contribution((a.live + b.live) % MODULUS, hours)


@pytest.mark.parametrize("name", TYPES)
def test_a_change_leads_from_one_sum_to_the_next(name: str) -> None:
    code = TYPE_BY_NAME[name]

    @settings(max_examples=200, deadline=None)
    @given(row_states(name), row_states(name))
    def check(before: Rows, delta: Rows) -> None:
        joined = join_delta(code, before, delta)
        after = {**before, **joined}
        moved = _plus(contribution(code, K, before), change(code, K, before, joined))
        assert moved == contribution(code, K, after)
        assert change(code, K, before, {}) == NOTHING

    check()


@pytest.mark.parametrize("name", TYPES)
def test_what_is_dead_adds_nothing(name: str) -> None:
    code = TYPE_BY_NAME[name]

    @settings(max_examples=100, deadline=None)
    @given(row_states(name))
    def check(rows: Rows) -> None:
        left = {**rows}
        for part in values.dead_parts(code, rows, 0):
            del left[part]
        assert contribution(code, K, left) == contribution(code, K, rows)

    check()


def test_tombstones_and_rates_add_nothing() -> None:
    put = register.put({}, b"v", (1, A))
    assert contribution(TYPE_REGISTER, K, register.delete(put, (2, A))) == NOTHING
    rows = rate.add({}, 5, (1 << 40, A), 1_000, 100)
    assert contribution(TYPE_RATE, K, rows) == NOTHING
    assert change(TYPE_RATE, K, {}, rows) == NOTHING


def test_a_document_adds_the_rows_that_are_shown() -> None:
    first = doc.put({}, edit((5, 0)), (3, A), 0, yjs=document, vv={})
    held = contribution(TYPE_DOC, K, first)
    assert held != NOTHING
    second = doc.put(first, edit((6, 0), (5, 0)), (4, 2), 0, yjs=document, vv={})
    both = contribution(TYPE_DOC, K, {**first, **second})
    assert change(TYPE_DOC, K, first, second) == both.minus(held) != NOTHING
    deleted = doc.delete({**first, **second}, {A: 3, 2: 4}, (5, A), yjs=document)
    assert contribution(TYPE_DOC, K, {**first, **second, **deleted}) == NOTHING
    # An edit that the DEL has not seen needs what lies below it, deleted as it is.
    third = doc.put({**first, **second}, edit((7, 0), (6, 0)), (5, 3), 0, yjs=document, vv={})
    before = {**first, **second, **deleted}
    after = {**before, **third}
    assert len(doc.shown(after)) == 4
    assert change(TYPE_DOC, K, before, third) == contribution(TYPE_DOC, K, after) != NOTHING


def test_what_readers_see_differs_in_the_sum() -> None:
    def of(value: bytes | str, key: bytes = K) -> int:
        return contribution(TYPE_REGISTER, key, register.put({}, value, (1, A))).live

    sums = [of(b"1"), of("1"), of(b"2"), of(b"1", b"other")]
    fields = maps.put({}, {b"f": b"1"}, (1, A), 0)
    sums.append(contribution(TYPE_MAP, K, fields).live)
    sums.append(contribution(TYPE_MAP, K, maps.put({}, {b"f": b"2"}, (1, A), 0)).live)
    sums.append(contribution(TYPE_MAP, K, maps.put({}, {b"g": b"1"}, (1, A), 0)).live)
    sums.append(contribution(TYPE_SET, K, sets.add({}, [b"f"], (1, A), 0)).live)
    sums.append(contribution(TYPE_SET, K, sets.add({}, ["1"], (1, A), 0)).live)
    sums.append(contribution(TYPE_COUNTER, K, counter.add({}, 1, (1, A), 0)).live)
    sums.append(contribution(TYPE_COUNTER, K, counter.add({}, 2, (1, A), 0)).live)
    assert 0 not in sums
    assert len(set(sums)) == len(sums)


def test_the_stamp_of_a_value_is_not_its_value() -> None:
    one = contribution(TYPE_REGISTER, K, register.put({}, b"v", (1, A)))
    assert one == contribution(TYPE_REGISTER, K, register.put({}, b"v", (2, B)))
    once = sets.add({}, [b"x"], (1, A), 0)
    twice = sets.add(once, [b"x"], (2, A), 0)
    assert contribution(TYPE_SET, K, once) == contribution(TYPE_SET, K, twice)


def test_what_expires_is_summed_by_its_hour() -> None:
    ends_ms = 7 * HOUR_MS + 5
    put = contribution(TYPE_REGISTER, K, register.put({}, b"v", (1, A), ends_ms))
    assert put.live == 0
    assert list(put.hours) == [7]
    rows = counter.add({}, 1, (1, A), 0)
    rows |= counter.expire(rows, (2, A), ends_ms)
    assert list(contribution(TYPE_COUNTER, K, rows).hours) == [7]
    other = {**rows, **counter.expire(rows, (3, A), ends_ms + 1)}
    assert contribution(TYPE_COUNTER, K, other) != contribution(TYPE_COUNTER, K, rows)
    field = maps.put({}, {b"f": b"1"}, (1, A), 0, expires_ms=ends_ms)
    assert list(contribution(TYPE_MAP, K, field).hours) == [7]
    whole = {**field, **maps.expire(field, (2, A), 2 * HOUR_MS)}
    assert list(contribution(TYPE_MAP, K, whole).hours) == [2], "whichever ends first"


def test_a_new_expiry_moves_every_element_of_the_key() -> None:
    rows = sets.add({}, [b"x", b"y"], (1, A), 0)
    delta = sets.expire(rows, (2, A), 3 * HOUR_MS)
    moved = change(TYPE_SET, K, rows, delta)
    before = contribution(TYPE_SET, K, rows)
    assert moved.live == -before.live % MODULUS
    assert list(moved.hours) == [3]


def test_a_sum_that_returns_to_nothing_leaves_nothing() -> None:
    a = Contribution(5, {1: 2, 2: 3})
    assert a.minus(a) == NOTHING
    assert NOTHING.minus(a) == Contribution(MODULUS - 5, {1: MODULUS - 2, 2: MODULUS - 3})


def test_buckets_are_used_evenly() -> None:
    used = {bucket_of(b"policy:%d" % number) for number in range(40_000)}
    assert used <= set(range(BUCKETS))
    assert len(used) > BUCKETS * 0.99


@given(st.integers(0, BUCKETS - 1), st.integers(1, MODULUS - 1))
def test_the_root_shows_every_bucket(bucket: int, amount: int) -> None:
    empty = [0] * BUCKETS
    changed = list(empty)
    changed[bucket] = amount
    assert root(changed, {}, 0) != root(empty, {}, 0)
    assert len(root(empty, {}, 0)) == 32


def test_hours_count_until_they_are_due() -> None:
    buckets = [0] * BUCKETS
    empty = root(buckets, {}, 0)
    assert root(buckets, {5: 1}, 5 * HOUR_MS - 1) != empty
    assert root(buckets, {5: 1}, 5 * HOUR_MS) == empty
    assert root(buckets, {5: 0}, 0) == empty
    assert root(buckets, {5: 1, 6: 2}, 0) == root(buckets, {6: 2, 5: 1}, 0)
    assert root(buckets, {5: 1, 6: 2}, 0) != root(buckets, {5: 2, 6: 1}, 0)
    with pytest.raises(AssertionError):
        root([0], {}, 0)


def test_the_amount_of_one_row_is_what_the_whole_key_adds() -> None:
    """Writers of one row sum it alone; a dead one adds nothing."""
    rows = register.put({}, b"v", (5, A))
    assert contribution(TYPE_REGISTER, K, rows) == (register_amount(K, rows[VALUE]), {})
    ends = register.put({}, b"v", (5, A), 3 * HOUR_MS)
    (hour,) = contribution(TYPE_REGISTER, K, ends).hours.values()
    assert hour == register_amount(K, ends[VALUE]) != register_amount(K, rows[VALUE])
    assert register_amount(K, register.delete(rows, (6, A))[VALUE]) == 0
    counts = counter.add({}, 5, (5, A), 0)
    (part,) = counts
    amount = count_amount(TYPE_COUNTER, K, part, counts[part], 0)
    assert contribution(TYPE_COUNTER, K, counts) == (amount, {})
    gone = counter.delete(counts, (6, A), 0)
    assert count_amount(TYPE_COUNTER, K, part, gone[part], 0) == 0
