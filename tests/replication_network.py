"""A network of replicas in memory: stores, links with delay, loss and duplication, virtual time."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

from roost_crdt.errors import Full, PeerError
from roost_crdt.frames import decode_greeting
from roost_crdt.hlc import Hlc
from roost_crdt.limits import DEFAULT_LIMITS, Limits
from roost_crdt.record import Record, RowOp, encode_record
from roost_crdt.replica import Replica
from roost_crdt.rows import StampReused, decode_row, encode_row, join_row, register
from roost_crdt.rows.layout import TYPE_REGISTER, row_key, split_row_key

START_MS = 1_790_000_000_000


class MemoryStore:
    """What replication needs of a store, with the store's rules and none of its durability."""

    def __init__(self, actor: int) -> None:
        self.actor = actor
        self.vv: dict[int, int] = {}
        self.rows: dict[bytes, tuple[int, bytes]] = {}
        self.log: dict[int, list[tuple[int, bytes]]] = {}
        self.clock = Hlc()
        self.flushes = 0
        self.full = False

    def put(self, key: bytes, value: bytes, now_ms: int) -> tuple[Record, bytes]:
        hlc = self.clock.tick(now_ms)
        ops = []
        for part, row in register.put({}, value, (hlc, self.actor)).items():
            body = encode_row(TYPE_REGISTER, part, row)
            ops.append(RowOp(row_key(key, part), TYPE_REGISTER, body))
        record = Record(self.actor, hlc, self.vv.get(self.actor, 0), tuple(ops))
        raw = encode_record(record)
        assert self.accept(raw, record)
        return record, raw

    def accept(self, raw: bytes, record: Record) -> bool:
        held = self.vv.get(record.actor, 0)
        if not record.prev_hlc <= held < record.hlc:
            return False
        if self.full and record.actor != self.actor:
            raise Full("no room")
        self._join(record.ops)
        self.clock.observe(record.hlc)
        self.vv[record.actor] = record.hlc
        self.log.setdefault(record.actor, []).append((record.hlc, raw))
        return True

    def accept_rows(self, ops: Sequence[RowOp], covered: Mapping[int, int]) -> None:
        if self.full:
            raise Full("no room")
        self._join(ops)
        for actor, hlc in covered.items():
            if hlc > self.vv.get(actor, 0):
                self.vv[actor] = hlc
                self.log.pop(actor, None)

    def _join(self, ops: Sequence[RowOp]) -> None:
        for op in ops:
            part = split_row_key(op.row_key)[1]
            row = decode_row(op.type, part, op.body)
            if op.row_key in self.rows:
                type_code, body = self.rows[op.row_key]
                if type_code != op.type:
                    continue  # quarantined
                try:
                    row = join_row(op.type, part, decode_row(op.type, part, body), row)
                except StampReused as error:
                    row = error.kept
            self.rows[op.row_key] = (op.type, encode_row(op.type, part, row))

    def forget_log(self) -> None:
        self.log.clear()

    def records_after(self, origin: int, hlc: int, bytes_max: int) -> list[bytes] | None:
        entries = self.log.get(origin, [])
        if self.vv.get(origin, 0) > hlc and not any(at > hlc for at, _ in entries):
            return None
        raws, size = [], 0
        for at, raw in entries:
            if at > hlc and (not raws or size + len(raw) <= bytes_max):
                raws.append(raw)
                size += len(raw)
        return raws

    def scan_rows(self, after: bytes, bytes_max: int) -> list[RowOp]:
        ops, size = [], 0
        for key in sorted(self.rows):
            if key > after and size < bytes_max:
                ops.append(RowOp(key, *self.rows[key]))
                size += len(key) + len(ops[-1].body)
        return ops

    def flush(self) -> None:
        self.flushes += 1


@dataclass
class Pipe:
    """One direction of a live link: frames in order, each with its time of arrival."""

    delay_ms: int
    frames: deque[tuple[int, bytes]] = field(default_factory=deque)


class Network:
    """Replicas joined by links that a test cuts and heals."""

    def __init__(self, nodes: Sequence[str], *, limits: Limits = DEFAULT_LIMITS, seed: int = 0):
        self.random = Random(seed)
        self.limits = limits
        self.now_ms = START_MS
        self.names = list(nodes)
        self.stores = {name: MemoryStore(100 + at) for at, name in enumerate(nodes)}
        self.replicas = {name: self._replica(name) for name in nodes}
        self.pipes: dict[tuple[str, str], Pipe] = {}
        self.clocks_ms = dict.fromkeys(nodes, 0)
        self.duplicate_share = 0.0
        self.stopped: set[str] = set()
        self.ended = (0, 0)
        self.cuts: list[tuple[str, str, str]] = []
        self.refusals: list[str] = []
        self.rollbacks: list[tuple[str, str, int, int]] = []
        self.frames_sent: dict[str, int] = dict.fromkeys(nodes, 0)
        self.sessions: list[tuple[str, str, bytes]] = []

    def _replica(self, name: str) -> Replica:
        store = self.stores[name]
        return Replica(
            node=name,
            region=f"region-{name}",
            cluster="test",
            store_id=name.encode().ljust(16, b"."),
            actor=store.actor,
            vv=store.vv,
            limits=self.limits,
        )

    def restart(self, name: str) -> None:
        for other in self.names:
            self.cut(name, other)
        self.replicas[name] = self._replica(name)

    # -- links

    def link(self, a: str, b: str, *, delay_ms: int = 5) -> bool:
        if (a, b) in self.pipes:
            return True
        greetings = {name: decode_greeting(self.replicas[name].greeting()) for name in (a, b)}
        up: list[str] = []
        for name, other in ((a, b), (b, a)):
            try:
                self.replicas[name].link_up(other, greetings[other], self.now_ms)
                up.append(name)
            except PeerError as error:
                self.refusals.append(str(error))
        if len(up) < 2:
            for name in up:
                self.replicas[name].link_down(b if name == a else a, self.now_ms)
            for name in (a, b):
                self._collect(name)
            return False
        self.pipes[a, b] = Pipe(delay_ms)
        self.pipes[b, a] = Pipe(delay_ms)
        for name in (a, b):
            self.replicas[name].tick(self.now_ms)
            self._collect(name)
        return True

    def cut(self, a: str, b: str, reason: str = "") -> None:
        if self.pipes.pop((a, b), None) is None:
            return
        del self.pipes[b, a]
        for name, other in ((a, b), (b, a)):
            peer = self.replicas[name].peers[other]
            self.ended = (self.ended[0] + peer.received, self.ended[1] + peer.duplicates)
            self.replicas[name].link_down(other, self.now_ms)
        if reason:
            self.cuts.append((a, b, reason))

    # -- events

    def put(self, name: str, key: bytes, value: bytes) -> Record:
        store = self.stores[name]
        record, raw = store.put(key, value, self.now_ms + self.clocks_ms[name])
        self.replicas[name].committed(record, raw)
        self._collect(name)
        return record

    def _collect(self, name: str) -> None:
        replica, store = self.replicas[name], self.stores[name]
        for _ in range(1_000):
            replica.wall_ahead_ms = self.clocks_ms[name]
            effects = replica.take_effects()
            refused: set[int] = set()
            for ops, covered in effects.rows:
                try:
                    store.accept_rows(ops, covered)
                except Full:
                    refused |= covered.keys() or {store.actor}
            for raw, record in effects.writes:
                with suppress(Full):
                    store.accept(raw, record)
                if store.vv.get(record.actor, 0) < record.hlc:
                    refused.add(record.actor)
            for origin in refused:
                replica.refused(origin, store.vv.get(origin, 0), self.now_ms)
            for peer, data in effects.frames:
                if refused:
                    replica.taken(peer, len(data))
                else:
                    self._send(name, peer, data)
            for peer, origin, after, bytes_max in effects.reads:
                raws = store.records_after(origin, after, bytes_max)
                replica.records_read(peer, origin, raws, self.now_ms)
            for peer, row, bytes_max in effects.scans:
                rows = store.scan_rows(row, bytes_max)
                replica.rows_scanned(peer, row, rows, self.now_ms)
            self.sessions += [(peer, name, payload) for peer, payload in effects.session]
            self.rollbacks += [(name, *rollback) for rollback in effects.rollbacks]
            for peer, reason in effects.cuts:
                self.cut(name, peer, reason)
            if not (effects.reads or effects.scans or effects.cuts or refused):
                return
        raise AssertionError(f"{name} never comes to rest")

    def _send(self, name: str, peer: str, data: bytes) -> None:
        pipe = self.pipes.get((name, peer))
        if pipe is None:
            return
        self.frames_sent[name] += 1
        at_ms = self.now_ms + pipe.delay_ms
        pipe.frames.append((at_ms, data))
        if data[1] == 1 and self.random.random() < self.duplicate_share:
            pipe.frames.append((at_ms, data))

    def _deliver(self, source: str, target: str) -> bool:
        pipe = self.pipes.get((source, target))
        if pipe is None or not pipe.frames or pipe.frames[0][0] > self.now_ms:
            return False
        if source in self.stopped or target in self.stopped:
            return False
        _, data = pipe.frames.popleft()
        self.replicas[source].taken(target, len(data))
        try:
            self.replicas[target].receive(source, data, self.now_ms)
        except PeerError as error:
            self.cut(target, source, str(error))
        self._collect(target)
        self._collect(source)
        return True

    def run(self, duration_ms: int, *, step_ms: int = 5) -> None:
        """Virtual time passes; links take turns in a random order."""
        end_ms = self.now_ms + duration_ms
        while self.now_ms < end_ms:
            self.now_ms += step_ms
            links = sorted(self.pipes)
            self.random.shuffle(links)
            for source, target in links:
                while self._deliver(source, target):
                    pass
            for name in self.names:
                if name not in self.stopped:
                    self.replicas[name].wall_ahead_ms = self.clocks_ms[name]
                    self.replicas[name].tick(self.now_ms)
                    self._collect(name)

    # -- what a test asks

    def converged(self) -> bool:
        first, *others = (self.stores[name] for name in self.names)
        return all(
            store.vv == first.vv and store.rows == first.rows and self.replicas[name].vv == store.vv
            for name, store in zip(self.names[1:], others, strict=True)
        )

    def run_until_converged(self, within_ms: int) -> int:
        start_ms = self.now_ms
        while not self.converged():
            assert self.now_ms - start_ms < within_ms, self.describe()
            self.run(20)
        return self.now_ms - start_ms

    def describe(self) -> str:
        lines = [f"not converged at {self.now_ms - START_MS} ms"]
        for name in self.names:
            replica = self.replicas[name]
            modes = {peer: str(replica.mode(peer)) for peer in replica.peers}
            lines.append(f"{name}: vv {dict(sorted(replica.vv.items()))} {modes}")
        return "\n".join(lines + [str(cut) for cut in self.cuts[-5:]])

    def copies(self) -> tuple[int, int]:
        """Records taken and duplicates, over all links that are or were up."""
        peers = [p for replica in self.replicas.values() for p in replica.peers.values()]
        received, duplicates = self.ended
        return (
            received + sum(p.received for p in peers),
            duplicates + sum(p.duplicates for p in peers),
        )


def edges_of(topology: str, nodes: Sequence[str]) -> list[tuple[str, str]]:
    pairs = list(pairwise(nodes))
    if topology == "ring":
        return [*pairs, (nodes[-1], nodes[0])] if len(nodes) > 2 else pairs
    if topology == "star":
        return [(nodes[0], other) for other in nodes[1:]]
    if topology == "mesh":
        return [(a, b) for at, a in enumerate(nodes) for b in nodes[at + 1 :]]
    assert topology == "line"
    return pairs


def network(topology: str, count: int, *, limits: Limits | None = None, seed: int = 0) -> Network:
    """`count` nodes n0, n1... linked to each other, after their greetings."""
    names = [f"n{at}" for at in range(count)]
    net = Network(names, limits=limits or Limits(), seed=seed)
    for edge in edges_of(topology, names):
        assert net.link(*edge)
    net.run(400)
    return net
