"""The links of one simulated node: dials, greetings, frames that come and go, cuts.

What `roostd.gossip` does with websockets this does with the simulated network's connections.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from roost_crdt.errors import PeerError
from roost_crdt.frames import SHARED_ACTOR, Error, Greeting, decode_greeting, encode_frame
from roost_crdt.lineage import Heads, other_history
from roost_crdt.membership import Membership
from roost_crdt.replica import Replica

from .hosting import Shell, Surroundings
from .loop import Life
from .network import Connection
from .store import Store

DIAL_TIMEOUT_MS = 400.0
BACKOFF_MS = 200.0
BACKOFF_MAX_MS = 1_500.0


class Host(Protocol):
    """What links need of their node."""

    name: str
    world: Surroundings
    life: Life | None
    store: Store
    replica: Replica
    heads: Heads
    membership: Membership
    shell: Shell | None
    neighbours: dict[str, bool]
    problems: list[str]
    greeted: bool

    def boot_ms(self) -> int: ...

    def now(self) -> int: ...

    def say(self, text: str) -> None: ...

    def step(self, what: str) -> None: ...

    def wake(self) -> None: ...

    def flush(self) -> None: ...

    def rollback(self, peer: str, actor: int, hlc: int) -> None: ...


@dataclass(slots=True)
class Link:
    """One connection that was greeted over."""

    connection: Connection
    dialler: str
    answered: bool = False
    """Whether the socket has taken this end's greeting, which is in no window."""


class Links:
    """One link a neighbour at most; of duelling dials the lower node id's stays."""

    def __init__(self, node: Host) -> None:
        self._node = node
        self._links: dict[str, Link] = {}
        self._heard_ms: dict[str, int] = {}
        self._backoff_ms: dict[str, float] = {}
        self._dialled_as: dict[str, int] = {}

    @property
    def life(self) -> Life | None:
        """Of the node."""
        return self._node.life

    def begin(self) -> None:
        """A life of the node begins."""
        self._links, self._heard_ms, self._dialled_as = {}, {}, {}
        self._backoff_ms = dict.fromkeys(self._node.neighbours, BACKOFF_MS)

    def dial_all(self) -> None:
        for peer in sorted(self._node.neighbours):
            self.dial_later(peer, first=True)

    def close(self, *, silent: bool) -> None:
        """The node has died; `silent`: nobody is told."""
        for link in self._links.values():
            self._node.world.network.close(link.connection, self._node.name, silent=silent)
        self._links = {}

    def send(self, peer: str, data: bytes) -> bool:
        """False if there is no link."""
        link = self._links.get(peer)
        if link is None:
            return False
        self._node.world.network.send(link.connection, self._node.name, data)
        return True

    def linked(self, peer: str) -> bool:
        return peer in self._links

    def silent_ms(self, peer: str) -> int:
        known = self._node.replica.peers.get(peer)
        heard_ms = known.heard_ms if known is not None else self._heard_ms.get(peer)
        return 1 << 40 if heard_ms is None else max(0, self._node.boot_ms() - heard_ms)

    def dial_later(self, peer: str, *, first: bool = False) -> None:
        """Dial a neighbour that this node dials; `first`: perhaps at once."""
        if self._node.neighbours.get(peer):
            backoff_ms = self._backoff_ms.setdefault(peer, BACKOFF_MS)
            self._backoff_ms[peer] = min(2 * backoff_ms, BACKOFF_MAX_MS)
            low_ms = 0.0 if first else 50.0
            delay_ms = self._node.world.random.uniform(low_ms, backoff_ms)
            self._node.world.loop.after(delay_ms, self._node.life, self._dial, peer)

    def _dial(self, peer: str) -> None:
        if peer in self._links or peer not in self._node.neighbours:
            return
        network = self._node.world.network
        there = network.host(peer).life
        if (
            self._node.replica.reseeding
            or there is None
            or network.blocked(self._node.name, peer)
            or network.blocked(peer, self._node.name)
        ):
            self.dial_later(peer)
            return
        self._node.flush()
        connection = network.connect(self._node.name, peer)
        self._dialled_as[peer] = self._node.store.actor
        network.send(
            connection,
            self._node.name,
            self._node.replica.greeting(self._node.heads.head_for(peer)),
        )
        self._node.world.loop.after(
            DIAL_TIMEOUT_MS, self._node.life, self._dialled, connection, peer
        )

    def _dialled(self, connection: Connection, peer: str) -> None:
        link = self._links.get(peer)
        if link is None or link.connection is not connection:
            self._node.world.network.close(connection, self._node.name)
        if link is None:
            self.dial_later(peer)

    def arrived(self, connection: Connection, data: bytes) -> None:
        """A frame; the first one of a connection is a greeting."""
        peer = connection.other(self._node.name)
        link = self._links.get(peer)
        if link is None or link.connection is not connection:
            self._greeted(connection, peer, data)
            return
        self._heard_ms[peer] = self._node.boot_ms()
        try:
            self._node.replica.receive(peer, data, self._node.now())
        except PeerError as error:
            self._node.problems.append(f"{self._node.name} cuts {peer}: {error}")
            self._refuse(connection, peer, error)
            return
        self._node.step(f"frame received to {peer}")
        self._node.wake()

    def _greeted(self, connection: Connection, peer: str, data: bytes) -> None:
        answer: bytes | None = None
        try:
            greeting = decode_greeting(data)
            if connection.dialler != self._node.name:
                self._node.flush()
                head = self._node.heads.head_for(peer, greeting.actor)
                answer = self._node.replica.greeting(head)
            dialled = connection.dialler == self._node.name
            if dialled and self._dialled_as.get(peer) != self._node.store.actor:
                self._node.say(f"dials {peer} again, as a new actor")
                self._node.world.network.close(connection, self._node.name)
                self.dial_later(peer)
                return
            if not self._stays(connection, peer):
                self._node.world.network.close(connection, self._node.name)
                return
            self._check_chain(peer, greeting)
            self.cut(peer, "replaced by a newer link")
            self._node.replica.link_up(peer, greeting, self._node.now())
        except PeerError as error:
            self._node.say(f"refuses {peer}: {error}")
            self._node.world.trace.count("rule", "greeting refused")
            if error.code == SHARED_ACTOR and connection.dialler == self._node.name:
                actor = self._dialled_as.get(peer, 0)
                self._node.rollback(peer, actor, self._node.store.vv.get(actor, 0))
            if (
                answer is not None
                and peer in self._node.replica.reseeds
                and not self._node.replica.reseeding
            ):
                self._node.world.network.send(connection, self._node.name, answer)
            self._refuse(connection, peer, error)
            return
        self._node.greeted = True
        self._links[peer] = Link(
            connection, connection.dialler, answered=connection.dialler == self._node.name
        )
        self._backoff_ms[peer] = BACKOFF_MS
        self._node.say(f"link to {peer} is up")
        if answer is not None:
            self._node.world.network.send(connection, self._node.name, answer)
        if self._node.shell is not None:
            self._node.shell.link_up(peer)
        self._node.replica.tick(self._node.now())
        self._node.wake()

    def _stays(self, connection: Connection, peer: str) -> bool:
        """Of duelling links the lower node id's stays."""
        other = self._links.get(peer)
        return other is None or connection.dialler in (other.dialler, min(peer, self._node.name))

    def _check_chain(self, peer: str, greeting: Greeting) -> None:
        """A neighbour that was told another history of this actor: this is not that writer."""
        store = self._node.store
        hlc = other_history(greeting, store.actor, store.chain_at)
        if hlc is not None:
            self._node.world.trace.count("rule", "another chain found")
            self._node.membership.forking.part(hlc)
            self._node.rollback(peer, store.actor, hlc)
            raise PeerError(f"{peer} was told another history of this actor at {hlc}")
        self._node.heads.check(greeting)

    def _refuse(self, connection: Connection, peer: str, error: PeerError) -> None:
        frame = encode_frame(Error(error.code, str(error)[:1_000]))
        if self._node.name in connection.open:
            self._node.world.network.send(connection, self._node.name, frame)
            self._node.world.network.close(connection, self._node.name)
        self._forget(peer, connection, str(error))
        self._node.wake()

    def ended(self, connection: Connection, reason: str) -> None:
        self._forget(connection.other(self._node.name), connection, reason)

    def sent(self, connection: Connection, size: int) -> None:
        """The other end's socket has taken a frame of this node."""
        peer = connection.other(self._node.name)
        link = self._links.get(peer)
        if link is None or link.connection is not connection:
            return
        if not link.answered:
            link.answered = True
            return
        self._node.replica.taken(peer, size)
        self._node.wake()

    def cut(self, peer: str, reason: str) -> None:
        link = self._links.get(peer)
        if link is not None:
            self._node.world.network.close(link.connection, self._node.name)
            self._forget(peer, link.connection, reason)

    def _forget(self, peer: str, connection: Connection, reason: str) -> None:
        link = self._links.get(peer)
        if link is None or link.connection is not connection:
            return
        self._node.say(f"link to {peer} is down: {reason}")
        self._heard_ms[peer] = self._node.replica.peers[peer].heard_ms
        del self._links[peer]
        self._node.replica.link_down(peer, self._node.now())
        self.dial_later(peer)
        self._node.wake()
