"""Expiry of a key as a whole, kept at the end of its head row.

The head of every type that has one ends in `(ehlc, eactor, expires_ms)`: the later EXPIRE
wins, 0 means never. Nobody sends an expiry: each node hides what is due by its own clock, and
the next write there starts a new life by taking away what it observes, no more; so what was
written elsewhere at the same time survives.
"""

from __future__ import annotations

from typing import Final

from roost_crdt.hlc import Stamp
from roost_crdt.rows.layout import HEAD, Row, Rows, StampReused

Expiry = tuple[int, int, int]
"""`(ehlc, eactor, expires_ms)`"""

NO_EXPIRY: Final[Expiry] = (0, 0, 0)


def head_expiry(rows: Rows) -> Expiry:
    """When the whole key expires, and the stamp that says so."""
    head = rows.get(HEAD)
    if head is None:
        return NO_EXPIRY
    hlc, actor, expires_ms = head[-3:]
    return hlc, actor, expires_ms


def is_hidden(rows: Rows, now_ms: int) -> bool:
    """Whether the whole key is past its expiry at `now_ms`."""
    head = rows.get(HEAD)
    return head is not None and 0 < head[-1] <= now_ms


def new_expiry(rows: Rows, stamp: Stamp, expires_ms: int) -> Expiry:
    """The expiry that a local write at `stamp` sets.

    A write and the EXPIRE that belongs to it may share a stamp, because they are one operation
    of one record: nobody ever sees the first half.
    """
    held = head_expiry(rows)
    assert stamp >= held[:2], f"{stamp} is below the expiry's {held[:2]}"
    assert expires_ms >= 0
    return (*stamp, expires_ms)


def join_expiry(a: Expiry, b: Expiry) -> tuple[Expiry, bool]:
    """The later of two, and whether one stamp came with two times (then the later time)."""
    if a == b:
        return a, False
    return max(a, b), a[:2] == b[:2]


def join_plain_head(a: Row, b: Row) -> Row:
    """Join of heads that hold an expiry and nothing else (counter, rate)."""
    if a == b:
        return a
    kept = a if a > b else b
    if a[:2] == b[:2]:
        raise StampReused(f"two expiries under the stamp {a[:2]}", kept)
    return kept
