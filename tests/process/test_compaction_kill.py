"""A real daemon killed while it compacts documents, and while it collects what is dead.

As in test_boundary_kill: at the Nth call of a kind that a thread makes, until the activity ends
unharmed, and started again unaided. ROOST_TEST_SOAK tries every N; else a few.
"""

from __future__ import annotations

import json
import signal
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import lmdb
import pycrdt
import pytest

import roost
from roost_crdt.rows import doc
from roostd.store import check

from .crowd import burst
from .faulty_daemon import REGISTER, SOAK, Client, configure, why_not_struck
from .node_kit import WAIT_S, Node, until

KILLS = 10_000 if SOAK else 2
CALLS = ("pwrite64", "fdatasync")
"""Of the log and of the index."""
TRIES = 10
"""For the first kill: what is due at a time of its own may come before the tracer."""
GRACE_MS = 700
QUICK = {"gc_pause_ms": 50, "gc_grace_ms": GRACE_MS, "report_ms": 100}
PAD = """
[pad]
readers = "cross-session"
stale_read_cost = "annoying"
type = "doc"
"""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    if reason := why_not_struck():
        pytest.skip(reason)
    made = Node(configure(tmp_path / "eu"))
    with (made.home / "policies.toml").open("a") as policies:
        policies.write(PAD)
    yield made
    made.stop()


def sweep(node: Node, call: str, ready: Callable[[], None], activity: Callable[[], None]) -> int:
    """Kill at the 1st, 2nd, ... call of the activity; how often."""
    kills, moment, tries = 0, 1, 0
    while kills < KILLS and tries < TRIES:
        daemon = node.running()
        ready()
        with daemon.struck(call, moment, halted=True):
            activity()
        struck = daemon.was_struck()
        node.running()
        tries += 1
        if struck:
            kills += 1
            moment = moment + 1 if SOAK else 3 * moment + 2
            tries = 0
        elif kills:
            break
    return kills


def stopped_sound(node: Node) -> None:
    daemon = node.running()
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.process.wait(WAIT_S) == 0
    assert check(node.home / "data").problems == []
    assert len(node.actors) == 1, "a kill made a new actor"


def stored(node: Node, database: bytes, prefix: bytes) -> dict[bytes, int]:
    """Names in the index, with the bytes of their values, as another process sees them."""
    with (
        lmdb.open(str(node.home / "data" / "index"), readonly=True, max_dbs=8) as env,
        env.begin(db=env.open_db(database, create=False)) as txn,
    ):
        return {bytes(k): len(v) for k, v in txn.cursor() if k.startswith(prefix)}


class Writer:
    """One Yjs client and one session, and what of them was acknowledged."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.yjs: pycrdt.Doc[pycrdt.Text] = pycrdt.Doc(client_id=77)
        self.text = self.yjs.get("t", type=pycrdt.Text)
        self.acknowledged = ""
        self.sid = ""
        self.said: list[str] = []
        self.turn = 0

    def edit(self, count: int) -> None:
        """Letters, one by one; who comes back after an unknown answer sends its whole state."""
        with suppress(OSError), closing(Client(self.node.home)) as client:
            before = self.yjs.get_state() if self.acknowledged == str(self.text) else None
            for number in range(count):
                self.text += "abcdefgh"[number % 8]
                update = self.yjs.get_update(before) if before else self.yjs.get_update()
                body = json.dumps({"update": b64encode(update).decode()})
                answer = client.ask("ROOST.UPDATE", "pad:one", body)
                assert isinstance(answer, list), answer
                self.acknowledged, before = str(self.text), self.yjs.get_state()

    def speak(self, count: int) -> None:
        with (
            suppress(OSError, roost.RoostError),
            roost.connect(self.node.url, mmap=False, deadline_ms=30_000) as client,
        ):
            session = client.open(sid=self.sid or None)
            self.sid = session.sid
            for _ in range(count):
                self.turn += 1
                text = f"turn {self.turn}"
                session.commit([{"role": "user", "content": text}], on_conflict="append")
                self.said.append(text)

    def check(self) -> None:
        with closing(Client(self.node.home)) as client:
            raw = client.ask("GET", "pad:one")
        if self.acknowledged:
            shown: pycrdt.Doc[Any] = pycrdt.Doc()
            shown.apply_update(raw)
            text = str(shown.get("t", type=pycrdt.Text))
            assert str(self.text).startswith(text), "what was never written is shown"
            assert text.startswith(self.acknowledged), "an acknowledged edit is lost"
        if self.said:
            with roost.connect(self.node.url, mmap=False, deadline_ms=30_000) as client:
                turns = client.open(sid=self.sid).turns()
            texts = [message["content"] for message in turns.messages]
            assert [text for text in texts if text in self.said] == self.said


def test_compacting_documents(node: Node) -> None:
    """Updates are merged into one each 32 of a key's, each 64 of a session's."""
    writer = Writer(node)
    tally = {}
    for call in CALLS:
        tally[call] = 0
        for act, before, work in ((writer.edit, 28, 12), (writer.speak, 60, 12)):

            def ready(act: Callable[[int], None] = act, count: int = before) -> None:
                writer.check()
                act(count)

            tally[call] += sweep(node, call, ready, lambda act=act, work=work: act(work))  # type: ignore[misc]
            writer.check()
    print(tally)
    assert all(tally.values()), tally
    until(node.applied, "applied")
    rows = stored(node, b"rows", b"pad:one\0")
    assert len(rows) <= 3 + sum(rows.values()) // doc.ROW_BYTES
    assert sum(rows.values()) < 12 * len(writer.text)
    updates = stored(node, b"sessions", f"s\0{writer.sid}\0u".encode())
    assert len(updates) < 64 < writer.turn
    stopped_sound(node)


def test_collecting_what_is_dead(node: Node) -> None:
    """Deleted rows are dropped once they are old enough; nothing else is, nothing comes back."""
    node.environ |= {"ROOST_TEST_LIMITS": json.dumps(QUICK)}
    dead: list[str] = []

    def delete() -> None:
        """What is due to be collected some hundred milliseconds later."""
        burst(node.home, node.ledger, rounds=1)
        first = len(dead)
        dead.extend(f"{REGISTER}:dead-{first + number}" for number in range(20))
        with closing(Client(node.home)) as client:
            answers = client.ask_all([("SET", key, "v") for key in dead[first:]])
            assert answers == [b"OK"] * 20, answers
            assert client.ask("SADD", "tags:dead", "a", "b", "c") == 3
            assert client.ask("DEL", "tags:dead", *dead[first:]) == 21

    def collected() -> bool:
        if not node.alive:
            return True
        rows = stored(node, b"rows", f"{REGISTER}:dead-".encode())
        return not rows and node.applied()

    tally = {
        call: sweep(node, call, delete, lambda: until(collected, "collected")) for call in CALLS
    }
    print(tally)
    assert all(tally.values()), tally
    until(collected, "collected")
    with closing(Client(node.home)) as client:
        assert set(client.ask("MGET", *dead)) == {None}
        assert client.ask("SMEMBERS", "tags:dead") in ([], set())
        node.ledger.check(client)
    stopped_sound(node)
