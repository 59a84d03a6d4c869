"""Rates: how much happened lately, over fixed windows that slide.

Row (part WINDOW, one per window and actor): `(n, taken, window_ms)`: what that actor counted
in the window, and how much of it resets have taken away (as in a counter). The row names its
window's length, so that it can be told dead by the clock without knowing a policy. A window
is dead two lengths after its start: nobody collects it by agreement and no digest covers it.

Head: `(ehlc, eactor, expires_ms)`.
"""

from __future__ import annotations

from roost_crdt.errors import BadRequest, CorruptData
from roost_crdt.hlc import Stamp, hlc_from_ms, hlc_ms
from roost_crdt.limits import DEFAULT_LIMITS
from roost_crdt.rows.expiry import head_expiry, is_hidden, new_expiry
from roost_crdt.rows.layout import (
    HEAD,
    INT64_MAX,
    TAG_WINDOW,
    U64_MAX,
    Delta,
    Part,
    Row,
    Rows,
    window_index,
    window_part,
)
from roost_crdt.rows.wire import MILLIS_MAX, U64, Millis, decoder

_OFFSET_MS = DEFAULT_LIMITS.clock_offset_max_ms
_decode_row = decoder(tuple[U64, U64, Millis])


def decode(part: Part, body: bytes) -> Row:
    row: Row = _decode_row(body)
    n, taken, window_ms = row
    if taken > n or not window_ms or window_index(part) * window_ms > MILLIS_MAX:
        raise CorruptData(f"a rate window has no possible shape: {row}")
    return row


def join(a: Row, b: Row) -> Row:
    """Pointwise maximum; `a` itself if `b` adds nothing."""
    a0, a1, a2 = a
    b0, b1, b2 = b
    if a0 >= b0 and a1 >= b1 and a2 >= b2:
        return a
    return (max(a0, b0), max(a1, b1), max(a2, b2))


def add(rows: Rows, by: int, stamp: Stamp, now_ms: int, window_ms: int) -> Delta:
    """Count `by` in the window of `now_ms`; BadRequest if negative or beyond int64."""
    assert window_ms > 0
    if by < 0:
        raise BadRequest("a rate only counts upwards")
    if not by:
        return {}
    delta: Delta = {}
    if head_expiry(rows)[2] and not exists(rows, now_ms):
        delta = _taken(rows, now_ms)
        delta[HEAD] = new_expiry(rows, stamp, 0)
    # Never a window that begins after the stamp: nodes refuse rows from after their record.
    part = window_part(min(now_ms, hlc_ms(stamp[0])) // window_ms, stamp[1])
    n, taken, _ = delta.get(part) or rows.get(part) or (0, 0, window_ms)
    if estimate(rows, now_ms, window_ms) + by > INT64_MAX or n + by > U64_MAX:
        raise BadRequest("increment would overflow a signed 64-bit integer")
    delta[part] = (n + by, taken, window_ms)
    return delta


def delete(rows: Rows, now_ms: int) -> Delta:
    """Take away what is observed in live windows; nothing changes where nothing exists."""
    return _taken(rows, now_ms) if exists(rows, now_ms) else {}


def expire(rows: Rows, stamp: Stamp, expires_ms: int) -> Delta:
    """Let the whole key expire at `expires_ms` (0 = with its windows).

    The caller checks first that it exists: a later time would show again what has expired.
    """
    if not any(part[0] == TAG_WINDOW for part in rows):
        return {}
    return {HEAD: new_expiry(rows, stamp, expires_ms)}


def end_ms(part: Part, row: Row) -> int:
    """When a window no longer weighs in any estimate."""
    return (window_index(part) + 2) * int(row[2])


def is_live(part: Part, row: Row, now_ms: int) -> bool:
    return row[0] != row[1] and now_ms < end_ms(part, row)


def exists(rows: Rows, now_ms: int) -> bool:
    if is_hidden(rows, now_ms):
        return False
    return any(is_live(part, row, now_ms) for part, row in rows.items() if part != HEAD)


def estimate(rows: Rows, now_ms: int, window_ms: int) -> int:
    """How much was counted in the `window_ms` before `now_ms`.

    The current window counts whole, the one before it by the share of it that the sliding
    window still covers. A window that a faster clock has begun already counts as current, if
    that clock can be right: after this node's own was set back, hours would count at once.
    """
    if is_hidden(rows, now_ms):
        return 0
    current, elapsed_ms = divmod(now_ms, window_ms)
    newest = (now_ms + _OFFSET_MS) // window_ms
    in_current = in_former = 0
    for part, row in rows.items():
        if part[0] != TAG_WINDOW or row[2] != window_ms:
            continue
        index = window_index(part)
        if current <= index <= newest:
            in_current += row[0] - row[1]
        elif index == current - 1:
            in_former += row[0] - row[1]
    return in_current + in_former * (window_ms - elapsed_ms) // window_ms


def row_hlc(part: Part, row: Row) -> int:
    """The hlc before which no honest clock can have begun this window."""
    return hlc_from_ms(window_index(part) * int(row[2]))


def _taken(rows: Rows, now_ms: int) -> Delta:
    return {
        part: (row[0], row[0], row[2])
        for part, row in rows.items()
        if part[0] == TAG_WINDOW and is_live(part, row, now_ms)
    }
