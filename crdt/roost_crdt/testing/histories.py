"""Histories of several replicas of one key, and replicas that play them with real rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from roost_crdt import document, outside, values
from roost_crdt.hlc import Hlc
from roost_crdt.record import Record, RowOp, decode_record, decode_rows, encode_record
from roost_crdt.rows import (
    Delta,
    Rows,
    counter,
    doc,
    encode_row,
    join_delta,
    map,  # noqa: A004
    rate,
    register,
    set,  # noqa: A004
)
from roost_crdt.rows.layout import TYPE_BY_NAME, row_key
from roost_crdt.testing.edits import edit
from roost_crdt.testing.states import FIELDS, START_MS, WINDOW_MS, leaves, value_at
from roost_crdt.ystructs import read_structs


class Step(NamedTuple):
    """Something that a replica does after `wait_ms`.

    `action` "write": `args` are operations `(name, *arguments)`, all in one record; their times
    to live are milliseconds from then on. "pull": `args` are `(source, origin)`: take the
    records of that origin that the source has.
    """

    replica: int
    wait_ms: int
    action: str
    args: tuple[Any, ...]


class History(NamedTuple):
    """Steps of several replicas of one key. `skews_ms` is how far each clock is off."""

    type_name: str
    skews_ms: tuple[int, ...]
    steps: tuple[Step, ...]


def _operations(type_name: str) -> SearchStrategy[tuple[Any, ...]]:
    ttl_ms = st.sampled_from([0, 1, 20, 60])
    just, tuples = st.just, st.tuples
    common = [tuples(just("expire"), ttl_ms), tuples(just("delete"))]
    by = st.integers(-5, 5)
    fields = st.sampled_from(FIELDS)
    some_leaves = st.lists(st.sampled_from([b"a", b"", "1", b"x" * 256]), min_size=1, max_size=2)
    own: list[SearchStrategy[tuple[Any, ...]]]
    if type_name == "register":
        own = [tuples(just("put"), leaves(), ttl_ms)]
    elif type_name == "counter":
        own = [tuples(just("add"), by), tuples(just("assign"), by)]
    elif type_name == "set":
        own = [tuples(just("add"), some_leaves), tuples(just("remove"), some_leaves)]
    elif type_name == "map":
        puts = st.dictionaries(fields, leaves(), min_size=1, max_size=2)
        drops = st.lists(fields, min_size=1, max_size=2)
        own = [tuples(just("put"), puts, ttl_ms), tuples(just("remove"), drops)]
        own += [tuples(just(name), fields, by) for name in ("add", "assign")]
    elif type_name == "doc":
        own = [tuples(just("edit"), st.integers(0, 9), st.none() | st.integers(0, 9))]
    else:
        own = [tuples(just("add"), st.integers(0, 5))]
    return st.one_of(*own, *own, *common)


def histories(type_name: str, *, replicas: int = 3, steps_max: int = 25) -> SearchStrategy[History]:
    """Histories of one key of a type: register, counter, set, map, rate or doc."""
    who = st.integers(0, replicas - 1)
    wait_ms = st.sampled_from([0, 1, 15, 40, 150])
    batch = st.lists(_operations(type_name), min_size=1, max_size=3).map(tuple)
    write = st.builds(Step, who, wait_ms, st.just("write"), batch)
    pull = st.builds(Step, who, wait_ms, st.just("pull"), st.tuples(who, who))
    steps = st.lists(st.one_of(write, write, pull, pull, pull), max_size=steps_max).map(tuple)
    skews_ms = st.tuples(*[st.integers(-30, 30)] * replicas)
    return st.builds(History, st.just(type_name), skews_ms, steps)


@dataclass
class Replica:
    """One actor's rows of one key, its clock, its version vector and the records it holds."""

    type_name: str
    actor: int
    rows: Rows = field(default_factory=dict)
    vv: dict[int, int] = field(default_factory=dict)
    records: list[bytes] = field(default_factory=list)
    clock: Hlc = field(default_factory=Hlc)
    edits: int = 0

    @property
    def type_code(self) -> int:
        return TYPE_BY_NAME[self.type_name]

    def value(self, now_ms: int) -> Any:
        """All that a reader can see: whether the key exists, and its value."""
        return value_at(self.type_code, self.rows, now_ms)

    def write(self, operations: Sequence[tuple[Any, ...]], now_ms: int) -> Delta:
        """Do operations, each under a stamp of its own, as one record under the last stamp."""
        together: Delta = {}
        for name, *args in operations:
            delta = self._operate(name, args, (self.clock.tick(now_ms), self.actor), now_ms)
            self.rows.update(delta)
            together.update(delta)
        if together:
            prev_hlc = self.vv.get(self.actor, 0)
            ops = tuple(
                RowOp(row_key(b"k", part), self.type_code, encode_row(self.type_code, part, row))
                for part, row in together.items()
            )
            self.records.append(encode_record(Record(self.actor, self.clock.last, prev_hlc, ops)))
            self.vv[self.actor] = self.clock.last
        return together

    def take(self, raw: bytes) -> bool:
        """Join a record if it extends the version vector."""
        record = decode_record(raw)
        if not record.prev_hlc <= self.vv.get(record.actor, 0) < record.hlc:
            return False
        delta = {decoded.part: decoded.row for decoded in decode_rows(record.ops)}
        self.rows.update(join_delta(self.type_code, self.rows, delta))
        self.vv[record.actor] = record.hlc
        self.clock.observe(record.hlc)
        self.records.append(raw)
        return True

    def pull(self, source: Replica, origin: int) -> list[bytes]:
        """Take the records of one origin that `source` has and this one lacks."""
        offered = [raw for raw in source.records if decode_record(raw).actor == origin]
        return [raw for raw in offered if self.take(raw)]

    def _operate(self, name: str, args: list[Any], stamp: tuple[int, int], now_ms: int) -> Delta:
        rows = self.rows
        if name == "expire":
            if not values.exists(self.type_code, rows, now_ms):
                return {}
            ends_ms = now_ms + args[0] if args[0] else 0
            expire = {
                "register": register.expire,
                "counter": counter.expire,
                "set": set.expire,
                "map": map.expire,
                "rate": rate.expire,
                "doc": doc.expire,
            }
            return expire[self.type_name](rows, stamp, ends_ms)
        if self.type_name == "register":
            if name == "delete":
                return register.delete(rows, stamp)
            return register.put(rows, args[0], stamp, now_ms + args[1] if args[1] else 0)
        if self.type_name == "counter":
            if name == "delete":
                return counter.delete(rows, stamp, now_ms)
            write = counter.add if name == "add" else counter.assign
            return write(rows, args[0], stamp, now_ms)
        if self.type_name == "set":
            return self._operate_set(name, args, stamp, now_ms)
        if self.type_name == "map":
            return self._operate_map(name, args, stamp, now_ms)
        if self.type_name == "doc":
            if name == "delete":
                gone = values.exists(self.type_code, rows, now_ms)
                return doc.delete(rows, self.vv, stamp, yjs=document) if gone else {}
            return self._edit(args[0], args[1], stamp, now_ms)
        if name == "delete":
            return rate.delete(rows, now_ms)
        return rate.add(rows, args[0], stamp, now_ms, WINDOW_MS)

    def _edit(self, behind: int, drop: int | None, stamp: tuple[int, int], now_ms: int) -> Delta:
        """An item behind a live one, from a Yjs client of its own; maybe another one deleted."""
        held = values.doc_update(self.rows, now_ms) or b"\0\0"
        there = document.rehearse(held, b"\0\0").before
        gone = {run.client for run in read_structs(held).deletes}
        live = sorted(client for client in there if client not in gone)
        self.edits += 1
        new = (1_000 * self.actor + self.edits, 0)
        origin = (live[behind % len(live)], 0) if live else None
        doomed = (live[drop % len(live)], 0) if live and drop is not None else None
        owner = outside.owner_of(str(self.actor))
        update = outside.admit(self.rows, edit(new, origin, doomed), now_ms, owner)
        return doc.put(self.rows, update, stamp, now_ms, yjs=document, vv=self.vv, owner=owner)

    def _operate_set(
        self, name: str, args: list[Any], stamp: tuple[int, int], now_ms: int
    ) -> Delta:
        if name == "add":
            return set.add(self.rows, args[0], stamp, now_ms, vv=self.vv)
        if name == "remove":
            return set.remove(self.rows, args[0], now_ms)
        return set.delete(self.rows, self.vv, stamp)

    def _operate_map(
        self, name: str, args: list[Any], stamp: tuple[int, int], now_ms: int
    ) -> Delta:
        if name == "put":
            ends_ms = now_ms + args[1] if args[1] else 0
            return map.put(self.rows, args[0], stamp, now_ms, expires_ms=ends_ms)
        if name == "remove":
            return map.remove(self.rows, args[0], stamp)
        if name == "delete":
            return map.delete(self.rows, stamp)
        if name == "add":
            return map.add(self.rows, args[0], args[1], stamp, now_ms)
        return map.assign(self.rows, args[0], args[1], stamp, now_ms)


def run(
    history: History, observe: Callable[[Step, list[Replica], int], None] | None = None
) -> list[Replica]:
    """Play a history. `observe` sees each step's replicas and the acting one's time."""
    replicas = [Replica(history.type_name, actor + 1) for actor in range(len(history.skews_ms))]
    now_ms = START_MS
    for step in history.steps:
        now_ms += step.wait_ms
        local_ms = now_ms + history.skews_ms[step.replica]
        if step.action == "write":
            replicas[step.replica].write(step.args, local_ms)
        else:
            source, origin = step.args
            replicas[step.replica].pull(replicas[source], origin + 1)
        if observe is not None:
            observe(step, replicas, local_ms)
    return replicas
