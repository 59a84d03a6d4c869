"""What the join of two histories loses: with it, everything is counted once."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost_crdt.forks import again_part, counts, dot_of, is_lost, lost_count, matters
from roost_crdt.rows import counter, rate
from roost_crdt.rows.layout import (
    HEAD,
    TYPE_COUNTER,
    TYPE_MAP,
    TYPE_RATE,
    TYPE_REGISTER,
    TYPE_SET,
    VALUE,
    Row,
    actor_part,
    field_counter_part,
    field_part,
    window_part,
)

A, AGAIN = 7, 9
COUNT = actor_part(A, 1)

amounts = st.integers(0, 100)


@st.composite
def histories(draw: st.DrawFn) -> tuple[Row, Row, Row, int]:
    """Base, two rows that continue it, and what is left of both: a reset in either takes away what
    that history had at the time, the common part for both of them."""
    p = draw(amounts)
    base = (p, 0, draw(st.integers(0, p)), 0)
    rows, left, common = [], 0, p - base[2]
    for _ in range(2):
        before, after = draw(amounts), draw(amounts)
        if draw(st.booleans()):
            rows.append((p + before + after, 0, p + before, 0))
            left, common = left + after, 0
        else:
            rows.append((p + before + after, 0, base[2], 0))
            left += before + after
    return base, rows[0], rows[1], left + common


@given(histories())
def test_with_what_is_lost_every_increment_is_counted_once(
    made: tuple[Row, Row, Row, int],
) -> None:
    base, mine, theirs, left = made
    lost = lost_count(COUNT, mine, theirs, base)
    assert lost == lost_count(COUNT, theirs, mine, base)
    rows = [counter.join(mine, theirs), *([] if lost is None else [lost])]
    assert (counter.total(rows) or 0) == left
    for row in rows:
        assert counter.decode(COUNT, _body(row)) == row


def _body(row: Row) -> bytes:
    return msgspec.msgpack.encode(row)


@given(histories(), amounts)
def test_more_of_the_other_history_only_adds(made: tuple[Row, Row, Row, int], more: int) -> None:
    base, mine, theirs, _ = made
    before = lost_count(COUNT, mine, theirs, base) or (0, 0, 0, 0)
    after = lost_count(COUNT, mine, (theirs[0] + more, *theirs[1:]), base) or (0, 0, 0, 0)
    assert counter.join(after, before) == after


def test_decrements_and_a_row_that_was_not_there() -> None:
    assert lost_count(COUNT, (5, 7, 0, 0), (3, 9, 0, 0), None) == (3, 7, 0, 0)
    assert lost_count(COUNT, (5, 0, 0, 0), (0, 9, 0, 0), None) is None
    assert lost_count(COUNT, (5, 3, 5, 3), (5, 3, 5, 3), (5, 3, 0, 0)) is None


def test_rate_windows() -> None:
    part = window_part(3, A)
    mine, theirs, base = (120, 10, 1_000), (110, 0, 1_000), (100, 0, 1_000)
    lost = lost_count(part, mine, theirs, base)
    assert lost == (10, 0, 1_000)
    assert rate.join(mine, theirs)[0] + lost[0] == 130
    assert again_part(part, AGAIN) == window_part(3, AGAIN)


def test_what_is_lost_stands_in_rows_of_another_actor() -> None:
    assert again_part(COUNT, AGAIN) == actor_part(AGAIN, 1)
    assert again_part(field_counter_part(b"f", A, 1), AGAIN) == field_counter_part(b"f", AGAIN, 1)


@pytest.mark.parametrize(
    ("type_code", "part", "whose", "counted", "kept"),
    [
        (TYPE_COUNTER, COUNT, A, True, True),
        (TYPE_COUNTER, COUNT, AGAIN, False, False),
        (TYPE_COUNTER, HEAD, A, False, False),
        (TYPE_MAP, field_counter_part(b"f", A, 1), A, True, True),
        (TYPE_MAP, field_part(b"f"), A, False, False),
        (TYPE_RATE, window_part(1, A), A, True, True),
        (TYPE_RATE, window_part(1, A), AGAIN, False, False),
        (TYPE_REGISTER, VALUE, A, False, False),
        (TYPE_SET, HEAD, A, False, True),
    ],
)
def test_rows_that_matter(
    type_code: int, part: bytes, whose: int, counted: bool, kept: bool
) -> None:
    assert counts(type_code, part, whose) is counted
    assert matters(type_code, part, whose) is kept


def test_an_add_that_the_other_history_cannot_have_seen() -> None:
    row = (b"", ((A, 30, 5), (AGAIN, 8, 2)))
    head = (((A, 12),), 0, 0, 0)
    assert dot_of(A, row, None) == (30, 5)
    assert dot_of(A, row, head) == (30, 12)
    assert dot_of(A, None, head) == (0, 12)
    assert dot_of(1, row, head) == (0, 0)
    assert is_lost((30, 12), (0, 40), 20)
    assert is_lost((0, 40), (30, 12), 20)
    assert not is_lost((30, 12), (0, 29), 20), "it is still there"
    assert not is_lost((30, 30), (0, 40), 20), "its own history removed it"
    assert not is_lost((18, 0), (0, 40), 20), "both knew it"
