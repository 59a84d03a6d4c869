"""The thread that applies the log to the index, many groups in one synced transaction.

A batch is a run of whole groups with the newest row of each part that they touched, so a
transaction never holds half a record. Rows go in in key order; `applied_seq`, the version
vector and the digests change in the same transaction. Digests are sums over what the index
holds: they are computed here from the rows found and the rows put, and from nothing else.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import lmdb
import msgspec

from roost_crdt import digest, logformat
from roost_crdt.errors import CorruptData
from roost_crdt.limits import Limits
from roost_crdt.rows import decode_row
from roost_crdt.rows.layout import (
    HEAD,
    TYPE_COUNTER,
    TYPE_DOC,
    TYPE_REGISTER,
    VALUE,
    Row,
    Rows,
    seal,
    unseal,
)
from roostd import pages
from roostd.environment import is_disk_error, is_full
from roostd.index import Index, u64
from roostd.logrecovery import Position
from roostd.store import suspects
from roostd.store.diskwait import DiskWait
from roostd.store.identity import OwnPairs
from roostd.store.scrub import Scrub, Scrubbed, judge
from roostd.store.sums import DigestChange, digest_pairs, group_name, hour_pairs, packed, repacked
from roostd.store.suspects import ALL, Suspects, encode
from roostd.store.wiping import Wiping

START = Position(0, 0)
_RETRY_S = 0.25
_REAP_S = 60.0
_LOOK_S = 1.0
"""While there is always something to apply, so often it is looked after the index all the same."""
_CHUNK_ROWS = 32
"""Rows after which the thread lets the node's thread have the interpreter."""


RowWrites = dict[bytes, tuple[int, bytes, Row] | None]
"""Row key -> (type, body, row) on its way into the index; None deletes."""
Items = dict[int, dict[bytes, bytes | None]]


@dataclass(slots=True)
class Batch:
    """Whole groups up to `seq`: what they leave in the databases. None deletes."""

    rows: RowWrites = field(default_factory=dict)
    items: Items = field(default_factory=dict)
    keys: dict[bytes, None] = field(default_factory=dict)
    vv: dict[int, int] = field(default_factory=dict)
    seq: int = 0
    position: Position = START
    head: tuple[int, int, bytes] = (0, 0, logformat.CHAIN_START)
    ops: int = 0
    bytes: int = 0

    def merge(self, later: Batch) -> None:
        """Take in the groups that follow."""
        self.rows.update(later.rows)
        for kind, pairs in later.items.items():
            self.items.setdefault(kind, {}).update(pairs)
        self.keys.update(later.keys)
        self.vv.update(later.vv)
        self.seq, self.position, self.head = later.seq, later.position, later.head
        self.ops += later.ops
        self.bytes += later.bytes


@dataclass(slots=True)
class Applied:
    """What a transaction did, for the node's thread to take over."""

    batch: Batch
    buckets: dict[int, int]
    hours: dict[int, int]


@dataclass(slots=True)
class Room:
    """How full index and disk were when last looked at, in bytes."""

    used: int
    disk_free: int
    place: Path
    stuck_readers: list[tuple[int, int]]


class Applier:
    """Owns the write transactions. `offer` from the node's thread; results come in `done`."""

    def __init__(
        self,
        index: Index,
        vv: dict[int, int],
        buckets: list[int],
        hours: dict[int, int],
        limits: Limits,
        suspects: Suspects,
        own: OwnPairs,
    ) -> None:
        self.done: deque[Applied | Scrubbed] = deque()
        self.problem = ""
        """Why nothing is applied at the moment (no room); it clears by itself."""
        self.failed: Exception | None = None
        """Why nothing is ever applied again."""
        self.scrub_problem = ""
        """What the last scrub found and could not mend."""
        self.scrub_passes = 0
        self.disk_wait = DiskWait()
        self.corrupt_rows = 0
        self.suspects = suspects
        self.own = own
        self._scrub = Scrub(
            index, bytes_per_s=limits.scrub_bytes_per_s, pause_ms=limits.scrub_pause_ms
        )
        self._mended: deque[frozenset[int]] = deque()
        self._index = index
        self._vv = dict(vv)
        self._buckets = list(buckets)
        self._groups = packed(buckets)
        self._hours = dict(hours)
        self._interval_s = limits.apply_interval_ms / 1000
        self._keys_max = limits.apply_keys_max
        self._queue: deque[Batch] = deque()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        own.retry = self._wake.set
        self._idle = threading.Event()
        self._idle.set()
        self._stopping = self._scrubbing = False
        self._hurry = threading.Event()
        self.wiping = Wiping(index, self._wake.set)
        self.room = self._look()
        self._worker = threading.Thread(target=self._run, name="roost-apply", daemon=True)

    def start(self) -> None:
        self._worker.start()

    def offer(self, batch: Batch) -> None:
        """Apply whole groups, durable in the log, after those offered before."""
        with self._lock:
            if self._idle.is_set():
                self._idle.clear()
            tail = self._queue[-1] if self._queue else None
            if tail is not None and len(tail.rows) + len(batch.rows) <= self._keys_max:
                tail.merge(batch)
            else:
                self._queue.append(batch)
        if not self._wake.is_set():
            self._wake.set()

    def scrub_now(self) -> int:
        """A read met damage: how many passes there will have been once it is surely found."""
        with self._lock:
            self._scrub.hurry()
            passes = self.scrub_passes + (2 if self._scrubbing else 1)
        self._wake.set()
        return passes

    def mended(self, buckets: frozenset[int]) -> None:
        """The index holds again what these suspect buckets lacked."""
        self._mended.append(buckets)
        self._wake.set()

    def drain(self, timeout_s: float) -> bool:
        """Wait until all that was offered is applied; False if it was not in time, or no room."""
        self._hurry.set()
        self._wake.set()
        try:
            return self._idle.wait(0 if self.problem else timeout_s) and self.failed is None
        finally:
            self._hurry.clear()

    def stop(self) -> None:
        """End the thread after the transaction in hand; what is left is applied at next start."""
        self._stopping = True
        self._hurry.set()
        self._wake.set()
        self._worker.join()

    def _run(self) -> None:
        last = looked = 0.0
        reaped = time.monotonic()
        try:
            while not self._stopping:
                pause_s = _RETRY_S if self._tight() else _REAP_S
                self._wake.wait(min(pause_s, self._scrub.wait_s(), self.wiping.wait_s()))
                self._wake.clear()
                if time.monotonic() - reaped > _REAP_S:
                    self._index.reap_readers()
                    reaped = time.monotonic()
                while self._queue and not self._stopping:
                    pause_s = last + self._interval_s - time.monotonic()
                    if pause_s > 0:
                        self._hurry.wait(pause_s)
                    if self._stopping:
                        return
                    with self._lock:
                        batch = self._queue.popleft()
                    self._apply_until_done(batch)
                    last = time.monotonic()
                    with self._lock:
                        if not self._queue:
                            self._idle.set()
                    if last > looked + _LOOK_S and not self._stopping:
                        looked = self._look_after()  # though more waits
                    self.wiping.step()
                self.room = self._look()
                if not self._stopping:
                    self.own.write({})
                    looked = self._look_after()
                    self.wiping.step()
        except (lmdb.Error, OSError, CorruptData) as exc:
            if isinstance(exc, lmdb.Error) and not is_disk_error(exc):
                suspects.want_remake(self._index.path.parent)
            self.failed = exc
            self._idle.set()
        finally:
            if self.failed is None and not self._stopping:
                self.failed = RuntimeError("the thread that applies the log died")
                self._idle.set()

    def _give_way(self) -> None:
        """Leave the interpreter to the node's thread, the less the more there is to apply."""
        queue = self._queue
        if self._stopping or self._hurry.is_set() or len(queue) > 1:
            time.sleep(0)  # writes would have to wait in the end
        else:
            self.disk_wait.give_way(len(queue[0].rows) if queue else 0)

    def _look_after(self) -> float:
        """What is done while nothing waits to be applied. Returns when it was done."""
        try:
            while self._mended:
                left = self.suspects.buckets - self._mended[0]
                self._index.write((), {logformat.KIND_META: [(suspects.NAME, encode(left))]})
                self.suspects.mended_buckets += len(self._mended.popleft())
                self.suspects.buckets = left
            if not self._scrub.wait_s():
                self._scrubbing = True
                found = self._scrub.step()
                if found is not None:
                    self._end_pass(judge(found, self._buckets, self._hours))
                    with self._lock:
                        self.scrub_passes, self._scrubbing = self.scrub_passes + 1, False
        except lmdb.Error as exc:  # CorruptData ends this thread: writes would do more damage
            self.scrub_problem = f"damage in the index was found and could not be mended: {exc}"
        return time.monotonic()

    def _end_pass(self, found: Scrubbed) -> None:
        """Take out what is damaged, note which buckets lack rows, set the sums right."""
        self.scrub_problem = found.problem
        if not found.wrong:
            return
        bad: list[str] = []
        if found.damaged or found.structure:
            # LMDB would spoil a page whose sizes are wrong by removing an entry of it.
            bad = pages.inspect(
                self._index.data_file, lambda done, total: time.sleep(0), ordered=False
            )
        if bad:
            found.structure = self.scrub_problem = bad[0]
            found.damaged, found.lacking = [], ALL
        # Before the rows go: nobody may take them for absent.
        self.suspects.buckets |= found.lacking
        self.suspects.lost_rows += len(found.damaged)
        stored = digest_pairs(found.buckets, found.hours)
        stored.append((suspects.NAME, encode(self.suspects.buckets)))
        missed = self._index.mend(found.damaged, {logformat.KIND_META: sorted(stored)})
        if missed and not found.structure:
            found.structure = f"{self._index.path}: {missed[0]!r} is not found again"
        self._buckets, self._hours = list(found.buckets), dict(found.hours)
        self._groups = packed(found.buckets)
        self.done.append(found)
        if bad:
            suspects.want_remake(self._index.path.parent)
            raise CorruptData(f"pages of the index are damaged: {bad[0]}")

    def _tight(self) -> bool:
        """Whether room has to be looked at again without being asked."""
        room, half = self.room, self._index.size_max // 2
        return room.used > half or room.disk_free < 1 << 30 or self.own.problem != ""

    def _look(self) -> Room:
        if self._index.stuck_readers(behind=1):
            self._index.reap_readers()  # one that died gives its pages back at once
        index = self._index
        return Room(index.used_bytes(), index.disk_free(), index.path, index.stuck_readers())

    def _apply_until_done(self, batch: Batch) -> None:
        while not self._stopping:
            try:
                applied = self._apply(batch)
            except lmdb.Error as exc:
                room = self.room = self._look()
                if not is_full(exc, room.disk_free):
                    raise
                self.problem = (
                    f"the index cannot take {len(batch.rows)} rows: {exc}; "
                    f"{room.used} of {self._index.size_max} bytes used, "
                    f"{room.disk_free} bytes free on the disk of {room.place}{self._holders()}"
                )
                self._index.reap_readers()
                time.sleep(_RETRY_S)
            else:
                self.problem = ""
                self.room = self._look()
                self.done.append(applied)
                return

    def _holders(self) -> str:
        """Who keeps pages from being used again, in words."""
        return "".join(
            f", pages held by reader process {pid}, {behind} transactions behind"
            for pid, behind in self._index.stuck_readers(behind=0)[:3]
        )

    def _apply(self, batch: Batch) -> Applied:
        names = sorted(batch.rows)
        change = DigestChange(self._scrub.summed)
        for at in range(0, len(names), _CHUNK_ROWS):
            self._digest_chunk(change, batch.rows, names, at)
            self._give_way()
        buckets = {
            at: (self._buckets[at] + amount) % digest.MODULUS
            for at, amount in change.buckets.items()
        }
        hours = {
            at: (self._hours.get(at, 0) + amount) % digest.MODULUS
            for at, amount in change.hours.items()
        }
        vv = {**self._vv, **batch.vv}
        items: dict[int, list[tuple[bytes, bytes | None]]] = {
            kind: sorted(pairs.items()) for kind, pairs in batch.items.items()
        }
        meta = items.setdefault(logformat.KIND_META, [])
        groups = repacked(self._groups, buckets)
        meta.extend((group_name(group), raw) for group, raw in groups.items())
        meta += hour_pairs(hours)
        meta += [
            (b"applied_seq", u64(batch.seq)),
            (b"applied", u64(batch.seq)),
            (b"vv", msgspec.msgpack.encode(vv)),
            (b"head", msgspec.msgpack.encode(batch.head)),
            (b"position", msgspec.msgpack.encode(tuple(batch.position))),
        ]
        rows = ((name, sealed_row(name, batch.rows[name])) for name in names)
        self._index.write(rows, items, self._give_way)
        for at, amount in buckets.items():
            self._buckets[at] = amount
        self._groups.update(groups)
        self._hours.update(hours)
        self._vv = vv
        for key, part, sign in change.noted:
            self._scrub.add(key, part, sign)
        return Applied(batch, buckets, hours)

    def _digest_chunk(
        self, change: DigestChange, writes: RowWrites, names: list[bytes], start: int
    ) -> None:
        """Add to `change` what the writes to the keys that begin in a chunk do to their sums."""
        stop = min(start + _CHUNK_ROWS, len(names))
        chunk = names[start:stop]
        stored = self._index.get_rows(_with_heads(chunk, writes))
        at = start
        if start and _key_of(names[start]) == _key_of(names[start - 1]):
            # The chunk before has taken the whole of its last key.
            key = _key_of(names[start])
            while at < stop and _key_of(names[at]) == key:
                at += 1
        while at < stop:
            name = names[at]
            write = writes[name]
            if write is not None and write[0] == TYPE_REGISTER:
                self._digest_register(change, name, write[2], stored.get(name))
                at += 1
                continue
            key = _key_of(name)
            first = at
            while at < len(names) and _key_of(names[at]) == key:
                at += 1
            known = stored if at <= stop else None
            self._digest_key(change, key, {n: writes[n] for n in names[first:at]}, known)

    def _digest_register(
        self, change: DigestChange, name: bytes, row: Row, sealed: bytes | None
    ) -> None:
        key = name[: -1 - len(VALUE)]
        if sealed is not None:
            before = self._unsealed(name, VALUE, sealed)
            if before == row:
                return
            if before is not None:
                change.add_one(key, -digest.register_amount(key, before), before[6])
        change.add_one(key, digest.register_amount(key, row), row[6])

    def _digest_key(
        self,
        change: DigestChange,
        key: bytes,
        writes: RowWrites,
        known: dict[bytes, bytes] | None,
    ) -> None:
        """`known`: what is stored of the written rows and of the head, where it is read already."""
        prefix = key + b"\0"
        skip = len(prefix)
        head = prefix + HEAD
        drops = None in writes.values()
        types = {write[0] for write in writes.values() if write is not None}
        if head in writes or drops or TYPE_DOC in types:
            stored = dict(self._index.rows(prefix))
        elif known is None:
            stored = self._index.get_rows(sorted([*writes, head]))
        else:
            stored = {name: known[name] for name in (*writes, head) if name in known}
        if types == {TYPE_COUNTER} and not drops and head not in writes:
            self._digest_counts(change, key, writes, stored)
            return
        before: Rows = {}
        type_code = min(types, default=0)
        for name, sealed in stored.items():
            row = self._unsealed(name, name[skip:], sealed)
            if row is not None:
                before[name[skip:]] = row
                type_code = type_code or sealed[4]
        delta = {name[skip:]: write[2] for name, write in writes.items() if write is not None}
        if not drops:
            change.add(key, digest.change(type_code, key, before, delta))
            return
        gone = {name[skip:] for name, write in writes.items() if write is None}
        after = {part: row for part, row in before.items() if part not in gone}
        after.update(delta)
        change.add(key, digest.contribution(type_code, key, after))
        change.add(key, digest.contribution(type_code, key, before), -1)

    def _digest_counts(
        self, change: DigestChange, key: bytes, writes: RowWrites, stored: dict[bytes, bytes]
    ) -> None:
        """The counts of one counter, whose head stays as it is."""
        skip = len(key) + 1
        head = stored.get(key + b"\0" + HEAD)
        known = None if head is None else self._unsealed(key + b"\0" + HEAD, HEAD, head)
        ends_ms = 0 if known is None else known[-1]
        for name, write in writes.items():
            assert write is not None
            part, sealed = name[skip:], stored.get(name)
            before = None if sealed is None else self._unsealed(name, part, sealed)
            amount = digest.count_amount(TYPE_COUNTER, key, part, write[2], ends_ms)
            if before is not None:
                amount -= digest.count_amount(TYPE_COUNTER, key, part, before, ends_ms)
            change.add_one(key, amount, ends_ms)

    def _unsealed(self, name: bytes, part: bytes, sealed: bytes) -> Row | None:
        """A stored row. None if it is damaged: what it held is no longer known, and the sums
        are right again after a scrub."""
        try:
            type_code, body = unseal(name, sealed)
            return decode_row(type_code, part, body)
        except CorruptData:
            self.corrupt_rows += 1
            return None


def _with_heads(names: list[bytes], writes: RowWrites) -> list[bytes]:
    """Rows in order, and the head of each key that can have one."""
    heads = set()
    for name in names:
        write = writes[name]
        if write is not None and write[0] != TYPE_REGISTER:
            heads.add(name[: name.index(0) + 1] + HEAD)
    return sorted(heads.union(names)) if heads else names


def _key_of(name: bytes) -> bytes:
    return name[: name.index(0)]


def sealed_row(name: bytes, write: tuple[int, bytes, Row] | None) -> bytes | None:
    """What the index stores for a write; None for a delete."""
    return None if write is None else seal(name, write[0], write[1])
