"""Readers of shared memory that stop, die or take every slot: the daemon lives on and says so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

import roost

from .faulty_daemon import REGISTER, SOAK, Client, FaultyDaemon, configure

KILLED = 1_000 if SOAK else 100
TOGETHER = 50
TOGETHER_SENT = 5
"""Writes that share a sync of the disk, however slow it is."""
PATIENT_S = 60
SIZE_BYTES = 32 << 20
SIZE = {"ROOST_STORE_SIZE_MAX": "32MiB", "ROOST_STORE_LOG_RETENTION": "4MiB"}

READER = """
import os, signal, sys, lmdb
env = lmdb.open(sys.argv[1], readonly=True, map_size=0, max_dbs=16, max_readers=1024)
rows = env.open_db(b"rows", create=False)
held = [env.begin(rows) for _ in range(int(sys.argv[2]))] if sys.argv[2] != "fork" else []
if sys.argv[2] == "fork":
    env.close()
    for _ in range(int(sys.argv[3])):
        if os.fork() == 0:
            try:
                env = lmdb.open(
                    sys.argv[1], readonly=True, map_size=0, max_dbs=16, max_readers=1024
                )
                txn = env.begin(env.open_db(b"rows", create=False))
                txn.stat(env.open_db(b"rows", create=False))
                os.write(1, b"+")
            except lmdb.ReadersFullError:
                os.write(1, b"-")
            signal.pause()
os.write(1, b"!")
sys.stdin.read()
"""


@pytest.fixture
def client(running: FaultyDaemon) -> Iterator[Client]:
    with closing(Client(running.home)) as connected:
        yield connected


@pytest.fixture
def running(tmp_path: Path) -> Iterator[FaultyDaemon]:
    with FaultyDaemon(configure(tmp_path / "eu"), **SIZE) as daemon:
        assert daemon.ready(), daemon.text()
        yield daemon


def reader(home: Path, *words: str) -> subprocess.Popen[bytes]:
    """A process that holds read transactions of the index until it is killed or told to end."""
    return reader_slots(home, *words)[0]


def reader_slots(home: Path, *words: str) -> tuple[subprocess.Popen[bytes], int]:
    """The same, and how many of its children have a slot."""
    process = subprocess.Popen(
        [sys.executable, "-c", READER, str(home / "data" / "index"), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    told = b""
    forked = int(words[1]) if words[0] == "fork" else 0
    while b"!" not in told or len(told) <= forked:
        bytes_ = process.stdout.read(1)
        assert bytes_, "the reader ended"
        told += bytes_
    return process, told.count(b"+")


def kill(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.stdout.close()


def churn(
    client: Client, *, seconds: float, writes: int = 1, keys: int = 150, size: int = 10_000
) -> str:
    """Overwrite the same keys until one write is refused for good; "" if none is, for so long
    and so many writes."""
    deadline = time.monotonic() + seconds
    number = 0
    while time.monotonic() < deadline or number < writes:
        sets = [
            ("SET", f"{REGISTER}:{n % keys}", f"{n}:" + "x" * size)
            for n in range(number + 1, number + 1 + TOGETHER_SENT)
        ]
        busy = False
        for answer in client.ask_all(sets):
            if str(answer).startswith("FULL"):
                return str(answer)
            if str(answer).startswith("BUSY"):
                busy = True
            else:
                assert answer == b"OK", answer
                number += 1
        if busy:
            time.sleep(0.01)
    return ""


def file_bytes(home: Path) -> int:
    return (home / "data" / "index" / "data.mdb").stat().st_blocks * 512


def test_a_stopped_reader_is_named_and_its_death_makes_room(
    running: FaultyDaemon, client: Client
) -> None:
    assert not churn(client, seconds=1), "full without a reader"
    process = reader(running.home, "1")
    process.send_signal(signal.SIGSTOP)
    try:
        refused = churn(client, seconds=2 * PATIENT_S)
        assert str(process.pid) in refused, refused or "never refused"
        assert "transactions behind" in refused
        assert "reads go on" in refused
        assert client.ask("GET", f"{REGISTER}:1"), "reads do not go on"
    finally:
        kill(process)
    # How full it is was looked at while the reader lived: it is looked at again before the
    # minute is over after which the dead ones of all readers are looked for.
    deadline = time.monotonic() + 30
    while refused := churn(client, seconds=1, writes=2 * SIZE_BYTES // 10_000):
        assert time.monotonic() < deadline, "what the reader held is not used again: " + refused
        time.sleep(0.05)


def test_readers_killed_in_their_transactions(running: FaultyDaemon, client: Client) -> None:
    """The file stays as large as it was, and the daemon reads."""
    assert not churn(client, seconds=2)
    before = file_bytes(running.home)
    for _ in range(KILLED // TOGETHER):
        process = reader(running.home, "fork", str(TOGETHER))
        assert process.stdout is not None
        kill(process)
        refused = churn(client, seconds=0.3)
        assert not refused, refused
    refused = churn(client, seconds=1)
    assert not refused, refused
    assert file_bytes(running.home) < before + (8 << 20), "dead readers hold pages"
    assert client.ask("GET", f"{REGISTER}:1")
    with roost.connect(f"unix://{running.home}/roost.sock") as own:
        assert own.get(f"{REGISTER}:1").source == "mmap"


@pytest.mark.parametrize("holders", ["one process", "1,100 processes"])
def test_reader_slots_used_up(running: FaultyDaemon, client: Client, holders: str) -> None:
    """The daemon has its slots from the start; other readers are answered by the socket."""
    assert client.ask("SET", f"{REGISTER}:1", "one") == b"OK"
    assert not churn(client, seconds=1)
    before = file_bytes(running.home)
    with ExitStack() as stack:
        stack.callback(kill, reader(running.home, "fork", "4"))
        held = hold_all(running.home) if holders == "one process" else hold_each(running.home)
        stack.callback(kill, held)
        assert client.ask("SET", f"{REGISTER}:1", "two") == b"OK"
        assert client.ask("GET", f"{REGISTER}:1") == b"two"
        assert client.ask("GET", f"{REGISTER}:never-asked-for") is None
        with roost.connect(f"unix://{running.home}/roost.sock") as own:
            shown = own.get(f"{REGISTER}:1")
            assert (shown.value, shown.source) == ("two", "node")
        assert running.process.poll() is None
    refused = churn(client, seconds=1)
    assert not refused, refused
    assert file_bytes(running.home) < before + (8 << 20), "dead readers hold pages"
    assert client.ask("GET", f"{REGISTER}:1")


def hold_each(home: Path) -> subprocess.Popen[bytes]:
    """Take every slot that is left, by a process each."""
    process, slots = reader_slots(home, "fork", "1100")
    assert 1_000 <= slots < 1_024, f"{slots} readers have a slot"
    return process


HOLD = """
import os, sys, threading, lmdb
env = lmdb.open(sys.argv[1], readonly=True, map_size=0, max_dbs=16, max_readers=1024)
held = []
try:
    while True:
        held.append(env.begin())
except lmdb.ReadersFullError:
    os.write(1, b"!")
sys.stdin.read()
"""


def hold_all(home: Path) -> subprocess.Popen[bytes]:
    """Take every slot that is left."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(home / "data" / "index")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.read(1) == b"!"
    return process
