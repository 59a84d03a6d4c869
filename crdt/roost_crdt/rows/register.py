"""Registers: the later write wins, with its expiry.

Row (part VALUE): `(hlc, actor, kind, value, ehlc, eactor, expires_ms)`. Value and expiry are
two maxima, each by its own stamp, so a write and an EXPIRE of the same value both survive. An
expiry that is older than the value belonged to an earlier value and says nothing; it is
normalised to zeros, which commutes with the join because stamps only grow.
"""

from __future__ import annotations

from roost_crdt.hlc import Stamp
from roost_crdt.rows.expiry import NO_EXPIRY
from roost_crdt.rows.layout import VALUE, Delta, Row, Rows, StampReused
from roost_crdt.rows.leaf import KIND_BYTES, KIND_DEAD, Leaf, check_leaf, kind_and_bytes, leaf_from
from roost_crdt.rows.wire import U64, Millis, SmallInt, decoder, encode

_decode = decoder(tuple[U64, U64, SmallInt, bytes, U64, U64, Millis])


def decode(part: bytes, body: bytes) -> Row:
    row: Row = _decode(body)
    if row[2] != 1:
        check_leaf(row[2], row[3])
    if row[4:6] < row[:2] and row[4:] != NO_EXPIRY:
        return (*row[:4], *NO_EXPIRY)
    return row


def join(a: Row, b: Row) -> Row:
    """`a` itself if `b` adds nothing; StampReused if one stamp has two values or times."""
    if not a[4] and not b[4] and (a[0] != b[0] or a[1] != b[1]):
        return a if a > b else b  # the hot path: no expiry, two stamps
    if a == b:
        return a
    a_stamp, b_stamp = a[:2], b[:2]
    a_expiry, b_expiry = a[4:], b[4:]
    reused = False
    value = a if a_stamp > b_stamp else b
    if a_stamp == b_stamp and a[2:4] != b[2:4]:
        reused = True
        value = a if encode(a[2:4]) > encode(b[2:4]) else b
    expiry = a_expiry if a_expiry > b_expiry else b_expiry
    if a_expiry[:2] == b_expiry[:2] and a_expiry[2] != b_expiry[2]:
        reused = True
    if expiry[:2] < value[:2]:
        expiry = NO_EXPIRY
    kept = value if value[4:] == expiry else (*value[:4], *expiry)
    if reused:
        raise StampReused(f"two values or expiries under one stamp of {a_stamp}", kept)
    return a if kept == a else kept


def put(rows: Rows, value: Leaf, stamp: Stamp, expires_ms: int = 0) -> Delta:
    """Write `value`; a former expiry ends. `expires_ms` is wall milliseconds, 0 = never."""
    _assert_later(rows, stamp)
    assert expires_ms >= 0
    if not expires_ms and type(value) is bytes:
        return {VALUE: (*stamp, KIND_BYTES, value, 0, 0, 0)}
    expiry = (*stamp, expires_ms) if expires_ms else NO_EXPIRY
    return {VALUE: (*stamp, *kind_and_bytes(value), *expiry)}


def delete(rows: Rows, stamp: Stamp) -> Delta:
    """Leave a tombstone; nothing changes where there is no value."""
    row = rows.get(VALUE)
    if row is None or row[2] == KIND_DEAD:
        return {}
    _assert_later(rows, stamp)
    return {VALUE: (*stamp, KIND_DEAD, b"", *NO_EXPIRY)}


def expire(rows: Rows, stamp: Stamp, expires_ms: int) -> Delta:
    """Let the value expire at `expires_ms` (0 = never); nothing changes where there is none.

    The caller checks first that the value exists: a later time would show one again that has
    expired. The stamp may be that of the write that it belongs to, as one operation.
    """
    row = rows.get(VALUE)
    if row is None or row[2] == KIND_DEAD:
        return {}
    assert stamp >= row[:2], f"{stamp} is below {row}"
    assert stamp >= row[4:6], f"{stamp} is below {row}"
    assert expires_ms >= 0
    return {VALUE: (*row[:4], *stamp, expires_ms)}


def expires_ms_of(rows: Rows) -> int:
    """When the value expires; 0 = never."""
    row = rows.get(VALUE)
    return 0 if row is None else int(row[6])


def exists(rows: Rows, now_ms: int) -> bool:
    row = rows.get(VALUE)
    return row is not None and row[2] != KIND_DEAD and not 0 < row[6] <= now_ms


def value(rows: Rows, now_ms: int) -> Leaf | None:
    """The value, None if there is none or it has expired."""
    row = rows.get(VALUE)
    if row is None or row[2] == KIND_DEAD or 0 < row[6] <= now_ms:
        return None
    return leaf_from(row[2], row[3])


def row_hlc(part: bytes, row: Row) -> int:
    """The highest hlc in the row."""
    highest: int = max(row[0], row[4])
    return highest


def _assert_later(rows: Rows, stamp: Stamp) -> None:
    row = rows.get(VALUE)
    assert row is None or (stamp > row[:2] and stamp > row[4:6]), f"{stamp} is not above {row}"
