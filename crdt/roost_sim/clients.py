"""Clients of global keys: each does one operation after another, mostly at one node."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from roost_crdt import values
from roost_crdt.rows import counter, register
from roost_crdt.rows import map as map_rows
from roost_crdt.rows import set as set_rows
from roost_crdt.rows.layout import TYPE_COUNTER, TYPE_MAP, TYPE_REGISTER, TYPE_SET

from .history import History, Op
from .loop import Future, Lost
from .node import Node

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
