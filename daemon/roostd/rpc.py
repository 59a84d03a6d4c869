"""Calls between nodes, on connections of their own: never behind replication frames.

Messages are MessagePack:

    [id, method, args, deadline_ms, to, ttl, origin]      a call; `origin` is the node that made it
    [id, 0, result]                                       its answer
    [id, 1, code, message, retry_after_ms, details]       or its error

A node that is no neighbour is reached through neighbours that reach it, `ttl` hops at most. A
call that was not handed to a socket ends as Unavailable, one that was handed over and brings no
answer as UnknownOutcome: that difference is what a caller needs to retry safely.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.protocol import State

from roost_crdt import frames
from roost_crdt.errors import (
    BadRequest,
    Busy,
    CorruptData,
    PeerError,
    RoostError,
    TooLarge,
    Unavailable,
    UnknownOutcome,
    error_from_code,
)
from roost_crdt.frames import Greeting
from roost_crdt.limits import DEFAULT_LIMITS, Limits
from roost_crdt.peer import ROUTE_HOPS_MAX

from . import wire
from .wire import Tls, Wire

__all__ = ["Handler", "Rpc"]

CALLS_MAX = 1_024
"""Calls under way on one connection, each way; above it Busy."""
DIAL_WAIT_S = 1.5
"""How long a call waits for a connection that is being dialled."""

Handler = Callable[[str, dict[str, Any]], Awaitable[Any]]

_log = logging.getLogger("roostd.rpc")
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder()


@dataclass(slots=True)
class _Channel:
    """One connection: calls go both ways over it."""

    peer: str
    wire: Wire
    waiting: dict[int, asyncio.Future[Any]] = field(default_factory=dict)
    serving: int = 0
    last_id: int = 0


@dataclass(slots=True)
class _Dial:
    """A neighbour that this node keeps a connection to."""

    peer: str
    url: str
    kick: asyncio.Event = field(default_factory=asyncio.Event)
    tried: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the attempt that a kick asked for has ended, one way or the other."""
    task: asyncio.Task[None] | None = None
    last_error: str = "not connected yet"


@dataclass(slots=True)
class _Call:
    method: str
    args: Mapping[str, Any]
    due_s: float
    to: str
    ttl: int
    origin: str


class _NotSent(Exception):
    """Nothing of the call reached a socket: another way may be tried."""


class Rpc:
    """Calls to and from other nodes. All methods belong to the event loop's thread."""

    def __init__(
        self,
        *,
        node: str,
        region: str,
        cluster: str,
        neighbours: Sequence[tuple[str, str]] = (),
        routes: Callable[[str], Sequence[str]] = lambda node: (),
        tls: Tls | None = None,
        limits: Limits = DEFAULT_LIMITS,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """`routes(node)` are the neighbours over which a node is reached, best first."""
        self.node = node
        self._cluster = cluster
        self._hello = frames.encode_greeting(
            Greeting(versions=frames.PROTOCOL_VERSIONS, cluster=cluster, node=node, region=region)
        )
        self._routes = routes
        self._tls = tls
        self._limits = limits
        self._jitter = jitter
        self._handlers: dict[str, Handler] = {}
        self._dials = {peer: _Dial(peer, url) for peer, url in neighbours}
        self._channels: dict[str, list[_Channel]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        """Calls being served; one whose connection is gone goes on to its deadline."""
        self._stopping = False

    # -- life

    async def start(self) -> None:
        """Neighbours are dialled in the background."""
        for dial in self._dials.values():
            dial.task = asyncio.create_task(self._keep(dial), name=f"rpc-dial-{dial.peer}")

    async def stop(self) -> None:
        """Calls under way end as UnknownOutcome; calls being served are cancelled."""
        self._stopping = True
        tasks = [dial.task for dial in self._dials.values() if dial.task is not None]
        tasks += self._tasks
        channels = [channel for group in self._channels.values() for channel in group]
        for channel in channels:
            self._lost(channel)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(wire.end(c.wire, "stopping", code=1001) for c in channels))

    def register(self, method: str, handler: Handler) -> None:
        """`await handler(origin, args)` answers `method`; it is cancelled at the call's deadline.

        `origin` is the node that made the call. A RoostError travels back to it; PeerError and
        CorruptData become BadRequest.
        """
        assert method not in self._handlers, f"{method} has a handler"
        self._handlers[method] = handler

    def peer_up(self, peer: str) -> None:
        """The gossip link is up: dial now instead of waiting for the next attempt."""
        if peer in self._dials and not self._connected(peer):
            self._dials[peer].kick.set()

    def peer_down(self, peer: str) -> None:
        """The failure detector gave the neighbour up: end what waits for it."""
        for channel in list(self._channels.get(peer, ())):
            self._lost(channel)
            channel.wire.transport.abort()

    def _connected(self, peer: str) -> _Channel | None:
        for channel in reversed(self._channels.get(peer, [])):
            if channel.wire.state is State.OPEN:
                return channel
        return None

    # -- calls from here

    async def call(
        self, node: str, method: str, args: Mapping[str, Any], *, deadline_ms: int
    ) -> Any:
        """The result of `method` at `node`, or the RoostError that it raised there.

        Unavailable: not sent, or no way there. UnknownOutcome: sent and not answered. TooLarge,
        Busy: refused here, not sent.
        """
        if deadline_ms <= 0:
            raise Unavailable(f"no time is left to call {method} at {node}")
        due_s = asyncio.get_running_loop().time() + deadline_ms / 1000
        call = _Call(method, args, due_s, node, ROUTE_HOPS_MAX, self.node)
        if node == self.node:
            try:
                async with asyncio.timeout_at(due_s):
                    return await self._handle(call)
            except TimeoutError:
                raise UnknownOutcome(f"{method} here gave no answer in {deadline_ms} ms") from None
        return await self._send(call, came_from="")

    async def _send(self, call: _Call, *, came_from: str) -> Any:
        """Over an open connection, else through neighbours that reach it, else by dialling."""
        hops = [hop for hop in self._routes(call.to) if hop != came_from]
        if self._connected(call.to) is not None:
            hops = [call.to, *(hop for hop in hops if hop != call.to)]
        elif call.to in self._dials and call.to not in hops:
            hops.append(call.to)
        reasons: list[str] = []
        for hop in hops:
            try:
                return await self._send_over(hop, call)
            except _NotSent as error:
                reasons.append(str(error))
        why = "; ".join(reasons) or "no neighbour reaches it"
        raise Unavailable(
            f"{call.to} cannot be called from {self.node}: {why}",
            retry_after_ms=self._limits.reconnect_min_ms,
            no_route=True,
        )

    async def _channel(self, hop: str, due_s: float) -> _Channel:
        channel = self._connected(hop)
        dial = self._dials.get(hop)
        if channel is None and dial is not None:
            dial.tried.clear()
            dial.kick.set()
            left_s = due_s - asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout(min(left_s, DIAL_WAIT_S)):
                    await dial.tried.wait()
            except TimeoutError:
                dial.last_error = "dialling takes too long"
            channel = self._connected(hop)
        if channel is None:
            raise _NotSent(f"{hop}: {dial.last_error if dial else 'not connected'}")
        return channel

    async def _send_over(self, hop: str, call: _Call) -> Any:
        channel = await self._channel(hop, call.due_s)
        loop = asyncio.get_running_loop()
        left_ms = int((call.due_s - loop.time()) * 1000)
        if left_ms <= 0:
            raise _NotSent(f"{hop}: no time left")
        buffered = channel.wire.transport.get_write_buffer_size()
        if len(channel.waiting) >= CALLS_MAX or buffered > self._limits.window_bytes:
            raise Busy(f"{hop} has {len(channel.waiting)} calls to answer", retry_after_ms=50)
        channel.last_id += 1
        call_id = channel.last_id
        data = _encoder.encode(
            [call_id, call.method, call.args, left_ms, call.to, call.ttl, call.origin]
        )
        if len(data) > self._limits.body_bytes_max:
            raise TooLarge(
                f"{call.method}: {len(data)} bytes; at most {self._limits.body_bytes_max}"
            )
        answer = channel.waiting[call_id] = loop.create_future()
        try:
            async with asyncio.timeout_at(call.due_s):
                await channel.wire.send(data)
                return await answer
        except TimeoutError:
            raise UnknownOutcome(
                f"{call.method} at {call.to} gave no answer in {left_ms} ms; it may have happened"
            ) from None
        except ConnectionClosed as closed:
            raise UnknownOutcome(
                f"the connection to {hop} broke during {call.method}: {closed}"
            ) from closed
        except Unavailable as error:
            if error.details.get("no_route") and hop != call.to:
                raise _NotSent(f"{hop}: {error}") from error
            raise
        finally:
            channel.waiting.pop(call_id, None)
            if answer.done() and not answer.cancelled():
                answer.exception()

    # -- connections

    async def _keep(self, dial: _Dial) -> None:
        backoff_ms = 2 * self._limits.reconnect_min_ms
        while True:
            try:
                connection, greeting = await wire.dial(
                    dial.url,
                    wire.RPC_PATH,
                    node=dial.peer,
                    greeting=self._hello,
                    tls=self._tls,
                    limits=self._limits,
                )
                frames.check_identity(greeting, node=self.node, cluster=self._cluster)
                backoff_ms = 2 * self._limits.reconnect_min_ms
                await self._run(_Channel(dial.peer, connection), dial)
                dial.last_error = "the connection was closed"
            except (OSError, TimeoutError, PeerError, WebSocketException) as error:
                dial.last_error = f"{type(error).__name__}: {error}"
            dial.tried.set()
            dial.kick.clear()
            await asyncio.sleep(self._limits.reconnect_min_ms / 1000)
            delay_s = self._jitter(0, backoff_ms) / 1000
            backoff_ms = min(2 * backoff_ms, self._limits.reconnect_max_ms)
            try:
                async with asyncio.timeout(delay_s):
                    await dial.kick.wait()
            except TimeoutError:
                continue

    async def accepted(self, connection: wire.Accepted, greeting: Greeting) -> None:
        """Gossip's listener hands over a connection to /rpc that has greeted."""
        frames.check_identity(greeting, node=self.node, cluster=self._cluster)
        await connection.send(self._hello)
        await self._run(_Channel(greeting.node, connection), None)

    async def _run(self, channel: _Channel, dial: _Dial | None) -> None:
        """Until the connection ends; PeerError if the other side broke the protocol."""
        group = self._channels.setdefault(channel.peer, [])
        side = type(channel.wire)
        for older in [other for other in group if type(other.wire) is side]:
            self._lost(older)
            older.wire.transport.abort()
        self._channels.setdefault(channel.peer, []).append(channel)
        if dial is not None:
            dial.tried.set()
        try:
            while True:
                self._received(channel, await channel.wire.recv(decode=False))
        except ConnectionClosed:
            pass
        except PeerError as error:
            _log.warning("%s broke the protocol of calls: %s", channel.peer, error)
            await wire.refuse(channel.wire, error)
        finally:
            self._lost(channel)
            channel.wire.transport.abort()

    def _lost(self, channel: _Channel) -> None:
        group = self._channels.get(channel.peer, [])
        if channel in group:
            group.remove(channel)
        if not group:
            self._channels.pop(channel.peer, None)
        for answer in channel.waiting.values():
            if not answer.done():
                answer.set_exception(
                    UnknownOutcome(f"the connection to {channel.peer} broke before the answer")
                )
        channel.waiting.clear()

    def _received(self, channel: _Channel, data: bytes) -> None:
        try:
            message = _decoder.decode(data)
        except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
            raise PeerError(f"message of {len(data)} bytes cannot be read: {error}") from error
        match message:
            case [int(call_id), 0, result]:
                answer = channel.waiting.pop(call_id, None)
                if answer is not None and not answer.done():
                    answer.set_result(result)
            case [int(call_id), 1, str(code), str(text), int() | None as retry, dict(details)]:
                answer = channel.waiting.pop(call_id, None)
                if answer is not None and not answer.done():
                    answer.set_exception(_error(code, text, retry, details))
            case [
                int(call_id),
                str(method),
                dict(args),
                int(left_ms),
                str(to),
                int(ttl),
                str(origin),
                *_,
            ]:
                due_s = asyncio.get_running_loop().time() + min(max(left_ms, 0), 600_000) / 1000
                self._serve(channel, call_id, _Call(method, args, due_s, to, ttl, origin))
            case _:
                raise PeerError("neither a call nor an answer")

    # -- calls to here

    def _serve(self, channel: _Channel, call_id: int, call: _Call) -> None:
        if channel.serving >= 2 * CALLS_MAX:
            raise PeerError(f"more than {2 * CALLS_MAX} calls at once; at most {CALLS_MAX}")
        task = asyncio.create_task(self._answer(channel, call_id, call), name=f"rpc-{call.method}")
        channel.serving += 1
        self._tasks.add(task)

        def served(task: asyncio.Task[None]) -> None:
            channel.serving -= 1
            self._tasks.discard(task)
            bug = None if task.cancelled() else task.exception()
            if bug is not None and not self._stopping:
                _log.error("%s for %s failed", call.method, call.origin, exc_info=bug)
                failure = RoostError(f"{call.method} failed at {self.node}: {type(bug).__name__}")
                reply = asyncio.create_task(self._reply(channel, _refusal(call_id, failure)))
                self._tasks.add(reply)
                reply.add_done_callback(self._tasks.discard)

        task.add_done_callback(served)

    async def _answer(self, channel: _Channel, call_id: int, call: _Call) -> None:
        try:
            async with asyncio.timeout_at(call.due_s):
                reply = [call_id, 0, await self._execute(channel.peer, call)]
        except TimeoutError:
            return  # the caller has given up by its own clock
        except RoostError as error:
            reply = _refusal(call_id, error)
        except (PeerError, CorruptData) as error:
            reply = _refusal(call_id, BadRequest(str(error)))
        await self._reply(channel, reply)

    async def _execute(self, came_from: str, call: _Call) -> Any:
        if call.to == self.node:
            return await self._handle(call)
        if call.ttl <= 1:
            raise Unavailable(f"{call.to} is too many hops from {call.origin}", no_route=True)
        call.ttl -= 1
        return await self._send(call, came_from=came_from)

    async def _handle(self, call: _Call) -> Any:
        handler = self._handlers.get(call.method)
        if handler is None:
            raise BadRequest(f"{self.node} has no method {call.method!r}: another version?")
        return await handler(call.origin, dict(call.args))

    async def _reply(self, channel: _Channel, reply: list[Any]) -> None:
        data = _encoder.encode(reply)
        if len(data) > self._limits.body_bytes_max:
            error = TooLarge(f"{len(data)} bytes; at most {self._limits.body_bytes_max}")
            data = _encoder.encode(_refusal(reply[0], error))
        try:
            await channel.wire.send(data)
        except ConnectionClosed as closed:
            _log.info("%s did not wait for its answer: %s", channel.peer, closed)


def _refusal(call_id: int, error: RoostError) -> list[Any]:
    return [call_id, 1, error.code, error.message, error.retry_after_ms, error.details]


def _error(code: str, text: str, retry: int | None, details: dict[Any, Any]) -> RoostError:
    taken = ("code", "message", "retry_after_ms")
    named = {str(name): value for name, value in details.items() if str(name) not in taken}
    return error_from_code(code, text, retry_after_ms=retry, **named)
