"""Quotas: nodes spend grants out of one pool, which a linearizable endpoint holds (I5).

The endpoint does one transaction at a time and compares revisions, as etcd does. Requests to it
are lost, late, or carried out twice, and so are its answers; a spender may stand still or die in
between, and its store may be an old copy. What it spends it writes down before it answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import TypeVar

import msgspec

from roost_crdt import logformat
from roost_crdt.errors import Unavailable, UnknownOutcome
from roost_crdt.grants import (
    Grant,
    Ledger,
    Pool,
    Window,
    grant_key,
    grant_prefix,
    pool_key,
    window_at,
)

from .loop import Future, Lost
from .node import Node

KEY = b"usage_quota:q"
LIMIT = 60
PERIOD = "3s"
DEADLINE_MS = 900.0
TRIES = 4

T = TypeVar("T")
Row = tuple[int, tuple[int, int], bytes, int]
"""What a spender keeps: actor, window, grant id, spent of it."""


class Consensus:
    """What the endpoint holds: values with the revision of their last change."""

    def __init__(self) -> None:
        self.items: dict[bytes, tuple[bytes, int]] = {}
        self.revision = 0

    def read(self, *keys: bytes) -> list[tuple[bytes | None, int]]:
        """Values and revisions; (None, 0) for what is not there."""
        return [self.items.get(key, (None, 0)) for key in keys]

    def txn(self, compares: Mapping[bytes, int], puts: Mapping[bytes, bytes | None]) -> bool:
        """All puts (None removes) if every key is at its revision, else nothing."""
        if any(self.read(key)[0][1] != at for key, at in compares.items()):
            return False
        self.revision += 1
        for key, value in puts.items():
            if value is None:
                self.items.pop(key, None)
            else:
                self.items[key] = (value, self.revision)
        return True

    def grants(self, window: Window) -> list[Grant]:
        """All open grants of a window."""
        prefix = grant_prefix(KEY, window.starts_ms)
        found = [raw for key, (raw, _) in sorted(self.items.items()) if key.startswith(prefix)]
        return [Grant.decode(raw) for raw in found]

    def pool(self) -> Pool | None:
        (raw, _), *_ = self.read(pool_key(KEY))
        return None if raw is None else Pool.decode(raw)


class Quotas:
    """All spenders of a run, what they were told, and what is wrong as soon as it is told."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed ^ 0x5EED)
        self.consensus = Consensus()
        self.problems: list[str] = []
        self._answered: dict[Window, dict[bytes, int]] = {}
        self._spenders: dict[str, tuple[object, Spender]] = {}

    def answered(self, node: Node, window: Window, grant_id: bytes, amount: int) -> None:
        """I5: what was answered never exceeds its grant, nor all of it the limit."""
        spent = self._answered.setdefault(window, {})
        spent[grant_id] = spent.get(grant_id, 0) + amount
        pool, total = self.consensus.pool(), sum(spent.values())
        assert pool is not None, "nothing is granted without a pool"
        node.world.trace.count("quota", "spent")
        if total > LIMIT:
            self._overspent(node, "all", total, LIMIT)
        if pool.window != window:
            return
        left = pool.granted
        for grant in self.consensus.grants(window):
            of_grant = spent.get(grant.grant_id, 0)
            left, total = left - grant.amount, total - of_grant
            if of_grant > grant.amount:
                self._overspent(node, "a grant's", of_grant, grant.amount)
        if total > left:
            self._overspent(node, "closed grants'", total, left)

    def _overspent(self, node: Node, whose: str, spent: int, granted: int) -> None:
        self.problems.append(
            f"I5: {node.name} answers a spend, and {whose} spends are {spent} of {granted}"
        )

    def spender(self, node: Node) -> Spender:
        """The one of a node's present life."""
        life, spender = self._spenders.get(node.name, (None, None))
        if spender is None or life is not node.life:
            spender = Spender(self, node)
            self._spenders[node.name] = (node.life, spender)
        return spender

    async def client(
        self, nodes: Mapping[str, Node], busy: Callable[[], bool], pause_ms: float
    ) -> None:
        """Spends at one node after the other, and sometimes gives back what is left there."""
        while busy():
            loop = next(iter(nodes.values())).world.loop
            await loop.sleep(pause_ms * 2 * self.random.random(), None)
            node = nodes[self.random.choice(sorted(nodes))]
            # A store that may be a copy of a running one is not explored: the greeting finds it.
            if node.life is None or not node.may_write_before_greeting:
                continue
            spender = self.spender(node)
            amount = self.random.randint(1, 4)
            work = spender.give_back() if self.random.random() < 0.1 else spender.spend(amount)
            try:
                spent = await loop.spawn(work, node.life)
            except (Lost, Unavailable, UnknownOutcome) as error:
                node.world.trace.count("quota", type(error).__name__)
                continue
            if not spent:
                node.world.trace.count("quota", "exhausted or returned")

    async def call(self, node: Node, work: Callable[[], T]) -> T:
        """Have the endpoint do something. UnknownOutcome: it may have, or will yet."""
        loop, life, random = node.world.loop, node.life, self.random
        answer: Future[T] = Future()

        def arrive() -> None:
            value = work()
            if random.random() < 0.94:
                loop.after(self._delay_ms(), life, answer.set, value)

        def again() -> None:
            work()

        if random.random() < 0.94:
            loop.after(self._delay_ms(), None, arrive)
        if random.random() < 0.1:
            # A copy of the request arrives as well, whatever became of the first.
            loop.after(random.uniform(100.0, 6_000.0), None, again)
        late = UnknownOutcome(f"consensus did not answer {node.name} in time")
        loop.after(DEADLINE_MS, life, answer.fail, late)
        return await answer

    def _delay_ms(self) -> float:
        slow = self.random.random() < 0.06
        return self.random.uniform(800.0, 4_000.0) if slow else self.random.uniform(1.0, 60.0)


class Spender:
    """What one life of a node knows of the quota."""

    def __init__(self, quotas: Quotas, node: Node) -> None:
        self._quotas = quotas
        self._node = node
        self._actor = 0
        self._ledger = Ledger(Window(0, 0))
        self._adjusting: Future[None] | None = None

    def ledger(self) -> Ledger:
        """From the node's own record; what another actor was granted counts as spent."""
        store = self._node.store
        if self._actor != store.actor:
            self._actor = store.actor
            self._ledger = Ledger(Window(0, 0))
            raw = store.get(logformat.KIND_SPEND, KEY)
            row = None if raw is None else msgspec.msgpack.decode(raw, type=Row)
            if row is not None and self.believes(row):
                self._ledger = Ledger(Window(*row[1]), row[2], 0, row[3])
        return self._ledger

    def believes(self, row: Row) -> bool:
        """Whether a stored record is of this actor."""
        return row[0] == self._actor

    def window(self) -> Window:
        """The present one by the wall clock; one that has ended never comes back."""
        now, ledger = window_at(PERIOD, self._node.wall_ms()), self.ledger()
        return max(now, ledger.window)

    async def spend(self, amount: int) -> bool:
        """True once it is durable; False if there is not so much."""
        for _ in range(TRIES):
            ledger = self.ledger()
            if ledger.window == self.window() and ledger.unspent >= amount:
                ledger.spend(amount)
                window, grant_id = ledger.window, ledger.grant_id
                row: Row = (self._actor, tuple(window), ledger.grant_id, ledger.spent)  # type: ignore[assignment]
                self._node.store.put(logformat.KIND_SPEND, {KEY: msgspec.msgpack.encode(row)})
                await self._durable()
                self._quotas.answered(self._node, window, grant_id, amount)
                return True
            if await self._adjust([amount], self._quotas.random.randint(0, 6)):
                return False
        raise Unavailable("others were faster")

    async def give_back(self) -> bool:
        """Return what is unspent."""
        await self._adjust([], 0)
        return False

    async def _durable(self) -> None:
        done: Future[None] = Future()
        self._node.when_durable(lambda: done.set(None), lambda: done.fail(Lost()))
        self._node.wake()
        await done

    async def _adjust(self, needs: list[int], target: int) -> bool:
        """One transaction, one at a time; True if it is known that `needs` do not fit."""
        while self._adjusting is not None and not self._adjusting.done:
            await self._adjusting
        turn: Future[None] = Future()
        self._adjusting = turn
        try:
            return await self._transact(needs, target)
        finally:
            turn.set(None)

    async def _transact(self, needs: list[int], target: int) -> bool:
        node, quotas, ledger, actor = self._node, self._quotas, self.ledger(), self._actor
        key = pool_key(KEY)
        ((raw, _),) = await quotas.call(node, lambda: quotas.consensus.read(key))
        window = self.window()
        if raw is not None:
            window = max(window, Pool.decode(raw).window)
        at = grant_key(KEY, window.starts_ms, node.name, actor)
        # Again, with the grant: a pool and a grant of different moments would fit nothing.
        (raw_pool, pool_at), (raw_grant, grant_at) = await quotas.call(
            node, lambda: quotas.consensus.read(key, at)
        )
        pool = (Pool(window, 0) if raw_pool is None else Pool.decode(raw_pool)).at(window)
        if actor != node.store.actor or pool.window != window:
            return False
        plan = ledger.plan(
            pool,
            None if raw_grant is None else Grant.decode(raw_grant),
            policy_limit=LIMIT,
            needs=needs,
            target=target,
            new_id=quotas.random.randbytes(8),
        )
        if plan.changes:
            ledger.sending(plan)
            puts = {
                key: plan.pool.encode(),
                at: None if plan.grant is None else plan.grant.encode(),
            }
            compares = {key: pool_at, at: grant_at}
            if not await quotas.call(node, lambda: quotas.consensus.txn(compares, puts)):
                return False
            ledger.applied(plan)
            node.world.trace.count("quota", "granted" if plan.grant is not None else "returned")
        return plan.missing > 0
