"""Registers: the later write wins; expiry belongs to the value that it was set for."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import pytest

from roost_crdt.errors import CorruptData
from roost_crdt.rows import Rows, StampReused, decode_row, encode_row, join_row, register
from roost_crdt.rows.layout import TYPE_REGISTER, VALUE
from roost_crdt.rows.leaf import Leaf

A, B = 1, 2


def _join(a: Rows, b: Rows) -> Rows:
    return {VALUE: join_row(TYPE_REGISTER, VALUE, a[VALUE], b[VALUE])}


def test_the_later_write_wins_whichever_actor_is_higher() -> None:
    early_high = register.put({}, b"early", (5, B))
    late_low = register.put({}, b"late", (6, A))
    for joined in (_join(early_high, late_low), _join(late_low, early_high)):
        assert register.value(joined, 0) == b"late"


def test_a_delete_loses_to_a_later_put_and_wins_over_an_earlier_one() -> None:
    first = register.put({}, b"1", (1, A))
    deleted = register.delete(first, (3, A))
    assert not register.exists(deleted, 0)
    assert register.value(_join(deleted, register.put(first, b"2", (2, B))), 0) is None
    assert register.value(_join(deleted, register.put(first, b"4", (4, B))), 0) == b"4"


def test_delete_and_expire_of_nothing_write_nothing() -> None:
    assert register.delete({}, (1, A)) == {}
    assert register.expire({}, (1, A), 9) == {}
    dead = register.delete(register.put({}, b"1", (1, A)), (2, A))
    assert register.delete(dead, (3, A)) == {}
    assert register.expire(dead, (3, A), 9) == {}


def test_expiry_hides_from_its_millisecond_on() -> None:
    rows = register.put({}, "[1]", (1, A), expires_ms=100)
    assert register.value(rows, 99) == "[1]"
    assert register.value(rows, 100) is None
    assert not register.exists(rows, 100)
    assert register.expires_ms_of(rows) == 100
    assert register.expires_ms_of({}) == 0


def test_a_write_and_a_concurrent_expire_both_survive() -> None:
    held = register.put({}, b"old", (1, A))
    expiring = register.expire(held, (5, A), 100)
    written = register.put(held, b"new", (4, B))
    for joined in (_join(expiring, written), _join(written, expiring)):
        assert register.value(joined, 99) == b"new"
        assert register.value(joined, 100) is None


def test_the_expiry_of_an_earlier_value_says_nothing() -> None:
    held = register.put({}, b"old", (1, A), expires_ms=100)
    expiring = register.expire(held, (4, A), 100)
    written = register.put(held, b"new", (5, B))
    for joined in (_join(expiring, written), _join(written, expiring)):
        assert register.value(joined, 500) == b"new"
        assert joined == written, "and leaves nothing behind"


def test_an_expire_may_share_the_stamp_of_its_write() -> None:
    rows = register.put({}, b"1", (3, A), expires_ms=50)
    assert register.expires_ms_of(register.expire(rows, (3, A), 70)) == 70


def test_persist_takes_the_expiry_away() -> None:
    rows = register.expire(register.put({}, b"1", (1, A), expires_ms=100), (2, A), 0)
    assert register.value(rows, 500) == b"1"


_HELD = register.put({}, b"1", (5, B))


@pytest.mark.parametrize(
    "operation",
    [
        lambda: register.put(_HELD, b"2", (5, B)),
        lambda: register.delete(_HELD, (4, B)),
        lambda: register.expire(_HELD, (4, B), 9),
    ],
)
def test_a_stamp_below_what_is_held_is_our_own_fault(operation: Callable[[], Rows]) -> None:
    with pytest.raises(AssertionError, match=r"is not above|is below"):
        operation()


def test_one_stamp_with_two_values_keeps_the_same_one_everywhere() -> None:
    one = register.put({}, b"one", (5, A))[VALUE]
    two = register.put({}, b"two", (5, A))[VALUE]
    for a, b in ((one, two), (two, one)):
        with pytest.raises(StampReused) as raised:
            register.join(a, b)
        assert raised.value.kept == two


@pytest.mark.parametrize(
    ("one", "other"), [(b"aa", b"b"), (b"z", "1"), (b"", "null"), (b"x" * 300, b"y"), (b"", b"\0")]
)
def test_one_stamp_with_two_values_keeps_the_larger_bytes(one: Leaf, other: Leaf) -> None:
    rows = [register.put({}, leaf, (5, A))[VALUE] for leaf in (one, other)]
    rows.append(register.delete(register.put({}, b"", (4, A)), (5, A))[VALUE])
    for a, b in permutations(rows, 2):
        with pytest.raises(StampReused) as raised:
            register.join(a, b)
        bodies = [encode_row(TYPE_REGISTER, VALUE, row) for row in (a, b, raised.value.kept)]
        assert bodies[2] == max(bodies[:2])


def test_one_stamp_with_two_expiries_keeps_the_later() -> None:
    held = register.put({}, b"1", (1, A))
    early = register.expire(held, (2, A), 10)[VALUE]
    late = register.expire(held, (2, A), 20)[VALUE]
    for a, b in ((early, late), (late, early)):
        with pytest.raises(StampReused) as raised:
            register.join(a, b)
        assert raised.value.kept == late


def test_join_gives_the_first_row_itself_where_nothing_is_new() -> None:
    old = register.put({}, b"old", (1, A), expires_ms=100)[VALUE]
    new = register.put({}, b"new", (2, A))[VALUE]
    assert register.join(new, old) is new
    assert register.join(new, tuple(new)) is new
    assert register.join(old, new) is new


def test_the_highest_hlc_is_the_values_or_the_expirys() -> None:
    held = register.put({}, b"1", (5, A))
    assert register.row_hlc(VALUE, held[VALUE]) == 5
    assert register.row_hlc(VALUE, register.expire(held, (7, A), 9)[VALUE]) == 7


@pytest.mark.parametrize(
    "row",
    [
        (1, 1, 3, b"", 0, 0, 0),
        (1, 1, 0, b"x", 0, 0, 0),
        (1, 1, 2, b'"text"', 0, 0, 0),
        (1, 1, 2, b"[1", 0, 0, 0),
        (1, 1, 1, b"", 0, 0, 1 << 48),
        (-1, 1, 1, b"", 0, 0, 0),
        (1, 1, 1, "", 0, 0, 0),
        (1, 1, 1, b""),
        (1, 1, 1, b"", 0, 0, 0, 0),
    ],
)
def test_impossible_rows_are_refused(row: tuple[object, ...]) -> None:
    with pytest.raises(CorruptData):
        decode_row(TYPE_REGISTER, VALUE, encode_row(TYPE_REGISTER, VALUE, row))


@pytest.mark.parametrize(
    "row",
    [
        (1, 1, 0, b"", 0, 0, 0),
        (1, 1, 1, b"\xff", 1, 1, 9),
        ((1 << 64) - 1, (1 << 64) - 1, 2, b"[1.0]", 0, 0, 0),
    ],
)
def test_rows_come_back_as_they_were(row: tuple[object, ...]) -> None:
    assert decode_row(TYPE_REGISTER, VALUE, encode_row(TYPE_REGISTER, VALUE, row)) == row


def test_a_meaningless_expiry_is_dropped_when_read() -> None:
    body = encode_row(TYPE_REGISTER, VALUE, (5, A, 1, b"x", 4, A, 100))
    assert decode_row(TYPE_REGISTER, VALUE, body) == (5, A, 1, b"x", 0, 0, 0)


@pytest.mark.parametrize("actor", [0, 1, 2, 7])
def test_one_stamp_with_two_values_is_told_whoever_wrote_it(actor: int) -> None:
    a, b = ((5, actor, 1, value, 0, 0, 0) for value in (b"a", b"b"))
    dead = (5, actor, 0, b"", 0, 0, 0)
    for one, other, kept in ((a, b, b), (b, a, b), (a, dead, a), (dead, b, b)):
        with pytest.raises(StampReused, match="two values") as caught:
            register.join(one, other)
        assert caught.value.kept == kept


@pytest.mark.parametrize("actor", [0, 1, 7])
def test_an_expiry_survives_a_write_that_it_has_not_seen(actor: int) -> None:
    expiring = (1, 1, 1, b"a", 9, actor, 50)
    later = (2, 1, 1, b"b", 0, 0, 0)
    joined = (2, 1, 1, b"b", 9, actor, 50)
    assert register.join(expiring, later) == register.join(later, expiring) == joined
    newest = (9, 8, 1, b"c", 0, 0, 0)
    assert register.join(expiring, newest) == register.join(newest, expiring) == newest


def test_a_join_gives_the_first_row_itself_where_the_other_knows_less() -> None:
    held, bare = (5, 1, 1, b"x", 9, 1, 50), (5, 1, 1, b"x", 0, 0, 0)
    assert register.join(held, bare) is held
    assert register.join(bare, held) == held
    assert register.join(held, (4, 1, 1, b"y", 9, 1, 50)) is held


@pytest.mark.parametrize("leaf", [b"bytes", "1"])
def test_a_write_without_an_expiry_has_none_at_all(leaf: Leaf) -> None:
    assert register.put({}, leaf, (5, A))[VALUE][4:] == (0, 0, 0)


def test_a_value_is_over_in_the_first_millisecond_that_there_is() -> None:
    rows = register.put({}, b"v", (1, A), expires_ms=1)
    assert register.exists(rows, 0)
    assert register.value(rows, 0) == b"v"
    assert not register.exists(rows, 1)
    assert register.value(rows, 1) is None
