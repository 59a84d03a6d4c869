"""What the halves of a replica share: version vector, links, and the effects collected so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from . import frames as f
from .limits import DEFAULT_LIMITS, Limits
from .members import join
from .peer import ROUTE_HOPS_MAX, Peer
from .record import Record, RowOp

NO_WAKE_MS = 1 << 62


@dataclass(slots=True)
class Effects:
    """What the shell has to do, in this order.

    1. Append `rows` (with the version vector that they complete, empty if none), then `writes`,
       then `chains`, and flush. If the store refuses one, call `Replica.refused`, drop `frames`
       (telling `Replica.taken` their size) and go on: dropped frames heal.
    2. Only then send `frames`, each peer's in order: what leaves a node is durable there.
    3. Serve `reads` by `Replica.records_read`, `scans` by `Replica.rows_scanned`, `sums` by
       `Replica.sums_read` and `bucket_scans` by `Replica.bucket_scanned`; hand over `session`
       payloads; act on `rollbacks` and `reseeds`; cut the links in `cuts` and report `link_down`.
    4. Call `tick` at `wake_at_ms` at the latest.
    """

    rows: list[tuple[tuple[RowOp, ...], dict[int, int]]] = field(default_factory=list)
    writes: list[tuple[bytes, Record]] = field(default_factory=list)
    chains: list[tuple[str, int, int, bytes]] = field(default_factory=list)
    """(peer, its actor, hlc, chain): kept durably, given back in greetings as `head`."""
    frames: list[tuple[str, bytes]] = field(default_factory=list)
    reads: list[tuple[str, int, int, int]] = field(default_factory=list)
    """(peer, origin, after hlc, bytes_max)"""
    scans: list[tuple[str, bytes, int]] = field(default_factory=list)
    """(peer, after row key, bytes_max)"""
    sums: list[str] = field(default_factory=list)
    """Peers: tell the sums of all buckets and the vector that they were taken at."""
    bucket_scans: list[tuple[str, bytes, int]] = field(default_factory=list)
    """(peer, after row key, bytes_max)"""
    session: list[tuple[str, bytes]] = field(default_factory=list)
    rollbacks: list[tuple[str, int, int]] = field(default_factory=list)
    """(peer, own actor, hlc known there): this node lost what it had acknowledged."""
    reseeds: list[tuple[str, dict[int, int], dict[int, int]]] = field(default_factory=list)
    """(peer, its vector, its gc_floor): this node is behind what that peer has collected, or was
    removed."""
    cuts: list[tuple[str, str]] = field(default_factory=list)
    wake_at_ms: int = NO_WAKE_MS


@dataclass(slots=True)
class Neighbourhood:
    """This node among its neighbours."""

    node: str
    actor: int
    vv: dict[int, int]
    limits: Limits = DEFAULT_LIMITS
    peers: dict[str, Peer] = field(default_factory=dict)
    nodes: dict[int, str] = field(default_factory=dict)
    """actor -> node, as far as greetings told."""
    gc_floor: dict[int, int] = field(default_factory=dict)
    """What has been collected here, or at the neighbour whose snapshot this node took."""
    joins: dict[int, int] = field(default_factory=dict)
    """The gc_floor of those whose rows this node takes because it has none; empty once it holds
    what they hold. Until then rows of anybody who is behind that floor must not come in."""
    rows_vv: dict[int, int] = field(default_factory=dict)
    """What the rows held here may show beyond `vv`: the join of the vectors of those who gave
    rows, which come before the records that they are made of. Kept as durably as the rows."""
    rejoins: bool = False
    """It has given up its rows for them, and waits for them whatever happens to their links."""
    lacking: Callable[[], frozenset[int]] = frozenset
    """Buckets of keys of which this node has lost rows to damage: it sends no snapshot, and does
    not say that it has sent all of them."""
    wall_ahead_ms: int = 0
    """The wall clock in force minus the clock of `now_ms`."""
    clock_jumped_ms: int = 0
    """The machine's wall clock minus the one in force."""
    parted: dict[int, int] = field(default_factory=dict)
    """Own actors that were given up since they have two histories, and the hlc from which on
    records of the other one are wanted, be they news or not."""
    crossed: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Actor -> hlcs held when a record of it passed over them; greetings tell them."""
    effects: Effects = field(default_factory=Effects)
    _hash: bytes | None = None

    def advance(self, origin: int, hlc: int) -> None:
        """Everything of `origin` up to `hlc` is held."""
        assert hlc > self.vv.get(origin, 0), "a version vector only grows"
        self.vv[origin] = hlc
        self._hash = None

    def retreat(self, origin: int, hlc: int) -> None:
        """The store did not take what `advance` counted on."""
        self.vv[origin] = hlc
        self._hash = None

    def took_rows(self, vv: Mapping[int, int]) -> None:
        """Rows came from somebody who held `vv`."""
        self.rows_vv.update(join((self.rows_vv, vv)))

    def shown_vv(self) -> dict[int, int]:
        """A vector that covers all that the rows held here can be made of."""
        return join((self.vv, self.rows_vv))

    def restart(
        self, actor: int, floor: Mapping[int, int], vv: Mapping[int, int] | None = None
    ) -> None:
        """The store writes as another actor. It has been emptied, and what comes covers `floor`;
        or it kept its rows, and counts as holding `vv`."""
        self.actor = actor
        self.joins = {origin: hlc for origin, hlc in floor.items() if hlc}
        self.rejoins = bool(self.joins)
        self.nodes[actor] = self.node
        if vv is None:
            self.gc_floor.clear()
            self.rows_vv.clear()
        else:
            self.took_rows(self.vv)
        self.vv.clear()
        self.vv.update(vv or {})
        self._hash = None

    def vv_hash(self) -> bytes:
        if self._hash is None:
            self._hash = f.vv_hash(self.vv)
        return self._hash

    def emit(self, peer: Peer, frame: f.Frame) -> None:
        data = f.encode_frame(frame)
        peer.window_bytes += len(data)
        self.effects.frames.append((peer.node, data))

    def eager(self, peer: Peer, origin: int) -> bool:
        """Whether records of `origin` are pushed to `peer`."""
        if origin == peer.greeting.actor:
            return False
        if (chosen := peer.choice.get(origin)) is not None:
            return chosen
        return origin == self.actor or self.nodes.get(origin) not in peer.links

    def tell_links(self) -> None:
        """LINKS to each peer whose view of whom this node reaches has changed."""
        for peer in self.peers.values():
            links = f.Links(tuple(sorted(self.peers)), self._far(peer))
            if links != peer.told_links:
                peer.told_links = links
                self.emit(peer, links)

    def _far(self, asking: Peer) -> dict[str, int]:
        """Hops to nodes behind the other peers (split horizon keeps them from counting up)."""
        far: dict[str, int] = {}
        for peer in self.peers.values():
            if peer is asking:
                continue
            hops = {node: 1 + count for node, count in peer.far.items()} | dict.fromkeys(
                peer.links, 2
            )
            for node, count in hops.items():
                if count < ROUTE_HOPS_MAX and node not in (self.node, asking.node):
                    far[node] = min(count, far.get(node, count))
        return {node: far[node] for node in sorted(far) if node not in self.peers}

    def routes(self, target: str) -> list[str]:
        """Neighbours over which `target` is reached, fewest hops first."""
        if target in self.peers:
            return [target]
        hops = {
            node: 2 if target in peer.links else 1 + peer.far[target]
            for node, peer in self.peers.items()
            if target in peer.links or target in peer.far
        }
        return sorted(hops, key=lambda node: (hops[node], node))


def beyond(node: str, peers: Mapping[str, Peer]) -> set[str]:
    """Nodes without a link to `node` that one of its peers reaches."""
    seen = {far for peer in peers.values() for far in (*peer.links, *peer.far)}
    return seen - peers.keys() - {node}
