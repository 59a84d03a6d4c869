"""Bodies as MessagePack: one spelling for equal rows, CorruptData for everything else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost_crdt.errors import CorruptData
from roost_crdt.rows.wire import MILLIS_MAX, U64, Millis, SmallInt, decoder, encode, larger

ROW = tuple[U64, SmallInt, bytes, Millis]
decode = decoder(ROW)

rows = st.tuples(
    st.integers(0, 2**64 - 1), st.integers(0, 255), st.binary(), st.integers(0, MILLIS_MAX)
)


@given(rows)
def test_a_row_comes_back_as_it_was(row: tuple[int, int, bytes, int]) -> None:
    assert decode(encode(row)) == row
    assert encode(list(row)) == encode(row)


@given(rows, rows, rows)
def test_the_larger_bytes_are_the_same_in_any_order(
    a: tuple[object, ...], b: tuple[object, ...], c: tuple[object, ...]
) -> None:
    assert larger(a, b) == larger(b, a)
    assert larger(larger(a, b), c) == larger(a, larger(b, c))
    assert encode(larger(a, b)) == max(encode(a), encode(b))


@pytest.mark.parametrize(
    "row",
    [
        (-1, 0, b"", 0),
        (0, 256, b"", 0),
        (0, -1, b"", 0),
        (0, 0, b"", MILLIS_MAX + 1),
        (0, 0, b"", -1),
        (0, 0, "text", 0),
        (1.0, 0, b"", 0),
        (True, 0, b"", 0),
        (0, 0, b""),
        (0, 0, b"", 0, 0),
        None,
    ],
)
def test_what_no_row_can_be_is_refused(row: object) -> None:
    with pytest.raises(CorruptData, match="do not decode"):
        decode(encode(row))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x94\x00\x00\xc6\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff",
        encode((0, 0, b"", 0)) + b"\0",
        b"\x91" * 100_000,
    ],
)
def test_bytes_that_are_no_row_are_refused(body: bytes) -> None:
    with pytest.raises(CorruptData, match=f"{len(body)} bytes do not decode"):
        decode(body)


def test_text_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(CorruptData):
        decoder(tuple[str])(b"\x91\xa1\xff")
    with pytest.raises(CorruptData):
        decoder(list[object])(b"\x91" * 100_000 + b"\xc0")
