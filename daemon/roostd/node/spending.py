"""Spending out of a grant, and the line of those for whom it does not suffice.

Who finds enough is served at once, without consensus. The others form a line, first come first
served, and one refill at a time asks for all of them together: a thousand spends that find the
grant empty cost one transaction, not a thousand. A grant that runs low is refilled before it is
dry. One that asks for more than is left is told EXHAUSTED and changes nothing, but not before
grants that others hold unspent had the time to come back: so the last unit can be spent anywhere.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar

from roost_crdt.errors import Exhausted, RoostError, Unavailable, error_from_code
from roost_crdt.grants import LOW_WATER, Pool, grant_target, window_at
from roost_crdt.policy import Policy
from roostd.consensus.base import Consensus
from roostd.node.pools import Adjusted, Pools, Quota, Waiter

__all__ = ["IDLE_MS", "Spending", "exhausted"]

log = logging.getLogger(__name__)

IDLE_MS = 1_000
"""After this long without use a grant's rest is returned."""
RETURN_WAIT_S = IDLE_MS / 1000 + 0.5
"""How long another's unspent grant may take to come back; then it is taken for lost."""
POLL_S = 0.1
REFILL_PAUSE_MS = 500

_T = TypeVar("_T")


class Spending:
    """The lines of this node's quotas. `policy_of` raises if a key is no quota any more."""

    def __init__(
        self,
        consensus: Consensus,
        pools: Pools,
        *,
        node_id: str,
        policy_of: Callable[[bytes], Policy],
        free_expired: Callable[[], None],
        now_ms: Callable[[], int],
        nodes: Callable[[], int],
        deadline_ms: int,
    ) -> None:
        self._consensus = consensus
        self._pools = pools
        self._node_id = node_id
        self._policy_of = policy_of
        self._free_expired = free_expired
        self._now_ms = now_ms
        self._nodes = nodes
        self._deadline_ms = deadline_ms
        self._patience_s = min(RETURN_WAIT_S, deadline_ms * 0.8 / 1000)
        self._tasks: set[asyncio.Task[None]] = set()

    async def obtain(self, quota: Quota, policy: Policy, need: int, charge: Callable[[], _T]) -> _T:
        """Call `charge` once `need` units are unspent here, and give what it returns.

        Exhausted, Unavailable (within the deadline) or Busy: then it was not called.
        """
        self._consensus.check()
        if not quota.waiting and self._usable(quota, policy) >= need:
            charged = charge()
            self._spent(quota, need)
            self._refill_if_low(quota, policy)
            return charged
        loop = asyncio.get_running_loop()
        waiter = Waiter(need, charge, loop.create_future(), loop.time())
        quota.waiting.append(waiter)
        self._begin(quota)
        try:
            await asyncio.wait((waiter.answer,), timeout=self._deadline_ms / 1000)
        finally:
            waiter.answer.cancel()
        if waiter.answer.cancelled():
            raise Unavailable(
                f"quota {quota.shown}: no grant could be taken from consensus within "
                f"{self._deadline_ms} ms; nothing was spent"
            )
        answer: _T = waiter.answer.result()
        return answer

    async def stop(self) -> None:
        """End refills; those in line are told Unavailable."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _usable(self, quota: Quota, policy: Policy) -> int:
        """Unspent, unless a new window has begun by this clock."""
        now = window_at(policy.period, self._now_ms())
        return quota.ledger.unspent if now.starts_ms <= quota.ledger.window.starts_ms else 0

    def _spent(self, quota: Quota, amount: int) -> None:
        quota.used_ms = self._now_ms()
        quota.spends.add(amount, quota.used_ms)

    # --- refills ------------------------------------------------------------------------------

    def _refill_if_low(self, quota: Quota, policy: Policy) -> None:
        if quota.seen is None or self._now_ms() < quota.refill_at_ms:
            return
        pool = quota.seen.pool
        target = grant_target(
            limit=pool.limit(policy.limit),
            remaining=pool.remaining(policy.limit),
            nodes=max(1, self._nodes()),
            recent=quota.spends.now(self._now_ms()),
        )
        if quota.ledger.unspent * LOW_WATER < target:
            self._begin(quota)

    def _begin(self, quota: Quota) -> None:
        if quota.refilling is not None:
            return
        quota.refilling = task = asyncio.create_task(self._refill(quota))
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._ended(quota, done))

    def _ended(self, quota: Quota, task: asyncio.Task[None]) -> None:
        quota.refilling = None
        self._tasks.discard(task)
        failure = Unavailable("the node is shutting down") if task.cancelled() else task.exception()
        if failure is None:
            if quota.waiting:
                self._begin(quota)
            return
        if not isinstance(failure, RoostError):
            log.error("refilling quota %s failed: %r", quota.shown, failure)
        quota.refill_at_ms = self._now_ms() + REFILL_PAUSE_MS
        while quota.waiting:
            _refuse(quota.waiting.popleft(), failure)

    async def _refill(self, quota: Quota) -> None:
        """One refill, then more while somebody waits."""
        while True:
            self._free_expired()
            asking = [waiter for waiter in quota.waiting if not waiter.answer.done()]
            policy = self._policy_of(quota.key)
            adjusted = await self._pools.adjust(quota, policy, [waiter.need for waiter in asking])
            self._serve(quota, policy)
            short = [waiter for waiter in asking if not waiter.answer.done()]
            if short and adjusted.missing:
                await self._await_returns(quota, policy, adjusted, short)
            if not quota.waiting:
                return

    def _serve(self, quota: Quota, policy: Policy) -> None:
        """Charge whom the grant suffices for, in the order of the line."""
        line = list(quota.waiting)
        quota.waiting.clear()
        for waiter in line:
            if waiter.answer.done():
                continue
            if self._usable(quota, policy) < waiter.need:
                quota.waiting.append(waiter)
                continue
            try:
                charged = waiter.charge()
            except RoostError as error:
                waiter.answer.set_exception(error)
            else:
                waiter.answer.set_result(charged)
                self._spent(quota, waiter.need)

    # --- the end of a quota -------------------------------------------------------------------

    async def _await_returns(
        self, quota: Quota, policy: Policy, adjusted: Adjusted, short: list[Waiter]
    ) -> None:
        """Refuse those that what is left, here and elsewhere, cannot serve; pause for the rest."""
        pool = adjusted.pool
        if pool.window.starts_ms < self._pools.window(policy).starts_ms:
            return
        now_s = asyncio.get_running_loop().time()
        returnable = await self._returnable(quota, pool, now_s)
        left = pool.remaining(policy.limit) + self._usable(quota, policy)
        for waiter in short:
            waited_s = now_s - waiter.since_s
            if waiter.need > left + returnable or waited_s >= self._patience_s:
                if waiter in quota.waiting:
                    quota.waiting.remove(waiter)
                _refuse(waiter, exhausted(quota, policy, pool, waiter.need, left, self._now_ms()))
        if any(waiter in quota.waiting for waiter in short):
            await asyncio.sleep(POLL_S)

    async def _returnable(self, quota: Quota, pool: Pool, now_s: float) -> int:
        """What other nodes hold unspent and have not yet had the time to return."""
        watched: dict[tuple[str, int, int], float] = {}
        returnable = 0
        for other in await self._pools.grants(quota.key, pool.window):
            if other.node == self._node_id:
                continue
            mark = (other.node, other.actor, other.revision)
            watched[mark] = quota.watched.get(mark, now_s)
            if now_s - watched[mark] < self._patience_s:
                returnable += other.grant.unspent
        quota.watched = watched
        return returnable


def exhausted(
    quota: Quota, policy: Policy, pool: Pool, need: int, left: int, now_ms: int
) -> Exhausted:
    """The refusal, with the end of the period (`period_ends`, ms since the epoch)."""
    ends_ms = pool.window.ends_ms
    limit = pool.limit(policy.limit)
    ends = datetime.fromtimestamp(ends_ms / 1000, UTC).isoformat(timespec="seconds")
    return Exhausted(
        f"quota {quota.shown}: {need} asked for, {left} of {limit} left until {ends}; nothing was "
        "spent",
        retry_after_ms=max(0, ends_ms - now_ms),
        period_ends=ends_ms,
        limit=limit,
        remaining=left,
    )


def _refuse(waiter: Waiter, failure: BaseException) -> None:
    """Each gets an error of its own: one that is raised in many places grows a traceback."""
    if waiter.answer.done():
        return
    if isinstance(failure, RoostError):
        failure = error_from_code(
            failure.code,
            failure.message,
            retry_after_ms=failure.retry_after_ms,
            **failure.details,
        )
    waiter.answer.set_exception(failure)
