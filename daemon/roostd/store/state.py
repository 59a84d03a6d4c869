"""State: what the node's thread knows, in memory over the index.

Everything that was appended is here at once. Rows and pairs that the index does not hold yet
are pinned or overlaid, and gathered in the open group's batch for the applier.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import lmdb

from roost_crdt import logformat
from roost_crdt.errors import BadRequest, Busy, CorruptData
from roost_crdt.hlc import Hlc
from roost_crdt.record import DecodedRow, RowOp
from roost_crdt.rows import (
    Delta,
    StampReused,
    decode_row,
    encode_row,
    join_delta,
    kept_row,
    row_hlc,
)
from roost_crdt.rows.layout import Part, Rows, split_row_key, unseal
from roostd.environment import is_disk_error
from roostd.index import Index
from roostd.logrecovery import REPAIR
from roostd.sealing import META_OWN
from roostd.store.applier import Batch
from roostd.store.memory import KEY_BYTES, ROW_BYTES, KeyRows, RowMemory, row_bytes
from roostd.store.sums import BUCKET_PREFIX, HOUR_PREFIX

KEY_VALUE_KINDS = (
    logformat.KIND_SESSION,
    logformat.KIND_SPEND,
    logformat.KIND_OUTBOX,
    logformat.KIND_CONSENSUS,
    logformat.KIND_META,
)
_ASTRAY: Part = b""
"""Among the damaged parts of a key: what it has besides cannot be told."""
_ITEM_BYTES = 200
_ITEM_KEY_BYTES_MAX = 511
_RESERVED_META = (BUCKET_PREFIX, HOUR_PREFIX)
_QUARANTINED_MAX = 1_000
_RETRY_MS = 1_000
_DAMAGED_PAIRS_MAX = 1_000


class State:
    """Rows, pairs and version vector up to the newest entry; `applied_seq` is in the index."""

    def __init__(
        self, index: Index, vv: dict[int, int], applied_seq: int, rows_memory_bytes: int
    ) -> None:
        self.index = index
        self.vv = vv
        self.applied_seq = applied_seq
        self.clock = Hlc(max(vv.values(), default=0))
        self.memory = RowMemory(rows_memory_bytes)
        self.overlay: dict[int, dict[bytes, tuple[int, bytes | None]]] = {
            kind: {} for kind in KEY_VALUE_KINDS
        }
        self.batch = Batch()
        self.quarantined: dict[bytes, int] = {}
        self.actors_reused = 0
        self.corrupt_rows = 0
        self.damage_seen = 0
        """Reads that met damage: a scrub is to find what it is."""
        self.damaged_pairs: dict[tuple[int, bytes], None] = {}
        """(kind, key) of pairs whose checksum failed when they were read, at most 1,000."""
        self._overlay_bytes = 0

    def met(self, kind: int, key: bytes) -> None:
        """A read came upon a damaged pair."""
        self.damage_seen += 1
        if len(self.damaged_pairs) < _DAMAGED_PAIRS_MAX:
            self.damaged_pairs[kind, key] = None

    def unreadable(self, what: str, exc: CorruptData | lmdb.Error) -> Busy | CorruptData:
        """The error for a read that met damage, which is noted and named by `what`; or that LMDB
        refuses because a meta page could not be written."""
        if isinstance(exc, lmdb.Error) and is_disk_error(exc):
            return Busy(
                f"the index cannot be read: {exc}; the node stops and recovers from its log",
                retry_after_ms=_RETRY_MS,
            )
        self.damage_seen += 1
        return CorruptData(f"{what}: {exc}; {REPAIR}")

    @property
    def pinned_bytes(self) -> int:
        """About how many bytes wait in memory for the index."""
        return self.memory.pinned_bytes + self._overlay_bytes

    def held(self, key: bytes, *, astray: bool = False) -> KeyRows:
        """A key's rows from memory or the index, damaged ones left out; see `load`."""
        held = self.memory.pinned.get(key) or self.memory.get(key)
        if held is None:
            held = self.load(key, astray=astray)
            self.memory.add(key, held)
        return held

    def load(self, key: bytes, *, astray: bool = False) -> KeyRows:
        """A key's rows from the index, for a key that is not pinned. CorruptData if a damaged
        entry beside them may be one of them; `astray`: not then, but it counts as damaged."""
        type_code = 0
        rows: Rows = {}
        damaged: list[Part] = []
        skip = len(key) + 1
        try:
            try:
                stored = self.index.rows_of(key)
            except CorruptData:
                self.damage_seen += 1
                if not astray:
                    raise
                stored = self.index.rows(key + b"\0")
                damaged.append(_ASTRAY)
        except lmdb.Error as exc:
            raise self.unreadable(f"the index is damaged near key {key!r}", exc) from exc
        for name, sealed in stored:
            part = name[skip:]
            try:
                row_type, body = unseal(name, sealed)
                rows[part] = row = decode_row(row_type, part, body)
                self.clock.observe(row_hlc(row_type, part, row))
                type_code = row_type
            except CorruptData:
                damaged.append(part)
                self.corrupt_rows += 1
                self.damage_seen += 1
        return KeyRows(type_code, rows, frozenset(damaged))

    def take(
        self,
        key: bytes,
        held: KeyRows,
        type_code: int,
        changed: Delta,
        ops: Sequence[RowOp],
        seq: int,
    ) -> None:
        """Put joined rows into memory, pinned, and into the batch for the index; `ops` are
        the same rows as they are stored."""
        memory, rows, batch = self.memory, held.rows, self.batch
        if held.seq <= self.applied_seq:
            memory.pin(key, held)
        held.seq = seq
        held.type = type_code
        batch.keys[key] = None
        if len(rows) <= 1 and len(changed) == 1 and changed.keys() >= rows.keys():
            # Most keys have one row: its encoded size tells enough.
            ((part, row),) = changed.items()
            rows[part] = row
            name, _, body = ops[0]
            batch.rows[name] = (type_code, body, row)
            memory.grow(held, KEY_BYTES + ROW_BYTES + len(body) - held.size)
            return
        size = 0
        for (part, row), (name, _, body) in zip(changed.items(), ops, strict=True):
            before = rows.get(part)
            size += row_bytes(row) - (0 if before is None else row_bytes(before))
            rows[part] = row
            batch.rows[name] = (type_code, body, row)
        memory.grow(held, size)

    def join(
        self,
        ops: Sequence[RowOp],
        decoded: Sequence[DecodedRow],
        seq: int,
        *,
        rewrite: bool = False,
    ) -> None:
        """Join foreign rows, key by key. `rewrite`: what memory has of them may be lost in the
        index, so they go there although they change nothing."""
        deltas: dict[tuple[bytes, int], tuple[Delta, dict[Part, RowOp]]] = {}
        for op, (key, part, type_code, row) in zip(ops, decoded, strict=True):
            # Rows of a snapshot may be newer than the vector that comes after them.
            self.clock.observe(row_hlc(type_code, part, row))
            delta, raw = deltas.setdefault((key, type_code), ({}, {}))
            if part in delta:
                row = kept_row(type_code, part, delta[part], row)
                op = op._replace(body=encode_row(type_code, part, row))
            delta[part] = row
            raw[part] = op
        for (key, type_code), (delta, raw) in deltas.items():
            held = self.held(key, astray=True)
            if held.type and held.type != type_code:
                self._quarantine(key, len(delta))
                continue
            try:
                changed = join_delta(type_code, held.rows, delta)
            except StampReused as exc:
                changed = exc.kept
                self.actors_reused += 1
            if rewrite:
                changed = {
                    part: changed.get(part, held.rows.get(part, delta[part])) for part in delta
                }
            if not changed:
                continue
            held.damaged = held.damaged.difference(changed)
            stored = [
                raw[part]
                if row is delta[part]
                else raw[part]._replace(body=encode_row(type_code, part, row))
                for part, row in changed.items()
            ]
            self.take(key, held, type_code, changed, stored, seq)

    def _quarantine(self, key: bytes, operations: int) -> None:
        if key in self.quarantined or len(self.quarantined) < _QUARANTINED_MAX:
            self.quarantined[key] = self.quarantined.get(key, 0) + operations

    def extend(self, actor: int, hlc: int) -> None:
        """All records of `actor` up to `hlc` are held."""
        self.vv[actor] = self.batch.vv[actor] = hlc
        if hlc > self.clock.last:
            self.clock.observe(hlc)

    def cover(self, vv: Mapping[int, int]) -> None:
        """Rows are held that cover `vv`."""
        for actor, hlc in vv.items():
            if hlc > self.vv.get(actor, 0):
                self.extend(actor, hlc)

    def drop(self, row_keys: Sequence[bytes], vv: Mapping[int, int] | None, seq: int) -> None:
        """Remove rows; `vv`, if given, replaces the version vector."""
        batch = self.batch
        for name in row_keys:
            key, part = split_row_key(name)
            held = self.held(key, astray=True)
            self.memory.pin(key, held)
            held.seq = seq
            row = held.rows.pop(part, None)
            held.damaged -= {part}
            if row is not None:
                self.memory.grow(held, -row_bytes(row))
            if not held.rows:
                held.type = 0
            batch.rows[name] = None
            batch.keys[key] = None
        if vv is not None:
            # The index merges version vectors: what is not named any more goes back to 0.
            batch.vv = {**dict.fromkeys(self.vv, 0), **vv}
            self.vv = dict(vv)

    def put(self, kind: int, items: Mapping[bytes, bytes | None], seq: int) -> None:
        """Show pairs before the index does."""
        overlay = self.overlay[kind]
        for key, value in items.items():
            before = overlay.get(key)
            if before is not None:
                self._overlay_bytes -= _item_bytes(key, before[1])
            overlay[key] = (seq, value)
            self._overlay_bytes += _item_bytes(key, value)
        self.batch.items.setdefault(kind, {}).update(items)

    def applied(self, batch: Batch) -> None:
        """The index holds this batch now."""
        self.applied_seq = batch.seq
        self.memory.applied(batch.keys)
        for kind, pairs in batch.items.items():
            overlay = self.overlay[kind]
            for key in pairs:
                entry = overlay.get(key)
                if entry is not None and entry[0] <= batch.seq:
                    self._overlay_bytes -= _item_bytes(key, entry[1])
                    del overlay[key]


def encoded_ops(ops: Sequence[tuple[bytes, int, Delta]]) -> tuple[list[RowOp], int]:
    """The rows of `(key, type, delta)` as they are stored, and their bytes."""
    found: list[RowOp] = []
    size = 0
    for key, type_code, delta in ops:
        prefix = key + b"\0"
        for part, row in delta.items():
            op = RowOp(prefix + part, type_code, encode_row(type_code, part, row))
            found.append(op)
            size += len(op[0]) + len(op[2])
    return found, size


def check_items(kind: int, items: Mapping[bytes, bytes | None]) -> None:
    """BadRequest for pairs that may not be put."""
    assert kind in KEY_VALUE_KINDS
    assert items
    for key in items:
        if not 0 < len(key) <= _ITEM_KEY_BYTES_MAX:
            raise BadRequest(f"a key of {len(key)} bytes; 1 to {_ITEM_KEY_BYTES_MAX} fit")
        if kind == logformat.KIND_META and (key in META_OWN or key.startswith(_RESERVED_META)):
            raise BadRequest(f"meta {key!r} belongs to the store")


def _item_bytes(key: bytes, value: bytes | None) -> int:
    return _ITEM_BYTES + len(key) + (0 if value is None else len(value))
