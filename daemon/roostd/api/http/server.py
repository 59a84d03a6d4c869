"""uvicorn inside the node's own loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from typing import Any

import msgspec
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from roostd.api.http.app import application
from roostd.api.http.problems import TYPE_BASE
from roostd.api.metrics import FaceMetrics
from roostd.api.operations import Operations
from roostd.node import Node

log = logging.getLogger(__name__)

HEADERS_S = 30.0
"""A request's headers must be whole so long after its first byte, or after connecting."""
LINGER_S = 1.0
"""A client whose body is refused may go on sending so long; nothing of it is kept."""
KEEP_ALIVE_S = 75
STOP_S = 3


class _BoundedProtocol(HttpToolsProtocol):
    """Cuts clients that hold a connection without ever finishing a request's headers."""

    _headers_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self._headers_due is None and not self.transport.is_closing():
            self._await_headers()

    def on_headers_complete(self) -> None:
        self._forget_headers()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle is not None and self.cycle.more_body:
            # Refused before its body was read. Closing at once would reset the connection, and
            # the client, still sending, would never see why: what comes is dropped for a moment.
            self.loop.call_later(LINGER_S, self._end_linger, self.cycle)

    def _end_linger(self, refused: object) -> None:
        if self.cycle is refused and self.cycle.more_body:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_headers()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Framing faults: a problem document, and the connection is closed."""
        body = msgspec.json.encode(
            {
                "type": TYPE_BASE + "badrequest",
                "title": "The request is malformed",
                "status": 400,
                "detail": msg,
                "code": "BADREQUEST",
            }
        )
        self.transport.write(
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\n"
            b"connection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        )
        self.transport.close()

    def _await_headers(self) -> None:
        self._headers_due = self.loop.call_later(HEADERS_S, self._cut)

    def _forget_headers(self) -> None:
        if self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None

    def _cut(self) -> None:
        self._headers_due = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()


class _Server(uvicorn.Server):
    """A uvicorn server that leaves the process's signals to the daemon."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """Serves HTTP on config.listen.http in the running loop."""

    def __init__(self, node: Node, operations: Operations, metrics: FaceMetrics) -> None:
        self.node = node
        self.app = application(node, operations, metrics)
        self.addresses: list[str] = []
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen; raises OSError naming the address that is taken."""
        address = self.node.config.listen.http
        if address is None:
            return
        sock = _bound(address.host, address.port)
        config: Any = uvicorn.Config(
            self.app,
            http=_BoundedProtocol,
            ws="none",
            loop="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=STOP_S,
            limit_concurrency=self.node.limits.connections_max,
        )
        self._server = _Server(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[sock]), name="http")
        while not self._server.started:
            if self._serving.done():
                await self._serving  # raises what kept it from starting
                raise OSError(f"HTTP did not start on {address.host}:{address.port}")
            await asyncio.sleep(0.005)
        host, port = sock.getsockname()[:2]
        self.addresses.append(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")

    async def stop(self) -> None:
        """End streams, answer what runs (3 s at most), close."""
        if self._server is None or self._serving is None:
            return
        self.app.state.streams.end()
        self._server.should_exit = True
        await self._serving
        self._server = None


def _bound(host: str, port: int) -> socket.socket:
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, place = infos[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(place)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"http cannot listen on {host}:{port}: {error}") from None
    return sock
