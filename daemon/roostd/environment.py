"""The LMDB environment below the index: who has it open, how much room it takes.

py-lmdb keeps one slot in the table of readers, for its spare transaction: hence one transaction
that reads at a time, of any thread (`_reading`).
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb

from roost_crdt.errors import CorruptData

READERS_MAX = 1024
PAGE_BYTES = 4096
_LOCK_BYTES = (READERS_MAX + 2) * 64
"""LMDB's table of readers: a slot of 64 bytes for each, and what comes before them."""
_SLOTS_LEFT = 16
_DISK_LOW_BYTES = 16 << 20
"""With less free, an error of the disk is taken for a full one, which may pass."""
_UNMAP_BYTES = 8 << 20
_MADV_DONTNEED = 4
REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""What the system refuses: nothing is known to be wrong with the file."""
_FAILURES = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, *REFUSALS)


def is_disk_error(exc: lmdb.Error) -> bool:
    """Whether LMDB had no room, or the disk or the system failed (it reports a full disk as
    either), now or when it last wrote a meta page: it then wants to be opened anew."""
    if isinstance(exc, (lmdb.MapFullError, lmdb.DiskError, lmdb.PanicError)):
        return True
    return getattr(exc, "code", None) in _FAILURES


def is_full(exc: lmdb.Error, disk_free: int) -> bool:
    """Whether it was the map or the disk that had no room for what was to be written, which may
    pass. `disk_free`: bytes free on that disk."""
    if isinstance(exc, (lmdb.MapFullError, lmdb.PanicError)):
        return isinstance(exc, lmdb.MapFullError)
    return disk_free < _DISK_LOW_BYTES and is_disk_error(exc)


class Environment:
    """An open environment and its databases."""

    _env: lmdb.Environment
    _rows: Any
    _kinds: dict[int, Any]

    def __init__(self, path: Path, size_max: int) -> None:
        self.path = path
        self.size_max = size_max
        self.closed = False
        """Whether it could not be opened anew."""
        self._reading, self._writing = threading.Lock(), threading.Lock()

    def _open(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self._env.close()

    @property
    def data_file(self) -> Path:
        return self.path / "data.mdb"

    @contextmanager
    def held(self) -> Iterator[tuple[int, int]]:
        """Nobody writes meanwhile; the newest transaction, and the oldest that a reader sees or a
        new one would."""
        with self._writing, self._env.begin(write=True):
            newest = self._env.info()["last_txnid"]
            yield newest, min([newest, *(txn for _, txn in self._readers())])

    def reopen(self) -> bool:
        """Give up the buffers that LMDB writes pages from: what was deleted is in them and would
        come to lie between the entries of other pages. False, and nothing is done, while other
        processes hold almost all slots of readers. By the thread that writes. An error of LMDB,
        CorruptData: the index is closed."""
        if len(self._env.readers().splitlines()) > READERS_MAX - _SLOTS_LEFT:
            return False
        _unmap(self.data_file)
        with self._writing, self._reading:
            self.closed = True
            self._env.close()
            self._open()
            self.closed = False
        return True

    def used_bytes(self) -> int:
        """Bytes in use: pages of the trees, and free ones too while an old reader holds them.

        LMDB frees no page that a reader may still see; how many those are cannot be asked, so
        with a reader behind the newest transactions every page ever used counts.
        """
        info = self._env.info()
        high_water: int = (info["last_pgno"] + 1) * PAGE_BYTES
        if self.stuck_readers():
            return high_water
        try:
            with self._reading, self._env.begin() as txn:
                count = 2 + _pages(self._env.stat())
                for db in (self._rows, *self._kinds.values()):
                    count += _pages(txn.stat(db))
        except lmdb.Error as exc:
            if is_disk_error(exc):
                raise
            raise CorruptData(
                f"{self.path}: damaged: {exc}; run: roost check DIR --repair"
            ) from exc
        return min(high_water, count * PAGE_BYTES)

    def disk_free(self) -> int:
        """Bytes free on the disk that it lies on."""
        room = os.statvfs(self.path)
        return room.f_bavail * room.f_frsize

    def file_bytes(self) -> int:
        """Bytes that the data file takes on the disk."""
        return os.stat(self.data_file).st_blocks * 512

    def stuck_readers(self, behind: int = 16) -> list[tuple[int, int]]:
        """`(pid, transactions behind)` of readers that keep old pages from being used again.

        No transaction of a client outlives a call, so 16 commits (0.8 s) are many.
        """
        newest = self._env.info()["last_txnid"]
        return [(pid, newest - txn) for pid, txn in self._readers() if newest - txn > behind]

    def _readers(self) -> list[tuple[int, int]]:
        """Process and transaction of each reader in a transaction."""
        fields = [line.split() for line in self._env.readers().splitlines()[1:]]
        return [(int(f[0]), int(f[2])) for f in fields if len(f) == 3 and f[2].isdecimal()]

    def reap_readers(self) -> int:
        """Free the reader slots of processes that died; how many."""
        freed: int = self._env.reader_check()
        return freed


def fill_lock_file(path: Path) -> None:
    """Give LMDB's table of readers its blocks on the disk: a process that maps it and takes a slot
    in a hole of the file while the disk is full would die of it (SIGBUS). OSError: no room."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
    try:
        stat = os.fstat(fd)
        size = max(stat.st_size, _LOCK_BYTES)
        if stat.st_blocks * 512 < size:
            os.posix_fallocate(fd, 0, size)
    finally:
        os.close(fd)


def _unmap(path: Path) -> None:
    """Take the pages of a file out of this process's maps, a piece at a time: closing the map of a
    large one does it at once, and holds up who waits to read. They come back when they are read."""
    libc = ctypes.CDLL(None)
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if fields[5:] == [str(path.resolve())]:
            start, end = (int(text, 16) for text in fields[0].split("-"))
            end = min(end, start + path.stat().st_size)
            for at in range(start, end, _UNMAP_BYTES):
                size = min(_UNMAP_BYTES, end - at)
                libc.madvise(ctypes.c_void_p(at), ctypes.c_size_t(size), _MADV_DONTNEED)


def _pages(stat: Any) -> int:
    count: int = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
    return count
