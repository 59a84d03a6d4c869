"""Real roostd processes: one or several regions over delay proxies, gone when the test ends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest_asyncio

from roostd.demo.regions import Regions

POLICIES = """
[visits]
readers = "cross-session"
stale_read_cost = "annoying"
type = "counter"
[tags]
readers = "cross-session"
stale_read_cost = "annoying"
type = "set"
[profile]
readers = "cross-session"
stale_read_cost = "annoying"
type = "map"
"""
"""Put at the end of a daemon's policies.toml."""

Start = Callable[..., Awaitable[Regions]]


@pytest_asyncio.fixture
async def start() -> AsyncIterator[Start]:
    """Start regions by name: `regions = await start("eu", "us")`; options are those of Regions."""
    started: list[Regions] = []

    async def start_regions(*names: str, **options: Any) -> Regions:
        regions = Regions(names, **options)
        started.append(regions)
        await regions.start()
        return regions

    yield start_regions
    for regions in started:
        await regions.close()
