"""What membership needs of a node's store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from roost_crdt.hlc import Stamp
from roost_crdt.record import Record, RowOp
from roost_crdt.rows.layout import Delta, Rows


class KeyRows(Protocol):
    """The rows of one key, to be read only; `type` is 0 where it has none."""

    @property
    def type(self) -> int: ...

    @property
    def rows(self) -> Rows: ...


class MemberStore(Protocol):
    """Writes are in memory at once and durable after a flush; any of them may raise Full or Busy.

    `on_flush` callbacks are told the keys that a flush made durable.
    """

    on_flush: list[Callable[[list[bytes]], None]]

    @property
    def actor(self) -> int: ...

    @property
    def vv(self) -> Mapping[int, int]: ...

    @property
    def dirty(self) -> bool: ...

    def key_rows(self, key: bytes) -> KeyRows:
        """CorruptData if stored rows of the key are damaged."""
        ...

    def scan_rows(self, after_row_key: bytes, bytes_max: int) -> Sequence[RowOp]:
        """Durable rows in row key order; empty at the end. Flushes first."""
        ...

    def records_after(self, origin: int, hlc: int, bytes_max: int) -> Sequence[bytes] | None:
        """Durable records of an origin that go on from `hlc`; None: the log is too short."""
        ...

    def stamp(self, now_ms: int) -> Stamp: ...

    def accept(self, raw: bytes, record: Record) -> bool:
        """A neighbour's record; False if it does not extend the version vector."""
        ...

    def commit(self, stamp: Stamp, ops: Sequence[tuple[bytes, int, Delta]]) -> Record: ...

    def drop_rows(self, row_keys: Sequence[bytes], vv: Mapping[int, int] | None = None) -> None:
        """Remove rows for good; `vv`, if given, replaces the version vector."""
        ...

    def get(self, kind: int, key: bytes) -> bytes | None: ...

    def scan(
        self, kind: int, prefix: bytes, after: bytes, limit: int
    ) -> Sequence[tuple[bytes, bytes]]: ...

    def put(self, kind: int, items: Mapping[bytes, bytes | None]) -> int: ...

    def chain_at(self, hlc: int) -> bytes | None:
        """The own actor's chain at an earlier head, empty if it had none at that hlc; None if the
        log does not know."""
        ...

    def renew_actor(self, random_bytes: Callable[[int], bytes]) -> int:
        """Write under a new actor, durable when this returns; the old one."""
        ...
