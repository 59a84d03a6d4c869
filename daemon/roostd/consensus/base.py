"""What the node asks of consensus, whichever backend gives it.

The model is etcd's: a flat map of keys to values, each with the revision of its last change, and
transactions of the form "if these keys still have these revisions, then put those". Revisions are
global, strictly increasing and never reused, so a transaction that compares a revision can apply
at most once, however often it is sent and however late a copy of it arrives.

Rules that every backend keeps:
- `get` is one linearizable snapshot. There is no stale fallback.
- The request id of a transaction is stored in the same transaction as its effect. A repeated id
  changes nothing and answers the first result (`Outcome.duplicate`). Ids are bounded in number,
  the oldest is forgotten first.
- An answer is given only when its effect is durable.
- Within `deadline_ms`: Unavailable if nothing was applied, UnknownOutcome if it may have been.
  A backend repeats a lost transaction itself only if it has a request id.
"""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from roost_crdt.errors import CorruptData, Unavailable

__all__ = [
    "COMPARES_MAX",
    "PUTS_MAX",
    "SCAN_MAX",
    "Compare",
    "Consensus",
    "ConsensusStatus",
    "Disabled",
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


class ConsensusStatus(NamedTuple):
    """For `roost status`: backend "etcd" | "embedded" | "none"; state "up" | "down" | "off"."""

    backend: str
    state: str
    last_error: str | None

    def as_dict(self) -> dict[str, str | None]:
        return {"backend": self.backend, "state": self.state, "last_error": self.last_error}


class Consensus(Protocol):
    """Raises Unavailable, UnknownOutcome, TooLarge, BadRequest; on the hosting node also Full."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def get(self, keys: Sequence[bytes], *, deadline_ms: int) -> list[Item | None]: ...

    async def scan(
        self, prefix: bytes, limit: int, *, after: bytes = b"", deadline_ms: int
    ) -> list[tuple[bytes, Item]]:
        """Up to `limit` items whose key begins with `prefix` and lies behind `after`, in order."""
        ...

    async def txn(
        self, txn: Txn, *, request_id: bytes | None = None, result: bytes = b"", deadline_ms: int
    ) -> Outcome: ...

    def check(self) -> None:
        """Unavailable if consensus is known to have lost history: then nobody may spend."""
        ...

    def status(self) -> ConsensusStatus: ...


class Disabled:
    """`[consensus] backend = "none"`: every linearizable key is out of reach."""

    async def start(self) -> None:
        return

    async def stop(self) -> None:
        return

    async def get(self, keys: Sequence[bytes], *, deadline_ms: int) -> list[Item | None]:
        raise self._error()

    async def scan(
        self, prefix: bytes, limit: int, *, after: bytes = b"", deadline_ms: int
    ) -> list[tuple[bytes, Item]]:
        raise self._error()

    async def txn(
        self, txn: Txn, *, request_id: bytes | None = None, result: bytes = b"", deadline_ms: int
    ) -> Outcome:
        raise self._error()

    def check(self) -> None:
        raise self._error()

    def status(self) -> ConsensusStatus:
        return ConsensusStatus("none", "off", None)

    @staticmethod
    def _error() -> Unavailable:
        return Unavailable(
            'linearizable keys need consensus and [consensus] backend is "none": '
            "set it to etcd or embedded"
        )


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
