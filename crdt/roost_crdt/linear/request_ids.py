"""Request ids that were answered, kept beside their effect: a retry applies once.

The rows that remember an id are returned, not written: the caller puts them in one batch with the
effect, so that a crash keeps both or neither. Nothing is held in memory, hence nothing has to be
taken back when that batch is refused.

    <prefix>b                      first u64, next u64: the ids that are kept now
    <prefix>o + number u64 BE  ->  digest of the id, in the order of their arrival
    <prefix>r + digest         ->  the answer
"""

from __future__ import annotations

import hashlib
import struct

from roost_crdt.errors import BadRequest, CorruptData
from roost_crdt.limits import Limits
from roost_crdt.linear.transactions import Table, seal, unseal

__all__ = ["RequestIds", "check_request_id"]

_BOUNDS = struct.Struct(">QQ")
_NUMBER = struct.Struct(">Q")
_DIGEST_BYTES = 16
_FORGOTTEN_AT_ONCE = 2
"""More than one arrives at a time, so that a lowered bound is reached without a long batch."""


class RequestIds:
    """A bounded memory of answers by request id; the oldest is forgotten first."""

    def __init__(self, table: Table, prefix: bytes, kept: int) -> None:
        assert kept >= 1
        self._table = table
        self._prefix = prefix
        self._kept = kept

    def find(self, request: bytes) -> bytes | None:
        """The answer that this id got, or None. CorruptData if its row is damaged."""
        key = self._answer_key(_digest(request))
        stored = self._table.get(key)
        return None if stored is None else unseal(key, stored)

    def remember(self, request: bytes, answer: bytes) -> dict[bytes, bytes | None]:
        """The rows that make this id known, and forget the oldest ones."""
        first, following = self._bounds()
        rows: dict[bytes, bytes | None] = {}
        for _ in range(_FORGOTTEN_AT_ONCE):
            if following - first < self._kept:
                break
            order_key = self._order_key(first)
            digest = self._table.get(order_key)
            rows[order_key] = None
            if digest is not None:
                rows[self._answer_key(digest)] = None
            first += 1
        digest = _digest(request)
        answer_key = self._answer_key(digest)
        rows[self._order_key(following)] = digest
        rows[answer_key] = seal(answer_key, answer)
        rows[self._prefix + b"b"] = seal(self._prefix + b"b", _BOUNDS.pack(first, following + 1))
        return rows

    def _bounds(self) -> tuple[int, int]:
        key = self._prefix + b"b"
        stored = self._table.get(key)
        if stored is None:
            return 0, 0
        body = unseal(key, stored)
        if len(body) != _BOUNDS.size:
            raise CorruptData("the bounds of the request ids have another shape")
        first, following = _BOUNDS.unpack(body)
        return first, following

    def _order_key(self, number: int) -> bytes:
        return self._prefix + b"o" + _NUMBER.pack(number)

    def _answer_key(self, digest: bytes) -> bytes:
        return self._prefix + b"r" + digest


def check_request_id(request_id: str | bytes | None, limits: Limits) -> bytes | None:
    """The id's bytes; BadRequest if it is empty or longer than `request_id_bytes_max`."""
    if request_id is None:
        return None
    if isinstance(request_id, str):
        raw = request_id.encode(errors="surrogatepass")
    else:
        raw = bytes(request_id)
    if not 1 <= len(raw) <= limits.request_id_bytes_max:
        raise BadRequest(
            f"a request id has 1 to {limits.request_id_bytes_max} bytes, this one has {len(raw)}"
        )
    return raw


def _digest(request: bytes) -> bytes:
    return hashlib.blake2b(request, digest_size=_DIGEST_BYTES).digest()
