"""Rates: windows that slide, and die by the clock."""

from __future__ import annotations

import pytest

from roost_crdt.errors import BadRequest, CorruptData
from roost_crdt.hlc import hlc_from_ms
from roost_crdt.rows import Rows, decode_row, encode_row, join_delta, rate
from roost_crdt.rows.layout import HEAD, INT64_MAX, TYPE_RATE, U64_MAX, window_part

A, B = 1, 2
W = 100


def _add(rows: Rows, by: int, now_ms: int, actor: int = A, window_ms: int = W) -> Rows:
    stamp = (hlc_from_ms(now_ms) + 1, actor)
    return {**rows, **rate.add(rows, by, stamp, now_ms, window_ms)}


def _join(a: Rows, b: Rows) -> Rows:
    return {**a, **join_delta(TYPE_RATE, a, b)}


def test_the_former_window_weighs_by_what_the_sliding_one_covers() -> None:
    rows = _add(_add({}, 10, 1_000), 4, 1_100)
    assert rate.estimate(rows, 1_099, W) == 14, "a window that a faster clock began counts"
    assert rate.estimate(rows, 1_100, W) == 14
    assert rate.estimate(rows, 1_125, W) == 4 + 7
    assert rate.estimate(rows, 1_199, W) == 4
    assert rate.estimate(rows, 1_250, W) == 2
    assert rate.estimate(rows, 1_300, W) == 0


def test_a_clock_that_was_set_back_does_not_count_hours_at_once() -> None:
    rows: Rows = {}
    for second in range(60):
        rows = _add(rows, 10, 1_000_000 + 1_000 * second, window_ms=1_000)
    assert rate.estimate(rows, 1_059_999, 1_000) == 10
    assert rate.estimate(rows, 1_000_000, 1_000) == 10
    assert rate.estimate(rows, 999_500, 1_000) == 10, "a neighbour's clock may be so far ahead"
    assert rate.estimate(rows, 999_499, 1_000) == 0
    assert rate.estimate(_add(rows, 1, 990_000, window_ms=1_000), 990_000, 1_000) == 1


def test_actors_add_up_and_nothing_is_doubled() -> None:
    one, two = _add({}, 3, 1_000, A), _add(_add({}, 2, 1_000, B), 2, 1_001, B)
    joined = _join(_join(one, two), one)
    assert rate.estimate(joined, 1_050, W) == 7


def test_windows_of_another_length_are_not_mixed_in() -> None:
    rows = _add(_add({}, 3, 1_000), 5, 1_000, window_ms=1_000)
    assert rate.estimate(rows, 1_000, W) == 3
    assert rate.estimate(rows, 1_000, 1_000) == 5


def test_windows_die_by_the_clock() -> None:
    rows = _add({}, 3, 1_050)
    part = window_part(10, A)
    assert rate.end_ms(part, rows[part]) == 1_200
    assert rate.exists(rows, 1_199)
    assert not rate.exists(rows, 1_200)


def test_a_rate_counts_upwards_only() -> None:
    with pytest.raises(BadRequest, match="upwards"):
        rate.add({}, -1, (1, A), 0, W)
    assert rate.add({}, 0, (1, A), 0, W) == {}


def test_a_rate_beyond_int64_is_refused() -> None:
    rows = _add({}, INT64_MAX, 1_000)
    with pytest.raises(BadRequest, match="overflow"):
        _add(rows, 1, 1_000, B)
    last: Rows = {window_part(10, A): (U64_MAX - 1, U64_MAX - 1, W)}
    assert rate.estimate(_add(last, 1, 1_000), 1_000, W) == 1
    full: Rows = {window_part(10, A): (U64_MAX, U64_MAX, W)}
    with pytest.raises(BadRequest, match="overflow"):
        _add(full, 1, 1_000)


def test_a_window_never_begins_after_its_stamp() -> None:
    rows = rate.add({}, 1, (hlc_from_ms(1_099), A), 1_100, W)
    assert list(rows) == [window_part(10, A)]


def test_a_delete_takes_away_what_it_saw() -> None:
    base = _add({}, 5, 1_000, A)
    deleted = {**base, **rate.delete(base, 1_010)}
    assert not rate.exists(deleted, 1_010)
    assert rate.delete(deleted, 1_010) == {}
    concurrent = _add(base, 2, 1_020, A)
    assert rate.estimate(_join(deleted, concurrent), 1_020, W) == 2


def test_a_whole_rate_expires_and_begins_again() -> None:
    base = _add({}, 5, 1_000)
    base |= rate.expire(base, (hlc_from_ms(1_001), A), 1_010)
    assert rate.estimate(base, 1_009, W) == 5
    assert rate.estimate(base, 1_010, W) == 0
    assert not rate.exists(base, 1_010)
    kept = _add(base, 1, 1_005)
    assert rate.estimate(kept, 1_009, W) == 6
    reborn = _add(base, 1, 1_020, B)
    assert rate.estimate(reborn, 1_020, W) == 1
    assert rate.estimate(_join(reborn, kept), 1_020, W) == 2
    assert rate.expire({}, (1, A), 1) == {}
    assert rate.expire({HEAD: (1, A, 1)}, (2, A), 1) == {}


def test_joins_keep_the_row_that_already_holds_all() -> None:
    row = (5, 1, W)
    assert rate.join(row, (4, 1, W)) is row
    assert rate.join((5, 1, W), (4, 2, W)) == (5, 2, W)
    assert rate.join((1, 0, 2 * W), (2, 0, W)) == rate.join((2, 0, W), (1, 0, 2 * W))
    assert rate.join((1, 0, 2 * W), (2, 0, W)) == (2, 0, 2 * W)


def test_the_hlc_of_a_window_is_its_start() -> None:
    assert rate.row_hlc(window_part(10, A), (1, 0, W)) == hlc_from_ms(1_000)


@pytest.mark.parametrize(
    ("part", "row"),
    [
        (window_part(1, A), (1, 2, W)),
        (window_part(1, A), (1, 0, 0)),
        (window_part(U64_MAX, A), (1, 0, W)),
        (window_part(1, A), (1, 0)),
    ],
)
def test_impossible_rows_are_refused(part: bytes, row: tuple[int, ...]) -> None:
    with pytest.raises(CorruptData):
        decode_row(TYPE_RATE, part, encode_row(TYPE_RATE, part, row))


def test_rows_come_back_as_they_were() -> None:
    for part, row in ((window_part(10, A), (5, 1, W)), (HEAD, (1, A, 5))):
        assert decode_row(TYPE_RATE, part, encode_row(TYPE_RATE, part, row)) == row


def test_a_window_beyond_the_clocks_end_is_refused() -> None:
    last = ((1 << 48) - 1) // 60_000
    body = encode_row(TYPE_RATE, window_part(last, A), (1, 0, 60_000))
    assert decode_row(TYPE_RATE, window_part(last, A), body) == (1, 0, 60_000)
    with pytest.raises(CorruptData, match="no possible shape"):
        decode_row(TYPE_RATE, window_part(last + 1, A), body)


def test_a_window_may_begin_with_the_clocks_last_millisecond() -> None:
    part = window_part((1 << 48) - 1, A)
    assert decode_row(TYPE_RATE, part, encode_row(TYPE_RATE, part, (1, 0, 1))) == (1, 0, 1)


def test_a_row_to_which_nothing_is_added_is_itself() -> None:
    row = (5, 1, W)
    assert rate.join(row, (5, 1, W)) is row
    assert rate.join(row, (4, 0, W)) is row


def test_windows_of_another_length_do_not_count() -> None:
    rows = _add({}, 10, 0, window_ms=W)
    assert rate.estimate(rows, 0, W) == 10
    assert rate.estimate(rows, 0, 2 * W) == 0
