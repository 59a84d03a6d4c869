"""Is the daemon there, and how far is its store? Asked beside the reads of shared memory.

A read from the index asks nobody, so that it cannot know whether the daemon still runs, nor
how far behind its neighbours it is. Once in `PERIOD_S` of reading one small request goes to the
socket; nobody waits for its answer but who reads so rarely that the last one is old, and then
only as long as a healthy daemon needs.
"""

from __future__ import annotations

import contextlib
import select
import socket
from typing import Any

import hiredis

from roost.address import Address
from roost.types import Hello
from roost.wire import encode, greeting, hello_of, new_reader
from roost_crdt.errors import RoostError

__all__ = ["PERIOD_S", "Probe"]

PERIOD_S = 0.1
RARE_S = 3 * PERIOD_S
"""Who reads so rarely waits for the answer; who reads on takes it in the next period."""
WAIT_S = 0.01
SILENT_S = 1.0
RECV_BYTES = 64 * 1024


class Probe:
    """One connection that is never waited on for longer than `WAIT_S`.

    `hello` is the newest answer and `asked_at` the moment before it was asked (the caller's
    clock, seconds); `node_up` is False once the daemon refuses, or is silent for `SILENT_S`.
    """

    def __init__(self, address: Address) -> None:
        self.hello: Hello | None = None
        self.asked_at = 0.0
        self.node_up = True
        self._address = address
        self._socket: socket.socket | None = None
        self._reader = new_reader()
        self._awaited = 0
        """Replies that are still due."""
        self._sent_at = 0.0

    def step(self, now: float) -> None:
        """Take a late answer, or ask again; `now` is the caller's clock in seconds."""
        kept = self._socket is not None
        try:
            self._step(now)
        except (OSError, RoostError, hiredis.HiredisError):
            self.close()
            if not kept:
                self.node_up = False
                return
            self.step(now)  # a daemon that was started again has closed what was open
            return
        if self._awaited and now - self._sent_at > SILENT_S:
            self.node_up = False

    def _step(self, now: float) -> None:
        if self._awaited:
            self._take(0.0)
        if not self._awaited:
            rare = self.node_up and now - self.asked_at > RARE_S
            self._ask(now)
            self._take(WAIT_S if rare else 0.0)

    def close(self) -> None:
        """Drop the connection; the next step opens another."""
        connection, self._socket = self._socket, None
        self._awaited = 0
        if connection is not None:
            connection.close()

    def _ask(self, now: float) -> None:
        self._sent_at = now
        if self._socket is None:
            self._reader = new_reader()
            commands = greeting(self._address)
            self._socket = _connect(self._address)
        else:
            commands = (("ROOST.HELLO",),)
        self._socket.send(encode(commands))
        self._awaited = len(commands)

    def _take(self, wait_s: float) -> None:
        connection = self._socket
        assert connection is not None, "an answer is due on a connection"
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        while self._awaited and poll.poll(wait_s * 1000):
            data = connection.recv(RECV_BYTES)
            if not data:
                raise ConnectionResetError("the daemon closed the connection")
            self._reader.feed(data)
            reply: Any = self._reader.gets()
            while reply is not False:
                self._answered(reply)
                reply = self._reader.gets()

    def _answered(self, reply: Any) -> None:
        if isinstance(reply, RoostError):
            raise reply
        self._awaited -= 1
        if not self._awaited:
            self.hello = hello_of(reply)
            self.asked_at = self._sent_at
            self.node_up = True


def _connect(address: Address) -> socket.socket:
    """A non-blocking socket; on this machine a connection is there at once or refused."""
    if address.path:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        target: Any = address.path
    else:
        family, kind, protocol, _, target = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM
        )[0]
        connection = socket.socket(family, kind, protocol)
    with contextlib.ExitStack() as undo:
        undo.callback(connection.close)
        connection.settimeout(WAIT_S)
        connection.connect(target)
        undo.pop_all()
    return connection
