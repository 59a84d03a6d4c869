"""The index: LMDB, applied from the log, read here and by other processes' shared memory.

Databases: `rows` (row key -> sealed row), `sessions`, `spend`, `outbox`, `consensus` and `meta`
(key -> crc32 of kind, key and value, then the value). Readers in other processes need these of
meta, which stand without a checksum (integers u64 big-endian):

    schema         of this layout; a reader of another one uses the socket
    store_id       16 bytes
    applied_seq    newest log entry that the databases hold
    pid_ns         inode of the daemon's PID namespace: a reader in another one cannot share
                   LMDB's lock table and uses the socket
    policies       as the node published them

and the store itself: actor, log_id, secret, vv (msgpack {actor: hlc}), head (msgpack [actor, hlc,
chain]), position (msgpack [segment, offset]), boot_id, host, file_id, began_empty (the log tells
all that the store ever held, while it is not shortened), applied and layout (copies
of applied_seq and schema behind a checksum), digest/GROUP (64
buckets of 16 bytes), digest_hour/HOUR. Anything else in meta belongs to the node.

The map is as large as the store may ever become, from the start (it is sparse; a later resize
would break other processes). Never writemap (a full disk would be SIGBUS), never NOSYNC; one
writer. LMDB reports a full disk as EIO: whoever words the error asks statvfs.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lmdb

from roost_crdt import logformat
from roost_crdt.errors import ConfigError, CorruptData
from roost_crdt.rows.layout import TYPE_REGISTER, is_sealed
from roostd import pages
from roostd.environment import (
    PAGE_BYTES,
    READERS_MAX,
    REFUSALS,
    Environment,
    fill_lock_file,
    is_disk_error,
)
from roostd.sealing import KIND_NAMES, Writes, name_before, sealed_pairs, unsealed

SCHEMA = 2
"""1: pairs without checksums (roostd.store.upgrading)."""

_SCAN_ROWS_MAX = 1_000
_PUT_ROWS = 32
_STEPS_MAX = 16
"""Rows of a key that a listing of keys goes through before it looks for the next key."""
_PASSING_BYTES_MAX = 256 << 10
_REGISTER = bytes([TYPE_REGISTER])


def _yield() -> None:
    time.sleep(0)


def u64(value: int) -> bytes:
    """An integer as meta stores it."""
    return value.to_bytes(8, "big")


def newer_schema(path: Path, schema: int) -> ConfigError:
    """The error for an index, at `path`, of a release that is newer than this one."""
    return ConfigError(
        f"{path.parent}: the store has schema {schema}, this release reads {SCHEMA}; run the "
        "release that wrote it, or start with an empty node.data and let neighbours fill it"
    )


class Index(Environment):
    """The LMDB environment. Reads from any thread, `write` from one thread at a time."""

    def __init__(self, path: Path, size_max: int) -> None:
        """Open or create. CorruptData if the files are not a usable LMDB environment, OSError if
        this process may not open them, ConfigError if a newer release has written them,
        another lmdb.Error (`is_disk_error`) if the disk does not take what opening writes."""
        super().__init__(path, size_max)
        path.mkdir(mode=0o750, exist_ok=True)
        if self.data_file.exists() and self.data_file.stat().st_size:
            try:
                pages.check_head(self.data_file)
            except CorruptData as exc:
                raise CorruptData(
                    f"{path}: not a usable index: {exc}; run: roost check DIR --repair"
                ) from exc
        fill_lock_file(path / "lock.mdb")
        self._open()

    def _open(self) -> None:
        try:
            self._env = lmdb.open(
                str(self.path),
                map_size=max(self.size_max, 64 * PAGE_BYTES),
                max_dbs=len(KIND_NAMES) + 1,
                max_readers=READERS_MAX,
                max_spare_txns=1,
                mode=0o660,
            )
            # A slot of the reader table first, before other processes use them up. py-lmdb keeps
            # one, for its spare transaction: hence one transaction at a time, of any thread.
            self._env.begin().abort()
            self._rows = self._env.open_db(b"rows")
            self._kinds = {kind: self._env.open_db(name) for kind, name in KIND_NAMES.items()}
            if self._env.stat()["entries"] != len(KIND_NAMES) + 1:
                with self._env.begin(db=self._kinds[logformat.KIND_META]) as txn:
                    schema = int.from_bytes(txn.get(b"schema") or b"", "big")
                self._env.close()
                if schema > SCHEMA:
                    raise newer_schema(self.path, schema)
                # Opening makes a database whose name is damaged anew, and empty.
                raise CorruptData(
                    f"{self.path}: the name of a database is damaged; run: roost check DIR --repair"
                )
        except lmdb.Error as exc:
            if getattr(exc, "code", None) in REFUSALS:
                raise OSError(exc.code, os.strerror(exc.code), str(self.data_file)) from exc
            if is_disk_error(exc):
                raise
            raise CorruptData(
                f"{self.path}: not a usable index: {exc}; run: roost check DIR --repair"
            ) from exc

    # Reading

    def meta(self, name: bytes) -> bytes | None:
        """One value of meta."""
        return self.get(logformat.KIND_META, name)

    def get(self, kind: int, key: bytes) -> bytes | None:
        with self._reading, self._env.begin(db=self._kinds[kind]) as txn:
            stored = txn.get(key)
        return None if stored is None else self.unsealed(kind, key, stored)

    def scan(
        self, kind: int, prefix: bytes, after: bytes, limit: int, but: Container[bytes] = ()
    ) -> list[tuple[bytes, bytes]]:
        """Up to `limit` pairs in key order, keys with `prefix` and above `after`. Values of those
        in `but`, which the caller has newer, are not looked at."""
        found: list[tuple[bytes, bytes]] = []
        with self._reading, self._env.begin(db=self._kinds[kind]) as txn, txn.cursor() as cursor:
            more = cursor.set_range(max(prefix, after + b"\0" if after else b""))
            while more and len(found) < limit:
                key, stored = cursor.item()
                if not key.startswith(prefix):
                    break
                found.append((key, b"" if key in but else self.unsealed(kind, key, stored)))
                more = cursor.next()
        return found

    def rows(self, prefix: bytes) -> list[tuple[bytes, bytes]]:
        """All row keys with a prefix (usually `key NUL`) and their sealed rows."""
        found: list[tuple[bytes, bytes]] = []
        with self._reading, self._env.begin(db=self._rows) as txn, txn.cursor() as cursor:
            if not cursor.set_range(prefix):
                return found
            for item in cursor.iternext():
                if not item[0].startswith(prefix):
                    break
                found.append(item)
        return found

    def rows_of(self, key: bytes) -> list[tuple[bytes, bytes]]:
        """All rows of a key, sealed, in order, and surely all: CorruptData if a damaged entry may
        have led the search astray.

        LMDB looks for names by halves: one whose bits turned can hide itself and its neighbours,
        but then whoever looks for those ends up beside it. So the entries before and behind the
        rows that were found are looked at too.
        """
        prefix = key + b"\0"
        found: list[tuple[bytes, bytes]] = []
        last, astray = b"", b""
        with (
            self._reading,
            self._env.begin(db=self._rows, buffers=True) as txn,
            txn.cursor() as cursor,
        ):
            more = cursor.set_range(prefix)
            if cursor.prev() if more else cursor.last():
                last = bytes(cursor.key())
                if last >= prefix or not _is_whole(last, cursor.value()):
                    astray = last
                more = more and cursor.next()
            elif more:
                cursor.first()
            while more:
                name = bytes(cursor.key())
                if not name.startswith(prefix):
                    if name <= last or not _is_whole(name, cursor.value()):
                        astray = name
                    break
                if name <= last:
                    astray = name
                last = name
                found.append((name, bytes(cursor.value())))
                more = cursor.next()
        if astray and not (found and found[0][1][4:5] == _REGISTER):  # a register has one row
            raise CorruptData(
                f"{self.path}: beside key {key!r} lies the damaged entry {astray!r}, so what the "
                "key has cannot be told; neighbours' rows repair it, or run: roost check DIR "
                "--repair"
            )
        return found

    def rows_after(
        self, start: bytes, rows_max: int, bytes_max: int
    ) -> tuple[list[tuple[bytes, bytes]], bool]:
        """Sealed rows from `start` (inclusive) on, bounded, at least one if there is one; and
        whether these are the last."""
        return self._after(None, start, rows_max, bytes_max)

    def counts(self) -> dict[bytes, int]:
        """How many entries each database has."""
        with self._reading, self._env.begin() as txn:
            counts = {KIND_NAMES[kind]: txn.stat(db)["entries"] for kind, db in self._kinds.items()}
            return {**counts, b"rows": txn.stat(self._rows)["entries"]}

    def pairs_after(
        self, kind: int, start: bytes, pairs_max: int, bytes_max: int
    ) -> tuple[list[tuple[bytes, bytes]], bool]:
        """The same of a kind's pairs."""
        found, complete = self._after(kind, start, pairs_max, bytes_max)
        return [(key, self.unsealed(kind, key, stored)) for key, stored in found], complete

    def stored_after(
        self, kind: int, start: bytes, pairs_max: int, bytes_max: int
    ) -> tuple[list[tuple[bytes, bytes]], bool]:
        """The same with values as they are stored, for an upgrade."""
        return self._after(kind, start, pairs_max, bytes_max)

    def damaged_pairs(
        self, kind: int, told: Callable[[int, int], None] = lambda done, total: None
    ) -> tuple[list[bytes], int]:
        """Keys of a kind's database whose values fail their checksum, and how many pairs are
        not found any more, though the tree says that they are there. `told` how many of how many
        were read."""
        damaged: list[bytes] = []
        total = self.counts()[KIND_NAMES[kind]]
        found, start, complete = 0, b"", False
        while not complete:
            page, complete = self._after(kind, start, _SCAN_ROWS_MAX, 4 << 20)
            found += len(page)
            told(found, total)
            for key, stored in page:
                try:
                    self.unsealed(kind, key, stored)
                except CorruptData:
                    damaged.append(key)
                start = key + b"\0"
        return damaged, total - found

    def rename_damaged(self, kind: int, key: bytes) -> bool:
        """Put a damaged pair under the name again that it had before a bit of it turned; False if
        that was not so."""
        with self._reading, self._env.begin(db=self._kinds[kind]) as txn:
            stored = txn.get(key) or b""
            name = name_before(kind, key, stored)
            if name is None or txn.get(name) is not None:
                return False
        self.write_stored({kind: sorted([(key, None), (name, stored)])})
        return True

    def rewrite(self, kind: int, pairs: list[tuple[bytes, bytes]]) -> None:
        """Put a kind's database together anew, of these pairs (in key order) alone."""
        with self._env.begin(write=True) as txn:
            txn.drop(self._kinds[kind], delete=False)
            _put(txn, self._kinds[kind], sealed_pairs(kind, pairs))

    def unsealed(self, kind: int, key: bytes, stored: bytes) -> bytes:
        """What `sealed_pairs` was given. DamagedPair if the bytes are not those."""
        return unsealed(self.path, kind, key, stored)

    def _out_of_order(self, key: bytes) -> CorruptData:
        return CorruptData(
            f"{self.path}: keys are out of order at {key!r}; run: roost check DIR --repair"
        )

    def _after(
        self, kind: int | None, start: bytes, count_max: int, bytes_max: int
    ) -> tuple[list[tuple[bytes, bytes]], bool]:
        """`kind` None: of the rows."""
        found: list[tuple[bytes, bytes]] = []
        size = 0
        with self._reading, self._env.begin() as txn:
            cursor = txn.cursor(self._rows if kind is None else self._kinds[kind])
            if not cursor.set_range(start):
                return found, True
            before = start
            for key, value in cursor.iternext():
                if key < before:
                    raise self._out_of_order(key)
                before = key
                size += len(key) + len(value)
                if found and (size > bytes_max or len(found) >= count_max):
                    return found, False
                found.append((key, value))
        return found, True

    def keys_from(self, start: bytes, prefix: bytes) -> Iterator[bytes]:
        """Distinct keys (not row keys) from `start` on that have `prefix`, in order.

        Reads in short transactions: a caller that stops half-way holds nothing. CorruptData if a
        damaged entry may have led a search astray (see `rows_of`).
        """
        while True:
            batch: list[bytes] = []
            with self._reading, self._env.begin(db=self._rows) as txn, txn.cursor() as cursor:
                more = self._seek(cursor, start)
                steps = 0
                while more and len(batch) < _SCAN_ROWS_MAX:
                    key = cursor.key().partition(b"\0")[0]
                    if batch and key == batch[-1]:
                        steps += 1
                        more = cursor.next() if steps < _STEPS_MAX else self._seek(cursor, start)
                        continue
                    if not key.startswith(prefix):
                        break
                    if batch and key < batch[-1]:
                        raise self._out_of_order(key)
                    batch.append(key)
                    start, steps = key + b"\x01", 0
                    more = cursor.next()
            yield from batch
            if len(batch) < _SCAN_ROWS_MAX:
                return

    def _seek(self, cursor: Any, start: bytes) -> bool:
        """Set a cursor to the first entry from `start` on; whether there is one."""
        more: bool = cursor.set_range(start)
        if not (cursor.prev() if more else cursor.last()):
            return more and bool(cursor.first())
        name = cursor.key()
        if name >= start or not _is_whole(name, cursor.value()):
            raise self._out_of_order(name)
        return more and bool(cursor.next())

    def entries_from(
        self, start: bytes, rows_max: int, bytes_max: int, quiet_rows: int
    ) -> tuple[list[tuple[bytes, bytes, bool]], bool]:
        """Rows as they lie, from `start` on: name, sealed row, whether its checksum holds; and
        whether these are the last. For a scrub: names may be wrong and out of order. It ends only
        where the last `quiet_rows` were whole, so that a search for the last leads there again.
        """
        found: list[tuple[bytes, bytes, bool]] = []
        size = quiet = 0
        with self._reading, self._env.begin(db=self._rows) as txn, txn.cursor() as cursor:
            more = cursor.set_range(start)
            while more:
                name, sealed = cursor.item()
                whole = is_sealed(name, sealed)
                if not found or name > found[-1][0]:
                    quiet = quiet + 1 if whole else 0
                else:
                    quiet = 0
                found.append((name, sealed, whole))
                size += len(name) + len(sealed)
                if quiet >= quiet_rows and (size > bytes_max or len(found) >= rows_max):
                    return found, False
                more = cursor.next()
        return found, True

    def get_rows(self, row_keys: list[bytes]) -> dict[bytes, bytes]:
        """Those of `row_keys` (sorted) that are stored, sealed."""
        with self._reading, self._env.begin(db=self._rows) as txn, txn.cursor() as cursor:
            return dict(cursor.getmulti(row_keys))

    # Writing

    def write(
        self, rows: Writes, items: Mapping[int, Writes], give_way: Callable[[], None] = _yield
    ) -> None:
        """One synced transaction: rows, then the databases of `items` (kind -> writes).

        `give_way` is called every so many rows, to let other threads have the interpreter.
        Raises lmdb.Error (`is_disk_error`: a full map, a full or failing disk); then nothing is
        changed.
        """
        with self._writing, self._env.begin(write=True) as txn:
            _put(txn, self._rows, rows, give_way)
            for kind, writes in items.items():
                _put(txn, self._kinds[kind], sealed_pairs(kind, writes), give_way)

    def mend(
        self, damaged: Iterable[tuple[bytes, bytes]], items: Mapping[int, Writes]
    ) -> list[bytes]:
        """One synced transaction: remove damaged entries of rows, each given by a name from which
        on it was found and its own, by their places; then write `items`. Those not found again.
        """
        missed = []
        with self._env.begin(write=True) as txn:
            for start, name in damaged:
                with txn.cursor(self._rows) as cursor:
                    more = cursor.set_range(start)
                    while more and (cursor.key() != name or is_sealed(name, cursor.value())):
                        more = cursor.next()
                    if more:
                        cursor.delete()
                    else:
                        missed.append(name)
            for kind, writes in items.items():
                _put(txn, self._kinds[kind], sealed_pairs(kind, writes))
        return missed

    def write_stored(self, items: Mapping[int, Writes]) -> None:
        """The same for pairs that are in their stored form."""
        with self._env.begin(write=True) as txn:
            for kind, writes in items.items():
                _put(txn, self._kinds[kind], writes)


def _is_whole(name: bytes, stored: bytes | memoryview) -> bool:
    """`is_sealed` for rows that are small enough to be looked at on the way to another one."""
    return len(stored) > _PASSING_BYTES_MAX or is_sealed(name, stored)


def _put(
    txn: lmdb.Transaction, db: Any, writes: Writes, give_way: Callable[[], None] = _yield
) -> None:
    gone: list[bytes] = []
    pairs = iter(writes)
    with txn.cursor(db) as cursor:
        while chunk := list(itertools.islice(pairs, _PUT_ROWS)):
            cursor.putmulti([(key, value) for key, value in chunk if value is not None])
            gone.extend(key for key, value in chunk if value is None)
            give_way()
    for key in gone:
        txn.delete(key, db=db)
