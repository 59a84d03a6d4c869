"""Reservations: held, settled, released, expired, recovered."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from quota_cluster import KEY, cluster
from virtual_time import virtual

from roost_crdt.errors import (
    BadRequest,
    Busy,
    Exhausted,
    Unavailable,
)
from roost_crdt.limits import Limits

DAY_MS = 86_400_000


@virtual
async def test_a_reservation_holds_and_settling_charges_what_was_used() -> None:
    [one] = await cluster()
    reservation = await one.quotas.reserve(KEY, 60, "r", 10_000)
    assert (await one.quotas.show(KEY))["remaining"] == 40
    with pytest.raises(Exhausted):
        await one.quotas.spend(KEY, 41)
    assert await one.quotas.settle(reservation, 25) == {"id": reservation, "used": 25}
    assert (await one.quotas.show(KEY))["remaining"] == 75
    assert await one.quotas.settle(reservation, 25) == {"id": reservation, "used": 25}
    assert (await one.quotas.show(KEY))["remaining"] == 75
    with pytest.raises(BadRequest, match="amount of 25, not 26"):
        await one.quotas.settle(reservation, 26)
    with pytest.raises(BadRequest, match="amount of 25, not 0"):
        await one.quotas.release(reservation)


@virtual
async def test_releasing_frees_everything() -> None:
    [one] = await cluster()
    reservation = await one.quotas.reserve(KEY, 100, None, 10_000)
    for _ in range(2):
        assert await one.quotas.release(reservation) == {"id": reservation, "used": 0}
    assert (await one.quotas.show(KEY))["remaining"] == 100


@virtual
async def test_a_repeated_reserve_answers_the_same_reservation() -> None:
    [one] = await cluster()
    ids = [await one.quotas.reserve(KEY, 30, "r", 10_000) for _ in range(3)]
    await one.crash()
    ids.append(await one.quotas.reserve(KEY, 30, "r", 10_000))
    assert len(set(ids)) == 1
    assert (await one.quotas.show(KEY))["limit"] == 100
    await one.quotas.spend(KEY, 70)
    with pytest.raises(Exhausted):
        await one.quotas.spend(KEY, 1)


@virtual
async def test_settling_more_than_was_reserved_is_charged_if_the_quota_has_it() -> None:
    [one] = await cluster()
    reservation = await one.quotas.reserve(KEY, 10, "r", 10_000)
    await one.quotas.spend(KEY, 80)
    with pytest.raises(Exhausted, match="11 asked for"):
        await one.quotas.settle(reservation, 21)
    assert (await one.quotas.show(KEY))["remaining"] == 10, "the reservation stays as it was"
    await one.quotas.settle(reservation, 20)
    assert (await one.quotas.show(KEY))["remaining"] == 0


@virtual
async def test_an_expired_reservation_is_released_and_settled_late_like_a_new_spend() -> None:
    [one] = await cluster()
    first = await one.quotas.reserve(KEY, 60, "r1", 500)
    second = await one.quotas.reserve(KEY, 40, "r2", 500)
    await asyncio.sleep(0.7)
    assert (await one.quotas.show(KEY))["remaining"] == 100
    await one.quotas.spend(KEY, 70)
    with pytest.raises(Exhausted, match="60 asked for"):
        await one.quotas.settle(first, 60)
    await one.crash()
    assert await one.quotas.settle(first, 30) == {"id": first, "used": 30}
    assert (await one.quotas.show(KEY))["remaining"] == 0
    await one.quotas.release(second)
    with pytest.raises(Exhausted):
        await one.quotas.spend(KEY, 1)


@virtual
async def test_reservations_survive_a_crash_and_the_rest_of_the_grant_goes_back() -> None:
    one, two = await cluster(2)
    reservation = await one.quotas.reserve(KEY, 60, "r", 100_000)
    await one.quotas.spend(KEY, 10)
    await one.crash()
    await asyncio.sleep(2)
    assert (await two.quotas.show(KEY))["remaining"] == 30
    await one.quotas.settle(reservation, 5)
    await asyncio.sleep(2)
    assert (await two.quotas.show(KEY))["remaining"] == 85


@virtual
async def test_a_reservation_of_yesterday_charges_nothing_today() -> None:
    [one] = await cluster()
    reservation = await one.quotas.reserve(KEY, 60, "r", 2 * DAY_MS)
    one.skip(DAY_MS)
    await one.quotas.spend(KEY, 10)
    await one.quotas.settle(reservation, 50)
    await one.crash()
    await one.quotas.spend(KEY, 90)


@virtual
async def test_what_was_settled_is_still_charged_after_a_crash() -> None:
    [one] = await cluster()
    reservation = await one.quotas.reserve(KEY, 60, "r", 100_000)
    await one.quotas.settle(reservation, 25)
    await one.crash()
    assert not [key for key in one.spends.seen if key.startswith(b"v")]
    await one.quotas.spend(KEY, 75)
    with pytest.raises(Exhausted):
        await one.quotas.spend(KEY, 1)
    assert await one.quotas.settle(reservation, 25) == {"id": reservation, "used": 25}


@virtual
async def test_a_reservation_that_waits_for_more_does_not_expire() -> None:
    one, two = await cluster(2)
    await two.quotas.set_limit(KEY, 10_000)
    for _ in range(200):
        await two.quotas.spend(KEY, 5)
    reservation = await one.quotas.reserve(KEY, 50, "r", 300)
    left = (await one.quotas.show(KEY))["remaining"]
    await one.quotas.settle(reservation, 50 + left + 1)  # the other's rest comes back in a second
    await asyncio.sleep(2)
    spent = 1_000 + 50 + left + 1
    assert (await one.quotas.show(KEY))["remaining"] == 10_000 - spent


@virtual
async def test_a_reservation_is_settled_from_any_node() -> None:
    one, two = await cluster(2)
    reservation = await one.quotas.reserve(KEY, 60, "r", 10_000)
    assert await two.quotas.settle(reservation, 20) == {"id": reservation, "used": 20}
    await asyncio.sleep(2)
    assert (await two.quotas.show(KEY))["remaining"] == 80
    two.quotas._forward = None
    with pytest.raises(Unavailable, match="kept by node n0"):
        await two.quotas.settle(reservation, 20)


@pytest.mark.parametrize("reservation", ["", "x", "n0.", "n0.0123", ".0123", "\ud800", "n0.\ud800"])
def test_an_unknown_reservation_is_refused(reservation: str) -> None:
    @virtual
    async def run() -> None:
        [one] = await cluster()
        with pytest.raises(BadRequest, match="no open reservation"):
            await one.quotas.settle(reservation, 1)

    run()


@virtual
async def test_the_rpc_settles_only_this_nodes_reservations() -> None:
    [one] = await cluster()
    settle = one.quotas.handlers()["quota.settle"]
    reservation = await one.quotas.reserve(KEY, 10, None, 10_000)
    malformed: list[dict[str, Any]] = [{}, {"id": 3}, {"id": "n9.00"}, {"id": reservation}]
    malformed += [{"id": reservation, "used": used} for used in (-1, "1", None, 1.5, True)]
    for args in malformed:
        with pytest.raises(BadRequest):
            await settle("n1", args)
    assert await settle("n1", {"id": reservation, "used": 3}) == {"id": reservation, "used": 3}


@virtual
async def test_open_reservations_are_bounded_and_a_day_after_their_end_forgotten() -> None:
    [one] = await cluster(limits=Limits(request_ids_kept=5))
    for n in range(5):
        await one.quotas.reserve(KEY, 1, f"r{n}", 1_000)
    with pytest.raises(Busy):
        await one.quotas.reserve(KEY, 1, "r", 1_000)
    for _ in range(2):
        one.skip(DAY_MS)
        await asyncio.sleep(0.3)
    assert not one.quotas._accounts.reservations
    assert not [key for key in one.spends.seen if key.startswith(b"v")]
    await one.quotas.reserve(KEY, 1, "r", 1_000)
