"""Rows by type and part: total decoding, joins of deltas, reserved types."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roost_crdt.errors import ActorReused, CorruptData
from roost_crdt.rows import (
    StampReused,
    decode_row,
    encode_row,
    join_delta,
    join_row,
    kept_row,
    layout,
    row_hlc,
)
from roost_crdt.rows.expiry import NO_EXPIRY, head_expiry, is_hidden, join_expiry, new_expiry
from roost_crdt.rows.wire import decoder
from roost_crdt.testing import TYPES, row_states

ALL_PARTS = [
    (code, part)
    for code in (*layout.TYPE_NAMES, 0, 7, 255)
    for part in (
        layout.HEAD,
        layout.VALUE,
        layout.actor_part(1, 1),
        b"\x04e",
        b"\x05null",
        b"\x06" + b"h" * 16,
        b"\x07" + b"h" * 16,
        b"\x08f",
        layout.field_counter_part(b"f", 1, 1),
        layout.window_part(1, 1),
        layout.doc_part(1, 1),
        layout.erasure_part(1, 1),
    )
]
_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), layout.U64_MAX) | st.binary() | st.text(),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.text(), inner, max_size=2),
)


@pytest.mark.parametrize("name", TYPES)
def test_any_row_comes_back_with_the_same_bytes(name: str) -> None:
    code = layout.TYPE_BY_NAME[name]

    @settings(max_examples=100, deadline=None)
    @given(row_states(name))
    def check(rows: dict[bytes, tuple[object, ...]]) -> None:
        for part, row in rows.items():
            layout.check_part(part)
            body = encode_row(code, part, row)
            assert decode_row(code, part, body) == row
            assert row_hlc(code, part, row) >= 0

    check()


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(ALL_PARTS), st.binary(max_size=60) | _values.map(msgspec.msgpack.encode))
def test_decoding_foreign_bytes_is_total(place: tuple[int, bytes], body: bytes) -> None:
    try:
        row = decode_row(*place, body)
    except CorruptData:
        return
    assert decode_row(*place, encode_row(*place, row)) == row
    assert join_row(*place, row, row) == row


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(TYPES), st.data())
def test_mutated_bodies_are_refused_or_read(name: str, data: st.DataObject) -> None:
    code = layout.TYPE_BY_NAME[name]
    for part, row in data.draw(row_states(name)).items():
        body = bytearray(encode_row(code, part, row))
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
        try:
            assert isinstance(decode_row(code, part, bytes(body)), tuple)
        except CorruptData:
            continue


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x91" * 100_000,
        b"\xdd\xff\xff\xff\xff",
        b"\x97" + b"\xc6\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
    ],
)
def test_depth_and_claimed_lengths_cost_nothing(body: bytes) -> None:
    for place in ALL_PARTS:
        with pytest.raises(CorruptData):
            decode_row(*place, body)


def test_a_body_over_its_bound_is_refused() -> None:
    body = encode_row(layout.TYPE_REGISTER, layout.VALUE, (1, 1, 1, b"x" * 50, 0, 0, 0))
    with pytest.raises(CorruptData, match="at most 10"):
        decode_row(layout.TYPE_REGISTER, layout.VALUE, body, body_bytes_max=10)
    for bound in (len(body), None):
        row = decode_row(layout.TYPE_REGISTER, layout.VALUE, body, body_bytes_max=bound)
        assert row[3] == b"x" * 50


def test_an_unknown_place_is_our_own_fault() -> None:
    for operation in (encode_row, row_hlc):
        with pytest.raises(AssertionError, match="register has no rows with tag 3"):
            operation(layout.TYPE_REGISTER, layout.actor_part(1, 1), ())
    with pytest.raises(AssertionError, match="unknown type 9"):
        join_row(9, layout.VALUE, (), ())


def test_a_part_of_another_type_is_refused_by_name() -> None:
    with pytest.raises(CorruptData, match="register has no rows with tag 3"):
        decode_row(layout.TYPE_REGISTER, layout.actor_part(1, 1), b"\x90")
    with pytest.raises(CorruptData, match="unknown type 9"):
        decode_row(9, layout.VALUE, b"\x90")


def test_a_delta_brings_only_what_is_new() -> None:
    one, two, three = (layout.actor_part(actor, 1) for actor in (1, 2, 3))
    rows = {one: (5, 0, 0, 0), two: (1, 0, 0, 0)}
    delta = {one: (4, 0, 0, 0), two: (2, 0, 0, 0), three: (1, 0, 0, 0)}
    before = dict(rows)
    changed = join_delta(layout.TYPE_COUNTER, rows, delta)
    assert changed == {two: (2, 0, 0, 0), three: (1, 0, 0, 0)}
    assert rows == before


def test_a_reused_stamp_is_raised_after_all_is_joined() -> None:
    f, g = layout.field_part(b"f"), layout.field_part(b"g")
    low, high, other = (5, 1, 1, b"a", 0), (5, 1, 1, b"b", 0), (1, 1, 1, b"", 0)
    for mine, theirs in ((low, high), (high, low)):
        with pytest.raises(StampReused, match="two field values") as raised:
            join_delta(layout.TYPE_MAP, {f: mine}, {f: theirs, g: other})
        assert isinstance(raised.value, ActorReused)
        assert {f: mine, **raised.value.kept} == {f: high, g: other}


def test_of_two_bodies_under_one_stamp_all_keep_the_same() -> None:
    f = layout.field_part(b"f")
    low, high, newer = (5, 1, 1, b"a", 0), (5, 1, 1, b"b", 0), (6, 1, 1, b"", 0)
    for a, b in ((low, high), (high, low)):
        assert kept_row(layout.TYPE_MAP, f, a, b) == high
        assert kept_row(layout.TYPE_MAP, f, a, newer) == newer


def test_equal_rows_are_no_change() -> None:
    row = (1, 1, 1, b"", 0)
    part = layout.field_part(b"f")
    assert join_delta(layout.TYPE_MAP, {part: row}, {part: tuple(row)}) == {}


def test_decoders_raise_one_error() -> None:
    decode = decoder(list[int])
    assert decode(b"\x91\x01") == [1]
    with pytest.raises(CorruptData, match="do not decode"):
        decode(b"\x91\xa1\xff")


def test_expiry_of_a_head() -> None:
    assert head_expiry({}) == NO_EXPIRY
    rows = {layout.HEAD: (((1, 5),), 7, 1, 100)}
    assert head_expiry(rows) == (7, 1, 100)
    assert [is_hidden(rows, now_ms) for now_ms in (99, 100)] == [False, True]
    assert not is_hidden({}, 100)
    assert not is_hidden({layout.HEAD: (7, 1, 0)}, 100)
    assert new_expiry(rows, (8, 1), 200) == (8, 1, 200)
    with pytest.raises(AssertionError):
        new_expiry(rows, (6, 1), 200)
    with pytest.raises(AssertionError):
        new_expiry(rows, (8, 1), -1)


def test_expiries_join_by_stamp() -> None:
    early, late = (1, 1, 500), (2, 1, 100)
    assert join_expiry(early, early) == (early, False)
    assert join_expiry(early, late) == join_expiry(late, early) == (late, False)
    assert join_expiry((1, 1, 5), (1, 1, 6)) == ((1, 1, 6), True)


def test_a_reused_stamp_that_changes_nothing_is_told_with_an_empty_delta() -> None:
    mine = {layout.HEAD: ((), 5, 1, 50)}
    with pytest.raises(StampReused) as caught:
        join_delta(layout.TYPE_SET, mine, {layout.HEAD: ((), 5, 1, 40)})
    assert caught.value.kept == {}, "an equal row is no change, be it another object"
