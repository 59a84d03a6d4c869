"""A real node with its faces on loopback, and a plain RESP client, for tests of the API."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import hiredis
from ports import free_port

from roostd.api import Faces, serve
from roostd.config import load
from roostd.keyring import generate
from roostd.node import Node


def _policy(name: str, type_: str, kind: str = "global", extra: str = "") -> str:
    readers = "single-session" if kind == "session" else "cross-session"
    cost = "incorrect" if kind == "linear" else "annoying"
    return (
        f'[{name}]\nreaders = "{readers}"\nstale_read_cost = "{cost}"\ntype = "{type_}"\n{extra}\n'
    )


POLICIES = "".join(
    (
        _policy("conversation_buffer", "conversation", "session"),
        _policy("tool_call_ledger", "ledger", "session"),
        _policy("kv_cache_index", "map", "session"),
        _policy("str", "register"),
        _policy("short", "register", extra='ttl = "1h"'),
        _policy("cnt", "counter"),
        _policy("flt", "counter", extra="float = true"),
        _policy("set", "set"),
        _policy("map", "map"),
        _policy("cmap", "map", extra='fields = "counter"'),
        _policy("rate", "rate", extra='window = "24h"'),
        _policy("doc", "doc"),
        _policy("shortdoc", "doc", extra='ttl = "1h"'),
        _policy("lock", "register", "linear"),
        _policy("lease", "register", "linear", 'ttl = "1h"'),
        _policy("lcnt", "counter", "linear"),
        _policy("lflt", "counter", "linear", "float = true"),
        _policy("quota", "quota", "linear", 'limit = 100\nperiod = "24h"'),
        _policy("bill", "meter", "linear"),
        _policy("foreign", "register", extra='match = ["litellm:*", "team:*"]'),
    )
)


class Served:
    """A node that serves, and where."""

    def __init__(self, node: Node, faces: Faces, unix: Path, resp: int, http: int) -> None:
        self.node = node
        self.faces = faces
        self.unix = unix
        self.resp = resp
        self.http = http
        self.url = f"http://127.0.0.1:{http}"
        self._clients: list[Client] = []

    async def client(self, *, resp3: bool = False) -> Client:
        """A new connection; closed with the node."""
        client = await Client.connect(self.resp)
        self._clients.append(client)
        if resp3:
            await client.do("HELLO", "3")
        return client

    async def close_clients(self) -> None:
        for client in self._clients:
            await client.close()


class Client:
    """Commands out, replies in; errors are returned, not raised."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._parser = hiredis.Reader(notEnoughData=Ellipsis)

    @classmethod
    async def connect(cls, port: int) -> Client:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def do(self, *args: str | bytes | int) -> Any:
        """One command and its reply."""
        self.writer.write(hiredis.pack_command(args))
        return await self.reply()

    async def pipeline(self, *commands: tuple[str | bytes | int, ...]) -> list[Any]:
        self.writer.write(b"".join(hiredis.pack_command(command) for command in commands))
        return [await self.reply() for _ in commands]

    async def reply(self, seconds: float = 60.0) -> Any:
        async with asyncio.timeout(seconds):
            while (reply := self._parser.gets()) is Ellipsis:
                data = await self.reader.read(65_536)
                if not data:
                    raise EOFError("the node closed the connection")
                self._parser.feed(data)
        return reply

    async def raw(self, data: bytes) -> bytes:
        """All bytes that come until the node closes."""
        self.writer.write(data)
        async with asyncio.timeout(60):
            return await self.reader.read(-1)

    async def close(self) -> None:
        self.writer.close()


def toml(place: Path, resp: int, http: int, extra: str, access: str, name: str, gossip: int) -> str:
    return f"""
[node]
id = "{name}"
region = "{name.partition("-")[0]}"
data = "{place}/data"
cluster = "test"
public = "https://{name.partition("-")[0]}.example"
[listen]
unix = "{place}/r.sock"
resp = "127.0.0.1:{resp}"
http = "127.0.0.1:{http}"
gossip = "127.0.0.1:{gossip}"
[gossip]
insecure = true
[token]
keys = "{place}/keys"
[consensus]
backend = "embedded"
deadline_ms = 60000
[access]
policies = "{place}/policies.toml"
{access}
[store]
size_max = "256MiB"
log_retention = "32MiB"
{extra}
"""


CREDENTIALS = "".join(
    f'[{name}]\nsecret_sha256 = "{hashlib.sha256(secret.encode()).hexdigest()}"\n{rest}\n'
    for name, secret, rest in (
        ("root", "root-secret", 'rights = "admin"\nkeys = ["*"]'),
        ("reader", "reader-secret", 'rights = "read"\nkeys = ["str:*", "cnt:*"]'),
        ("writer", "writer-secret", 'rights = "write"\nkeys = ["str:*", "conversation_buffer:*"]'),
        ("litellm", "litellm-secret", 'rights = "write"\nprefix = "litellm:"'),
    )
)


@asynccontextmanager
async def served(
    place: Path,
    *,
    credentials: str = "",
    extra: str = '[resp.db]\n3 = "litellm:"',
    name: str = "eu-1",
    gossip: int = 0,
) -> AsyncIterator[Served]:
    """A node with POLICIES, started and stopped."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "keys").mkdir(exist_ok=True)
    if not any((place / "keys").iterdir()):
        generate(place / "keys", f"k-{name}")
    (place / "policies.toml").write_text(POLICIES)
    access = ""
    if credentials:
        (place / "credentials.toml").write_text(credentials)
        (place / "credentials.toml").chmod(0o600)
        access = f'credentials = "{place}/credentials.toml"'
    resp, http = free_port(), free_port()
    (place / "roost.toml").write_text(
        toml(place, resp, http, extra, access, name, gossip or free_port())
    )
    node = Node(load(place / "roost.toml", {}))
    await node.start()
    faces = serve(node)
    await faces.start()
    running = Served(node, faces, place / "r.sock", resp, http)
    try:
        yield running
    finally:
        await running.close_clients()
        await faces.stop()
        await node.stop()
