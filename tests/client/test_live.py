"""The client against a real daemon."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import shutil
import signal
import threading
import time
import uuid
from typing import Any

import pytest

import roost
from roost import aio


@pytest.fixture
def client(daemon: Any) -> Any:
    with roost.connect(daemon.url) as connected:
        yield connected


@pytest.fixture
def plain(daemon: Any) -> Any:
    """A client that reads by the socket."""
    with roost.connect(daemon.url, mmap=False) as connected:
        yield connected


def fresh(policy: str) -> str:
    return f"{policy}:{uuid.uuid4().hex}"


def from_index(client: roost.Client, key: str) -> roost.Reading:
    """The first reading that comes from shared memory."""
    until = time.monotonic() + 5
    while (reading := client.get(key)).source != "mmap":
        assert time.monotonic() < until, "the index never caught up"
        time.sleep(0.01)
    return reading


VALUES = [
    "plain",
    "",
    "né\n\0",
    b"\xff\x00",
    0,
    -7,
    1.5,
    True,
    None,
    [],
    [1, "a", None],
    {"b": 1, "a": {"c": [2.5]}},
    {"base64": "YWJj"},
    12345678901234567890123,
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_values_read_back_alike_from_node_and_index(client: Any, plain: Any, value: Any) -> None:
    key = fresh("model_router_weights")
    assert client.set(key, value).durable
    assert plain.get(key).value == value
    reading = from_index(client, key)
    assert reading.value == value
    assert type(reading.value) is type(value)
    assert reading.node_up
    assert reading.lag_ms < 1000


def test_utf8_bytes_and_text_are_one_string(client: Any) -> None:
    key = fresh("model_router_weights")
    client.set(key, b"text")
    assert client.get(key).value == "text"
    assert from_index(client, key).value == "text"


def test_a_key_that_does_not_exist_reads_none(client: Any, plain: Any) -> None:
    for policy in ("model_router_weights", "counts", "tags", "profiles", "rate_limits", "flags"):
        key = fresh(policy)
        assert plain.get(key).value is None
        assert client.get(key).value is None


def test_counters_sets_maps_and_rates_read_alike(client: Any, plain: Any) -> None:
    count, cost, tags = fresh("counts"), fresh("costs"), fresh("tags")
    profile, tally, rate = fresh("profiles"), fresh("tallies"), fresh("rate_limits")
    assert client.incr(count, 5).value == 5
    assert client.incr(count, -7).value == -2
    assert client.incr(cost, 0.1).value == 0.1
    assert client.incr(cost, 0.2).value == 0.3
    client.update(tags, put=["b", 2, {"x": 1}, "gone", b"\xfe".decode("latin-1")])
    client.update(tags, put=["a"], drop=["gone"])
    client.update(profile, put={"name": "né", "n": [1], "gone": 1})
    client.update(profile, put={"more": None}, drop=["gone"])
    client.update(profile, put={"raw": b"\xff"})
    assert client.incr(tally, {"hits": 3}).value == {"hits": 3}
    client.incr(tally, {"hits": 2, "miss": 1})
    client.incr(rate, 4)
    expected = {
        count: -2,
        cost: 0.3,
        tags: ["a", "b", "þ", 2, {"x": 1}],
        profile: {"more": None, "n": [1], "name": "né", "raw": b"\xff"},
        tally: {"hits": 5, "miss": 1},
        rate: 4,
    }
    for key, value in expected.items():
        assert plain.get(key).value == value
        assert from_index(client, key).value == value
    for key in (count, cost, tags, profile, tally):
        assert client.delete(key).value is True
        assert plain.get(key).value is None
        assert from_index(client, key).value is None
    assert client.delete(count).value is False


def test_a_big_set_is_read_whole(client: Any, plain: Any) -> None:
    key = fresh("tags")
    for start in range(0, 3000, 1000):
        client.update(key, put=[f"m{n:05}" for n in range(start, start + 1000)])
    expected = [f"m{n:05}" for n in range(3000)]
    assert from_index(client, key).value == expected
    assert plain.get(key).value == expected


def test_own_writes_are_always_seen(client: Any) -> None:
    key = fresh("model_router_weights")
    sources = set()
    for n in range(300):
        client.set(key, n)
        reading = client.get(key)
        assert reading.value == n
        sources.add(reading.source)
    assert "node" in sources
    client.delete(key)
    assert client.get(key).value is None
    client.set(key, b"\xff")
    assert client.get(key).value == b"\xff"
    names = fresh("profiles")
    client.update(names, put={"a": b"\xff"})
    assert client.get(names).value == {"a": b"\xff"}


def test_a_ttl_ends_in_the_index_too(client: Any, plain: Any) -> None:
    key, profile = fresh("model_router_weights"), fresh("profiles")
    client.set(key, "x", ttl_ms=400)
    client.set(profile, {"a": 1}, ttl_ms=400)
    assert client.get(key).value == "x"
    assert client.get(profile).value == {"a": 1}
    time.sleep(0.45)
    assert from_index(client, key).value is None
    assert from_index(client, profile).value is None
    assert plain.get(key).value is None


def test_max_lag(client: Any) -> None:
    key = fresh("model_router_weights")
    client.set(key, 1)
    assert client.get(key, max_lag_ms=5000).value == 1
    assert client.get(key, max_lag_ms=0).value == 1  # alone, a node lacks nothing
    with pytest.raises(roost.BadRequest):
        client.get(key, max_lag_ms=-1)


def test_linearizable_keys_come_from_consensus(client: Any) -> None:
    flag, seats = fresh("flags"), fresh("seats")
    client.set(flag, {"on": True})
    assert client.get(flag) == roost.Reading({"on": True}, 0, "consensus")
    assert client.incr(seats, 3, request_id="r-1").value == 3
    assert client.incr(seats, 3, request_id="r-1").value == 3
    assert client.get(seats).value == 3
    assert client.delete(flag).value is True
    assert client.get(flag).value is None


def test_quotas(client: Any) -> None:
    key = fresh("usage_quota")
    spent = client.spend(key, 5, request_id="a")
    assert client.spend(key, 5, request_id="a") == spent
    assert client.get(key).value["remaining"] <= 1_000_000 - 5
    reservation = client.reserve(key, 100, request_id="b", ttl_ms=5000)
    assert client.reserve(key, 100, request_id="b", ttl_ms=5000).id == reservation.id
    reservation.settle(40)
    with client.reserve(key, 100, request_id="c", ttl_ms=5000):
        pass
    with client.reserve(key, 100, request_id="d", ttl_ms=5000) as kept:
        kept.settle(1)
    left = client.get(key).value
    assert left["remaining"] == 1_000_000 - 46
    with pytest.raises(roost.Exhausted) as caught:
        client.spend(key, 2_000_000, request_id="e")
    assert caught.value.details["period_ends"] > time.time() * 1000
    assert client.incr(fresh("billing"), 7).value["pending"] >= 0


def test_refusals_carry_their_codes(client: Any) -> None:
    cases: list[tuple[str, Any]] = [
        ("NOPOLICY", lambda: client.get("unheard_of:x")),
        ("NOPOLICY", lambda: client.set("unheard_of:x", 1)),
        ("UNSUPPORTED", lambda: client.incr(fresh("model_router_weights"))),
        ("BADREQUEST", lambda: client.set(fresh("counts"), "many")),
        ("UNSUPPORTED", lambda: client.set("conversation_buffer:s", 1)),
        ("BADTOKEN", lambda: client.open("eyJ.x.y")),
        ("TOOLARGE", lambda: client.set(fresh("model_router_weights"), "x" * (9 << 20))),
    ]
    for code, act in cases:
        with pytest.raises(roost.RoostError) as caught:
            act()
        assert caught.value.code == code
    session = client.open()
    session.erase()
    with pytest.raises(roost.NoSession):
        session.turns()


def test_keys_are_listed_over_pages(client: Any) -> None:
    prefix = fresh("model_router_weights")
    for n in range(1203):
        client.run(roost.requests.set_value(f"{prefix}:{n:04}", n, None))
    assert client.keys(prefix + ":*") == [f"{prefix}:{n:04}" for n in range(1203)]
    assert client.keys(prefix + ":000[12]") == [prefix + ":0001", prefix + ":0002"]
    assert client.keys(prefix + ":nothing*") == []


def test_watch_sees_changes_in_order(client: Any, daemon: Any) -> None:
    prefix = fresh("model_router_weights")
    with roost.connect(daemon.url) as writer, client.watch(prefix, idle_ms=3000) as watch:
        writer.set(fresh("model_router_weights"), "elsewhere")
        for value in (1, "two", None):
            writer.set(prefix + "*", value)
            change = next(watch)
            assert (change.key, change.value) == (prefix + "*", value)
        writer.delete(prefix + "*")
        assert next(watch).value is None
    assert list(watch) == []
    with client.watch(prefix, idle_ms=50) as watch:
        assert list(watch) == []


def test_a_watch_ends_when_closed_by_another_thread(client: Any) -> None:
    watch = client.watch("model_router_weights:")
    closer = threading.Timer(0.1, watch.close)
    closer.start()
    assert list(watch) == []
    closer.join()


def test_a_conversation(client: Any) -> None:
    session = client.open()
    assert (session.turn, session.epoch, session.home) == (0, 1, "eu-1")
    first = [{"role": "user", "content": "né", "z": 1, "a": {"deep": [1.5, None]}}]
    turn = session.commit(first, put={"kv_cache_index": {"gpu": "n3", "blocks": [1, 2]}})
    assert (turn.number, turn.stale_turns, turn.served_by) == (1, 0, "home")
    assert turn.token == session.token
    session.commit([{"role": "assistant", "content": "b"}])
    turns = session.turns()
    assert turns.messages == [*first, {"role": "assistant", "content": "b"}]
    assert list(turns.messages[0]) == ["role", "content", "z", "a"]
    assert (turns.turn, turns.stale_turns, turns.served_by) == (2, 0, "home")
    assert session.turns(last=1).messages == [{"role": "assistant", "content": "b"}]
    assert session.turns(last=0).messages == []
    assert session.field("kv_cache_index", "gpu") == "n3"
    assert session.field("kv_cache_index", "blocks") == [1, 2]
    assert session.field("kv_cache_index", "none") is None
    session.commit([], put={"kv_cache_index": {"gpu": None}})
    assert session.field("kv_cache_index", "gpu") is None
    again = client.open(session.token)
    assert (again.sid, again.turn) == (session.sid, 3)
    assert client.open(sid=session.sid).turn == 3
    fork = session.fork(at=1)
    assert fork.sid != session.sid
    assert fork.turns().messages == first
    receipts = session.erase()
    assert receipts[0]["node"] == "eu-1"
    with pytest.raises(roost.NoSession):
        again.turns()
    assert fork.turns().turn == 1


def test_a_turn_behind_conflicts_unless_told_otherwise(client: Any) -> None:
    session = client.open(sid=uuid.uuid4().hex)
    other = client.open(session.token)
    session.commit([{"role": "user", "content": "1"}], turn_id="t1")
    with pytest.raises(roost.TurnConflict) as caught:
        other.commit([{"role": "user", "content": "2"}])
    assert caught.value.details["turn"] == 1
    with pytest.raises(roost.TurnConflict):
        session.commit([], base=0)
    turn = other.commit([{"role": "user", "content": "2"}], on_conflict="append")
    assert turn.number == 2
    assert session.commit([{"role": "user", "content": "1"}], turn_id="t1").number == 1
    assert [m["content"] for m in session.turns().messages] == ["1", "2"]


def test_a_ledger(client: Any) -> None:
    session = client.open()
    session.commit([{"role": "user", "content": "pay"}])
    call = session.call("pay", {"to": "bob", "cents": 5})
    assert call.status == "fresh"
    assert session.call("pay", {"cents": 5, "to": "bob"}).status == "in_doubt"
    call.finish({"receipt": 9})
    seen = client.open(session.token).call("pay", {"to": "bob", "cents": 5})
    assert (seen.status, seen.result) == ("finished", {"receipt": 9})
    with pytest.raises(roost.CallConflict):
        session.call("pay", {"to": "eve"}, key=call.key)
    failed = session.call("fetch", {"url": "x"}, key="mine")
    failed.fail(ValueError("no route"))
    seen = session.call("fetch", {"url": "x"}, key="mine")
    assert (seen.status, seen.result) == ("failed", "ValueError: no route")
    seen.retry()
    assert seen.status == "fresh"
    seen.finish([1])
    assert session.call("fetch", {"url": "x"}, key="mine").result == [1]
    session.commit([{"role": "assistant", "content": "paid"}])
    assert session.call("pay", {"to": "bob", "cents": 5}).status == "fresh"  # another turn


def test_threads_share_a_client(client: Any) -> None:
    key = fresh("counts")
    threads = [
        threading.Thread(target=lambda: [client.incr(key) for _ in range(50)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client.get(key).value == 200


def test_a_forked_process_reads_and_writes(client: Any) -> None:
    key = fresh("model_router_weights")
    client.set(key, "before")
    from_index(client, key)
    context = multiprocessing.get_context("fork")
    results: Any = context.SimpleQueue()

    def in_child() -> None:
        results.put(from_index(client, key).value)
        client.set(key, "child")
        results.put(client.get(key).value)
        client.close()

    for _ in range(3):
        child = context.Process(target=in_child)
        child.start()
        assert from_index(client, key).source == "mmap"  # its reader slot is its own
        child.join(20)
        assert child.exitcode == 0
        assert results.get() in ("before", "child")
        assert results.get() == "child"
    deadline = time.monotonic() + 2
    while client.get(key).value != "child":
        assert time.monotonic() < deadline
    assert from_index(client, key).value == "child"


def test_over_tcp_the_index_is_read_too(daemon: Any) -> None:
    key = fresh("model_router_weights")
    with roost.connect(daemon.redis_url) as client:
        client.set(key, 1)
        assert from_index(client, key).value == 1


def test_two_clients_share_the_mapping(daemon: Any) -> None:
    key = fresh("model_router_weights")
    with roost.connect(daemon.url) as one:
        with roost.connect(daemon.url) as two:
            two.set(key, 1)
            assert from_index(two, key).value == 1
            assert from_index(one, key).value == 1
        assert from_index(one, key).value == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open anything")
def test_without_the_right_to_the_lock_table_the_socket_is_used(daemon: Any) -> None:
    lock = daemon.index / "lock.mdb"
    mode = lock.stat().st_mode
    lock.chmod(0o444)
    try:
        with roost.connect(daemon.url) as client:
            assert client.get(fresh("model_router_weights")).source == "node"
    finally:
        lock.chmod(mode)


# --- a daemon that comes and goes ---------------------------------------------------------------


def test_reads_go_on_while_the_daemon_is_down(own_daemon: Any) -> None:
    key = fresh("model_router_weights")
    with roost.connect(own_daemon.url, deadline_ms=500) as client:
        client.set(key, "kept")
        from_index(client, key)
        own_daemon.kill()
        time.sleep(0.15)
        client.get(key)
        reading = client.get(key)
        assert (reading.value, reading.source, reading.node_up) == ("kept", "mmap", False)
        time.sleep(0.2)
        assert client.get(key).lag_ms > reading.lag_ms
        with pytest.raises(roost.Unavailable):
            client.get(key, max_lag_ms=50)
        with pytest.raises(roost.Unavailable):
            client.set(key, "lost")
        with pytest.raises(roost.Unavailable):
            client.get(fresh("flags"))
        own_daemon.start()
        assert client.set(key, "again").durable
        assert client.get(key).value == "again"
        assert from_index(client, key).node_up


def test_a_stopped_daemon_does_not_hang_the_reader(own_daemon: Any) -> None:
    key = fresh("model_router_weights")
    with roost.connect(own_daemon.url, deadline_ms=300) as client:
        client.set(key, "kept")
        from_index(client, key)
        own_daemon.signal(signal.SIGSTOP)
        try:
            started = time.monotonic()
            with pytest.raises(roost.UnknownOutcome):
                client.set(key, "?")
            assert time.monotonic() - started < 1
            slowest = 0.0
            while (reading := client.get(key)).node_up:
                slowest = max(slowest, time.monotonic() - started)
                started = time.monotonic()
            assert reading.value == "kept"
            assert slowest < 0.4
        finally:
            own_daemon.signal(signal.SIGCONT)
        until = time.monotonic() + 3
        while not client.get(key).node_up:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_another_store_at_the_same_place_is_noticed(own_daemon: Any) -> None:
    key = fresh("model_router_weights")
    with roost.connect(own_daemon.url) as client:
        for n in range(20):
            client.set(key, n)
        from_index(client, key)
        own_daemon.stop()
        shutil.rmtree(own_daemon.folder / "data")
        own_daemon.start()
        until = time.monotonic() + 3
        while client.get(key).value is not None:
            assert time.monotonic() < until
            time.sleep(0.01)
        client.set(key, "new")
        assert client.get(key).value == "new"
        assert from_index(client, key).value == "new"


# --- asyncio ------------------------------------------------------------------------------------


async def test_aio_has_the_same_names(daemon: Any) -> None:
    key, count = fresh("model_router_weights"), fresh("counts")
    async with aio.connect(daemon.url) as client:
        assert client.node == "eu-1"
        ack = await client.set(key, {"a": 1})
        assert ack.durable
        assert (await client.get(key)).value == {"a": 1}
        done = await asyncio.gather(*(client.incr(count) for _ in range(100)))
        assert sorted(ack.value for ack in done) == list(range(1, 101))
        assert (await client.get(count)).value == 100
        await asyncio.sleep(0.3)
        assert (await client.get(count)).source == "mmap"
        assert (await client.update(fresh("tags"), put=["a"])).durable
        assert await client.keys(key) == [key]
        assert (await client.delete(key)).value is True
        quota = fresh("usage_quota")
        assert (await client.spend(quota, 1, request_id="a")).remaining_local >= 0
        async with await client.reserve(quota, 5, request_id="b", ttl_ms=1000) as reservation:
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


async def test_aio_watch(daemon: Any) -> None:
    key = fresh("model_router_weights")
    async with aio.connect(daemon.url) as client:
        async with client.watch(key, idle_ms=3000) as watch:
            for n in (1, 2):
                await client.set(key, n)
                change = await anext(watch)
                assert (change.key, change.value) == (key, n)
        assert [change async for change in client.watch(key, idle_ms=50)] == []
        watch = await client.watch(key)
        asyncio.get_running_loop().call_later(0.05, asyncio.ensure_future, watch.close())
        assert [change async for change in watch] == []


async def test_aio_watch_says_when_it_was_interrupted(own_daemon: Any) -> None:
    async with aio.connect(own_daemon.url) as client:
        watch = await client.watch("counts:")
        own_daemon.kill()
        with pytest.raises(roost.Unavailable, match="interrupted"):
            await anext(watch)
    own_daemon.start()
    with roost.connect(own_daemon.url) as blocking:
        watching = blocking.watch("counts:")
        own_daemon.kill()
        with pytest.raises(roost.Unavailable, match="interrupted"):
            next(watching)
