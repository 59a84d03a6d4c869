"""Real roostd processes: one or several regions over delay proxies, gone when the test ends."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from roostd.demo.regions import Regions

from .faulty_daemon import SOAK, why_not_struck
from .node_kit import Node, neighbours

Start = Callable[..., Awaitable[Regions]]
TIMEOUT_S = 0 if SOAK else 600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What hangs is ended; how long these tests take is the machine's business."""
    for item in items:
        if item.path.parent == Path(__file__).parent and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))


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


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Node, Node]]:
    """Two nodes that are neighbours, configured."""
    if reason := why_not_struck():
        pytest.skip(reason)
    eu, us = neighbours(tmp_path, ("eu", "us"))
    with ExitStack() as stack:
        for node in (eu, us):
            stack.callback(node.stop)
        yield eu, us


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MB, if this user may mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(path)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)
