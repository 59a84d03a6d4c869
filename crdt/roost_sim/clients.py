"""Clients of global keys: each does one operation after another, mostly at one node."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from roost_crdt import values
from roost_crdt.record import Record
from roost_crdt.rows import Part, counter, decode_row, register
from roost_crdt.rows import map as map_rows
from roost_crdt.rows import set as set_rows
from roost_crdt.rows.layout import (
    HEAD,
    RESERVED,
    TAG_FIELD,
    TYPE_COUNTER,
    TYPE_MAP,
    TYPE_REGISTER,
    TYPE_SET,
    split_row_key,
)
from roost_crdt.rows.leaf import KIND_DEAD

from .history import History, Op
from .loop import Future, Lost
from .node import Node

SOON_MS = (50, 3_000)
LATER_MS = 5 * 3_600_000
"""Expiries: within the run, or long after it."""
BITS_MAX = 60
"""Increments of one counter, each a power of two."""
ELEMENTS = (b"ant", b"bee", b"cat", b"dog")
FIELDS = (b"f1", b"f2", b"f3")


class Keys:
    """Operations on the keys of a run, recorded in its history."""

    def __init__(self, history: History, random: Random) -> None:
        self._history = history
        self._random = random
        self._bits: dict[bytes, int] = {}
        self._values = 0

    def perform(self, node: Node, key: bytes) -> tuple[Op, Future[str]]:
        """One random operation at a node that is alive; the future tells its outcome."""
        choose: dict[bytes, Callable[[Node, Op], bool]] = {
            b"r": self._register,
            b"c": self._counter,
            b"s": self._set,
            b"m": self._map,
            b"x": self._expiring_register,
            b"y": self._expiring_counter,
        }
        op = self._history.begin(node.name, key, "", node.world.loop.now_ms)
        future: Future[str] = Future()
        if choose[key[:1]](node, op):
            self._history.happened(op)
        what = f"{op.kind} {key.decode()} {(op.name or b'').decode()}"
        node.say(f"op {op.number}: {what} {(op.value or b'').decode()}{op.bit or ''}".rstrip())
        node.world.trace.count("op", op.kind)
        node.when_durable(lambda: self._answered(node, op, future), lambda: future.fail(Lost()))
        return op, future

    def rewrote(self, node: Node, record: Record) -> None:
        """A reseed has written what it gave up again, under new stamps: as if somebody had."""
        stamp = (record.hlc, record.actor)
        for row_key, type_code, body in record.ops:
            key, part = split_row_key(row_key)
            if key.startswith(RESERVED):
                continue
            self._again(key, type_code, part, body)
            for kind, name, value, at, expires_ms in _writes(type_code, part, body, stamp):
                known = self._history.by_key.get(key, [])
                if any(op.stamp == at and op.name == name for op in known):
                    continue
                op = self._history.begin(node.name, key, kind, node.world.loop.now_ms)
                op.name, op.value, op.stamp, op.expires_ms = name, value, at, expires_ms
                self._history.happened(op)
                node.say(f"op {op.number}: again {kind} {key.decode()} {name.decode()}")
                node.world.trace.count("op", "written again")

    def _again(self, key: bytes, type_code: int, part: Part, body: bytes) -> None:
        row = decode_row(type_code, part, body)
        bits, dots = 0, set[tuple[int, int]]()
        if type_code == TYPE_COUNTER and part != HEAD:
            bits = row[0] - row[2]
        elif type_code == TYPE_SET and part != HEAD:
            dots = {(add, actor) for actor, add, _ in row[1]}
        for op in self._history.by_key.get(key, ()):
            op.again = op.again or bool(op.bit & bits) or (op.kind == "add" and op.stamp in dots)

    def _answered(self, node: Node, op: Op, future: Future[str]) -> None:
        op.outcome = "ok"
        op.certify(node.name, node.world.loop.now_ms)
        future.set("ok")

    def _fresh(self) -> bytes:
        self._values += 1
        return b"v%d" % self._values

    def _register(self, node: Node, op: Op) -> bool:
        rows = node.rows(op.key)
        choice = self._random.random()
        shown = values.register_value(rows, node.wall_ms())
        if choice < 0.25 or (choice < 0.4 and shown is None):
            op.kind = "get"
            self._shown(node, op, lambda at: self._saw(op, shown, node, at))
            return False
        op.stamp = node.store.stamp(node.wall_ms())
        if choice < 0.4:
            op.kind = "delete"
            delta = register.delete(rows, op.stamp)
        else:
            op.kind, op.value = "put", self._fresh()
            delta = register.put(rows, op.value, op.stamp)
        node.write(op.key, TYPE_REGISTER, delta, op.stamp)
        return True

    def _expires_ms(self, node: Node) -> int:
        soon = self._random.random() < 0.7
        return node.wall_ms() + (self._random.randint(*SOON_MS) if soon else LATER_MS)

    def _expiring_register(self, node: Node, op: Op) -> bool:
        """Written with a time to live, or without; what has expired is never shown."""
        rows, now_ms = node.rows(op.key), node.wall_ms()
        choice = self._random.random()
        if choice < 0.4:
            op.kind = "get"
            shown = values.register_value(rows, now_ms)
            if shown is None and values.register_value(rows, 0) is not None:
                node.world.trace.count("rule", "expired key read")
            late = self._history.expired(op.key, shown, now_ms)
            if late is not None:
                node.problems.append(f"{node.name} shows {op.key.decode()} of op {late} expired")
            self._shown(node, op, lambda at: self._saw(op, shown, node, at))
            return False
        op.stamp = node.store.stamp(now_ms)
        op.kind, op.value = "put", self._fresh()
        op.expires_ms = self._expires_ms(node) if choice < 0.9 else 0
        delta = register.put(rows, op.value, op.stamp, op.expires_ms)
        node.write(op.key, TYPE_REGISTER, delta, op.stamp)
        return True

    def _expiring_counter(self, node: Node, op: Op) -> bool:
        """Increments, and now and then an expiry of them all."""
        rows, now_ms = node.rows(op.key), node.wall_ms()
        if self._random.random() < 0.7 or not counter.exists(rows, now_ms):
            return self._counter(node, op)
        op.kind, op.stamp = "expire", node.store.stamp(now_ms)
        op.expires_ms = self._expires_ms(node)
        delta = counter.expire(rows, op.stamp, op.expires_ms)
        node.write(op.key, TYPE_COUNTER, delta, op.stamp)
        return True

    def _saw(self, op: Op, shown: object, node: Node, at_ms: float) -> None:
        if isinstance(shown, bytes):
            self._history.saw_register(op.key, op.name, shown, node.name, at_ms)

    def _shown(self, node: Node, op: Op, certify: Callable[[float], None]) -> None:
        """A read is answered when all it shows is durable."""
        node.when_durable(lambda: certify(node.world.loop.now_ms), lambda: None)

    def _counter(self, node: Node, op: Op) -> bool:
        rows, now_ms = node.rows(op.key), node.wall_ms()
        held = counter.value(rows, now_ms)
        used = self._bits.get(op.key, 0)
        choice = self._random.random()
        if choice < 0.2 or (choice < 0.3 and held is None) or (choice >= 0.4 and used >= BITS_MAX):
            op.kind = "get"
            bits = held or 0
            self._shown(node, op, lambda at: self._history.saw_bits(op.key, bits, node.name, at))
            return False
        op.stamp = node.store.stamp(now_ms)
        if choice < 0.3 or used >= BITS_MAX:
            op.kind, op.observed = "reset", held or 0
            delta = counter.delete(rows, op.stamp, now_ms)
            if not delta:
                op.kind = "get"
                return False
        else:
            self._bits[op.key] = used + 1
            op.bit = 1 << used
            if choice < 0.4 and held is not None:
                # SET: what is observed goes, the new value is one increment
                op.kind, op.observed = "reset", held
                delta = counter.assign(rows, op.bit, op.stamp, now_ms)
            else:
                op.kind = "add"
                delta = counter.add(rows, op.bit, op.stamp, now_ms)
        node.write(op.key, TYPE_COUNTER, delta, op.stamp)
        return True

    def _set(self, node: Node, op: Op) -> bool:
        rows, now_ms = node.rows(op.key), node.wall_ms()
        op.name = self._random.choice(ELEMENTS)
        op.stamp = node.store.stamp(now_ms)
        if self._random.random() < 0.6:
            op.kind = "add"
            delta = set_rows.add(rows, [op.name], op.stamp, now_ms)
        else:
            op.kind = "remove"
            row = rows.get(set_rows.part_of(op.name))
            op.removes = tuple((add, actor) for actor, add, _ in row[1]) if row else ()
            delta = set_rows.remove(rows, [op.name], now_ms)
            if not delta:
                return False
        node.write(op.key, TYPE_SET, delta, op.stamp)
        return True

    def _map(self, node: Node, op: Op) -> bool:
        rows, now_ms = node.rows(op.key), node.wall_ms()
        op.stamp = node.store.stamp(now_ms)
        choice = self._random.random()
        if choice < 0.1:
            op.kind = "clear"
            delta = map_rows.delete(rows, op.stamp)
        else:
            op.name = self._random.choice(FIELDS)
            if choice < 0.3:
                op.kind = "drop"
                delta = map_rows.remove(rows, [op.name], op.stamp)
            else:
                op.kind, op.value = "put", self._fresh()
                delta = map_rows.put(rows, {op.name: op.value}, op.stamp, now_ms)
        if not delta:
            return False
        node.write(op.key, TYPE_MAP, delta, op.stamp)
        return True


def _writes(
    type_code: int, part: Part, body: bytes, stamp: tuple[int, int]
) -> Iterator[tuple[str, bytes, bytes | None, tuple[int, int], int]]:
    """What a row written again says: kind, field or element, value, stamp, expiry."""
    row = decode_row(type_code, part, body)
    if type_code == TYPE_REGISTER:
        yield "put", b"", None if row[2] == KIND_DEAD else row[3], row[:2], row[6]
    elif type_code == TYPE_MAP and part == HEAD:
        yield "clear", b"", None, row[:2], 0
    elif type_code == TYPE_MAP and part[0] == TAG_FIELD:
        yield "put", part[1:], None if row[2] == KIND_DEAD else row[3], row[:2], 0
    elif type_code == TYPE_SET and part != HEAD and (stamp[1], stamp[0]) in (d[:2] for d in row[1]):
        yield "add", part[1:], None, stamp, 0
    elif type_code == TYPE_COUNTER and part == HEAD and row[:2] == stamp:
        yield "expire", b"", None, stamp, row[2]
