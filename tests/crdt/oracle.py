"""What a key must show, worked out from its whole history.

Deliberately naive: nothing is ever merged, counted up or forgotten. Each replica keeps, for
every *slot* of the key (the value; an actor's count; an element; a field; the head), the set
of events it has heard of, and every question is answered by looking through those sets:

* an increment counts unless a reset that is known saw it;
* an added element is there if some add of it was seen by no known remove or clear;
* of writes the one with the latest stamp is valid;
* what expired is not there, and the next write takes away what it sees, and nothing else.

A record carries the slots that its operations touched, with all that the writer knew about
them; so somebody may hear of an event through another's record before its own record arrives.
It shares no code with roost_crdt.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Slot = tuple[Any, ...]
Stamp = tuple[int, int]
HEAD: Slot = ("head",)
VALUE: Slot = ("value",)


@dataclass(frozen=True)
class Event:
    """Something that happened: `saw` are the events that it takes away."""

    stamp: Stamp
    what: str
    args: tuple[Any, ...] = ()
    saw: frozenset[Event] = frozenset()


@dataclass(frozen=True)
class Message:
    """A record: its origin, its number there, and the touched slots."""

    origin: int
    number: int
    stamps: frozenset[Stamp]
    slots: dict[Slot, frozenset[Event]]


@dataclass
class Oracle:
    """One replica of one key. Subclasses know a type's operations."""

    actor: int
    known: dict[Slot, frozenset[Event]] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)
    touched: set[Slot] = field(default_factory=set)
    stamps: set[Stamp] = field(default_factory=set)
    time: int = 0
    made: int = 0

    # --- records ---

    def write(self, operations: list[tuple[Any, ...]], now_ms: int) -> None:
        self.touched, self.stamps = set(), set()
        for name, *args in operations:
            self.time = max(self.time + 1, now_ms << 16)
            stamp = (self.time, self.actor)
            self.stamps.add(stamp)
            if name == "expire":
                if self.exists(now_ms):
                    self.expire(stamp, now_ms + args[0] if args[0] else 0)
            else:
                getattr(self, name)(stamp, now_ms, *args)
        if self.touched:
            self.made += 1
            slots = {slot: self.of(slot) for slot in self.touched}
            message = Message(self.actor, self.made, frozenset(self.stamps), slots)
            self.messages.append(message)

    def pull(self, source: Oracle, origin: int) -> None:
        for message in list(source.messages):
            mine = [m for m in self.messages if m.origin == origin]
            if message.origin == origin and message.number == len(mine) + 1:
                self.messages.append(message)
                self.time = max(self.time, *(stamp[0] for stamp in message.stamps))
                for slot, events in message.slots.items():
                    self.known[slot] = self.of(slot) | events

    # --- what is known ---

    def of(self, slot: Slot) -> frozenset[Event]:
        return self.known.get(slot, frozenset())

    def slots(self, kind: str) -> list[Slot]:
        return [slot for slot in self.known if slot[0] == kind]

    def tell(self, slot: Slot, event: Event) -> None:
        self.known[slot] = self.of(slot) | {event}
        self.touched.add(slot)

    def expiry(self) -> int:
        """When the whole key ends, by the latest EXPIRE; 0 = never."""
        told = [event for event in self.of(HEAD) if event.what == "expire"]
        return max(told, key=lambda event: event.stamp).args[0] if told else 0

    def hidden(self, now_ms: int) -> bool:
        return 0 < self.expiry() <= now_ms

    def expire(self, stamp: Stamp, ends_ms: int) -> None:
        self.tell(HEAD, Event(stamp, "expire", (ends_ms,)))

    def exists(self, now_ms: int) -> bool:
        raise NotImplementedError

    # --- counts, as counters, counter fields and windows have them ---

    def live(self, slots: list[Slot]) -> list[Event]:
        """Increments that no known reset saw."""
        found = []
        for slot in slots:
            gone = {seen for event in self.of(slot) for seen in event.saw}
            found += [e for e in self.of(slot) if e.what == "count" and e not in gone]
        return found

    def reset(self, slots: list[Slot], stamp: Stamp) -> None:
        for slot in slots:
            if self.live([slot]):
                seen = frozenset(e for e in self.of(slot) if e.what == "count")
                self.tell(slot, Event(stamp, "reset", (), seen))

    def total(self, slots: list[Slot]) -> int | None:
        live = self.live(slots)
        return sum(event.args[0] for event in live) if live else None


class RegisterOracle(Oracle):
    def _last(self) -> Event | None:
        writes = [e for e in self.of(VALUE) if e.what in ("put", "delete")]
        return max(writes, key=lambda e: e.stamp) if writes else None

    def _shown(self, now_ms: int) -> Event | None:
        last = self._last()
        if last is None or last.what == "delete":
            return None
        told = [
            (event.stamp, event.args[-1])
            for event in self.of(VALUE)
            if event.stamp >= last.stamp and (event.what == "expire" or event.args[-1:] > (0,))
        ]
        ends_ms = max(told)[1] if told else 0
        return None if 0 < ends_ms <= now_ms else last

    def put(self, stamp: Stamp, now_ms: int, leaf: Any, ttl_ms: int) -> None:
        self.tell(VALUE, Event(stamp, "put", (leaf, now_ms + ttl_ms if ttl_ms else 0)))

    def delete(self, stamp: Stamp, now_ms: int) -> None:
        last = self._last()
        if last is not None and last.what == "put":
            self.tell(VALUE, Event(stamp, "delete"))

    def expire(self, stamp: Stamp, ends_ms: int) -> None:
        self.tell(VALUE, Event(stamp, "expire", (ends_ms,)))

    def exists(self, now_ms: int) -> bool:
        return self._shown(now_ms) is not None

    def value(self, now_ms: int) -> Any:
        shown = self._shown(now_ms)
        return None if shown is None else shown.args[0]


class CounterOracle(Oracle):
    def _begin(self, stamp: Stamp, now_ms: int) -> None:
        self.reset(self.slots("count"), stamp)
        if self.expiry():
            Oracle.expire(self, stamp, 0)

    def add(self, stamp: Stamp, now_ms: int, by: int) -> None:
        exists = self.exists(now_ms)
        if not exists:
            self._begin(stamp, now_ms)
        if by or not exists:
            self.tell(("count", self.actor), Event(stamp, "count", (by,)))

    def assign(self, stamp: Stamp, now_ms: int, value: int) -> None:
        self._begin(stamp, now_ms)
        self.tell(("count", self.actor), Event(stamp, "count", (value,)))

    def delete(self, stamp: Stamp, now_ms: int) -> None:
        if self.exists(now_ms):
            self.reset(self.slots("count"), stamp)

    def exists(self, now_ms: int) -> bool:
        return self.value(now_ms) is not None

    def value(self, now_ms: int) -> Any:
        return None if self.hidden(now_ms) else self.total(self.slots("count"))


class SetOracle(Oracle):
    def _there(self, slot: Slot) -> bool:
        gone = {seen for where in (slot, HEAD) for e in self.of(where) for seen in e.saw}
        return any(e.what == "add" and e not in gone for e in self.of(slot))

    def _clear(self, stamp: Stamp) -> None:
        arrived = {s for message in self.messages for s in message.stamps} | self.stamps
        adds = [e for slot in self.slots("element") for e in self.of(slot) if e.what == "add"]
        # The head can only name what arrived in its own record; the rest is removed one by one.
        by_head = frozenset(e for e in adds if e.stamp in arrived)
        self.tell(HEAD, Event(stamp, "clear", (), by_head))
        for slot in self.slots("element"):
            if self._there(slot):
                self._remove(slot, stamp)

    def _remove(self, slot: Slot, stamp: Stamp) -> None:
        seen = frozenset(e for e in self.of(slot) if e.what == "add")
        self.tell(slot, Event(stamp, "remove", (), seen))

    def add(self, stamp: Stamp, now_ms: int, elements: list[Any]) -> None:
        if self.expiry() and not self.exists(now_ms):
            self._clear(stamp)
            self.expire(stamp, 0)
        for element in elements:
            self.tell(("element", element), Event(stamp, "add"))

    def remove(self, stamp: Stamp, now_ms: int, elements: list[Any]) -> None:
        for element in dict.fromkeys(elements):
            if not self.hidden(now_ms) and self._there(("element", element)):
                self._remove(("element", element), stamp)

    def delete(self, stamp: Stamp, now_ms: int) -> None:
        if any(self._there(slot) for slot in self.slots("element")):
            self._clear(stamp)

    def exists(self, now_ms: int) -> bool:
        return bool(self.value(now_ms))

    def value(self, now_ms: int) -> Any:
        if self.hidden(now_ms):
            return set()
        return {slot[1] for slot in self.slots("element") if self._there(slot)}


class MapOracle(Oracle):
    def _shown(self, name: bytes, now_ms: int) -> Event | None:
        """The latest write of a field, if it is a value that still shows."""
        writes = self.of(("field", name))
        cleared = max((e.args[0] for e in self.of(HEAD) if e.what == "clear"), default=(0, 0))
        last = max(writes, key=lambda e: e.stamp) if writes else None
        if last is None or last.what == "delete" or last.stamp <= cleared:
            return None
        return None if 0 < last.args[1] <= now_ms else last

    def _counts(self, name: bytes) -> list[Slot]:
        return [slot for slot in self.slots("count") if slot[1] == name]

    def _begin(self, stamp: Stamp, now_ms: int) -> None:
        if self.expiry() and not self.exists(now_ms):
            writes = [e.stamp for slot in self.slots("field") for e in self.of(slot)]
            self.tell(HEAD, Event(stamp, "clear", (max(writes, default=(0, 0)),)))
            self.expire(stamp, 0)
            self.reset(self.slots("count"), stamp)

    def put(self, stamp: Stamp, now_ms: int, fields: dict[bytes, Any], ttl_ms: int) -> None:
        self._begin(stamp, now_ms)
        for name, leaf in fields.items():
            ends_ms = now_ms + ttl_ms if ttl_ms else 0
            self.tell(("field", name), Event(stamp, "put", (leaf, ends_ms)))

    def remove(self, stamp: Stamp, now_ms: int, names: list[bytes]) -> None:
        for name in dict.fromkeys(names):
            if self._shown(name, 0):
                self.tell(("field", name), Event(stamp, "delete"))
            self.reset(self._counts(name), stamp)

    def delete(self, stamp: Stamp, now_ms: int) -> None:
        if self._fields(0):
            self.tell(HEAD, Event(stamp, "clear", (stamp,)))
            self.reset(self.slots("count"), stamp)

    def add(self, stamp: Stamp, now_ms: int, name: bytes, by: int) -> None:
        shown = not self.hidden(now_ms) and self.total(self._counts(name)) is not None
        if by or not shown:
            self._begin(stamp, now_ms)
            self.tell(("count", name, self.actor), Event(stamp, "count", (by,)))

    def assign(self, stamp: Stamp, now_ms: int, name: bytes, value: int) -> None:
        self._begin(stamp, now_ms)
        self.reset(self._counts(name), stamp)
        self.tell(("count", name, self.actor), Event(stamp, "count", (value,)))

    def exists(self, now_ms: int) -> bool:
        return bool(self.value(now_ms))

    def value(self, now_ms: int) -> Any:
        return {} if self.hidden(now_ms) else self._fields(now_ms)

    def _fields(self, now_ms: int) -> dict[bytes, Any]:
        found: dict[bytes, Any] = {}
        for slot in self.slots("field"):
            shown = self._shown(slot[1], now_ms)
            if shown is not None:
                found[slot[1]] = shown.args[0]
        for slot in self.slots("count"):
            count = self.total(self._counts(slot[1]))
            if count is not None:
                found[slot[1]] = count
        return found


class RateOracle(Oracle):
    window_ms = 100

    def _live_windows(self, now_ms: int) -> list[Slot]:
        current = now_ms // self.window_ms
        return [slot for slot in self.slots("window") if slot[1] >= current - 1]

    def add(self, stamp: Stamp, now_ms: int, by: int) -> None:
        if by:
            if self.expiry() and not self.exists(now_ms):
                self.reset(self._live_windows(now_ms), stamp)
                self.expire(stamp, 0)
            slot = ("window", now_ms // self.window_ms, self.actor)
            self.tell(slot, Event(stamp, "count", (by,)))

    def delete(self, stamp: Stamp, now_ms: int) -> None:
        if self.exists(now_ms):
            self.reset(self._live_windows(now_ms), stamp)

    def exists(self, now_ms: int) -> bool:
        return not self.hidden(now_ms) and bool(self.live(self._live_windows(now_ms)))

    def value(self, now_ms: int) -> Any:
        if self.hidden(now_ms):
            return 0
        current, elapsed_ms = divmod(now_ms, self.window_ms)
        # A window that begins half a second from now is no neighbour's: a clock was set back.
        newest = (now_ms + 500) // self.window_ms
        now = [slot for slot in self.slots("window") if current <= slot[1] <= newest]
        former = [slot for slot in self.slots("window") if slot[1] == current - 1]
        share = self.window_ms - elapsed_ms
        return (self.total(now) or 0) + (self.total(former) or 0) * share // self.window_ms


class DocOracle(Oracle):
    """Edits put one item behind another and may delete one; a clear takes what it saw."""

    made_here = 0

    def _edits(self) -> dict[int, Event]:
        return {e.args[0]: e for slot in self.slots("edits") for e in self.of(slot)}

    def _cleared(self) -> set[Event]:
        return {seen for e in self.of(HEAD) if e.what == "clear" for seen in e.saw}

    def _there(self) -> list[int]:
        """Items that are neither deleted nor waiting for one that they stand behind."""
        edits = self._edits()
        deleted = {event.args[2] for event in edits.values()}
        gone = self._cleared()
        found = []
        for item, event in edits.items():
            behind = event.args[1]
            while behind in edits:
                behind = edits[behind].args[1]
            if behind is None and item not in deleted and event not in gone:
                found.append(item)
        return sorted(found)

    def edit(self, stamp: Stamp, now_ms: int, behind: int, drop: int | None) -> None:
        there = self._there() if self.exists(now_ms) else []
        if not self.exists(now_ms) and self.expiry():
            if self.hidden(now_ms):
                self._clear(stamp)
            self.expire(stamp, 0)
        self.made_here += 1
        new = 1000 * self.actor + self.made_here
        origin = there[behind % len(there)] if there else None
        doomed = there[drop % len(there)] if there and drop is not None else None
        self.tell(("edits", self.actor), Event(stamp, "edit", (new, origin, doomed)))

    def _clear(self, stamp: Stamp) -> None:
        self.tell(HEAD, Event(stamp, "clear", (), frozenset(self._edits().values())))

    def delete(self, stamp: Stamp, now_ms: int) -> None:
        if self.exists(now_ms):
            self._clear(stamp)

    def exists(self, now_ms: int) -> bool:
        gone = self._cleared()
        alive = any(event not in gone for event in self._edits().values())
        return alive and not self.hidden(now_ms)

    def value(self, now_ms: int) -> Any:
        return set(self._there()) if self.exists(now_ms) else None


ORACLES: dict[str, type[Oracle]] = {
    "register": RegisterOracle,
    "counter": CounterOracle,
    "set": SetOracle,
    "map": MapOracle,
    "rate": RateOracle,
    "doc": DocOracle,
}
