"""The RESP listeners, and what their connections share."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import stat
import time
from pathlib import Path

from roostd.api.caller import Caller
from roostd.api.metrics import FaceMetrics
from roostd.api.operations import Operations
from roostd.api.resp import (  # noqa: F401 - each registers its commands
    connections,
    conversations,
    counters,
    hashes,
    introspection,
    keyspace,
    own,
    own_sessions,
    sets,
    strings,
    subscribing,
    transactions,
)
from roostd.api.resp.connection import Connection
from roostd.api.resp.cursors import Cursors
from roostd.api.resp.pubsub import PubSub
from roostd.api.resp.table import COMMANDS
from roostd.node import Node

log = logging.getLogger(__name__)

SWEEP_S = 5.0
PARTIAL_S = 60.0
PARTIAL_BYTES_PER_S = 8_192
"""One command may take longer than `PARTIAL_S` to arrive only if it comes at this pace."""
LOGIN_S = 30.0
"""A client must have authenticated so long after it connected."""
DRAIN_S = 2.0


class RespServer:
    """Serves RESP on config.listen.unix and config.listen.resp in the running loop."""

    def __init__(self, node: Node, operations: Operations, metrics: FaceMetrics) -> None:
        self.node = node
        self.operations = operations
        self.metrics = metrics
        for command in COMMANDS.values():
            metrics.commands[command.name] = [0, 0, 0]
        self.connections: dict[int, Connection] = {}
        self.cursors = Cursors()
        self.pubsub = PubSub(node, metrics)
        self.started_s = time.time()
        self.addresses: list[str] = []
        self._next_id = 1
        self._servers: list[asyncio.Server] = []
        self._unix: Path | None = None
        self._empty = asyncio.Event()
        self._sweeper: asyncio.Task[None] | None = None

    @property
    def anonymous(self) -> Caller | None:
        """Everybody's caller where no credentials are configured; None = log in first."""
        return self.operations.anonymous()

    async def start(self) -> None:
        """Listen; raises OSError naming the address that is taken."""
        loop = asyncio.get_running_loop()
        listen = self.node.config.listen
        if listen.unix is not None:
            path = Path(listen.unix)
            sock = bind_unix(path)
            self._unix = path
            self._servers.append(await loop.create_unix_server(self._connect, sock=sock))
            self.addresses.append(f"unix://{path}")
        if listen.resp is not None:
            host, port = listen.resp
            server = await loop.create_server(self._connect, host, port, backlog=1024)
            self._servers.append(server)
            bound = server.sockets[0].getsockname()
            self.addresses.append(f"redis://{bound[0]}:{bound[1]}")
        self._sweeper = loop.create_task(self._sweep())

    async def stop(self) -> None:
        """Stop listening, let running commands end (2 s at most), close."""
        for server in self._servers:
            server.close()
        if self._unix is not None:
            self._unix.unlink(missing_ok=True)
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self.connections.values()):
            connection.close()
        if self.connections:
            self._empty.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_S):
                    await self._empty.wait()
        for connection in list(self.connections.values()):
            connection.abort()
        for server in self._servers:
            await server.wait_closed()
        self._servers.clear()

    def admit(self, connection: Connection) -> bool:
        """Count a new connection in; False at the bound."""
        if len(self.connections) >= self.node.limits.connections_max:
            self.metrics.connections_refused += 1
            return False
        connection.id = self._next_id
        self._next_id += 1
        self.connections[connection.id] = connection
        self.metrics.connections = len(self.connections)
        self.metrics.connections_total += 1
        return True

    def drop(self, connection: Connection) -> None:
        """Forget a connection that is lost."""
        self.pubsub.leave(connection)
        self.connections.pop(connection.id, None)
        self.metrics.connections = len(self.connections)
        if not self.connections:
            self._empty.set()

    def drop_unknown(self) -> None:
        """Cut clients whose secret, or whose rights, are no longer those they came with."""
        for connection in list(self.connections.values()):
            if not connection.still_known():
                log.info("client %s: its credentials changed; it is cut off", connection.peer)
                connection.abort()

    def _connect(self) -> Connection:
        return Connection(self)

    async def _sweep(self) -> None:
        """Cut connections that hold a place without using it."""
        credentials = self.node.credentials
        while True:
            await asyncio.sleep(SWEEP_S)
            now_s = time.monotonic()
            if self.node.credentials is not credentials:
                credentials = self.node.credentials
                self.drop_unknown()
            for connection in list(self.connections.values()):
                stuck = connection.crawls(now_s, PARTIAL_S, PARTIAL_BYTES_PER_S)
                nobody = connection.caller is None and now_s - connection.since > LOGIN_S
                if stuck or nobody:
                    why = "sent half a command" if stuck else "did not authenticate"
                    log.info("client %s %s in time; it is cut off", connection.peer, why)
                    connection.abort()


def bind_unix(path: Path) -> socket.socket:
    """A bound unix socket, for owner and group; takes the place of one nobody listens on."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.settimeout(1.0)
                try:
                    probe.connect(str(path))
                except (ConnectionRefusedError, FileNotFoundError):
                    path.unlink(missing_ok=True)
                else:
                    raise OSError(f"{path}: another process listens here")
        path.parent.mkdir(parents=True, exist_ok=True)
        sock.bind(str(path))
        os.chmod(path, 0o660)
    except BaseException:
        sock.close()
        raise
    sock.setblocking(False)
    return sock
