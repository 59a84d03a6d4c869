"""Clients of linearizable keys on several nodes, over wires that can lose."""

from __future__ import annotations

import random
from typing import Any

from faulty_wire import POLICIES, Hosting, Wire, now_ms_of
from volatile_table import Disk

from roost_crdt.limits import Limits
from roostd.node.linear import Linear

BASE_MS = 1_800_000_000_000
DEADLINE_MS = 2_000


class Client:
    """A node's linearizable keys, and the wire beneath them."""

    def __init__(
        self, hosting: Hosting, seed: int = 1, *, chance: float = 0.0, skew_ms: int = 0
    ) -> None:
        self.wire = Wire(hosting, random.Random(seed), chance)
        self.hosting = hosting
        self.disk = Disk()
        self.now_ms = now_ms_of(hosting, BASE_MS + skew_ms)
        self.remote = self.wire.remote(self.disk)
        self.policies = POLICIES
        self.linear = Linear(
            self.remote,
            policies=lambda: self.policies,
            now_ms=self.now_ms,
            random=random.Random(seed).random,
            deadline_ms=DEADLINE_MS,
            limits=Limits(value_bytes_max=1_000),
        )


async def clients(n: int = 1, **of: Any) -> list[Client]:
    hosting = Hosting()
    await hosting.start()
    return [Client(hosting, seed, **of) for seed in range(1, n + 1)]
