"""A redis-server of its own, for tests that compare with it."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from api_node import Client
from ports import free_port


@contextlib.asynccontextmanager
async def running_redis(place: Path) -> AsyncIterator[Client]:
    """A connection to a new server without data; the test is skipped if there is no binary."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("redis-server is not installed: nothing to compare with")
    port = free_port()
    process = subprocess.Popen(
        [binary, "--port", str(port), "--save", "", "--dir", str(place)],
        stdout=subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(OSError):
                    redis = await Client.connect(port)
                    break
                await asyncio.sleep(0.05)
        yield redis
        await redis.close()
    finally:
        process.terminate()
        process.wait(60)
