"""Rows in memory: pinned until they are applied to the index, then cached up to a bound.

A key whose newest entry is not applied yet may not be read from the index, so its rows are
pinned. Clean rows live in two generations: when the younger one has filled half of the bound
it becomes the older one, and what was in that and not asked for since is forgotten. Sizes are
estimates of the decoded rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from roost_crdt.errors import CorruptData
from roost_crdt.rows.layout import Part, Row, Rows
from roostd.logrecovery import REPAIR

KEY_BYTES = 300
ROW_BYTES = 150


class KeyRows:
    """The decoded rows of one key; to be treated as read-only outside of the store.

    `type` is 0 where the key has no rows; `seq` is the newest log entry that changed it.
    """

    __slots__ = ("damaged", "rows", "seq", "size", "type")

    def __init__(self, type_code: int, rows: Rows, damaged: frozenset[Part]) -> None:
        self.type = type_code
        self.rows = rows
        self.seq = 0
        self.size = KEY_BYTES + sum(map(row_bytes, rows.values()))
        self.damaged = damaged
        """Parts whose stored bytes fail their checksum, until a neighbour repairs them."""

    def failure(self, key: bytes) -> CorruptData:
        """What to say of a key with damaged rows."""
        return CorruptData(
            f"{len(self.damaged)} stored rows of key {key!r} fail their checksum; they are not "
            f"served before a neighbour repairs them, or {REPAIR}"
        )


def row_bytes(row: Row) -> int:
    """About how many bytes a decoded row takes."""
    size = ROW_BYTES
    for member in row:
        if type(member) is bytes or type(member) is str:
            size += len(member)
        elif type(member) is dict or type(member) is tuple:
            size += 100 * len(member)
    return size


class RowMemory:
    """Key -> KeyRows, pinned or clean."""

    def __init__(self, clean_bytes_max: int) -> None:
        self.pinned: dict[bytes, KeyRows] = {}
        self.pinned_bytes = 0
        self._young: dict[bytes, KeyRows] = {}
        self._old: dict[bytes, KeyRows] = {}
        self._young_bytes = 0
        self._generation_bytes = clean_bytes_max // 2
        self._applied: deque[bytes] = deque()

    def get(self, key: bytes) -> KeyRows | None:
        """The rows of a key if they are in memory."""
        held = self.pinned.get(key)
        if held is None:
            held = self._young.get(key)
            if held is None:
                held = self._old.pop(key, None)
                if held is not None:
                    self.add(key, held)
        return held

    def add(self, key: bytes, held: KeyRows) -> None:
        """Cache clean rows."""
        self._young[key] = held
        self._young_bytes += held.size
        if self._young_bytes > self._generation_bytes:
            self._old, self._young, self._young_bytes = self._young, {}, 0

    def pin(self, key: bytes, held: KeyRows) -> None:
        """Keep rows, which `get` or `add` gave, until `applied` reaches their `seq`."""
        if key in self.pinned:
            return
        if self._young.pop(key, None) is not None:
            self._young_bytes -= held.size
        else:
            self._old.pop(key, None)
        self.pinned[key] = held
        self.pinned_bytes += held.size

    def grow(self, held: KeyRows, size: int) -> None:
        """Pinned rows have become larger or smaller by `size`."""
        held.size += size
        self.pinned_bytes += size

    def applied(self, keys: Iterable[bytes]) -> None:
        """The index now holds what these keys were at some seq; `unpin` looks at each."""
        self._applied.extend(keys)

    def unpin(self, applied_seq: int, keys_max: int) -> None:
        """Unpin up to `keys_max` of the keys that were applied and not changed since."""
        queue = self._applied
        for _ in range(min(keys_max, len(queue))):
            key = queue.popleft()
            held = self.pinned.get(key)
            if held is not None and held.seq <= applied_seq:
                del self.pinned[key]
                self.pinned_bytes -= held.size
                self.add(key, held)

    @property
    def clean_bytes(self) -> int:
        """About how many bytes of clean rows are in the younger generation."""
        return self._young_bytes

    def forget_clean(self) -> None:
        """Drop the cache (the index was changed underneath it)."""
        self._young, self._old, self._young_bytes = {}, {}, 0
