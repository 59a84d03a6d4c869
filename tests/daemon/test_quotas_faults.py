"""Quotas over crashes, lost consensus, full disks, foreign values and bad input."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest
from faulty_wire import policies_of
from quota_cluster import DEADLINE_MS, KEY, cluster
from virtual_time import virtual

from roost_crdt.errors import (
    BadRequest,
    Exhausted,
    Full,
    NoPolicy,
    RoostError,
    Unavailable,
    WrongType,
)
from roostd.consensus.base import Txn

DAY_MS = 86_400_000


@virtual
async def test_after_a_crash_the_owner_recovers_its_grant() -> None:
    one, two = await cluster(2)
    await one.quotas.set_limit(KEY, 10_000)
    for _ in range(100):
        await one.quotas.spend(KEY, 5)
    await one.crash()
    await asyncio.sleep(1)
    assert (await two.quotas.show(KEY))["remaining"] == 9_500


@virtual
async def test_a_new_actors_old_grant_counts_as_spent_until_the_window_ends() -> None:
    one, two = await cluster(2)
    await one.quotas.set_limit(KEY, 10_000)
    for _ in range(100):
        await one.quotas.spend(KEY, 5)
    left = (await two.quotas.show(KEY))["remaining"]
    assert left < 9_500
    await one.crash(lost=True)
    await asyncio.sleep(3)
    assert (await two.quotas.show(KEY))["remaining"] == left
    await one.quotas.spend(KEY, left)
    with pytest.raises(Exhausted):
        await two.quotas.spend(KEY, 1)
    one.skip(DAY_MS)
    await two.quotas.spend(KEY, 10_000)


@virtual
async def test_an_actor_that_changes_while_running_does_not_keep_its_grant() -> None:
    one, two = await cluster(2)
    await one.quotas.set_limit(KEY, 10_000)
    for _ in range(100):
        await one.quotas.spend(KEY, 5)
    one.actor += 1
    left = (await two.quotas.show(KEY))["remaining"]
    await two.quotas.spend(KEY, left)
    with pytest.raises(Exhausted):
        await one.quotas.spend(KEY, 1)


@virtual
async def test_consensus_out_of_reach_is_unavailable_within_the_deadline() -> None:
    [one] = await cluster()
    loop = asyncio.get_running_loop()
    for ways in (("cut",), ("request",), ("reply",)):
        one.wire.chance, one.wire.WAYS = 1.0, ways  # type: ignore[misc]
        began = loop.time()
        with pytest.raises(Unavailable):
            await one.quotas.spend(KEY, 1)
        assert loop.time() - began <= DEADLINE_MS / 1000 + 0.05
    one.wire.chance = 0.0
    await one.quotas.spend(KEY, 1)
    await asyncio.sleep(2)
    assert (await one.quotas.show(KEY))["remaining"] == 99, "an unavailable spend spent nothing"


@virtual
async def test_what_is_granted_is_spent_without_consensus() -> None:
    [one] = await cluster()
    await one.quotas.set_limit(KEY, 10_000)
    for _ in range(100):
        await one.quotas.spend(KEY, 5)
    one.wire.chance, one.wire.WAYS = 1.0, ("cut",)  # type: ignore[misc]
    await one.quotas.spend(KEY, 5)
    with pytest.raises(Unavailable):
        await one.quotas.show(KEY)


@virtual
async def test_a_full_disk_spends_nothing() -> None:
    [one] = await cluster()
    await one.quotas.spend(KEY, 1)
    one.spends.refuse = Full("the store has reached its bound")
    for _ in range(2):
        with pytest.raises(Full):
            await one.quotas.spend(KEY, 5, "r")
    one.spends.refuse = None
    await one.quotas.spend(KEY, 5, "r")
    await asyncio.sleep(2)
    assert (await one.quotas.show(KEY))["remaining"] == 94


@virtual
async def test_a_pool_deleted_by_hand_is_not_taken_for_a_fresh_one() -> None:
    one, two = await cluster(2)
    await one.quotas.spend(KEY, 60)
    remote = one.wire.remote(one.spends)
    await remote.txn(Txn((), ((b"q/" + KEY, None),)), deadline_ms=DEADLINE_MS)
    for node in (one, two):
        with pytest.raises(Unavailable, match="gone from consensus"):
            await node.quotas.spend(KEY, 50)
    assert (await two.quotas.set_limit(KEY, 100))["remaining"] == 40
    await two.quotas.spend(KEY, 40)


@virtual
async def test_a_foreign_pool_is_refused() -> None:
    [one] = await cluster()
    remote = one.wire.remote(one.spends)
    await remote.txn(Txn((), ((b"q/" + KEY, b"7"),)), deadline_ms=DEADLINE_MS)
    for work in (one.quotas.spend(KEY, 1), one.quotas.show(KEY), one.quotas.set_limit(KEY, 1)):
        with pytest.raises(WrongType, match="not a quota's pool"):
            await work


@virtual
async def test_malformed_requests_are_refused() -> None:
    [one] = await cluster()
    quotas = one.quotas
    refused: list[tuple[type[RoostError], Awaitable[Any]]] = [
        *((BadRequest, quotas.spend(KEY, n)) for n in (0, -1, 1 << 63, 1.5, "1", None, True)),  # type: ignore[arg-type]
        *((BadRequest, quotas.reserve(KEY, 1, None, ttl)) for ttl in (0, -1, 1 << 40)),
        *((BadRequest, quotas.settle("n0.00", used)) for used in (-1, 1 << 63)),
        (BadRequest, quotas.set_limit(KEY, -1)),
        (BadRequest, quotas.spend(b"", 1)),
        (BadRequest, quotas.spend(b"usage_quota:\0", 1)),
        (BadRequest, quotas.spend(KEY, 1, "")),
        (BadRequest, quotas.spend(KEY, 1, "x" * 129)),
        (NoPolicy, quotas.spend(b"unknown", 1)),
        (WrongType, quotas.spend(b"billing:u", 1)),
        (WrongType, quotas.spend(b"flags:u", 1)),
        (WrongType, quotas.meter(KEY)),
        (WrongType, quotas.meter_add(KEY, 1)),
    ]
    for kind, work in refused:
        with pytest.raises(kind):
            await work
    assert one.wire.calls == []


@virtual
async def test_a_policy_that_is_gone_refuses_those_in_line() -> None:
    [one] = await cluster()
    one.wire.delay_s = 0.1
    first = asyncio.create_task(one.quotas.spend(KEY, 1))
    await asyncio.sleep(0)
    one.policies = policies_of('[flags]\ntype = "register"\n')
    await asyncio.wait((first,))
    assert isinstance(first.exception(), NoPolicy)
