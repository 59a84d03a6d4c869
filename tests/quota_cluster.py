"""Nodes that spend of shared quotas, with disks that forget and wires that lose."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from typing import Any, TypeVar

from faulty_wire import POLICIES, Hosting, Wire, now_ms_of
from volatile_table import Disk

from roost_crdt.errors import Exhausted
from roost_crdt.grants import Grant, Pool, Window, window_at
from roost_crdt.limits import DEFAULT_LIMITS, Limits
from roostd.node.quotas import Quotas

_T = TypeVar("_T")
BASE_MS = 1_800_000_000_000 - 1_800_000_000_000 % 86_400_000
"""The beginning of a day."""
DEADLINE_MS = 2_000
KEY = b"usage_quota:u"


class Node:
    """One node's quotas. `crash` and `start` make lives of it on the same disks."""

    def __init__(
        self,
        name: str,
        hosting: Hosting,
        *,
        seed: int = 1,
        nodes: int = 3,
        limits: Limits = DEFAULT_LIMITS,
        skew_ms: int = 0,
    ) -> None:
        self.name = name
        self.rng = random.Random(f"{name}{seed}")
        self.wire = Wire(hosting, self.rng)
        self.spends, self.outbox = Disk(), Disk()
        self.nodes = nodes
        self.limits = limits
        self.actor = self.rng.getrandbits(63)
        self.now_ms = now_ms_of(hosting, BASE_MS + skew_ms)
        self.policies = POLICIES
        self.quotas = self._quotas()
        self.calls: set[asyncio.Task[Any]] = set()
        self.peers: dict[str, Node] = {}

    def _quotas(self) -> Quotas:
        return Quotas(
            self.wire.remote(self.spends),
            spends=self.spends.table(),
            outbox=self.outbox.table(),
            policies=lambda: self.policies,
            node_id=self.name,
            actor=lambda: self.actor,
            now_ms=self.now_ms,
            random=self.rng.random,
            random_bytes=self.rng.randbytes,
            nodes=lambda: self.nodes,
            deadline_ms=DEADLINE_MS,
            limits=self.limits,
            forward=self._forward,
        )

    async def _forward(self, node: str, method: str, args: dict[str, Any], _: int) -> Any:
        return await self.peers[node].quotas.handlers()[method](self.name, args)

    async def start(self) -> None:
        await self.quotas.start()

    async def crash(self, *, lost: bool = False) -> None:
        """Die as by kill -9 with a power cut: what was not durable is gone.

        `lost` means that the next life cannot know whether something was lost: a new actor.
        """
        for task in self._tasks():
            task.cancel()
        self.spends.crash()
        self.outbox.crash()
        if lost:
            self.actor = self.rng.getrandbits(63)
        self.quotas = self._quotas()
        await self.start()

    def _tasks(self) -> list[asyncio.Task[Any]]:
        """All that this life has begun."""
        old = self.quotas
        ticking = [] if old._ticking is None else [old._ticking]
        return [*ticking, *old._running.values(), *old._spending._tasks, *self.calls]

    def call(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """Begin something that a crash ends: then it is cancelled, and its outcome unknown."""
        task = asyncio.get_running_loop().create_task(work)
        self.calls.add(task)
        task.add_done_callback(self.calls.discard)
        return task

    def skip(self, ms: int) -> None:
        """Move every node's wall clock on."""
        self.wire.hosting.skipped_ms += ms

    async def stop(self) -> int:
        return await self.quotas.stop()


async def cluster(nodes: int = 1, **of: Any) -> list[Node]:
    hosting = Hosting()
    await hosting.start()
    made = [Node(f"n{n}", hosting, nodes=nodes, **of) for n in range(nodes)]
    for node in made:
        node.peers = {peer.name: peer for peer in made}
        await node.start()
    return made


def pool_of(hosting: Hosting, key: bytes = KEY) -> Pool | None:
    """The pool, read past everything from the host's disk."""
    stored = hosting.disk.seen.get(b"dq/" + key)
    return None if stored is None else Pool.decode(stored[12:])


def grants_of(hosting: Hosting, key: bytes = KEY) -> list[Grant]:
    return [
        Grant.decode(stored[12:])
        for stored_key, stored in sorted(hosting.disk.seen.items())
        if stored_key.startswith(b"dg/" + key + b"\0")
    ]


def window_of(node: Node) -> Window:
    return window_at("day", node.now_ms())


async def spend_all(node: Node, n: int = 1, key: bytes = KEY) -> int:
    """Spend until it is exhausted; how much it was."""
    total = 0
    while True:
        try:
            await node.quotas.spend(key, n)
        except Exhausted:
            return total
        total += n
