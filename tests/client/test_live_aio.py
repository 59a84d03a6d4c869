"""The asyncio face against a real daemon."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import roost
from roost import aio

from .conftest import PATIENT_S


async def test_aio_has_the_same_names(daemon: Any, fresh: Any) -> None:
    key, count = fresh("model_router_weights"), fresh("counts")
    async with aio.connect(daemon.url, deadline_ms=60_000) as client:
        assert client.node == "eu-1"
        ack = await client.set(key, {"a": 1})
        assert ack.durable
        assert (await client.get(key)).value == {"a": 1}
        done = await asyncio.gather(*(client.incr(count) for _ in range(100)))
        assert sorted(ack.value for ack in done) == list(range(1, 101))
        assert (await client.get(count)).value == 100
        async with asyncio.timeout(PATIENT_S):
            while (await client.get(count)).source != "mmap":
                await asyncio.sleep(0.01)
        assert (await client.update(fresh("tags"), put=["a"])).durable
        assert await client.keys(key) == [key]
        assert (await client.delete(key)).value is True
        quota = fresh("usage_quota")
        assert (await client.spend(quota, 1, request_id="a")).remaining_local >= 0
        async with await client.reserve(quota, 5, request_id="b", ttl_ms=600_000) as reservation:
            await reservation.settle(2)
        session = await client.open()
        turn = await session.commit(
            [{"role": "user", "content": "x"}], put={"kv_cache_index": {"g": 1}}
        )
        assert turn.number == session.turn == 1
        assert (await session.turns()).messages == [{"role": "user", "content": "x"}]
        assert await session.field("kv_cache_index", "g") == 1
        call = await session.call("t", {"a": 1})
        assert call.status == "fresh"
        await call.finish(3)
        assert (await session.call("t", {"a": 1})).result == 3
        failed = await session.call("u", {})
        await failed.fail("no")
        await failed.retry()
        assert failed.status == "fresh"
        assert (await (await session.fork()).turns()).turn == 1
        assert (await session.show())["turn"] == 1
        assert await session.erase()
        with pytest.raises(roost.NoSession):
            await session.turns()


async def test_aio_watch(daemon: Any, fresh: Any) -> None:
    key = fresh("model_router_weights")
    async with aio.connect(daemon.url, deadline_ms=60_000) as client:
        async with client.watch(key, idle_ms=60_000) as watch:
            for n in (1, 2):
                await client.set(key, n)
                change = await anext(watch)
                assert (change.key, change.value) == (key, n)
        assert [change async for change in client.watch(key, idle_ms=50)] == []
        watch = await client.watch(key)
        asyncio.get_running_loop().call_later(0.05, asyncio.ensure_future, watch.close())
        assert [change async for change in watch] == []
