"""Linearizable keys from three regions: histories, quotas to the last unit, a host that is away."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import httpx
import pytest
import pytest_asyncio

from roost_sim.linearizability import NEVER, Operation, is_linearizable
from roostd.demo.regions import Regions

from .speaker import Refused, Speaker, speaking

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAMES = ("eu", "us", "ap")
DEADLINE_S = 2.0
LIMIT = 3_003
SPEND = 10
POLICIES = f"""
[leader]
readers = "cross-session"
stale_read_cost = "incorrect"
type = "register"
[seats]
readers = "cross-session"
stale_read_cost = "incorrect"
type = "counter"
[tokens]
readers = "cross-session"
stale_read_cost = "incorrect"
type = "quota"
limit = {LIMIT}
period = "24h"
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def speaker() -> AsyncIterator[Speaker]:
    async with speaking(Regions(NAMES, policies=POLICIES)) as speaker:
        yield speaker


def put(value: Any) -> Any:
    return lambda state: (value, None)


def read(state: Any) -> Any:
    return state, state


def add(by: int) -> Any:
    return lambda state: (state + by, state + by)


class History:
    """What clients asked and were told, with the times of both."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []

    async def run(self, asked: Any, step: Any, answer: Any) -> None:
        """Record one request; `answer` reads the reply. What was refused has changed nothing."""
        called = time.monotonic()
        try:
            told = answer(await asked)
        except (Refused, httpx.HTTPError) as error:
            code = getattr(error, "code", "UNKNOWNOUTCOME")
            if code == "UNKNOWNOUTCOME":
                self.operations.append(Operation(called, NEVER, step))
            elif code not in ("BUSY", "UNAVAILABLE"):
                raise
        else:
            self.operations.append(Operation(called, time.monotonic(), step, told))


async def insisted(ask: Any) -> Any:
    """The reply in the end: a request with an id is repeated until its outcome is known."""
    while True:
        try:
            return await ask()
        except Refused as error:
            if error.code not in ("BUSY", "UNAVAILABLE", "UNKNOWNOUTCOME"):
                raise


async def test_a_register_is_linearizable(speaker: Speaker) -> None:
    history, chance = History(), random.Random(3)

    async def client(region: str) -> None:
        for n in range(12):
            if chance.random() < 0.5:
                value = f"{region}-{n}"
                await history.run(
                    speaker.put(region, "leader:one", value), put(value), lambda _: None
                )
            else:
                asked = speaker.ask(region, "GET", "/v1/keys/leader:one")
                await history.run(asked, read, lambda reply: reply["value"])

    await speaker.put("eu", "leader:one", "first")
    await asyncio.gather(*(client(name) for name in (*NAMES, *NAMES)))
    assert len(history.operations) > 60
    assert is_linearizable(history.operations, "first")


async def test_a_counter_counts_each_increment_once(speaker: Speaker) -> None:
    history = History()

    async def client(region: str, number: int) -> None:
        for n in range(6):
            named = {"Idempotency-Key": f"{region}-{number}-{n}"}
            asked = partial(
                speaker.ask, region, "PATCH", "/v1/keys/seats:hall", {"incr": n + 1}, **named
            )
            await history.run(insisted(asked), add(n + 1), lambda reply: reply["value"])

    await asyncio.gather(*(client(name, number) for name in NAMES for number in range(2)))
    assert len(history.operations) == 36
    assert is_linearizable(history.operations, 0)
    assert await speaker.value("us", "seats:hall") == 6 * 21


async def test_a_quota_is_spent_to_its_last_unit_and_no_further(speaker: Speaker) -> None:
    spent: list[int] = []

    async def spend(region: str, amount: int, name: str) -> str | None:
        """The code of its refusal; what a race or a deadline refuses is asked again."""
        while True:
            try:
                await speaker.ask(
                    region,
                    "POST",
                    "/v1/quotas/tokens:acme/spend",
                    {"n": amount},
                    **{"Idempotency-Key": name},
                )
            except Refused as error:
                if error.code not in ("BUSY", "UNAVAILABLE"):
                    return error.code
            else:
                spent.append(amount)
                return None

    async def client(region: str, number: int) -> None:
        n = 0
        while await spend(region, SPEND, f"{region}-{number}-{n}") is None:
            n += 1

    await asyncio.gather(*(client(name, number) for name in NAMES for number in range(2)))
    assert LIMIT - 20 * SPEND < sum(spent) <= LIMIT, "far from spent, or overspent (I5)"
    # What regions still hold of their grants comes back: the last unit can be spent anywhere.
    ends, n = time.monotonic() + 10, 0
    while sum(spent) < LIMIT and time.monotonic() < ends:
        n += 1
        if await spend("us", 1, f"last-{n}") is not None:
            await asyncio.sleep(0.2)
    assert sum(spent) == LIMIT
    assert {await spend(name, 1, f"over-{name}") for name in NAMES} == {"EXHAUSTED"}
    shown = await speaker.ask("eu", "GET", "/v1/quotas/tokens:acme")
    assert (shown["limit"], shown["remaining"]) == (LIMIT, 0)


async def test_a_host_that_is_away_is_said_within_the_deadline(speaker: Speaker) -> None:
    await speaker.put("eu", "leader:two", "kept")
    await speaker.regions.kill("ap")
    for region in ("eu", "us"):
        for ask in (
            lambda region=region: speaker.value(region, "leader:two"),
            lambda region=region: speaker.put(region, "leader:two", "lost"),
            lambda region=region: speaker.patch(region, "seats:hall", incr=1),
        ):
            began = time.monotonic()
            with pytest.raises(Refused, match=r"UNAVAILABLE|UNKNOWNOUTCOME") as refused:
                await ask()
            assert time.monotonic() - began < DEADLINE_S + 0.5
            assert refused.value.status in (503, 504)
        # Keys that need no agreement do not wait for it.
        began = time.monotonic()
        await speaker.put(region, "model_router_weights:llama", region)
        assert await speaker.value(region, "model_router_weights:llama") == region
        await speaker.commit(region, (await speaker.open(region))["sid"], "hello")
        assert time.monotonic() - began < 1
        shown = await speaker.cluster(region)
        assert shown["consensus"]["state"] != "up"
    await speaker.regions.launch("ap")
    await speaker.until(lambda: reads(speaker), "consensus did not come back")


async def reads(speaker: Speaker) -> bool:
    return bool(await speaker.value("eu", "leader:two") == "kept")
