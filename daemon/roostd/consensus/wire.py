"""What travels between a node and the one that hosts the embedded consensus (rpc arguments)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from roost_crdt.errors import BadRequest, PeerError
from roostd.consensus.base import COMPARES_MAX, PUTS_MAX, SCAN_MAX, Compare, Item, Outcome, Txn

__all__ = [
    "GET",
    "SCAN",
    "TXN",
    "GetArgs",
    "GetReply",
    "ScanArgs",
    "ScanReply",
    "TxnArgs",
    "TxnReply",
    "read_args",
    "read_reply",
]

GET = "consensus.get"
SCAN = "consensus.scan"
TXN = "consensus.txn"

DEADLINE_MS_MAX = 60_000

_Pair = tuple[bytes, int]
_T = TypeVar("_T")


class GetArgs(msgspec.Struct):
    keys: list[bytes]
    deadline_ms: int


class GetReply(msgspec.Struct):
    history: bytes
    revision: int
    items: list[_Pair | None]

    def answer(self, keys: int) -> list[Item | None]:
        if len(self.items) != keys:
            raise PeerError(f"{len(self.items)} items came for {keys} keys")
        return [_item(pair) for pair in self.items]


class ScanArgs(msgspec.Struct):
    prefix: bytes
    after: bytes
    limit: int
    deadline_ms: int


class ScanReply(msgspec.Struct):
    history: bytes
    revision: int
    items: list[tuple[bytes, bytes, int]]

    def answer(self, prefix: bytes, after: bytes, limit: int) -> list[tuple[bytes, Item]]:
        previous = after
        for key, _, _ in self.items:
            if not key.startswith(prefix) or key <= previous or len(self.items) > limit:
                raise PeerError("a scan brought keys that were not asked for")
            previous = key
        return [(key, Item(value, revision)) for key, value, revision in self.items]


class TxnArgs(msgspec.Struct):
    compares: list[_Pair]
    puts: list[tuple[bytes, bytes | None]]
    request_id: bytes | None
    result: bytes
    deadline_ms: int

    def txn(self) -> Txn:
        return Txn(tuple(Compare(key, at) for key, at in self.compares), tuple(self.puts))


class TxnReply(msgspec.Struct):
    history: bytes
    revision: int
    """Of the whole history; `changed` is that of the put keys."""
    ok: bool
    duplicate: bool
    result: bytes
    items: list[_Pair | None]
    changed: int

    def answer(self, compares: int) -> Outcome:
        if not self.ok and len(self.items) != compares:
            raise PeerError(f"{len(self.items)} items came for {compares} comparisons")
        items = tuple(_item(pair) for pair in self.items)
        return Outcome(self.ok, self.duplicate, self.result, items, self.changed)


def read_args(args: Mapping[str, Any], kind: type[_T]) -> _T:
    """Arguments of a call, checked; BadRequest if they have another shape or are too many."""
    try:
        read = msgspec.convert(args, kind, strict=True)
    except (msgspec.ValidationError, RecursionError) as error:
        raise BadRequest(f"malformed consensus call: {error}") from None
    if isinstance(read, TxnArgs):
        fits = len(read.compares) <= COMPARES_MAX and len(read.puts) <= PUTS_MAX
    elif isinstance(read, GetArgs):
        fits = len(read.keys) <= SCAN_MAX
    else:
        fits = not isinstance(read, ScanArgs) or 1 <= read.limit <= SCAN_MAX
    if not fits:
        raise BadRequest("a consensus call names more keys than one call may")
    return read


def read_reply(reply: Any, kind: type[_T]) -> _T:
    """An answer, checked; PeerError if it has another shape."""
    try:
        return msgspec.convert(reply, kind, strict=True)
    except (msgspec.ValidationError, RecursionError) as error:
        raise PeerError(f"malformed consensus answer: {error}") from None


def _item(pair: _Pair | None) -> Item | None:
    if pair is None:
        return None
    if pair[1] < 1:
        raise PeerError("a revision is below 1")
    return Item(*pair)
