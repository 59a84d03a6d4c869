"""Faults of members and rows: somebody is removed, stays away too long, leaves; rows get lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Protocol

from roost_crdt import digest
from roost_crdt.errors import RoostError
from roost_crdt.rows.layout import RESERVED, row_key, split_row_key

from .hosting import Surroundings
from .node import Node

ROWS_MAX = 3
"""Rows lost at once."""
EXPIRING = (RESERVED, b"x", b"y")
"""Keys whose rows stay: what expires is in no bucket's sum, so nobody would miss it."""


class Cluster(Protocol):
    """What these faults need of the run."""

    world: Surroundings
    nodes: dict[str, Node]

    def start(self, name: str) -> None: ...

    def may_leave(self, name: str) -> bool: ...

    def leave(self, name: str) -> None: ...


class MemberFaults:
    """By kind: True if something was hit."""

    def __init__(
        self,
        cluster: Cluster,
        random: Random,
        later: Callable[..., None],
        void: Callable[[Node, float], None],
    ) -> None:
        self._cluster = cluster
        self._random = random
        self._later = later
        self._void = void
        self._lost: list[bytes] = []
        """Row keys that got lost somewhere."""
        self.kinds: dict[str, Callable[[], bool]] = {
            "member removed": self._removed,
            "member away": self._away,
            "member leaves": self._leaves,
            "rows lost": self._rows_lost,
        }

    def _up(self) -> list[Node]:
        return [node for _, node in sorted(self._cluster.nodes.items()) if node.life is not None]

    def _ready(self) -> list[Node]:
        """Those that may write: a neighbour has agreed with their actor, no reseed is under way."""
        return [node for node in self._up() if node.greeted and node.admits()]

    def _remove(self, name: str) -> bool:
        """Somebody takes `name` out of the members."""
        knowing = [
            node
            for node in self._ready()
            if node.name != name and name in node.membership.members.roster.members
        ]
        if not knowing or self._alone_holds(name):
            return False
        node = self._random.choice(knowing)
        try:
            node.membership.remove(name)
        except RoostError as error:
            node.say(f"does not remove {name}: {error}")
            return False
        node.say(f"removes {name} from the members")
        return True

    def _alone_holds(self, name: str) -> bool:
        """Whether a row that got lost elsewhere is left at this node only. Once it was away for
        longer than a collection, nobody could tell such a row from one that was collected."""
        nodes = self._cluster.nodes
        if name not in nodes:
            return False
        others = [n for n in nodes.values() if n.name != name and self._keeps(n)]
        return any(
            _has(nodes[name], row) and not any(_has(other, row) for other in others)
            for row in self._lost
        )

    def _keeps(self, node: Node) -> bool:
        """Whether it is not about to give its rows up: nobody has removed it."""
        up = [other for other in self._up() if other is not node]
        known = all(node.name in other.membership.members.roster.members for other in up)
        return known and (node.life is None or node.admits())

    def _removed(self) -> bool:
        names = sorted(self._cluster.nodes)
        return self._remove(self._random.choice(names))

    def _away(self) -> bool:
        """Stopped, removed, and back with all that it held."""
        chosen = self._ready()
        if len(chosen) < 2:
            return False
        node = self._random.choice(chosen)
        if node.disk.failing:
            return False
        node.stop()
        self._later(50, 500, self._remove, node.name)
        self._later(1_500, 6_000, self._cluster.start, node.name)
        return True

    def _leaves(self) -> bool:
        """Stopped for good."""
        chosen = [node for node in self._ready() if self._cluster.may_leave(node.name)]
        if not chosen:
            return False
        node = self._random.choice(chosen)
        if node.disk.failing:
            return False
        node.say("leaves for good")
        node.stop()
        self._void(node, 0.0)
        self._cluster.leave(node.name)
        self._remove_soon(node.name)
        return True

    def _remove_soon(self, name: str) -> None:
        """Until somebody has: collection waits for it."""
        gone = all(name not in n.membership.members.roster.members for n in self._up())
        if not gone and not self._remove(name):
            self._cluster.world.loop.after(200.0, None, self._remove_soon, name)

    def _rows_lost(self) -> bool:
        """Damage of an index: live rows that all others hold as well are gone at one node."""
        up = self._up()
        if len(up) < max(2, len(self._cluster.nodes)) or any(node.store.dirty for node in up):
            return False
        node = self._random.choice(up)
        others = [other for other in up if other is not node]
        if not all(self._keeps(other) for other in others):
            return False
        names = [
            row_key(key, part)
            for key, held in sorted(node.store.keys.items())
            if not key.startswith(EXPIRING)
            for part, row in sorted(held.rows.items())
            if digest.contribution(held.type, key, {part: row}).live
            and all(_holds(other, key, part, row) for other in others)
        ]
        if not names:
            return False
        lost = self._random.sample(names, min(len(names), self._random.randint(1, ROWS_MAX)))
        node.store.lose(lost)
        self._lost += lost
        node.say(f"loses rows: {lost}")
        return True


def _holds(node: Node, key: bytes, part: bytes, row: object) -> bool:
    rows: Mapping[bytes, object] = node.store.key_rows(key).rows
    return rows.get(part) == row


def _has(node: Node, name: bytes) -> bool:
    key, part = split_row_key(name)
    return part in node.store.key_rows(key).rows
