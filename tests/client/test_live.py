"""Keys, quotas and watches of a real daemon."""

from __future__ import annotations

import multiprocessing
import threading
import time
from typing import Any

import pytest

import roost

from .conftest import PATIENT_S

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
def test_values_read_back_alike_from_node_and_index(
    client: Any, plain: Any, value: Any, fresh: Any, from_index: Any
) -> None:
    key = fresh("model_router_weights")
    assert client.set(key, value).durable
    assert plain.get(key).value == value
    until = time.monotonic() + PATIENT_S
    while not (reading := from_index(client, key)).node_up or reading.lag_ms >= 1000:
        assert time.monotonic() < until, reading
    assert reading.value == value
    assert type(reading.value) is type(value)


def test_utf8_bytes_and_text_are_one_string(client: Any, fresh: Any, from_index: Any) -> None:
    key = fresh("model_router_weights")
    client.set(key, b"text")
    assert client.get(key).value == "text"
    assert from_index(client, key).value == "text"


def test_a_key_that_does_not_exist_reads_none(client: Any, plain: Any, fresh: Any) -> None:
    for policy in ("model_router_weights", "counts", "tags", "profiles", "rate_limits", "flags"):
        key = fresh(policy)
        assert plain.get(key).value is None
        assert client.get(key).value is None


def test_counters_sets_and_maps_read_alike(
    client: Any, plain: Any, fresh: Any, from_index: Any
) -> None:
    count, cost, tags = fresh("counts"), fresh("costs"), fresh("tags")
    profile, tally = fresh("profiles"), fresh("tallies")
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
    expected = {
        count: -2,
        cost: 0.3,
        tags: ["a", "b", "þ", 2, {"x": 1}],
        profile: {"more": None, "n": [1], "name": "né", "raw": b"\xff"},
        tally: {"hits": 5, "miss": 1},
    }
    for key, value in expected.items():
        assert plain.get(key).value == value
        assert from_index(client, key).value == value
    for key in (count, cost, tags, profile, tally):
        assert client.delete(key).value is True
        assert plain.get(key).value is None
        assert from_index(client, key).value is None
    assert client.delete(count).value is False


def test_a_rate_reads_alike(client: Any, plain: Any, fresh: Any, from_index: Any) -> None:
    """What was counted in a window that has ended fades away: then all of it once more."""

    def window() -> int:
        return int(time.time()) // 60

    begun = -1
    while begun != window():
        begun, key = window(), fresh("rate_limits")
        client.incr(key, 4)
        shown = plain.get(key).value, from_index(client, key).value
    assert shown == (4, 4)


def test_a_big_set_is_read_whole(client: Any, plain: Any, fresh: Any, from_index: Any) -> None:
    key = fresh("tags")
    for start in range(0, 3000, 1000):
        client.update(key, put=[f"m{n:05}" for n in range(start, start + 1000)])
    expected = [f"m{n:05}" for n in range(3000)]
    assert from_index(client, key).value == expected
    assert plain.get(key).value == expected


def test_own_writes_are_always_seen(client: Any, fresh: Any) -> None:
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


def test_a_ttl_ends_in_the_index_too(client: Any, plain: Any, fresh: Any, from_index: Any) -> None:
    key, profile = fresh("model_router_weights"), fresh("profiles")
    for ttl_ms in (600_000, 100):
        for name, value in ((key, "x"), (profile, {"a": 1})):
            client.set(name, value, ttl_ms=ttl_ms)
            if ttl_ms > 100:
                assert from_index(client, name).value == value
                assert plain.get(name).value == value
    time.sleep(0.12)
    assert from_index(client, key).value is None
    assert from_index(client, profile).value is None
    assert plain.get(key).value is None


def test_max_lag(client: Any, fresh: Any) -> None:
    key = fresh("model_router_weights")
    client.set(key, 1)
    assert client.get(key, max_lag_ms=60_000).value == 1
    assert client.get(key, max_lag_ms=0).value == 1  # alone, a node lacks nothing
    with pytest.raises(roost.BadRequest):
        client.get(key, max_lag_ms=-1)


def test_linearizable_keys_come_from_consensus(client: Any, fresh: Any) -> None:
    flag, seats = fresh("flags"), fresh("seats")
    client.set(flag, {"on": True})
    assert client.get(flag) == roost.Reading({"on": True}, 0, "consensus")
    assert client.incr(seats, 3, request_id="r-1").value == 3
    assert client.incr(seats, 3, request_id="r-1").value == 3
    assert client.get(seats).value == 3
    assert client.delete(flag).value is True
    assert client.get(flag).value is None


def test_quotas(client: Any, fresh: Any) -> None:
    key = fresh("usage_quota")
    spent = client.spend(key, 5, request_id="a")
    assert client.spend(key, 5, request_id="a") == spent
    assert client.get(key).value["remaining"] <= 1_000_000 - 5
    reservation = client.reserve(key, 100, request_id="b", ttl_ms=600_000)
    assert client.reserve(key, 100, request_id="b", ttl_ms=600_000).id == reservation.id
    reservation.settle(40)
    with client.reserve(key, 100, request_id="c", ttl_ms=600_000):
        pass
    with client.reserve(key, 100, request_id="d", ttl_ms=600_000) as kept:
        kept.settle(1)
    left = client.get(key).value
    assert left["remaining"] == 1_000_000 - 46
    with pytest.raises(roost.Exhausted) as caught:
        client.spend(key, 2_000_000, request_id="e")
    assert caught.value.details["period_ends"] > time.time() * 1000
    assert client.incr(fresh("billing"), 7).value["pending"] >= 0


def test_refusals_carry_their_codes(client: Any, fresh: Any) -> None:
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


def test_keys_are_listed_over_pages(client: Any, fresh: Any) -> None:
    prefix = fresh("model_router_weights")
    for n in range(1203):
        client.run(roost.requests.set_value(f"{prefix}:{n:04}", n, None))
    assert client.keys(prefix + ":*") == [f"{prefix}:{n:04}" for n in range(1203)]
    assert client.keys(prefix + ":000[12]") == [prefix + ":0001", prefix + ":0002"]
    assert client.keys(prefix + ":nothing*") == []


def test_watch_sees_changes_in_order(client: Any, daemon: Any, fresh: Any) -> None:
    prefix = fresh("model_router_weights")
    with daemon.connect() as writer, client.watch(prefix, idle_ms=60_000) as watch:
        writer.set(fresh("model_router_weights"), "elsewhere")
        stamp = (0, 0)
        for value in (1, "two", None):
            writer.set(prefix + "*", value)
            change = next(watch)
            assert (change.key, change.value) == (prefix + "*", value)
            assert change.stamp is not None
            assert change.stamp > stamp
            stamp = change.stamp
        writer.delete(prefix + "*")
        gone = next(watch)
        assert gone.value is None
        assert gone.stamp is not None
        assert gone.stamp > stamp
    assert list(watch) == []
    with client.watch(prefix, idle_ms=50) as watch:
        assert list(watch) == []


def test_a_watch_ends_when_closed_by_another_thread(client: Any) -> None:
    watch = client.watch("model_router_weights:")
    closer = threading.Timer(0.1, watch.close)
    closer.start()
    assert list(watch) == []
    closer.join()


def test_threads_share_a_client(client: Any, fresh: Any) -> None:
    key = fresh("counts")
    threads = [
        threading.Thread(target=lambda: [client.incr(key) for _ in range(50)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client.get(key).value == 200


def test_a_forked_process_reads_and_writes(client: Any, fresh: Any, from_index: Any) -> None:
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
        child.join(PATIENT_S)
        assert child.exitcode == 0
        assert results.get() in ("before", "child")
        assert results.get() == "child"
    deadline = time.monotonic() + PATIENT_S
    while client.get(key).value != "child":
        assert time.monotonic() < deadline
    assert from_index(client, key).value == "child"


def test_over_tcp_the_index_is_read_too(daemon: Any, fresh: Any, from_index: Any) -> None:
    key = fresh("model_router_weights")
    with roost.connect(daemon.redis_url, deadline_ms=60_000) as client:
        client.set(key, 1)
        assert from_index(client, key).value == 1


def test_two_clients_share_the_mapping(daemon: Any, fresh: Any, from_index: Any) -> None:
    key = fresh("model_router_weights")
    with daemon.connect() as one:
        with daemon.connect() as two:
            two.set(key, 1)
            assert from_index(two, key).value == 1
            assert from_index(one, key).value == 1
        assert from_index(one, key).value == 1
