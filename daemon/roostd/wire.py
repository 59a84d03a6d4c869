"""Sockets between nodes: TLS, dialling, listening, and the greeting that opens each connection.

Both websockets of a pair of nodes (gossip and RPC) begin alike: the dialler greets, the listener
checks who it is and answers. Under TLS the node's id has to stand as a DNS name in its
certificate's SAN; host names and addresses prove nothing here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.connection import Connection
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from roost_crdt import frames
from roost_crdt.errors import ConfigError, PeerError
from roost_crdt.frames import Greeting
from roost_crdt.limits import Limits

GOSSIP_PATH = "/gossip"
RPC_PATH = "/rpc"
GREETING_BYTES_MAX = 2 * 1024 * 1024
GREETING_S = 5.0
UNGREETED_MAX = 64
"""Connections that have not greeted yet; above it new ones are refused."""
TCP_USER_TIMEOUT_MS = 2_000
KEEPALIVE_S = 5
CLOSE_S = 1.0

_log = logging.getLogger("roostd.wire")
_quiet = logging.getLogger("roostd.wire.websockets")
_quiet.setLevel(logging.CRITICAL)


def boot_ms() -> int:
    """Milliseconds since boot, suspension included: the clock of deadlines and detectors."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


class Tls:
    """Mutual TLS between nodes from PEM files. ConfigError if they cannot be used."""

    def __init__(self, cert: Path, key: Path, ca: Path) -> None:
        self._paths = (cert, key, ca)
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.client.check_hostname = False  # the SAN is compared with the node's id instead
        for context in (self.server, self.client):
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.verify_mode = ssl.CERT_REQUIRED
        self.reload()

    def reload(self) -> None:
        """Read the files again; connections made from now on use them."""
        cert, key, ca = self._paths
        for path in self._paths:
            if not path.is_file():
                raise ConfigError("no such file: gossip needs cert, key and ca", file=str(path))
        for context in (self.server, self.client):
            try:
                context.load_cert_chain(cert, key)
                context.load_verify_locations(ca)
            except (ssl.SSLError, OSError) as error:
                raise ConfigError(f"cannot be used for gossip: {error}", file=str(cert)) from error


def san_names(connection: Connection) -> set[str] | None:
    """The DNS names of the other side's certificate, in lower case; None without TLS."""
    tls = connection.transport.get_extra_info("ssl_object")
    if tls is None:
        return None
    names: tuple[Any, ...] = (tls.getpeercert() or {}).get("subjectAltName", ())
    return {name.lower() for kind, name in names if kind == "DNS"}


def check_certificate(connection: Connection, node: str) -> None:
    names = san_names(connection)
    if names is not None and node.lower() not in names:
        raise PeerError(
            f"the certificate of {node!r} is made out to {', '.join(sorted(names)) or 'nobody'}: "
            "its SAN has to hold the node's id as a DNS name"
        )


class _Hearing:
    """Notes when bytes came, be it the middle of a frame: a slow link is not a dead one."""

    heard_ms = 0

    def data_received(self, data: bytes) -> None:
        self.heard_ms = boot_ms()
        super().data_received(data)  # type: ignore[misc]


class Dialled(_Hearing, ClientConnection):
    """An outgoing connection."""


class Accepted(_Hearing, ServerConnection):
    """An incoming connection."""


Wire = Dialled | Accepted


def _prepare(connection: Connection) -> None:
    sock = connection.transport.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    # uvloop hands out a stand-in without setsockopt: options are set on a duplicate.
    with socket.socket(fileno=os.dup(sock.fileno())) as same:
        same.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        same.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, TCP_USER_TIMEOUT_MS)
        same.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        same.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_S)
        same.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_S)


def _greeted(connection: Connection, limits: Limits) -> None:
    connection.protocol.max_message_size = limits.body_bytes_max + frames.FRAME_OVERHEAD_BYTES


async def end(connection: Connection, reason: str = "", *, code: int = 1000) -> None:
    """Close within a second, whatever the other side does."""
    try:
        async with asyncio.timeout(CLOSE_S):
            await connection.close(code, reason[:100])
    except TimeoutError:
        pass
    finally:
        connection.transport.abort()


async def refuse(connection: Connection, error: PeerError) -> None:
    """Tell the other side why before cutting the link."""
    try:
        frame = frames.encode_frame(frames.Error(error.code, str(error)[:2_000]))
        async with asyncio.timeout(CLOSE_S):
            await connection.send(frame)
    except (TimeoutError, ConnectionClosed):
        pass
    await end(connection, str(error).encode()[:100].decode(errors="ignore"), code=1008)


async def dial(
    url: str, path: str, *, node: str, greeting: bytes, tls: Tls | None, limits: Limits
) -> tuple[Dialled, Greeting]:
    """A greeted connection to `node`. PeerError, OSError, TimeoutError or WebSocketException."""
    parts = urlsplit(url)
    if (parts.scheme == "wss") != (tls is not None):
        raise PeerError(
            f"{url} is {'plain' if tls else 'TLS'}, but gossip here is "
            f"{'mutual TLS' if tls else 'insecure'}"
        )
    connection = await connect(
        url.rstrip("/") + path,
        ssl=None if tls is None else tls.client,
        compression=None,
        proxy=None,
        max_size=GREETING_BYTES_MAX,
        max_queue=2,
        open_timeout=GREETING_S,
        close_timeout=CLOSE_S,
        ping_interval=None,
        create_connection=Dialled,
        user_agent_header=None,
        logger=_quiet,
    )
    assert isinstance(connection, Dialled)
    try:
        _prepare(connection)
        check_certificate(connection, node)
        await connection.send(greeting)
        async with asyncio.timeout(GREETING_S):
            answer = await connection.recv(decode=False)
        theirs = frames.decode_greeting(answer)
        if theirs.node != node:
            raise PeerError(f"{url} is node {theirs.node!r}, not {node!r}")
        _greeted(connection, limits)
    except BaseException:
        connection.transport.abort()
        raise
    return connection, theirs


Handler = Callable[[Accepted, Greeting], Awaitable[None]]


class Listener:
    """One port for the paths in `handlers`; a handler gets a connection that has greeted.

    The handler answers the greeting (or raises PeerError, which is told to the other side).
    """

    def __init__(
        self, host: str, port: int, tls: Tls | None, limits: Limits, handlers: dict[str, Handler]
    ) -> None:
        self._address = (host, port)
        self._tls = tls
        self._limits = limits
        self._handlers = handlers
        self._ungreeted = 0
        self._server: Server | None = None
        self.port = port
        self.last_error = ""

    async def start(self) -> None:
        """OSError if the address cannot be bound."""
        self._server = await serve(
            self._serve,
            *self._address,
            ssl=None if self._tls is None else self._tls.server,
            compression=None,
            process_request=self._check_request,
            max_size=GREETING_BYTES_MAX,
            max_queue=2,
            open_timeout=GREETING_S,
            close_timeout=CLOSE_S,
            ping_interval=None,
            create_connection=Accepted,
            server_header=None,
            logger=_quiet,
        )
        self.port = next(iter(self._server.sockets)).getsockname()[1]

    async def stop(self) -> None:
        """Refuse newcomers; connections already handed over are their handlers' to close."""
        if self._server is None:
            return
        self._server.close()
        try:
            async with asyncio.timeout(2 * CLOSE_S):
                await self._server.wait_closed()
        except TimeoutError:
            for connection in list(self._server.connections):
                connection.transport.abort()

    def _check_request(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path not in self._handlers:
            known = " or ".join(sorted(self._handlers))
            return connection.respond(HTTPStatus.NOT_FOUND, f"this port serves {known}\n")
        if "Sec-WebSocket-Extensions" in request.headers:
            return connection.respond(HTTPStatus.BAD_REQUEST, "no extensions, no deflate\n")
        if self._ungreeted >= UNGREETED_MAX:
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "too many newcomers\n")
        return None

    async def _serve(self, connection: ServerConnection) -> None:
        assert isinstance(connection, Accepted)
        assert connection.request is not None
        handler = self._handlers[connection.request.path]
        try:
            greeting = await self._await_greeting(connection)
            await handler(connection, greeting)
        except PeerError as error:
            self.last_error = str(error)
            _log.warning("neighbour refused: %s", error)
            await refuse(connection, error)
        except ConnectionClosed:
            pass
        except TimeoutError:
            self.last_error = f"no greeting within {GREETING_S} s"
        finally:
            connection.transport.abort()

    async def _await_greeting(self, connection: Accepted) -> Greeting:
        self._ungreeted += 1
        try:
            _prepare(connection)
            async with asyncio.timeout(GREETING_S):
                data = await connection.recv(decode=False)
            greeting = frames.decode_greeting(data)
            check_certificate(connection, greeting.node)
            _greeted(connection, self._limits)
            return greeting
        finally:
            self._ungreeted -= 1
