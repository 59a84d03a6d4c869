"""Links between nodes: connections with delay and order, paths that can be cut each way.

A connection is like TCP: frames of one direction arrive in order, once, or (when the connection
ends) not at all. A cut path stalls what is on it; it goes on when the path heals, unless an end
has given up by then. A process that dies closes its connections; a power cut tells nobody.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from .loop import Life, Loop


class Host(Protocol):
    """What the network needs of a node."""

    @property
    def life(self) -> Life | None: ...

    def arrived(self, connection: Connection, data: bytes) -> None: ...

    def ended(self, connection: Connection, reason: str) -> None: ...

    def sent(self, connection: Connection, size: int) -> None: ...


@dataclass(slots=True, eq=False)
class Connection:
    """One connection between two lives. `open` has the ends that have not closed it."""

    dialler: str
    listener: str
    lives: dict[str, Life]
    open: set[str]
    arrives_ms: dict[str, float] = field(default_factory=dict)
    """By receiver: when the newest frame on its way arrives."""
    stalled: dict[str, deque[bytes | None]] = field(default_factory=dict)
    """By receiver: what waits for its path to heal; None is the other end's close."""
    buffered_bytes: dict[str, int] = field(default_factory=dict)

    def other(self, node: str) -> str:
        return self.listener if node == self.dialler else self.dialler


class Network:
    """All paths and connections of a run."""

    def __init__(self, loop: Loop, random: Random, host: Callable[[str], Host]) -> None:
        self._loop = loop
        self._random = random
        self.host = host
        self.delays_ms: dict[tuple[str, str], float] = {}
        self.jitter_ms = 2.0
        self.loss = 0.0
        """Share of frames that are sent again by TCP, late."""
        self.cut: set[tuple[str, str]] = set()
        self._connections: list[Connection] = []

    # --- paths

    def link(self, a: str, b: str, delay_ms: float) -> None:
        self.delays_ms[a, b] = self.delays_ms[b, a] = delay_ms

    def blocked(self, source: str, target: str) -> bool:
        return (source, target) in self.cut

    def block(self, source: str, target: str) -> None:
        self.cut.add((source, target))

    def heal(self, source: str, target: str) -> None:
        """The path is whole again: what stalled on it goes on."""
        self.cut.discard((source, target))
        for connection in self._connections:
            if {source, target} == set(connection.lives):
                stalled, connection.stalled[target] = connection.stalled[target], deque()
                for data in stalled:
                    self._fly(connection, target, data)

    def delay_ms(self, source: str, target: str) -> float:
        """Of one message from now on."""
        delay_ms = self.delays_ms[source, target] + self._random.random() * self.jitter_ms
        if self.loss and self._random.random() < self.loss:
            delay_ms += 200.0  # sent again by TCP
        return delay_ms

    # --- connections

    def connect(self, dialler: str, listener: str) -> Connection:
        """Both nodes are up and the path is whole both ways: the caller has looked."""
        lives = {}
        for node in (dialler, listener):
            life = self.host(node).life
            assert life is not None
            lives[node] = life
        connection = Connection(dialler, listener, lives, {dialler, listener})
        for node in (dialler, listener):
            connection.arrives_ms[node] = self._loop.now_ms
            connection.stalled[node] = deque()
            connection.buffered_bytes[node] = 0
        self._connections = [c for c in self._connections if c.open]
        self._connections.append(connection)
        return connection

    def send(self, connection: Connection, source: str, data: bytes) -> None:
        connection.buffered_bytes[source] += len(data)
        self._put(connection, connection.other(source), data)

    def close(self, connection: Connection, node: str, *, silent: bool = False) -> None:
        """`node` ends the connection; what it has sent may still arrive."""
        if node in connection.open:
            connection.open.discard(node)
            if not silent:
                self._put(connection, connection.other(node), None)

    def break_all(self, a: str, b: str) -> None:
        """Connections between two nodes are reset at both ends; what is on its way is lost."""
        for connection in self._connections:
            if set(connection.lives) == {a, b}:
                for node in (a, b):
                    if node in connection.open:
                        connection.open.discard(node)
                        self._loop.after(
                            0, connection.lives[node], self.host(node).ended, connection, "reset"
                        )

    def _put(self, connection: Connection, target: str, data: bytes | None) -> None:
        source = connection.other(target)
        if self.blocked(source, target) or connection.stalled[target]:
            connection.stalled[target].append(data)
        else:
            self._fly(connection, target, data)

    def _fly(self, connection: Connection, target: str, data: bytes | None) -> None:
        source = connection.other(target)
        arrives_ms = self._loop.now_ms + self.delay_ms(source, target)
        arrives_ms = max(arrives_ms, connection.arrives_ms[target])
        connection.arrives_ms[target] = arrives_ms
        self._loop.at(arrives_ms, None, self._arrive, connection, target, data)

    def _arrive(self, connection: Connection, target: str, data: bytes | None) -> None:
        source = connection.other(target)
        if self.blocked(source, target) or connection.stalled[target]:
            connection.stalled[target].append(data)
            return
        if source in connection.open and data is not None:
            connection.buffered_bytes[source] -= len(data)
            self._loop.after(
                0, connection.lives[source], self.host(source).sent, connection, len(data)
            )
        if target not in connection.open:
            return
        # A process that stands still finds its frames later, in order: events of its life wait.
        self._loop.after(0, connection.lives[target], self._give, connection, target, data)

    def _give(self, connection: Connection, target: str, data: bytes | None) -> None:
        if target not in connection.open:
            return
        host = self.host(target)
        if data is None:
            connection.open.discard(target)
            host.ended(connection, "closed by the other end")
        else:
            host.arrived(connection, data)
