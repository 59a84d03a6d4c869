"""What a node keeps of its quotas in its own store (kind SPEND), and what a retry is answered.

    l<quota key>        what is spent of the open grant        (LedgerRow)
    v<reservation id>   a reservation that is not closed yet   (ReservationRow)
    i...                request ids, see roost_crdt.linear.request_ids
    witness             see roostd.consensus.witness

Every row is sealed: the index has no checksums. Both rows name their grant: amounts count against
that grant only, so a row of an older grant, window or actor can never free what a newer one holds.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import msgspec

from roost_crdt.errors import CorruptData
from roost_crdt.grants import Window
from roostd.consensus.base import seal, unseal

__all__ = [
    "Answer",
    "LedgerRow",
    "ReservationRow",
    "ledger_key",
    "lost_with",
    "open_row",
    "read_answer",
    "reservation_key",
    "seal_row",
    "write_answer",
]


class LedgerRow(msgspec.Struct, array_like=True, frozen=True):
    actor: int
    starts_ms: int
    ends_ms: int
    grant_id: bytes
    spent: int

    @property
    def window(self) -> Window:
        return Window(self.starts_ms, self.ends_ms)


class ReservationRow(msgspec.Struct, array_like=True, frozen=True):
    """`expired` ones hold nothing any more; what is settled for them is spent anew."""

    key: bytes
    grant_id: bytes
    amount: int
    expires_ms: int
    expired: bool = False


class Answer(NamedTuple):
    """What a request asked for and got: `amount` asked, then the reply's own members."""

    amount: int
    reply: list[object]


_Row = TypeVar("_Row", LedgerRow, ReservationRow)


def ledger_key(quota: bytes) -> bytes:
    return b"l" + quota


def reservation_key(reservation: str) -> bytes:
    return b"v" + reservation.encode()


def lost_with(row_key: bytes) -> tuple[bytes, ...] | None:
    """What has to go with a stored row that was lost to damage, by prefixes, so that nothing can be
    spent twice; None: it may not go.

    Without its record a grant counts as spent: consensus has debited it whole. What a reservation
    held is of an unknown grant, so all of them go. Without its request id a retry spends again.
    """
    match row_key[:1]:
        case b"v":
            return (b"l",)
        case b"l" | b"i":
            return ()
        case _:
            return None


def seal_row(key: bytes, row: LedgerRow | ReservationRow) -> bytes:
    return seal(key, msgspec.msgpack.encode(row))


def open_row(key: bytes, stored: bytes, kind: type[_Row]) -> _Row:
    """The row stored under `key`; CorruptData if it is damaged or of another shape."""
    try:
        return msgspec.msgpack.decode(unseal(key, stored), type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptData(f"the stored row {key!r} has another shape: {error}") from None


def write_answer(amount: int, *reply: object) -> bytes:
    return msgspec.msgpack.encode([amount, list(reply)])


def read_answer(raw: bytes) -> Answer:
    try:
        amount, reply = msgspec.msgpack.decode(raw, type=tuple[int, list[object]])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptData(f"the answer to a request id has another shape: {error}") from None
    return Answer(amount, reply)
