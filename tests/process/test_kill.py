"""kill -9 of a daemon under load: whatever was acknowledged is there afterwards.

Invariants I1 and I4 of the fault model: an acknowledged write survives, a counter is the
acknowledged increments plus a subset of the unknown ones, each once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from redis import exceptions
from redis.asyncio import Redis

from roost import RoostError, aio
from roostd.demo.regions import Region

from .conftest import Start

ROUNDS = int(os.environ.get("ROOST_TEST_KILLS", "50"))
CLIENTS = 24
KEYS = 40
LOST = (exceptions.RedisError, OSError, EOFError, asyncio.IncompleteReadError)


@dataclass
class Acknowledged:
    """What the clients know: values answered ok, and what may or may not have been applied."""

    registers: dict[str, tuple[int, int]] = field(default_factory=dict)
    """key -> (highest value answered ok, highest value sent); values of a key only rise."""
    counters: dict[str, tuple[int, int]] = field(default_factory=dict)
    """key -> (increments answered ok, increments sent)"""
    members: dict[str, set[str]] = field(default_factory=dict)
    fields: dict[str, dict[str, str]] = field(default_factory=dict)
    turns: list[dict[str, Any]] = field(default_factory=list)


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


async def write(number: int, url: str, known: Acknowledged, stop: asyncio.Event) -> int:
    """One client: mixed writes until the daemon is gone; how many were answered ok."""
    done = 0
    client = Redis.from_url(url, decode_responses=True)
    chance = random.Random(number)
    try:
        while not stop.is_set():
            n = done + 1
            register = f"model_router_weights:{number}"
            counter = f"visits:{chance.randrange(KEYS)}"
            ok, sent = known.registers.get(register, (0, 0))
            known.registers[register] = (ok, sent + 1)
            await client.set(register, sent + 1)
            known.registers[register] = (sent + 1, sent + 1)
            ok, sent = known.counters.get(counter, (0, 0))
            known.counters[counter] = (ok, sent + 1)
            await client.incr(counter)
            ok, sent = known.counters[counter]
            known.counters[counter] = (ok + 1, sent)
            member = f"{number}-{os.urandom(4).hex()}"
            await client.sadd(f"tags:{number}", member)
            known.members.setdefault(f"tags:{number}", set()).add(member)
            await client.hset(f"profile:{number}", f"f{n % 7}", member)
            known.fields.setdefault(f"profile:{number}", {})[f"f{n % 7}"] = member
            done = n
    except LOST:
        pass
    finally:
        with contextlib.suppress(*LOST):
            await client.aclose()
    return done


async def converse(
    url: str, token: str | None, known: Acknowledged, stop: asyncio.Event
) -> str | None:
    """One session: turns until the daemon is gone; its newest token."""
    try:
        async with aio.connect(url, mmap=False, deadline_ms=5_000) as client:
            session = await client.open(token)
            token = session.token
            while not stop.is_set():
                message = {"role": "user", "content": os.urandom(6).hex()}
                await session.commit([message], on_conflict="append")
                token = session.token
                known.turns.append(message)
    except (RoostError, *LOST):
        pass
    return token


async def check(region: Region, known: Acknowledged, token: str | None) -> None:
    """Every acknowledged write is there."""
    client = Redis.from_url(region.url, decode_responses=True)
    for key, (ok, sent) in known.registers.items():
        found = int(await client.get(key) or 0)
        assert ok <= found <= sent, f"{key}: {found}, acknowledged {ok}, sent {sent}"
        known.registers[key] = (found, sent)
    for key, (ok, sent) in known.counters.items():
        found = int(await client.get(key) or 0)
        assert ok <= found <= sent, f"{key}: {found}, acknowledged {ok}, sent {sent}"
        known.counters[key] = (found, sent)
    for key, members in known.members.items():
        missing = members - set(await client.smembers(key))
        assert not missing, f"{key} lost {missing}"
    for key, fields in known.fields.items():
        found_fields = await client.hgetall(key)
        assert fields.keys() <= found_fields.keys(), f"{key} lost a field"
    await client.aclose()
    if token is None:
        return
    async with aio.connect(region.url, mmap=False, deadline_ms=5_000) as sdk:
        session = await sdk.open(token)
        messages = (await session.turns()).messages
    assert [m for m in known.turns if m not in messages] == []


@pytest.mark.timeout(6 * ROUNDS)
async def test_no_acknowledged_write_is_lost_by_kill_9(start: Start) -> None:
    regions = await start("eu")
    region = regions["eu"]
    policies = region.folder / "policies.toml"
    policies.write_text(policies.read_text() + POLICIES)
    await regions.kill("eu")
    await regions.launch("eu")
    known = Acknowledged()
    token: str | None = None
    written = 0
    chance = random.Random(7)
    for _round in range(ROUNDS):
        stop = asyncio.Event()
        load = [
            asyncio.create_task(write(number, region.url, known, stop)) for number in range(CLIENTS)
        ]
        talk = asyncio.create_task(converse(region.url, token, known, stop))
        await asyncio.sleep(chance.uniform(0.05, 0.4))
        await regions.kill("eu")
        stop.set()
        written += sum(await asyncio.gather(*load))
        token = await talk
        await regions.launch("eu")
        await check(region, known, token)
    assert written > ROUNDS * CLIENTS, "the load never reached the daemon"
    assert known.turns, "no turn was ever acknowledged"
