"""durability = "standby": what was acknowledged outlives the store of the node that took it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis import exceptions
from redis.asyncio import Redis

from roost import RoostError, aio
from roostd.demo.regions import Region, Regions

from .conftest import Start

PATIENT_S = 120
LATE_S = 15.0
NOT_NOW = ("UNAVAILABLE", "UNKNOWNOUTCOME")
PIPED = 500
"""Commands of a pipeline: so many round trips of 80 ms take far longer than any machine does."""
POLICIES = """
[orders]
readers = "cross-session"
stale_read_cost = "annoying"
type = "register"
durability = "standby"
[visits]
readers = "cross-session"
stale_read_cost = "annoying"
type = "counter"
durability = "standby"
[notes]
readers = "cross-session"
stale_read_cost = "annoying"
type = "map"
"""


def http(region: Region, key: str, body: dict[str, Any], method: str = "PUT") -> tuple[int, Any]:
    request = urllib.request.Request(
        f"{region.http_url}/v1/keys/{key}",
        data=json.dumps(body).encode(),
        method=method,
        headers={"content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


async def linked(regions: Regions) -> None:
    """Wait until the first region's writes find a standby."""
    client = Redis.from_url(regions["eu"].url)
    async with asyncio.timeout(PATIENT_S):
        while True:
            try:
                await client.set("orders:link", "1")
                break
            except exceptions.ResponseError as error:
                assert any(code in str(error) for code in NOT_NOW), error  # noqa: PT017 - any other is a fault
                await asyncio.sleep(0.05)
    await client.aclose()


async def lost(regions: Regions, name: str) -> None:
    """The host is gone, its disk too."""
    await regions.kill(name)
    shutil.rmtree(regions[name].folder / "data")


class Insists:
    """Repeats what is refused, or not known to be elsewhere: a machine that stands still for a
    second loses its neighbour."""

    def __init__(self) -> None:
        self.unknown = 0

    async def __call__(self, write: Callable[[], Awaitable[Any]]) -> Any:
        async with asyncio.timeout(PATIENT_S):
            while True:
                try:
                    return await write()
                except (exceptions.ResponseError, RoostError) as error:
                    said = f"{getattr(error, 'code', '')} {error}"
                    assert any(code in said for code in NOT_NOW), said
                    self.unknown += NOT_NOW[1] in said
                await asyncio.sleep(0.05)


async def test_an_acknowledged_write_outlives_the_writers_store(start: Start) -> None:
    regions = await start("eu", "us", policies=POLICIES)
    eu, us = regions["eu"], regions["us"]
    await linked(regions)
    client = Redis.from_url(eu.url, decode_responses=True)

    insist = Insists()
    began = time.monotonic()
    await insist(lambda: client.set("orders:1", "one"))
    one_ms = (time.monotonic() - began) * 1000
    assert one_ms >= 70, f"{one_ms:.0f} ms: no round trip to the other region (80 ms) was waited"

    async def piped() -> float:
        pipe = client.pipeline(transaction=False)
        for number in range(PIPED):
            pipe.set(f"orders:p{number}", str(number))
        began = time.monotonic()
        await pipe.execute()
        return (time.monotonic() - began) * 1000

    took_ms = await insist(piped)
    assert took_ms < PIPED * 80 / 2, "each command of a pipeline waits for itself"

    async def transact() -> None:
        async with client.pipeline(transaction=True) as transaction:
            transaction.set("orders:tx", "both")
            transaction.hset("notes:tx", "a", "b")
            await transaction.execute()

    await insist(transact)
    counts = Insists()
    await asyncio.gather(*(counts(lambda: client.incr("visits:all")) for _ in range(50)))
    status, body = await asyncio.to_thread(http, eu, "orders:http", {"value": "web"})
    while status != 200 and body["code"] in NOT_NOW:
        status, body = await asyncio.to_thread(http, eu, "orders:http", {"value": "web"})
    assert (status, body["durable"]) == (200, True), body
    async with aio.connect(eu.url, mmap=False, deadline_ms=30_000) as sdk:
        ack = await insist(lambda: sdk.set("orders:sdk", "app"))
        assert ack.durable
        sevens = Insists()
        assert (await sevens(lambda: sdk.incr("visits:all", 7))).durable
    await lost(regions, "eu")
    await client.aclose()

    other = Redis.from_url(us.url, decode_responses=True)
    assert await other.get("orders:1") == "one"
    assert await other.get("orders:http") == "web"
    assert await other.get("orders:sdk") == "app"
    assert await other.get("orders:tx") == "both"
    assert await other.hget("notes:tx", "a") == "b"
    assert await other.mget([f"orders:p{n}" for n in range(PIPED)]) == [
        str(n) for n in range(PIPED)
    ]
    counted = int(await other.get("visits:all") or 0)
    assert 57 <= counted <= 57 + counts.unknown + 7 * sevens.unknown
    await other.aclose()


async def test_killed_in_the_middle_every_answered_write_is_elsewhere(start: Start) -> None:
    regions = await start("eu", "us", policies=POLICIES)
    await linked(regions)
    answered: list[str] = []

    async def write(number: int) -> None:
        client = Redis.from_url(regions["eu"].url)
        turn = 0
        try:
            while True:
                turn += 1
                with contextlib.suppress(exceptions.ResponseError):
                    await client.set(f"orders:{number}-{turn}", "x")
                    answered.append(f"orders:{number}-{turn}")
        except (exceptions.RedisError, OSError, EOFError):
            pass
        finally:
            await client.aclose()

    load = [asyncio.create_task(write(number)) for number in range(20)]
    while len(answered) < 60:
        await asyncio.sleep(0.02)
    await lost(regions, "eu")
    await asyncio.gather(*load)
    other = Redis.from_url(regions["us"].url)
    missing = [key for key in answered if await other.get(key) is None]
    assert not missing
    await other.aclose()


async def test_without_a_standby_it_is_refused_or_unknown_within_the_deadline(start: Start) -> None:
    regions = await start("eu", "us", policies=POLICIES)
    eu = regions["eu"]
    await linked(regions)
    client = Redis.from_url(eu.url, decode_responses=True)

    # The link falls silent: the write is durable here, and nobody says so elsewhere. Where the
    # machine stood still, the neighbour is known to be down before the write comes: once more.
    for _ in range(10):
        await regions.cut("eu", "us")
        began = time.monotonic()
        with pytest.raises(exceptions.ResponseError) as refused:
            await client.set("orders:2", "two")
        took_s = time.monotonic() - began
        assert took_s < LATE_S
        if "UNKNOWNOUTCOME" in str(refused.value) and took_s < 2.0:
            break
        assert any(code in str(refused.value) for code in NOT_NOW), refused.value
        await regions.heal("eu", "us")
        await linked(regions)
    else:
        pytest.fail(f"the last try: {took_s} s, {refused.value}")
    assert "orders:2 is on disk here" in str(refused.value)
    assert await client.get("orders:2") == "two"

    # Once the neighbour is known to be down, nothing is written at all.
    async with asyncio.timeout(PATIENT_S):
        while True:
            status, body = await asyncio.to_thread(http, eu, "orders:3", {"value": "three"})
            if body["code"] == "UNAVAILABLE":
                break
            assert body["code"] == "UNKNOWNOUTCOME", body
    assert status == 503
    assert "nothing was written" in body["detail"]
    with pytest.raises(exceptions.ResponseError, match=r"UNAVAILABLE.*orders:4"):
        await client.set("orders:4", "four")
    assert await client.get("orders:4") is None
    async with aio.connect(eu.url, mmap=False) as sdk:
        with pytest.raises(RoostError) as caught:
            await sdk.set("orders:4", "four")
    assert caught.value.code == "UNAVAILABLE"
    assert caught.value.retry_after_ms
    await client.hset("notes:1", "disk", "goes on")  # type: ignore[misc] # redis-py's own union

    await regions.heal("eu", "us")
    await linked(regions)
    other = Redis.from_url(regions["us"].url, decode_responses=True)
    assert await other.get("orders:2") == "two", "an unknown one arrives all the same"
    await other.aclose()
    await client.aclose()
