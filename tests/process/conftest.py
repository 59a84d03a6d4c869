"""Real roostd processes: one or several regions over delay proxies, gone when the test ends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest_asyncio

from roostd.demo.regions import Regions

Start = Callable[..., Awaitable[Regions]]


@pytest_asyncio.fixture
async def start() -> AsyncIterator[Start]:
    """Start regions by name: `regions = await start("eu", "us")`."""
    started: list[Regions] = []

    async def start_regions(*names: str) -> Regions:
        regions = Regions(names)
        started.append(regions)
        await regions.start()
        return regions

    yield start_regions
    for regions in started:
        await regions.close()
