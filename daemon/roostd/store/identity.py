"""Whose history this store is: an actor belongs to one unbroken durable history.

An actor is used again only if the files are the same ones (host, device, inode) and nothing
that was written can have been lost: a clean-shutdown marker, deleted and synced at each start,
or the same boot id (the page cache survived a kill). What these cannot tell (a cloned volume, a
lying disk) the chain of records finds when neighbours meet.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import lmdb

from roost_crdt.errors import CorruptData
from roost_crdt.logformat import KIND_META
from roostd.environment import is_full
from roostd.index import Index
from roostd.segments import sync_directory

_CLEAN = "clean"
_LOCK = "lock"
_directories: dict[int, int] = {}
"""Descriptor of a locked file -> that of its directory, locked as well."""
RESTORING = "restoring"
"""A file that is there while a backup is being restored: what lies beside it is not a store."""
REPAIRING = "repairing"
"""The same while a repair changes the store: damage may be gone from it, and what it has lost not
back yet."""


class StoreLocked(Exception):
    """Another process has the store open."""


class Surroundings(NamedTuple):
    """Where a store is being opened."""

    boot_id: bytes
    host: bytes
    file_id: bytes
    pid_ns: int


class OwnPairs:
    """Pairs of meta that say whose history this is, on their way into the index. While a full disk
    keeps them out nothing may be written: a start would not know of the actor, nor readers of the
    PID namespace. Tried again by the thread that applies."""

    def __init__(self, index: Index) -> None:
        self.problem = ""
        """Why they are not in the index yet; "" if they are."""
        self._index = index
        self._waiting: dict[bytes, bytes] = {}
        self._lock = threading.Lock()
        self.retry: Callable[[], None] = lambda: None
        """Wakes the thread that applies."""

    def offer(self, pairs: Mapping[bytes, bytes]) -> None:
        """Write these now, or have them wait, whatever the error: that thread meets it again."""
        with contextlib.suppress(lmdb.Error):
            self.write(pairs)
        self.retry()

    def write(self, pairs: Mapping[bytes, bytes]) -> None:
        """Write these, and those that wait. lmdb.Error: the disk is not full, it fails."""
        with self._lock:
            self._waiting.update(pairs)
            if not self._waiting:
                return
            try:
                self._index.write((), {KIND_META: sorted(self._waiting.items())})
            except lmdb.Error as exc:
                free = self._index.disk_free()
                self.problem = (
                    f"the index cannot take which actor and process write here: {exc}; {free} "
                    "bytes free on the disk"
                )
                if not is_full(exc, free):
                    raise
            else:
                self._waiting.clear()
                self.problem = ""


def surroundings(data_file: Path) -> Surroundings:
    """This boot, this host, and the device and inode of the index's data file."""
    stat = data_file.stat()
    return Surroundings(
        _text("/proc/sys/kernel/random/boot_id"),
        _text("/etc/machine-id") or socket.gethostname().encode(),
        f"{stat.st_dev}:{stat.st_ino}".encode(),
        _pid_namespace(),
    )


def why_new_actor(before: Surroundings, now: Surroundings, clean: bool) -> str:
    """Why the actor may not be used again; "" if it may."""
    if before.host != now.host:
        return "the store was last open on another host"
    if before.file_id != now.file_id:
        return "the store's files are copies (another device or inode)"
    if not clean and before.boot_id != now.boot_id:
        return "the machine stopped without a clean shutdown: the newest writes may be lost"
    return ""


def lock(directory: Path, *, repair: bool = False) -> int:
    """Take the store's lock and return its descriptor. StoreLocked names who has it; CorruptData
    where a restore did not finish, or (but for another `repair`) a repair."""
    fd = lock_only(directory)
    if (directory / RESTORING).exists():
        unlock(fd)
        raise CorruptData(
            f"{directory}: a restore into it did not finish, so it is not a store; restore again: "
            "roost restore FILE DIR"
        )
    if not repair and (directory / REPAIRING).exists():
        unlock(fd)
        raise CorruptData(
            f"{directory}: a repair of it did not finish; repair again: roost check DIR --repair"
        )
    return fd


def lock_only(directory: Path) -> int:
    """The same, whatever else is there."""
    fd = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    give_to_owner(directory, directory / _LOCK)
    # The directory too: somebody may delete the file while it is locked.
    _directories[fd] = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(_directories[fd], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            if isinstance(exc, BlockingIOError):  # else a file system without such locks
                raise
    except BlockingIOError as exc:
        owner = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        unlock(fd)
        raise StoreLocked(
            f"{directory}: in use by process {owner or 'unknown'}; one daemon per store: stop "
            "that one, or give this node another node.data"
        ) from exc
    except OSError:
        unlock(fd)
        raise
    with contextlib.suppress(OSError):  # a full disk; the lock is held all the same
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    return fd


def unlock(fd: int) -> None:
    os.close(_directories.pop(fd))
    os.close(fd)


def mark(directory: Path, name: str) -> None:
    """Put down `RESTORING` or `REPAIRING`, durably."""
    fd = os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o640)
    os.fsync(fd)
    os.close(fd)
    sync_directory(directory)


def unmark(directory: Path, name: str) -> None:
    """Take the mark away, durably: what is there is a store again."""
    (directory / name).unlink()
    sync_directory(directory)


def give_to_owner(directory: Path, *made: Path) -> None:
    """What root has made in a store belongs to whom the store belongs to, or its daemon could not
    open it."""
    owner = directory.stat()
    if os.geteuid() or not owner.st_uid:
        return
    for path in made:
        for each in (path, *path.rglob("*")):
            os.chown(each, owner.st_uid, owner.st_gid, follow_symlinks=False)


def mark_clean(directory: Path, store_id: bytes) -> None:
    """Say, durably, that everything written has been synced and applied."""
    # A store whose making a power loss cut short may have left one, of another id.
    (directory / _CLEAN).unlink(missing_ok=True)
    fd = os.open(directory / _CLEAN, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
    try:
        os.write(fd, store_id)
        os.fsync(fd)
    finally:
        os.close(fd)
    sync_directory(directory)


def try_mark_clean(directory: Path, store_id: bytes, problem: str) -> str:
    """The same; why it could not be done, "" if it was. Not while there is a `problem` of
    `OwnPairs`: the next start would go on under the actor that was given up."""
    try:
        if problem:
            raise OSError(problem)
        mark_clean(directory, store_id)
    except OSError as exc:
        return (
            f"{directory} could not be marked as cleanly stopped ({exc}): nothing is lost, but the "
            "next start takes a new actor if the machine has been started anew by then"
        )
    return ""


def take_clean_mark(directory: Path, store_id: bytes) -> bool:
    """Whether the store was shut down cleanly; the marker is gone, durably, afterwards."""
    path = directory / _CLEAN
    with contextlib.suppress(FileNotFoundError):
        clean = path.read_bytes() == store_id
        path.unlink()
        sync_directory(directory)
        return clean
    return False


def _text(path: str) -> bytes:
    with contextlib.suppress(OSError):
        return Path(path).read_bytes().strip()
    return b""


def _pid_namespace() -> int:
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0
