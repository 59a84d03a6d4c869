"""Many clients of one daemon, in one thread, and what they know: acknowledged, shown, sent.

Every value only rises: registers and fields are numbers of writes, counters are added to, sets
only grow. So what must be found after a crash is at least the largest value that was answered
ok or shown to anybody, and at most what was sent.
"""

from __future__ import annotations

import contextlib
import json
import random
import select
import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from threading import Event, Thread
from typing import Any

import hiredis

import roost

from .faulty_daemon import REGISTER, Client, FaultyDaemon

COUNTERS = 40
SETS = 20
MEMBERS = 50
FIELDS = 7
TURNS_MAX = 500
STORM_S = 60
Word = str | int
GONE = (roost.RoostError, OSError, HTTPException)


def number_of(value: Any) -> int:
    """The number that a value begins with; 0 for none."""
    text = value.decode() if isinstance(value, bytes) else str(value or 0)
    return int(text.partition(".")[0])


@dataclass
class Ledger:
    """What is known of each value, by (key, field); a counter's are sums over all clients."""

    acknowledged: dict[tuple[str, str], int] = field(default_factory=dict)
    shown: dict[tuple[str, str], int] = field(default_factory=dict)
    sent: dict[tuple[str, str], int] = field(default_factory=dict)
    members: dict[str, set[str]] = field(default_factory=dict)
    turns: dict[str, list[str]] = field(default_factory=dict)
    """sid -> texts of acknowledged or shown turns"""
    tokens: dict[int, str] = field(default_factory=dict)
    """number of a conversation -> its newest token"""
    by: dict[str, int] = field(default_factory=dict)
    """way in which something was shown -> how often"""
    answers: int = 0

    def show(self, name: tuple[str, str], value: Any, way: str) -> None:
        self.by[way] = self.by.get(way, 0) + 1
        if value is not None:
            self.shown[name] = max(self.shown.get(name, 0), number_of(value))

    def check(self, client: Client) -> None:
        """Compare with what a daemon shows now, which is known from here on."""
        names = sorted(self.sent)
        for first in range(0, len(names), 500):
            page = names[first : first + 500]
            asked = [("HGET", key, part) if part else ("GET", key) for key, part in page]
            for name, answer in zip(page, client.ask_all(asked), strict=True):
                found, least = number_of(answer), self.least(name)
                assert least <= found <= self.sent[name], (
                    f"{name}: found {found}; acknowledged {self.acknowledged.get(name, 0)}, "
                    f"shown {self.shown.get(name, 0)}, sent {self.sent[name]}"
                )
                self.acknowledged[name] = self.shown[name] = self.sent[name] = found
        for key, members in self.members.items():
            missing = members - {m.decode() for m in client.ask("SMEMBERS", key)}
            assert not missing, f"{key} lost {missing}"

    def least(self, name: tuple[str, str]) -> int:
        return max(self.acknowledged.get(name, 0), self.shown.get(name, 0))

    def check_turns(self, url: str) -> None:
        with roost.connect(url, mmap=False, deadline_ms=30_000) as client:
            for token in self.tokens.values():
                session = client.open(token)
                held = [message["content"] for message in session.turns().messages]
                missing = set(self.turns.get(session.sid, ())) - set(held)
                assert not missing, f"{session.sid} lost {missing}"
                assert len(held) == len(set(held)), f"{session.sid} has a turn twice"


class Member:
    """One connection of the crowd: sends a few commands, takes the answers, sends the next."""

    def __init__(self, number: int, home: Path, ledger: Ledger, pad: int = 0) -> None:
        """`pad`: bytes behind the number in each register."""
        self.number = number
        self._pad = "." + "x" * pad
        self._ledger = ledger
        self._chance = random.Random(number)
        self._reader = hiredis.Reader()
        self._waiting: list[Callable[[Any], None]] = []
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.socket.connect(str(home / "roost.sock"))
        except OSError:
            self.socket.close()
            raise
        self.socket.setblocking(False)

    def begin(self) -> None:
        commands: list[tuple[Word, ...]] = []
        for action in self._chance.sample(self._actions(), 3):
            command, done = action()
            commands.append(command)
            self._waiting.append(done)
        self.socket.sendall(b"".join(map(hiredis.pack_command, commands)))

    def ready(self) -> bool:
        """Take what came; False once the connection is gone."""
        try:
            data = self.socket.recv(1 << 16)
        except OSError:
            return False
        if not data:
            return False
        self._reader.feed(data)
        while (answer := self._reader.gets()) is not False:
            if isinstance(answer, hiredis.ReplyError):
                assert str(answer).startswith("BUSY"), answer
                self._waiting.pop(0)
                continue
            self._waiting.pop(0)(answer)
            self._ledger.answers += 1
        return True

    @property
    def idle(self) -> bool:
        return not self._waiting

    def _actions(self) -> list[Callable[[], tuple[tuple[Word, ...], Callable[[Any], None]]]]:
        return [self._set, self._incr, self._add, self._put, self._get, self._count, self._field]

    def _rise(self, name: tuple[str, str]) -> tuple[int, Callable[[Any], None]]:
        number = self._ledger.sent[name] = self._ledger.sent.get(name, 0) + 1

        def done(_: Any) -> None:
            self._ledger.acknowledged[name] = number

        return number, done

    def _set(self) -> tuple[tuple[Word, ...], Callable[[Any], None]]:
        key = f"{REGISTER}:{self.number}"
        number, done = self._rise((key, ""))
        return ("SET", key, f"{number}{self._pad}"), done

    def _put(self) -> tuple[tuple[Word, ...], Callable[[Any], None]]:
        key, part = f"profile:{self.number}", f"f{self._chance.randrange(FIELDS)}"
        number, done = self._rise((key, part))
        return ("HSET", key, part, number), done

    def _incr(self) -> tuple[tuple[Word, ...], Callable[[Any], None]]:
        name = (f"visits:{self._chance.randrange(COUNTERS)}", "")
        ledger = self._ledger
        ledger.sent[name] = ledger.sent.get(name, 0) + 1

        def done(answer: Any) -> None:
            ledger.acknowledged[name] = ledger.acknowledged.get(name, 0) + 1
            ledger.show(name, answer, "answer")

        return ("INCR", name[0]), done

    def _add(self) -> tuple[tuple[Word, ...], Callable[[Any], None]]:
        key, member = f"tags:{self.number % SETS}", f"m{self._chance.randrange(MEMBERS)}"
        return (
            ("SADD", key, member),
            lambda _: self._ledger.members.setdefault(key, set()).add(member),
        )

    def _get(self) -> tuple[tuple[Word, ...], Callable[[Any], None]]:
        name = (f"{REGISTER}:{self._chance.randrange(self.number + 1)}", "")
        return ("GET", name[0]), lambda answer: self._ledger.show(name, answer, "RESP")

    def _count(self) -> tuple[tuple[Word, ...], Callable[[Any], None]]:
        name = (f"visits:{self._chance.randrange(COUNTERS)}", "")
        return ("GET", name[0]), lambda answer: self._ledger.show(name, answer, "RESP")

    def _field(self) -> tuple[tuple[Word, ...], Callable[[Any], None]]:
        name = (f"profile:{self._chance.randrange(self.number + 1)}", "f0")
        return ("HGET", *name), lambda answer: self._ledger.show(name, answer, "RESP")


def storm(
    daemon: FaultyDaemon,
    clients: int,
    seconds: float,
    ledger: Ledger,
    enough: Callable[[], bool] = lambda: True,
) -> int:
    """Let so many clients write and read for so long, and until it is `enough`; kill the daemon,
    take the answers that were on their way; how many were connected when it was killed."""
    selector = selectors.DefaultSelector()
    with contextlib.ExitStack() as stack:
        stack.callback(selector.close)
        for number in range(clients):
            member = Member(number, daemon.home, ledger)
            stack.callback(member.socket.close)
            selector.register(member.socket, selectors.EVENT_READ, member)
            member.begin()
        began = time.monotonic()
        while (lasts := time.monotonic() - began) < seconds or not enough():
            assert lasts < STORM_S, f"not enough in {STORM_S} s"
            for key, _ in selector.select(max(seconds - lasts, 0.01)):
                assert key.data.ready(), f"the daemon cut a client: {daemon.text()}"
                if key.data.idle:
                    key.data.begin()
        connected = len(selector.get_map())
        daemon.kill()
        while len(selector.get_map()):
            for key, _ in selector.select(1):
                if not key.data.ready():
                    selector.unregister(key.fileobj)
    return connected


def burst(home: Path, ledger: Ledger, *, clients: int = 4, rounds: int = 5, pad: int = 0) -> None:
    """Some clients write one after another until each has been answered so often, or the daemon
    is gone."""
    with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
        members = []
        for number in range(clients):
            members.append(Member(number, home, ledger, pad))
            stack.callback(members[-1].socket.close)
        for _ in range(rounds):
            for member in members:
                member.begin()
            for member in members:
                while not member.idle:
                    select.select([member.socket], [], [])
                    if not member.ready():
                        return


class Bystanders:
    """Readers by every other way, and conversations, each in a thread until the daemon is gone."""

    def __init__(self, home: Path, http_port: int, clients: int, ledger: Ledger) -> None:
        self._url = f"unix://{home}/roost.sock"
        self._port = http_port
        self._clients = clients
        self._ledger = ledger
        self._stop = Event()
        ways = [self._by_mmap, self._by_watch, self._by_http, *[self._converse] * 3]
        self._threads = [
            Thread(target=self._run, args=(way, number)) for number, way in enumerate(ways)
        ]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, way: Callable[[int], None], number: int) -> None:
        with contextlib.suppress(*GONE):
            way(number)

    def _names(self) -> list[tuple[str, str]]:
        own = [f"{REGISTER}:{number}" for number in range(self._clients)]
        return [(key, "") for key in own + [f"visits:{n}" for n in range(COUNTERS)]]

    def _by_mmap(self, number: int) -> None:
        chance, names = random.Random(number), self._names()
        with roost.connect(self._url, deadline_ms=500) as client:
            while not self._stop.wait(0.002):
                name = chance.choice(names)
                reading = client.get(name[0])
                self._ledger.show(name, reading.value, reading.source)

    def _by_watch(self, number: int) -> None:
        with (
            roost.connect(self._url, mmap=False, deadline_ms=500) as client,
            client.watch("visits:", idle_ms=500) as watch,
        ):
            for change in watch:
                self._ledger.show((str(change.key), ""), change.value, "watch")
                if self._stop.wait(0.002):
                    return

    def _by_http(self, number: int) -> None:
        chance, names = random.Random(number), self._names()
        with contextlib.closing(HTTPConnection("127.0.0.1", self._port, timeout=1)) as http:
            while not self._stop.wait(0.002):
                name = chance.choice(names)
                http.request("GET", f"/v1/keys/{name[0]}")
                found = json.loads(http.getresponse().read())
                self._ledger.show(name, found["value"], "HTTP")

    def _converse(self, number: int) -> None:
        ledger = self._ledger
        with roost.connect(self._url, mmap=False, deadline_ms=1_000) as client:
            session = client.open(ledger.tokens.get(number))
            ledger.tokens[number] = session.token
            if session.turn > TURNS_MAX:
                del ledger.tokens[number], ledger.turns[session.sid]
                session.erase()
                return
            for turn in range(20):
                if self._stop.is_set():
                    return
                text = f"{number} {turn} {time.monotonic_ns()}"
                session.commit([{"role": "user", "content": text}], on_conflict="append")
                ledger.turns.setdefault(session.sid, []).append(text)
                ledger.tokens[number] = session.token
