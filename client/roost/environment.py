"""LMDB environments of this process: one per file, shared, and closed before a fork.

A process may open an environment once (POSIX locks are the process's, not the descriptor's).
One that crosses a fork shares its reader slots with the child, which would free them at its
exit (MDB_BAD_RSLOT in the parent), so both sides open again after it.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from struct import calcsize, unpack_from
from typing import Any

import lmdb

__all__ = ["Index", "acquire", "release"]

DATABASES_MAX = 16
READERS_MAX = 1024
"""As the daemon's: whoever opens the file first decides the size of the lock table."""
SPARE_TRANSACTIONS = 4

HEAD_A = 18
"""Where `Index.heads` has the transaction id of LMDB's first meta page."""
_META_MAGIC = 0xBEEFC0DE, 1
_META_BYTES = 152
_UNKNOWN = memoryview(b"\xff" * _META_BYTES).cast("Q")

Begin = Callable[[Any], Any]


@dataclass(slots=True, eq=False)
class Index:
    """An opened environment. `identity` is (device, inode) of its data file.

    `heads[HEAD_A]` and `heads[head_b]` are the transaction ids of LMDB's two meta pages, shared
    with the writer: it writes them in turn, and shows a transaction only after its meta page. So
    while the larger one is that of an earlier read, nothing has been committed since; what was
    read then is what a transaction would read now. Where they are not known, no id equals them.
    """

    path: str
    identity: tuple[int, int]
    environment: lmdb.Environment
    begin: Begin
    rows: Any
    meta: Any
    heads: memoryview
    head_b: int
    users: int = 0
    closed: bool = False


_lock = threading.Lock()
_opened: dict[str, Index] = {}


def acquire(directory: str) -> Index:
    """The index in `directory`, opened read-only unless this process has it open.

    Raises OSError or lmdb.Error if it is missing, this process may not write its lock table
    (readers must), it has no slot left, or something else in this process has it open.
    """
    data = os.path.join(directory, "data.mdb")
    with _lock:
        identity = file_identity(directory)
        index = _opened.get(directory)
        if index is None or index.identity != identity:
            if index is not None:
                _close(index)
            for name in (data, os.path.join(directory, "lock.mdb")):
                # On a read-only mount LMDB would go on without its lock table.
                if not os.access(name, os.R_OK | (os.W_OK if name != data else 0)):
                    raise PermissionError(f"no right to open {name}")
            index = _opened[directory] = _open(directory, identity)
        index.users += 1
        return index


def release(index: Index) -> None:
    """Give back what `acquire` gave; the last user closes it."""
    with _lock:
        index.users -= 1
        if index.users <= 0:
            _close(index)


def file_identity(directory: str) -> tuple[int, int]:
    """(device, inode) of the data file now; OSError if there is none."""
    status = os.stat(os.path.join(directory, "data.mdb"))
    return status.st_dev, status.st_ino


def _open(directory: str, identity: tuple[int, int]) -> Index:
    environment = lmdb.open(
        directory,
        map_size=0,  # what the daemon chose
        readonly=True,
        lock=True,
        create=False,
        max_dbs=DATABASES_MAX,
        max_readers=READERS_MAX,
        max_spare_txns=SPARE_TRANSACTIONS,
    )
    try:
        rows = environment.open_db(b"rows", create=False)
        meta = environment.open_db(b"meta", create=False)
    except lmdb.Error:
        environment.close()
        raise
    heads, head_b = _map_heads(os.path.join(directory, "data.mdb")) or (_UNKNOWN, HEAD_A)
    return Index(directory, identity, environment, environment.begin, rows, meta, heads, head_b)


def _map_heads(data: str) -> tuple[memoryview, int] | None:
    """`heads` and `head_b` of an Index; None where the file is not laid out as on 64 bits."""
    if calcsize("P") != 8:
        return None
    with open(data, "rb") as file:
        head = file.read(_META_BYTES)
        if len(head) < _META_BYTES or unpack_from("=II", head, 16) != _META_MAGIC:
            return None
        (page_bytes,) = unpack_from("=I", head, 40)
        size = os.fstat(file.fileno()).st_size
        if page_bytes < _META_BYTES or size < 2 * page_bytes:
            return None
        mapped = mmap.mmap(file.fileno(), 2 * page_bytes, access=mmap.ACCESS_READ)
    return memoryview(mapped).cast("Q"), HEAD_A + page_bytes // 8


def _close(index: Index) -> None:
    if not index.closed:
        index.closed = True
        index.environment.close()
    if _opened.get(index.path) is index:
        del _opened[index.path]


def _before_fork() -> None:
    _lock.acquire()
    for index in list(_opened.values()):
        _close(index)


def _after_fork() -> None:
    _lock.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
