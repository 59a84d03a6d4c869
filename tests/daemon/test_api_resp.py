"""RESP commands on a real node: shapes and refusals."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import hiredis
import pytest
import pytest_asyncio
from api_node import Client, Served, served

from roostd.api.resp.table import COMMANDS

CONTRACT_COMMANDS = [
    "HELLO",
    "AUTH",
    "PING",
    "ECHO",
    "SELECT",
    "CLIENT",
    "COMMAND",
    "CONFIG",
    "INFO",
    "QUIT",
    "RESET",
    "DBSIZE",
    "TIME",
    "WAIT",
    "GET",
    "SET",
    "SETEX",
    "PSETEX",
    "MGET",
    "MSET",
    "GETEX",
    "DEL",
    "UNLINK",
    "EXISTS",
    "TYPE",
    "EXPIRE",
    "PEXPIRE",
    "EXPIREAT",
    "PEXPIREAT",
    "PERSIST",
    "TTL",
    "PTTL",
    "SCAN",
    "KEYS",
    "STRLEN",
    "GETDEL",
    "EXPIRETIME",
    "INCR",
    "INCRBY",
    "DECR",
    "DECRBY",
    "INCRBYFLOAT",
    "SADD",
    "SREM",
    "SMEMBERS",
    "SISMEMBER",
    "SMISMEMBER",
    "SCARD",
    "SSCAN",
    "HSET",
    "HMSET",
    "HGET",
    "HMGET",
    "HGETALL",
    "HDEL",
    "HEXISTS",
    "HKEYS",
    "HVALS",
    "HLEN",
    "HINCRBY",
    "HINCRBYFLOAT",
    "HSCAN",
    "LRANGE",
    "LLEN",
    "LINDEX",
    "MULTI",
    "EXEC",
    "DISCARD",
    "WATCH",
    "UNWATCH",
    "SUBSCRIBE",
    "PSUBSCRIBE",
    "ROOST.OPEN",
    "ROOST.TURN",
    "ROOST.TURNS",
    "ROOST.CALL",
    "ROOST.FORK",
    "ROOST.ERASE",
    "ROOST.SPEND",
    "ROOST.RESERVE",
    "ROOST.SETTLE",
    "ROOST.POLICY",
    "ROOST.STATUS",
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with served(tmp_path_factory.mktemp("resp")) as running:
        yield running


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module")
async def client(node: Served) -> Client:
    return await node.client()


def refusal(reply: Any) -> str:
    assert isinstance(reply, hiredis.ReplyError), reply
    return str(reply)


def as_map(flat: list[Any]) -> dict[str, Any]:
    return {flat[i].decode(): flat[i + 1] for i in range(0, len(flat), 2)}


async def test_every_command_of_the_contract_is_there() -> None:
    assert [name for name in CONTRACT_COMMANDS if name.encode() not in COMMANDS] == []


async def test_handshake(client: Client) -> None:
    two = as_map(await client.do("hello"))
    assert two["proto"] == 2
    assert two["server"] == b"redis"
    three = await client.do("HELLO", 3, "SETNAME", "me")
    assert three[b"proto"] == 3
    assert three[b"version"] == b"7.0.15"
    assert await client.do("CLIENT", "GETNAME") == b"me"
    assert refusal(await client.do("HELLO", 4)) == "NOPROTO unsupported protocol version"
    assert "Protocol version is not an integer" in refusal(await client.do("HELLO", "x"))
    assert await client.do("CLIENT", "SETINFO", "LIB-NAME", "x") == "OK" or True
    assert "unknown subcommand" in refusal(await client.do("CLIENT", "MAINT_NOTIFICATIONS", "ON"))
    assert await client.do("RESET") == b"RESET"
    assert as_map(await client.do("HELLO"))["proto"] == 2


async def test_connection_commands(client: Client) -> None:
    assert await client.do("PING") == b"PONG"
    assert await client.do("ping", "hello") == b"hello"
    assert await client.do("ECHO", b"\xff\r\n") == b"\xff\r\n"
    number = await client.do("CLIENT", "ID")
    assert b"id=%d " % number in await client.do("CLIENT", "INFO")
    assert b"id=%d " % number in await client.do("CLIENT", "LIST")
    assert "names cannot contain" in refusal(await client.do("CLIENT", "SETNAME", "a b"))
    seconds, micros = await client.do("TIME")
    assert int(seconds) > 1_700_000_000
    assert 0 <= int(micros) < 1_000_000
    assert await client.do("WAIT", 0, 10) == 0
    assert refusal(await client.do("SELECT", 7)).startswith("ERR DB index is out of range")
    assert await client.do("SELECT", 3) == b"OK"
    assert await client.do("SET", "k", "v") == b"OK"
    assert await client.do("KEYS", "*") == [b"k"]
    assert await client.do("SELECT", 0) == b"OK"
    assert await client.do("GET", "litellm:k") == b"v"
    assert await client.do("DEL", "litellm:k") == 1
    assert "AUTH <password> called without" in refusal(await client.do("AUTH", "x"))


async def test_client_reply_modes(client: Client) -> None:
    client.writer.write(b"CLIENT REPLY OFF\r\nPING\r\nPING\r\nCLIENT REPLY ON\r\nPING\r\n")
    assert [await client.reply(), await client.reply()] == [b"OK", b"PONG"]
    client.writer.write(b"CLIENT REPLY SKIP\r\nPING\r\nECHO a\r\n")
    assert await client.reply() == b"a"


async def test_introspection(client: Client) -> None:
    assert await client.do("COMMAND", "COUNT") == len(COMMANDS)
    [get, missing] = await client.do("COMMAND", "INFO", "get", "nonsense")
    assert get[:6] == [b"get", 2, [b"readonly"], 1, 1, 1]
    assert missing is None
    docs = as_map(await client.do("COMMAND", "DOCS", "get"))
    assert as_map(docs["get"])["group"] == b"string"
    assert b"roost.turn" in await client.do("COMMAND", "LIST")
    assert await client.do("COMMAND", "GETKEYS", "MSET", "a", "1", "b", "2") == [b"a", b"b"]
    assert await client.do("CONFIG", "GET", "save") == [b"save", b""]
    assert as_map(await client.do("CONFIG", "GET", "maxmemory*"))["maxmemory-policy"]
    assert refusal(await client.do("CONFIG", "SET", "save", "")).startswith("UNSUPPORTED")
    info = (await client.do("INFO")).decode()
    assert "redis_version:7.0.15\r\n" in info
    assert "loading:0\r\n" in info
    assert (await client.do("INFO", "clients")).startswith(b"# Clients\r\n")


async def test_registers(client: Client) -> None:
    assert await client.do("SET", "str:a", "1", "EX", 100) == b"OK"
    assert 99 <= await client.do("TTL", "str:a") <= 100
    assert await client.do("SET", "str:a", "2", "KEEPTTL", "GET") == b"1"
    assert await client.do("PTTL", "str:a") > 90_000
    assert await client.do("SET", "str:a", "3") == b"OK"
    assert await client.do("TTL", "str:a") == -1
    assert await client.do("GETEX", "str:a", "PX", 5_000) == b"3"
    assert await client.do("PERSIST", "str:a") == 1
    assert await client.do("PERSIST", "str:a") == 0
    assert await client.do("MSET", "str:b", "x", "str:c", "y") == b"OK"
    assert await client.do("MGET", "str:a", "str:b", "str:none", "lock:none") == [
        b"3",
        b"x",
        None,
        None,
    ]
    assert await client.do("GETDEL", "str:c") == b"y"
    assert await client.do("EXISTS", "str:a", "str:a", "str:c") == 2
    assert await client.do("STRLEN", "str:a") == 1
    assert await client.do("TYPE", "str:a") == b"string"
    assert await client.do("TYPE", "str:none") == b"none"
    assert await client.do("TTL", "str:none") == -2
    assert await client.do("PEXPIREAT", "str:a", 1) == 1
    assert await client.do("GET", "str:a") is None
    assert await client.do("SET", "short:a", "x") == b"OK"
    assert 3_500 < await client.do("TTL", "short:a") <= 3_600


async def test_refusals_say_what_to_use(client: Client) -> None:
    for args, start, part in (
        (("SET", "str:a", "1", "NX"), "UNSUPPORTED", "linearizable"),
        (("SETNX", "str:a", "1"), "UNSUPPORTED", "linearizable"),
        (("INCR", "str:a"), "UNSUPPORTED", "counter"),
        (("RPUSH", "conversation_buffer:x", "m"), "UNSUPPORTED", "ROOST.TURN"),
        (("SET", "conversation_buffer:x", "m"), "UNSUPPORTED", "ROOST.TURN"),
        (("HSET", "kv_cache_index:x", "f", "v"), "UNSUPPORTED", "ROOST.TURN"),
        (("DEL", "conversation_buffer:x"), "UNSUPPORTED", "ROOST.ERASE"),
        (("HINCRBY", "map:a", "f", "1"), "UNSUPPORTED", 'fields = "counter"'),
        (("HSET", "cmap:a", "f", "1"), "UNSUPPORTED", "HINCRBY"),
        (("INCRBYFLOAT", "cnt:a", "0.5"), "UNSUPPORTED", "float = true"),
        (("INCR", "quota:a"), "UNSUPPORTED", "ROOST.SPEND"),
        (("INCRBY", "rate:a", "-1"), "UNSUPPORTED", "counts up"),
        (("GET", "nothing"), "NOPOLICY", "conversation_buffer"),
        (("GET", ""), "BADREQUEST", "empty"),
        (("GET", b"str:\0"), "BADREQUEST", "NUL"),
        (("GET", "str:" + "x" * 200), "BADREQUEST", "over 200"),
        (("EVAL", "return 1", "0"), "ERR unknown command 'EVAL'", "MULTI"),
        (("ZADD", "a", "1", "b"), "ERR unknown command 'ZADD'", "SADD"),
        (("XADD", "a", "*", "b", "c"), "ERR unknown command 'XADD'", "ROOST.TURN"),
        (("BLPOP", "a", "1"), "ERR unknown command 'BLPOP'", "PSUBSCRIBE"),
        (("RENAME", "a", "b"), "ERR unknown command 'RENAME'", "DEL"),
        (("FLUSHALL",), "ERR unknown command 'FLUSHALL'", "SCAN"),
        (("PUBLISH", "a", "b"), "ERR unknown command 'PUBLISH'", "PSUBSCRIBE"),
        (("NONSENSE", "a"), "ERR unknown command 'NONSENSE', with args beginning with: 'a' ", ""),
        (("GET",), "ERR wrong number of arguments for 'get' command", ""),
        (("SUBSCRIBE", "news"), "UNSUPPORTED", "__keyspace@0__"),
    ):
        text = refusal(await client.do(*args))
        assert text.startswith(start), args
        assert part in text, args


async def test_wrong_type(client: Client) -> None:
    await client.do("SADD", "set:w", "a")
    await client.do("SET", "str:w", "a")
    redis = "WRONGTYPE Operation against a key holding the wrong kind of value"
    assert refusal(await client.do("GET", "set:w")) == redis
    assert refusal(await client.do("SMEMBERS", "str:w")) == redis
    assert refusal(await client.do("HGETALL", "str:w")) == redis
    assert refusal(await client.do("LRANGE", "str:w", 0, -1)) == redis
    assert refusal(await client.do("SADD", "str:w", "x")).startswith("WRONGTYPE ")
    assert refusal(await client.do("HSET", "set:w", "x", "y")).startswith("WRONGTYPE ")
    assert refusal(await client.do("SET", "set:w", "x")).startswith("WRONGTYPE ")
    assert await client.do("SMEMBERS", "str:missing") == []
    assert await client.do("HGETALL", "str:missing") == []
    assert await client.do("MGET", "set:w", "str:w") == [None, b"a"]


async def test_counters(client: Client) -> None:
    assert await client.do("INCR", "cnt:a") == 1
    assert await client.do("INCRBY", "cnt:a", 41) == 42
    assert await client.do("DECRBY", "cnt:a", 2) == 40
    assert await client.do("GET", "cnt:a") == b"40"
    assert await client.do("SET", "cnt:a", "9223372036854775807") == b"OK"
    overflow = "ERR increment or decrement would overflow"
    assert refusal(await client.do("INCR", "cnt:a")) == overflow
    assert refusal(await client.do("INCRBY", "cnt:a", "1.5")) == (
        "ERR value is not an integer or out of range"
    )
    assert refusal(await client.do("DECRBY", "cnt:a", "-9223372036854775808")) == (
        "ERR decrement would overflow"
    )
    assert "not an integer" in refusal(await client.do("SET", "cnt:a", "x"))
    assert await client.do("INCRBYFLOAT", "flt:a", "10.5") == b"10.5"
    assert await client.do("INCRBYFLOAT", "flt:a", "0.1") == b"10.6"
    assert "not an integer" in refusal(await client.do("INCR", "flt:a"))
    assert await client.do("INCRBYFLOAT", "flt:a", "-5.6e0") == b"5"
    assert await client.do("INCR", "flt:a") == 6
    assert refusal(await client.do("INCRBYFLOAT", "flt:a", "x")) == "ERR value is not a valid float"
    assert "NaN or Infinity" in refusal(await client.do("INCRBYFLOAT", "flt:a", "inf"))
    assert await client.do("INCR", "rate:a") == 1
    assert int(await client.do("GET", "rate:a")) >= 0
    assert await client.do("HINCRBY", "cmap:a", "f", 5) == 5
    assert await client.do("HINCRBY", "cmap:a", "f", -2) == 3
    assert await client.do("HGETALL", "cmap:a") == [b"f", b"3"]
    assert await client.do("HINCRBYFLOAT", "cmap:a", "f", "2") == b"5"
    assert await client.do("HINCRBYFLOAT", "cmap:a", "f", "-2.0e0") == b"3"
    refused = await client.do("HINCRBYFLOAT", "cmap:a", "f", "0.5")
    assert "UNSUPPORTED" in str(refused)
    assert "INCRBYFLOAT on a counter with float = true" in str(refused)
    assert await client.do("HGET", "cmap:a", "f") == b"3"


async def test_linearizable_keys(client: Client) -> None:
    assert await client.do("SET", "lock:a", "me", "NX", "PX", 20_000) == b"OK"
    assert await client.do("SET", "lock:a", "you", "NX") is None
    assert 0 < await client.do("PTTL", "lock:a") <= 20_000
    assert await client.do("SET", "lock:a", "you", "XX", "GET") == b"me"
    assert await client.do("GETDEL", "lock:a") == b"you"
    assert await client.do("SET", "lock:a", "x", "XX") is None
    assert await client.do("SETNX", "lock:a", "x") == 1
    assert await client.do("SETNX", "lock:a", "x") == 0
    assert await client.do("EXPIRE", "lock:a", 100) == 1
    assert 98 <= await client.do("TTL", "lock:a") <= 100
    assert await client.do("PERSIST", "lock:a") == 1
    assert await client.do("TTL", "lock:a") == -1
    assert await client.do("EXISTS", "lock:a", "lock:none") == 1
    assert await client.do("TYPE", "lock:a") == b"string"
    assert await client.do("INCR", "lcnt:a") == 1
    assert await client.do("INCRBY", "lcnt:a", 9) == 10
    assert await client.do("DECR", "lcnt:a") == 9
    assert await client.do("GET", "lcnt:a") == b"9"
    assert await client.do("SET", "lcnt:a", "9223372036854775807") == b"OK"
    assert "would overflow" in refusal(await client.do("INCR", "lcnt:a"))
    assert await client.do("INCRBYFLOAT", "lflt:a", "0.25") == b"0.25"
    assert await client.do("MSET", "lock:m", "1", "lcnt:m", "2") == b"OK"
    assert await client.do("MGET", "lock:m", "lcnt:m", "str:none") == [b"1", b"2", None]
    assert await client.do("DEL", "lock:m", "lcnt:m") == 2
    assert "UNSUPPORTED" in refusal(await client.do("INCR", "lock:a"))
    assert refusal(await client.do("MSET", "lock:m", "1", "str:m", "2")).startswith("CROSSCLASS")


async def test_quotas_and_meters(client: Client) -> None:
    spent = as_map(await client.do("ROOST.SPEND", "quota:a", 5, "id1"))
    again = as_map(await client.do("ROOST.SPEND", "quota:a", 5, "id1"))
    assert spent["granted"] >= 5
    assert set(again) == {"remaining_local", "granted"}
    held = as_map(await client.do("ROOST.RESERVE", "quota:a", 10, "id2", 60_000))
    settled = as_map(await client.do("ROOST.SETTLE", held["id"], 4))
    assert settled
    other = as_map(await client.do("ROOST.RESERVE", "quota:a", 10, "id3", 60_000))
    assert as_map(await client.do("ROOST.RELEASE", other["id"]))
    shown = as_map(await client.do("ROOST.QUOTA", "quota:a"))
    assert shown["limit"] == 100
    assert json.loads(await client.do("GET", "quota:a"))["limit"] == 100
    assert as_map(await client.do("ROOST.QUOTA", "SET", "quota:a", 200))["limit"] == 200
    exhausted = refusal(await client.do("ROOST.SPEND", "quota:a", 1_000, "id4"))
    assert exhausted.startswith("EXHAUSTED")
    assert await client.do("INCRBY", "bill:a", 7) == 7
    assert sum(json.loads(await client.do("GET", "bill:a")).values()) == 7
    assert refusal(await client.do("ROOST.SPEND", "quota:a", 0, "x")).startswith("BADREQUEST n ")
    assert refusal(await client.do("ROOST.SPEND", "str:a", 1, "x")).startswith("UNSUPPORTED")


async def test_sets_and_maps(client: Client) -> None:
    assert await client.do("SADD", "set:a", "x", "y", "x") == 2
    assert await client.do("SADD", "set:a", "y", "z") == 1
    assert await client.do("SMEMBERS", "set:a") == [b"x", b"y", b"z"]
    assert await client.do("SCARD", "set:a") == 3
    assert await client.do("SISMEMBER", "set:a", "x") == 1
    assert await client.do("SMISMEMBER", "set:a", "x", "q") == [1, 0]
    assert await client.do("SREM", "set:a", "x", "q") == 1
    assert await client.do("TYPE", "set:a") == b"set"
    assert await client.do("HSET", "map:a", "f", "1", "g", "2") == 2
    assert await client.do("HSET", "map:a", "f", "3", "h", "") == 1
    assert await client.do("HMSET", "map:a", "i", "4") == b"OK"
    assert await client.do("HGETALL", "map:a") == [b"f", b"3", b"g", b"2", b"h", b"", b"i", b"4"]
    assert await client.do("HMGET", "map:a", "f", "q") == [b"3", None]
    assert await client.do("HGET", "map:a", "h") == b""
    assert await client.do("HEXISTS", "map:a", "q") == 0
    assert await client.do("HKEYS", "map:a") == [b"f", b"g", b"h", b"i"]
    assert await client.do("HVALS", "map:a") == [b"3", b"2", b"", b"4"]
    assert await client.do("HLEN", "map:a") == 4
    assert await client.do("HDEL", "map:a", "f", "q") == 1
    assert refusal(await client.do("HSET", "map:a", "f")) == (
        "ERR wrong number of arguments for 'hset' command"
    )
    assert await client.do("TYPE", "map:a") == b"hash"


async def test_resp3_shapes(node: Served) -> None:
    client = await node.client(resp3=True)
    await client.do("HSET", "map:3", "f", "1")
    await client.do("SADD", "set:3", "x")
    assert await client.do("HGETALL", "map:3") == {b"f": b"1"}
    client.writer.write(hiredis.pack_command(("SMEMBERS", "set:3")))
    assert await client.reader.readexactly(11) == b"~1\r\n$1\r\nx\r\n"
    client.writer.write(hiredis.pack_command(("GET", "str:nil")))
    assert await client.reader.readexactly(3) == b"_\r\n"
    status = await client.do("ROOST.STATUS")
    assert status[b"converged"] is True


async def test_scans(client: Client) -> None:
    names = {f"str:scan:{i:03}".encode() for i in range(57)}
    await client.pipeline(*[("SET", name, "1") for name in names])
    found: list[bytes] = []
    cursor = b"0"
    while True:
        cursor, page = await client.do("SCAN", cursor, "MATCH", "str:scan:*", "COUNT", 10)
        found += page
        if cursor == b"0":
            break
    assert sorted(found) == sorted(names)
    assert set(await client.do("KEYS", "str:scan:00?")) == {b"str:scan:%03d" % i for i in range(10)}
    assert len(await client.do("KEYS", "str:scan:05[0-3]")) == 4
    assert await client.do("DBSIZE") >= 57
    _, typed = await client.do("SCAN", "0", "TYPE", "set", "COUNT", 1_000)
    assert all(name.startswith(b"set:") for name in typed)
    assert refusal(await client.do("SCAN", "99999999")).startswith("ERR invalid cursor")
    assert refusal(await client.do("SCAN", "x")) == "ERR invalid cursor"
    await client.do("HSET", "map:s", *[part for i in range(40) for part in (f"f{i:02}", i)])
    fields: dict[bytes, bytes] = {}
    cursor = b"0"
    while True:
        cursor, flat = await client.do("HSCAN", "map:s", cursor, "COUNT", 7)
        fields |= dict(zip(flat[::2], flat[1::2], strict=True))
        if cursor == b"0":
            break
    assert len(fields) == 40
    assert (await client.do("SSCAN", "set:none", 0)) == [b"0", []]
    page = await client.do("ROOST.KEYS", "str:scan:*", "str:scan:054", 100)
    assert page == [b"str:scan:055", b"str:scan:056"]


async def test_sessions(client: Client) -> None:
    opened = as_map(await client.do("ROOST.OPEN", "r1"))
    assert opened["home"] == b"eu-1"
    assert opened["created"] == 1
    body = '{"messages":[{"role":"user","n":1.50,"b":1,"a":2}],"put":{"kv_cache_index":{"h":"w"}}}'
    turn = as_map(await client.do("ROOST.TURN", opened["token"], body))
    assert turn["turn"] == 1
    assert turn["served_by"] == b"home"
    message = b'{"role":"user","n":1.50,"b":1,"a":2}'
    assert await client.do("LRANGE", "conversation_buffer:r1", 0, -1) == [message]
    assert await client.do("LLEN", "conversation_buffer:r1") == 1
    assert await client.do("LINDEX", "conversation_buffer:r1", -1) == message
    assert await client.do("LINDEX", "conversation_buffer:r1", 5) is None
    assert await client.do("LRANGE", "conversation_buffer:none", 0, -1) == []
    assert await client.do("HGETALL", "kv_cache_index:r1") == [b"h", b"w"]
    assert await client.do("TYPE", "conversation_buffer:r1") == b"list"
    read = as_map(await client.do("ROOST.TURNS", turn["token"], 1))
    assert json.loads(read["messages_json"]) == [json.loads(message)]
    conflict = refusal(await client.do("ROOST.TURN", opened["token"], body))
    assert conflict.startswith("TURNCONFLICT")
    assert "turn=1" in conflict
    begun = '{"call":"c","status":"begun","tool":"t","args":{"a":1}}'
    assert as_map(await client.do("ROOST.CALL", "r1", begun))["status"] == b"fresh"
    assert as_map(await client.do("ROOST.CALL", "r1", begun))["status"] == b"begun"
    ended = '{"call":"c","status":"finished","tool":"t","args":{"a":1},"result":[1.0]}'
    assert as_map(await client.do("ROOST.CALL", "r1", ended))["result_json"] == b"[1.0]"
    other = '{"call":"c","status":"begun","tool":"u","args":{"a":1}}'
    assert refusal(await client.do("ROOST.CALL", "r1", other)).startswith("CALLCONFLICT")
    view = as_map(await client.do("ROOST.SESSION", "r1"))
    assert json.loads(view["fields_json"]) == {"kv_cache_index": {"h": "w"}}
    forked = as_map(await client.do("ROOST.FORK", "r1"))
    assert forked["sid"] != b"r1"
    assert as_map(await client.do("ROOST.ERASE", "r1"))["receipts_json"]
    assert refusal(await client.do("ROOST.TURNS", "r1")).startswith("NOSESSION")
    assert refusal(await client.do("ROOST.TURN", "r2", "[]")).startswith("BADREQUEST")
    bad = refusal(await client.do("ROOST.TURN", "r2", '{"messages":[1]}'))
    assert "messages[0]" in bad
    listed = as_map(await client.do("ROOST.SESSIONS"))
    assert forked["sid"].decode() in listed["sessions_json"].decode()


async def test_own_commands_on_keys(client: Client) -> None:
    done = as_map(await client.do("ROOST.SET", "str:own", '{"a": 1.50}', "PX", 60_000))
    assert done["seq"] > 0
    assert done["durable"] == 1
    assert as_map(await client.do("ROOST.GET", "str:own"))["value_json"] == b'{"a":1.50}'
    assert await client.do("GET", "str:own") == b'{"a":1.50}'
    assert as_map(await client.do("ROOST.INCR", "cnt:own", 3))["value_json"] == b"3"
    assert as_map(await client.do("ROOST.INCR", "lcnt:own", 3, "once"))["value_json"] == b"3"
    assert as_map(await client.do("ROOST.INCR", "lcnt:own", 3, "once"))["value_json"] == b"3"
    await client.do("ROOST.UPDATE", "set:own", '{"put":["a",1],"drop":["b"]}')
    assert as_map(await client.do("ROOST.GET", "set:own"))["value_json"] == b'["a",1]'
    await client.do("ROOST.UPDATE", "map:own", '{"put":{"a":"x"}}')
    assert as_map(await client.do("ROOST.GET", "map:own"))["value_json"] == b'{"a":"x"}'
    assert as_map(await client.do("ROOST.DEL", "map:own"))["value_json"] == b"true"
    assert as_map(await client.do("ROOST.GET", "map:own"))["value_json"] is None
    policy = as_map(await client.do("ROOST.POLICY", "str:own"))
    assert policy["consistency"] == b"eventually-global"
    assert b"str" in policy["explain"]
    hello = as_map(await client.do("ROOST.HELLO"))
    assert len(hello["store_id"]) == 16
    assert refusal(await client.do("ROOST.SET", "str:own", "{")).startswith("BADREQUEST")
    assert refusal(await client.do("ROOST.SET", "str:own", "NaN")).startswith("BADREQUEST")
    duplicate = refusal(await client.do("ROOST.UPDATE", "map:own", '{"put":{"a":1,"a":2}}'))
    assert "'a' is given twice" in duplicate
