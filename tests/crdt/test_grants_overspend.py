"""No interleaving of lost, late and repeated transactions, spends and crashes overspends."""

from __future__ import annotations

from itertools import count

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from roost_crdt.grants import (
    Grant,
    Ledger,
    Plan,
    Pool,
    Window,
)

DAY_MS = 24 * 3_600_000
W1, W2 = Window(0, DAY_MS), Window(DAY_MS, 2 * DAY_MS)


class Overspend(RuleBasedStateMachine):
    """Ledgers over one pool, with transactions that are lost, late, repeated, and crashes.

    A transaction compares the revisions of the pool and the grant, as consensus does. A crash
    keeps what was spent (it is durable before it is answered) and nothing else.
    """

    LIMIT = 60

    @initialize(nodes=st.integers(1, 3))
    def begin(self, nodes: int) -> None:
        self.ids = (b"%d" % n for n in count(1))
        self.pool, self.pool_at = Pool(W1, 0), 1
        self.grants: dict[int, tuple[Grant | None, int]] = dict.fromkeys(range(nodes), (None, 0))
        self.revisions = count(2)
        self.ledgers = {n: Ledger(W1) for n in range(nodes)}
        self.records = dict.fromkeys(range(nodes), (b"", 0))
        self.answered: dict[Window, int] = {W1: 0, W2: 0}
        self.late: list[tuple[int, Plan, int, int, Window]] = []
        self.window = W1

    def node(self, n: int) -> int:
        return n % len(self.ledgers)

    def send(self, node: int, planned: Plan, pool_at: int, grant_at: int, window: Window) -> bool:
        current = self.grants[node][1] if window == self.pool.window else grant_at
        fits = pool_at == self.pool_at and (current == grant_at)
        if not fits:
            return False
        if planned.window != self.pool.window:
            self.grants = dict.fromkeys(self.grants, (None, 0))
        self.pool, self.pool_at = planned.pool, next(self.revisions)
        self.grants[node] = (planned.grant, self.pool_at if planned.grant else 0)
        return True

    @rule(
        n=st.integers(0, 2),
        needs=st.lists(st.integers(1, 9), max_size=3),
        aim=st.integers(0, 12),
        fate=st.sampled_from(["fine", "fine", "fine", "reply", "request", "late"]),
        during=st.integers(0, 4),
        keep=st.booleans(),
    )
    def adjust(
        self, n: int, needs: list[int], aim: int, fate: str, during: int, keep: bool
    ) -> None:
        node = self.node(n)
        ledger = self.ledgers[node]
        pool = self.pool.at(self.window)
        same = pool.window == self.pool.window
        grant, grant_at = self.grants[node] if same else (None, 0)
        if keep and grant is not None and grant.amount > ledger.used:
            needs, aim = [grant.amount - ledger.used], 0
        planned = ledger.plan(
            pool,
            grant,
            policy_limit=self.LIMIT,
            needs=needs,
            target=min(aim, pool.remaining(self.LIMIT)),
            new_id=next(self.ids),
        )
        assert planned.pool.granted <= self.LIMIT
        if not planned.changes:
            ledger.applied(planned)
            return
        ledger.sending(planned)
        sent = (node, planned, self.pool_at, grant_at, pool.window)
        for _ in range(during):
            self.spend(node, 1)
        if fate == "late":
            self.late.append(sent)
        if fate in ("fine", "reply") and self.send(*sent) and fate == "fine":
            ledger.applied(planned)

    @rule(n=st.integers(0, 2), amount=st.integers(1, 6))
    def spend(self, n: int, amount: int) -> None:
        node = self.node(n)
        ledger = self.ledgers[node]
        if ledger.unspent >= amount:
            ledger.spend(amount)
            self.records[node] = (ledger.grant_id, ledger.spent)
            self.answered[ledger.window] += amount

    @rule(n=st.integers(0, 2), amount=st.integers(1, 6), used=st.integers(0, 6))
    def hold(self, n: int, amount: int, used: int) -> None:
        """Hold an amount, or settle what is held."""
        ledger = self.ledgers[self.node(n)]
        if "r" in ledger.held:
            used = min(used, ledger.held["r"])
            ledger.settle("r", used)
            self.records[self.node(n)] = (ledger.grant_id, ledger.spent)
            self.answered[ledger.window] += used
        elif ledger.unspent >= amount:
            ledger.hold("r", amount)
            self.records[self.node(n)] = (ledger.grant_id, ledger.spent)

    @rule(n=st.integers(0, 2))
    def crash(self, n: int) -> None:
        node = self.node(n)
        grant_id, spent = self.records[node]
        old = self.ledgers[node]
        held = old.held if grant_id == old.grant_id else {}
        self.ledgers[node] = Ledger(old.window, grant_id, spent=spent, held=dict(held))

    @precondition(lambda self: self.late)
    @rule()
    def deliver(self) -> None:
        for sent in self.late:
            self.send(*sent)
        self.late.clear()

    @rule(n=st.integers(0, 2))
    def forfeit(self, n: int) -> None:
        node = self.node(n)
        self.grants[node] = (None, 0)

    @rule()
    def next_window(self) -> None:
        self.window = W2

    @invariant()
    def nobody_overspends(self) -> None:
        for spent in self.answered.values():
            assert spent <= self.LIMIT
        assert self.answered[self.pool.window] <= self.pool.granted
        believed = sum(
            ledger.unspent for ledger in self.ledgers.values() if ledger.window == self.pool.window
        )
        assert self.answered[self.pool.window] + believed <= self.pool.granted


TestOverspend = Overspend.TestCase
TestOverspend.settings = settings(max_examples=250, stateful_step_count=40, deadline=None)
