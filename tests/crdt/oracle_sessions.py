"""What a session must show, worked out from everything that anybody ever did to it.

Deliberately naive: each home keeps the set of events that it has heard of, and every question is
answered by looking through it. It shares no code with roost_crdt.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Epoch = tuple[int, str]


@dataclass(frozen=True)
class Event:
    """`number` is when it happened, counted over all homes; `saw` the turn that it follows."""

    number: int
    epoch: Epoch
    what: str
    args: tuple[Any, ...]
    saw: Event | None = None

    @property
    def turn(self) -> int:
        return 1 if self.saw is None else self.saw.turn + 1

    @property
    def ref(self) -> tuple[int, str, int]:
        return (*self.epoch, self.turn)


@dataclass
class Oracle:
    """One home."""

    node: str
    epoch: Epoch = (0, "")
    known: Epoch = (0, "")
    heard: set[Event] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.epoch = self.known = (1, self.node)

    def do(self, number: int, what: str, args: tuple[Any, ...], homes: list[Oracle]) -> bool:
        if what == "pull":
            self.heard |= homes[args[0]].heard
            self.known = max(self.known, homes[args[0]].known)
            return True
        if what == "takeover":
            self.epoch = self.known = (self.known[0] + 1, self.node)
            return True
        if self.known > self.epoch:
            return False
        if what == "summary" and self.current() is None:
            return False
        if what == "call" and any(e.epoch == self.epoch and e.args == args for e in self.of(what)):
            return False
        saw = self.current() if what in ("turn", "summary") else None
        self.heard.add(Event(number, self.epoch, what, args, saw))
        return True

    def of(self, what: str) -> list[Event]:
        return [event for event in self.heard if event.what == what]

    # --- what is shown

    def current(self) -> Event | None:
        return max(self.of("turn"), key=lambda event: event.ref, default=None)

    def path(self) -> list[Event]:
        found: list[Event] = []
        at = self.current()
        while at is not None:
            found.insert(0, at)
            at = at.saw
        return found

    def beside(self) -> set[Event]:
        return set(self.of("turn")) - set(self.path())

    def messages(self) -> list[bytes]:
        shown: list[bytes] = []
        for turn in self.path():
            about = [event for event in self.of("summary") if event.saw == turn]
            if about:
                newest = max(about, key=lambda event: (event.epoch, event.number))
                shown = [b'"s%d"' % newest.number]
            else:
                shown.append(b'"%d"' % turn.number)
        return shown

    def lacks(self, ref: tuple[int, str, int]) -> bool:
        return all(event.ref != ref for event in self.of("turn"))

    def call(self, name: str) -> tuple[str, bytes | None] | None:
        steps = [event for event in self.of("call") if event.args[0] == name]
        if not steps:
            return None

        def first_by(event: Event) -> tuple[Epoch, int]:
            return event.epoch, event.number

        for event in sorted(steps, key=first_by):
            if event.args[2] == "finished":
                return "finished", b"%d" % event.number
        latest = max(event.args[1] for event in steps)
        steps = [event for event in steps if event.args[1] == latest]
        for event in sorted(steps, key=first_by):
            if event.args[2] == "failed":
                return "failed", b"%d" % event.number
        newest = max(steps, key=lambda event: event.epoch)
        return ("begun" if newest.epoch >= self.epoch else "in_doubt"), None

    def fields(self) -> dict[str, bytes]:
        shown: dict[str, bytes] = {}
        for name in {event.args[0] for event in self.of("field")}:
            writes = [event for event in self.of("field") if event.args[0] == name]
            value = max(writes, key=lambda event: (event.epoch, event.number)).args[1]
            if value is not None:
                shown[name] = b"%d" % value
        return shown
