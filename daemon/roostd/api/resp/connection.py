"""One RESP connection: bytes in, commands in order, replies out when they are durable.

Commands of a chunk run at once. Their replies wait in `_out` until everything written so far is
durable and then leave together; a command that awaits (consensus, a session's home) holds back
the commands behind it, never those of other connections. A reply is never written before the
state that it shows is on disk here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast

from roost_crdt.errors import CorruptData, NoAuth, RoostError, TooLarge
from roost_crdt.policy import Policy
from roostd.api import refusals
from roostd.api.caller import ADMIN, KEY_BYTES_MAX, Caller, check_key
from roostd.api.numbers import NotANumber
from roostd.api.resp import encode
from roostd.api.resp.draining import Draining
from roostd.api.resp.parser import ProtocolFault, RequestParser
from roostd.api.resp.table import COMMANDS, Command, RespError, unknown_command, wrong_arity
from roostd.node.standby import Due, settle
from roostd.store import StoreFailed

if TYPE_CHECKING:
    from roostd.api.operations import Operations
    from roostd.api.resp.server import RespServer
    from roostd.node import Node

log = logging.getLogger(__name__)
_clock_ns = time.perf_counter_ns

RELEASE_BYTES = 1024 * 1024
"""With more than this held, replies are released before the next command runs."""
COMMANDS_PER_TURN = 200
"""Commands of one connection that run, and become one group, before others have their turn."""
BACKLOG_BYTES = 256 * 1024
"""Bytes kept unread while a command awaits; above it the socket is not read."""
WRITE_STALL_S = 30.0
"""A client that takes nothing for so long is cut off."""

_SUBSCRIBED = frozenset(
    (b"SUBSCRIBE", b"PSUBSCRIBE", b"UNSUBSCRIBE", b"PUNSUBSCRIBE", b"PING", b"QUIT", b"RESET")
)
_UNQUEUED = frozenset((b"EXEC", b"DISCARD", b"MULTI", b"WATCH", b"QUIT", b"RESET"))


class Connection(asyncio.Protocol):
    """Parser, state and output of one client."""

    def __init__(self, server: RespServer) -> None:
        self.server = server
        self.node: Node = server.node
        self.operations: Operations = server.operations
        self.id = 0
        self.resp3 = False
        self.name = b""
        self.library = b""
        self.library_version = b""
        self.db = 0
        self.peer = "?"
        self.since = time.monotonic()
        self.last_command = ""
        self.last_active = self.since
        self.caller: Caller | None = server.anonymous
        self.queue: list[tuple[Command, list[bytes]]] | None = None
        self.queue_failed = False
        self.queue_bytes = 0
        self.watched: dict[bytes, Any] = {}
        self.revisions: dict[bytes, int] = {}
        self.subscriptions: dict[bytes, Any] = {}
        self.patterns: dict[bytes, Any] = {}
        self._secret: tuple[str | None, bytes] | None = None
        self._quiet = False
        self._skip_replies = 0
        self._counts = server.metrics.commands
        self._latency = server.metrics.resp_latency
        self._reply_bytes_max = server.node.limits.output_bytes_max
        self.closing = False
        self._refused = False
        self.commands_run = 0
        self._partial_since = 0.0
        self._partial_commands = 0
        self._parser = RequestParser(server.node.limits.body_bytes_max)
        self._parser.restricted = self.caller is None
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._due: list[tuple[int, Due]] = []
        """Replies (indices in `_out`) whose write a standby has to hold before they leave."""
        self._held = False
        self._ended = False
        self._task: asyncio.Task[None] | None = None
        self._paused_reading = False
        self._paused_writing = False
        self._scheduled = False
        self._stall: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._received_s = 0.0

    # --- transport ----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        link = cast("asyncio.Transport", transport)  # uvloop's are none by inheritance
        self._transport = link
        peer = transport.get_extra_info("peername")
        self.peer = f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "unix"
        if not self.server.admit(self):
            link.write(encode.error("ERR max number of clients reached"))
            link.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closing = True
        self._transport = None
        if self._stall is not None:
            self._stall.cancel()
        # A running command is not cancelled: its effect may be half-way through consensus.
        self.forget_transaction()
        self.server.drop(self)

    def eof_received(self) -> bool:
        # Replies to what came before the end are still owed: `redis-cli --pipe` and nc send all
        # they have and shut down their side.
        self._ended = True
        return not self._idle()

    def _idle(self) -> bool:
        return self._task is None and not (self._held or self._scheduled or self._paused_writing)

    def pause_writing(self) -> None:
        self._paused_writing = True
        self._stall = asyncio.get_running_loop().call_later(WRITE_STALL_S, self.abort)

    def resume_writing(self) -> None:
        self._paused_writing = False
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        self._schedule()

    def abort(self) -> None:
        """Cut the connection without sending what is left."""
        self.closing = True
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Close when the replies owed so far are out."""
        self.closing = True
        self._release()

    def data_received(self, data: bytes) -> None:
        if self.closing:
            return
        self._received_s = self.last_active = time.monotonic()
        self._parser.feed(data)
        if self._task is None and not self._scheduled:
            self._run()
        else:
            self._bound_backlog()

    def crawls(self, now_s: float, seconds: float, bytes_per_s: int) -> bool:
        """True if one command has been arriving for `seconds`, slower than `bytes_per_s`."""
        if self._task is not None or not self._parser.partial():
            self._partial_since = 0.0
            return False
        if not self._partial_since or self._partial_commands != self.commands_run:
            self._partial_since, self._partial_commands = now_s, self.commands_run
        waited_s = now_s - self._partial_since
        return waited_s > seconds and self._parser.buffered_bytes() < bytes_per_s * waited_s

    # --- running ------------------------------------------------------------------------------

    def _schedule(self) -> None:
        if not self._scheduled and self._task is None and not self.closing:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._run_scheduled)

    def _run_scheduled(self) -> None:
        self._scheduled = False
        if self._task is None and not self.closing:
            self._run()

    def _run(self) -> None:
        """Run what has come, up to a share of the loop, then release the replies."""
        pull = self._parser.pull
        for _ in range(COMMANDS_PER_TURN):
            if self._paused_writing:
                break
            if self._out_bytes > RELEASE_BYTES:
                self._schedule()
                break
            try:
                args = pull()
            except ProtocolFault as fault:
                self.server.metrics.protocol_faults += 1
                self._out.append(encode.error(f"ERR Protocol error: {fault}"))
                self.closing = self._refused = True
                break
            if args is None:
                break
            self.commands_run += 1
            try:
                reply = self.execute(args)
            except StoreFailed:
                self.abort()  # the node is ending, and says why
                return
            if type(reply) is bytes:
                due, at = self.node.keys.take_due(), len(self._out)
                self.send(reply)
                if due is not None and len(self._out) > at:
                    self._due.append((at, due))
            else:
                assert not isinstance(reply, bytes)
                self._task = asyncio.get_running_loop().create_task(self._wait(reply))
                break
            if self.closing:
                break
        else:
            self._schedule()
        self._release()
        self._bound_backlog()

    async def _wait(self, reply: Awaitable[bytes]) -> None:
        """Await one command's reply, then go on with the commands behind it."""
        self.send(await self.settled(reply))
        self._go_on()

    async def _await_standby(self) -> None:
        """Let the replies go when a standby holds what they tell of."""
        due, self._due = self._due, []
        try:
            await settle(self.node.standbys, self._out, due, self.refusal)
        except BaseException:
            self.abort()
            raise
        self._go_on()

    def _go_on(self) -> None:
        self._task = None
        if self.closing:
            self._release()
        elif not self._scheduled:
            self._run()

    async def settled(self, reply: Awaitable[bytes]) -> bytes:
        try:
            return await reply
        except (RespError, RoostError, NotANumber, CorruptData) as error:
            return self.refusal(error)
        except StoreFailed:
            self.abort()
            return b""
        except BaseException as error:
            if not isinstance(error, asyncio.CancelledError):
                log.exception("a command failed; its connection is closed")
            self.abort()
            raise

    def execute(self, args: list[bytes]) -> bytes | Awaitable[bytes]:
        """Run one command; its encoded reply, or an awaitable of it."""
        name = args[0]
        command = COMMANDS.get(name) or COMMANDS.get(name.upper())
        try:
            if command is None:
                raise unknown_command(args)
            arity = command.arity
            if len(args) != arity and (arity >= 0 or len(args) < -arity):
                raise wrong_arity(command.name)
            self.last_command = command.name
            if (caller := self.caller) is None:
                if command.right:
                    raise RespError("NOAUTH Authentication required.")
            elif not caller.free:
                args = self._authorised(caller, command, args)
            if self.queue is not None and name.upper() not in _UNQUEUED:
                return self._enqueue(command, args)
            if (self.patterns or self.subscriptions) and not self.resp3:
                self._check_subscribed(name)
            return self.run(command, args)
        except (RespError, RoostError, NotANumber, CorruptData) as error:
            if self.queue is not None and name.upper() not in _UNQUEUED:
                self.queue_failed = True
            return self.refusal(error)

    def run(self, command: Command, args: list[bytes]) -> bytes | Awaitable[bytes]:
        """Call the handler and count it."""
        counts = self._counts[command.name]
        counts[0] += 1
        started_ns = _clock_ns()
        try:
            return command.handler(self, args)
        except BaseException:
            counts[1] += 1
            raise
        finally:
            counts[2] += _clock_ns() - started_ns

    def run_refusing(self, command: Command, args: list[bytes]) -> bytes | Awaitable[bytes]:
        """As `run`, with a refusal as its reply."""
        try:
            return self.run(command, args)
        except (RespError, RoostError, NotANumber, CorruptData) as error:
            return self.refusal(error)

    def _authorised(self, caller: Caller, command: Command, args: list[bytes]) -> list[bytes]:
        """The arguments with stored keys in place of the caller's; raises NoPerm."""
        if command.right == ADMIN:
            caller.require_admin()
        positions = command.positions(len(args))
        if not positions:
            return args
        args = list(args)
        for position in positions:
            args[position] = caller.key(args[position])
            if not caller.may(command.right, args[position]):
                raise RespError("NOPERM No permissions to access a key")
        return args

    def _check_subscribed(self, name: bytes) -> None:
        if name.upper() not in _SUBSCRIBED:
            shown = name.decode("utf-8", "backslashreplace").lower()
            raise RespError(
                f"ERR Can't execute '{shown}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / "
                "QUIT / RESET are allowed in this context"
            )

    def _enqueue(self, command: Command, args: list[bytes]) -> bytes:
        assert self.queue is not None
        if command.solo:
            raise RespError(f"ERR {command.name} is not allowed in MULTI")
        limits = self.node.limits
        self.queue_bytes += sum(map(len, args))
        if len(self.queue) >= limits.batch_ops_max or self.queue_bytes > limits.body_bytes_max:
            raise TooLarge(
                f"a MULTI holds at most {limits.batch_ops_max} commands and "
                f"{limits.body_bytes_max} bytes; send several"
            )
        self.queue.append((command, args))
        return encode.QUEUED

    def forget_transaction(self) -> None:
        """Leave MULTI and drop what WATCH noted."""
        self.queue = None
        self.queue_failed = False
        self.queue_bytes = 0
        self.forget_watched()

    def forget_watched(self) -> None:
        """UNWATCH."""
        self.revisions = {}
        watched, self.watched = self.watched, {}
        for mark in watched.values():
            mark.forget()

    # --- replies ------------------------------------------------------------------------------

    def refusal(self, error: Exception) -> bytes:
        """The error reply of a refusal."""
        metrics = self.server.metrics
        if isinstance(error, CorruptData):
            error = refusals.damaged(error)
        if isinstance(error, RoostError):
            metrics.count_error(error.code)
            return encode.refusal(error)
        text = f"ERR {error}" if isinstance(error, NotANumber) else str(error)
        metrics.count_error(text.partition(" ")[0])
        return encode.error(text)

    def send(self, reply: bytes) -> None:
        """Hold a reply until it is durable."""
        if self._quiet:
            if self._skip_replies:
                self._skip_replies -= 1
                self._quiet = bool(self._skip_replies)
            return
        if len(reply) > self._reply_bytes_max:
            reply = encode.error(
                f"TOOLARGE a reply of {len(reply)} bytes is over {self._reply_bytes_max}: read in "
                "parts (SCAN, HSCAN, SSCAN, HMGET, LRANGE)"
            )
        self._out.append(reply)
        self._out_bytes += len(reply)

    def push(self, message: bytes) -> None:
        """Send an out-of-band message (it is durable already), in order with the replies."""
        transport = self._transport
        if transport is None or self.closing:
            return
        if transport.get_write_buffer_size() + self._out_bytes > (
            self.node.limits.output_bytes_max
        ):
            log.warning("client %s does not read its notifications; it is cut off", self.peer)
            self.abort()
            return
        if self._out:
            self._out.append(message)
            self._out_bytes += len(message)
        else:
            transport.write(message)

    def _release(self) -> None:
        if self._held:
            return
        if self._due:
            if self._task is None:
                task = self._await_standby()
                self._task = asyncio.get_running_loop().create_task(task)
            return
        groups = self.node.groups
        if self._out and groups.hold(self._flush):
            self._held = True
            groups.end_due(self._received_s)
        else:
            self._flush()

    def _flush(self) -> None:
        self._held = False
        transport = self._transport
        if transport is None:
            return
        if self._out:
            out, self._out = self._out, []
            self._out_bytes = 0
            self._latency.add(time.monotonic() - self._received_s, len(out))
            transport.write(b"".join(out) if len(out) > 1 else out[0])
        if (self.closing and self._task is None) or (self._ended and self._idle()):
            if self._refused and not self._ended:
                Draining(transport, self)
            else:
                transport.close()

    def _bound_backlog(self) -> None:
        """Stop reading a client whose commands cannot run now; go on when they can."""
        transport = self._transport
        if transport is None or self.closing:
            return
        busy = self._task is not None or self._paused_writing or self._scheduled
        full = busy and self._parser.buffered_bytes() > BACKLOG_BYTES
        if full and not self._paused_reading:
            self._paused_reading = True
            transport.pause_reading()
        elif self._paused_reading and not full:
            self._paused_reading = False
            transport.resume_reading()

    # --- for handlers -------------------------------------------------------------------------

    def policy(self, key: bytes) -> Policy:
        """The policy of a stored key; NoPolicy, BadRequest."""
        if not key or len(key) > KEY_BYTES_MAX or b"\0" in key:
            check_key(key)
        return self.node.policies.find(key)

    def own(self, key: bytes) -> bytes:
        """A stored key as this client writes it."""
        assert self.caller is not None
        return self.caller.own(key)

    def log_in(self, caller: Caller | None, secret: tuple[str | None, bytes] | None = None) -> None:
        """Act as `caller` from now on; `secret` is what proved it."""
        self.caller = caller
        self._secret = secret
        self._parser.restricted = caller is None

    def still_known(self) -> bool:
        """Whether this client could log in now, after credentials were read again."""
        if self.caller is None:
            return True
        if self._secret is None:
            return self.server.anonymous is not None
        try:
            principal = self.operations.log_in(*self._secret).principal
        except NoAuth:
            return False
        return bool(principal == self.caller.principal)

    def hush(self, quiet: bool, skip: int = 0) -> None:
        """CLIENT REPLY: leave out all replies, or the next `skip`."""
        if skip and self._quiet and not self._skip_replies:
            return  # OFF stays OFF
        self._quiet = quiet or skip > 0
        self._skip_replies = skip

    def reset(self) -> None:
        """RESET: as if newly connected."""
        self.forget_transaction()
        self.server.pubsub.leave(self)
        self.resp3 = False
        self.name = b""
        self.db = 0
        self.hush(False)
        self.log_in(self.server.anonymous)

    def after(self, step: Callable[[], None]) -> None:
        """Run `step` when all written so far is durable."""
        self.node.on_durable(step)
