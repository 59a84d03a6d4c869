"""Store: commit, accept, put, flush, and what reads need.

The node calls everything from one thread. An entry goes into the open group and into memory at
once; `flush` makes the group durable (one write, one fdatasync), and only then may anything be
said to anybody. Two threads belong to the store: one applies groups to the index, one makes log
segments ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import lmdb
import msgspec

from roost_crdt import digest, logformat
from roost_crdt.errors import ActorReused, CorruptData, RoostError, TooLarge
from roost_crdt.hlc import Stamp, hlc_from_ms, hlc_ms
from roost_crdt.limits import Limits
from roost_crdt.record import (
    CHAIN_START,
    Record,
    RowOp,
    chain_next,
    decode_rows,
    encode_record,
    record_hash,
)
from roost_crdt.rows import Delta
from roost_crdt.rows.layout import split_row_key
from roostd.index import u64
from roostd.log import StoreFailed
from roostd.store import backup, identity, reads, sums
from roostd.store.admission import Admission, is_small
from roostd.store.applier import Applier, Batch
from roostd.store.backup import Page
from roostd.store.erasing import PREFIX as ERASING
from roostd.store.erasing import Erasing
from roostd.store.memory import KeyRows
from roostd.store.mending import Forget, Mender
from roostd.store.opening import Opened, Recovery, new_actor, open_parts, unreadable
from roostd.store.replay import replay
from roostd.store.scrub import Scrubbed
from roostd.store.state import State, check_items, encoded_ops
from roostd.store.suspects import NAME as SUSPECT
from roostd.store.suspects import Suspects

_UNPIN_KEYS = 512
_DRAIN_S = 5.0

_encode = msgspec.msgpack.Encoder().encode


class Store:
    """Rows of global state, and the key/value databases of the other log entry kinds.

    `seq` is the newest entry, `durable_seq` the newest synced, `applied_seq` the newest that
    the index holds. `vv` covers `seq`. After a StoreFailed every write raises it again.
    """

    def __init__(self, opened: Opened, limits: Limits, size_max: int) -> None:
        """Use `Store.open`."""
        self.limits = limits
        self.size_max = size_max
        self.store_id = opened.store_id
        self.actor = opened.actor
        self.recovery: Recovery = opened.recovery
        self.on_flush: list[Callable[[list[bytes]], None]] = []
        self.on_failed: Callable[[StoreFailed], None] | None = None
        self.schedule: Callable[[], None] | None = None
        self.last_raw = b""
        """The record of the last `commit`, encoded."""
        self._path = opened.index.path.parent
        self._index = opened.index
        self._log = opened.log
        self._lock_fd = opened.lock_fd
        self._state = State(opened.index, opened.vv, opened.applied_seq, limits.rows_memory_bytes)
        self._chain = CHAIN_START
        self._head = (0, CHAIN_START)
        self._buckets, self._hours = sums.load_digest(opened.index)
        self._applied_vv = dict(opened.vv)
        self.suspects = Suspects(opened.index.meta(SUSPECT))
        self._applier = Applier(
            opened.index, opened.vv, self._buckets, self._hours, limits, self.suspects, opened.own
        )
        self.mender = Mender(self._log, self._state, self._applier, self.accept_rows, limits)
        self._admission = Admission(
            self._applier,
            size_max=size_max,
            pinned_bytes_max=limits.pinned_bytes_max,
            pinned_bytes=self._pinned_bytes,
        )
        self.erasing = Erasing(self._log, self._applier.wiping, self.put, limits)
        self._closed = False

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        limits: Limits,
        size_max: int,
        log_retention: int,
        now_ms: int,
        random_bytes: Callable[[int], bytes],
        forget: Forget = lambda kind, key: None,
    ) -> Store:
        """Open or create the store in directory `path` and recover it; see `recovery`.

        Raises StoreLocked (another daemon has it), CorruptData (damage; nothing was changed,
        the text names place and remedy), ConfigError (written by another release). `forget`: see
        roostd.store.mending.
        """
        opened = open_parts(path, size_max, log_retention, limits, random_bytes)
        try:
            store = cls(opened, limits, size_max)
            store._replay()
            if opened.sound:
                store.mender.mend_pairs(forget)
            store.erasing.load(store.names(logformat.KIND_META, ERASING))
        except BaseException as exc:
            opened.log.close()
            opened.index.close()
            identity.unlock(opened.lock_fd)
            if isinstance(exc, lmdb.Error):
                raise unreadable(path, exc) from exc
            raise
        store._state.clock.observe(hlc_from_ms(now_ms))
        store._applier.start()
        store._log.index_earlier()
        return store

    def _replay(self) -> None:
        """Take in again what the index does not hold, and settle under which head to go on."""
        self.recovery.replayed, batch = replay(self._state, self._log, self._path, self.actor)
        self._chain = self._log.head[2]
        self._head = self._log.head[1:]
        if batch.seq:
            self._applier.offer(batch)

    def backup(self, cursor: bytes, about: dict[str, str], now_ms: int, random_id: bytes) -> Page:
        """The next chunk of a backup, the first one for an empty cursor; see store.backup."""
        self.mender.check_backup()
        index, log = self._index, self._log
        try:
            if not cursor:
                return backup.begin(index, log, about=about, now_ms=now_ms, random_id=random_id)
            stuck = bool(self._applier.problem)
            return backup.go_on(index, log, cursor, now_ms=now_ms, stuck=stuck)
        except lmdb.Error as exc:
            raise self._state.unreadable("the backup came upon damage", exc) from exc

    def key_rows(self, key: bytes) -> KeyRows:
        """The rows of a key (`type` 0: it has none), to be read only.

        Raises CorruptData if rows of it are damaged or lost; see roostd.store.suspects.
        """
        held = self._state.held(key)
        if self.suspects.buckets:
            self.suspects.check(key, held)
        if held.damaged:
            raise held.failure(key)
        return held

    def get(self, kind: int, key: bytes) -> bytes | None:
        """One value of a kind's database."""
        return reads.pair(self._state, kind, key)

    def scan(
        self, kind: int, prefix: bytes = b"", after: bytes = b"", limit: int = 1000
    ) -> list[tuple[bytes, bytes]]:
        """Up to `limit` pairs of a kind in key order, with `prefix` and above `after`."""
        return reads.pairs(self._state, kind, prefix, after, limit)

    def names(self, kind: int, prefix: bytes) -> list[bytes]:
        """The keys of all pairs of a kind with `prefix`, also of those that cannot be read."""
        return reads.names(self._state, kind, prefix)

    def keys(self, prefix: bytes, after: bytes, limit: int, now_ms: int) -> list[bytes]:
        """Up to `limit` keys in order that have a value at `now_ms`; fewer: there are no more."""
        return reads.live_keys(self._state, prefix, after, limit, now_ms)

    def scan_rows(self, after_row_key: bytes, bytes_max: int) -> list[RowOp]:
        """Rows in row key order above `after_row_key`, durable ones; empty at the end."""
        self.flush()
        return reads.rows_after(self._state, after_row_key, bytes_max)

    def records_after(self, origin: int, hlc: int, bytes_max: int) -> list[bytes] | None:
        """Durable records of `origin` that go on from `hlc`, as they were written; about
        `bytes_max`, at least one. Empty: there are none. None: a snapshot holds them."""
        found = self._log.records_after(origin, hlc, bytes_max)
        if found or self.vv.get(origin, 0) <= hlc or self._log.follows(origin, hlc):
            return found
        return None

    @property
    def vv(self) -> dict[int, int]:
        """Actor -> newest hlc held; covers `seq`."""
        return self._state.vv

    @property
    def quarantined(self) -> dict[bytes, int]:
        """Keys (at most 1,000) -> operations kept out because the key has another type."""
        return self._state.quarantined

    @property
    def actors_reused(self) -> int:
        """How often one stamp came with two bodies: two writers share an actor."""
        return self._state.actors_reused

    @property
    def corrupt_rows(self) -> int:
        """Stored rows that failed their checksum."""
        return self._state.corrupt_rows + self._applier.corrupt_rows + self.suspects.lost_rows

    @property
    def seq(self) -> int:
        """The newest log entry."""
        return self._log.last_seq

    @property
    def durable_seq(self) -> int:
        """The newest log entry that survives a crash."""
        return self._log.durable_seq

    @property
    def applied_seq(self) -> int:
        """The newest log entry that the index, and so a reader of shared memory, shows."""
        if self._applier.done:
            self._reap(_UNPIN_KEYS)
        return self._state.applied_seq

    @property
    def dirty(self) -> bool:
        """Whether a group is open: `flush` is due."""
        return bool(self._state.batch.seq)

    @property
    def head(self) -> tuple[int, bytes]:
        """`(hlc, chain)` of this store's own actor, durable: what neighbours may be told."""
        return self._head

    def chain_at(self, hlc: int) -> bytes | None:
        """The own actor's chain at an earlier head, empty if it had none at that hlc; None if
        the log does not know."""
        return self._log.chain_at(self.actor, hlc)

    def full(self) -> str:
        """Why writes are refused with Full at the moment; "" if they are not."""
        return self._admission.why_full() or self._log.problem

    def bytes_used(self) -> int:
        """Bytes of `size_max` in use."""
        return self._applier.room.used

    def log_bytes(self) -> int:
        """Bytes of the log's files."""
        return self._log.bytes_used()

    def digest(self, now_ms: int | None = None) -> tuple[int, str]:
        """`(applied_seq, root)` of what the index holds; hours due at `now_ms` are left out."""
        self._reap(_UNPIN_KEYS)
        now_ms = hlc_ms(self._state.clock.last) if now_ms is None else now_ms
        return self._state.applied_seq, digest.root(self._buckets, self._hours, now_ms)

    def digest_buckets(self) -> tuple[dict[int, int], list[int]]:
        """The version vector that the index covers, and the sum of each bucket there."""
        self._reap(_UNPIN_KEYS)
        return dict(self._applied_vv), list(self._buckets)

    def look_after(self) -> None:
        """Take over what the store's threads did; they look where a read met damage."""
        self._reap(_UNPIN_KEYS)  # nobody else asks while nothing is written
        if (cause := self._applier.failed) and not isinstance(cause, CorruptData):
            self._report(StoreFailed(f"applying the log to the index failed: {cause}; restart"))
        self.mender.look()
        self.erasing.look(self._state.applied_seq)

    def neighbours_hold(self, vv: Mapping[int, int] | None) -> None:
        """What all neighbours hold durably: the log is not kept for them; None: not known."""
        self.look_after()
        self._log.neighbours_hold(vv)

    # Writing

    def stamp(self, now_ms: int) -> Stamp:
        """The own actor's next stamp: above all that this store wrote or saw."""
        return self._state.clock.tick(now_ms), self.actor

    def commit(
        self, stamp: Stamp, ops: Sequence[tuple[bytes, int, Delta]], *, shrinks: bool = False
    ) -> Record:
        """Write `(key, type, delta)` operations as one record under `stamp`.

        Each delta is joined with the key's rows already (as the row modules return them). In
        memory at once; durable after `flush`. Raises Full, Busy, TooLarge, StoreFailed before
        anything changes. `shrinks`: a delete, admitted into the reserve of a full store.
        """
        hlc, actor = stamp
        state = self._state
        held = state.vv.get(actor, 0)
        assert actor == self.actor
        assert hlc > held
        row_ops, size = encoded_ops(ops)
        assert row_ops, "a commit without rows: the caller skips what changes nothing"
        record = Record(actor, hlc, held, tuple(row_ops))
        raw = encode_record(record)
        if len(raw) > self.limits.body_bytes_max:
            raise TooLarge(
                f"the write has {len(raw)} bytes; at most {self.limits.body_bytes_max} "
                "(limits.body_max)"
            )
        seq = self._append(logformat.KIND_RECORD, raw, len(row_ops), size, shrinks, actor, hlc)
        self._chain = chain_next(self._chain, record_hash(raw))
        self._log.head = (actor, hlc, self._chain)
        at = 0
        for key, type_code, delta in ops:
            if delta:
                stored = row_ops[at : at + len(delta)]
                state.take(key, state.held(key), type_code, delta, stored, seq)
                at += len(delta)
        state.extend(actor, hlc)
        self.last_raw = raw
        return record

    def accept(self, raw: bytes, record: Record) -> bool:
        """Take a neighbour's record, verbatim, iff it extends the version vector.

        Operations on a key of another type are quarantined (counted); the record counts as
        held. Raises CorruptData, ActorReused (the record claims this store's own actor), Full,
        Busy, TooLarge, StoreFailed before anything changes.
        """
        actor, hlc = record.actor, record.hlc
        if not record.prev_hlc <= self.vv.get(actor, 0) < hlc:
            return False
        if actor == self.actor:
            raise ActorReused(
                f"a neighbour holds records of actor {actor} up to {hlc}, which this store never "
                f"wrote (it is at {self.vv.get(actor, 0)}): rolled back or cloned"
            )
        decoded = list(decode_rows(record.ops))
        size = len(raw)
        seq = self._append(logformat.KIND_RECORD, raw, len(decoded), size, False, actor, hlc)
        self._state.join(record.ops, decoded, seq)
        self._state.extend(actor, hlc)
        return True

    def accept_rows(self, ops: Sequence[RowOp], vv: Mapping[int, int]) -> None:
        """Join snapshot or repair rows; `vv`: what they cover ({} while more are to come)."""
        decoded = list(decode_rows(ops))
        raw = _encode((ops, vv))
        seq = self._append(logformat.KIND_ROWS, raw, len(decoded), len(raw), False)
        self._state.join(ops, decoded, seq, rewrite=bool(self.suspects.buckets))
        self._state.cover(vv)

    def drop_rows(self, row_keys: Sequence[bytes], vv: Mapping[int, int] | None = None) -> None:
        """Remove rows for good: dead ones at a collection, replicated ones before a reseed.

        `vv`, if given, replaces the version vector.
        """
        for name in row_keys:
            split_row_key(name)
        raw = _encode((list(row_keys), None if vv is None else dict(vv)))
        seq = self._append(logformat.KIND_DROP, raw, len(row_keys), len(raw), True)
        self._state.drop(row_keys, vv, seq)

    def put(self, kind: int, items: Mapping[bytes, bytes | None]) -> int:
        """Write (None: delete) pairs of one kind's database, all or nothing; the entry's seq.

        Raises BadRequest, Full, Busy, TooLarge, StoreFailed before anything changes.
        """
        check_items(kind, items)
        raw = _encode(list(items.items()))
        seq = self._append(kind, raw, len(items), len(raw), is_small(kind, items))
        self._state.put(kind, items, seq)
        return seq

    def flush(self) -> None:
        """Make the open group durable, then call `on_flush` with the keys that it changed.

        Nothing to do: returns at once. StoreFailed is final; `on_failed` has been called.
        """
        batch = self._state.batch
        if not batch.seq:
            if self._log.failed is not None:
                raise self._log.failed
            return
        try:
            if self._applier.failed is not None:
                self._log.fail(f"applying the log to the index failed: {self._applier.failed}")
            with self._applier.disk_wait:
                self._log.sync()
        except StoreFailed as exc:
            self._report(exc)
            raise
        self._state.batch, self._head = Batch(), self._log.head[1:]
        batch.position, batch.head = self._log.position, self._log.head
        self._applier.offer(batch)
        self._reap(_UNPIN_KEYS)
        if batch.keys:
            keys = list(batch.keys)
            for callback in self.on_flush:
                callback(keys)

    def renew_actor(self, random_bytes: Callable[[int], bytes]) -> int:
        """Give up the actor and write under a new one, which is durable when this returns; if the
        disk is full all writes are Full until it is. For a store that neighbours found rolled back
        or cloned (DESIGN 12.4); returns the old actor, whose records come back from neighbours.
        """
        self.flush()
        before, self.actor = self.actor, new_actor(random_bytes)
        self._admission.credit = 0
        self._applier.own.offer({b"actor": u64(self.actor)})
        self._chain = CHAIN_START
        self._log.head = (self.actor, 0, CHAIN_START)
        self._head = (0, CHAIN_START)
        return before

    def close(self, clean: bool = True) -> str:
        """Stop. `clean`: flush first, apply what can be applied in 5 s, and mark the store so;
        why that could not be done, "" if it was. StoreFailed if the last flush failed.
        """
        if self._closed:
            return ""
        self._closed = True
        try:
            if clean:
                self.flush()
                self._applier.drain(_DRAIN_S)
            self._applier.stop()
            problem = self._applier.own.problem
            return identity.try_mark_clean(self._path, self.store_id, problem) if clean else ""
        finally:
            self._applier.stop()
            self._log.close()
            self._index.close()
            identity.unlock(self._lock_fd)

    def _append(
        self,
        kind: int,
        raw: bytes,
        rows: int,
        size: int,
        shrinks: bool,
        origin: int = 0,
        hlc: int = 0,
    ) -> int:
        """Admit and append an entry; nothing has changed if this raises."""
        if self._log.failed is not None:
            raise self._log.failed
        self._admission.admit(rows, size, shrinks)
        try:
            seq = self._log.append(kind, raw, origin, hlc)
        except StoreFailed as exc:
            self._report(exc)
            raise
        except RoostError:
            self._admission.applied(rows, size)
            raise
        batch = self._state.batch
        if not batch.seq and self.schedule is not None:
            self.schedule()
        batch.seq = seq
        batch.ops += rows
        batch.bytes += size
        return seq

    def _report(self, exc: StoreFailed) -> None:
        if self.on_failed is not None:
            callback, self.on_failed = self.on_failed, None
            callback(exc)

    def _pinned_bytes(self) -> int:
        self._reap(1 << 30)
        return self._state.pinned_bytes

    def _reap(self, unpin_max: int) -> None:
        """Take over what the applier has done; unpin at most `unpin_max` keys."""
        done = self._applier.done
        while done:
            applied = done.popleft()
            if isinstance(applied, Scrubbed):
                self._buckets, self._hours = applied.buckets, applied.hours
                self.mender.take_note(applied)
                continue
            batch = applied.batch
            self._applied_vv.update(batch.vv)
            for bucket, amount in applied.buckets.items():
                self._buckets[bucket] = amount
            self._hours.update(applied.hours)
            self._state.applied(batch)
            self._admission.applied(batch.ops, batch.bytes)
            self._log.trim(batch.seq)
        self._state.memory.unpin(self._state.applied_seq, unpin_max)
