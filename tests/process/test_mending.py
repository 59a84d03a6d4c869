"""Bits turned in the index of a stopped daemon: its keys come back from its neighbour by
themselves; neither the daemon nor a client that reads the file itself ever shows anything else."""

from __future__ import annotations

import asyncio
import json
import random
import time
import urllib.request
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

import roost
from roost import RoostError
from roostd import pages
from roostd.demo.regions import Region

from .conftest import Start

KEYS = 300
FLIPS = 5


def cluster(region: Region) -> dict[str, Any]:
    with urllib.request.urlopen(f"{region.http_url}/v1/cluster", timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


async def write(region: Region) -> dict[str, str]:
    client = Redis.from_url(region.url)
    wanted = {f"model_router_weights:{n}": f"value {n} ".ljust(80, "x") for n in range(KEYS)}
    pipe = client.pipeline(transaction=False)
    for key, value in wanted.items():
        pipe.set(key, value)
    assert all(await pipe.execute())
    await client.aclose()
    return wanted


async def agree(a: Region, b: Region) -> None:
    for _ in range(1_200):
        one, two = await asyncio.to_thread(cluster, a), await asyncio.to_thread(cluster, b)
        vectors = one["version_vector"] == two["version_vector"]
        if vectors and one["digest"] == two["digest"] and one["version_vector"]:
            return
        await asyncio.sleep(0.1)
    pytest.fail("the two never agree")


def flip(region: Region, rng: random.Random) -> None:
    """Turn a bit in several pages that hold rows."""
    path = region.folder / "data" / "index" / "data.mdb"
    with pages.PageFile(path) as file:
        walk = pages._Walk(file, file.newest(), lambda done, total: None)
        rows = pages.named_trees(file, file.newest())[b"rows"]
        leaves = sorted({page for page, _ in walk.entries(rows, b"rows")})
    data = bytearray(path.read_bytes())
    for page in rng.sample(leaves, FLIPS):
        used = [at for at in range(page * 4096, page * 4096 + 4096) if data[at]]
        data[rng.choice(used)] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


async def daemons_answers(region: Region, wanted: dict[str, str]) -> int:
    """How many keys are as they were; the others are refused."""
    client = Redis.from_url(region.url)
    right = 0
    for key, value in wanted.items():
        try:
            shown = await client.get(key)
        except RedisError:
            continue
        assert shown == value.encode(), key
        right += 1
    await client.aclose()
    return right


def clients_answers(client: roost.Client, wanted: dict[str, str]) -> int:
    """The same through shared memory."""
    right = 0
    for key, value in wanted.items():
        try:
            shown = client.get(key)
        except RoostError:
            continue
        assert shown.value == value, key
        right += 1
    return right


@pytest.mark.parametrize("seed", [1, 2])
async def test_flipped_bits_are_mended_from_the_neighbour(start: Start, seed: int) -> None:
    regions = await start("eu", "us")
    eu, us = regions["eu"], regions["us"]
    wanted = await write(eu)
    await agree(eu, us)
    await regions.kill("us")
    flip(us, random.Random(seed))
    await regions.launch("us")
    with roost.connect(us.url) as client:
        began = time.monotonic()
        while True:
            seen = await asyncio.to_thread(clients_answers, client, wanted)
            told = await daemons_answers(us, wanted)
            if seen == told == KEYS and not cluster(us)["store"]["suspect_buckets"]:
                break
            assert time.monotonic() - began < 300, (seen, told, cluster(us)["store"])
            await asyncio.sleep(0.1)
        while client.get(key := next(iter(wanted))).source != "mmap":
            assert time.monotonic() - began < 300, f"{key} is not read from the file any more"
            await asyncio.sleep(0.1)
    await agree(eu, us)
