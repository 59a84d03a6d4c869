"""What this node does with quotas in consensus: take, refill and return grants.

Every transaction compares the revisions of the pool and of this node's grant, and what it puts is
computed from what they hold: so one whose answer was lost is simply computed again, and no request
id has to be stored for it (see roost_crdt.grants for why a late copy cannot apply).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from roost_crdt.errors import Busy, CorruptData, Unavailable, UnknownOutcome, WrongType
from roost_crdt.grants import (
    Grant,
    Ledger,
    Plan,
    Pool,
    Spends,
    Window,
    grant_key,
    grant_prefix,
    grant_target,
    pool_key,
    read_grant_key,
    window_at,
)
from roost_crdt.policy import Policy
from roostd.consensus.base import PUTS_MAX, SCAN_MAX, Compare, Consensus, Item, Outcome, Txn

__all__ = ["Adjusted", "OpenGrant", "Pools", "Quota", "Waiter"]

ATTEMPTS_MAX = 256
PAUSE_S_MAX = 0.002
"""Short: of those who race one always wins, and who pauses for long keeps losing."""
GRANT_ID_BYTES = 8


class Seen(NamedTuple):
    """A pool in the window to be used, this node's grant in it, and what to compare."""

    pool: Pool
    grant: Grant | None
    pool_at: Compare
    grant_at: Compare


@dataclass(slots=True, eq=False)
class Waiter:
    """One that needs `need` units; `charge` takes them out of the ledger and the store."""

    need: int
    charge: Callable[[], Any]
    answer: asyncio.Future[Any]
    since_s: float


@dataclass(slots=True, eq=False)
class Quota:
    """One quota on this node."""

    key: bytes
    actor: int
    ledger: Ledger
    spends: Spends = field(default_factory=Spends)
    used_ms: int = 0
    """When something was last spent, held or freed here."""
    founded_ms: int = -1
    """The latest window in which the pool is known to exist; -1 = none."""
    seen: Seen | None = None
    """What the last transaction left in consensus: a refill tries it before it reads."""
    waiting: deque[Waiter] = field(default_factory=deque)
    """Those that this node's grant did not suffice for, in the order of their coming."""
    refilling: asyncio.Task[None] | None = None
    refill_at_ms: int = 0
    """Not before this: consensus was out of reach when a grant ran low."""
    watched: dict[tuple[str, int, int], float] = field(default_factory=dict)
    """Others' grants (node, actor, revision) that could still come back, and since when."""
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held over a transaction: one at a time, or they would only overtake each other."""

    @property
    def shown(self) -> str:
        return self.key.decode(errors="backslashreplace")


class Adjusted(NamedTuple):
    """After a transaction: the pool, its window, and by how much the needs exceeded it."""

    pool: Pool
    missing: int


class OpenGrant(NamedTuple):
    """Another node's grant, as consensus knows it."""

    node: str
    actor: int
    revision: int
    grant: Grant


class Pools:
    """The pools of this node's quotas. Raises Unavailable, Busy, WrongType (a foreign value)."""

    def __init__(
        self,
        consensus: Consensus,
        *,
        node_id: str,
        now_ms: Callable[[], int],
        random: Callable[[], float],
        random_bytes: Callable[[int], bytes],
        nodes: Callable[[], int],
        durable: Callable[[], Any],
        deadline_ms: int,
    ) -> None:
        self._consensus = consensus
        self._node_id = node_id
        self._now_ms = now_ms
        self._random = random
        self._random_bytes = random_bytes
        self._nodes = nodes
        self._durable = durable
        self._deadline_ms = deadline_ms

    def window(self, policy: Policy, quota: Quota | None = None) -> Window:
        """By this node's clock, or the later one that the quota has already moved to."""
        window = window_at(policy.period, self._now_ms())
        if quota is not None and quota.ledger.window.starts_ms > window.starts_ms:
            return quota.ledger.window
        return window

    async def adjust(
        self, quota: Quota, policy: Policy, needs: Sequence[int] = (), *, settle: bool = False
    ) -> Adjusted:
        """Bring the grant to what `needs` and the rate of spending ask for.

        With `settle` the unspent rest is returned instead. What was spent is durable before
        consensus hears of it. Nothing is taken for a need that exceeds what is left.
        """
        async with quota.busy:
            ends = asyncio.get_running_loop().time() + self._deadline_ms / 1000
            seen = self._recall(quota, policy)
            fresh = seen is None
            for _ in range(ATTEMPTS_MAX):
                left_ms = self._left(quota.shown, ends)
                seen = seen or await self._read(quota, policy, left_ms)
                plan = self._plan(quota, policy, seen, () if settle else (*needs, 0))
                if not fresh and (plan.missing or not plan.changes):
                    seen, fresh = None, True
                    continue
                revision = 0
                if plan.changes:
                    quota.ledger.sending(plan)
                    await self._durable()
                    outcome = await self._send(quota, plan, seen, ends)
                    if outcome is None or not outcome.ok:
                        sent, seen, fresh = seen, None, True
                        if outcome is not None:
                            seen = self._seen(quota, policy, sent, outcome.items)
                        await self._pause()
                        continue
                    revision = outcome.revision
                self._believe(quota, plan, seen, revision)
                return Adjusted(plan.pool, plan.missing)
            raise self._overtaken(quota.shown)

    def _recall(self, quota: Quota, policy: Policy) -> Seen | None:
        """What the last transaction left, to try without a read; None if a window has begun."""
        seen = quota.seen
        if seen is None or seen.pool.window != self.window(policy, quota):
            return None
        return seen

    def _believe(self, quota: Quota, plan: Plan, seen: Seen, revision: int) -> None:
        quota.ledger.applied(plan)
        quota.founded_ms = plan.window.starts_ms
        quota.seen = None
        if revision:
            at_grant = revision if plan.grant is not None else 0
            quota.seen = seen._replace(
                pool=plan.pool,
                grant=plan.grant,
                pool_at=Compare(seen.pool_at.key, revision),
                grant_at=Compare(seen.grant_at.key, at_grant),
            )

    def _plan(
        self,
        quota: Quota,
        policy: Policy,
        seen: Seen,
        needs: Sequence[int],
    ) -> Plan:
        pool = seen.pool
        target = 0
        if needs:
            target = grant_target(
                limit=pool.limit(policy.limit),
                remaining=pool.remaining(policy.limit),
                nodes=max(1, self._nodes()),
                recent=quota.spends.now(self._now_ms()),
            )
        return quota.ledger.plan(
            pool,
            seen.grant,
            policy_limit=policy.limit,
            needs=needs,
            target=target,
            new_id=self._random_bytes(GRANT_ID_BYTES),
        )

    async def _send(self, quota: Quota, plan: Plan, seen: Seen, ends: float) -> Outcome | None:
        """None: the answer was lost. Half of what is left of the deadline is kept to ask again."""
        quota.seen = None
        left_ms = self._left(quota.shown, ends)
        grant = None if plan.grant is None else plan.grant.encode()
        puts = ((seen.pool_at.key, plan.pool.encode()), (seen.grant_at.key, grant))
        try:
            return await self._consensus.txn(
                Txn((seen.pool_at, seen.grant_at), puts), deadline_ms=max(1, left_ms // 2)
            )
        except UnknownOutcome:
            return None

    async def _read(self, quota: Quota, policy: Policy, deadline_ms: int) -> Seen:
        """The pool as it is in the window to be used, and this node's grant in it."""
        window = self.window(policy, quota)
        while True:
            keys = self._keys(quota, window)
            items = await self._consensus.get(keys, deadline_ms=deadline_ms)
            if items[0] is None and await self._was_founded(quota, window, deadline_ms):
                # Founded since, together with its first grant; or deleted by hand.
                items = await self._consensus.get(keys, deadline_ms=deadline_ms)
                if items[0] is None:
                    raise self._gone(quota)
            pool = Pool(window, 0)
            if items[0] is not None:
                pool = _decode(Pool, items[0].value, quota.shown)
            if pool.window.starts_ms <= window.starts_ms:
                return self._look(quota, window, pool, items)
            window = pool.window

    def _seen(
        self, quota: Quota, policy: Policy, sent: Seen, items: Sequence[Item | None]
    ) -> Seen | None:
        """What a failed comparison showed; None if it is of another window and must be read."""
        window = self.window(policy, quota)
        if items[0] is None or sent.grant_at.key != self._keys(quota, window)[1]:
            return None
        pool: Pool = _decode(Pool, items[0].value, quota.shown)
        if pool.window.starts_ms > window.starts_ms:
            return None
        return self._look(quota, window, pool, items)

    def _look(self, quota: Quota, window: Window, pool: Pool, items: Sequence[Item | None]) -> Seen:
        pool_at, grant_at = (
            Compare(key, _revision(item))
            for key, item in zip(self._keys(quota, window), items, strict=True)
        )
        grant = None if items[1] is None else _decode(Grant, items[1].value, quota.shown)
        return Seen(pool.at(window), grant, pool_at, grant_at)

    def _keys(self, quota: Quota, window: Window) -> list[bytes]:
        return [
            pool_key(quota.key),
            grant_key(quota.key, window.starts_ms, self._node_id, quota.actor),
        ]

    async def _was_founded(self, quota: Quota, window: Window, deadline_ms: int) -> bool:
        """Whether the pool existed in this window: then its absence is no beginning."""
        if quota.founded_ms == window.starts_ms:
            return True
        prefix = grant_prefix(quota.key, window.starts_ms)
        return bool(await self._consensus.scan(prefix, 1, deadline_ms=deadline_ms))

    @staticmethod
    def _gone(quota: Quota) -> Unavailable:
        return Unavailable(
            f"the pool of quota {quota.shown} is gone from consensus, though grants were taken in "
            "this period: nothing is spent until the period ends or an operator sets the limit "
            "(roost quota set)"
        )

    # --- other nodes' grants ------------------------------------------------------------------

    async def grants(self, key: bytes, window: Window) -> list[OpenGrant]:
        """All open grants of a window, this node's included."""
        prefix = grant_prefix(key, window.starts_ms)
        found: list[OpenGrant] = []
        after = b""
        while page := await self._consensus.scan(
            prefix, SCAN_MAX, after=after, deadline_ms=self._deadline_ms
        ):
            for stored, item in page:
                shown = key.decode(errors="backslashreplace")
                where = read_grant_key(key, stored)
                grant = _decode(Grant, item.value, shown)
                found.append(OpenGrant(where.node, where.actor, item.revision, grant))
            after = page[-1][0]
            if len(page) < SCAN_MAX:
                break
        return found

    async def pool(self, quota: Quota, policy: Policy) -> Pool:
        """The pool now, in the window to be used."""
        return (await self._read(quota, policy, self._deadline_ms)).pool

    # --- operators ----------------------------------------------------------------------------

    async def set_limit(self, quota: Quota, policy: Policy, limit: int) -> Pool:
        """Put a limit of the operator's in place of the policy's, from now on.

        In the current window what remains moves by the difference, not below 0: what is granted
        stays granted. A pool that was deleted by hand is made anew, with what open grants hold.
        """
        ends = asyncio.get_running_loop().time() + self._deadline_ms / 1000
        stored = pool_key(quota.key)
        lost: UnknownOutcome | None = None
        for _ in range(ATTEMPTS_MAX):
            left_ms = max(1, self._left(quota.shown, ends, lost))
            [item] = await self._consensus.get([stored], deadline_ms=left_ms)
            window = self.window(policy, quota)
            if item is None:
                taken = await self.grants(quota.key, window)
                pool = Pool(window, sum(open_.grant.amount for open_ in taken))
            else:
                pool = _decode(Pool, item.value, quota.shown).at(window)
            pool = pool._replace(override=limit)
            txn = Txn((Compare(stored, _revision(item)),), ((stored, pool.encode()),))
            try:
                if (await self._consensus.txn(txn, deadline_ms=max(1, left_ms // 2))).ok:
                    return pool
            except UnknownOutcome as error:
                lost = error
            await self._pause()
        raise self._overtaken(quota.shown)

    async def forfeit(self, quota: Quota, policy: Policy, node: str) -> int:
        """Delete a node's grants of this window: how much it held. The pool stays debited.

        What the node spent of them is not known, so nothing is credited back; the node, should it
        be alive, can neither spend nor return what it held once it hears of this.
        """
        pool = await self.pool(quota, policy)
        lost = [one for one in await self.grants(quota.key, pool.window) if one.node == node]
        forfeited = 0
        for start in range(0, len(lost), PUTS_MAX):
            some = lost[start : start + PUTS_MAX]
            keys = [grant_key(quota.key, pool.window.starts_ms, node, one.actor) for one in some]
            txn = Txn(
                tuple(Compare(key, one.revision) for key, one in zip(keys, some, strict=True)),
                tuple((key, None) for key in keys),
            )
            outcome = await self._consensus.txn(txn, deadline_ms=self._deadline_ms)
            if not outcome.ok:
                raise Busy(
                    f"{node} has just changed its grant of {quota.shown}: it is alive",
                    retry_after_ms=1_000,
                )
            forfeited += sum(one.grant.amount - one.grant.spent for one in some)
        return forfeited

    async def sweep(self, key: bytes, window: Window) -> int:
        """Delete grants of windows before `window`, up to one transaction; how many."""
        rows = await self._consensus.scan(
            grant_prefix(key), PUTS_MAX, deadline_ms=self._deadline_ms
        )
        old = [
            (stored, item)
            for stored, item in rows
            if read_grant_key(key, stored).window_ms < window.starts_ms
        ]
        if not old:
            return 0
        txn = Txn(
            tuple(Compare(stored, item.revision) for stored, item in old),
            tuple((stored, None) for stored, _ in old),
        )
        outcome = await self._consensus.txn(txn, deadline_ms=self._deadline_ms)
        return len(old) if outcome.ok else 0

    # --- parts --------------------------------------------------------------------------------

    def _left(self, shown: str, ends: float, lost: UnknownOutcome | None = None) -> int:
        left_ms = int((ends - asyncio.get_running_loop().time()) * 1000)
        if left_ms > 0:
            return left_ms
        if lost is not None:
            raise lost
        raise Unavailable(
            f"quota {shown}: consensus did not answer within {self._deadline_ms} ms; nothing was "
            "spent"
        )

    async def _pause(self) -> None:
        await asyncio.sleep(self._random() * PAUSE_S_MAX)

    @staticmethod
    def _overtaken(shown: str) -> Busy:
        return Busy(
            f"quota {shown} is taken from by too many at once: {ATTEMPTS_MAX} attempts were "
            "overtaken; nothing was spent",
            retry_after_ms=100,
        )


def _revision(item: Item | None) -> int:
    return 0 if item is None else item.revision


def _decode(kind: type[Any], raw: bytes, shown: str) -> Any:
    """A foreign value refuses its own quota: it is never taken for an empty one."""
    try:
        return kind.decode(raw)
    except CorruptData as error:
        raise WrongType(f"quota {shown}: consensus holds {error}; nothing is spent") from None
