"""/v1/watch: changes of keys as server-sent events.

A change is `event: change` with the key, its value after it (null if it is gone) and `stamp`,
`[hlc, actor]` of its newest write (null for counters and rates, which keep none). Changes of
one key that come faster than the client reads are told once, with the newest value. A client too
slow even so gets `event: lost` and has to list the keys again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
from starlette.responses import Response, StreamingResponse

from roost_crdt import values
from roost_crdt.errors import CorruptData, RoostError
from roostd.api.caller import READ, Caller
from roostd.api.http.request import Call
from roostd.api.http.routes import TABLE, Parameter
from roostd.api.operations import Operations

KEEPALIVE_S = 15.0


class Stream:
    """Changed keys waiting for one client; each is held once."""

    def __init__(self, operations: Operations, caller: Caller, prefix: bytes) -> None:
        self.operations = operations
        self.caller = caller
        self._bound = operations.node.limits.watch_queue_max
        self._changed: dict[bytes, None] = {}
        self._lost = False
        self._wake = asyncio.Event()
        self._ended = False
        self._unwatch: Callable[[], None] = operations.node.watch(
            caller.prefix + prefix, self._on_change
        )

    def end(self) -> None:
        """Let the client go: it reconnects elsewhere."""
        self._ended = True
        self._wake.set()

    def _on_change(self, key: bytes) -> None:
        if not self.caller.may(READ, key):
            return
        if key not in self._changed and len(self._changed) >= self._bound:
            self._lost = True
            self._changed.clear()
        else:
            self._changed[key] = None
        self._wake.set()

    async def events(self) -> AsyncIterator[bytes]:
        """The stream's bytes."""
        try:
            yield b"retry: 1000\nevent: ready\ndata: {}\n\n"
            while not self._ended:
                try:
                    async with asyncio.timeout(KEEPALIVE_S):
                        await self._wake.wait()
                except TimeoutError:
                    yield b": still here\n\n"
                    continue
                self._wake.clear()
                if self._lost:
                    self._lost = False
                    yield b'event: lost\ndata: {"why":"too slow; list the keys again"}\n\n'
                batch = self._take()
                if batch:
                    # A value may be newer than the change that is told, and not durable yet.
                    await self.operations.node.durable()
                    yield batch
        finally:
            self._unwatch()

    def _take(self) -> bytes:
        changed, self._changed = self._changed, {}
        return b"".join([self._event(key) for key in changed])

    def _event(self, key: bytes) -> bytes:
        node = self.operations.node
        try:
            value: Any = self.operations.value(node.policies.find(key), key)
            stamp = node.keys.stamp(key)
        except (RoostError, CorruptData):
            return b""  # stored for others and not served here
        body = {"key": values.json_of(self.caller.own(key)), "value": value, "stamp": stamp}
        return b"event: change\ndata: " + msgspec.json.encode(body) + b"\n\n"


class Streams:
    """Every open stream, so that a stopping node can end them."""

    def __init__(self) -> None:
        self._open: set[Stream] = set()

    def end(self) -> None:
        for stream in self._open:
            stream.end()

    async def follow(self, stream: Stream) -> AsyncIterator[bytes]:
        self._open.add(stream)
        try:
            async for part in stream.events():
                yield part
        finally:
            self._open.discard(stream)


@TABLE.add(
    "GET",
    "/v1/watch",
    "Follow changes of eventually-global keys",
    "keys",
    parameters=(Parameter("prefix", "query", "only keys that begin with it"),),
    answers={200: (str, "Events `ready`, `change` with {key, value, stamp}, and `lost`.")},
    media_type="text/event-stream",
    errors=("UNSUPPORTED", "BUSY"),
)
async def watch(call: Call) -> Response:
    caller, prefix = call.caller, call.query_bytes("prefix")
    call.operations.check_watchable(caller.prefix + prefix)
    stream = Stream(call.operations, caller, prefix)
    streams: Streams = call.request.app.state.streams
    return StreamingResponse(
        streams.follow(stream),
        media_type="text/event-stream",
        headers={"cache-control": "no-store", "x-accel-buffering": "no"},
    )
