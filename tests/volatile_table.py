"""A table of the store with a disk that can lose what was not made durable."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Mapping

from roostd.consensus.base import Table


class DeadProcess(Exception):
    """A life that a crash has ended uses the disk."""


class Disk:
    """What survives a crash (`safe`) and what is written but not yet durable (`seen`)."""

    def __init__(self) -> None:
        self.safe: dict[bytes, bytes] = {}
        self.seen: dict[bytes, bytes] = {}
        self.puts = 0
        self.syncs = 0
        self.refuse: Exception | None = None
        self.stall: asyncio.Event | None = None
        self.life = 0

    def table(self) -> Table:
        """For one life: after a crash it raises DeadProcess."""
        life = self.life

        def put(items: Mapping[bytes, bytes | None]) -> int:
            self._check(life)
            return self.put(items)

        async def durable() -> None:
            self._check(life)
            await self.durable()
            self._check(life)

        return Table(get=self.get, scan=self.scan, put=put, durable=durable)

    def _check(self, life: int) -> None:
        if life != self.life:
            raise DeadProcess

    def get(self, key: bytes) -> bytes | None:
        return self.seen.get(key)

    def scan(self, prefix: bytes, after: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        keys = sorted(key for key in self.seen if key.startswith(prefix))
        start = bisect_right(keys, after) if after else 0
        return [(key, self.seen[key]) for key in keys[start : start + limit]]

    def put(self, items: Mapping[bytes, bytes | None]) -> int:
        if self.refuse is not None:
            raise self.refuse
        for key, value in items.items():
            if value is None:
                self.seen.pop(key, None)
            else:
                self.seen[key] = value
        self.puts += 1
        return self.puts

    async def durable(self) -> None:
        if self.stall is not None:
            await self.stall.wait()
        await asyncio.sleep(0)
        self.sync()

    def sync(self) -> None:
        self.safe = dict(self.seen)
        self.syncs += 1

    def crash(self) -> None:
        """Forget what is not durable. The same object is the disk of the next life."""
        self.life += 1
        self.seen = dict(self.safe)
