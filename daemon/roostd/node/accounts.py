"""What a node's quotas and reservations cost, in memory and in its own store (kind SPEND).

Nothing here asks consensus and nothing awaits: each change is one batch of rows, put before memory
follows it, so a refused put changes nothing. The caller answers when the batch is durable.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable

import msgspec

from roost_crdt.errors import BadRequest, Busy, RoostError
from roost_crdt.grants import Ledger, Window
from roost_crdt.limits import Limits
from roost_crdt.linear.request_ids import RequestIds
from roostd.consensus.base import Table
from roostd.node.pools import Quota
from roostd.node.spendrows import (
    Answer,
    LedgerRow,
    ReservationRow,
    ledger_key,
    lost_with,
    open_row,
    read_answer,
    reservation_key,
    seal_row,
    write_answer,
)

__all__ = ["EXPIRED_KEPT_MS", "QUOTAS_KEPT", "Accounts", "Spent"]

log = logging.getLogger(__name__)

QUOTAS_KEPT = 10_000
"""Quotas without a grant that stay in memory."""
EXPIRED_KEPT_MS = 24 * 3_600_000
"""How long an expired reservation can still be settled."""
CLOSING_PAUSE_MS = 1_000

Rows = dict[bytes, bytes | None]


class Spent(msgspec.Struct, frozen=True):
    """`remaining_local`: unspent here without a question. `granted`: what this node has debited."""

    remaining_local: int
    granted: int


class Accounts:
    """`active` are the quotas that hold a grant or may hold one: to be returned when idle."""

    def __init__(
        self,
        spends: Table,
        *,
        node_id: str,
        actor: Callable[[], int],
        now_ms: Callable[[], int],
        random_bytes: Callable[[int], bytes],
        limits: Limits,
    ) -> None:
        self._spends = spends
        self._node_id = node_id
        self._actor = actor
        self._now_ms = now_ms
        self._random_bytes = random_bytes
        self._reservations_max = limits.request_ids_kept
        self._requests = RequestIds(spends, b"i", limits.request_ids_kept)
        self._quotas: dict[bytes, Quota] = {}
        self.active: dict[bytes, Quota] = {}
        self.reservations: dict[str, ReservationRow] = {}
        self._held: dict[bytes, dict[str, int]] = {}
        """By grant: the amounts of its reservations that are neither closed nor expired."""
        self._due: list[tuple[int, str]] = []
        self.closing: set[str] = set()
        """Reservations that wait for what they used beyond their amount: they do not expire."""

    def load(self) -> None:
        """Read reservations and open grants. CorruptData names a row that is damaged."""
        now_ms = self._now_ms()
        old: Rows = {}
        for row_key, stored in self._spends.pages(b"v"):
            reservation = row_key[1:].decode()
            self._open(reservation, open_row(row_key, stored, ReservationRow))
        for row_key, stored in self._spends.pages(b"l"):
            ledger = open_row(row_key, stored, LedgerRow)
            if ledger.ends_ms + EXPIRED_KEPT_MS < now_ms:
                old[row_key] = None
            elif ledger.actor == self._actor() and ledger.ends_ms > now_ms:
                quota = self.quota(row_key[1:])
                self.active[quota.key] = quota
        if old:
            self._spends.put(old)

    def quota(self, key: bytes) -> Quota:
        """This node's part of a quota, taken up from its own record where there is one.

        A record of another actor is not believed: what that one held counts as spent.
        """
        actor = self._actor()
        quota = self._quotas.get(key)
        if quota is not None and quota.actor == actor:
            return quota
        quota = Quota(key, actor, Ledger(Window(0, 0)))
        stored = self._spends.get(ledger_key(key))
        row = None if stored is None else open_row(ledger_key(key), stored, LedgerRow)
        if row is not None and row.actor == actor:
            quota.founded_ms = row.starts_ms
            quota.ledger = Ledger(row.window, row.grant_id, 0, row.spent)
            quota.ledger.held.update(self._held.get(row.grant_id, {}))
        self._quotas[key] = quota
        return quota

    def known(self, request: bytes, amount: int) -> Answer | None:
        """What a request id was answered; BadRequest if it asked for another amount."""
        stored = self._requests.find(request)
        if stored is None:
            return None
        answer = read_answer(stored)
        if answer.amount != amount:
            raise BadRequest(
                f"this was already answered for an amount of {answer.amount}, not {amount}; "
                "another request needs another id"
            )
        return answer

    # --- changes ------------------------------------------------------------------------------

    def spend(self, quota: Quota, amount: int, request: bytes | None) -> Spent:
        ledger = quota.ledger
        spent = Spent(ledger.unspent - amount, ledger.amount)
        rows = self._ledger_rows(quota, ledger.spent + amount)
        if request is not None:
            answer = write_answer(amount, spent.remaining_local, spent.granted)
            rows.update(self._requests.remember(request, answer))
        self._spends.put(rows)
        ledger.spend(amount)
        return spent

    def hold(self, quota: Quota, amount: int, ttl_ms: int, request: bytes | None) -> str:
        """A new reservation's id. Busy if too many are open."""
        if len(self.reservations) >= self._reservations_max:
            raise Busy("too many reservations are open on this node", retry_after_ms=1_000)
        reservation = f"{self._node_id}.{self._random_bytes(8).hex()}"
        ledger = quota.ledger
        row = ReservationRow(quota.key, ledger.grant_id, amount, self._now_ms() + ttl_ms)
        rows = self._ledger_rows(quota, ledger.spent)
        rows.update(_reservation_rows(reservation, row))
        if request is not None:
            rows.update(self._requests.remember(request, write_answer(amount, reservation)))
        self._spends.put(rows)
        ledger.hold(reservation, amount)
        self._open(reservation, row)
        return reservation

    def close(self, quota: Quota, reservation: str, request: bytes, used: int, extra: int) -> None:
        """Charge `used`, of which `extra` is unspent rather than held by the reservation.

        One whose grant is gone (its window ended, it was forfeited) charges nothing: consensus
        counts the whole of that grant as spent already.
        """
        ledger = quota.ledger
        held = reservation in ledger.held
        charged = extra + (used - extra if held else 0)
        rows = self._ledger_rows(quota, ledger.spent + charged) if charged else {}
        rows[reservation_key(reservation)] = None
        rows.update(self._requests.remember(request, write_answer(used)))
        self._spends.put(rows)
        if held:
            ledger.settle(reservation, used - extra)
        ledger.spend(extra)
        self._release(reservation)
        self._freed(quota)

    def free_expired(self) -> None:
        """Release reservations whose time is up; forget those that nobody settled for a day."""
        now_ms = self._now_ms()
        while self._due and self._due[0][0] <= now_ms:
            _, reservation = heapq.heappop(self._due)
            row = self.reservations.get(reservation)
            if row is None:
                continue
            if reservation in self.closing:
                heapq.heappush(self._due, (now_ms + CLOSING_PAUSE_MS, reservation))
                continue
            try:
                self._expire(reservation, row)
            except RoostError as error:
                log.warning("reservation %s is not released yet: %s", reservation, error)
                heapq.heappush(self._due, (now_ms + CLOSING_PAUSE_MS, reservation))
                return

    def _expire(self, reservation: str, row: ReservationRow) -> None:
        if row.expired:
            self._spends.put({reservation_key(reservation): None})
            self._release(reservation)
            return
        expired = msgspec.structs.replace(row, expired=True)
        self._spends.put(_reservation_rows(reservation, expired))
        self._release(reservation)
        self._open(reservation, expired)
        quota = self.quota(row.key)
        quota.ledger.held.pop(reservation, None)
        self._freed(quota)

    def _open(self, reservation: str, row: ReservationRow) -> None:
        self.reservations[reservation] = row
        heapq.heappush(self._due, (_due_ms(row), reservation))
        if not row.expired:
            self._held.setdefault(row.grant_id, {})[reservation] = row.amount

    def _release(self, reservation: str) -> None:
        row = self.reservations.pop(reservation)
        held = self._held.get(row.grant_id, {})
        held.pop(reservation, None)
        if not held:
            self._held.pop(row.grant_id, None)

    def _freed(self, quota: Quota) -> None:
        quota.used_ms = self._now_ms()
        self.active[quota.key] = quota

    def again(self, row_key: bytes) -> Rows | None:
        """What to put in the place of a stored row that was lost to damage, as memory has it; a
        grant that memory does not have counts as spent. None: it is none of these rows."""
        kind, name = row_key[:1], row_key[1:]
        if kind == b"l" and name in self._quotas:
            quota = self._quotas[name]
            return self._ledger_rows(quota, quota.ledger.spent)
        row = self.reservations.get(name.decode(errors="replace")) if kind == b"v" else None
        if row is not None:
            return _reservation_rows(name.decode(), row)
        return {row_key: None} if lost_with(row_key) is not None else None

    def evict(self) -> None:
        """Keep a bounded number of quotas that hold nothing; their records are in the store."""
        excess = len(self._quotas) - len(self.active) - QUOTAS_KEPT
        if excess <= 0:
            return
        for key in [key for key in self._quotas if key not in self.active][:excess]:
            quota = self._quotas[key]
            if not quota.waiting and quota.refilling is None and not quota.busy.locked():
                del self._quotas[key]

    def _ledger_rows(self, quota: Quota, spent: int) -> Rows:
        ledger = quota.ledger
        row = LedgerRow(quota.actor, *ledger.window, ledger.grant_id, spent)
        key = ledger_key(quota.key)
        return {key: seal_row(key, row)}


def _due_ms(row: ReservationRow) -> int:
    return row.expires_ms + (EXPIRED_KEPT_MS if row.expired else 0)


def _reservation_rows(reservation: str, row: ReservationRow) -> Rows:
    key = reservation_key(reservation)
    return {key: seal_row(key, row)}
