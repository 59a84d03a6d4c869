"""A small store on a simulated disk: the production log format, rows and rules of recovery.

What `roostd.store` does with files and LMDB this does with a `Disk`: a group a flush, an index
that lags behind the log, replay from the index's position, the decision about a torn tail, the
rule about actors (DESIGN 12.1). It has no admission and no bounds on memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from roost_crdt import digest, logformat
from roost_crdt.errors import ActorReused, CorruptData
from roost_crdt.hlc import Hlc, Stamp, hlc_from_ms
from roost_crdt.record import (
    CHAIN_START,
    Record,
    RowOp,
    chain_next,
    decode_record,
    decode_rows,
    encode_record,
    record_hash,
)
from roost_crdt.rows import Delta, StampReused, decode_row, encode_row, join_delta
from roost_crdt.rows.layout import Rows, split_row_key

from .disk import Disk
from .log import Entry, Log, StoreFailed
from .loop import START_MS

__all__ = ["CLEAN", "SEGMENTS_KEPT", "KeyRows", "Recovery", "Store", "StoreFailed"]

SEGMENTS_KEPT = 3
CLEAN = b"clean"
HOUR_MS = digest.HOUR_MS

_encode = msgspec.msgpack.Encoder().encode
_decode_items = msgspec.msgpack.Decoder(list[tuple[bytes, bytes | None]]).decode
_decode_rows_entry = msgspec.msgpack.Decoder(tuple[tuple[RowOp, ...], dict[int, int]]).decode
_decode_drop_entry = msgspec.msgpack.Decoder(tuple[list[bytes], dict[int, int] | None]).decode


@dataclass(slots=True)
class KeyRows:
    type: int = 0
    rows: Rows = field(default_factory=dict)


@dataclass(slots=True)
class Recovery:
    """What opening the store found."""

    replayed: int = 0
    torn_bytes: int = 0
    actor_before: int = 0
    why_new_actor: str = ""


class Store:
    """One node's store; `step` is called between any two things that a crash could separate."""

    def __init__(
        self,
        disk: Disk,
        *,
        now_ms: int,
        random_bytes: Callable[[int], bytes],
        step: Callable[[str], None],
        segments_kept: Callable[[], int] = lambda: SEGMENTS_KEPT,
    ) -> None:
        self.disk = disk
        self.keys: dict[bytes, KeyRows] = {}
        self.items: dict[int, dict[bytes, bytes]] = {}
        self.vv: dict[int, int] = {}
        self.clock = Hlc()
        self.recovery = Recovery()
        self.last_raw = b""
        self.quarantined = 0
        self.actors_reused = 0
        self.on_flush: list[Callable[[list[bytes]], None]] = []
        """Told the keys that a flush made durable."""
        self._random_bytes = random_bytes
        self._touched: dict[bytes, None] = {}
        """Keys that the open group changes."""
        self._changed: dict[bytes, None] = {}
        self._parts: dict[bytes, digest.Contribution] = {}
        self._digest: tuple[int, bytes] | None = None
        self._whole = 0
        self._unapplied: list[Entry] = []
        self._identify()
        self._log = Log(disk, self.store_id, step, segments_kept)
        self._recover()
        self.clock.observe(hlc_from_ms(now_ms))

    # --- opening

    def _identify(self) -> None:
        meta = self.disk.index.meta
        if not meta:
            meta[b"store_id"] = self._random_bytes(16)
            meta[b"secret"] = self._random_bytes(logformat.SECRET_BYTES)
            meta[b"actor"] = self._random_bytes(8)
            meta[CLEAN] = b"1"
            meta[b"file_id"] = self.disk.file_id
        clean = meta.pop(CLEAN, None) is not None
        why = ""
        if meta[b"file_id"] != self.disk.file_id:
            why = "the store's files are copies"
        elif not clean and meta[b"boot_id"] != self.disk.boot_id:
            why = "the machine stopped without a clean shutdown"
        if why:
            self.recovery.actor_before = int.from_bytes(meta[b"actor"], "big")
            self.recovery.why_new_actor = why
            meta[b"actor"] = self._random_bytes(8)
        meta[b"boot_id"], meta[b"file_id"] = self.disk.boot_id, self.disk.file_id
        self.store_id = meta[b"store_id"]
        self.actor = int.from_bytes(meta[b"actor"], "big")

    def _recover(self) -> None:
        index = self.disk.index
        for name, (type_code, body) in index.rows.items():
            key, part = split_row_key(name)
            held = self.keys.setdefault(key, KeyRows(type_code))
            held.rows[part] = decode_row(type_code, part, body)
            self._changed[key] = None
        self.items = {kind: dict(pairs) for kind, pairs in index.items.items()}
        self.vv = dict(index.vv)
        for hlc in self.vv.values():
            self.clock.observe(hlc)
        self.applied_seq = index.applied_seq
        if not self.disk.files:
            if index.applied_seq:
                raise CorruptData("the log is gone, but the index has applied some of it")
            self._log.begin()
            return
        for entry in self._log.replay(index):
            self._redo(*entry)
            self.recovery.replayed += 1
        self.recovery.torn_bytes = self._log.torn_bytes
        if self._log.head[0] != self.actor:
            self._log.head = (self.actor, 0, CHAIN_START)

    def _redo(self, kind: int, raw: bytes, seq: int) -> None:
        if kind == logformat.KIND_RECORD:
            record = decode_record(raw, body_bytes_max=len(raw))
            self._join(record.ops)
            if record.prev_hlc <= self.vv.get(record.actor, 0) < record.hlc:
                self._extend(record.actor, record.hlc)
        elif kind == logformat.KIND_ROWS:
            ops, vv = _decode_rows_entry(raw)
            self._join(ops)
            self._cover(vv)
        elif kind == logformat.KIND_DROP:
            self._drop(*_decode_drop_entry(raw))
        else:
            self._put(kind, dict(_decode_items(raw)))
        self._unapplied.append(Entry(kind, raw, seq))

    # --- reading

    @property
    def seq(self) -> int:
        return self._log.seq

    @property
    def durable_seq(self) -> int:
        return self._log.durable_seq

    @property
    def dirty(self) -> bool:
        return self._log.open

    @property
    def head(self) -> tuple[int, bytes]:
        """`(hlc, chain)` of the own actor as of what is durable."""
        return self._log.durable_head[1:]

    def key_rows(self, key: bytes) -> KeyRows:
        return self.keys.get(key) or KeyRows()

    def get(self, kind: int, key: bytes) -> bytes | None:
        return self.items.get(kind, {}).get(key)

    def chain_at(self, hlc: int) -> bytes | None:
        """The own actor's chain at an earlier head, empty if it had none at that hlc; None if the
        log does not know."""
        return self._log.chain_at(self.actor, hlc)

    def scan(
        self, kind: int, prefix: bytes = b"", after: bytes = b"", limit: int = 1000
    ) -> list[tuple[bytes, bytes]]:
        pairs = self.items.get(kind, {})
        names = sorted(name for name in pairs if name.startswith(prefix) and name > after)
        return [(name, pairs[name]) for name in names[:limit]]

    def scan_rows(self, after_row_key: bytes, bytes_max: int) -> list[RowOp]:
        self.flush()
        found: list[RowOp] = []
        size = 0
        after = after_row_key.partition(b"\0")[0]
        for key in sorted(key for key in self.keys if key >= after):
            held = self.keys[key]
            for part in sorted(held.rows):
                name = key + b"\0" + part
                if name <= after_row_key:
                    continue
                if size >= bytes_max:
                    return found
                body = encode_row(held.type, part, held.rows[part])
                found.append(RowOp(name, held.type, body))
                size += len(name) + len(body)
        return found

    def records_after(self, origin: int, hlc: int, bytes_max: int) -> list[bytes] | None:
        found = self._log.records_after(origin, hlc, bytes_max)
        if found or self.vv.get(origin, 0) <= hlc or self._log.follows(origin, hlc):
            return found
        return None

    def digest(self) -> tuple[bytes, dict[int, int]]:
        """A sum over what is live, and the version vector that it covers."""
        if self._digest is None or self._digest[0] != self.seq:
            for key in self._changed:
                self._add_up(key)
            self._changed.clear()
            # One sum in place of 4,096: hashing them all costs more than the rest of a run.
            whole = self._whole.to_bytes(16, "big")
            self._digest = (self.seq, whole)
        return self._digest[1], dict(self.vv)

    def _add_up(self, key: bytes) -> None:
        held = self.keys.get(key)
        before = self._parts.pop(key, None)
        if before is not None:
            self._whole = (self._whole - _as_one(before)) % digest.MODULUS
        if held is not None:
            part = self._parts[key] = digest.contribution(held.type, key, held.rows)
            self._whole = (self._whole + _as_one(part)) % digest.MODULUS

    def sums(self) -> tuple[dict[int, int], list[int]]:
        """The sum of each bucket, and before it the version vector that they were taken at."""
        self.flush()
        self.digest()
        buckets = [0] * digest.BUCKETS
        for key, part in self._parts.items():
            bucket = digest.bucket_of(key)
            buckets[bucket] = (buckets[bucket] + part.live) % digest.MODULUS
        return dict(self.vv), buckets

    def root(self, now_ms: int) -> str:
        """The digest of DESIGN 8, over all buckets, worked out anew."""
        buckets = [0] * digest.BUCKETS
        hours: dict[int, int] = {}
        for key, held in self.keys.items():
            bucket = digest.bucket_of(key)
            part = digest.contribution(held.type, key, held.rows)
            buckets[bucket] = (buckets[bucket] + part.live) % digest.MODULUS
            for hour, amount in part.hours.items():
                hours[hour] = (hours.get(hour, 0) + amount) % digest.MODULUS
        return digest.root(buckets, hours, now_ms)

    # --- writing

    def stamp(self, now_ms: int) -> Stamp:
        return self.clock.tick(now_ms), self.actor

    def commit(self, stamp: Stamp, ops: Sequence[tuple[bytes, int, Delta]]) -> Record:
        """One record of this node; durable after `flush`."""
        hlc, actor = stamp
        assert actor == self.actor
        row_ops = tuple(
            RowOp(key + b"\0" + part, type_code, encode_row(type_code, part, row))
            for key, type_code, delta in ops
            for part, row in delta.items()
        )
        record = Record(actor, hlc, self.vv.get(actor, 0), row_ops)
        raw = encode_record(record)
        self._log.append(logformat.KIND_RECORD, raw)
        self._log.head = (actor, hlc, chain_next(self._log.head[2], record_hash(raw)))
        for key, type_code, delta in ops:
            held = self.keys.setdefault(key, KeyRows(type_code))
            held.type = type_code
            held.rows.update(delta)
            self._mark(key)
        self._extend(actor, hlc)
        self.last_raw = raw
        return record

    def accept(self, raw: bytes, record: Record) -> bool:
        """A neighbour's record, verbatim, iff it extends the version vector."""
        if not record.prev_hlc <= self.vv.get(record.actor, 0) < record.hlc:
            return False
        if record.actor == self.actor:
            raise ActorReused(f"a neighbour holds records of actor {record.actor:x}")
        self._log.append(logformat.KIND_RECORD, raw)
        self._join(record.ops)
        self._extend(record.actor, record.hlc)
        return True

    def accept_rows(self, ops: Sequence[RowOp], vv: Mapping[int, int]) -> None:
        self._log.append(logformat.KIND_ROWS, _encode((ops, vv)))
        self._join(ops)
        self._cover(vv)

    def drop_rows(self, row_keys: Sequence[bytes], vv: Mapping[int, int] | None = None) -> None:
        """Remove rows for good; `vv`, if given, replaces the version vector."""
        covers = None if vv is None else dict(vv)
        self._log.append(logformat.KIND_DROP, _encode((list(row_keys), covers)))
        self._drop(row_keys, covers)

    def lose(self, row_keys: Sequence[bytes]) -> None:
        """Damage: rows are gone, in memory and in the index, and no log entry says so."""
        self._drop(row_keys, None)
        for name in row_keys:
            self.disk.index.rows.pop(name, None)
        self._digest = None

    def put(self, kind: int, items: Mapping[bytes, bytes | None]) -> int:
        self._log.append(kind, _encode(list(items.items())))
        self._put(kind, items)
        return self.seq

    def renew_actor(self, random_bytes: Callable[[int], bytes]) -> int:
        """Give up the actor (a neighbour found it rolled back or cloned); the old one."""
        self.flush()
        before = self.actor
        self.actor = int.from_bytes(random_bytes(8), "big")
        self.disk.index.meta[b"actor"] = self.actor.to_bytes(8, "big")
        self._log.head = (self.actor, 0, CHAIN_START)
        return before

    def flush(self) -> None:
        """One write and one sync for the open group. StoreFailed is final."""
        if not self._log.open:
            return
        self._unapplied += self._log.flush()
        touched, self._touched = self._touched, {}
        if touched:
            for callback in self.on_flush:
                callback(list(touched))

    def apply(self) -> None:
        """What the applier's thread does: the index catches up in one transaction; old log goes."""
        if not self._unapplied:
            return
        index = self.disk.index
        fresh = index.copy()
        durable = {name for kind, raw, _ in self._unapplied for name in _row_keys(kind, raw)}
        if not self._log.open:
            for name in durable:
                key, part = split_row_key(name)
                held = self.key_rows(key)
                if part in held.rows:
                    fresh.rows[name] = (held.type, encode_row(held.type, part, held.rows[part]))
                else:
                    fresh.rows.pop(name, None)
            fresh.items = {kind: dict(pairs) for kind, pairs in self.items.items()}
            fresh.vv = dict(self.vv)
            fresh.applied_seq = self.applied_seq = self.durable_seq
            fresh.position = self._log.position
            fresh.head = self._log.head
            self._unapplied.clear()
            self.disk.index = fresh
            self._log.trim(self.applied_seq)

    def close(self) -> None:
        """A clean shutdown."""
        self.flush()
        self.apply()
        self.disk.index.meta[CLEAN] = b"1"

    # --- inside

    def _join(self, ops: Sequence[RowOp]) -> None:
        for decoded in decode_rows(ops):
            held = self.keys.setdefault(decoded.key, KeyRows(decoded.type))
            if held.type != decoded.type:
                self.quarantined += 1
                continue
            try:
                changed = join_delta(held.type, held.rows, {decoded.part: decoded.row})
            except StampReused as error:
                changed = error.kept
                self.actors_reused += 1
            held.rows.update(changed)
            self._mark(decoded.key)

    def _mark(self, key: bytes) -> None:
        self._changed[key] = self._touched[key] = None

    def _drop(self, row_keys: Sequence[bytes], vv: Mapping[int, int] | None) -> None:
        for name in row_keys:
            key, part = split_row_key(name)
            held = self.keys.get(key)
            if held is None:
                continue
            held.rows.pop(part, None)
            if not held.rows:
                del self.keys[key]
            self._mark(key)
        if vv is not None:
            self.vv = dict(vv)

    def _extend(self, actor: int, hlc: int) -> None:
        self.vv[actor] = hlc
        self.clock.observe(hlc)

    def _cover(self, vv: Mapping[int, int]) -> None:
        for actor, hlc in vv.items():
            if hlc > self.vv.get(actor, 0):
                self._extend(actor, hlc)

    def _put(self, kind: int, items: Mapping[bytes, bytes | None]) -> None:
        pairs = self.items.setdefault(kind, {})
        for key, value in items.items():
            if value is None:
                pairs.pop(key, None)
            else:
                pairs[key] = value


def _row_keys(kind: int, raw: bytes) -> list[bytes]:
    if kind == logformat.KIND_RECORD:
        return [op.row_key for op in decode_record(raw, body_bytes_max=len(raw)).ops]
    if kind == logformat.KIND_ROWS:
        return [op.row_key for op in _decode_rows_entry(raw)[0]]
    if kind == logformat.KIND_DROP:
        return _decode_drop_entry(raw)[0]
    return []


def _as_one(part: digest.Contribution) -> int:
    """What is live and what expires in hours to come, as one number."""
    hours = part.hours.items()
    return part.live + sum((2 * h + 1) * amount for h, amount in hours if h * HOUR_MS > START_MS)
