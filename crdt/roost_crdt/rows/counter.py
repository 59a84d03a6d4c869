"""Counters: each actor counts in a row of its own; a reset takes away what it saw.

Row (part ACTOR, one per actor and birth): `(p, n, bp, bn)`: all increments and decrements of
that actor, and how much of both every reset so far has taken away. The value is the sum of
`(p - bp) - (n - bn)`. A reset raises `(bp, bn)` to the `(p, n)` that it observed, so an
increment that it did not see survives; generations would lose one region's counts when two
regions begin at once. `birth` is the hlc of the actor's first increment since its row was last
collected here (or has no room left in 64 bits), so that a row which comes back late from
elsewhere is not counted twice. A counter exists iff some row has `(p, n) != (bp, bn)`; setting
it to 0 adds 1 to both.

Head: `(ehlc, eactor, expires_ms)`.
"""

from __future__ import annotations

from collections.abc import Iterable

from roost_crdt.errors import BadRequest, CorruptData
from roost_crdt.hlc import Stamp
from roost_crdt.rows.expiry import head_expiry, is_hidden, new_expiry
from roost_crdt.rows.layout import (
    HEAD,
    INT64_MAX,
    INT64_MIN,
    TAG_ACTOR,
    U64_MAX,
    Delta,
    Part,
    Row,
    Rows,
    actor_part,
    actor_prefix,
    birth_of,
)
from roost_crdt.rows.wire import U64, Millis, decoder

_decode_row = decoder(tuple[U64, U64, U64, U64])
_decode_head = decoder(tuple[U64, U64, Millis])


def decode(part: Part, body: bytes) -> Row:
    row: Row = _decode_row(body)
    if row[2] > row[0] or row[3] > row[1]:
        raise CorruptData(f"a counter row took away more than it has: {row}")
    return row


def decode_head(part: Part, body: bytes) -> Row:
    row: Row = _decode_head(body)
    return row


def join(a: Row, b: Row) -> Row:
    """Pointwise maximum; `a` itself if `b` adds nothing."""
    a0, a1, a2, a3 = a
    b0, b1, b2, b3 = b
    if a0 >= b0 and a1 >= b1 and a2 >= b2 and a3 >= b3:
        return a
    return (
        a0 if a0 > b0 else b0,
        a1 if a1 > b1 else b1,
        a2 if a2 > b2 else b2,
        a3 if a3 > b3 else b3,
    )


def is_live(row: Row) -> bool:
    """Whether the row still counts for anything (its sum may be 0)."""
    return bool(row[0] != row[2] or row[1] != row[3])


def total(rows: Iterable[Row]) -> int | None:
    """The sum over one counter's rows; None if none of them is live."""
    value, found = 0, False
    for p, n, bp, bn in rows:
        if p != bp or n != bn:
            found = True
            value += (p - bp) - (n - bn)
    return value if found else None


def reset(rows: Iterable[tuple[Part, Row]]) -> Delta:
    """Take away what is observed in `rows`."""
    return {part: (row[0], row[1], row[0], row[1]) for part, row in rows if is_live(row)}


def grow(rows: Rows, newest: Part | None, fresh: Part, by: int) -> Delta:
    """Add `by` to the row `newest`, or to the row `fresh` if 64 bits have no room for it.

    0 makes the counter exist without changing its value.
    """
    up, down = (by, 0) if by > 0 else (0, -by) if by < 0 else (1, 1)
    if newest is not None:
        p, n, bp, bn = rows[newest]
        if p + up <= U64_MAX and n + down <= U64_MAX:
            return {newest: (p + up, n + down, bp, bn)}
        assert newest < fresh, "an hlc was used for two operations"
    return {fresh: (up, down, 0, 0)}


def check_total(value: int) -> int:
    """`value`, or BadRequest if a signed 64-bit integer cannot show it."""
    if not INT64_MIN <= value <= INT64_MAX:
        raise BadRequest("increment or decrement would overflow a signed 64-bit integer")
    return value


def newest_part(rows: Iterable[Part], prefix: bytes) -> Part | None:
    """The part with the highest birth among those of one actor."""
    found: Part | None = None
    for part in rows:
        if part.startswith(prefix) and (found is None or part > found):
            found = part
    return found


def over(rows: Rows, delta: Delta) -> Rows:
    """`rows` as they are once `delta` is applied; neither is changed."""
    return {**rows, **delta} if delta else rows


def add(rows: Rows, by: int, stamp: Stamp, now_ms: int) -> Delta:
    """Add `by` (negative: subtract); BadRequest if the shown value would leave int64.

    At a counter that has expired or does not exist a new life begins, without expiry.
    """
    held = value(rows, now_ms)
    check_total((held or 0) + by)
    if held is not None:
        return _grow_own(rows, by, stamp) if by else {}
    delta = _new_life(rows, stamp)
    delta.update(_grow_own(over(rows, delta), by, stamp))
    return delta


def assign(rows: Rows, value: int, stamp: Stamp, now_ms: int, *, keep_ttl: bool = False) -> Delta:
    """Set the counter: take away what is observed, then add; a former expiry ends.

    Increments made elsewhere at the same time survive. `keep_ttl` keeps the expiry of a
    counter that exists.
    """
    check_total(value)
    if keep_ttl and exists(rows, now_ms):
        delta = reset(_counts(rows))
    else:
        delta = _new_life(rows, stamp)
    delta.update(_grow_own(over(rows, delta), value, stamp))
    return delta


def delete(rows: Rows, stamp: Stamp, now_ms: int) -> Delta:
    """Take away what is observed; nothing changes where nothing exists."""
    return reset(_counts(rows)) if exists(rows, now_ms) else {}


def end(rows: Rows, stamp: Stamp) -> Delta:
    """Take away what is observed, and the expiry with it."""
    return _new_life(rows, stamp)


def expire(rows: Rows, stamp: Stamp, expires_ms: int) -> Delta:
    """Let the counter expire at `expires_ms` (0 = never).

    The caller checks first that it exists: a later time would show again what has expired.
    """
    if total(row for _, row in _counts(rows)) is None:
        return {}
    return {HEAD: new_expiry(rows, stamp, expires_ms)}


def value(rows: Rows, now_ms: int) -> int | None:
    """The sum, None if the counter does not exist. Beyond int64 only after a merge."""
    if is_hidden(rows, now_ms):
        return None
    return total(row for part, row in rows.items() if part[0] == TAG_ACTOR)


def exists(rows: Rows, now_ms: int) -> bool:
    return value(rows, now_ms) is not None


def row_hlc(part: Part, row: Row) -> int:
    """The highest hlc in the row."""
    return birth_of(part)


def head_hlc(part: Part, row: Row) -> int:
    """The hlc of a head that holds an expiry and nothing else."""
    hlc: int = row[0]
    return hlc


def _counts(rows: Rows) -> list[tuple[Part, Row]]:
    return [item for item in rows.items() if item[0][0] == TAG_ACTOR]


def _new_life(rows: Rows, stamp: Stamp) -> Delta:
    delta = reset(_counts(rows))
    if head_expiry(rows)[2]:
        delta[HEAD] = new_expiry(rows, stamp, 0)
    return delta


def _grow_own(rows: Rows, by: int, stamp: Stamp) -> Delta:
    hlc, actor = stamp
    newest = newest_part(rows, actor_prefix(actor))
    return grow(rows, newest, actor_part(actor, hlc), by)
