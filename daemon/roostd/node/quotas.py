"""Quotas, reservations and meters of one node, as the faces call them.

A spend is answered when it is durable here; it never exceeds what consensus has debited for this
node (roost_crdt.grants). A reservation holds an amount before its use is known:

- settled in time, `used` is charged and the rest is free again; more than was reserved is charged
  too, if the quota has it, else EXHAUSTED and the reservation stays as it was;
- not settled within its ttl, it is released: what it held can be spent by others. Settling it
  later is charged like a new spend, and refused as EXHAUSTED if the quota no longer has it. So the
  charged sum never exceeds the limit, whenever a usage becomes known;
- settling or releasing it again with the same amount answers the same.

A request id makes a retry apply once and answer the same, on the node that got the first try: the
grant that it spent is this node's. A reservation's id names its node, so settling it works from
every node that can reach that one.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import msgspec

from roost_crdt.errors import BadRequest, CorruptData, RoostError, Unavailable, WrongType
from roost_crdt.grants import Window, check_amount
from roost_crdt.limits import DEFAULT_LIMITS, Limits
from roost_crdt.linear.request_ids import check_request_id
from roost_crdt.policy import LINEARIZABLE, Policy, PolicyTable
from roost_crdt.rows.layout import check_key
from roostd.consensus.base import Consensus, Table
from roostd.node.accounts import Accounts, Spent
from roostd.node.meters import Meters
from roostd.node.pools import Pools, Quota
from roostd.node.spending import IDLE_MS, Spending
from roostd.node.spendrows import Answer

__all__ = ["Quotas", "Spent"]

log = logging.getLogger(__name__)

TICK_S = 0.1
RETURNED_AT_ONCE = 32
RETURN_PAUSE_MS = 500
SAY_MS = 10_000
SWEPT_AT_ONCE = 8
TTL_MS_MAX = 7 * 24 * 3_600_000

Forward = Callable[[str, str, dict[str, Any], int], Awaitable[Any]]
Handler = Callable[[str, dict[str, Any]], Awaitable[Any]]
_T = TypeVar("_T")


class Quotas:
    """Raises BadRequest, NoPolicy, WrongType, Exhausted (`period_ends`), Unavailable, Busy, Full.

    `spends` and `outbox` are the store's kinds SPEND and OUTBOX. `actor()` may change while the
    node runs: then the grants of the old one count as spent. `nodes()` is how many nodes share
    the limits. `forward(node, method, args, deadline_ms)` reaches the node of a reservation.
    """

    def __init__(
        self,
        consensus: Consensus,
        *,
        spends: Table,
        outbox: Table,
        policies: Callable[[], PolicyTable],
        node_id: str,
        actor: Callable[[], int],
        now_ms: Callable[[], int],
        random: Callable[[], float],
        random_bytes: Callable[[int], bytes],
        nodes: Callable[[], int],
        deadline_ms: int,
        limits: Limits = DEFAULT_LIMITS,
        forward: Forward | None = None,
    ) -> None:
        self._policies = policies
        self._node_id = node_id
        self._now_ms = now_ms
        self._deadline_ms = deadline_ms
        self._limits = limits
        self._forward = forward
        self._durable = spends.durable
        self._running: dict[bytes, asyncio.Task[Any]] = {}
        self._to_sweep: dict[bytes, Window] = {}
        self._ticking: asyncio.Task[None] | None = None
        self._stopped = False
        self._said_ms = 0
        self._accounts = Accounts(
            spends,
            node_id=node_id,
            actor=actor,
            now_ms=now_ms,
            random_bytes=random_bytes,
            limits=limits,
        )
        self._pools = Pools(
            consensus,
            node_id=node_id,
            now_ms=now_ms,
            random=random,
            random_bytes=random_bytes,
            nodes=nodes,
            durable=spends.durable,
            deadline_ms=deadline_ms,
        )
        self._spending = Spending(
            consensus,
            self._pools,
            node_id=node_id,
            policy_of=self._quota_policy,
            free_expired=self._accounts.free_expired,
            now_ms=now_ms,
            nodes=nodes,
            deadline_ms=deadline_ms,
        )
        self.meters = Meters(
            consensus,
            outbox=outbox,
            actor=actor,
            now_ms=now_ms,
            random=random,
            deadline_ms=deadline_ms,
            limits=limits,
        )

    # --- life ---------------------------------------------------------------------------------

    async def start(self, *, ticking: bool = True) -> None:
        """Take up what this node's own durable records say, then return what is not in use.

        `ticking` False leaves it to the caller to call `tick` about every 100 ms.
        """
        self._accounts.load()
        self.meters.load()
        if ticking:
            self._ticking = asyncio.create_task(self._tick_for_ever())

    def again(self, row_key: bytes) -> Mapping[bytes, bytes | None] | None:
        """What to put in the place of a row of `spends` that was lost to damage."""
        return self._accounts.again(row_key)

    async def stop(self, *, deadline_ms: int | None = None) -> int:
        """Refuse new work, return what is unspent, send what is pending; how much is left to do.

        What could not be returned stays debited; this node recovers it when it starts again.
        """
        self._stopped = True
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.gather(self._ticking, return_exceptions=True)
        await self._spending.stop()
        self._accounts.free_expired()
        active = list(self._accounts.active.values())
        try:
            async with asyncio.timeout((deadline_ms or self._deadline_ms) / 1000):
                await asyncio.gather(self._return(active), self.meters.pump(now=True))
        except TimeoutError:
            log.warning("the deadline ended before every grant was returned")
        return len(self._accounts.active) + self.meters.pending

    async def _tick_for_ever(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            try:
                await self.tick()
            except (RoostError, CorruptData) as error:
                log.warning("quotas: %s", error)

    async def tick(self) -> None:
        """Release expired reservations, return idle grants, send additions, forget old windows."""
        self._accounts.free_expired()
        now_ms = self._now_ms()
        idle = [
            quota
            for quota in self._accounts.active.values()
            if now_ms - quota.used_ms >= IDLE_MS and now_ms >= quota.refill_at_ms
        ]
        await asyncio.gather(self._return(idle[:RETURNED_AT_ONCE]), self.meters.pump())
        await self._sweep()
        self._accounts.evict()

    # --- spending -----------------------------------------------------------------------------

    async def spend(self, key: bytes, n: int, request_id: str | bytes | None = None) -> Spent:
        """Spend `n` >= 1 units, or nothing; returns when that is durable."""
        n = check_amount(n)
        policy = self._quota_policy(key)
        request = self._request(b"s", key, request_id)
        quota = self._accounts.quota(key)

        async def work() -> Spent:
            return await self._obtain(
                quota, policy, n, lambda: self._accounts.spend(quota, n, request)
            )

        def again(answer: Answer) -> Spent:
            return Spent(*msgspec.convert(answer.reply, tuple[int, int]))

        return await self._once(request, n, work, again)

    async def reserve(self, key: bytes, n: int, request_id: str | bytes | None, ttl_ms: int) -> str:
        """Hold `n` >= 1 units for `ttl_ms` (1 ms to 7 days); the reservation's id."""
        n = check_amount(n)
        if check_amount(ttl_ms, what="ttl_ms") > TTL_MS_MAX:
            raise BadRequest(f"ttl_ms is at most {TTL_MS_MAX} (7 days)")
        policy = self._quota_policy(key)
        request = self._request(b"r", key, request_id)
        quota = self._accounts.quota(key)

        async def work() -> str:
            return await self._obtain(
                quota, policy, n, lambda: self._accounts.hold(quota, n, ttl_ms, request)
            )

        return await self._once(request, n, work, lambda answer: str(answer.reply[0]))

    async def settle(self, id: str, used: int) -> dict[str, Any]:  # noqa: A002 - the face's name
        """Charge what a reservation really used (>= 0) and free the rest; `{id, used}`."""
        used = check_amount(used, least=0, what="used")
        node = id.rpartition(".")[0]
        if node != self._node_id:
            return await self._settle_there(node, id, used)
        request = b"c" + id.encode(errors="surrogatepass")

        async def work() -> dict[str, Any]:
            row = self._accounts.reservations.get(id)
            if row is None:
                raise _unknown(id)
            quota = self._accounts.quota(row.key)
            extra = used if row.expired else max(0, used - row.amount)
            self._accounts.closing.add(id)
            try:
                if extra:
                    await self._obtain(
                        quota,
                        self._quota_policy(row.key),
                        extra,
                        lambda: self._accounts.close(quota, id, request, used, extra),
                    )
                else:
                    self._accounts.close(quota, id, request, used, 0)
            finally:
                self._accounts.closing.discard(id)
            return {"id": id, "used": used}

        return await self._once(request, used, work, lambda _: {"id": id, "used": used})

    async def release(self, id: str) -> dict[str, Any]:  # noqa: A002
        """Free all that a reservation holds: it used nothing."""
        return await self.settle(id, 0)

    async def _settle_there(self, node: str, reservation: str, used: int) -> dict[str, Any]:
        if not node or not _SERIAL.fullmatch(reservation[len(node) + 1 :]):
            raise _unknown(reservation)
        if self._forward is None:
            raise Unavailable(f"reservation {reservation} is kept by node {node}: settle it there")
        args = {"id": reservation, "used": used}
        answer = await self._forward(node, "quota.settle", args, self._deadline_ms)
        if not isinstance(answer, dict):
            raise Unavailable(f"node {node} answered nothing that settles {reservation}")
        return answer

    def handlers(self) -> dict[str, Handler]:
        """rpc methods for the other nodes: settling a reservation that this one keeps."""

        async def settle(_peer: str, args: Mapping[str, Any]) -> Any:
            reservation = args.get("id")
            if not isinstance(reservation, str) or not reservation.startswith(self._node_id + "."):
                raise BadRequest("quota.settle needs the id of a reservation of this node")
            return await self.settle(reservation, args.get("used", -1))

        return {"quota.settle": settle}

    async def _obtain(
        self, quota: Quota, policy: Policy, need: int, charge: Callable[[], _T]
    ) -> _T:
        if self._stopped:
            raise Unavailable("this node is shutting down", retry_after_ms=1_000)
        self._accounts.active[quota.key] = quota
        founded_ms = quota.founded_ms
        try:
            return await self._spending.obtain(quota, policy, need, charge)
        finally:
            if quota.founded_ms != founded_ms:
                self._to_sweep[quota.key] = quota.ledger.window

    async def _once(
        self,
        request: bytes | None,
        amount: int,
        work: Callable[[], Awaitable[_T]],
        again: Callable[[Answer], _T],
    ) -> _T:
        """Do it unless it is done or being done; either way answer when it is durable."""
        if request is None:
            result = await work()
            await self._durable()
            return result
        known = self._accounts.known(request, amount)
        if known is not None:
            await self._durable()
            return again(known)
        task = self._running.get(request)
        if task is None:
            task = asyncio.ensure_future(work())
            self._running[request] = task
            task.add_done_callback(lambda done: self._done(request, done))
            result = await asyncio.shield(task)
        else:
            await asyncio.wait((task,))
            known = self._accounts.known(request, amount)
            result = task.result() if known is None else again(known)
        await self._durable()
        return result

    def _done(self, request: bytes, task: asyncio.Task[Any]) -> None:
        self._running.pop(request, None)
        if not task.cancelled():
            task.exception()  # retrieved: its caller may be gone

    # --- operators ----------------------------------------------------------------------------

    async def show(self, key: bytes) -> dict[str, Any]:
        """`{limit, remaining, granted_here, period_ends, grants}`.

        `remaining` is what this node knows to be left: the pool's rest and what is unspent here;
        what others hold unspent is in it once they return it. `granted_here` is this node's grant
        that is not spent yet; `grants` {node: the same as of its last transaction}. `period_ends`
        is in ms since the epoch.
        """
        policy = self._quota_policy(key)
        quota = self._accounts.quota(key)
        self._accounts.free_expired()
        pool = await self._pools.pool(quota, policy)
        ledger = quota.ledger
        current = ledger.window == pool.window
        amount = ledger.amount if current else 0
        grants: dict[str, int] = {}
        for one in await self._pools.grants(key, pool.window):
            grants[one.node] = grants.get(one.node, 0) + one.grant.amount - one.grant.spent
            if current and not ledger.certain and one.grant.grant_id == ledger.grant_id:
                amount = max(amount, one.grant.amount)  # after a restart, until it is taken up
        unspent = max(0, amount - ledger.used) if current else 0
        granted_here = max(0, amount - ledger.spent) if current else 0
        if granted_here:
            grants[self._node_id] = granted_here
        await self._durable()
        return {
            "limit": pool.limit(policy.limit),
            "remaining": pool.remaining(policy.limit) + unspent,
            "granted_here": granted_here,
            "period_ends": pool.window.ends_ms,
            "grants": grants,
        }

    async def set_limit(self, key: bytes, n: int) -> dict[str, Any]:
        """Put `n` >= 0 in place of the policy's limit, in this window and later ones; as `show`."""
        n = check_amount(n, least=0, what="limit")
        policy = self._quota_policy(key)
        quota = self._accounts.quota(key)
        quota.seen = None
        await self._pools.set_limit(quota, policy, n)
        return await self.show(key)

    async def forfeit(self, key: bytes, node: str) -> dict[str, Any]:
        """Give up a lost node's grants of this window; `{node, forfeited}`.

        They stay debited, since nobody knows what it spent of them; raise the limit to make up
        for it. The lost node can no longer return them.
        """
        policy = self._quota_policy(key)
        forfeited = await self._pools.forfeit(self._accounts.quota(key), policy, node)
        return {"node": node, "forfeited": forfeited}

    # --- meters -------------------------------------------------------------------------------

    async def meter_add(
        self, key: bytes, n: int, request_id: str | bytes | None = None
    ) -> dict[str, int]:
        """Add `n` >= 1 units; durable here when it returns `{committed, pending}`, as last seen."""
        self._policy(key, "meter")
        return await self.meters.add(key, n, request_id)

    async def meter(self, key: bytes) -> dict[str, int]:
        """`{committed, pending}`: what consensus has, and what this node still has to bring."""
        self._policy(key, "meter")
        return await self.meters.show(key)

    # --- parts --------------------------------------------------------------------------------

    def _quota_policy(self, key: bytes) -> Policy:
        return self._policy(key, "quota")

    def _policy(self, key: bytes, kind: str) -> Policy:
        check_key(key)
        policy = self._policies().find(key)
        if policy.type != kind or policy.consistency != LINEARIZABLE:
            shown = key.decode(errors="backslashreplace")
            raise WrongType(
                f"{shown} is {policy.consistency} ({policy.type}) by policy {policy.name}, "
                f"not a {kind}"
            )
        return policy

    def _request(self, what: bytes, key: bytes, request_id: str | bytes | None) -> bytes | None:
        request = check_request_id(request_id, self._limits)
        return None if request is None else what + key + b"\0" + request

    async def _return(self, quotas: list[Quota]) -> None:
        await asyncio.gather(*map(self._return_one, quotas))

    async def _return_one(self, quota: Quota) -> None:
        """Give back what is unspent; what is held by reservations stays granted."""
        if quota.waiting or quota.refilling is not None:
            return
        ledger = quota.ledger
        try:
            policy = self._quota_policy(quota.key)
            over = self._pools.window(policy).starts_ms > ledger.window.starts_ms
            used_ms = quota.used_ms
            rest = ledger.amount > ledger.used or (ledger.amount > 0 and not ledger.held)
            if not ledger.certain or (rest and not over):
                await self._pools.adjust(quota, policy, settle=True)
        except (RoostError, CorruptData) as error:
            now_ms = self._now_ms()
            if now_ms >= self._said_ms + SAY_MS:  # one for all: each tries again and again
                self._said_ms = now_ms
                log.warning("the rest of quota %s is not returned yet: %s", quota.shown, error)
            quota.refill_at_ms = now_ms + RETURN_PAUSE_MS
            return
        if quota.used_ms == used_ms and not quota.waiting:
            self._accounts.active.pop(quota.key, None)

    async def _sweep(self) -> None:
        for key, window in list(self._to_sweep.items())[:SWEPT_AT_ONCE]:
            try:
                if not await self._pools.sweep(key, window):
                    self._to_sweep.pop(key, None)
            except (RoostError, CorruptData) as error:
                log.info("old grants of %r stay for now: %s", key, error)
                return


_SERIAL = re.compile("[0-9a-f]{16}")
"""What follows the node in a reservation's id."""


def _unknown(reservation: str) -> BadRequest:
    return BadRequest(
        f"there is no open reservation {reservation[:80]!r}: it was never made, or it was closed "
        "or ran out long ago"
    )
