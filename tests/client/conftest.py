"""A peer that plays recorded replies over a real unix socket."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import hiredis
import pytest

HELLO = (
    b"%7\r\n$4\r\nnode\r\n$4\r\neu-1\r\n$6\r\nregion\r\n$2\r\neu\r\n$4\r\ndata\r\n$0\r\n\r\n"
    b"$8\r\nstore_id\r\n$32\r\n000102030405060708090a0b0c0d0e0f\r\n$6\r\npid_ns\r\n:1\r\n"
    b"$3\r\nseq\r\n:7\r\n$11\r\napplied_seq\r\n:7\r\n"
)
GREETING = b"%1\r\n$6\r\nserver\r\n$5\r\nroost\r\n"


class Recording:
    """Answers HELLO and ROOST.HELLO, then each command by the next recorded step.

    A step is bytes to send; None closes the connection instead; a callable may wait.
    """

    def __init__(self, path: Path) -> None:
        self.url = f"unix://{path}"
        self.received: list[list[bytes]] = []
        self.connections = 0
        self.steps: list[bytes | Callable[[], bytes | None] | None] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def play(self, *steps: bytes | Callable[[], bytes | None] | None) -> None:
        self.steps.extend(steps)

    def commands(self) -> list[list[bytes]]:
        """What came, without greetings."""
        return [command for command in self.received if command[0] != b"HELLO"]

    def drop(self) -> None:
        """Close all connections, as a daemon that dies."""
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop()
        self._thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        reader = hiredis.Reader()
        try:
            with connection:
                while data := connection.recv(65536):
                    reader.feed(data)
                    while (command := reader.gets()) is not False:
                        reply = self._reply(command)
                        if reply is None:
                            return
                        connection.sendall(reply)
        except OSError:
            return

    def _reply(self, command: list[bytes]) -> bytes | None:
        self.received.append(command)
        if command[0] == b"HELLO":
            return GREETING
        if command[0] == b"ROOST.HELLO":
            self.received.pop()
            return HELLO
        step = self.steps.pop(0)
        return step() if callable(step) else step


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[Recording]:
    played = Recording(tmp_path / "roost.sock")
    yield played
    played.stop()
