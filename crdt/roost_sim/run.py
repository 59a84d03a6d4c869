"""One run: a cluster made from a seed, clients, faults, healing, and the verdict."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

from roost_crdt import values
from roost_crdt.errors import CorruptData
from roost_crdt.limits import KIB, Limits
from roost_crdt.rows.layout import TYPE_COUNTER, TYPE_MAP, TYPE_REGISTER, TYPE_SET

from . import endpoint
from .clients import FIELDS, Keys
from .faults import Faults
from .history import History
from .hosting import WHOLE_LOG, Shell, Surroundings
from .linear import Linear
from .links import Links
from .loop import START_MS, Loop, Lost
from .network import Network
from .node import Node
from .quotas import Quotas
from .rpc import Rpc
from .sessionchecks import check_sessions, settled
from .sessions import Sessions
from .talkers import Talker
from .talks import Talks
from .trace import Trace

REGIONS = ("eu", "us", "ap", "sa", "af")
HEAL_MS = 60_000.0
QUOTAS_EVERY = 8
"""In one run of so many, nodes spend of a quota too."""
SPENDERS = 3
LINEAR_EVERY = 4
"""In one run of so many, clients use linearizable keys; the rest of the run is as without them."""
LIMITS = Limits(
    window_bytes=8 * KIB,
    frame_bytes=2 * KIB,
    reconnect_max_ms=1_500,
    report_ms=400,
    report_idle_ms=5_000,
    gc_pause_ms=500,
    gc_grace_ms=300,
)

KINDS = {
    "kill": 3.0,
    "power cut": 2.0,
    "crash between effects": 4.0,
    "sync fails": 1.0,
    "clean restart": 1.0,
    "partition": 3.0,
    "isolate": 2.0,
    "one-way cut": 2.0,
    "link reset": 4.0,
    "swizzle": 0.7,
    "clock jump": 2.0,
    "pause": 2.0,
    "lying disk": 0.7,
    "old copy restored": 0.7,
    "store cloned": 0.3,
    "node joins": 0.5,
    "drain": 1.0,
    "two first contacts": 1.0,
    "home paused": 1.0,
    "home cut from standby": 1.0,
    "drain in trouble": 1.0,
    "takeover in trouble": 1.0,
    "member removed": 0.5,
    "member away": 0.7,
    "member leaves": 0.5,
    "rows lost": 1.0,
}
MEMBERS_REMOVED = {"member removed", "member away"}
HISTORY_LOST = ("lying disk", "old copy restored", "store cloned")
"""Where rows get lost as well, nobody may be left who holds them."""


@dataclass(slots=True)
class Plan:
    """What a seed decides before anything happens."""

    topology: str
    nodes: int
    duration_ms: float
    fault_every_ms: float
    clients: int
    talkers: int
    pause_ms: float
    kinds: dict[str, float]

    @classmethod
    def of(cls, random: Random) -> Plan:
        chosen = random.sample(sorted(KINDS), random.randint(4, len(KINDS)))
        if "rows lost" in chosen:
            chosen = [kind for kind in chosen if kind not in HISTORY_LOST]
        return cls(
            topology=random.choice(("line", "ring", "star", "mesh", "random")),
            nodes=random.randint(2, 5),
            duration_ms=random.choice((4_000.0, 8_000.0, 14_000.0)),
            fault_every_ms=random.choice((250.0, 600.0, 1_500.0)),
            clients=random.randint(1, 4),
            talkers=random.randint(0, 4),
            pause_ms=random.choice((15.0, 60.0, 150.0)),
            kinds={kind: KINDS[kind] for kind in chosen},
        )


@dataclass(slots=True)
class Verdict:
    """What came of a run."""

    seed: int
    problems: list[str]
    virtual_ms: float
    heal_ms: float
    events: int
    fingerprint: str
    reached: dict[str, int] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)


def edges_of(topology: str, names: list[str], random: Random) -> list[tuple[str, str]]:
    """Which nodes are neighbours; always connected."""
    pairs = list(pairwise(names))
    if topology == "ring" and len(names) > 2:
        return [*pairs, (names[0], names[-1])]
    if topology == "star":
        return [(names[0], other) for other in names[1:]]
    if topology == "mesh":
        return [(a, b) for at, a in enumerate(names) for b in names[at + 1 :]]
    if topology == "random":
        tree = [(random.choice(names[:at]), names[at]) for at in range(1, len(names))]
        extra = [tuple(sorted(random.sample(names, 2), key=names.index)) for _ in names]
        return list(dict.fromkeys([*tree, *((a, b) for a, b in extra)]))
    return pairs


class Run:
    """A cluster under faults."""

    def __init__(self, seed: int, *, keep_trace: bool = False) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.plan = Plan.of(self.random)
        self.trace = Trace(keep=keep_trace)
        self.problems: list[str] = []
        loop = Loop(self._on_crash)
        network = Network(loop, self.random, self._links_of)
        self.world = Surroundings(loop, network, self.random, self.trace, LIMITS)
        if self.plan.kinds.keys() & MEMBERS_REMOVED:
            self.world.segments_kept = WHOLE_LOG
        self.history = History()
        self.nodes: dict[str, Node] = {}
        self.left: dict[str, Node] = {}
        """Those that are gone for good."""
        self.edges: list[tuple[str, str]] = []
        self.keys = Keys(self.history, self.random)
        self.talks = Talks()
        self.quotas = Quotas(seed) if seed % QUOTAS_EVERY == QUOTAS_EVERY - 1 else None
        self.linear = Linear(self.world, self.nodes, seed) if seed % LINEAR_EVERY == 0 else None
        self.rpcs: dict[str, Rpc] = {}
        self._busy = True

    # --- the cluster

    def _build(self) -> None:
        plan = self.plan
        names: list[str] = [*REGIONS[: plan.nodes]]
        for name in names:
            self.nodes[name] = self._node(name)
        for a, b in edges_of(plan.topology, names, self.random):
            self._link(a, b)
        for a in names:
            for b in names:
                if a != b and (a, b) not in self.world.network.delays_ms:
                    self.world.network.link(a, b, 40.0)

    def _node(self, name: str) -> Node:
        node = Node(self.world, name, name)
        node.attach = self._attach
        node.rewrote = self.keys.rewrote
        return node

    def _attach(self, node: Node) -> Shell:
        rpc = self.rpcs[node.name] = Rpc(node, self.rpcs.get)
        return Sessions(node, rpc)

    def _link(self, a: str, b: str) -> None:
        self.edges.append((a, b))
        self.world.network.link(a, b, self.random.choice((1.0, 5.0, 20.0, 80.0)))
        both = self.random.random() < 0.5
        self.nodes[a].neighbours[b] = True
        self.nodes[b].neighbours[a] = both
        for node, peer in ((self.nodes[a], b), (self.nodes[b], a)):
            if node.life is not None:
                node.links.dial_later(peer, first=True)

    def _links_of(self, name: str) -> Links:
        return (self.nodes.get(name) or self.left[name]).links

    def join(self, name: str, neighbours: Iterable[str]) -> Node:
        node = self.nodes[name] = self._node(name)
        for other in self.nodes:
            if other != name:
                self.world.network.link(name, other, 30.0)
        for other in neighbours:
            self._link(name, other)
        return node

    def may_leave(self, name: str) -> bool:
        """Whether the others reach each other without it, no session or grant lives on it, and
        nobody reseeds for it (that one would wait until somebody removes it from the members)."""
        others = self.nodes.keys() - {name}
        begun = [self.nodes[other] for other in others if hasattr(self.nodes[other], "membership")]
        needed = any(node.membership.reseeding.waits_for == name for node in begun)
        tied = self.plan.talkers or self.talks.sids or self.quotas is not None or needed
        if len(others) < 2 or tied or name not in self.nodes:
            return False
        seen, new = set[str](), {min(others)}
        while new:
            seen |= new
            new = {b for edge in self.edges for a, b in (edge, edge[::-1]) if a in new}
            new = (new & others) - seen
        return seen == others

    def leave(self, name: str) -> None:
        self.left[name] = self.nodes.pop(name)

    def start(self, name: str) -> None:
        """Start a node that is down; a store that refuses to open is a finding."""
        node = self.nodes.get(name)
        if node is None or node.life is not None:
            return
        try:
            node.start()
        except CorruptData as error:
            self.problems.append(f"I1: {name} does not start unaided: {error}")
        except OSError as error:
            node.say(f"does not start: {error}")
            self.world.loop.after(200.0, None, self.start, name)

    def _on_crash(self, name: str) -> None:
        if name == endpoint.NAME:
            assert self.linear is not None
            self.linear.endpoint.crashed()
            return
        node = self.nodes[name]
        node.crash()
        self.world.loop.after(self.random.uniform(20, 3_000), None, self.start, name)

    # --- clients

    async def _client(self, number: int) -> None:
        random, loop = self.random, self.world.loop
        home = random.choice(sorted(self.nodes))
        while self._busy:
            await loop.sleep(self.plan.pause_ms * 2 * random.random(), None)
            if random.random() < 0.05:
                home = random.choice(sorted(self.nodes))
            node = self.nodes.get(home)
            if node is None or node.life is None or loop.now_ms < node.life.paused_until_ms:
                continue
            if not node.may_write_before_greeting and not node.greeted:
                continue
            if not node.admits():
                self.trace.count("rule", "own writes refused by a reseed")
                continue
            if node.replica.clock_refused():
                self.trace.count("rule", "own writes refused by clock")
                continue
            kind = random.choice((b"r", b"r", b"c", b"c", b"s", b"s", b"m", b"m", b"x", b"y"))
            key = kind + b"%d" % random.randint(1, 3)
            _, future = self.keys.perform(node, key)
            try:
                await future
            except Lost:
                self.trace.count("op", "unknown")

    # --- the run

    def begin(self) -> None:
        """Nodes start, clients work."""
        self._build()
        loop, plan = self.world.loop, self.plan
        self.trace.say(
            0,
            "--",
            f"seed {self.seed}: {plan.topology} of {plan.nodes}, "
            f"{plan.duration_ms / 1000:.0f} s, a fault each {plan.fault_every_ms:.0f} ms",
        )
        for name in sorted(self.nodes):
            loop.after(self.random.random() * 100, None, self.start, name)
        for number in range(plan.clients):
            loop.spawn(self._client(number), None)
        for number in range(plan.talkers):
            sid = f"s{number // 2}"
            talker = Talker(self.talks, self.nodes, loop, self.random, sid)
            loop.spawn(talker.run(lambda: self._busy, plan.pause_ms), None)
        if self.quotas is not None:
            for _ in range(SPENDERS):
                spends = self.quotas.client(self.nodes, lambda: self._busy, plan.pause_ms)
                loop.spawn(spends, None)
        if self.linear is not None:
            self.linear.begin(lambda: self._busy, plan.pause_ms)

    def run(self) -> Verdict:
        self.begin()
        loop, plan = self.world.loop, self.plan
        faults = Faults(self, self.random, plan.kinds)
        faults.run(plan.duration_ms, plan.fault_every_ms)
        loop.run_until(plan.duration_ms)
        self._busy = False
        self.trace.say(loop.now_ms, "--", "heal")
        faults.heal()
        if self.linear is not None:
            self.linear.endpoint.heal()
        heal_ms = self._quiesce(loop.now_ms)
        if not self.problems:
            self._check()
        if self.linear is not None:
            self.problems += self.linear.finish()
        for node in (*self.nodes.values(), *self.left.values()):
            self.problems += node.problems
            if node.life is not None:
                node.life.end()
        return Verdict(
            self.seed,
            self.problems,
            loop.now_ms,
            heal_ms,
            loop.events,
            self.trace.fingerprint(),
            dict(self.trace.reached),
            self.trace.lines,
        )

    def _quiesce(self, healed_ms: float) -> float:
        loop = self.world.loop
        while loop.now_ms < healed_ms + HEAL_MS:
            loop.run_until(loop.now_ms + 200.0)
            if self.converged():
                took_ms = loop.now_ms - healed_ms
                self.trace.say(loop.now_ms, "--", f"converged after {took_ms:.0f} ms")
                return took_ms
        self.problems.append(f"I3: not converged {HEAL_MS / 1000:.0f} s after healing")
        self.problems += check_sessions(self.nodes, self.talks)
        for name in sorted(self.nodes):
            self.trace.say(loop.now_ms, name, self._describe(self.nodes[name]))
        return HEAL_MS

    def _describe(self, node: Node) -> str:
        if node.life is None:
            return "is down"
        vv = {f"{actor & 0xFFFF:04x}": hlc for actor, hlc in sorted(node.replica.vv.items())}
        modes = {peer: str(node.replica.mode(peer)) for peer in sorted(node.replica.peers)}
        return f"vv {vv} links {modes} reseeds {node.replica.reseeds}"

    def converged(self) -> bool:
        """Whether every node holds the same and every session is settled."""
        states = []
        for node in self.nodes.values():
            if node.life is None or node.store.dirty:
                return False
            if dict(node.replica.vv) != node.store.vv or node.membership.reseeding.stage:
                return False
            if not self._made_good(node):
                return False
            states.append({actor: hlc for actor, hlc in node.store.vv.items() if hlc})
        if any(state != states[0] for state in states):
            return False
        if self._repairs() and len({node.store.digest()[0] for node in self.nodes.values()}) > 1:
            return False
        return settled(self.nodes, self.talks.sids)

    def _made_good(self, node: Node) -> bool:
        """Whether a node whose actor had two histories has heard of the other from all neighbours
        and written it again."""
        if not node.membership.forking.parted:
            return True
        linked = all(peer in node.replica.peers for peer in node.neighbours if peer in self.nodes)
        asked = not any(peer.pulls for peer in node.replica.peers.values())
        return linked and asked and not node.membership.forking.pending

    def _repairs(self) -> bool:
        """Whether rows may differ at equal vectors: some got lost, or a history was lost."""
        return bool(
            self.trace.reached["fault:rows lost"]
            or any(node.excused_rollbacks for node in self.nodes.values())
        )

    # --- what must hold

    def _check(self) -> None:
        nodes = [self.nodes[name] for name in sorted(self.nodes)]
        for node in nodes:
            if node.repaired and not self._repairs():
                self.problems.append(f"I3: {node.name} had to fetch {node.repaired} buckets again")
        first = nodes[0]
        for node in nodes[1:]:
            now_ms = START_MS + int(self.world.loop.now_ms)
            if node.store.root(now_ms) != first.store.root(now_ms):
                self.problems.append(f"I3: digests of {first.name} and {node.name} differ")
        for key in sorted(self.history.by_key):
            shown = [(node.name, self._shown(node, key)) for node in nodes]
            for name, value in shown[1:]:
                if value != shown[0][1]:
                    self.problems.append(
                        f"I3: {key.decode()} is {shown[0][1]!r} at {shown[0][0]}, "
                        f"{value!r} at {name}"
                    )
            self._check_key(first, key)
        self.problems += check_sessions(self.nodes, self.talks)
        if self.quotas is not None:
            self.problems += self.quotas.problems

    def _shown(self, node: Node, key: bytes) -> object:
        held = node.store.key_rows(key)
        rows, now_ms = held.rows, START_MS + int(self.world.loop.now_ms)
        if held.type == TYPE_REGISTER:
            return values.register_value(rows, now_ms)
        if held.type == TYPE_COUNTER:
            return values.counter_value(rows, now_ms)
        if held.type == TYPE_SET:
            return values.set_members(rows, now_ms) or None
        if held.type == TYPE_MAP:
            return values.map_fields(rows, now_ms) or None
        return None

    def _check_key(self, node: Node, key: bytes) -> None:
        shown, now_ms = self._shown(node, key), START_MS + int(self.world.loop.now_ms)
        kind = key[:1]
        if kind in (b"r", b"x"):
            found = [self.history.check_latest(key, b"", shown, now_ms)]  # type: ignore[arg-type]
        elif kind in (b"c", b"y"):
            found = [self.history.check_counter(key, shown or 0, now_ms)]  # type: ignore[arg-type]
        elif kind == b"s":
            found = [self.history.check_set(key, shown or ())]  # type: ignore[arg-type]
        else:
            fields: dict[bytes, bytes] = shown or {}  # type: ignore[assignment]
            found = [self.history.check_latest(key, name, fields.get(name)) for name in FIELDS]
        self.problems += [f"I1 I4 I10: {text}" for text in found if text]
