"""Meters: what was used, counted exactly once, while consensus may be away.

An addition is durable here first: each actor keeps, per meter, the sum of all that it ever added
(kind OUTBOX). A pump then tells consensus in one transaction that compares the mark of this actor,
the part of that sum which the meter already contains, and adds the difference. The sums only grow
and the mark says how far they were taken, so an answer that was lost needs no memory: the next
transaction adds what is missing, which is nothing if the first one was applied.

    m/<key>                    -> the meter, in decimal
    a/<key> NUL <actor u64 BE> -> the mark: how much of that actor's sum it contains, in decimal
    OUTBOX t<key> NUL <actor>  -> [total, mark as last seen, committed as last seen]

An actor that was given up keeps its row until consensus has all of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator

import msgspec

from roost_crdt.errors import BadRequest, CorruptData, RoostError, Unavailable, WrongType
from roost_crdt.grants import AMOUNT_MAX, check_amount
from roost_crdt.limits import DEFAULT_LIMITS, Limits
from roost_crdt.linear.request_ids import RequestIds, check_request_id
from roostd.consensus.base import Compare, Consensus, Item, Table, Txn, seal, unseal

__all__ = ["Meters"]

log = logging.getLogger(__name__)

PUMPED_AT_ONCE = 32
PAUSE_MS_MIN, PAUSE_MS_MAX = 100, 5_000


class _Total(msgspec.Struct, array_like=True, frozen=True):
    """Of one meter and actor: everything ever added, and what consensus had of it last."""

    total: int
    mark: int = 0
    committed: int = 0


class Meters:
    """The meters of this node. Keys are checked by the caller (roostd.node.quotas)."""

    def __init__(
        self,
        consensus: Consensus,
        *,
        outbox: Table,
        actor: Callable[[], int],
        now_ms: Callable[[], int],
        random: Callable[[], float],
        deadline_ms: int,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._consensus = consensus
        self._outbox = outbox
        self._actor = actor
        self._now_ms = now_ms
        self._random = random
        self._deadline_ms = deadline_ms
        self._limits = limits
        self._requests = RequestIds(outbox, b"i", limits.request_ids_kept)
        self._pending: dict[bytes, None] = {}
        """Rows with something that consensus may lack, in the order of their additions."""
        self._pumping = asyncio.Lock()
        self._failures = 0
        self._pump_at_ms = 0
        self.last_error: str | None = None

    def load(self) -> None:
        """Find what consensus still lacks; once, at start-up."""
        for row_key, stored in self._outbox.pages(b"t"):
            row = _open(row_key, stored)
            if row.total > row.mark:
                self._pending[row_key] = None

    @property
    def pending(self) -> int:
        """Meters with additions that consensus lacks."""
        return len(self._pending)

    async def add(self, key: bytes, n: int, request_id: str | bytes | None) -> dict[str, int]:
        """Add `n` >= 1 units, once per request id; returns when that is durable on this node.

        `{committed, pending}` as this node knows them without asking consensus. BadRequest if n
        is no whole number, or this node's sum would leave 63 bits.
        """
        n = check_amount(n)
        request = check_request_id(request_id, self._limits)
        scoped = None if request is None else key + b"\0" + request
        row_key = _row_key(key, self._actor())
        row = self._row(row_key)
        first = None if scoped is None else self._requests.find(scoped)
        if first is not None and first != b"%d" % n:
            raise BadRequest(f"this request id was used to add {first.decode()} units, not {n}")
        if first is None:
            if row.total + n > AMOUNT_MAX:
                raise BadRequest(f"this node cannot count more than {AMOUNT_MAX} units of a meter")
            row = msgspec.structs.replace(row, total=row.total + n)
            rows: dict[bytes, bytes | None] = {row_key: _seal(row_key, row)}
            if scoped is not None:
                rows.update(self._requests.remember(scoped, b"%d" % n))
            self._outbox.put(rows)
            self._pending.setdefault(row_key)
        await self._outbox.durable()
        return {"committed": row.committed, "pending": self._lacking(key)}

    async def show(self, key: bytes) -> dict[str, int]:
        """`{committed, pending}`: what consensus has, and what this node still has to bring."""
        rows = [(row_key, _open(row_key, raw)) for row_key, raw in self._rows(key)]
        asked = [_meter_key(key), *(_mark_key(row_key) for row_key, _ in rows)]
        items = await self._consensus.get(asked, deadline_ms=self._deadline_ms)
        committed, *marks = (_amount(item, key) for item in items)
        pending = 0
        for (row_key, row), mark in zip(rows, marks, strict=True):
            self._refuse_lost(key, row, items[0], mark)
            pending += max(0, self._row(row_key).total - mark)
        await self._outbox.durable()
        return {"committed": committed, "pending": pending}

    # --- the pump -----------------------------------------------------------------------------

    async def pump(self, *, now: bool = False) -> int:
        """Bring consensus what it lacks, if it is time to (or `now`); how many meters are left.

        Failures are kept in `last_error` and tried again after a growing pause with jitter.
        """
        async with self._pumping:
            if not self._pending or (not now and self._now_ms() < self._pump_at_ms):
                return len(self._pending)
            some = list(self._pending)[:PUMPED_AT_ONCE]
            if all(await asyncio.gather(*map(self._bring, some))):
                self._failures = 0
                self.last_error = None
                self._pump_at_ms = 0
            else:
                self._failures += 1
                pause_ms = min(PAUSE_MS_MIN << min(self._failures, 10), PAUSE_MS_MAX)
                self._pump_at_ms = self._now_ms() + int(pause_ms * self._random())
        return len(self._pending)

    async def _bring(self, row_key: bytes) -> bool:
        """One row; False if it has to be tried again later."""
        self._pending.pop(row_key)
        try:
            done = await self._transfer(row_key)
        except (RoostError, CorruptData) as error:
            shown = _key_of(row_key).decode(errors="backslashreplace")
            message = f"meter {shown}: {error}"
            if message != self.last_error:
                log.warning("additions wait for consensus: %s", message)
            self.last_error = message
            done = False
        except asyncio.CancelledError:
            self._pending[row_key] = None
            raise
        if not done:
            self._pending[row_key] = None
        return done

    async def _transfer(self, row_key: bytes) -> bool:
        key = _key_of(row_key)
        keys = (_meter_key(key), _mark_key(row_key))
        row = self._row(row_key)
        await self._outbox.durable()
        items = await self._consensus.get(keys, deadline_ms=self._deadline_ms)
        committed, mark = (_amount(item, key) for item in items)
        self._refuse_lost(key, row, items[0], mark)
        if row.total > mark:
            committed += row.total - mark
            mark = row.total
            txn = Txn(
                tuple(map(Compare, keys, map(_revision, items))),
                ((keys[0], _encode(committed)), (keys[1], _encode(mark))),
            )
            outcome = await self._consensus.txn(txn, deadline_ms=self._deadline_ms)
            if not outcome.ok:
                return False
        now = self._row(row_key)
        done = now.total == mark
        if done and row_key != _row_key(key, self._actor()):
            self._outbox.put({row_key: None})
        else:
            known = min(committed, AMOUNT_MAX)
            seen = msgspec.structs.replace(now, mark=mark, committed=known)
            self._outbox.put({row_key: _seal(row_key, seen)})
        return done

    def _refuse_lost(self, key: bytes, row: _Total, meter: Item | None, mark: int) -> None:
        """Never begin at 0 again where consensus once had more."""
        if mark < row.mark or (mark and meter is None):
            raise Unavailable(
                f"consensus has lost what meter {key.decode(errors='backslashreplace')} contained "
                f"(mark {mark}, {row.mark} was seen): nothing is added until it is restored"
            )

    # --- rows ---------------------------------------------------------------------------------

    def _row(self, row_key: bytes) -> _Total:
        stored = self._outbox.get(row_key)
        return _Total(0) if stored is None else _open(row_key, stored)

    def _lacking(self, key: bytes) -> int:
        rows = (_open(*row) for row in self._rows(key))
        return sum(row.total - row.mark for row in rows)

    def _rows(self, key: bytes) -> Iterator[tuple[bytes, bytes]]:
        return self._outbox.pages(b"t" + key + b"\0")


def _row_key(key: bytes, actor: int) -> bytes:
    return b"t" + key + b"\0" + actor.to_bytes(8, "big")


def _key_of(row_key: bytes) -> bytes:
    return row_key[1:-9]


def _meter_key(key: bytes) -> bytes:
    return b"m/" + key


def _mark_key(row_key: bytes) -> bytes:
    return b"a/" + row_key[1:]


def _seal(row_key: bytes, row: _Total) -> bytes:
    return seal(row_key, msgspec.msgpack.encode(row))


def _open(row_key: bytes, stored: bytes) -> _Total:
    try:
        return msgspec.msgpack.decode(unseal(row_key, stored), type=_Total)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptData(f"the stored row {row_key!r} has another shape: {error}") from None


def _revision(item: Item | None) -> int:
    return 0 if item is None else item.revision


def _encode(amount: int) -> bytes:
    return b"%d" % amount


def _amount(item: Item | None, key: bytes) -> int:
    """A decimal number, of any length; WrongType if consensus holds something else."""
    if item is None:
        return 0
    if not item.value.isdigit() or len(item.value) > 100:
        raise WrongType(
            f"meter {key.decode(errors='backslashreplace')}: consensus holds {item.value!r:.60}, "
            "which is no number; nothing is added until it is restored"
        )
    return int(item.value)
