"""LMDB environments of this process: one per file, shared, and closed before a fork.

A process may open an environment once (POSIX locks are the process's, not the descriptor's).
One that crosses a fork shares its reader slots with the child, which would free them at its
exit (MDB_BAD_RSLOT in the parent), so both sides open again after it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lmdb

__all__ = ["Index", "acquire", "release"]

DATABASES_MAX = 16
READERS_MAX = 1024
"""As the daemon's: whoever opens the file first decides the size of the lock table."""
SPARE_TRANSACTIONS = 4

Begin = Callable[[Any], Any]


@dataclass(slots=True, eq=False)
class Index:
    """An opened environment. `identity` is (device, inode) of its data file."""

    path: str
    identity: tuple[int, int]
    environment: lmdb.Environment
    begin: Begin
    rows: Any
    meta: Any
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
    return Index(directory, identity, environment, environment.begin, rows, meta)


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
