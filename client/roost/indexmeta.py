"""What the index says about itself, as the daemon writes it (its database `meta`)."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from roost.environment import Index

__all__ = ["SCHEMA", "Meta", "index_directory", "read_applied_seq", "read_meta"]

SCHEMA = 2
"""The layout that is read here; an index of another one is left to the daemon."""


class Meta(NamedTuple):
    """Whose index it is, and the policies that the node published (empty: none yet)."""

    schema: int
    store_id: bytes
    pid_ns: int
    policies: bytes


def index_directory(data: str) -> str:
    """The directory of LMDB's files in a node's data directory."""
    return os.path.realpath(os.path.join(data, "index"))


def read_meta(index: Index) -> Meta:
    """Schema, owner and policies, in one transaction."""
    txn = index.begin(index.meta)
    try:
        return Meta(
            _u64(txn.get(b"schema")),
            txn.get(b"store_id") or b"",
            _u64(txn.get(b"pid_ns")),
            txn.get(b"policies") or b"",
        )
    finally:
        txn.abort()


def read_applied_seq(index: Index, txn: Any) -> int:
    """The newest log entry that this transaction sees the effects of; -1 while rows are missing
    that the daemon has lost to damage and not mended yet."""
    if txn.get(b"suspect", None, index.meta) is not None:
        return -1
    return _u64(txn.get(b"applied_seq", None, index.meta))


def _u64(raw: bytes | None) -> int:
    return 0 if raw is None else int.from_bytes(raw, "big")
