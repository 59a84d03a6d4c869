"""Quotas: how much of a limit a node holds, and what it may spend of it.

A quota is a pool in consensus. A node takes a grant out of it, which debits the pool whole, and
spends the grant by itself; whatever happens to the node, the pool stays debited:

    limit >= sum of debits (Pool.granted) >= sum of open grants + what closed ones used
                                          >= sum of spends that were answered

No clock and no lease is part of this argument. Only a grant's owner may credit its unspent rest
back, in a transaction that compares the revisions of pool and grant; what a lost node holds stays
debited until the window ends.

Keys in consensus (a quota key has no NUL; a window is its first millisecond):

    q/<key>                                            -> Pool
    g/<key> NUL <window u64 BE> <node> NUL <actor u64 BE> -> Grant

What this node knows is a Ledger. Its `amount` is a lower bound of what consensus has debited under
its `grant_id`: it is raised after a transaction has succeeded and lowered before one is sent, so a
transaction whose answer was lost can only make the truth larger than the belief. A copy of it that
arrives late cannot apply once any later transaction of this ledger has succeeded, because the
revision that it compares is gone for good.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, Self

import msgspec

from roost_crdt.errors import BadRequest, CorruptData
from roost_crdt.units import duration_ms

__all__ = [
    "AMOUNT_MAX",
    "Grant",
    "GrantKey",
    "Ledger",
    "Plan",
    "Pool",
    "Spends",
    "Window",
    "check_amount",
    "fitting",
    "grant_key",
    "grant_prefix",
    "grant_target",
    "pool_key",
    "read_grant_key",
    "window_at",
]

AMOUNT_MAX = (1 << 63) - 1
RATE_WINDOW_MS = 2_000
"""A grant covers this much of the recent spending."""
STRANDED_PERCENT = 2
"""Of the limit, over all nodes: the most that lost nodes can strand."""
LOW_WATER = 2
"""A refill begins when less than 1 / LOW_WATER of the target is left."""

_U64 = 8
_VERSION = 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Window(NamedTuple):
    """One period of a quota, half open, in wall-clock milliseconds."""

    starts_ms: int
    ends_ms: int


def window_at(period: str, now_ms: int) -> Window:
    """The window that `now_ms` lies in.

    `period` is "day" or "month" (calendar, UTC) or a duration such as "24h", whose windows count
    from the epoch. ValueError if it is none of these.
    """
    if period == "day":
        period = "24h"
    if period != "month":
        length_ms = duration_ms(period)
        starts_ms = now_ms - now_ms % length_ms
        return Window(starts_ms, starts_ms + length_ms)
    now = _EPOCH + timedelta(milliseconds=now_ms)
    start = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    end = (start + timedelta(days=32)).replace(day=1)
    return Window(_ms(start), _ms(end))


def check_amount(amount: object, *, least: int = 1, what: str = "n") -> int:
    """A whole number from `least` to 2**63 - 1, else BadRequest."""
    if isinstance(amount, bool) or not isinstance(amount, int):
        raise BadRequest(f"{what} is a whole number, not {amount!r:.40}")
    if not least <= amount <= AMOUNT_MAX:
        raise BadRequest(f"{what} is a whole number from {least} to {AMOUNT_MAX}")
    return amount


# --- what consensus holds -------------------------------------------------------------------------


class Pool(NamedTuple):
    """A quota in consensus.

    `granted` is what is debited in `window`; `override` the limit that an operator set, None for
    the policy's. A pool never leaves consensus, so its revisions guard every transaction.
    """

    window: Window
    granted: int
    override: int | None = None

    def limit(self, policy_limit: int) -> int:
        return policy_limit if self.override is None else self.override

    def remaining(self, policy_limit: int) -> int:
        """What can still be granted; 0 also where the limit was lowered below the debits."""
        return max(0, self.limit(policy_limit) - self.granted)

    def at(self, window: Window) -> Pool:
        """This pool in `window` if that is later, else as it is: a window never comes back."""
        if window.starts_ms > self.window.starts_ms:
            return Pool(window, 0, self.override)
        return self

    def encode(self) -> bytes:
        starts_ms, ends_ms = self.window
        body = [_VERSION, starts_ms, ends_ms, self.granted, self.override]
        return msgspec.msgpack.encode(body)

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        """CorruptData if consensus holds something else here: never a default."""
        starts_ms, ends_ms, granted, override = _array(raw, 4, "pool")
        _check_ints("pool", starts_ms, ends_ms, granted, 0 if override is None else override)
        if starts_ms >= ends_ms:
            raise CorruptData("not a quota's pool: its window ends before it starts")
        return cls(Window(starts_ms, ends_ms), granted, override)


class Grant(NamedTuple):
    """A node's debit in consensus. `spent` and `held` are as of its last transaction."""

    grant_id: bytes
    amount: int
    spent: int
    held: int

    @property
    def unspent(self) -> int:
        return max(0, self.amount - self.spent - self.held)

    def encode(self) -> bytes:
        body = [_VERSION, self.grant_id, self.amount, self.spent, self.held]
        return msgspec.msgpack.encode(body)

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        grant_id, amount, spent, held = _array(raw, 4, "grant")
        _check_ints("grant", amount, spent, held)
        if not isinstance(grant_id, bytes) or not grant_id:
            raise CorruptData("not a quota's grant: it has no id")
        return cls(grant_id, amount, spent, held)


class GrantKey(NamedTuple):
    window_ms: int
    node: str
    actor: int


def pool_key(quota: bytes) -> bytes:
    return b"q/" + quota


def grant_prefix(quota: bytes, window_ms: int | None = None) -> bytes:
    """Of all grants of a quota, or of one window's."""
    prefix = b"g/" + quota + b"\0"
    return prefix if window_ms is None else prefix + window_ms.to_bytes(_U64, "big")


def grant_key(quota: bytes, window_ms: int, node: str, actor: int) -> bytes:
    tail = node.encode() + b"\0" + actor.to_bytes(_U64, "big")
    return grant_prefix(quota, window_ms) + tail


def read_grant_key(quota: bytes, key: bytes) -> GrantKey:
    """What `grant_key` put together, else CorruptData."""
    prefix = grant_prefix(quota)
    tail = key[len(prefix) + _U64 :]
    node, actor = tail[: -_U64 - 1], tail[-_U64:]
    if not key.startswith(prefix) or not node or tail[-_U64 - 1 : -_U64] != b"\0":
        raise CorruptData(f"not the key of a grant: {key!r:.80}")
    window_ms = int.from_bytes(key[len(prefix) : len(prefix) + _U64], "big")
    try:
        return GrantKey(window_ms, node.decode(), int.from_bytes(actor, "big"))
    except UnicodeDecodeError:
        raise CorruptData(f"not the key of a grant: {key!r:.80}") from None


# --- decisions ------------------------------------------------------------------------------------


def grant_target(*, limit: int, remaining: int, nodes: int, recent: float) -> int:
    """How much a node should have unspent, beyond what waits for it.

    At most `recent` (what 2 s of spending use), 2% of the limit shared by the nodes, and half of
    an equal share of what remains: towards the end nobody holds what another could use.
    """
    assert nodes >= 1
    stranded = limit * STRANDED_PERCENT // (100 * nodes)
    return min(math.floor(recent), stranded, remaining // (2 * nodes))


def fitting(needs: Iterable[int], available: int) -> int:
    """The sum of those needs that fit, first come first served; one that does not is passed."""
    total = 0
    for need in needs:
        if total + need <= available:
            total += need
    return total


@dataclass(slots=True)
class Spends:
    """What the last 2 s of spending used, as an exponentially decaying sum."""

    amount: float = 0.0
    at_ms: int = 0

    def add(self, amount: int, now_ms: int) -> None:
        self.amount = self.now(now_ms) + amount
        self.at_ms = now_ms

    def now(self, now_ms: int) -> float:
        elapsed_ms = max(0, now_ms - self.at_ms)
        return self.amount * math.exp(-elapsed_ms / RATE_WINDOW_MS)


class Plan(NamedTuple):
    """One transaction: put `pool`; put `grant`, or delete it where it is None.

    `missing` is by how much the needs exceed what can be had. `changes` is False if consensus
    already says so, and then nothing has to be sent.
    """

    window: Window
    pool: Pool
    grant: Grant | None
    grant_id: bytes
    missing: int
    changes: bool


@dataclass(slots=True)
class Ledger:
    """What one node holds of one quota in one window. See the module's header for `amount`.

    `held` maps reservations of this grant to their amounts. `certain` is False from the moment a
    transaction is sent until one has succeeded.
    """

    window: Window
    grant_id: bytes = b""
    amount: int = 0
    spent: int = 0
    held: dict[str, int] = field(default_factory=dict)
    certain: bool = False

    @property
    def used(self) -> int:
        return self.spent + sum(self.held.values())

    @property
    def unspent(self) -> int:
        """What may be spent or held right now, with no question to anybody."""
        return max(0, self.amount - self.used)

    @property
    def open(self) -> bool:
        """Consensus holds a grant of this ledger, or may hold one."""
        return not self.certain or self.amount > 0

    def spend(self, amount: int) -> None:
        assert 0 <= amount <= self.unspent, "spending more than is granted"
        self.spent += amount

    def hold(self, reservation: str, amount: int) -> None:
        assert 0 <= amount <= self.unspent, "holding more than is granted"
        self.held[reservation] = amount

    def settle(self, reservation: str, used: int) -> None:
        """Charge `used` of a held amount and free the rest."""
        amount = self.held.pop(reservation)
        assert 0 <= used <= amount
        self.spent += used

    def plan(
        self,
        pool: Pool,
        grant: Grant | None,
        *,
        policy_limit: int,
        needs: Iterable[int],
        target: int,
        new_id: bytes,
    ) -> Plan:
        """The transaction that leaves `fitting(needs)` or `target` unspent, whichever is more.

        `pool` is already in the window to be used and `grant` what consensus has for this node
        and actor in that window. With no needs and a target of 0 it returns everything.
        """
        known = (
            grant is not None
            and grant.grant_id == self.grant_id
            and pool.window == self.window
            and self.spent >= grant.spent
        )
        # Under an unknown id nothing was answered here: a spend is durable together with its id.
        # One that says that something was spent is older than our records: leave it debited.
        mine = known or (grant is not None and grant.spent == 0 and grant.grant_id != self.grant_id)
        debited = grant.amount if grant is not None and mine else 0
        spent, held = (self.spent, self.used - self.spent) if known else (0, 0)
        used = spent + held
        available = max(0, pool.remaining(policy_limit) + debited - used)
        wanted = list(needs)
        fits = fitting(wanted, available)
        if fits < sum(wanted):
            target = 0  # somebody else may be able to use it
        amount = used + min(max(fits, target), available)
        grant_id = grant.grant_id if grant is not None and mine else new_id
        after = None if amount == spent else Grant(grant_id, amount, spent, held)
        return Plan(
            window=pool.window,
            pool=pool._replace(granted=pool.granted + amount - debited),
            grant=after,
            grant_id=grant_id,
            missing=sum(wanted) - fits,
            changes=amount != debited or after != grant or not self.certain,
        )

    def sending(self, plan: Plan) -> None:
        """The plan is about to be sent: from here on it may have been applied."""
        self.certain = False
        if plan.grant_id == self.grant_id and plan.window == self.window:
            kept = self.spent if plan.grant is None else plan.grant.amount
            self.amount = min(self.amount, kept)

    def applied(self, plan: Plan) -> None:
        """The plan has succeeded: what it says is the truth."""
        if plan.grant_id != self.grant_id or plan.window != self.window:
            self.window, self.grant_id, self.spent = plan.window, plan.grant_id, 0
            self.held.clear()
        self.amount = 0 if plan.grant is None else plan.grant.amount
        self.certain = True


# --- shapes ---------------------------------------------------------------------------------------


def _ms(moment: datetime) -> int:
    return int((moment - _EPOCH) / timedelta(milliseconds=1))


def _array(raw: bytes, length: int, what: str) -> list[Any]:
    try:
        body = msgspec.msgpack.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        body = None
    if not isinstance(body, list) or len(body) != length + 1 or body[0] != _VERSION:
        raise CorruptData(f"not a quota's {what}: {raw!r:.80}")
    return body[1:]


def _check_ints(what: str, *numbers: object) -> None:
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise CorruptData(f"not a quota's {what}: {number!r:.40} is no amount")
