"""A real daemon killed at a system call: at the Nth one of a kind, of every thread that makes it.

For each activity (writing, going on in another segment, applying, trimming, a snapshot, a backup,
a drain) and each call that it makes: N = 1, 2, ... until the activity ends unharmed. The Nth call
does not happen, the daemon dies there, and is started again: unaided, with all that it had
acknowledged or shown. ROOST_TEST_SOAK tries every N; else a few.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

import roost
from roostd.store import verify_backup

from .crowd import burst
from .faulty_daemon import SOAK, Client, configure, why_not_struck
from .node_kit import WAIT_S, Node, alike, linked, until

KILLS = 10_000 if SOAK else 2
"""Of each call."""
TRIES = 10
"""For the first one: what a thread does beside an activity may come before or after it."""


def next_moment(moment: int) -> int:
    return moment + 1 if SOAK else 2 * moment + 1


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    if reason := why_not_struck():
        pytest.skip(reason)
    made = Node(configure(tmp_path / "eu"))
    yield made
    made.stop()


def sweep(
    node: Node,
    call: str,
    activity: Callable[[], None],
    paths: Callable[[], list[Path]] = list,
) -> int:
    """Kill at the 1st, 2nd, ... call, until the activity ends; how often."""
    kills, moment, tries = 0, 1, 0
    while kills < KILLS and tries < TRIES:
        daemon = node.running()
        with daemon.struck(call, moment, paths()):
            activity()
        tries += 1
        if daemon.was_struck():
            kills += 1
            moment = next_moment(moment)
            tries = 0
        elif kills:
            break
    node.running()
    return kills


def bites(tally: dict[str, int], *calls: str) -> None:
    print(tally)
    for call in calls:
        assert tally[call], f"no {call} was ever struck: {tally}"


def test_writing(node: Node) -> None:
    """The log's write and sync, and the answers."""
    tally = {
        call: sweep(node, call, lambda: burst(node.home, node.ledger))
        for call in ("pwrite64", "fdatasync", "write")
    }
    bites(tally, *tally)
    assert node.ledger.answers > 10
    assert len(node.actors) == 1, "a kill made a new actor"


def test_rolling_and_trimming_the_log(node: Node) -> None:
    """Segments are made ahead, begun, sealed and deleted."""
    node.environ |= {"ROOST_STORE_SIZE_MAX": "4MiB", "ROOST_STORE_LOG_RETENTION": "512KiB"}

    def roll() -> None:
        burst(node.home, node.ledger, clients=3, rounds=16, pad=30_000)
        until(node.applied, "applied")

    tally = {
        call: sweep(node, call, roll, node.segments)
        for call in ("openat", "write", "fsync", "pwrite64", "fdatasync", "unlink")
    }
    bites(tally, *tally)
    assert len(node.actors) == 1, "a kill made a new actor"
    with closing(Client(node.home)) as client:
        assert client.ask("PING") == b"PONG"
    log = node.home / "data" / "log"
    until(lambda: len(list(log.glob("*.seg"))) < 10, "no segments are left behind")


def test_applying_to_the_index(node: Node) -> None:
    def apply() -> None:
        for _ in range(4):
            burst(node.home, node.ledger, rounds=2)
            until(node.applied, "applied")

    node.running()
    tally = {
        call: sweep(node, call, apply, node.index) for call in ("pwrite64", "writev", "fdatasync")
    }
    bites(tally, "pwrite64", "fdatasync")
    assert len(node.actors) == 1, "a kill made a new actor"


ROOST = (sys.executable, "-m", "roostd.cli.main")


def test_backing_up(node: Node, tmp_path: Path) -> None:
    """The daemon dies while it reads for a backup; the command dies while it writes one."""
    file = tmp_path / "eu.backup"
    aside = tmp_path / "eu.backup.partial"
    command = [*ROOST, "backup", str(file), "--url", node.url]
    node.running()
    for _ in range(3):
        burst(node.home, node.ledger, rounds=10, pad=20_000)

    def back_up() -> None:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode in (0, 1, 3), done.stderr
        assert (done.returncode == 0) <= file.exists()
        if done.returncode:
            assert "answer" in done.stderr or "UNAVAILABLE" in done.stderr, done.stderr
        assert not aside.exists()
        if file.exists():
            assert verify_backup(file).end.rows > 0

    assert sweep(node, "write", back_up), "the daemon was never struck"
    node.running()
    for call in ("write", "fsync", "rename"):
        moment = kills = 0
        while kills < KILLS:
            moment = next_moment(moment)
            inject = ("-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={moment}")
            paths = ("-P", str(aside), "-P", str(tmp_path))
            strace = ("strace", "-f", "-qq", "-o", "/dev/null", *paths, *inject)
            done = subprocess.run([*strace, *command], capture_output=True, timeout=120)
            if file.exists():
                assert verify_backup(file).end.rows > 0
            if done.returncode == 0:
                break
            assert done.returncode in (-signal.SIGKILL, 137), done.stderr
            kills += 1
        assert kills, f"no {call} of the command was ever struck"
        back_up()
        assert file.exists()


# --- with a neighbour -----------------------------------------------------------------------------


def test_a_snapshot_to_a_neighbour_that_joins(pair: tuple[Node, Node]) -> None:
    """Killed while it makes its store and takes the snapshot: it goes on where it was."""
    holder, joiner = pair
    holder.running()
    for _ in range(4):
        burst(holder.home, holder.ledger, rounds=20, pad=5_000)
    calls = ("pwrite64", "fdatasync", "fsync") if SOAK else ("pwrite64", "fdatasync")
    tally = dict.fromkeys(calls, 0)
    for call in tally:
        moment = 1
        while tally[call] < KILLS:
            joiner.stop()
            shutil.rmtree(joiner.home / "data", ignore_errors=True)
            daemon = joiner.launch()
            with daemon.struck(call, moment, halted=True):
                until(lambda: not joiner.alive or joined(holder, joiner), "joined")
            struck = daemon.was_struck()
            joiner.running()
            until(lambda: alike(holder, joiner), f"alike after a kill at {call} {moment}")
            if not struck:
                break
            tally[call] += 1
            moment = moment + 1 if SOAK else 4 * moment + 3
    bites(tally, *tally)
    # The holder is killed while it sends.
    joiner.stop()
    shutil.rmtree(joiner.home / "data")

    def send() -> None:
        joiner.stop()
        shutil.rmtree(joiner.home / "data", ignore_errors=True)
        assert joiner.launch().ready()
        until(lambda: not holder.alive or joined(holder, joiner), "joined")

    assert sweep(holder, "write", send), "the holder was never struck"
    holder.running()
    until(lambda: alike(holder, joiner), "alike")
    with closing(Client(joiner.home)) as client:
        holder.ledger.check(client)
    assert len(holder.actors) == 1


def joined(holder: Node, joiner: Node) -> bool:
    with suppress(OSError):
        return alike(holder, joiner)
    return False


def test_replicating(pair: tuple[Node, Node]) -> None:
    """Nothing reaches a neighbour that a kill takes back: else the node would have to find that it
    was rolled back, and take a new actor."""
    writer, neighbour = pair
    neighbour.running()

    def write() -> None:
        with suppress(OSError):
            until(lambda: linked(writer), "linked")
        burst(writer.home, writer.ledger)

    tally = {call: sweep(writer, call, write) for call in ("pwrite64", "fdatasync", "write")}
    bites(tally, *tally)
    until(lambda: linked(writer) and alike(writer, neighbour), "alike")
    assert len(writer.actors) == 1, "a kill took back what the neighbour had heard"
    with closing(Client(neighbour.home)) as client:
        writer.ledger.check(client)


def test_draining(pair: tuple[Node, Node]) -> None:
    """Killed while it hands its sessions over and stops: no turn is lost, none comes twice."""
    leaver, heir = pair
    heir.running()
    tally = {}
    for call in ("pwrite64", "fdatasync", "write", "fsync", "unlink"):
        kills, moment = 0, 1
        while kills < KILLS:
            daemon = leaver.running()
            until(lambda: linked(leaver) and linked(heir), "linked")
            said = converse(leaver)
            with daemon.struck(call, moment):
                daemon.process.send_signal(signal.SIGTERM)
                until(daemon.gone, "stopped")
            status = daemon.process.wait(WAIT_S)
            leaver.running()
            until(lambda: linked(leaver) and linked(heir), "linked")
            for token, texts in said.items():
                for node in (heir, leaver):
                    assert served(node, token) == texts, f"{call} {moment}: at {node.home.name}"
            if status == 0:
                break
            assert status == -signal.SIGKILL, f"exit {status}\n{daemon.text()}"
            kills += 1
            moment = next_moment(moment)
        tally[call] = kills
    bites(tally, "pwrite64", "fdatasync", "write")


def converse(node: Node) -> dict[str, list[str]]:
    """Three sessions of three turns, all of them at the standby too: token -> texts."""
    said = {}
    with roost.connect(node.url, mmap=False, deadline_ms=30_000) as client:
        for _ in range(3):
            session = client.open()
            texts = [f"turn {turn} {time.monotonic_ns()}" for turn in range(3)]
            for text in texts:
                session.commit([{"role": "user", "content": text}], on_conflict="append")
            said[session.token] = texts
    return said


def served(node: Node, token: str) -> list[str]:
    """The session's messages, once the node serves it."""
    with roost.connect(node.url, mmap=False, deadline_ms=30_000) as client:

        def ask() -> list[str] | None:
            with suppress(roost.Unavailable):
                turns = client.open(token).turns()
                return [message["content"] for message in turns.messages]
            return None

        found = until(ask, "served")
        assert isinstance(found, list)
        return found
