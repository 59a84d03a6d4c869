"""Maps: each field is won by the later write; or each field is a counter.

Row (part FIELD): `(hlc, actor, kind, value, expires_ms)`, the later stamp wins, expiry and
all. Row (part FIELD_COUNTER, per field, actor and birth): as in a counter. A field that has
both reads as its counter.

Head: `(chlc, cactor, ehlc, eactor, expires_ms)`: fields written up to the clear stamp are
gone; the key's expiry. Counter fields are not cleared by a stamp but reset by what is
observed, so that concurrent increments survive the clear as they do in a counter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from roost_crdt.errors import CorruptData
from roost_crdt.hlc import Stamp
from roost_crdt.rows import counter
from roost_crdt.rows.expiry import (
    Expiry,
    head_expiry,
    is_hidden,
    join_expiry,
    new_expiry,
)
from roost_crdt.rows.layout import (
    HEAD,
    NO_STAMP,
    TAG_FIELD,
    TAG_FIELD_COUNTER,
    Delta,
    Part,
    Row,
    Rows,
    StampReused,
    field_counter_part,
    field_counter_prefix,
    field_of,
    field_part,
)
from roost_crdt.rows.leaf import KIND_DEAD, Leaf, check_leaf, kind_and_bytes, leaf_from
from roost_crdt.rows.wire import U64, Millis, SmallInt, decoder, larger

_decode_row = decoder(tuple[U64, U64, SmallInt, bytes, Millis])
_decode_head = decoder(tuple[U64, U64, U64, U64, Millis])


def decode(part: Part, body: bytes) -> Row:
    row: Row = _decode_row(body)
    if row[2] != 1:
        check_leaf(row[2], row[3])
    if row[2] == KIND_DEAD and row[4]:
        raise CorruptData("a dead field has an expiry")
    return row


def decode_head(part: Part, body: bytes) -> Row:
    row: Row = _decode_head(body)
    return row


def join(a: Row, b: Row) -> Row:
    """The later stamp; StampReused if one stamp has two contents."""
    if a == b:
        return a
    if a[:2] == b[:2]:
        raise StampReused(f"two field values under the stamp {a[:2]}", larger(a, b))
    return a if a > b else b


def join_head(a: Row, b: Row) -> Row:
    """`a` itself if `b` adds nothing; StampReused if one stamp has two expiries."""
    if a == b:
        return a
    expiry, reused = join_expiry(a[2:], b[2:])
    joined = (*max(a[:2], b[:2]), *expiry)
    if reused:
        raise StampReused(f"two expiries under the stamp {expiry[:2]}", joined)
    return a if joined == a else joined


def clear_stamp(rows: Rows) -> Stamp:
    """Fields written up to this stamp are gone."""
    head = rows.get(HEAD)
    return NO_STAMP if head is None else (head[0], head[1])


def is_present(row: Row, clear: Stamp, now_ms: int) -> bool:
    """Whether a FIELD row shows a value."""
    return row[2] != KIND_DEAD and row[:2] > clear and not 0 < row[4] <= now_ms


def put(
    rows: Rows,
    fields: Mapping[bytes, Leaf],
    stamp: Stamp,
    now_ms: int,
    *,
    expires_ms: int = 0,
) -> Delta:
    """Write fields, each to expire at `expires_ms` (0 = never); BadRequest over 255 bytes.

    At a map that has expired or is empty a new life begins, without the key's expiry.
    """
    delta = _new_life(rows, stamp, now_ms)
    assert stamp > clear_stamp(rows), f"{stamp} is not above the clear {clear_stamp(rows)}"
    for field, leaf in fields.items():
        part = field_part(field)
        held = rows.get(part)
        assert held is None or stamp > held[:2], f"{stamp} is not above {held}"
        delta[part] = (*stamp, *kind_and_bytes(leaf), expires_ms)
    return delta


def remove(rows: Rows, fields: Sequence[bytes], stamp: Stamp) -> Delta:
    """Leave tombstones for fields that have a value, and reset those that are counters."""
    clear = clear_stamp(rows)
    delta: Delta = {}
    for field in fields:
        part = field_part(field)
        held = rows.get(part)
        if held is not None and held[2] != KIND_DEAD and held[:2] > clear:
            assert stamp > held[:2], f"{stamp} is not above {held}"
            delta[part] = (*stamp, KIND_DEAD, b"", 0)
        delta.update(counter.reset(_field_counts(rows, field)))
    return delta


def delete(rows: Rows, stamp: Stamp) -> Delta:
    """Clear the whole map; nothing changes where it has no field."""
    if not exists(rows, 0):
        return {}
    assert stamp > clear_stamp(rows), f"{stamp} is not above the clear {clear_stamp(rows)}"
    return _clear(rows, stamp, head_expiry(rows))


def expire(rows: Rows, stamp: Stamp, expires_ms: int) -> Delta:
    """Let the whole map expire at `expires_ms` (0 = never).

    The caller checks first that it exists: a later time would show again what has expired.
    """
    if not exists(rows, 0):
        return {}
    return {HEAD: (*clear_stamp(rows), *new_expiry(rows, stamp, expires_ms))}


def add(rows: Rows, field: bytes, by: int, stamp: Stamp, now_ms: int) -> Delta:
    """Add `by` to a counter field; BadRequest if the shown value would leave int64."""
    held = None if is_hidden(rows, now_ms) else _count(rows, field)
    counter.check_total((held or 0) + by)
    if held is not None and not by:
        return {}
    delta = _new_life(rows, stamp, now_ms)
    delta.update(_grow_own(counter.over(rows, delta), field, by, stamp))
    return delta


def assign(rows: Rows, field: bytes, value: int, stamp: Stamp, now_ms: int) -> Delta:
    """Set a counter field: take away what is observed of it, then add."""
    counter.check_total(value)
    delta = _new_life(rows, stamp, now_ms)
    delta.update(counter.reset(_field_counts(counter.over(rows, delta), field)))
    delta.update(_grow_own(counter.over(rows, delta), field, value, stamp))
    return delta


def exists(rows: Rows, now_ms: int) -> bool:
    if is_hidden(rows, now_ms):
        return False
    clear = clear_stamp(rows)
    for part, row in rows.items():
        if part[0] == TAG_FIELD:
            if is_present(row, clear, now_ms):
                return True
        elif part[0] == TAG_FIELD_COUNTER and counter.is_live(row):
            return True
    return False


def field(rows: Rows, name: bytes, now_ms: int) -> Leaf | int | None:
    """One field's value; None if it is not there."""
    if is_hidden(rows, now_ms):
        return None
    count = _count(rows, name)
    if count is not None:
        return count
    row = rows.get(field_part(name))
    if row is None or not is_present(row, clear_stamp(rows), now_ms):
        return None
    return leaf_from(row[2], row[3])


def fields(rows: Rows, now_ms: int) -> dict[bytes, Leaf | int]:
    """All fields that show a value, in order of their names."""
    if is_hidden(rows, now_ms):
        return {}
    clear = clear_stamp(rows)
    found: dict[bytes, Leaf | int] = {}
    counts: dict[bytes, list[Row]] = {}
    for part, row in rows.items():
        if part[0] == TAG_FIELD:
            if is_present(row, clear, now_ms):
                found[part[1:]] = leaf_from(row[2], row[3])
        elif part[0] == TAG_FIELD_COUNTER:
            counts.setdefault(field_of(part), []).append(row)
    for name, count_rows in counts.items():
        count = counter.total(count_rows)
        if count is not None:
            found[name] = count
    return dict(sorted(found.items()))


def row_hlc(part: Part, row: Row) -> int:
    """The highest hlc in the row."""
    hlc: int = row[0]
    return hlc


def head_hlc(part: Part, row: Row) -> int:
    """The highest hlc in the head."""
    highest: int = max(row[0], row[2])
    return highest


def _field_counts(rows: Rows, name: bytes) -> list[tuple[Part, Row]]:
    prefix = field_counter_prefix(name)
    return [item for item in rows.items() if item[0].startswith(prefix)]


def _count(rows: Rows, name: bytes) -> int | None:
    return counter.total(row for _, row in _field_counts(rows, name))


def _grow_own(rows: Rows, name: bytes, by: int, stamp: Stamp) -> Delta:
    hlc, actor = stamp
    fresh = field_counter_part(name, actor, hlc)
    newest = counter.newest_part(rows, fresh[:-8])
    return counter.grow(rows, newest, fresh, by)


def _clear(rows: Rows, clear: Stamp, expiry: Expiry) -> Delta:
    delta = counter.reset(item for item in rows.items() if item[0][0] == TAG_FIELD_COUNTER)
    delta[HEAD] = (*clear, *expiry)
    return delta


def _new_life(rows: Rows, stamp: Stamp, now_ms: int) -> Delta:
    """Clear what is observed, if the key's expiry has passed or nothing is left to expire."""
    if not head_expiry(rows)[2] or exists(rows, now_ms):
        return {}
    observed = max(
        (row[:2] for part, row in rows.items() if part[0] == TAG_FIELD),
        default=NO_STAMP,
    )
    return _clear(rows, max(observed, clear_stamp(rows)), new_expiry(rows, stamp, 0))
