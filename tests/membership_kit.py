"""Nodes of the simulator without faults: what membership does over stores and links."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from random import Random

from roost_crdt import values
from roost_crdt.limits import Limits
from roost_crdt.rows import counter, register
from roost_crdt.rows.layout import TYPE_COUNTER, TYPE_REGISTER
from roost_sim.disk import Disk
from roost_sim.loop import START_MS
from roost_sim.node import Node
from roost_sim.run import LIMITS, Plan, Run
from roost_sim.store import Store

NOW = START_MS


def open_store(disk: Disk | None = None, seed: int = 1) -> Store:
    """A store without a node; given its disk, as it is after a crash."""
    return Store(
        Disk() if disk is None else disk,
        now_ms=NOW,
        random_bytes=Random(seed).randbytes,
        step=lambda what: None,
    )


def put(store: Store, key: bytes, value: bytes) -> None:
    stamp = store.stamp(NOW)
    delta = register.put(store.key_rows(key).rows, value, stamp)
    store.commit(stamp, [(key, TYPE_REGISTER, delta)])


def incr(store: Store, key: bytes, by: int) -> None:
    stamp = store.stamp(NOW)
    delta = counter.add(store.key_rows(key).rows, by, stamp, NOW)
    store.commit(stamp, [(key, TYPE_COUNTER, delta)])


def value(store: Store, key: bytes) -> object:
    return values.register_value(store.key_rows(key).rows, NOW)


def count(store: Store, key: bytes) -> int | None:
    return values.counter_value(store.key_rows(key).rows, NOW)


class Cluster:
    """Nodes in a line, or linked as told; virtual time passes in `wait` and `until` only."""

    def __init__(self, *names: str, limits: Limits = LIMITS, lines: bool = True) -> None:
        self.run = Run(0, keep_trace=True)
        self.run.plan = Plan("line", 0, 0.0, 0.0, 0, 0, 0.0, {})
        self.run.world.limits = limits
        for name in names:
            self.run.join(name, ())
        for a, b in pairwise(names) if lines else ():
            self.neighbours(a, b)
        for name in names:
            self.run.start(name)

    def __getitem__(self, name: str) -> Node:
        return self.run.nodes[name]

    def neighbours(self, a: str, b: str) -> None:
        """Both are configured; the first dials."""
        for name, peer, dials in ((a, b, True), (b, a, False)):
            self[name].neighbours[peer] = dials
            if self[name].life is not None:
                self[name].links.dial_later(peer, first=True)

    def add(self, name: str, *neighbours: str) -> Node:
        node = self.run.join(name, ())
        for other in neighbours:
            self.neighbours(name, other)
        self.run.start(name)
        return node

    def wait(self, time_ms: float) -> None:
        loop = self.run.world.loop
        loop.run_until(loop.now_ms + time_ms)

    def until(self, condition: Callable[[], object], within_ms: float = 20_000) -> None:
        ends_ms = self.run.world.loop.now_ms + within_ms
        while not condition():
            assert self.run.world.loop.now_ms < ends_ms, "\n".join(self.run.trace.lines)
            self.wait(20)

    def same(self, *names: str) -> bool:
        """Whether these (or all that run) hold the same."""
        chosen = names or tuple(name for name, node in self.run.nodes.items() if node.life)
        return len({str(sorted(self[name].store.vv.items())) for name in chosen}) == 1

    def entered(self, name: str) -> set[str]:
        return set(self[name].membership.members.roster.members)

    def put(self, name: str, key: bytes, value: bytes | None) -> None:
        node = self[name]
        stamp = node.store.stamp(node.wall_ms())
        rows = node.rows(key)
        delta = register.delete(rows, stamp) if value is None else register.put(rows, value, stamp)
        node.write(key, TYPE_REGISTER, delta, stamp)

    def shown(self, name: str, key: bytes) -> object:
        return values.register_value(self[name].rows(key), self[name].wall_ms())

    def cut(self, *pairs: tuple[str, str]) -> None:
        for a, b in pairs:
            self.run.world.network.block(a, b)
            self.run.world.network.block(b, a)

    def heal(self) -> None:
        for source, target in sorted(self.run.world.network.cut):
            self.run.world.network.heal(source, target)
