"""Nobody overspends: real quotas over a real host, with crashes and everything that can be lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from quota_cluster import BASE_MS, KEY, Node, cluster, pool_of, spend_all
from virtual_time import VirtualLoop

from roost_crdt.errors import Busy, Exhausted, Unavailable, UnknownOutcome

DAY_MS = 86_400_000
LIMIT = 1_000
AMOUNT_MAX = 90
"""Beside a grant of 2% of the limit, so that nodes hold rests which they return."""
REFUSED = (Exhausted, Unavailable, Busy)
nodes_ = st.integers(0, 2)


class Overspend(RuleBasedStateMachine):
    """`answered` counts spends and settlements by window; what a crash cut off is `unknown`."""

    @initialize(seed=st.integers(0, 2**32))
    def begin(self, seed: int) -> None:
        self.loop = VirtualLoop()
        self.nodes: list[Node] = self.loop.run(cluster(3, seed=seed))
        self.loop.run(self.nodes[0].quotas.set_limit(KEY, LIMIT))
        for node in self.nodes:
            node.wire.delay_s = 0.03
            node.nodes = 1
        self.hosting = self.nodes[0].wire.hosting
        self.answered: Counter[int] = Counter()
        self.most = {self.window: LIMIT}
        self.exact = True
        """Nothing was given up, so that the whole limit can still be spent."""
        self.held: dict[str, tuple[int, int, int]] = {}
        self.requests = 0

    @property
    def window(self) -> int:
        return (self.nodes[0].now_ms() - BASE_MS) // DAY_MS

    def run(self, *tasks: asyncio.Task[Any]) -> list[Any]:
        """Their results; an error, or None for one that a crash cut off."""
        self.loop.run(asyncio.wait(tasks)) if tasks else None  # type: ignore[func-returns-value]
        return [None if t.cancelled() else t.exception() or t.result() for t in tasks]

    # --- what clients do ----------------------------------------------------------------------

    @rule(
        n=nodes_,
        amounts=st.lists(st.integers(1, AMOUNT_MAX), min_size=1, max_size=6),
        ids=st.booleans(),
        crash=st.sampled_from(["", "", "", "node", "host"]),
        after=st.integers(0, 120),
    )
    def spend(self, n: int, amounts: list[int], ids: bool, crash: str, after: int) -> None:
        node = self.nodes[n]
        requests = [f"r{self.requests + k}" if ids else None for k in range(len(amounts))]
        self.requests += len(amounts)

        async def begin() -> list[asyncio.Task[Any]]:
            tasks = [
                node.call(node.quotas.spend(KEY, amount, request))
                for amount, request in zip(amounts, requests, strict=True)
            ]
            if crash:
                await asyncio.sleep(after / 1000)
                await (node.crash() if crash == "node" else self.hosting.crash())
            return tasks

        results = self.run(*self.loop.run(begin()))
        for amount, request, result in zip(amounts, requests, results, strict=True):
            if result is not None and not isinstance(result, Exception):
                self.answered[self.window] += amount
                if request is not None:
                    again = self.run(self.start(node, node.quotas.spend(KEY, amount, request)))
                    assert again == [result], "a retry is answered the same"
            elif result is None:
                self.exact = False
            else:
                assert isinstance(result, REFUSED), result

    def start(self, node: Node, work: Any) -> asyncio.Task[Any]:
        async def begin() -> asyncio.Task[Any]:
            return node.call(work)

        return self.loop.run(begin())

    @rule(n=nodes_, amount=st.integers(1, 250), ttl_ms=st.sampled_from([300, 60_000]))
    def reserve(self, n: int, amount: int, ttl_ms: int) -> None:
        node = self.nodes[n]
        [result] = self.run(self.start(node, node.quotas.reserve(KEY, amount, None, ttl_ms)))
        if isinstance(result, str):
            self.held[result] = (self.window, amount, node.now_ms() + ttl_ms)
        else:
            assert isinstance(result, REFUSED), result

    @precondition(lambda self: self.held)
    @rule(n=nodes_, pick=st.integers(0, 50), used=st.integers(0, 300))
    def settle(self, n: int, pick: int, used: int) -> None:
        reservation = sorted(self.held)[pick % len(self.held)]
        window, amount, _ = self.held[reservation]
        node = self.nodes[n]
        expired = (
            node.peers[reservation.split(".")[0]].quotas._accounts.reservations[reservation].expired
        )
        [result] = self.run(self.start(node, node.quotas.settle(reservation, used)))
        if isinstance(result, dict):
            del self.held[reservation]
            inside = 0 if expired else min(used, amount)
            self.answered[window] += inside
            self.answered[self.window] += used - inside
        else:
            assert isinstance(result, REFUSED), result

    # --- what operators do --------------------------------------------------------------------

    @rule(n=nodes_, limit=st.integers(200, 1_500))
    def set_limit(self, n: int, limit: int) -> None:
        node = self.nodes[n]
        self.most[self.window] = max(self.most[self.window], limit)
        [result] = self.run(self.start(node, node.quotas.set_limit(KEY, limit)))
        assert isinstance(result, (dict, Unavailable, UnknownOutcome)), result

    @rule(n=nodes_, lost=nodes_)
    def forfeit(self, n: int, lost: int) -> None:
        node = self.nodes[n]
        self.run(self.start(node, node.quotas.forfeit(KEY, f"n{lost}")))
        self.exact = False

    # --- what happens -------------------------------------------------------------------------

    @rule(n=nodes_, chance=st.sampled_from([0.0, 0.2, 0.6]))
    def hurt(self, n: int, chance: float) -> None:
        self.nodes[n].wire.chance = chance

    @rule()
    def deliver(self) -> None:
        for node in self.nodes:
            self.loop.run(node.wire.deliver())

    @rule(n=nodes_, lost=st.booleans())
    def crash(self, n: int, lost: bool) -> None:
        self.loop.run(self.nodes[n].crash(lost=lost))
        self.exact = self.exact and not lost

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.02, 1.06, 1.1, 2.0]))
    def sleep(self, seconds: float) -> None:
        self.loop.run(asyncio.sleep(seconds))

    @precondition(lambda self: self.window < 2)
    @rule()
    def next_day(self) -> None:
        self.nodes[0].skip(DAY_MS)
        self.most[self.window] = max(self.most.values())
        self.exact = True
        self.held = {
            reservation: held
            for reservation, held in self.held.items()
            if held[2] > self.nodes[0].now_ms()
        }

    @invariant()
    def nobody_overspends(self) -> None:
        if not hasattr(self, "nodes"):
            return
        for window, spent in self.answered.items():
            assert spent <= self.most[window], (window, spent)
        pool = pool_of(self.hosting)
        if pool is not None:
            assert pool.granted <= self.most[(pool.window.starts_ms - BASE_MS) // DAY_MS]

    def teardown(self) -> None:
        if not hasattr(self, "nodes"):
            return
        try:
            self.heal_and_spend_the_rest()
        finally:
            self.loop.end()

    def heal_and_spend_the_rest(self) -> None:
        """When everything works again the last unit can be spent, unless some was given up."""
        self.deliver()
        for node in self.nodes:
            node.wire.chance = 0.0
        self.loop.run(asyncio.sleep(3))
        for reservation in list(self.held):
            [result] = self.run(
                self.start(self.nodes[0], self.nodes[0].quotas.release(reservation))
            )
            assert isinstance(result, dict), result
        pool = pool_of(self.hosting)
        [shown] = self.run(self.start(self.nodes[0], self.nodes[0].quotas.show(KEY)))
        for step in (30, 1):
            spent = self.run(*(self.start(node, spend_all(node, step)) for node in self.nodes))
            self.answered[self.window] += sum(spent)
        self.nobody_overspends()
        # What was granted before the limit was lowered stays granted.
        if self.exact and (pool is None or pool.granted <= shown["limit"]):
            assert self.answered[self.window] == shown["limit"]


TestOverspend = Overspend.TestCase
TestOverspend.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
