"""The same commands to a node and to a real redis-server: the same replies.

Left out is what a policy decides here and a command there: writing another type to a key, a
string at a counter, NX and XX on eventually-global keys, and the order of unordered replies.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import hiredis
import pytest
import pytest_asyncio
from api_node import Client, served
from redis_server import running_redis

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROUNDS = 12
COMMANDS = 250

STR = [f"str:{i}" for i in range(4)]
CNT = [f"cnt:{i}" for i in range(3)]
FLT = [f"flt:{i}" for i in range(2)]
SET = [f"set:{i}" for i in range(3)]
MAP = [f"map:{i}" for i in range(3)]
CMAP = ["cmap:0", "cmap:1"]
LOCK = ["lock:0", "lock:1"]
LCNT = ["lcnt:0"]
EVERY = STR + CNT + SET + MAP + CMAP
WORDS = ["", "a", "b", "hello", "10", "-3", "3.0", "x\r\ny", "ü"]
FIELDS = ["f", "g", "h", ""]
NUMBERS = ["1", "-1", "5", "100", "0", "x", "1.5", "", " 1", "+1", "01", "9223372036854775807"]
FLOATS = ["0.5", "0.1", "-1.25", "3", "1e2", "x", "", "inf"]

Args = tuple[str, ...]


def any_command(rng: random.Random) -> Args:
    pick, number = rng.choice, rng.randint(0, 46)
    word, field = pick(WORDS), pick(FIELDS)
    table: list[Args] = [
        ("SET", pick(STR), word),
        ("SET", pick(STR), word, pick(["EX", "PX", "EXAT"]), pick(["100000", "0", "-1", "x"])),
        ("SET", pick(STR), word, pick(["KEEPTTL", "GET", "FOO", "EX"])),
        ("SET", pick(STR), word, "GET", "EX", "9000"),
        ("SETEX", pick(STR), pick(["9000", "0", "x"]), word),
        ("PSETEX", pick(STR), pick(["9000000", "-5"]), word),
        ("GETSET", pick(STR), word),
        ("GETDEL", pick(EVERY)),
        ("GETEX", pick(STR), *pick([(), ("EX", "8000"), ("PERSIST",), ("EX", "0"), ("FOO",)])),
        ("GET", pick(EVERY)),
        ("STRLEN", pick(EVERY)),
        ("GETRANGE", pick(STR), pick(["0", "-2", "1", "x"]), pick(["-1", "0", "100"])),
        ("MGET", pick(EVERY), pick(EVERY), pick(STR)),
        ("MSET", pick(STR), word, pick(STR), pick(WORDS)),
        ("MSET", pick(STR), word, pick(STR)),
        ("INCR", pick(CNT)),
        ("DECR", pick(CNT)),
        ("INCRBY", pick(CNT), pick(NUMBERS)),
        ("DECRBY", pick(CNT), pick(NUMBERS)),
        ("SET", pick(CNT), pick(["1", "-5", "0", "9223372036854775807"])),
        ("INCRBYFLOAT", pick(FLT), pick(FLOATS)),
        ("GET", pick(FLT)),
        ("SADD", pick(SET), word, pick(WORDS)),
        ("SREM", pick(SET), word, pick(WORDS)),
        ("SMEMBERS", pick(EVERY)),
        ("SCARD", pick(EVERY)),
        ("SISMEMBER", pick(SET), word),
        ("SMISMEMBER", pick(EVERY), word, pick(WORDS)),
        ("HSET", pick(MAP), field, word, pick(FIELDS), pick(WORDS)),
        ("HSET", pick(MAP), field),
        ("HMSET", pick(MAP), field, word),
        ("HGET", pick(EVERY), field),
        ("HMGET", pick(EVERY), field, pick(FIELDS)),
        ("HGETALL", pick(EVERY)),
        ("HKEYS", pick(EVERY)),
        ("HVALS", pick(EVERY)),
        ("HLEN", pick(EVERY)),
        ("HEXISTS", pick(EVERY), field),
        ("HSTRLEN", pick(MAP), field),
        ("HDEL", pick(MAP + CMAP), field, pick(FIELDS)),
        ("HINCRBY", pick(CMAP), field, pick(["1", "5", "-2", "x", "1.5"])),
        ("DEL", *rng.sample(EVERY, rng.randint(1, 3))),
        ("EXISTS", pick(EVERY), pick(EVERY)),
        ("TYPE", pick(EVERY)),
        (
            pick(["EXPIRE", "PEXPIRE"]),
            pick(EVERY),
            pick(["100000", "-1", "x", "9223372036854775807", "200000000"]),
            *pick([(), (), ("NX",), ("XX",), ("GT",), ("LT",), ("NX", "XX"), ("FOO",)]),
        ),
        (pick(["TTL", "PERSIST", "EXPIRETIME"]), pick(EVERY)),
        (pick(["UNLINK", "TOUCH"]), pick(EVERY)),
    ]
    return table[number]


def linear_command(rng: random.Random) -> Args:
    pick = rng.choice
    return pick(
        [
            ("SET", pick(LOCK), pick(WORDS), *pick([(), ("NX",), ("XX",), ("NX", "XX"), ("GET",)])),
            ("SET", pick(LOCK), pick(WORDS), "EX", "1000", *pick([(), ("NX",), ("XX", "GET")])),
            ("SETNX", pick(LOCK), pick(WORDS)),
            ("GETSET", pick(LOCK), pick(WORDS)),
            ("GET", pick(LOCK)),
            ("GETDEL", pick(LOCK)),
            ("GETEX", pick(LOCK), *pick([(), ("EX", "8000"), ("PERSIST",)])),
            ("STRLEN", pick(LOCK)),
            ("DEL", *LOCK),
            ("EXISTS", *LOCK, pick(LOCK)),
            ("TYPE", pick(LOCK)),
            ("TTL", pick(LOCK)),
            ("PERSIST", pick(LOCK)),
            ("EXPIRE", pick(LOCK), pick(["1000", "-1", "x"])),
            ("MSET", LOCK[0], pick(WORDS), LOCK[1], pick(WORDS)),
            ("MGET", *LOCK),
            ("INCR", pick(LCNT)),
            ("DECRBY", pick(LCNT), pick(NUMBERS)),
            ("INCRBY", pick(LCNT), pick(NUMBERS)),
            ("GET", pick(LCNT)),
            ("DEL", pick(LCNT)),
        ]
    )


def odd_command(rng: random.Random) -> Args:
    """Arities and arguments that nobody sends on purpose."""
    name = rng.choice(
        [
            "GET",
            "SET",
            "MGET",
            "MSET",
            "SETEX",
            "SADD",
            "SREM",
            "SCARD",
            "HSET",
            "HGET",
            "HMGET",
            "HGETALL",
            "DEL",
            "EXISTS",
            "EXPIRE",
            "TTL",
            "TYPE",
            "PERSIST",
            "STRLEN",
            "GETDEL",
            "HINCRBY",
            "HSCAN",
            "SSCAN",
            "SCAN",
            "PING",
            "ECHO",
        ]
    )
    return (name, *rng.choices(["str:0", "1", "x"], k=rng.choice([0, 0, 1])))


def plain(args: Args, reply: Any) -> Any:
    if isinstance(reply, hiredis.ReplyError):
        text = str(reply)
        return "WRONGTYPE" if text.startswith("WRONGTYPE") else text
    if isinstance(reply, list):
        name = args[0]
        if name in ("SMEMBERS", "HKEYS", "HVALS"):
            return sorted(reply)
        if name == "HGETALL":
            return sorted(zip(reply[::2], reply[1::2], strict=True))
        if name == "EXEC":
            return [plain(("?",), part) for part in reply]
    return reply


def alike(args: Args, one: Any, other: Any, within_s: float) -> bool:
    """Whether both servers said the same; to one of them the commands may have come later."""
    one, other = plain(args, one), plain(args, other)
    timed = args[0] in ("TTL", "EXPIRETIME")
    if timed and isinstance(one, int) and isinstance(other, int) and min(one, other) > 0:
        return abs(one - other) <= within_s + 2
    return bool(one == other)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Client, Client]]:
    place: Path = tmp_path_factory.mktemp("redis")
    async with running_redis(place) as redis, served(place / "node") as node:
        yield await node.client(), redis


async def empty(ours: Client, redis: Client) -> None:
    await redis.do("FLUSHALL")
    for name in EVERY + FLT + LOCK + LCNT:
        await ours.do("DEL", name)


async def compare(ours: Client, redis: Client, commands: list[Args]) -> None:
    began_s = time.monotonic()
    mine, theirs = await asyncio.gather(ours.pipeline(*commands), redis.pipeline(*commands))
    took_s = time.monotonic() - began_s
    for at, (args, one, other) in enumerate(zip(commands, mine, theirs, strict=True)):
        said = (args, one, other, took_s, commands[max(0, at - 12) : at])
        assert alike(args, one, other, took_s), said


@pytest.mark.parametrize("seed", range(ROUNDS))
async def test_eventually_global_commands(pair: tuple[Client, Client], seed: int) -> None:
    rng = random.Random(seed)
    await empty(*pair)
    await compare(*pair, [any_command(rng) for _ in range(COMMANDS)])


@pytest.mark.parametrize("seed", range(4))
async def test_linearizable_commands(pair: tuple[Client, Client], seed: int) -> None:
    rng = random.Random(seed)
    await empty(*pair)
    await compare(*pair, [linear_command(rng) for _ in range(120)])


@pytest.mark.parametrize("seed", range(4))
async def test_transactions(pair: tuple[Client, Client], seed: int) -> None:
    rng = random.Random(seed)
    await empty(*pair)
    commands: list[Args] = []
    for _ in range(20):
        commands += [("WATCH", rng.choice(STR))] if rng.random() < 0.3 else []
        commands += [any_command(rng)] if rng.random() < 0.3 else []
        commands.append(("MULTI",))
        body = [any_command(rng) for _ in range(rng.randint(0, 5))]
        # The reply of EXEC is compared part by part: leave unordered parts out.
        commands += [args for args in body if args[0][:2] not in ("SM", "HK", "HV", "HG", "TT")]
        commands += [("GET",)] if rng.random() < 0.1 else []
        commands += [("MULTI",)] if rng.random() < 0.1 else []
        commands.append(("EXEC",) if rng.random() < 0.8 else ("DISCARD",))
    commands += [("EXEC",), ("DISCARD",)]
    await compare(*pair, [args for args in commands if args[0] != "EXPIRETIME"])


async def test_odd_commands(pair: tuple[Client, Client]) -> None:
    rng = random.Random(1)
    await empty(*pair)
    for args in dict.fromkeys(odd_command(rng) for _ in range(300)):
        if args[:1] in (("SET",), ("SCAN",)) or args in (("MGET", "1"), ("MGET", "x")):
            continue
        mine, theirs = await asyncio.gather(pair[0].do(*args), pair[1].do(*args))
        if isinstance(mine, hiredis.ReplyError) and str(mine).startswith("NOPOLICY"):
            continue
        assert alike(args, mine, theirs, 0), args


@pytest.mark.parametrize(
    "line",
    [
        b"PING\r\n",
        b'  ECHO "a b\\x41" \r\n',
        b"*0\r\n*1\r\n$4\r\nPING\r\n",
        b"*1\r\n$2000000000\r\n",
        b"*3000000000\r\n",
        b"*1\r\n!4\r\nPING\r\n",
        b'ECHO "x\r\n',
        b"\r\n\r\nPING\r\n",
    ],
)
async def test_bytes_on_the_wire(pair: tuple[Client, Client], line: bytes) -> None:
    async def talk(client: Client) -> bytes:
        host, port = client.writer.get_extra_info("peername")
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(line)
        writer.write_eof()
        async with asyncio.timeout(60):
            answer = await reader.read(-1)
        writer.close()
        return answer

    assert await talk(pair[0]) == await talk(pair[1])
