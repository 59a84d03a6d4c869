"""A peer that plays recorded replies over a real unix socket; a real daemon."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hiredis
import pytest
from ports import free_ports

import roost

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


POLICIES = """
[counts]
readers = "cross-session"
stale_read_cost = "annoying"
type = "counter"

[costs]
readers = "cross-session"
stale_read_cost = "annoying"
type = "counter"
float = true

[tags]
readers = "cross-session"
stale_read_cost = "annoying"
type = "set"

[profiles]
readers = "cross-session"
stale_read_cost = "annoying"
type = "map"

[tallies]
readers = "cross-session"
stale_read_cost = "annoying"
type = "map"
fields = "counter"

[flags]
readers = "cross-session"
stale_read_cost = "incorrect"
type = "register"

[seats]
readers = "cross-session"
stale_read_cost = "incorrect"
type = "counter"
"""


NODE = ("--node", "eu-1", "--region", "eu")
PATIENT_S = 60.0
"""How long a test waits for what has to come: a disk may stand still for seconds."""


class Daemon:
    """One real roostd in a directory of its own, made by `roost init`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.group: int | None = None
        """The group that it runs as, under its unit's umask; None: this process's."""
        self.under: tuple[str, ...] = ()
        """A command that starts it."""
        self.url = f"unix://{folder / 'roost.sock'}"
        self.index = folder / "data" / "index"
        resp, http, gossip = free_ports(3)
        self.redis_url = f"redis://127.0.0.1:{resp}"
        self._process: subprocess.Popen[bytes] | None = None
        subprocess.run(
            [*f"{sys.executable} -m roostd.cli.main init".split(), folder, *NODE],
            check=True,
            capture_output=True,
            timeout=PATIENT_S,
        )
        config = folder / "roost.toml"
        text = config.read_text()
        for port, free in ((7667, resp), (7668, http), (7669, gossip)):
            text = text.replace(f'"127.0.0.1:{port}"', f'"127.0.0.1:{free}"')
        config.write_text(text)
        with (folder / "policies.toml").open("a") as policies:
            policies.write(POLICIES)

    def start(self) -> None:
        config = self.folder / "roost.toml"
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self.under, sys.executable, "-m", "roostd.cli.roostd", "--config", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "ROOST_CONSENSUS_DEADLINE_MS": f"{PATIENT_S * 1000:.0f}"},
                group=self.group,
                umask=-1 if self.group is None else 0o007,
            )
        until = time.monotonic() + PATIENT_S
        while True:
            try:
                roost.connect(self.url, mmap=False).close()
                return
            except roost.Unavailable:
                if self._process.poll() is not None or time.monotonic() > until:
                    raise AssertionError((self.folder / "log").read_text()[-3000:]) from None
                time.sleep(0.05)

    def connect(self, **options: Any) -> roost.Client:
        """A client that waits for a slow disk."""
        return roost.connect(self.url, **{"deadline_ms": int(PATIENT_S * 1000), **options})

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(PATIENT_S)
            except subprocess.TimeoutExpired:
                self.kill()


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that the tests of this package share."""
    started = Daemon(tmp_path_factory.mktemp("roost") / "n")
    started.start()
    yield started
    started.stop()


@pytest.fixture
def own_daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that a test may stop, kill and start again."""
    started = Daemon(tmp_path / "n")
    started.start()
    yield started
    started.stop()


@pytest.fixture
def client(daemon: Daemon) -> Iterator[roost.Client]:
    with daemon.connect() as connected:
        yield connected


@pytest.fixture
def plain(daemon: Daemon) -> Iterator[roost.Client]:
    """A client that reads by the socket."""
    with daemon.connect(mmap=False) as connected:
        yield connected


@pytest.fixture
def fresh() -> Callable[[str], str]:
    """Names keys of a policy that no other test knows."""
    return lambda policy: f"{policy}:{uuid.uuid4().hex}"


@pytest.fixture
def from_index() -> Callable[[roost.Client, str], roost.Reading]:
    """The first reading of a key that comes from shared memory."""

    def read(client: roost.Client, key: str) -> roost.Reading:
        until = time.monotonic() + PATIENT_S
        while (reading := client.get(key)).source != "mmap":
            assert time.monotonic() < until, "the index never caught up"
            time.sleep(0.01)
        return reading

    return read
