"""Nodes with sessions in one process: the pure stream over links that cut and disks that crash.

Time, links and disks are values here. What a node has written is durable only after `flush`, and
its frames leave only then, as in the daemon. Everything is deterministic.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from roost_crdt import fold
from roost_crdt.errors import PeerError
from roost_crdt.fold import TurnRef
from roost_crdt.home import Candidate, Meta, Whole, decode_frame, encode_frame
from roost_crdt.limits import DEFAULT_LIMITS, Limits
from roost_crdt.sessions.copy import SessionCopy
from roost_crdt.sessions.shelf import Shelf
from roost_crdt.sessions.stream import Stream
from roost_crdt.sessions.table import SessionTable
from roost_crdt.token import Claims

TAKEOVER_AFTER_MS = 1_000
RTT_MS = 80.0
NEVER_MS = 1 << 40
QUIET_ROUNDS = 20
STEP_MS = 700


class Rows:
    """The SESSION database of one node: what is durable, and what is written."""

    def __init__(self) -> None:
        self.durable: dict[bytes, bytes] = {}
        self.written: dict[bytes, bytes] = {}
        self.refuse: Exception | None = None

    def get(self, key: bytes) -> bytes | None:
        return self.written.get(key)

    def scan(self, prefix: bytes, after: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        keys = sorted(key for key in self.written if key.startswith(prefix))
        start = bisect_right(keys, after) if after else 0
        return [(key, self.written[key]) for key in keys[start : start + limit]]

    def put(self, items: Mapping[bytes, bytes | None]) -> int:
        if self.refuse is not None:
            raise self.refuse
        for key, value in items.items():
            if value is None:
                self.written.pop(key, None)
            else:
                self.written[key] = value
        return len(self.written)

    def flush(self) -> None:
        self.durable = dict(self.written)

    def crash(self) -> None:
        self.written = dict(self.durable)


@dataclass(frozen=True)
class Seen:
    """What the bearer of a token has seen: its claims, and the turns themselves."""

    claims: Claims
    turns: frozenset[TurnRef]


class Node:
    """One node: its shelf and stream over its rows, and its view of the links."""

    def __init__(self, network: Network, name: str, actor: int) -> None:
        self.network = network
        self.name = name
        self.actor = actor
        self.rows = Rows()
        self.lives = 0
        self.start()

    def start(self) -> None:
        """As a daemon starts: from what is stored."""
        self.lives += 1
        self.shelf = Shelf(
            node=self.name,
            region=self.name,
            actor=self.actor,
            table=SessionTable(self.rows),
            limits=self.network.limits,
            now_ms=lambda: self.network.now_ms,
            ttl_ms=lambda: self.network.ttl_ms,
        )
        self.shelf.on_corrupt = lambda sid, error: self.network.broken.append(
            (self.name, sid, str(error))
        )
        self.stream = Stream(
            self.shelf,
            self,
            takeover_after_ms=TAKEOVER_AFTER_MS,
            residency=lambda: self.network.residency,
        )

    # --- the links, as the stream sees them ---

    def candidates(self) -> list[Candidate]:
        return [
            Candidate(other, other, RTT_MS)
            for other in self.network.nodes
            if other != self.name and self.network.up(self.name, other)
        ]

    def beyond(self) -> set[str]:
        return self.network.beyond(self.name)

    def silent_ms(self, node: str) -> int:
        return self.network.silent_ms(self.name, node)

    # --- what a daemon does ---

    def flush(self) -> None:
        """Durable, then the frames leave."""
        self.rows.flush()
        for node, frame in self.stream.take_frames():
            self.network.send(self.name, node, frame)

    def live(self, sid: str) -> SessionCopy:
        live = self.shelf.live(sid)
        assert live is not None, f"{self.name} holds {sid}"
        return live

    def is_home(self, sid: str) -> bool:
        meta = self.shelf.meta(sid)
        return meta is not None and meta.held and not meta.erased_ms and meta.home == self.name

    def commit(self, sid: str, text: str, fields: Mapping[str, bytes] | None = None) -> Seen:
        """One turn at home, durable."""
        seen = self.write(sid, text, fields)
        self.flush()
        return seen

    def write(self, sid: str, text: str, fields: Mapping[str, bytes] | None = None) -> Seen:
        """One turn at home, not durable yet."""
        live, now_ms = self.live(sid), self.network.now_ms
        assert live.meta.home == self.name
        if live.meta.actor != self.actor:
            live.enter_epoch(self.name, live.meta.standby, now_ms)
        put = {
            key: live.fold.put_field(*key.split("\0"), live.meta.epoch, value, now_ms)[1]
            for key, value in (fields or {}).items()
        }
        entry = fold.turn_entry(
            live.meta.epoch,
            live.head_turn() + 1,
            parent=live.fold.turn,
            turn_id=text,
            messages=[text.encode()],
            at_ms=now_ms,
        )
        update = live.write(dict([entry]), put, now_ms)
        self.stream.publish(live, update)
        live.turn_n = update.n
        return self.seen(sid)

    def seen(self, sid: str) -> Seen:
        """The token that this copy would sign."""
        live = self.live(sid)
        claims = Claims(
            sid=sid,
            home=live.meta.home,
            standby=live.meta.standby,
            epoch=live.meta.epoch,
            turn=live.head_turn(),
            path=live.path_epochs(),
            aud="test",
            iss=self.name,
            iat=0,
            exp=1,
        )
        named = {(n, node): start for n, node, start, _ in claims.path}
        turns = [
            turn.ref
            for turn in live.fold.path()
            if turn.ref[:2] in named and turn.turn > named[turn.ref[:2]]
        ]
        return Seen(claims, frozenset(turns))

    def turns(self, sid: str) -> list[str]:
        """Every turn held, on the active path or beside it."""
        live = self.live(sid)
        entries = live.fold.path() + [e for b in live.fold.branches() for e in b.entries]
        return [message.decode() for entry in entries for message in entry.messages]

    def refs(self, sid: str) -> set[TurnRef]:
        live = self.live(sid)
        entries = live.fold.path() + [e for b in live.fold.branches() for e in b.entries]
        return {entry.ref for entry in entries}

    def sweep(self, *newcomers: str) -> None:
        after: str | None = ""
        while after is not None:
            after = self.stream.sweep_page(after, newcomers)
            self.flush()


@dataclass
class Handing:
    """A handover under way."""

    node: str
    to: str
    live: SessionCopy
    frame: Whole
    lives: int
    sent: bool = False
    adopted: bool = False


@dataclass
class Network:
    """Nodes, the links between them, and frames on their way (in order, link by link)."""

    names: Sequence[str] = ("eu", "us", "ap")
    limits: Limits = field(default_factory=lambda: replace(DEFAULT_LIMITS))
    residency: tuple[str, ...] = ()
    ttl_ms: int = 0
    now_ms: int = 1_000_000
    nodes: dict[str, Node] = field(default_factory=dict)
    cut_at: dict[frozenset[str], int] = field(default_factory=dict)
    down: dict[str, int] = field(default_factory=dict)
    ways: dict[tuple[str, str], deque[bytes]] = field(default_factory=dict)
    broken: list[tuple[str, str, str]] = field(default_factory=list)
    """(node, sender or session, why): frames that were refused, sessions that are damaged."""

    def __post_init__(self) -> None:
        for number, name in enumerate(self.names, 1):
            self.nodes[name] = Node(self, name, number << 32)

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    # --- links ---

    def up(self, a: str, b: str) -> bool:
        return frozenset((a, b)) not in self.cut_at and not {a, b} & self.down.keys()

    def beyond(self, name: str) -> set[str]:
        """Nodes that are reached over other nodes."""
        seen, way = {name}, [name]
        for at in way:
            new = [other for other in self.names if other not in seen and self.up(at, other)]
            seen.update(new)
            way += new
        return {other for other in seen - {name} if not self.up(name, other)}

    def silent_ms(self, a: str, b: str) -> int:
        since = [self.cut_at.get(frozenset((a, b))), self.down.get(b)]
        known = [at for at in since if at is not None]
        return self.now_ms - min(known) if known else 0

    def cut(self, a: str, b: str) -> None:
        """The link is gone with everything on it."""
        self.cut_at.setdefault(frozenset((a, b)), self.now_ms)
        self.ways.pop((a, b), None)
        self.ways.pop((b, a), None)

    def heal(self, a: str, b: str) -> None:
        if self.cut_at.pop(frozenset((a, b)), None) is not None and self.up(a, b):
            self.nodes[a].sweep(b)
            self.nodes[b].sweep(a)

    def heal_all(self) -> None:
        for name in list(self.down):
            self.start(name)
        for pair in list(self.cut_at):
            self.heal(*sorted(pair))

    def send(self, a: str, b: str, frame: bytes) -> None:
        if self.up(a, b) or b in self.beyond(a):
            self.ways.setdefault((a, b), deque()).append(frame)

    # --- nodes ---

    def crash(self, name: str) -> None:
        """kill -9: what was not durable is gone, and so is what was on the links."""
        self.down[name] = self.now_ms
        for other in self.names:
            self.ways.pop((name, other), None)
            self.ways.pop((other, name), None)
        self.nodes[name].rows.crash()

    def start(self, name: str) -> None:
        """Start a node that has crashed; its neighbours see its links come up."""
        if self.down.pop(name, None) is None:
            return
        node = self.nodes[name]
        node.start()
        near = [other for other in self.names if other != name and self.up(name, other)]
        node.sweep(*near)
        for other in near:
            self.nodes[other].sweep(name)

    def take_over(self, name: str, sid: str) -> bool:
        """As the daemon does: the probe fails if home cannot be reached now."""
        node = self.nodes[name]
        meta = node.shelf.meta(sid)
        if meta is None:
            return False
        done = node.stream.take_over(sid, probe_failed=not self.up(name, meta.home))
        node.flush()
        return done

    def hand_over(self, name: str, sid: str, to: str, *, answer: bool = True) -> None:
        """Home gives a session away; without `answer` the reply is lost on its way."""
        handing = self.hand_over_begins(name, sid, to)
        self.hand_over_arrives(handing)
        self.hand_over_ends(handing, answer=answer)

    def hand_over_begins(self, name: str, sid: str, to: str) -> Handing:
        """Home has sent the document; its turns wait meanwhile, its frames do not."""
        node = self.nodes[name]
        live = node.live(sid)
        frame = decode_frame(encode_frame(node.stream.handover(live, to)))
        assert isinstance(frame, Whole)
        return Handing(name, to, live, frame, node.lives)

    def hand_over_arrives(self, handing: Handing) -> None:
        """The next home takes it, if it can be reached and nothing newer is known there."""
        if self.up(handing.node, handing.to):
            handing.sent = True
            handing.adopted = self.nodes[handing.to].stream.adopt(handing.frame)
            self.nodes[handing.to].flush()

    def hand_over_ends(self, handing: Handing, *, answer: bool) -> None:
        """The answer has come, or it is known that none will."""
        node = self.nodes[handing.node]
        if node.lives != handing.lives or handing.node in self.down:
            return  # the process that had asked is gone
        if handing.sent and not answer:
            node.stream.handover_unknown(handing.live, handing.frame)
        elif handing.adopted:
            node.stream.handed_over(handing.live, handing.frame)
        node.flush()

    # --- time ---

    def deliver(self, a: str, b: str) -> bool:
        """The oldest frame from a to b arrives; False if there is none."""
        way = self.ways.get((a, b))
        if not way:
            return False
        frame = way.popleft()
        node = self.nodes[b]
        try:
            node.stream.on_frame(a, frame)
        except PeerError as error:
            self.broken.append((b, a, str(error)))
        node.flush()
        return True

    def deliver_all(self) -> int:
        count = 0
        while sum(self.deliver(*way) for way in list(self.ways)):
            count += 1
            assert count < 10_000, "frames answer each other for ever"
        return count

    def pass_time(self, ms: int) -> None:
        self.now_ms += ms
        for name, node in self.nodes.items():
            if name not in self.down:
                node.stream.tick()
                node.flush()
                if node.stream.sweep_due:
                    node.sweep()

    def settle(self) -> None:
        """Heal everything and let time pass until nothing moves any more, past a regular sweep."""
        self.heal_all()
        for _ in range(2):
            for _ in range(QUIET_ROUNDS):
                self.deliver_all()
                self.pass_time(STEP_MS)
            for node in self.nodes.values():
                node.sweep()
        self.deliver_all()

    # --- what must hold ---

    def heads(self, sid: str) -> dict[str, Meta]:
        """The heads of all who hold a copy (a stub is only where to ask first)."""
        known = {name: node.shelf.meta(sid) for name, node in self.nodes.items()}
        return {name: meta for name, meta in known.items() if meta is not None and meta.held}


def held_by_both(sid: str) -> Network:
    """A session of eu with one turn, which us holds as its standby."""
    network = Network(("eu", "us"))
    network["eu"].stream.begin(sid)
    network["eu"].commit(sid, "one")
    network.settle()
    assert network["us"].turns(sid) == ["one"]
    return network
