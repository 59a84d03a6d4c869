"""A session is erased on a real daemon, which is killed on its way through log and index."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import roost
from roostd.store import check

from .crowd import burst
from .faulty_daemon import SOAK, configure, why_not_struck
from .node_kit import WAIT_S, Node, until

KILLS = 10_000 if SOAK else 2
TRIES = 10
"""For the first one of each kind."""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    if reason := why_not_struck():
        pytest.skip(reason)
    made = Node(configure(tmp_path / "eu"))
    yield made
    made.stop()


def speak(node: Node, secret: str) -> str:
    with roost.connect(node.url, mmap=False, deadline_ms=30_000) as client:
        session = client.open()
        for turn in range(3):
            text = f"{secret} {turn}" * 50
            session.commit([{"role": "user", "content": text}], on_conflict="append")
        return session.token


def erase(node: Node, token: str) -> bool:
    """Whether the session is known to be erased; a daemon that dies meanwhile does not say."""
    try:
        with roost.connect(node.url, mmap=False, deadline_ms=30_000) as client:
            client.open(token).erase()
    except roost.NoSession:
        return True
    except (OSError, roost.RoostError):
        return False
    return True


def erased(node: Node) -> bool:
    try:
        return bool(node.status()["store"]["erasing"] == 0)
    except OSError:
        return not node.alive


def copies(node: Node) -> list[Path]:
    """The names that copies of the log's files have, these and the next ones."""
    found = node.segments()
    return [*found, *(path.with_suffix(".blanking") for path in found[1:])]


def stored(node: Node) -> bytes:
    """All of the log and of the index."""
    base = node.home / "data"
    files = [*sorted((base / "log").iterdir()), base / "index" / "data.mdb"]
    with suppress(FileNotFoundError):
        return b"".join(path.read_bytes() for path in files)
    return stored(node)  # a file of the log went meanwhile


def test_an_erased_session_leaves_the_disk_whatever_kills(node: Node) -> None:
    tally: dict[str, int] = {}
    secrets: list[str] = []
    for what, call in (
        *(("log", call) for call in ("pwrite64", "fsync", "rename", "fdatasync")),
        *(("index", call) for call in ("pwrite64", "fdatasync")),
    ):
        name = f"{what} {call}"
        tally[name], moment, tries = 0, 1, 0
        while tally[name] < KILLS and tries < TRIES:
            daemon = node.running()
            burst(node.home, node.ledger, rounds=2)
            secrets.append(f"secret-{what}-{call}-{moment}-{tries}-secret")
            token = speak(node, secrets[-1])
            assert secrets[-1].encode() in stored(node)
            paths = copies(node) if what == "log" else [node.home / "data" / "index" / "data.mdb"]
            with daemon.struck(call, moment, paths):
                erase(node, token)
                until(lambda: erased(node), "erased")
            struck = daemon.was_struck()
            daemon = node.running()
            until(lambda token=token: erase(node, token), "erased at last")  # type: ignore[misc]
            until(lambda: erased(node), "off the disk")
            for secret in secrets:
                assert secret.encode() not in stored(node), f"{name} {moment}: {secret}"
            node.stop()  # the next erasure begins at once where the daemon is a new one
            tries += 1
            if struck:
                tally[name] += 1
                moment = moment + 1 if SOAK else 2 * moment + 1
                tries = 0
            elif tally[name]:
                break
    print(tally)
    assert all(tally.values()), tally
    assert len(node.actors) == 1, "a kill made a new actor"
    daemon = node.running()
    assert list((node.home / "data" / "log").glob("*.blanking")) == []
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.process.wait(WAIT_S) == 0
    assert check(node.home / "data").problems == []
    node.running()
    for path in (node.home / "data").rglob("*"):
        found = path.read_bytes() if path.is_file() else b""
        assert not [secret for secret in secrets if secret.encode() in found], path
