"""Admission: what is acknowledged must fit, so writes are refused before it.

The index is applied after the acknowledgement, hence a write is admitted only if the pages in
use, the worst growth of what is not applied yet, its own, and a reserve stay below the bound;
and likewise what the disk has free. Most writes only spend from a credit; the figures are
looked at when it runs out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from roost_crdt import logformat
from roost_crdt.errors import Busy, Full
from roostd.environment import PAGE_BYTES
from roostd.store.applier import Applier

_SLACK_BYTES = 32 * PAGE_BYTES
"""Branch and meta pages, the free list."""
_DISK_MARGIN_BYTES = 1 << 20
_CREDIT_BYTES = 4 << 20
_RETRY_MS = 100

_SMALL_KINDS = frozenset((logformat.KIND_META, logformat.KIND_SPEND, logformat.KIND_CONSENSUS))
"""Written into the reserve of a full store too: without them a node cannot settle or step down."""
_LESS_BYTES = 4_096


def is_small(kind: int, items: Mapping[bytes, bytes | None]) -> bool:
    """Whether pairs may go into the reserve: of some kinds, or if they delete more than they put,
    as the erasure of a session does."""
    put = [value for value in items.values() if value]
    less = 2 * len(put) <= len(items) and sum(map(len, put)) <= _LESS_BYTES
    return kind in _SMALL_KINDS or less


class Admission:
    """Counts what is admitted and not yet applied; refuses with Full or Busy."""

    def __init__(
        self,
        applier: Applier,
        *,
        size_max: int,
        pinned_bytes_max: int,
        pinned_bytes: Callable[[], int],
    ) -> None:
        self.credit = 0
        self.refused = 0
        self._applier = applier
        self._size_max = size_max
        self._pinned_max = pinned_bytes_max
        self._pinned = pinned_bytes
        self._pending_rows = 0
        self._pending_bytes = 0

    def admit(self, rows: int, size: int, shrinks: bool = False) -> None:
        """Let `rows` rows of together `size` bytes in, or raise Full or Busy.

        What shrinks the store (a delete) may use most of the reserve of 10%.
        """
        cost = rows * PAGE_BYTES + 2 * size
        if cost > self.credit:
            self._look(rows, size, shrinks)
        self.credit -= cost
        self._pending_rows += rows
        self._pending_bytes += size

    def applied(self, rows: int, size: int) -> None:
        """So much of what was admitted is in the index (or was never appended)."""
        self._pending_rows -= rows
        self._pending_bytes -= size

    def why_full(self) -> str:
        """Why a small write would be refused with Full; "" if it would not."""
        problem = self._applier.own.problem or self._applier.problem
        return problem or self._text(self._growth(1, 0), shrinks=False)

    def _look(self, rows: int, size: int, shrinks: bool) -> None:
        self.credit = 0
        if problem := self._applier.own.problem or self._applier.problem:
            self.refused += 1
            raise Full(f"{problem}; reads go on, writes come back when there is room")
        pinned_left = self._pinned_max - self._pinned()
        if pinned_left < 0:
            self.refused += 1
            raise Busy(
                f"more than {self._pinned_max} bytes wait to be applied to the index",
                retry_after_ms=_RETRY_MS,
            )
        room = self._applier.room
        left = min(self._bound(shrinks) - room.used, room.disk_free - _DISK_MARGIN_BYTES)
        left -= 2 * self._pending_bytes
        own = self._growth(rows, size)
        if left < own:
            self.refused += 1
            raise Full(self._text(own + 2 * self._pending_bytes, shrinks))
        left -= max(0, self._growth(self._pending_rows, 0) - _SLACK_BYTES)
        if left < own:
            # The copies that applying makes: pages that come back, so not a full store.
            self.refused += 1
            raise Busy(
                f"{self._pending_rows} rows wait to be applied to the index",
                retry_after_ms=_RETRY_MS,
            )
        cost = rows * PAGE_BYTES + 2 * size
        # What shrinks is counted one by one: its reserve is no credit for others.
        self.credit = cost if shrinks else max(cost, min(left, pinned_left, _CREDIT_BYTES))

    def _bound(self, shrinks: bool) -> int:
        return self._size_max * (97 if shrinks else 90) // 100 - _SLACK_BYTES

    def _growth(self, rows: int, size: int) -> int:
        """At worst every row copies a leaf of its own, but no more than there are."""
        return min(rows * PAGE_BYTES, max(self._applier.room.used, _SLACK_BYTES)) + 2 * size

    def _text(self, growth: int, shrinks: bool) -> str:
        """Why `growth` bytes more do not fit; "" if they do."""
        room = self._applier.room
        if room.used + growth > self._bound(shrinks):
            text = f"the store is full: {room.used} of {self._size_max} bytes (store.size_max) used"
            for pid, behind in room.stuck_readers[:3]:
                text += f", pages held by reader process {pid}, {behind} transactions behind"
            may_delete = room.used + self._growth(1, 0) <= self._bound(shrinks=True)
            ways = f"{'delete keys, or ' * may_delete}raise store.size_max and restart"
            return f"{text}; reads go on; {ways}"
        if room.disk_free < growth + _DISK_MARGIN_BYTES:
            return (
                f"the disk is full: {room.disk_free} bytes free on that of {room.place}; reads go "
                "on, writes come back when there is room"
            )
        return ""
