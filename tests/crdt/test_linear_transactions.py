"""The table that an endpoint keeps its rows in: read page by page, each row sealed to its key."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from linear_kit import Rows

from roost_crdt.errors import CorruptData
from roost_crdt.linear.transactions import SCAN_MAX, seal, unseal


@pytest.mark.parametrize("count", [0, 1, 2, 3, 6, 7])
def test_pages_read_everything_under_a_prefix_once(count: int) -> None:
    rows = Rows()
    rows.put({b"d%02d" % n: b"%d" % n for n in range(count)} | {b"c": b"before", b"e": b"behind"})
    wanted = [(b"d%02d" % n, b"%d" % n) for n in range(count)]
    assert list(rows.table().pages(b"d", 3)) == wanted
    assert list(rows.table().pages(b"d")) == wanted
    assert count < SCAN_MAX


@given(st.binary(min_size=1, max_size=40), st.binary(max_size=40), st.data())
def test_a_sealed_row_notices_every_changed_byte(
    key: bytes, body: bytes, data: st.DataObject
) -> None:
    sealed = seal(key, body)
    assert unseal(key, sealed) == body
    at = data.draw(st.integers(0, len(sealed) - 1))
    damaged = bytearray(sealed)
    damaged[at] ^= data.draw(st.integers(1, 255))
    for key_, stored in ((key, bytes(damaged)), (key + b"x", sealed), (key, sealed[:3])):
        with pytest.raises(CorruptData, match="fails its checksum"):
            unseal(key_, stored)
