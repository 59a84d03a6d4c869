"""What the node asks of consensus, whichever backend gives it.

The model is that of `roost_crdt.linear.transactions`. Rules that every backend keeps:
- `get` is one linearizable snapshot. There is no stale fallback.
- The request id of a transaction is stored in the same transaction as its effect. A repeated id
  changes nothing and answers the first result (`Outcome.duplicate`). Ids are bounded in number,
  the oldest is forgotten first.
- An answer is given only when its effect is durable.
- Within `deadline_ms`: Unavailable if nothing was applied, UnknownOutcome if it may have been.
  A backend repeats a lost transaction itself only if it has a request id.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from roost_crdt.errors import Unavailable
from roost_crdt.linear.transactions import (
    COMPARES_MAX,
    PUTS_MAX,
    SCAN_MAX,
    Compare,
    Item,
    Outcome,
    Table,
    Txn,
    seal,
    unseal,
)

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
