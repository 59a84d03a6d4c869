from __future__ import annotations

import math
from typing import Any

import pytest

from roost import requests
from roost.address import Address
from roost.requests import Request
from roost.types import Ack, Reading, Spent
from roost.watch import subscription
from roost.wire import encode, new_reader
from roost_crdt.errors import (
    BadRequest,
    Exhausted,
    RoostError,
    Unavailable,
    UnknownOutcome,
    WrongType,
)

ADDRESS = Address(path="/s")


def answer(request: Request[Any], *replies: bytes) -> Any:
    reader = new_reader()
    reader.feed(b"".join(replies))
    return request.answer([reader.gets() for _ in replies])


def bulk(text: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(text), text)


def reading(name: bytes, value: bytes, source: bytes = b"node", lag: int = 12) -> bytes:
    return b"%%5\r\n%b%b%b%b%b:%d\r\n%b%b%b%b" % (
        *(bulk(b"key"), bulk(b"k"), bulk(name), value, bulk(b"lag_ms")),
        *(lag, bulk(b"source"), bulk(source), bulk(b"consistency"), bulk(b"x")),
    )


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        (b"value", b"_\r\n", None),
        (b"value_json", bulk(b'"a\\u00e9"'), "aé"),
        (b"value_json", bulk(b'{"b":1.5,"a":[1,null]}'), {"b": 1.5, "a": [1, None]}),
        (b"value_json", bulk(b"12345678901234567890123"), 12345678901234567890123),
        (b"value_json", bulk(b'{"base64":"/w=="}'), b"\xff"),
        (b"value_json", bulk(b'{"base64":"YWJj"}'), {"base64": "YWJj"}),
        (b"value_json", bulk(b'{"base64":"not base64"}'), {"base64": "not base64"}),
        (b"value_json", bulk(b'["x",{"base64":"/w=="}]'), ["x", b"\xff"]),
        (b"value_json", bulk(b'{"f":{"base64":"/w=="},"g":2}'), {"f": b"\xff", "g": 2}),
        (b"value", bulk(b"raw"), "raw"),
        (b"value", bulk(b"\xff"), b"\xff"),
        (b"value", b":7\r\n", 7),
        (b"value", b",1.5\r\n", 1.5),
        (b"value", b"#t\r\n", True),
    ],
)
def test_reads_values(name: bytes, value: bytes, shown: object) -> None:
    assert answer(requests.get("k", None), reading(name, value)) == Reading(shown, 12, "node")


def test_reads_consensus_and_flat_arrays() -> None:
    flat = b"*6\r\n$5\r\nvalue\r\n:3\r\n$6\r\nlag_ms\r\n:0\r\n$6\r\nsource\r\n$9\r\nconsensus\r\n"
    assert answer(requests.get("k", 5), flat) == Reading(3, 0, "consensus")


def test_refuses_a_copy_that_lags_too_much() -> None:
    request = requests.get("k", 11)
    with pytest.raises(Unavailable) as caught:
        answer(request, reading(b"value", b":1\r\n"))
    assert caught.value.details["lag_ms"] == 12
    assert caught.value.retry_after_ms
    assert answer(requests.get("k", 12), reading(b"value", b":1\r\n")).value == 1


def test_writes_json_and_bytes() -> None:
    request = requests.set_value("k", {"b": 1, "a": "é"}, 500)
    assert request.commands == (("ROOST.SET", b"k", '{"b":1,"a":"é"}'.encode(), "PX", 500),)
    assert not request.repeat
    raw = requests.set_value(b"k", b"\xff", None)
    assert raw.commands == (("SET", b"k", b"\xff"), ("ROOST.HELLO",))
    hello = b"%1\r\n$3\r\nseq\r\n:9\r\n"
    assert answer(raw, b"+OK\r\n", hello) == Ack(9, True)
    with pytest.raises(WrongType):
        answer(raw, b"-WRONGTYPE a counter\r\n", hello)


def test_acknowledges_with_the_new_value() -> None:
    reply = b"%3\r\n$3\r\nseq\r\n:4\r\n$7\r\ndurable\r\n:1\r\n$10\r\nvalue_json\r\n$3\r\n2.5\r\n"
    assert answer(requests.incr("k", 2.5, "r"), reply) == Ack(4, True, 2.5)
    reply = b"%3\r\n$3\r\nseq\r\n:4\r\n$7\r\ndurable\r\n#t\r\n$5\r\nvalue\r\n#f\r\n"
    assert answer(requests.delete("k"), reply) == Ack(4, True, False)


def test_updates_maps_and_sets() -> None:
    assert requests.update("k", {"a": 1}, ["b"]).commands == (
        ("ROOST.UPDATE", b"k", b'{"put":{"a":1},"drop":["b"]}'),
    )
    assert requests.update("k", ["x", 2], ()).commands == (
        ("ROOST.UPDATE", b"k", b'{"put":["x",2]}'),
    )
    assert requests.update("k", {}, {"b"}).commands == (("ROOST.UPDATE", b"k", b'{"drop":["b"]}'),)


def test_bytes_go_as_they_are_in_one_transaction() -> None:
    request = requests.update("k", {"a": b"\xff"}, ["b"])
    assert request.commands[0] == ("MULTI",)
    assert request.commands[1:3] == (("HSET", b"k", "a", b"\xff"), ("HDEL", b"k", "b"))
    assert requests.update("k", [b"\xff"], ["b"]).commands[1:3] == (
        ("SADD", b"k", b"\xff"),
        ("SREM", b"k", "b"),
    )
    with pytest.raises(BadRequest):
        requests.update("k", {"a": b"\xff", "b": 1}, ())
    queued, hello = b"+QUEUED\r\n", b"%1\r\n$3\r\nseq\r\n:9\r\n"
    failed = b"*2\r\n:1\r\n-WRONGTYPE a set\r\n"
    with pytest.raises(WrongType):
        answer(request, b"+OK\r\n", queued, queued, failed, hello)


@pytest.mark.parametrize("key", ["", "a\0b", "x" * 201, "é" * 101, 3, None, "\ud800"])
def test_refuses_bad_keys_before_sending(key: Any) -> None:
    with pytest.raises(BadRequest):
        requests.get(key, None)


def test_keys_survive_as_text() -> None:
    assert requests.key_bytes(requests.key_text(b"a\xff:b")) == b"a\xff:b"


@pytest.mark.parametrize("value", [math.nan, math.inf, object(), {1, 2}, [b"x"], "\ud800"])
def test_refuses_values_that_json_cannot_say(value: object) -> None:
    with pytest.raises(BadRequest):
        requests.set_value("k", value, None)


def test_refuses_cycles_and_depth() -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (cycle, deep):
        with pytest.raises(BadRequest):
            requests.set_value("k", value, None)


@pytest.mark.parametrize(
    "make",
    [
        lambda: requests.set_value("k", 1, 0),
        lambda: requests.set_value("k", 1, -5),
        lambda: requests.incr("k", 1 << 63, "r"),
        lambda: requests.incr("k", math.nan, "r"),
        lambda: requests.incr("k", True, "r"),
        lambda: requests.incr("k", 1, ""),
        lambda: requests.spend("k", 0, "r"),
        lambda: requests.spend("k", 1, "x" * 129),
        lambda: requests.spend("k", 1, "line\nbreak"),
        lambda: requests.reserve("k", 1, "r", 0),
        lambda: requests.settle("id", -1),
        lambda: requests.update("k", "abc", ()),
        lambda: requests.update("k", {}, b"abc"),
        lambda: requests.update("k", [str(n) for n in range(1001)], ()),
        lambda: requests.get("k", -1),
        lambda: requests.keys_page("", b""),
        lambda: requests.keys_page(None, b""),  # type: ignore[arg-type]
        lambda: requests.keys_page("\ud800", b""),
        lambda: subscription(None),  # type: ignore[arg-type]
        lambda: subscription("\ud800"),
    ],
)
def test_refuses_bad_numbers_ids_and_collections(make: Any) -> None:
    with pytest.raises(BadRequest):
        make()


def test_quotas() -> None:
    spent = b"%2\r\n$15\r\nremaining_local\r\n:41\r\n$7\r\ngranted\r\n:50\r\n"
    request = requests.spend("usage_quota:a", 9, "r1")
    assert request.commands == (("ROOST.SPEND", b"usage_quota:a", 9, "r1"),)
    assert request.repeat
    assert answer(request, spent) == Spent(41, 50)
    with pytest.raises(Exhausted) as caught:
        answer(request, b"-EXHAUSTED nothing left [retry_after_ms=100 period_ends=5]\r\n")
    assert (caught.value.retry_after_ms, caught.value.details) == (100, {"period_ends": 5})
    reserved = requests.reserve("q", 5, "r2", 1000)
    assert answer(reserved, b"%1\r\n$2\r\nid\r\n$3\r\nabc\r\n") == "abc"
    assert answer(reserved, b"$3\r\nabc\r\n") == "abc"
    assert requests.settle("abc", 3).commands == (("ROOST.SETTLE", "abc", 3),)


def test_a_lost_read_is_unavailable_a_lost_write_unknown() -> None:
    lost = requests.lost(requests.get("k", None), ADDRESS, TimeoutError())
    assert isinstance(lost, Unavailable)
    assert "did not answer in time" in str(lost)
    lost = requests.lost(requests.spend("k", 1, "r9"), ADDRESS, ConnectionResetError("gone"))
    assert isinstance(lost, UnknownOutcome)
    assert lost.details == {"request_id": "r9"}
    assert "r9" in str(lost)
    lost = requests.lost(requests.delete("k"), ADDRESS, TimeoutError())
    assert isinstance(lost, UnknownOutcome)
    assert lost.details == {}


def test_canonical_json_ignores_order_only() -> None:
    one = requests.canonical_json({"b": 1, "a": [1, "é"]}, "args")
    assert one == requests.canonical_json({"a": [1, "é"], "b": 1}, "args")
    assert one != requests.canonical_json({"a": ["é", 1], "b": 1}, "args")
    assert requests.digest_id(b"ab", b"c") != requests.digest_id(b"a", b"bc")


def test_a_watched_prefix_is_taken_literally() -> None:
    assert requests.glob_escaped(rb"a*[b]?\c") == rb"a\*\[b\]\?\\c"


def test_all_requests_encode() -> None:
    for request in (
        requests.hello(),
        requests.get("k", None),
        requests.keys_page("k:*", b"k:1"),
        requests.applies_once("k"),
        requests.release("abc"),
    ):
        assert encode(request.commands).startswith(b"*")
        assert isinstance(requests.lost(request, ADDRESS, OSError("x")), RoostError)


def test_a_socket_that_may_not_be_used_is_told_from_one_that_nobody_serves() -> None:
    assert "is roostd running there?" in requests.refused(ADDRESS, FileNotFoundError()).message
    denied = requests.refused(ADDRESS, PermissionError(13, "Permission denied")).message
    assert "Permission denied" in denied
    assert denied.endswith("decided by the socket's owner, group and mode")
