"""What is asked of a linearizable endpoint, and the table in which one keeps what it holds.

The model is etcd's: a flat map of keys to values, each with the revision of its last change, and
transactions of the form "if these keys still have these revisions, then put those". Revisions are
global, strictly increasing and never reused, so a transaction that compares a revision can apply
at most once, however often it is sent and however late a copy of it arrives. Revision 0 (no such
key) can come back, when the key is deleted: who sends such a transaction twice names it.
"""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from roost_crdt.errors import CorruptData

__all__ = [
    "COMPARES_MAX",
    "PUTS_MAX",
    "SCAN_MAX",
    "Compare",
    "Item",
    "Outcome",
    "Table",
    "Txn",
    "seal",
    "unseal",
]

COMPARES_MAX = 128
PUTS_MAX = 128
"""etcd's default bound on the operations of one transaction."""
SCAN_MAX = 1_000


class Item(NamedTuple):
    """A value and the revision of its last change (>= 1)."""

    value: bytes
    revision: int


class Compare(NamedTuple):
    """The key must still have this revision; 0 = it must not exist."""

    key: bytes
    revision: int


class Txn(NamedTuple):
    """All of `compares` hold -> all of `puts` are made (None deletes), else nothing."""

    compares: tuple[Compare, ...]
    puts: tuple[tuple[bytes, bytes | None], ...]


class Outcome(NamedTuple):
    """What became of a transaction.

    `ok` also when the request id is a repeated one: then `duplicate` is set and `result` is the
    first result. When not ok `items` are the compared keys as they are now, in order. `revision`
    is what the put keys have now (0 if not known).
    """

    ok: bool
    duplicate: bool = False
    result: bytes = b""
    items: tuple[Item | None, ...] = ()
    revision: int = 0


@dataclass(frozen=True, slots=True)
class Table:
    """One kind of the local store (CONSENSUS, SPEND, OUTBOX), as an ordered map.

    `put` changes all of its items or none (it raises Full or Busy before anything changed) and is
    seen by `get` and `scan` at once; it survives a crash when `durable()` has returned. `scan`
    gives keys of the prefix behind `after`, in order. All four are used from one thread.
    """

    get: Callable[[bytes], bytes | None]
    scan: Callable[[bytes, bytes, int], list[tuple[bytes, bytes]]]
    put: Callable[[Mapping[bytes, bytes | None]], Any]
    durable: Callable[[], Awaitable[None]]

    def pages(self, prefix: bytes, page: int = SCAN_MAX) -> Iterator[tuple[bytes, bytes]]:
        """Everything under a prefix, read page by page."""
        after = b""
        while rows := self.scan(prefix, after, page):
            yield from rows
            after = rows[-1][0]
            if len(rows) < page:
                return


def seal(key: bytes, body: bytes) -> bytes:
    """crc32 over key and body (u32 BE), then body: the index has no checksums of its own."""
    return zlib.crc32(body, zlib.crc32(key)).to_bytes(4, "big") + body


def unseal(key: bytes, stored: bytes) -> bytes:
    """The body of what `seal` made for this key, else CorruptData."""
    body = stored[4:]
    if len(stored) < 4 or zlib.crc32(body, zlib.crc32(key)) != int.from_bytes(stored[:4], "big"):
        raise CorruptData(f"the stored row {key!r} fails its checksum; nothing was changed")
    return body
