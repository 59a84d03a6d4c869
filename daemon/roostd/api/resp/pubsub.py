"""Who is told of changed keys: subscribers of keyspace channels, and WATCH.

One watch on the node serves all of them; a key is looked up in a dictionary first, patterns are
tried after. A message says "set" if the key exists after the change and "del" if not: changes
come from neighbours too, as state and not as commands.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from roost_crdt.errors import Busy, CorruptData, RoostError
from roostd.api.caller import READ, Caller
from roostd.api.globbing import compiled
from roostd.api.metrics import FaceMetrics
from roostd.api.resp import encode
from roostd.node import Node

if TYPE_CHECKING:
    from roostd.api.resp.connection import Connection


@dataclass(frozen=True, slots=True)
class Subscription:
    """One channel or pattern of one connection; `space` is `__keyspace@N__:`."""

    name: bytes
    space: bytes
    caller: Caller
    pattern: re.Pattern[bytes] | None


class Mark:
    """A watched key: `touched` once it changed after WATCH."""

    __slots__ = ("armed", "key", "pubsub", "touched")

    def __init__(self, pubsub: PubSub, key: bytes) -> None:
        self.pubsub = pubsub
        self.key = key
        self.touched = False
        self.armed = False

    def arm(self) -> None:
        """Changes that were pending when the mark was set are known to the watcher."""
        self.armed = True

    def forget(self) -> None:
        marks = self.pubsub.marks.get(self.key)
        if marks is not None:
            marks.discard(self)
            if not marks:
                del self.pubsub.marks[self.key]
        self.pubsub.settle()


class PubSub:
    """Subscriptions and marks of all connections."""

    def __init__(self, node: Node, metrics: FaceMetrics) -> None:
        self.node = node
        self.metrics = metrics
        self.marks: dict[bytes, set[Mark]] = {}
        self._exact: dict[bytes, dict[tuple[int, bytes], tuple[Connection, Subscription]]] = {}
        self._patterns: dict[tuple[int, bytes], tuple[Connection, Subscription]] = {}
        self._unwatch: Callable[[], None] | None = None

    def mark(self, key: bytes) -> Mark:
        """Note a watched key; Busy at the bound."""
        self._check_room(sum(map(len, self.marks.values())))
        mark = Mark(self, key)
        self.marks.setdefault(key, set()).add(mark)
        self.settle()
        return mark

    def subscribe(self, conn: Connection, subscription: Subscription, key: bytes | None) -> None:
        """`key` is the stored key of a channel; None for a pattern. Busy at the bound."""
        self._check_room(len(self._patterns) + sum(map(len, self._exact.values())))
        place = (conn.id, subscription.name)
        if key is None:
            self._patterns[place] = (conn, subscription)
            conn.patterns[subscription.name] = subscription
        else:
            self._exact.setdefault(key, {})[place] = (conn, subscription)
            conn.subscriptions[subscription.name] = key
        self.settle()

    def unsubscribe(self, conn: Connection, name: bytes, *, pattern: bool) -> None:
        place = (conn.id, name)
        if pattern:
            self._patterns.pop(place, None)
            conn.patterns.pop(name, None)
        else:
            key = conn.subscriptions.pop(name, None)
            listeners = self._exact.get(key, {}) if key is not None else {}
            listeners.pop(place, None)
            if key is not None and not listeners:
                self._exact.pop(key, None)
        self.settle()

    def leave(self, conn: Connection) -> None:
        """Drop all subscriptions of a connection."""
        for name in list(conn.subscriptions):
            self.unsubscribe(conn, name, pattern=False)
        for name in list(conn.patterns):
            self.unsubscribe(conn, name, pattern=True)

    def settle(self) -> None:
        """Watch the node while there is anybody to tell."""
        needed = bool(self.marks or self._exact or self._patterns)
        if needed and self._unwatch is None:
            self._unwatch = self.node.watch(b"", self._changed)
        elif not needed and self._unwatch is not None:
            self._unwatch()
            self._unwatch = None
        self.metrics.watchers = len(self._patterns) + sum(map(len, self._exact.values()))

    def _check_room(self, used: int) -> None:
        if used >= self.node.limits.watchers_max:
            raise Busy(
                f"this node has {used} watched channels and keys; end some, or ask another node",
                retry_after_ms=1_000,
            )

    def _changed(self, key: bytes) -> None:
        for mark in self.marks.get(key, ()):
            if mark.armed:
                mark.touched = True
        event = b""
        for conn, subscription in list(self._exact.get(key, {}).values()):
            event = event or self._event(key)
            self._tell(conn, [b"message", subscription.name, event])
        for conn, subscription in list(self._patterns.values()):
            caller = subscription.caller
            if not key.startswith(caller.prefix) or not caller.may(READ, key):
                continue
            channel = subscription.space + caller.own(key)
            assert subscription.pattern is not None
            if subscription.pattern.match(channel):
                event = event or self._event(key)
                self._tell(conn, [b"pmessage", subscription.name, channel, event])

    def _event(self, key: bytes) -> bytes:
        try:
            return b"set" if self.node.keys.exists(key) else b"del"
        except (RoostError, CorruptData):
            return b"set"  # a change that this node stores and does not serve

    def _tell(self, conn: Connection, parts: list[bytes]) -> None:
        conn.push(encode.push([encode.bulk(part) for part in parts], conn.resp3))


def subscription_of(name: bytes, space: bytes, caller: Caller, *, pattern: bool) -> Subscription:
    return Subscription(name, space, caller, compiled(name) if pattern else None)
