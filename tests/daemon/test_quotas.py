"""Spending of quotas: grants, request ids, windows, limits, the end of a quota."""

from __future__ import annotations

import asyncio

import pytest
from quota_cluster import BASE_MS, DEADLINE_MS, KEY, cluster, grants_of, pool_of, spend_all
from virtual_time import virtual

from roost_crdt.errors import (
    BadRequest,
    Exhausted,
    Unavailable,
)
from roost_crdt.limits import Limits
from roostd.node.quotas import Spent

DAY_MS = 86_400_000


# --- spending -------------------------------------------------------------------------------------


@virtual
async def test_a_spend_is_durable_before_it_is_answered() -> None:
    [one] = await cluster()
    spent = await one.quotas.spend(KEY, 3, "r")
    assert isinstance(spent, Spent)
    assert spent.granted >= 3
    assert one.spends.safe == one.spends.seen
    shown = await one.quotas.show(KEY)
    assert (shown["limit"], shown["remaining"]) == (100, 97)
    assert shown["period_ends"] == BASE_MS + DAY_MS


@virtual
async def test_the_last_unit_can_be_spent_and_the_next_is_exhausted() -> None:
    [one] = await cluster()
    assert await spend_all(one) == 100
    with pytest.raises(Exhausted, match="0 of 100 left until") as refused:
        await one.quotas.spend(KEY, 1)
    assert refused.value.details["period_ends"] == BASE_MS + DAY_MS
    assert refused.value.details["remaining"] == 0
    assert refused.value.retry_after_ms == BASE_MS + DAY_MS - one.now_ms()
    assert (await one.quotas.show(KEY))["remaining"] == 0


@virtual
async def test_many_spenders_on_many_nodes_end_exactly_at_the_limit() -> None:
    nodes = await cluster(4)
    totals = await asyncio.gather(*(spend_all(node) for node in nodes for _ in range(5)))
    assert sum(totals) == 100
    assert pool_of(nodes[0].wire.hosting).granted == 100  # type: ignore[union-attr]


@virtual
async def test_spends_of_different_sizes_use_a_quota_up_to_what_fits() -> None:
    nodes = await cluster(3)
    totals = await asyncio.gather(
        *(spend_all(node, n) for node, n in zip(nodes, (7, 3, 1), strict=True))
    )
    assert sum(totals) == 100, "the spender of ones takes what the others cannot"


@virtual
async def test_what_others_hold_unspent_is_waited_for() -> None:
    one, two = await cluster(2)
    await one.quotas.set_limit(KEY, 10_000)
    for _ in range(400):
        await one.quotas.spend(KEY, 10)
    assert grants_of(one.wire.hosting)[0].unspent > 0
    rest = 10_000 - 4_000
    await two.quotas.spend(KEY, rest)
    assert (await two.quotas.show(KEY))["remaining"] == 0


@virtual
async def test_a_spend_larger_than_what_remains_changes_nothing() -> None:
    one, two = await cluster(2)
    await one.quotas.spend(KEY, 60)
    for node in (one, two):
        with pytest.raises(Exhausted, match="41 asked for"):
            await node.quotas.spend(KEY, 41)
        with pytest.raises(Exhausted):
            await node.quotas.spend(KEY, (1 << 63) - 1)
    assert (await two.quotas.show(KEY))["remaining"] == 40
    await two.quotas.spend(KEY, 40)


@virtual
async def test_an_exhausted_quota_answers_at_once_when_nothing_can_come_back() -> None:
    one, two = await cluster(2)
    await spend_all(one)
    await asyncio.sleep(2)
    began = asyncio.get_running_loop().time()
    with pytest.raises(Exhausted):
        await two.quotas.spend(KEY, 1)
    assert asyncio.get_running_loop().time() - began < 0.05


@virtual
async def test_a_lost_nodes_grant_is_waited_for_once() -> None:
    one, two = await cluster(2)
    await one.quotas.set_limit(KEY, 10_000)
    for _ in range(300):
        await one.quotas.spend(KEY, 10)
    one.wire.chance, one.wire.WAYS = 1.0, ("cut",)  # type: ignore[misc]
    left = (await two.quotas.show(KEY))["remaining"]
    await two.quotas.spend(KEY, left)
    loop = asyncio.get_running_loop()
    waits = []
    for _ in range(3):
        began = loop.time()
        with pytest.raises(Exhausted):
            await two.quotas.spend(KEY, 1)
        waits.append(loop.time() - began)
    assert 1 <= waits[0] < DEADLINE_MS / 1000
    assert max(waits[1:]) < 0.05


@virtual
async def test_thousands_of_spends_cost_few_round_trips() -> None:
    [one] = await cluster()
    await one.quotas.set_limit(KEY, 1_000_000)
    one.wire.calls.clear()
    for n in range(2_000):
        await one.quotas.spend(KEY, 1)
        if n % 10 == 0:
            await asyncio.sleep(0.01)
    assert len(one.wire.calls) < 60


@virtual
async def test_concurrent_spends_share_one_refill() -> None:
    [one] = await cluster()
    await one.quotas.set_limit(KEY, 1_000_000)
    one.wire.calls.clear()
    one.wire.delay_s = 0.05
    await asyncio.gather(*(one.quotas.spend(KEY, 1) for _ in range(500)))
    assert len(one.wire.calls) <= 4


@virtual
async def test_a_busy_grant_is_refilled_before_it_is_dry() -> None:
    [one] = await cluster()
    await one.quotas.set_limit(KEY, 1_000_000)
    loop = asyncio.get_running_loop()
    one.wire.delay_s = 0.04
    waits = []
    for _ in range(600):
        began = loop.time()
        await one.quotas.spend(KEY, 1)
        waits.append(loop.time() - began)
        await asyncio.sleep(0.005)
    assert max(waits[100:]) == 0, "a spend waited for consensus although the rate was known"


@virtual
async def test_a_grant_is_no_larger_than_two_percent_of_the_limit_shared_by_the_nodes() -> None:
    nodes = await cluster(4)
    await nodes[0].quotas.set_limit(KEY, 10_000)
    most = 0
    for _ in range(500):
        spent = await nodes[0].quotas.spend(KEY, 2)
        most = max(most, spent.remaining_local)
        await asyncio.sleep(0.001)
    assert 25 <= most <= 10_000 * 2 // 100 // 4


@virtual
async def test_an_idle_grant_is_returned_after_a_second() -> None:
    one, two = await cluster(2)
    await one.quotas.set_limit(KEY, 10_000)
    for _ in range(100):
        await one.quotas.spend(KEY, 5)
    assert (await one.quotas.show(KEY))["granted_here"] > 0
    assert (await two.quotas.show(KEY))["remaining"] < 9_500
    await asyncio.sleep(0.8)
    assert (await one.quotas.show(KEY))["granted_here"] > 0
    await asyncio.sleep(0.5)
    assert (await one.quotas.show(KEY))["granted_here"] == 0
    assert (await two.quotas.show(KEY))["remaining"] == 9_500
    assert grants_of(one.wire.hosting) == []


@virtual
async def test_a_stopped_node_returns_its_grant_and_spends_no_more() -> None:
    one, two = await cluster(2)
    await one.quotas.set_limit(KEY, 10_000)
    for _ in range(100):
        await one.quotas.spend(KEY, 5)
    assert await one.stop() == 0
    assert (await two.quotas.show(KEY))["remaining"] == 9_500
    with pytest.raises(Unavailable, match="shutting down"):
        await one.quotas.spend(KEY, 1)


# --- request ids ----------------------------------------------------------------------------------


@virtual
async def test_a_repeated_request_id_spends_once_and_answers_the_same() -> None:
    [one] = await cluster()
    first = await one.quotas.spend(KEY, 5, "r")
    await one.quotas.spend(KEY, 1, "other")
    assert await one.quotas.spend(KEY, 5, "r") == first
    await one.crash()
    assert await one.quotas.spend(KEY, 5, b"r") == first
    assert (await one.quotas.show(KEY))["remaining"] == 94
    await one.quotas.spend(b"usage_quota:v", 5, "r")
    assert (await one.quotas.show(b"usage_quota:v"))["remaining"] == 95, "another key"
    with pytest.raises(BadRequest, match="amount of 5, not 6"):
        await one.quotas.spend(KEY, 6, "r")


@virtual
async def test_a_retry_beside_its_first_try_waits_for_it() -> None:
    [one] = await cluster()
    one.wire.delay_s = 0.1
    answers = await asyncio.gather(*(one.quotas.spend(KEY, 5, "r") for _ in range(5)))
    assert len(set(answers)) == 1
    assert (await one.quotas.show(KEY))["remaining"] == 95


@virtual
async def test_a_refused_spend_does_not_use_up_its_request_id() -> None:
    [one] = await cluster()
    await one.quotas.spend(KEY, 99)
    with pytest.raises(Exhausted):
        await one.quotas.spend(KEY, 5, "r")
    await one.quotas.set_limit(KEY, 200)
    await one.quotas.spend(KEY, 5, "r")
    assert (await one.quotas.show(KEY))["remaining"] == 96


@virtual
async def test_the_caller_who_went_away_finds_his_answer_under_the_request_id() -> None:
    [one] = await cluster()
    one.wire.delay_s = 0.1
    gone = asyncio.create_task(one.quotas.spend(KEY, 5, "r"))
    await asyncio.sleep(0.01)
    gone.cancel()
    await asyncio.wait((gone,))
    await asyncio.sleep(1)
    await one.quotas.spend(KEY, 5, "r")
    assert (await one.quotas.show(KEY))["remaining"] == 95


@virtual
async def test_the_caller_without_a_request_id_who_went_away_has_spent_nothing() -> None:
    [one] = await cluster()
    one.wire.delay_s = 0.1
    gone = asyncio.create_task(one.quotas.spend(KEY, 5))
    await asyncio.sleep(0.01)
    gone.cancel()
    await asyncio.wait((gone,))
    await asyncio.sleep(2)
    assert (await one.quotas.show(KEY))["remaining"] == 100


@virtual
async def test_request_ids_are_bounded() -> None:
    [one] = await cluster(limits=Limits(request_ids_kept=10))
    await one.quotas.set_limit(KEY, 1_000)
    for n in range(100):
        await one.quotas.spend(KEY, 1, f"r{n}")
    assert len(one.spends.seen) < 30
    await one.quotas.spend(KEY, 1, "r99")
    await asyncio.sleep(1.5)
    assert (await one.quotas.show(KEY))["remaining"] == 900


# --- windows --------------------------------------------------------------------------------------


@virtual
async def test_a_new_window_begins_with_the_whole_limit() -> None:
    one, two = await cluster(2)
    assert await spend_all(one) == 100
    one.skip(DAY_MS)
    await two.quotas.spend(KEY, 100)
    with pytest.raises(Exhausted):
        await one.quotas.spend(KEY, 1)
    shown = await one.quotas.show(KEY)
    assert (shown["remaining"], shown["period_ends"]) == (0, BASE_MS + 2 * DAY_MS)


@virtual
async def test_a_grant_of_yesterday_is_not_spent_today() -> None:
    one, two = await cluster(2)
    await one.quotas.set_limit(KEY, 10_000)
    one.skip(DAY_MS - 200)
    for _ in range(200):
        await one.quotas.spend(KEY, 5)
    assert (await one.quotas.show(KEY))["granted_here"] > 0
    await asyncio.sleep(0.2)
    await two.quotas.spend(KEY, 10_000)
    with pytest.raises(Exhausted):
        await one.quotas.spend(KEY, 1)
    await asyncio.sleep(2)
    assert all(grant.amount == 10_000 for grant in grants_of(one.wire.hosting)), "old ones swept"


@virtual
async def test_a_clock_that_is_behind_joins_the_window_that_the_others_are_in() -> None:
    one, two = await cluster(2)
    one.skip(DAY_MS)
    await one.quotas.spend(KEY, 60)
    two.quotas._pools._now_ms = lambda: BASE_MS + DAY_MS - 500
    two.quotas._spending._now_ms = lambda: BASE_MS + DAY_MS - 500
    await two.quotas.spend(KEY, 40)
    with pytest.raises(Exhausted):
        await two.quotas.spend(KEY, 1)
    assert pool_of(one.wire.hosting).granted == 100  # type: ignore[union-attr]


# --- operators ------------------------------------------------------------------------------------


@virtual
async def test_a_new_limit_is_in_force_at_once_and_stays() -> None:
    one, two = await cluster(2)
    await one.quotas.spend(KEY, 60)
    shown = await two.quotas.set_limit(KEY, 70)
    assert (shown["limit"], shown["remaining"]) == (70, 10)
    with pytest.raises(Exhausted):
        await one.quotas.spend(KEY, 11)
    assert (await two.quotas.set_limit(KEY, 30))["remaining"] == 0
    with pytest.raises(Exhausted):
        await one.quotas.spend(KEY, 1)
    assert (await one.quotas.set_limit(KEY, 65))["remaining"] == 5
    await one.quotas.spend(KEY, 5)
    one.skip(DAY_MS)
    assert (await one.quotas.show(KEY))["remaining"] == 65
    assert (await one.quotas.set_limit(KEY, 0))["limit"] == 0
    with pytest.raises(Exhausted):
        await two.quotas.spend(KEY, 1)


@virtual
async def test_set_limit_survives_lost_messages() -> None:
    [one] = await cluster()
    one.wire.script = ["reply", "reply", "", "request"]
    assert (await one.quotas.set_limit(KEY, 42))["limit"] == 42


@virtual
async def test_a_lost_nodes_grant_is_given_up_and_stays_debited() -> None:
    one, two = await cluster(2)
    await one.quotas.set_limit(KEY, 10_000)
    for _ in range(100):
        await one.quotas.spend(KEY, 5)
    held = (await two.quotas.show(KEY))["grants"]["n0"]
    before = (await two.quotas.show(KEY))["remaining"]
    assert held > 0
    assert (await two.quotas.forfeit(KEY, "n0"))["forfeited"] >= held
    assert await two.quotas.forfeit(KEY, "n0") == {"node": "n0", "forfeited": 0}
    assert await two.quotas.forfeit(KEY, "nobody") == {"node": "nobody", "forfeited": 0}
    shown = await two.quotas.show(KEY)
    assert shown["grants"] == {}
    assert shown["remaining"] == before
    await asyncio.sleep(2)
    assert (await two.quotas.show(KEY))["remaining"] == before, "it cannot return it any more"
    await one.quotas.spend(KEY, 5)


@virtual
async def test_show_names_each_nodes_grant() -> None:
    one, two = await cluster(2)
    await one.quotas.reserve(KEY, 10, None, 10_000)
    await two.quotas.reserve(KEY, 20, None, 10_000)
    shown = await one.quotas.show(KEY)
    assert shown["grants"] == {"n0": 10, "n1": 20}
    assert (shown["granted_here"], shown["remaining"]) == (10, 70)
