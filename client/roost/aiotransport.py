"""One connection to the daemon, for many tasks: requests go out as they come, in order.

The replies come in the same order, so that a request that was cancelled or timed out only
leaves its place in the queue behind. A connection on which nothing at all came back during a
whole deadline is dropped with everything that waits on it.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from typing import Any, TypeVar

import hiredis

from roost.address import Address
from roost.requests import Request, lost, refused
from roost.types import Hello
from roost.wire import encode, greeting, new_reader, read_greeting
from roost_crdt.errors import RoostError, Unavailable

__all__ = ["AioConnection", "AioTransport"]

T = TypeVar("T")

PUSHED_MAX = 1_000
"""Messages kept for a watch that does not read; above it the socket is not read."""


class AioConnection(asyncio.Protocol):
    """A connection that answers in order; `pushed` gives what was not asked for."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.hello = Hello()
        self.received = 0
        self._pushed: deque[Any] = deque()
        self._news = asyncio.Event()
        self._reader = new_reader()
        self._transport: asyncio.Transport | None = None
        self._due: deque[asyncio.Future[Any]] = deque()
        self._writable = asyncio.Event()
        self._writable.set()

    @classmethod
    async def open(cls, address: Address) -> AioConnection:
        """A greeted connection; OSError if nobody answers, or the daemon's refusal."""
        loop = asyncio.get_running_loop()
        connection = cls()
        if address.path:
            await loop.create_unix_connection(lambda: connection, address.path)
        else:
            await loop.create_connection(lambda: connection, address.host, address.port)
        try:
            commands = greeting(address)
            replies = await connection.exchange(encode(commands), len(commands))
            connection.hello = read_greeting(replies, address)
        except BaseException:
            connection.close()
            raise
        return connection

    async def exchange(self, payload: bytes, count: int) -> list[Any]:
        """Send `payload` and wait for `count` replies; OSError if the connection is lost."""
        await self._writable.wait()
        transport = self._transport
        if self.error is not None or transport is None:
            raise ConnectionResetError(str(self.error or "not connected"))
        loop = asyncio.get_running_loop()
        due = [loop.create_future() for _ in range(count)]
        self._due.extend(due)
        transport.write(payload)
        return [await future for future in due]

    async def pushed(self) -> Any:
        """The next message that was not asked for; OSError if the connection is lost."""
        while not self._pushed:
            if self.error is not None:
                raise ConnectionResetError(str(self.error))
            self._news.clear()
            await self._news.wait()
        message = self._pushed.popleft()
        if not self._pushed and self._transport is not None:
            self._transport.resume_reading()
        return message

    def push(self, payload: bytes) -> None:
        """Send what is answered by pushes only (a subscription)."""
        if self._transport is not None:
            self._transport.write(payload)

    def close(self) -> None:
        """Drop the connection; those who wait get ConnectionResetError."""
        self._end(ConnectionResetError("the connection was closed"))
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport), "a stream was asked for"
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        try:
            self._reader.feed(data)
            reply: Any = self._reader.gets()
            while reply is not False:
                self._replied(reply)
                reply = self._reader.gets()
        except hiredis.HiredisError as error:
            self._end(ConnectionResetError(f"the daemon broke the protocol: {error}"))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(ConnectionResetError(str(exc or "the daemon closed the connection")))

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _replied(self, reply: Any) -> None:
        if isinstance(reply, hiredis.PushNotification) or not self._due:
            self._pushed.append(reply)
            self._news.set()
            if len(self._pushed) >= PUSHED_MAX and self._transport is not None:
                self._transport.pause_reading()
            return
        future = self._due.popleft()
        if not future.done():
            future.set_result(reply)

    def _end(self, error: BaseException) -> None:
        if self.error is not None:
            return
        self.error = error
        self._writable.set()
        self._news.set()
        while self._due:
            future = self._due.popleft()
            if not future.done():
                future.set_exception(error)
                future.exception()  # a request that was cancelled nobody asks about


class AioTransport:
    """Runs requests over one connection of the running loop; reopens it as needed."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.closed = False
        self._connection: AioConnection | None = None
        self._home: tuple[int, asyncio.AbstractEventLoop] | None = None
        self._opening = asyncio.Lock()
        self._hello: Hello | None = None

    @property
    def hello(self) -> Hello | None:
        """What the daemon said at the newest greeting; None before the first."""
        return self._hello

    async def connect(self, deadline_s: float) -> Hello:
        """Greet the daemon unless that is done; Unavailable if nobody answers."""
        try:
            async with asyncio.timeout_at(deadline_s):
                return (await self._connected()).hello
        except TimeoutError as error:
            raise refused(self.address, error) from error

    async def run(self, request: Request[T], deadline_s: float) -> T:
        """The parsed answer to `request`, by `deadline_s` on the loop's clock.

        Raises what the daemon answered; Unavailable if it was not asked, or only read from;
        UnknownOutcome if it may have applied the request.
        """
        payload = encode(request.commands)
        connection: AioConnection | None = None
        before = 0
        try:
            async with asyncio.timeout_at(deadline_s):
                for attempt in (1, 2):
                    connection = None
                    connection = await self._connected()
                    before = connection.received
                    try:
                        replies = await connection.exchange(payload, len(request.commands))
                        return request.answer(replies)
                    except ConnectionResetError as error:
                        if attempt == 2 or not request.repeat:
                            raise lost(request, self.address, error) from error
        except TimeoutError as error:
            if connection is None:
                raise refused(self.address, error) from error
            if connection.received == before:
                connection.close()
            raise lost(request, self.address, error) from error
        raise AssertionError("unreachable: the second attempt returns or raises")

    async def close(self) -> None:
        """Drop the connection; later requests raise Unavailable."""
        self.closed = True
        self._leave_other_loop()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
            await asyncio.sleep(0)  # the loop closes the socket in its next turn

    def _leave_other_loop(self) -> None:
        """After a fork, or in another loop: that connection and that lock are not ours."""
        here = (os.getpid(), asyncio.get_running_loop())
        if self._home == here:
            return
        former, connection = self._home, self._connection
        self._connection, self._opening, self._home = None, asyncio.Lock(), here
        if former is not None and connection is not None and former[0] == here[0]:
            loop = former[1]
            if not loop.is_closed():
                loop.call_soon_threadsafe(connection.close)

    async def _connected(self) -> AioConnection:
        if self.closed:
            raise Unavailable("this client is closed; connect again", connected=False)
        self._leave_other_loop()
        connection = self._connection
        if connection is not None and connection.error is None:
            return connection
        async with self._opening:
            connection = self._connection
            if connection is not None and connection.error is None:
                return connection
            try:
                connection = await AioConnection.open(self.address)
            except RoostError:
                raise
            except OSError as error:
                if isinstance(error, TimeoutError):
                    raise
                raise refused(self.address, error) from error
            self._connection = connection
            self._hello = connection.hello
            return connection
