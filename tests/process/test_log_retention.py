"""How long the log is kept for a neighbour: until it holds the records, up to bytes and age."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import time
import urllib.request
from typing import Any

from redis.asyncio import Redis

from roostd.demo.regions import Region

from .conftest import Start

MIB = 1 << 20
RETENTION = 4 * MIB
RESERVE = RETENTION // 4
VALUE = 10_000
KEYS = 40
SEGMENT = MIB


def log_bytes(region: Region) -> int:
    """Bytes of the log's segments, one made ahead among them at times."""
    total = 0
    for path in segments(region):
        with contextlib.suppress(FileNotFoundError):  # dropped meanwhile
            total += path.stat().st_size
    return total


def segments(region: Region) -> list[Any]:
    return sorted((region.folder / "data" / "log").glob("*.seg"))


def cluster(region: Region) -> dict[str, Any]:
    with urllib.request.urlopen(f"{region.http_url}/v1/cluster", timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


async def write(region: Region, size: int) -> int:
    """Overwrite a few keys until so many bytes are in the log; how many records."""
    client = Redis.from_url(region.url)
    count = size // VALUE
    left = list(range(count))
    while left:
        pipe, first = client.pipeline(transaction=False), left[:50]
        for number in first:
            pipe.set(f"model_router_weights:{number % KEYS}", f"{number}".ljust(VALUE, "x"))
        answers = await pipe.execute(raise_on_error=False)
        assert all(answer is True or "BUSY" in str(answer) for answer in answers), answers
        busy = [n for n, answer in zip(first, answers, strict=True) if answer is not True]
        left = busy + left[50:]
        if busy:
            await asyncio.sleep(0.05)
    await client.aclose()
    return count


async def until(what: str, holds: Any, seconds: float = 120) -> None:
    began = time.monotonic()
    while not await asyncio.to_thread(holds):
        assert time.monotonic() - began < seconds, what
        await asyncio.sleep(0.1)


async def agree(a: Region, b: Region) -> None:
    def equal() -> bool:
        one, two = cluster(a), cluster(b)
        vectors = one["version_vector"] == two["version_vector"]
        return bool(vectors and one["digest"] == two["digest"])

    await until("the two never agree", equal)


def received(region: Region) -> int:
    """Records that came over the region's links since it started."""
    return sum(link["received"] for link in cluster(region)["links"])


async def test_the_log_is_kept_for_a_neighbour_up_to_its_bounds(start: Start) -> None:
    regions = await start("eu", "us")
    eu, us = regions["eu"], regions["us"]
    for name in ("eu", "us"):
        await regions.kill(name)
        config = regions[name].folder / "roost.toml"
        text = config.read_text().replace('"256MiB"', '"16MiB"').replace('"64MiB"', '"4MiB"')
        config.write_text(text)
        shutil.rmtree(regions[name].folder / "data")
        await regions.launch(name)

    # All hold all: a quarter is enough, though the bound is four times that.
    await write(eu, 7 * MIB // 2)
    await agree(eu, us)
    await until("kept for nobody", lambda: log_bytes(eu) <= RESERVE + 2 * SEGMENT)

    # Away: kept for it, and streamed when it is back.
    await regions.kill("us")
    count = await write(eu, 3 * MIB)
    await asyncio.sleep(3)
    assert log_bytes(eu) >= 3 * MIB, "dropped before the neighbour had it"
    await regions.launch("us")
    await agree(eu, us)
    assert received(us) >= count * 9 // 10, "it came as a snapshot"

    # Away for longer than the bound by bytes: the log stays below it, a snapshot follows.
    await regions.kill("us")
    count = await write(eu, 9 * MIB)
    await until("over its bound", lambda: log_bytes(eu) <= RETENTION + 2 * SEGMENT)
    await regions.launch("us")
    await agree(eu, us)
    assert received(us) < count // 2, "it came record by record"

    # Away for longer than the bound by age: the same.
    await regions.kill("us")
    count = await write(eu, 5 * MIB // 2)
    long_ago = time.time() - 8 * 86_400

    def forgotten() -> bool:
        for path in segments(eu)[:-2]:  # again and again: a full one is still being sealed
            with contextlib.suppress(FileNotFoundError):
                os.utime(path, (long_ago, long_ago))
        return log_bytes(eu) <= RESERVE + 2 * SEGMENT

    await until("older than its bound", forgotten)
    await regions.launch("us")
    await agree(eu, us)
    assert received(us) < count, "it came record by record"
