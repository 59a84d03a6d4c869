"""Opening a store: the files, whose history it is, and what recovery found."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb
import msgspec

from roost_crdt import logformat
from roost_crdt.errors import CorruptData
from roost_crdt.limits import Limits
from roostd import segments
from roostd.environment import is_disk_error
from roostd.index import SCHEMA, Index, u64
from roostd.log import SEGMENT_BYTES_MAX, Log, StoreFailed
from roostd.logrecovery import REPAIR, Applied, Position
from roostd.store import identity
from roostd.store.identity import OwnPairs, Surroundings
from roostd.store.remaking import recompute_sums, remake_if_damaged
from roostd.store.sums import load_digest
from roostd.store.upgrading import upgrade

BEGAN_EMPTY = b"began_empty"
"""In meta of a store that held nothing before the log's first entry. Of a restored or repaired one
the log does not tell what was there before."""
_SEGMENT_BYTES_MIN = 64 * 1024


@dataclass(slots=True)
class Recovery:
    """What opening the store found and did."""

    created: bool = False
    clean: bool = False
    torn_bytes: int = 0
    torn_at: str = ""
    replayed: int = 0
    """Log entries applied again because the index did not hold them."""
    actor_changed: bool = False
    actor_before: int = 0
    actor_reason: str = ""
    upgraded_pairs: int = 0
    """Pairs that were brought to this release's schema."""
    remade: str = ""
    """What was done about damaged pages of the index."""
    sums_recomputed: bool = False
    """Whether the sums of the digest were damaged; they are those of the rows now."""


@dataclass(slots=True)
class Opened:
    """The parts of a store, locked and identified, not yet replayed."""

    index: Index
    log: Log
    lock_fd: int
    store_id: bytes
    actor: int
    applied_seq: int
    vv: dict[int, int]
    own: OwnPairs
    recovery: Recovery
    sound: bool
    """Whether all pages of the index were looked at: LMDB may be asked for any of them."""


def segment_bytes(size_max: int) -> int:
    """The smaller of 64 MiB and size_max / 16, as the configuration says."""
    return max(min(SEGMENT_BYTES_MAX, size_max // 16), _SEGMENT_BYTES_MIN)


def open_parts(
    path: Path,
    size_max: int,
    log_retention: int,
    limits: Limits,
    random_bytes: Callable[[int], bytes],
) -> Opened:
    """Lock, open, identify. StoreLocked, CorruptData (place and remedy), ConfigError (schema),
    StoreFailed (the disk is full or fails)."""
    try:
        path.mkdir(mode=0o750, parents=True, exist_ok=True)
        lock_fd = identity.lock(path)
        try:
            return _open_locked(path, lock_fd, size_max, log_retention, limits, random_bytes)
        except BaseException:
            identity.unlock(lock_fd)
            raise
    except (lmdb.Error, OSError) as exc:
        if isinstance(exc, lmdb.Error) and not is_disk_error(exc):
            raise unreadable(path, exc) from exc
        if isinstance(exc, PermissionError):
            raise StoreFailed(
                f"{path}: the store cannot be opened: {exc}; all of it must belong to the user "
                f"that roostd runs as: chown -R USER {path}"
            ) from exc
        free = _free_bytes(path)
        raise StoreFailed(
            f"{path}: the store cannot be opened: {exc} ({free} bytes free on the disk)"
        ) from exc


def _free_bytes(path: Path) -> int:
    while not path.exists():
        path = path.parent
    room = os.statvfs(path)
    return room.f_bavail * room.f_frsize


def unreadable(path: Path, exc: lmdb.Error) -> CorruptData:
    """LMDB found a page of the index that is none."""
    return CorruptData(f"{path / 'index'}: damaged: {exc}; {REPAIR}")


def _open_locked(
    path: Path,
    lock_fd: int,
    size_max: int,
    log_retention: int,
    limits: Limits,
    random_bytes: Callable[[int], bytes],
) -> Opened:
    log_path = path / "log"
    log_path.mkdir(mode=0o750, exist_ok=True)
    recovery = Recovery()
    if not (path / "index").exists() and not segments.listing(log_path):
        _create_index(path, size_max, random_bytes)
        recovery.created = True
    recovery.remade, sound = remake_if_damaged(path, size_max, limits.start_check_bytes)
    index = Index(path / "index", size_max)
    try:
        store_id = index.meta(b"store_id")
        if store_id is None:
            if segments.listing(log_path):
                raise CorruptData(
                    f"{path}: there is a log but the index is empty or gone; {REPAIR}"
                )
            store_id = create_identity(path, index, random_bytes)
            recovery.created = True
        recovery.upgraded_pairs = upgrade(index)
        own = OwnPairs(index)
        store_id, actor = _identify(path, index, own, store_id, random_bytes, recovery)
        applied, vv = applied_of(path, index)
        recovery.sums_recomputed = _check_sums(index)
        log = Log(
            log_path,
            segment_bytes=segment_bytes(size_max),
            retention_bytes=log_retention,
            store_id=_required(path, index, b"log_id"),
            secret=_required(path, index, b"secret"),
            applied=applied,
        )
    except BaseException:
        index.close()
        raise
    recovery.torn_bytes = log.recovered.torn_bytes
    recovery.torn_at = log.recovered.torn_at
    return Opened(index, log, lock_fd, store_id, actor, applied.seq, vv, own, recovery, sound)


def _check_sums(index: Index) -> bool:
    """Whether the sums of the digest were damaged, and computed from the rows anew."""
    try:
        load_digest(index)
    except CorruptData as exc:
        if isinstance(exc.__cause__, lmdb.Error):
            raise  # pages, not pairs: all rows would be read from them
        recompute_sums(index)
        return True
    return False


def _create_index(path: Path, size_max: int, random_bytes: Callable[[int], bytes]) -> None:
    """The index of a new store. Made aside: a power loss meanwhile leaves none, not half of one."""
    aside = path / "index.new"
    shutil.rmtree(aside, ignore_errors=True)
    index = Index(aside, size_max)
    try:
        create_identity(path, index, random_bytes)
    finally:
        index.close()
    aside.rename(path / "index")
    segments.sync_directory(path)


def create_identity(path: Path, index: Index, random_bytes: Callable[[int], bytes]) -> bytes:
    """Make the index that of a new store, with an empty log; its names are durable before
    anything is written under them. Returns the store id."""
    store_id = random_bytes(16)
    meta: dict[bytes, bytes | None] = {
        b"schema": u64(SCHEMA),
        b"layout": u64(SCHEMA),
        b"store_id": store_id,
        b"log_id": store_id,
        b"secret": random_bytes(logformat.SECRET_BYTES),
        b"applied_seq": u64(0),
        b"applied": u64(0),
        b"actor": u64(new_actor(random_bytes)),
        b"head": None,
        b"position": None,
        BEGAN_EMPTY: None if index.counts()[b"rows"] else b"1",
    }
    index.write((), {logformat.KIND_META: sorted([*meta.items(), *_place(index)])})
    for directory in (index.path, path / "log", path, path.parent):
        segments.sync_directory(directory)
    identity.mark_clean(path, store_id)
    return store_id


def _place(index: Index) -> list[tuple[bytes, bytes]]:
    now = identity.surroundings(index.data_file)
    return [
        (b"boot_id", now.boot_id),
        (b"host", now.host),
        (b"file_id", now.file_id),
        (b"pid_ns", u64(now.pid_ns)),
    ]


def _identify(
    path: Path,
    index: Index,
    own: OwnPairs,
    store_id: bytes,
    random_bytes: Callable[[int], bytes],
    recovery: Recovery,
) -> tuple[bytes, int]:
    """Store id, and the actor to write under; new ones are durable before their first use, see
    `own`.

    A copied or moved store is another store: readers must not compare its seqs with those of
    the one that it was copied from.
    """
    recovery.clean = identity.take_clean_mark(path, store_id)
    actor = int.from_bytes(_required(path, index, b"actor"), "big")
    before = Surroundings(
        _required(path, index, b"boot_id"),
        _required(path, index, b"host"),
        _required(path, index, b"file_id"),
        0,
    )
    now = identity.surroundings(index.data_file)
    meta = _place(index)
    reason = identity.why_new_actor(before, now, recovery.clean)
    if reason:
        recovery.actor_changed, recovery.actor_before = True, actor
        recovery.actor_reason = reason
        actor = new_actor(random_bytes)
        meta.append((b"actor", u64(actor)))
        if (before.host, before.file_id) != (now.host, now.file_id):
            store_id = random_bytes(16)
            meta.append((b"store_id", store_id))
    own.write({name: value for name, value in meta if index.meta(name) != value})
    return store_id, actor


def new_actor(random_bytes: Callable[[int], bytes]) -> int:
    """A random actor, never 0."""
    return int.from_bytes(random_bytes(8), "big") or 1


def applied_of(path: Path, index: Index) -> tuple[Applied, dict[int, int]]:
    """What the index says that it holds: log position, own head, version vector."""
    applied = _required(path, index, b"applied")
    if applied != _required(path, index, b"applied_seq"):
        raise CorruptData(f"{path}: applied_seq in the index is damaged; {REPAIR}")
    seq = int.from_bytes(applied, "big")
    if seq:
        for name in (b"vv", b"head", b"position"):  # they come with the first transaction
            _required(path, index, name)
    stored = _decoded(path, index, b"vv", dict[int, int]) or {}
    vv = {actor: hlc for actor, hlc in stored.items() if hlc}
    head = _decoded(path, index, b"head", tuple[int, int, bytes])
    place = _decoded(path, index, b"position", tuple[int, int])
    position = Position(*place) if place else None
    return Applied(seq, position, head or (0, 0, logformat.CHAIN_START)), vv


def _decoded(path: Path, index: Index, name: bytes, kind: Any) -> Any:
    raw = index.meta(name)
    if raw is None:
        return None
    try:
        return msgspec.msgpack.decode(raw, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise CorruptData(f"{path}: meta {name.decode()} of the index: {exc}; {REPAIR}") from exc


def _required(path: Path, index: Index, name: bytes) -> bytes:
    value = index.meta(name)
    if value is None:
        raise CorruptData(f"{path}: the index has no {name.decode()} in meta; {REPAIR}")
    return value
