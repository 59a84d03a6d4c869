"""A cluster's way to a real embedded consensus, over a wire that loses, delays and repeats."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import Any

from volatile_table import DeadProcess, Disk

from roost_crdt.errors import RoostError, Unavailable, UnknownOutcome
from roost_crdt.limits import DEFAULT_LIMITS, Limits
from roost_crdt.policy import PolicyTable
from roostd.consensus.embedded import EmbeddedHost, EmbeddedRemote
from roostd.consensus.witness import Witness

__all__ = ["POLICIES", "Hosting", "Wire", "policies_of"]


def policies_of(text: str) -> PolicyTable:
    """A table of linearizable policies: the readers and costs are filled in."""
    head = 'readers = "cross-session"\nstale_read_cost = "incorrect"\n'
    filled = "".join(
        line + "\n" + (head if line.startswith("[") else "") for line in text.split("\n")
    )
    return PolicyTable.parse(filled, "policies.toml")


POLICIES = policies_of(
    """
[usage_quota]
type = "quota"
limit = 100
period = "day"
[billing]
type = "meter"
[flags]
type = "register"
[leases]
type = "register"
[hits]
type = "counter"
[money]
type = "counter"
float = true
"""
)


class Hosting:
    """The node that hosts consensus: its disk outlives its crashes."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self.disk = Disk()
        self.limits = limits
        self.host: EmbeddedHost | None = None
        self.skipped_ms = 0
        """By how much all wall clocks were moved on."""

    async def start(self) -> None:
        self.host = EmbeddedHost(
            self.disk.table(), random_bytes=random.Random(7).randbytes, limits=self.limits
        )
        await self.host.start()

    async def crash(self) -> None:
        self.disk.crash()
        await self.start()

    async def handle(self, method: str, args: dict[str, Any]) -> Any:
        assert self.host is not None
        try:
            return await self.host.handlers()[method]("peer", args)
        except DeadProcess:
            raise UnknownOutcome("the host died") from None


class Wire:
    """One node's calls to the host. `chance` says how often one is hurt, `pick` in which way.

    cut: not sent. request: lost on the way. reply: done, but the answer is lost. late: lost, and
    it arrives when `deliver` is called, whatever happened in between.
    """

    WAYS = ("cut", "request", "reply", "late")

    def __init__(self, hosting: Hosting, rng: random.Random, chance: float = 0.0) -> None:
        self.hosting = hosting
        self.rng = rng
        self.chance = chance
        self.script: list[str] = []
        self.late: list[tuple[str, dict[str, Any]]] = []
        self.calls: list[str] = []
        self.hurt: dict[str, int] = dict.fromkeys(self.WAYS, 0)
        self.delay_s = 0.0

    def remote(self, disk: Disk) -> EmbeddedRemote:
        return EmbeddedRemote(self.call, host="host", witness=Witness(disk.table()))

    async def call(self, method: str, args: dict[str, Any], deadline_ms: int) -> Any:
        self.calls.append(method)
        way = self._way()
        if way:
            self.hurt[way] += 1
        if way == "cut":
            raise Unavailable("no route to host")
        if self.delay_s:
            await asyncio.sleep(self.delay_s * self.rng.random())
        if way == "late":
            self.late.append((method, args))
        if way in ("request", "late"):
            raise UnknownOutcome("no answer")
        answer = await self.hosting.handle(method, args)
        if way == "reply":
            raise UnknownOutcome("no answer")
        if self.delay_s:
            await asyncio.sleep(self.delay_s * self.rng.random())
        return answer

    def _way(self) -> str:
        if self.script:
            return self.script.pop(0)
        return self.rng.choice(self.WAYS) if self.rng.random() < self.chance else ""

    async def deliver(self) -> None:
        """What was late arrives now."""
        late, self.late = self.late, []
        for method, args in late:
            with contextlib.suppress(RoostError):
                await self.hosting.handle(method, args)


def now_ms_of(hosting: Hosting, base_ms: int) -> Callable[[], int]:
    """A wall clock on the loop's time."""
    loop = asyncio.get_running_loop()
    return lambda: base_ms + hosting.skipped_ms + int(loop.time() * 1000)
