"""MULTI, WATCH and keyspace messages on a real node, with redis-py as the client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import hiredis
import pytest
import pytest_asyncio
import redis.asyncio
import redis.exceptions
from api_node import Served, served

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with served(tmp_path_factory.mktemp("tx")) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module", params=[2, 3])
async def client(
    node: Served, request: pytest.FixtureRequest
) -> AsyncIterator[redis.asyncio.Redis]:
    made = redis.asyncio.Redis(port=node.resp, protocol=request.param, decode_responses=True)
    yield made
    await made.aclose()


async def test_a_pipeline_is_one_record(node: Served, client: redis.asyncio.Redis) -> None:
    before = node.node.store.seq
    async with client.pipeline() as pipe:
        pipe.set("str:1", "a").incr("cnt:1").sadd("set:1", "x").hset("map:1", mapping={"f": "v"})
        pipe.get("str:1").smembers("set:1").hgetall("map:1").expire("cnt:1", 100)
        replies = await pipe.execute()
    assert replies[4:7] == ["a", {"x"}, {"f": "v"}]
    assert replies[7] is True
    assert node.node.store.seq == before + 1


async def test_an_error_inside_leaves_the_others(client: redis.asyncio.Redis) -> None:
    async with client.pipeline() as pipe:
        pipe.set("str:2", "a").sadd("str:2", "x").set("str:3", "b")
        replies = await pipe.execute(raise_on_error=False)
    assert replies[0] is True
    assert isinstance(replies[1], redis.exceptions.ResponseError)
    assert await client.get("str:3") == "b"


async def test_classes_do_not_mix(client: redis.asyncio.Redis) -> None:
    await client.delete("str:4")
    async with client.pipeline() as pipe:
        pipe.set("str:4", "a").incr("lcnt:4")
        with pytest.raises(redis.exceptions.ResponseError) as caught:
            await pipe.execute()
    assert "CROSSCLASS" in str(caught.value.args) or "CROSSCLASS" in repr(caught.value.__dict__)
    assert await client.get("str:4") is None
    assert await client.get("lcnt:4") is None


async def test_cross_class_on_the_wire(node: Served) -> None:
    client = await node.client()
    replies = await client.pipeline(
        ("MULTI",), ("SET", "str:5", "a"), ("INCR", "lcnt:5"), ("EXEC",), ("GET", "str:5")
    )
    assert replies[:3] == [b"OK", b"QUEUED", b"QUEUED"]
    assert str(replies[3]).startswith("CROSSCLASS ")
    assert replies[4] is None


async def test_linearizable_transactions(client: redis.asyncio.Redis) -> None:
    await client.delete("lock:6", "lcnt:6")
    async with client.pipeline() as pipe:
        pipe.set("lock:6", "a").incr("lcnt:6").incrby("lcnt:6", 2).get("lock:6").ping()
        assert await pipe.execute() == [True, 1, 3, "a", True]
    async with client.pipeline() as pipe:
        pipe.incr("lcnt:6").set("lcnt:6", "9223372036854775807").incr("lcnt:6")
        with pytest.raises(redis.exceptions.ResponseError):
            await pipe.execute()
    assert await client.get("lcnt:6") == "3"


async def test_sessions_and_quotas_stand_alone(node: Served) -> None:
    client = await node.client()
    alone = await client.pipeline(("MULTI",), ("LLEN", "conversation_buffer:x"), ("EXEC",))
    assert alone[2] == [0]
    two = await client.pipeline(("MULTI",), *[("LLEN", "conversation_buffer:x")] * 2, ("EXEC",))
    assert str(two[3]).startswith("UNSUPPORTED ")
    own = await client.pipeline(("MULTI",), ("ROOST.TURNS", "x"), ("EXEC",))
    assert "not allowed in MULTI" in str(own[1])
    assert str(own[2]).startswith("EXECABORT")
    mixed = await client.pipeline(("MULTI",), ("GET", "quota:x"), ("GET", "lcnt:x"), ("EXEC",))
    assert str(mixed[3]).startswith("UNSUPPORTED ")


async def test_a_transaction_is_bounded(node: Served) -> None:
    client = await node.client()
    most = node.node.limits.batch_ops_max
    replies = await client.pipeline(("MULTI",), *[("PING",)] * (most + 1), ("EXEC",))
    assert str(replies[most + 1]).startswith("TOOLARGE")
    assert str(replies[-1]).startswith("EXECABORT")


async def test_watch(client: redis.asyncio.Redis, node: Served) -> None:
    other = redis.asyncio.Redis(port=node.resp)
    for watched, written in (("cnt:7", "str:7"), ("lcnt:7", "lock:7")):
        async with client.pipeline() as pipe:
            await pipe.watch(watched)
            pipe.multi()
            pipe.set(written, "kept")
            assert await pipe.execute() == [True]
        async with client.pipeline() as pipe:
            await pipe.watch(watched)
            await other.incr(watched)
            pipe.multi()
            pipe.set(written, "lost")
            with pytest.raises(redis.exceptions.WatchError):
                await pipe.execute()
        assert await client.get(written) == "kept"
    await other.aclose()


async def test_watch_sees_a_change_that_was_undone(node: Served) -> None:
    one, other = await node.client(), await node.client()
    await one.do("SET", "str:8", "a")
    await one.do("WATCH", "str:8")
    await other.do("SET", "str:8", "b")
    await other.do("SET", "str:8", "a")
    assert await one.pipeline(("MULTI",), ("SET", "str:8", "c"), ("EXEC",)) == [
        b"OK",
        b"QUEUED",
        None,
    ]
    own = await one.pipeline(
        ("WATCH", "str:8"), ("SET", "str:8", "d"), ("MULTI",), ("GET", "str:8"), ("EXEC",)
    )
    assert own[-1] is None
    free = await one.pipeline(
        ("WATCH", "str:8"), ("SET", "str:8", "d"), ("UNWATCH",), ("MULTI",), ("PING",), ("EXEC",)
    )
    assert free[-1] == [b"PONG"]
    session = await one.do("WATCH", "conversation_buffer:x")
    assert str(session).startswith("UNSUPPORTED")
    mixed = await one.pipeline(("WATCH", "str:8"), ("MULTI",), ("GET", "lock:8"), ("EXEC",))
    assert str(mixed[-1]).startswith("CROSSCLASS")
    assert not node.faces.resp.pubsub.marks


async def test_keyspace_messages(client: redis.asyncio.Redis, node: Served) -> None:
    writer = redis.asyncio.Redis(port=node.resp)
    pubsub = client.pubsub()
    await pubsub.psubscribe("__keyspace@0__:str:k*")
    await pubsub.subscribe("__keyspace@0__:cnt:k")
    for _ in range(2):
        assert (await pubsub.get_message(timeout=60))["type"] in ("psubscribe", "subscribe")
    await writer.set("str:other", "1")
    await writer.set("str:k1", "1")
    await writer.incr("cnt:k")
    await writer.delete("str:k1")
    messages = [await pubsub.get_message(timeout=60) for _ in range(3)]
    assert [(m["channel"], m["data"]) for m in messages] == [
        ("__keyspace@0__:str:k1", "set"),
        ("__keyspace@0__:cnt:k", "set"),
        ("__keyspace@0__:str:k1", "del"),
    ]
    assert [m["type"] for m in messages] == ["pmessage", "message", "pmessage"]
    await pubsub.unsubscribe()
    await pubsub.punsubscribe()
    await pubsub.aclose()
    await writer.aclose()
    async with asyncio.timeout(60):
        while node.faces.metrics.watchers:
            await asyncio.sleep(0.01)


async def test_subscribed_connections_of_resp2(node: Served) -> None:
    client = await node.client()
    assert await client.do("SUBSCRIBE", "__keyspace@0__:str:x") == [
        b"subscribe",
        b"__keyspace@0__:str:x",
        1,
    ]
    assert await client.do("PING") == [b"pong", b""]
    assert "only (P|S)SUBSCRIBE" in str(await client.do("GET", "str:x"))
    assert await client.do("UNSUBSCRIBE") == [b"unsubscribe", b"__keyspace@0__:str:x", 0]
    assert await client.do("UNSUBSCRIBE") == [b"unsubscribe", None, 0]
    assert await client.do("GET", "str:x") is None
    linear = await client.do("SUBSCRIBE", "__keyspace@0__:lock:x")
    assert isinstance(linear, hiredis.ReplyError)
    pattern = await client.do("PSUBSCRIBE", "__keyspace@0__:lock:*")
    assert str(pattern).startswith("UNSUPPORTED")
    assert str(linear).startswith("UNSUPPORTED")


async def test_a_reply_comes_before_the_message_that_it_caused(node: Served) -> None:
    client = await node.client(resp3=True)
    await client.do("SUBSCRIBE", "__keyspace@0__:str:self")
    client.writer.write(b"SET str:self 1\r\n")
    first, second = await client.reply(), await client.reply()
    assert {type(first), type(second)} == {bytes, hiredis.PushNotification}


async def test_litellm_shapes(node: Served) -> None:
    """Increment and expiry in one pipeline, under a database's prefix."""
    client = redis.asyncio.Redis(port=node.resp, db=3)
    async with client.pipeline(transaction=False) as pipe:
        pipe.set("cool", "1", ex=60).expire("cool", 30).ttl("cool").mget(["cool", "other"])
        replies = await pipe.execute()
    assert replies == [True, True, 30, [b"1", None]]
    assert await client.keys("*") == [b"cool"]
    assert [key async for key in client.scan_iter("c*")] == [b"cool"]
    await client.aclose()


async def test_redis_lock(node: Served) -> None:
    client = redis.asyncio.Redis(port=node.resp)
    assert await client.set("lock:pod", "a", nx=True, px=30_000) is True
    assert await client.set("lock:pod", "b", nx=True, px=30_000) is None
    await client.aclose()
