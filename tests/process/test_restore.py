"""A lost region is restored from a backup beside its living peer: nothing comes back twice, what
was written since the backup returns, what was erased since stays erased."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from redis.asyncio import Redis

from roost import NoSession, Unavailable, aio
from roostd.cli.main import main
from roostd.demo.regions import Regions

from .conftest import Start
from .faulty_daemon import POLICIES

PATIENT_S = 120


def roost(*args: str, status: int = 0) -> Any:
    done = CliRunner().invoke(main, [*args, "--json"])
    assert done.exit_code == status, done.output
    return json.loads(done.stdout) if done.stdout else None


async def region_status(regions: Regions, name: str) -> dict[str, Any]:
    return await asyncio.to_thread(roost, "status", "--url", regions[name].url)


async def settled(regions: Regions, *names: str) -> list[dict[str, Any]]:
    """Wait until all regions hold the same."""
    async with asyncio.timeout(PATIENT_S):
        while True:
            found = [await region_status(regions, name) for name in names]
            vectors = [{a: h for a, h in one["version_vector"].items() if h} for one in found]
            equal = all(v == vectors[0] for v in vectors) and len({f["digest"] for f in found}) == 1
            if equal and all(link["state"] == "up" for one in found for link in one["links"]):
                return found
            await asyncio.sleep(0.1)


async def turn(session: aio.Session, text: str) -> None:
    await session.commit([{"role": "user", "content": text}], on_conflict="append")


async def served(url: str, token: str) -> list[str]:
    """The session's messages, once the node serves it."""
    async with (
        aio.connect(url, mmap=False, deadline_ms=30_000) as client,
        asyncio.timeout(PATIENT_S),
    ):
        while True:
            try:
                session = await client.open(token)
                turns = await session.turns()
                return [message["content"] for message in turns.messages]
            except Unavailable:
                await asyncio.sleep(0.1)


async def standby_has(url: str, token: str, count: int) -> None:
    """Wait until a node that is not the session's home holds so many messages of it itself."""
    async with aio.connect(url, mmap=False, deadline_ms=30_000) as client:
        session = await client.open(token)
        async with asyncio.timeout(PATIENT_S):
            while True:
                turns = await session.turns()
                if turns.served_by == "replica" and len(turns.messages) >= count:
                    return
                await asyncio.sleep(0.05)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "eu.backup"


async def begin(start: Start) -> Regions:
    regions = await start("eu", "us")
    for name in ("eu", "us"):
        policies = regions[name].folder / "policies.toml"
        policies.write_text(policies.read_text() + POLICIES)
        await regions.kill(name)
    await asyncio.gather(*(regions.launch(name) for name in ("eu", "us")))
    await settled(regions, "eu", "us")
    return regions


async def lose_and_restore(regions: Regions, file: Path) -> None:
    await regions.kill("eu")
    data = regions["eu"].folder / "data"
    shutil.rmtree(data)
    done = await asyncio.to_thread(roost, "restore", str(file), str(data))
    assert done["warnings"] == []
    assert (await asyncio.to_thread(roost, "check", str(data)))["sound"]


async def test_beside_its_living_peer(start: Start, file: Path) -> None:
    regions = await begin(start)
    url = regions["eu"].url
    redis = Redis.from_url(url, decode_responses=True)
    async with aio.connect(url, mmap=False, deadline_ms=30_000) as client:
        for number in range(30):
            await redis.set(f"model_router_weights:{number}", "before")
            await redis.incr("visits:a")
        await redis.sadd("tags:x", "old")
        kept, erased = await client.open(), await client.open()
        for number in range(3):
            await turn(kept, f"turn {number}")
        await turn(erased, "secret")
        await settled(regions, "eu", "us")

        told = await asyncio.to_thread(roost, "backup", str(file), "--url", url)
        assert told["node"] == "eu-1"
        assert told["digest"] is not None
        before = await region_status(regions, "eu")

        for number in range(20):
            await redis.set(f"model_router_weights:{number}", "after")
            await redis.incr("visits:a")
            await redis.incr("visits:b")
        await redis.sadd("tags:x", "new")
        for number in range(3, 6):
            await turn(kept, f"turn {number}")
        await turn(kept, "the last one")
        later = await client.open()
        await turn(later, "a session of later")
        await client.open(erased.token)
        await erased.erase()
        await settled(regions, "eu", "us")
        await standby_has(regions["us"].url, kept.token, 7)
        await standby_has(regions["us"].url, later.token, 1)
    await redis.aclose()

    await lose_and_restore(regions, file)
    await regions.launch("eu")
    # The first answer has every turn: what the standby holds was taken in before.
    said = [*(f"turn {number}" for number in range(6)), "the last one"]
    assert await served(url, kept.token) == said
    eu, us = await settled(regions, "eu", "us")
    assert eu["actor"] != before["actor"]
    assert before["actor"] in eu["version_vector"]
    assert eu["digest"] == us["digest"]

    redis = Redis.from_url(url, decode_responses=True)
    values = [await redis.get(f"model_router_weights:{number}") for number in range(30)]
    assert values == ["after"] * 20 + ["before"] * 10
    assert int(await redis.get("visits:a") or 0) == 50
    assert int(await redis.get("visits:b") or 0) == 20
    assert await redis.smembers("tags:x") == {"old", "new"}
    assert await redis.incrby("visits:a", 7) == 57
    assert await redis.srem("tags:x", "old") == 1
    await redis.aclose()
    await settled(regions, "eu", "us")
    there = Redis.from_url(regions["us"].url, decode_responses=True)
    assert int(await there.get("visits:a") or 0) == 57
    assert await there.smembers("tags:x") == {"new"}
    await there.aclose()

    assert await served(url, later.token) == ["a session of later"]
    async with aio.connect(url, mmap=False, deadline_ms=30_000) as client:
        with pytest.raises(NoSession, match="erased"):
            await client.open(erased.token)
        session = await client.open(kept.token)
        await turn(session, "and on")
        assert session.epoch > kept.epoch
    assert await served(regions["us"].url, session.token) == [*said, "and on"]


async def test_no_session_is_served_before_the_neighbours_were_heard(
    start: Start, file: Path
) -> None:
    regions = await begin(start)
    url = regions["eu"].url
    async with aio.connect(url, mmap=False, deadline_ms=30_000) as client:
        erased = await client.open()
        await turn(erased, "secret")
        await asyncio.to_thread(roost, "backup", str(file), "--url", url)
        await standby_has(regions["us"].url, erased.token, 1)
        receipts = await erased.erase()
        assert {receipt["node"] for receipt in receipts} == {"eu-1", "us-1"}
    await regions.kill("us")
    await lose_and_restore(regions, file)
    await regions.launch("eu")
    async with aio.connect(url, mmap=False, deadline_ms=30_000) as client:
        for _ in range(3):
            with pytest.raises(
                Unavailable, match="restored from a backup and has not heard from us-1"
            ):
                await client.open(erased.token)
            with pytest.raises(Unavailable):
                await client.open()
        assert (await client.set("model_router_weights:k", 1)).durable
        # It is no different after a crash.
        await regions.kill("eu")
        await regions.launch("eu")
        with pytest.raises(Unavailable, match="us-1"):
            await client.open(erased.token)
        await regions.launch("us")
        async with asyncio.timeout(PATIENT_S):
            while True:
                try:
                    opened = await client.open()
                    break
                except Unavailable:
                    await asyncio.sleep(0.1)
        assert opened.turn == 0
        with pytest.raises(NoSession):
            await client.open(erased.token)
