"""The asyncio face: the names of `roost`, as coroutines.

    async with roost.aio.connect() as client:
        session = await client.open()
        await session.commit([{"role": "user", "content": "hello"}])

`connect` may also be awaited. A client belongs to the loop that it is used in.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Generator, Iterable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

from roost import requests
from roost.address import Address, parse_url
from roost.aiotransport import AioConnection, AioTransport
from roost.mmap import IndexReader
from roost.requests import Request
from roost.session import (
    CallState,
    OnConflict,
    Opened,
    SessionState,
    error_text,
    open_session,
)
from roost.types import Ack, Change, Hello, Reading, Spent, Turn, Turns
from roost.watch import changed_key, interrupted, is_subscribed, read_change, subscription
from roost.wire import encode
from roost_crdt.errors import UnknownOutcome

__all__ = ["Call", "Client", "Reservation", "Session", "Watch", "connect"]

T = TypeVar("T")


def connect(url: str | None = None, *, mmap: bool = True, deadline_ms: int = 2000) -> Client:
    """A client as `roost.connect` makes one; await it, or enter it with `async with`.

    Awaiting greets the daemon and raises Unavailable if nobody answers; unawaited, the first
    request does.
    """
    return Client(parse_url(url, os.environ), mmap=mmap, deadline_ms=deadline_ms)


class Client:
    """Keys, quotas and sessions of one daemon."""

    def __init__(self, address: Address, *, mmap: bool, deadline_ms: int) -> None:
        self.deadline_ms = requests.whole(deadline_ms, "deadline_ms", 1)
        self._transport = AioTransport(address)
        self._index = IndexReader(address) if mmap and address.is_local else None
        self._watches: list[Watch] = []

    def __await__(self) -> Generator[Any, None, Self]:
        return self._opened().__await__()

    async def __aenter__(self) -> Self:
        return await self._opened()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _opened(self) -> Self:
        await self.connect()
        return self

    async def connect(self) -> Hello:
        """Greet the daemon unless that is done. Every other call does so by itself."""
        return self._greeted(await self._transport.connect(self._by()))

    async def close(self) -> None:
        """Drop connections, watches and the mapped index."""
        for watch in self._watches:
            await watch.close()
        await self._transport.close()
        if self._index is not None:
            self._index.close()

    @property
    def node(self) -> str:
        """The id of the node that this client talks to."""
        hello = self._transport.hello
        return hello.node if hello is not None else ""

    async def run(self, request: Request[T], deadline_s: float | None = None) -> T:
        """The answer to any request, by `deadline_s` (the loop's clock) or in the deadline."""
        by_s = self._by() if deadline_s is None else deadline_s
        answer = await self._transport.run(request, by_s)
        hello = self._transport.hello
        if hello is not None:
            self._greeted(hello)
        return answer

    def _by(self) -> float:
        return asyncio.get_running_loop().time() + self.deadline_ms / 1000

    def _greeted(self, hello: Hello) -> Hello:
        if self._index is not None:
            self._index.greeted(hello)
        return hello

    def _acked(self, ack: Ack) -> Ack:
        if self._index is not None:
            self._index.acknowledged(ack.seq)
        return ack

    # --- keys ---------------------------------------------------------------------------------

    async def get(self, key: str | bytes, *, max_lag_ms: int | None = None) -> Reading:
        """See `roost.Client.get`. A read from shared memory does not yield to the loop."""
        if self._index is not None:
            reading = self._index.get(key, max_lag_ms)
            if reading is not None:
                return reading
        return await self.run(requests.get(key, max_lag_ms))

    async def set(self, key: str | bytes, value: Any, *, ttl_ms: int | None = None) -> Ack:
        """See `roost.Client.set`."""
        return self._acked(await self.run(requests.set_value(key, value, ttl_ms)))

    async def incr(
        self,
        key: str | bytes,
        by: int | float | Mapping[str, int] = 1,
        *,
        request_id: str | None = None,
    ) -> Ack:
        """See `roost.Client.incr`."""
        named = uuid.uuid4().hex if request_id is None else request_id
        request = requests.incr(key, by, named)
        deadline_s = self._by()
        try:
            return self._acked(await self.run(request, deadline_s))
        except UnknownOutcome as error:
            if isinstance(error.__cause__, TimeoutError) or not await self.run(
                requests.applies_once(key), deadline_s
            ):
                raise
            return self._acked(await self.run(request, deadline_s))

    async def delete(self, key: str | bytes) -> Ack:
        """See `roost.Client.delete`."""
        return self._acked(await self.run(requests.delete(key)))

    async def update(
        self,
        key: str | bytes,
        *,
        put: Mapping[Any, Any] | Iterable[Any] = (),
        drop: Iterable[Any] = (),
    ) -> Ack:
        """See `roost.Client.update`."""
        return self._acked(await self.run(requests.update(key, put, drop)))

    async def keys(self, pattern: str | bytes) -> list[str]:
        """See `roost.Client.keys`."""
        found: list[str] = []
        after = b""
        while True:
            page = await self.run(requests.keys_page(pattern, after))
            found.extend(map(requests.key_text, page))
            if len(page) < requests.PAGE_KEYS:
                return found
            after = page[-1]

    def watch(self, prefix: str | bytes, *, idle_ms: int | None = None) -> Watch:
        """An asynchronous iterator of changes; see `roost.Client.watch`.

        It watches from its first step on; await it, or enter it, to watch from now on.
        """
        self._watches = [watch for watch in self._watches if not watch.closed]
        watch = Watch(self, self._transport.address, prefix, idle_ms)
        self._watches.append(watch)
        return watch

    # --- quotas -------------------------------------------------------------------------------

    async def spend(self, key: str | bytes, n: int, *, request_id: str) -> Spent:
        """See `roost.Client.spend`."""
        return await self.run(requests.spend(key, n, request_id))

    async def reserve(
        self, key: str | bytes, n: int, *, request_id: str, ttl_ms: int
    ) -> Reservation:
        """See `roost.Client.reserve`."""
        return Reservation(self, await self.run(requests.reserve(key, n, request_id, ttl_ms)))

    # --- sessions -----------------------------------------------------------------------------

    async def open(self, token: str | None = None, *, sid: str | None = None) -> Session:
        """See `roost.Client.open`."""
        return Session(self, await self.run(open_session(token, sid)))


class Reservation:
    """An amount set aside; `id` settles it from anywhere."""

    def __init__(self, client: Client, reservation_id: str) -> None:
        self.id = reservation_id
        self._client = client
        self._ended = False

    async def settle(self, used: int) -> None:
        """Count `used` as spent and give the rest back."""
        await self._client.run(requests.settle(self.id, used))
        self._ended = True

    async def release(self) -> None:
        """Give all of it back."""
        await self._client.run(requests.release(self.id))
        self._ended = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._ended:
            await self.release()


class Call(CallState):
    """See `roost.Call`."""

    def __init__(
        self,
        client: Client,
        session: SessionState,
        tool: str,
        args: Any,
        key: str | None,
        turn_id: str | None,
    ) -> None:
        super().__init__(session, tool, args, key, turn_id)
        self._client = client

    async def finish(self, result: Any) -> None:
        """Store the result; later calls under the same key get it."""
        await self._client.run(self.end_request("finished", result))

    async def fail(self, error: Any) -> None:
        """Store that the call failed; an exception is stored as its text."""
        await self._client.run(self.end_request("failed", error_text(error)))

    async def retry(self) -> None:
        """Open the next attempt of a failed or doubtful call; `status` is fresh afterwards."""
        await self._client.run(self.begin_request(retry=True))


class Session(SessionState):
    """See `roost.Session`."""

    def __init__(self, client: Client, opened: Opened) -> None:
        super().__init__(opened)
        self._client = client

    async def turns(self, last: int | None = None) -> Turns:
        """See `roost.Session.turns`."""
        return await self._client.run(self.turns_request(last))

    async def commit(
        self,
        messages: Iterable[Mapping[str, Any]],
        *,
        turn_id: str | None = None,
        base: int | None = None,
        put: Mapping[str, Mapping[str, Any]] | None = None,
        on_conflict: OnConflict = "reject",
    ) -> Turn:
        """See `roost.Session.commit`."""
        request = self.commit_request(messages, turn_id, base, put, on_conflict)
        return await self._client.run(request)

    async def call(
        self, tool: str, args: Any, *, key: str | None = None, turn_id: str | None = None
    ) -> Call:
        """See `roost.Session.call`."""
        call = Call(self._client, self, tool, args, key, turn_id)
        await self._client.run(call.begin_request())
        return call

    async def field(self, policy: str, name: str) -> Any:
        """A field of a session-local map, None if it is not set."""
        return await self._client.run(self.field_request(policy, name))

    async def show(self) -> dict[str, Any]:
        """See `roost.Session.show`."""
        return await self._client.run(self.show_request())

    async def fork(self, at: int | None = None) -> Session:
        """A new session with this one's turns up to `at` (None = all)."""
        return Session(self._client, await self._client.run(self.fork_request(at)))

    async def erase(self) -> list[dict[str, Any]]:
        """Drop the session everywhere, for ever; one receipt a holder."""
        return await self._client.run(self.erase_request())


class Watch:
    """An asynchronous iterator of Change on a connection of its own."""

    def __init__(
        self, client: Client, address: Address, prefix: str | bytes, idle_ms: int | None
    ) -> None:
        self.closed = False
        self._client = client
        self._address = address
        self._command = subscription(prefix)
        self._idle_s = None if idle_ms is None else requests.whole(idle_ms, "idle_ms", 1) / 1000
        self._connection: AioConnection | None = None

    def __await__(self) -> Generator[Any, None, Self]:
        return self.__aenter__().__await__()

    def __aiter__(self) -> Self:
        return self

    async def __aenter__(self) -> Self:
        await self._subscribed()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def __anext__(self) -> Change:
        if self.closed:
            raise StopAsyncIteration
        connection = await self._subscribed()
        try:
            async with asyncio.timeout(self._idle_s):
                key: bytes | None = None
                while key is None:
                    key = changed_key(await connection.pushed())
        except TimeoutError:
            raise StopAsyncIteration from None
        except ConnectionResetError as error:
            if self.closed:
                raise StopAsyncIteration from None
            await self.close()
            raise interrupted(self._address, error) from error
        return await self._client.run(read_change(key))

    async def close(self) -> None:
        """End the watch."""
        self.closed = True
        if self._connection is not None:
            self._connection.close()
            await asyncio.sleep(0)

    async def _subscribed(self) -> AioConnection:
        if self._connection is not None:
            return self._connection
        try:
            async with asyncio.timeout(self._client.deadline_ms / 1000):
                connection = await AioConnection.open(self._address)
                self._connection = connection
                connection.push(encode((self._command,)))
                while not is_subscribed(await connection.pushed()):
                    pass
        except OSError as error:
            await self.close()
            raise requests.refused(self._address, error) from error
        return connection
