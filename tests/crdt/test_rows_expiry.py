"""Expiry of whole keys: the later EXPIRE wins, hidden at its millisecond and not before."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost_crdt.rows.expiry import (
    NO_EXPIRY,
    head_expiry,
    is_hidden,
    join_expiry,
    join_plain_head,
    new_expiry,
)
from roost_crdt.rows.layout import HEAD, Rows, StampReused

expiries = st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3))


def held(*head: object) -> Rows:
    return {HEAD: head}


def test_a_head_ends_in_its_expiry() -> None:
    assert head_expiry({}) == NO_EXPIRY
    assert head_expiry(held(5, 6, 7)) == (5, 6, 7)
    assert head_expiry(held(1, 2, 5, 6, 7)) == (5, 6, 7)
    assert head_expiry(held(((1, 2),), 5, 6, 7)) == (5, 6, 7)


@pytest.mark.parametrize(
    ("rows", "now_ms", "hidden"),
    [
        ({}, 10**12, False),
        (held(1, 1, 0), 10**12, False),
        (held(1, 1, 1), 1, True),
        (held(1, 1, 100), 99, False),
        (held(1, 1, 100), 100, True),
        (held(1, 1, 100), 101, True),
    ],
)
def test_a_key_is_hidden_from_its_expiry_on(rows: Rows, now_ms: int, hidden: bool) -> None:
    assert is_hidden(rows, now_ms) is hidden


def test_a_new_expiry_is_not_below_the_one_in_force() -> None:
    assert new_expiry({}, (3, 1), 9) == (3, 1, 9)
    assert new_expiry(held(3, 1, 5), (3, 1), 9) == (3, 1, 9), "one operation, one stamp"
    assert new_expiry(held(3, 1, 5), (4, 0), 0) == (4, 0, 0)
    with pytest.raises(AssertionError, match="is below"):
        new_expiry(held(3, 1, 5), (3, 0), 9)
    with pytest.raises(AssertionError):
        new_expiry({}, (3, 1), -1)


@given(expiries, expiries)
def test_the_later_one_wins_and_a_reused_stamp_is_told(
    a: tuple[int, int, int], b: tuple[int, int, int]
) -> None:
    joined, reused = join_expiry(a, b)
    assert joined == max(a, b)
    assert reused == (a[:2] == b[:2] and a[2] != b[2])
    assert join_expiry(b, a) == (joined, reused)
    if reused:
        with pytest.raises(StampReused, match="two expiries under the stamp") as caught:
            join_plain_head(a, b)
        assert caught.value.kept == joined
    else:
        assert join_plain_head(a, b) == joined


def test_a_join_that_adds_nothing_gives_the_row_itself() -> None:
    a, same, older = (2, 1, 5), (2, 1, 5), (1, 9, 9)
    assert join_plain_head(a, same) is a
    assert join_plain_head(a, older) is a
