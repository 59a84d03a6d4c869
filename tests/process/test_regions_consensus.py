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
LATE_S = 15.0
"""Far beyond the deadline, and below what the HTTP client waits."""
CALM = "[session]\ntakeover_after_ms = 30000\n"
"""A busy machine is not taken for a lost region."""
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
    async with speaking(Regions(NAMES, policies=POLICIES, settings=CALM)) as speaker:
        yield speaker


UNKNOWN = "UNKNOWNOUTCOME"
REFUSED = ("BUSY", "UNAVAILABLE")
INSIST_S = 120


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

    async def run(self, ask: Any, step: Any, answer: Any) -> None:
        """Record one request; `answer` reads the reply. What was refused has changed nothing, and
        is asked again."""
        ends = time.monotonic() + INSIST_S
        while True:
            called = time.monotonic()
            try:
                told = answer(await ask())
            except (Refused, httpx.HTTPError) as error:
                code = getattr(error, "code", UNKNOWN)
                if code == UNKNOWN:
                    self.operations.append(Operation(called, NEVER, step))
                    return
                if code not in REFUSED or called > ends:
                    raise
            else:
                self.operations.append(Operation(called, time.monotonic(), step, told))
                return


async def insisted(ask: Any, *again: str) -> Any:
    """The reply in the end: what is refused with one of these codes is asked again."""
    ends = time.monotonic() + INSIST_S
    while True:
        try:
            return await ask()
        except Refused as error:
            if error.code not in again or time.monotonic() > ends:
                raise
        await asyncio.sleep(0.02)


async def test_a_register_is_linearizable(speaker: Speaker) -> None:
    history, chance = History(), random.Random(3)

    async def client(region: str) -> None:
        for n in range(12):
            if chance.random() < 0.5:
                value = f"{region}-{n}"
                ask = partial(speaker.put, region, "leader:one", value)
                await history.run(ask, put(value), lambda _: None)
            else:
                ask = partial(speaker.value, region, "leader:one")
                await history.run(ask, read, lambda value: value)

    await speaker.put("eu", "leader:one", "first")
    await asyncio.gather(*(client(name) for name in (*NAMES, *NAMES)))
    assert len(history.operations) == 72
    assert is_linearizable(history.operations, "first")


async def test_a_counter_counts_each_increment_once(speaker: Speaker) -> None:
    history = History()

    async def client(region: str, number: int) -> None:
        for n in range(6):
            named = {"Idempotency-Key": f"{region}-{number}-{n}"}
            asked = partial(
                speaker.ask, region, "PATCH", "/v1/keys/seats:hall", {"incr": n + 1}, **named
            )
            # It has an id: it is repeated until its outcome is known.
            ask = partial(insisted, asked, UNKNOWN, *REFUSED)
            await history.run(ask, add(n + 1), lambda reply: reply["value"])

    await asyncio.gather(*(client(name, number) for name in NAMES for number in range(2)))
    assert len(history.operations) == 36
    assert is_linearizable(history.operations, 0)
    assert await speaker.value("us", "seats:hall") == 6 * 21


async def test_a_quota_is_spent_to_its_last_unit_and_no_further(speaker: Speaker) -> None:
    spent: list[int] = []

    async def spend(region: str, amount: int, name: str) -> str | None:
        """The code of its refusal; what a race or a deadline refuses, or leaves unknown, is asked
        again."""
        path, named = "/v1/quotas/tokens:acme/spend", {"Idempotency-Key": name}
        ask = partial(speaker.ask, region, "POST", path, {"n": amount}, **named)
        try:
            await insisted(ask, UNKNOWN, *REFUSED)
        except Refused as error:
            return error.code
        spent.append(amount)
        return None

    async def client(region: str, number: int) -> None:
        n = 0
        while await spend(region, SPEND, f"{region}-{number}-{n}") is None:
            n += 1

    await asyncio.gather(*(client(name, number) for name in NAMES for number in range(2)))
    print(f"spent {sum(spent)} of {LIMIT}")
    assert LIMIT - 20 * SPEND < sum(spent) <= LIMIT, "far from spent, or overspent (I5)"
    # What regions still hold of their grants comes back: the last unit can be spent anywhere.
    ends, n = time.monotonic() + INSIST_S, 0
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
    took_s: list[float] = []
    for region in ("eu", "us"):
        for ask in (
            lambda region=region: speaker.value(region, "leader:two"),
            lambda region=region: speaker.put(region, "leader:two", "lost"),
            lambda region=region: speaker.patch(region, "seats:hall", incr=1),
        ):
            began = time.monotonic()
            with pytest.raises(Refused, match=r"UNAVAILABLE|UNKNOWNOUTCOME") as refused:
                await ask()
            took_s.append(time.monotonic() - began)
            assert refused.value.status in (503, 504)
        # Keys that need no agreement do not wait for it, though some do for a busy machine.
        ends = time.monotonic() + INSIST_S
        while (took := await without_agreement(speaker, region)) > DEADLINE_S / 2:
            assert time.monotonic() < ends, took
        shown = await speaker.cluster(region)
        assert shown["consensus"]["state"] != "up"
    assert min(took_s) < 2 * DEADLINE_S, took_s
    assert max(took_s) < LATE_S, took_s
    await speaker.regions.launch("ap")
    await speaker.until(lambda: reads(speaker), "consensus did not come back")


async def without_agreement(speaker: Speaker, region: str) -> float:
    """Seconds that it takes to write and read what is not linearizable."""
    began = time.monotonic()
    await speaker.put(region, "model_router_weights:llama", region)
    assert await speaker.value(region, "model_router_weights:llama") == region
    await speaker.commit(region, (await speaker.open(region))["sid"], "hello")
    return time.monotonic() - began


async def reads(speaker: Speaker) -> bool:
    return bool(await speaker.value("eu", "leader:two") == "kept")
