"""One connection to the daemon, for many threads.

A request waits for its turn, goes out in one write, and is answered or fails within its
deadline. A connection whose reply did not come in time is dropped, never used again: the late
reply would be taken for the next one's. After a loss the request is sent once more over a
fresh connection if `Request.repeat` says that this is safe; otherwise, if it changes state and
may have reached the daemon, the caller gets UnknownOutcome with the id to retry with.
"""

from __future__ import annotations

import math
import os
import select
import socket
import threading
import time
import weakref
from struct import Struct
from typing import Any, TypeVar

import hiredis

from roost.address import Address
from roost.requests import Request, lost, refused
from roost.types import Hello
from roost.wire import Reader, encode, greeting, new_reader, read_greeting
from roost_crdt.errors import RoostError, Unavailable

__all__ = ["Connection", "Transport", "open_socket"]

T = TypeVar("T")

RECV_BYTES = 64 * 1024
_TIMEVAL = Struct("@ll")
RETRY_AFTER_MS = 250


class Connection:
    """A greeted connection; one user at a time.

    The kernel keeps the time (SO_RCVTIMEO, SO_SNDTIMEO): a socket with a timeout of Python's
    would cost one more system call for each send and receive.
    """

    __slots__ = ("_poll", "_reader", "_socket", "_timeout_ms", "hello")

    def __init__(self, address: Address, deadline_s: float) -> None:
        self._socket = open_socket(address, deadline_s)
        self._socket.setblocking(True)
        self._reader: Reader = new_reader()
        self._timeout_ms = -1
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        try:
            commands = greeting(address)
            self.send(encode(commands), deadline_s)
            replies = [self.receive(deadline_s) for _ in range(len(commands))]
            self.hello: Hello = read_greeting(replies, address)
        except BaseException:
            self._socket.close()
            raise

    def send(self, payload: bytes, deadline_s: float) -> None:
        """Send all of `payload`; OSError (TimeoutError at the deadline)."""
        self._limit(_left_s(deadline_s))
        sent = 0
        try:
            sent = self._socket.send(payload)
            while sent < len(payload):
                self._limit(_left_s(deadline_s))
                sent += self._socket.send(memoryview(payload)[sent:])
        except BlockingIOError:
            raise TimeoutError("the daemon takes no more") from None

    def receive(self, deadline_s: float | None) -> Any:
        """The next reply, errors as instances; OSError (TimeoutError at the deadline)."""
        reply = self._reader.gets()
        while reply is False:
            self._limit(0.0 if deadline_s is None else _left_s(deadline_s))
            try:
                data = self._socket.recv(RECV_BYTES)
            except BlockingIOError:
                raise TimeoutError("the daemon does not answer") from None
            if not data:
                raise ConnectionResetError("the daemon closed the connection")
            self._reader.feed(data)
            reply = self._reader.gets()
        return reply

    def is_stale(self) -> bool:
        """True if the daemon has closed the connection while it was idle."""
        return bool(self._poll.poll(0))

    def shutdown(self) -> None:
        """Wake whoever waits in `receive`, from another thread."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # already gone: nobody is waiting

    def close(self) -> None:
        """Free the socket."""
        self._socket.close()

    def _limit(self, timeout_s: float) -> None:
        """Let the next system calls last `timeout_s` at most (0 = as long as they take).

        Rounded up, so that requests of one deadline ask for one limit, which is set once.
        """
        timeout_ms = math.ceil(timeout_s * 20) * 50 if timeout_s > 0.5 else round(timeout_s * 1000)
        timeout_ms = max(timeout_ms, 1) if timeout_s else 0
        if timeout_ms != self._timeout_ms:
            limit = _TIMEVAL.pack(timeout_ms // 1000, timeout_ms % 1000 * 1000)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            self._timeout_ms = timeout_ms


class Transport:
    """Runs requests over one connection; opens, drops and reopens it as needed."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.closed = False
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._hello: Hello | None = None
        _OPEN.add(self)

    @property
    def hello(self) -> Hello | None:
        """What the daemon said at the newest greeting; None before the first."""
        return self._hello

    def connect(self, deadline_s: float) -> Hello:
        """Greet the daemon unless that is done; Unavailable if nobody answers."""
        self._acquire(deadline_s)
        try:
            return self._connected(deadline_s).hello
        finally:
            self._lock.release()

    def run(self, request: Request[T], deadline_s: float) -> T:
        """The parsed answer to `request`, by `deadline_s` on the monotonic clock.

        Raises what the daemon answered; Unavailable if it was not asked, or only read from;
        UnknownOutcome if it may have applied the request.
        """
        payload = encode(request.commands)
        self._acquire(deadline_s)
        try:
            replies = self._exchange(request, payload, deadline_s)
        finally:
            self._lock.release()
        return request.answer(replies)

    def close(self) -> None:
        """Drop the connection; later requests raise Unavailable."""
        self.closed = True
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.shutdown()
            connection.close()
        _OPEN.discard(self)

    def _acquire(self, deadline_s: float) -> None:
        lock = self._lock
        if not lock.acquire(timeout=max(0.0, deadline_s - time.monotonic())):
            raise Unavailable(
                f"{self.address}: the connection was busy with other requests for the whole "
                "deadline; nothing was sent, try again or open another client",
                retry_after_ms=RETRY_AFTER_MS,
            )

    def _exchange(self, request: Request[Any], payload: bytes, deadline_s: float) -> list[Any]:
        for attempt in (1, 2):
            connection = self._connected(deadline_s, check=not request.repeat)
            try:
                connection.send(payload, deadline_s)
                return [connection.receive(deadline_s) for _ in request.commands]
            except (OSError, hiredis.HiredisError) as error:
                self._drop()
                if isinstance(error, TimeoutError) or attempt == 2 or not request.repeat:
                    raise lost(request, self.address, error) from error
            except BaseException:
                self._drop()  # interrupted between request and reply: its reply is still due
                raise
        raise AssertionError("unreachable: the second attempt returns or raises")

    def _connected(self, deadline_s: float, *, check: bool = True) -> Connection:
        """The connection; `check` first that an idle one is still there."""
        if self.closed:
            raise Unavailable("this client is closed; connect again", connected=False)
        connection = self._connection
        if connection is not None and check and connection.is_stale():
            self._drop()
            connection = None
        if connection is None:
            try:
                connection = Connection(self.address, deadline_s)
            except RoostError:
                raise
            except (OSError, hiredis.HiredisError) as error:
                raise refused(self.address, error) from error
            self._connection = connection
            self._hello = connection.hello
        return connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def after_fork(self) -> None:
        """In a forked child: leave the parent's connection alone and begin afresh."""
        self._lock = threading.Lock()
        self._drop()


def open_socket(address: Address, deadline_s: float) -> socket.socket:
    """A connected socket; OSError (TimeoutError at the deadline)."""
    if not address.path:
        connected = socket.create_connection(
            (address.host, address.port), timeout=_left_s(deadline_s)
        )
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connected
    connecting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connecting.settimeout(_left_s(deadline_s))
        connecting.connect(address.path)
    except BaseException:
        connecting.close()
        raise
    return connecting


def _left_s(deadline_s: float) -> float:
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("the deadline has passed")
    return left_s


_OPEN: weakref.WeakSet[Transport] = weakref.WeakSet()


def _after_fork() -> None:
    for transport in list(_OPEN):
        transport.after_fork()


os.register_at_fork(after_in_child=_after_fork)
