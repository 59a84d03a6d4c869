"""RESP connections of a real node: order, the disk before the reply, faults, bounds."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import hiredis
import pytest
import pytest_asyncio
from api_node import Client, Served, served


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


async def test_commands_of_one_connection_run_in_order(client: Client) -> None:
    replies = await client.pipeline(
        ("SET", "lock:o", "1"),
        ("INCR", "cnt:o"),
        ("GET", "lock:o"),
        ("INCR", "lcnt:o"),
        ("INCR", "cnt:o"),
        ("INCR", "lcnt:o"),
        ("GET", "cnt:o"),
    )
    assert replies == [b"OK", 1, b"1", 1, 2, 2, b"2"]


async def test_a_waiting_command_holds_up_no_other_connection(node: Served) -> None:
    slow, quick = await node.client(), await node.client()
    gate = asyncio.Event()
    get = node.node.linear.transact

    async def held(*args: Any, **known: Any) -> Any:
        await gate.wait()
        return await get(*args, **known)

    node.node.linear.transact = held  # type: ignore[method-assign]
    try:
        slow.writer.write(hiredis.pack_command(("GET", "lock:x")) + b"PING\r\n")
        assert await quick.do("PING") == b"PONG"
        gate.set()
        assert [await slow.reply(), await slow.reply()] == [None, b"PONG"]
    finally:
        node.node.linear.transact = get  # type: ignore[method-assign]


@pytest.mark.interpreted
async def test_a_reply_waits_for_the_disk(node: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, reader = await node.client(), await node.client()
    store = node.node.store
    flush = store.flush
    gate = asyncio.Event()

    def held() -> None:
        if gate.is_set():
            flush()
        else:
            asyncio.get_running_loop().call_later(0.01, node.node.groups.flush)

    monkeypatch.setattr(store, "flush", held)
    # A group that cannot be flushed keeps everything that could show its state.
    monkeypatch.setattr(node.node.groups, "flush", lambda: held())
    # A round of collection flushes by itself, and the test would take that for the disk's.
    monkeypatch.setattr(node.node.membership, "tick", lambda: None)
    writer.writer.write(hiredis.pack_command(("SET", "str:disk", "1")))
    await asyncio.sleep(0.05)
    reader.writer.write(hiredis.pack_command(("GET", "str:disk")))
    with pytest.raises(TimeoutError):
        await reader.reply(0.1)
    with pytest.raises(TimeoutError):
        await writer.reply(0.01)
    monkeypatch.undo()
    node.node.groups.flush()
    assert await writer.reply() == b"OK"
    assert await reader.reply() == b"1"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"*-2\r\n", b"-ERR Protocol error: invalid multibulk length\r\n"),
        (b"*1\r\n$1073741824\r\n", b"-ERR Protocol error: invalid bulk length\r\n"),
        (b"*1\r\n$-2\r\n", b"-ERR Protocol error: invalid bulk length\r\n"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"-ERR Protocol error: this port speaks RESP"),
        (b"*1\r\n*1\r\n", b"-ERR Protocol error: expected '$', got '*'\r\n"),
    ],
)
async def test_protocol_faults_close(node: Served, data: bytes, text: bytes) -> None:
    client = await node.client()
    answer = await client.raw(b"PING\r\n" + data)
    assert answer.startswith(b"+PONG\r\n" + text)


async def test_who_is_still_sending_reads_why_it_is_refused(
    node: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket closed over unread bytes is reset, and the error with it."""
    monkeypatch.setattr("roostd.api.resp.draining.DRAIN_S", 60.0)
    big = 3 * node.node.limits.body_bytes_max
    client = await node.client()
    client.writer.write(b"*3\r\n$3\r\nSET\r\n$7\r\nstr:big\r\n$%d\r\n" % big)
    for _ in range(64):
        client.writer.write(b"x" * (big // 64))
        await client.writer.drain()
    async with asyncio.timeout(60):
        answer = await client.reader.read(-1)
    assert answer == b"-ERR Protocol error: invalid bulk length\r\n"


async def test_who_sends_for_ever_after_a_fault_is_cut(
    node: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roostd.api.resp.draining.DRAIN_S", 0.05)
    client = await node.client()
    client.writer.write(b"*-2\r\n")

    async def send_for_ever() -> None:
        while True:
            client.writer.write(b"x" * 1_000)
            await client.writer.drain()
            await asyncio.sleep(0.01)

    with pytest.raises(ConnectionError):
        await asyncio.wait_for(send_for_ever(), 60)


async def test_quit_and_half_closed_connections_get_their_replies(node: Served) -> None:
    client = await node.client()
    assert await client.raw(b"SET str:q 1\r\nQUIT\r\nPING\r\n") == b"+OK\r\n+OK\r\n"
    client = await node.client()
    client.writer.write(b"SET str:q 2\r\nINCR lcnt:half\r\nGET str:q\r\n")
    client.writer.write_eof()
    async with asyncio.timeout(60):
        assert await client.reader.read(-1) == b"+OK\r\n:1\r\n$1\r\n2\r\n"


async def test_a_client_that_never_reads_is_bounded(node: Served) -> None:
    client = await node.client()
    await client.do("SET", "str:big", b"x" * 1_000_000)
    get = hiredis.pack_command(("GET", "str:big"))
    client.writer.write(get * 5_000)
    connection = list(node.faces.resp.connections.values())[-1]
    async with asyncio.timeout(60):
        while not connection._paused_writing:
            await asyncio.sleep(0.01)
    assert connection.last_command == "GET"
    await asyncio.sleep(0.1)
    assert connection._paused_writing
    assert connection._out_bytes <= node.node.limits.output_bytes_max
    other = await node.client()
    assert await other.do("PING") == b"PONG"
    client.writer.transport.abort()


async def test_values_and_turns_over_the_bound(client: Client, node: Served) -> None:
    big = b"x" * (node.node.limits.value_bytes_max + 1)
    assert refusal(await client.do("SET", "str:toobig", big)).startswith("TOOLARGE")
    assert refusal(await client.do("MSET", "str:one", "1", "str:toobig", big)).startswith(
        "TOOLARGE"
    )
    assert await client.do("GET", "str:one") is None
    assert refusal(await client.do("HSET", "map:toobig", "f", big)).startswith("TOOLARGE")


async def test_unix_socket(node: Served) -> None:
    reader, writer = await asyncio.open_unix_connection(str(node.unix))
    client = Client(reader, writer)
    assert await client.do("PING") == b"PONG"
    await client.close()
    assert (os.stat(node.unix).st_mode & 0o777) == 0o660
