"""Replication of global state between neighbours: a state machine without I/O.

Events go in (`link_up`, `receive`, `committed`, `tick`, ... each with `now_ms`), one ordered
`Effects` comes out of `take_effects`. The theory:

- A record extends a version vector iff `prev_hlc <= VV[actor] < hlc`. Only such a record is
  taken, so the vector is true: everything up to it is held.
- Each record travels each link about once. A pair (peer, origin) is eager or lazy. Eager by
  default are this node's own records and origins that the peer has no live link to; a duplicate
  makes its sender lazy (PRUNE), a gap or an announcement that stays ahead makes one eager (WANT).
- What a peer is known to hold and what it was sent is one cursor per origin. A cursor that is
  wrong costs a duplicate or a WANT, never a record: lost frames, refused writes and changed
  topologies all heal by announcements and by the vector's hash in the heartbeats.
- Nothing queues here: a peer whose window is full gets the rest from the log later (Probe).
- A record further ahead than `clock_offset_max_ms` waits where it is (ClockSkew): taking it would
  spread a stamp that nobody can outwrite, skipping it would make the vector a lie.

`now_ms` only has to advance evenly; `wall_ahead_ms` is added where a record's clock is judged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from . import frames as f
from .antientropy import AntiEntropy
from .errors import PeerError, TooLarge
from .inflow import Inflow
from .limits import DEFAULT_LIMITS, Limits
from .members import VersionVector, covers
from .neighbourhood import Effects, Neighbourhood
from .outflow import Outflow
from .peer import LinkState, Mode, Peer
from .record import Record, RowOp
from .wallclock import ahead_of_median

__all__ = ["Effects", "Replica"]


class Replica:
    """The replication state of one node. `vv` is copied; the store keeps its own, equal one."""

    def __init__(
        self,
        *,
        node: str,
        region: str,
        cluster: str,
        store_id: bytes,
        actor: int,
        vv: Mapping[int, int],
        limits: Limits = DEFAULT_LIMITS,
        gc_floor: Mapping[int, int] | None = None,
        policy_hashes: Mapping[str, str] | None = None,
        public_keys: Mapping[str, bytes] | None = None,
        public: str = "",
    ) -> None:
        self.node = node
        self.region = region
        self.cluster = cluster
        self.store_id = store_id
        self.limits = limits
        self.roster_hash = b""
        self.removed: frozenset[int] = frozenset()
        """Actors that were removed from the roster: whoever writes as one is refused."""
        self.reseeding = False
        """This node is giving up its rows: no link until `reseeded`."""
        self.rewrites = False
        """It holds rows that no vector covers yet, and tells no digest."""
        self.policy_hashes = dict(policy_hashes or {})
        self.public_keys = dict(public_keys or {})
        self.public = public
        self.chain: tuple[int, bytes] | None = None
        """Own actor's chain as of a durable hlc; greetings and heartbeats carry it."""
        self.digest = self.digest_vv_hash = b""
        self.reseeds: dict[str, str] = {}
        """Neighbours refused because one side is behind what the other collected, with why."""
        self._near = Neighbourhood(
            node, actor, dict(vv), limits, nodes={actor: node}, gc_floor=dict(gc_floor or {})
        )
        self.rows_vv = self._near.rows_vv  # one dict, which only grows
        self._outflow = Outflow(self._near)
        self._inflow = Inflow(self._near, self._outflow)
        self.antientropy = AntiEntropy(self._near)
        self._ticked_ms: int | None = None

    # -- what shells and status pages read

    @property
    def actor(self) -> int:
        return self._near.actor

    @property
    def vv(self) -> Mapping[int, int]:
        return self._near.vv

    @property
    def nodes(self) -> Mapping[int, str]:
        """Actor -> node, of all that have greeted."""
        return self._near.nodes

    @property
    def peers(self) -> Mapping[str, Peer]:
        return self._near.peers

    @property
    def gc_floor(self) -> Mapping[int, int]:
        """What has been collected here, or at the neighbour whose snapshot this node took."""
        return self._near.gc_floor

    @gc_floor.setter
    def gc_floor(self, floor: Mapping[int, int]) -> None:
        self._near.gc_floor = dict(floor)
        self.antientropy.forget()

    @property
    def wall_ahead_ms(self) -> int:
        """The wall clock minus the clock of `now_ms`; set by a shell that passes another one."""
        return self._near.wall_ahead_ms

    @wall_ahead_ms.setter
    def wall_ahead_ms(self, value: int) -> None:
        self._near.wall_ahead_ms = value

    def clock_jumped(self, jumped_ms: int) -> None:
        """The machine's wall clock is this far from the one in force, which neighbours confirm."""
        self._near.clock_jumped_ms = jumped_ms

    def greeting(self, head: tuple[int, int, bytes] | None = None) -> bytes:
        """The first message to a neighbour; `head` is what is durably known of its actor."""
        return f.encode_greeting(
            f.Greeting(
                versions=f.PROTOCOL_VERSIONS,
                cluster=self.cluster,
                node=self.node,
                region=self.region,
                store_id=self.store_id,
                actor=self.actor,
                vv=dict(self.vv),
                gc_floor=dict(self.gc_floor),
                roster_hash=self.roster_hash,
                crossed=self._near.crossed,
                removed=tuple(sorted(self.removed)[-f.REMOVED_MAX :]),
                policy_hashes=self.policy_hashes,
                links=tuple(sorted(self.peers)),
                public_keys=self.public_keys,
                public=self.public,
                head=head,
                chain=self.chain,
            )
        )

    def mode(self, node: str) -> Mode:
        """Of a live link, or of a neighbour that was refused; else Probe."""
        if self.reseeding or node in self.reseeds:
            return Mode.RESEED
        return self.peers[node].mode if node in self.peers else Mode.PROBE

    def lag_ms(self, now_ms: int) -> int:
        """Now minus the last moment at which this node held all that its neighbours reported."""
        return self._inflow.lag_ms(now_ms)

    def peer_lag_ms(self, node: str, now_ms: int) -> int:
        """The same of one neighbour's reports."""
        return self._inflow.peer_lag_ms(self.peers[node], now_ms)

    def converged(self, node: str) -> bool:
        """Whether both sides last told equal digests at equal version vectors."""
        peer = self.peers[node]
        mine = self._near.vv_hash(), self.digest, self.digest_vv_hash
        return (peer.vv_hash, peer.digest, peer.digest_vv_hash) == mine

    def clock_refused(self) -> bool:
        """Neighbours would wait, or do, until this node's stamps are due: it must not write."""
        if (self.clock_offset_ms() or 0) > self.limits.clock_offset_max_ms:
            return True
        told = sum(1 for peer in self.peers.values() if peer.told_ahead_ms > 0)
        return told * 2 > len(self.peers)

    def clock_offset_ms(self) -> int | None:
        """This wall clock minus the median of the neighbours'; None without neighbours."""
        return ahead_of_median(self.wall_ahead_ms, self.neighbours_clocks())

    def neighbours_clocks(self) -> list[int]:
        """Their machines' wall clocks minus the clock of `now_ms`."""
        return [p.clock_ahead_ms for p in self.peers.values() if p.clock_ahead_ms is not None]

    def routes(self, target: str) -> list[str]:
        """Neighbours over which `target` is reached, fewest hops first."""
        return self._near.routes(target)

    # -- links

    def link_up(self, node: str, greeting: f.Greeting, now_ms: int) -> None:
        """A link to `node`, which greeted so. PeerError: refuse it, nothing has changed."""
        assert node not in self.peers, f"link to {node} is already up"
        self._check_greeting(node, greeting)
        self.reseeds.pop(node, None)
        peer = Peer(node, greeting, self.limits, up_ms=now_ms, heard_ms=now_ms)
        peer.links = frozenset(greeting.links)
        peer.heartbeat_due_ms = now_ms
        peer.complete_ms = now_ms
        peer.cursor = dict(greeting.vv)
        peer.announce.update(self.vv)
        peer.warnings = tuple(
            f"policy {name!r} differs from the neighbour's"
            for name, policy_hash in sorted(self.policy_hashes.items())
            if greeting.policy_hashes.get(name, policy_hash) != policy_hash
        )
        self._near.peers[node] = peer
        self._near.nodes[greeting.actor] = node
        self._told_chain(peer, greeting.chain)
        self.antientropy.link_up(peer, now_ms)
        self._inflow.link_up(peer, now_ms)
        self._near.tell_links()

    def _check_greeting(self, node: str, greeting: f.Greeting) -> None:
        f.check_identity(greeting, node=self.node, cluster=self.cluster)
        if greeting.node != node:
            raise PeerError(f"{node} greets as {greeting.node!r}")
        held = self.vv.get(self.actor, 0)
        known = greeting.vv.get(self.actor, 0)
        if greeting.head is not None and greeting.head[0] == self.actor:
            known = max(known, greeting.head[1])
        if greeting.actor == self.actor or known > held:
            self._near.effects.rollbacks.append((node, self.actor, known))
            raise PeerError(
                f"Rollback: {node} knows actor {self.actor:#x} up to {known}, {self.node} holds "
                f"{held}: its store was rolled back or cloned; it has to take a new actor"
            )
        if greeting.actor == 0:
            raise PeerError(f"{node} greets without an actor")
        for other in self.peers.values():
            if other.greeting.actor == greeting.actor:
                text = f"{node} and {other.node} both write as {greeting.actor:#x}"
                raise PeerError(text, f.SHARED_ACTOR)
        self._check_floors(node, greeting)

    def _check_floors(self, node: str, greeting: f.Greeting) -> None:
        """Merge only if neither side was removed or is behind what the other has collected."""
        if self.reseeding:
            raise PeerError(f"Reseed: {self.node} is giving up its rows; try again")
        self._inflow.check_joining(node, greeting)
        reseeds, text = self._inflow.outdated(greeting, self.removed)
        if not text:
            return
        if len(self.reseeds) < f.LINKS_MAX:
            self.reseeds[node] = text
        if reseeds:
            self._near.effects.reseeds.append((node, dict(greeting.vv), dict(greeting.gc_floor)))
        raise PeerError(text)

    def give_up(self) -> None:
        """Begin a reseed: all links are cut, and refused until `reseeded`."""
        self.reseeding = True
        for node in self.peers:
            self._near.effects.cuts.append((node, "Reseed: this node gives up its rows"))

    def reseeded(self, actor: int, floor: VersionVector, vv: VersionVector | None = None) -> None:
        """The store writes as `actor`. It is empty: take everything from neighbours that are not
        behind `floor`, which was collected where the rows come from; or it goes on from `vv`."""
        assert not self.peers, "links were cut"
        self._near.restart(actor, floor, vv)
        self.chain = None
        self._inflow = Inflow(self._near, self._outflow)
        self.reseeding = False
        self.reseeds.clear()

    @property
    def takes_rows(self) -> bool:
        """Whether rows without a vector are on their way here: nothing may be collected then."""
        snapshots = [peer for peer in self.peers.values() if peer.snapshot_in is not None]
        return bool(snapshots or self._near.joins) or self.antientropy.fetching

    def rejoin(self, floor: Mapping[int, int]) -> None:
        """After a restart: rows that cover `floor` were still to be taken."""
        if not covers(self.vv, floor):
            self._near.joins, self._near.rejoins = dict(floor), True

    @property
    def gives_rows(self) -> bool:
        """Whether a neighbour takes a snapshot: what is collected meanwhile could come back."""
        return any(peer.snapshot_out is not None for peer in self.peers.values())

    def link_down(self, node: str, now_ms: int) -> None:
        """The link is gone; what was sent over it may or may not have arrived."""
        peer = self._near.peers.pop(node, None)
        if peer is not None:
            self._inflow.link_down(peer)
            self.antientropy.link_down(peer)
            self._near.tell_links()

    def new_actor(self, actor: int) -> None:
        """This node writes as `actor` from now on; links are cut, to be greeted anew."""
        self._near.actor = actor
        self._near.nodes[actor] = self.node
        self.chain = None
        for node in self.peers:
            self._near.effects.cuts.append((node, "this node has taken a new actor"))

    def forked(self, parted: Mapping[int, int], crossed: Mapping[int, tuple[int, ...]]) -> None:
        """Actors with two histories; see Neighbourhood."""
        self._near.parted, self._near.crossed = dict(parted), dict(crossed)

    # -- local events

    def committed(self, record: Record, raw: bytes) -> None:
        """A record of this node was appended to its log (it need not be durable yet)."""
        assert record.actor == self._near.actor, "only own records are committed"
        assert record.prev_hlc <= self._near.vv.get(record.actor, 0), "own records are contiguous"
        self._near.advance(record.actor, record.hlc)
        self._outflow.forward(raw, record, None)

    def digested(self, digest: bytes, vv: Mapping[int, int]) -> None:
        """The store's digest and the version vector that it was taken at."""
        self.digest = b"" if self.rewrites else digest
        self.digest_vv_hash = f.vv_hash(vv)

    def refused(self, origin: int, held_hlc: int, now_ms: int) -> None:
        """The store did not take a write of `origin`, and holds it up to `held_hlc`."""
        self._inflow.refused(origin, held_hlc, now_ms)

    def send_session(self, node: str, payload: bytes) -> bool:
        """False if there is no link, or no room in its window. TooLarge: never fits a frame."""
        if len(payload) > self.limits.body_bytes_max:
            text = f"session frame of {len(payload)} bytes; at most {self.limits.body_bytes_max}"
            raise TooLarge(text)
        if (peer := self.peers.get(node)) is None or not peer.room(len(payload)):
            return False
        self._near.emit(peer, f.Session(payload))
        return True

    def taken(self, node: str, size: int) -> None:
        """The peer's socket has taken (or the shell dropped) frames of `size` bytes."""
        if (peer := self.peers.get(node)) is not None:
            peer.window_bytes = max(0, peer.window_bytes - size)

    def heard(self, node: str, now_ms: int) -> None:
        """Bytes arrived from the peer, be it the middle of a frame."""
        if (peer := self.peers.get(node)) is not None:
            peer.heard_ms = max(peer.heard_ms, now_ms)

    def records_read(
        self, node: str, origin: int, raws: Sequence[bytes] | None, now_ms: int
    ) -> None:
        """Answer to `Effects.reads`; None: the log no longer reaches back so far."""
        if peer := self.peers.get(node):
            self._outflow.records_read(peer, origin, raws)

    def rows_scanned(self, node: str, after: bytes, rows: Sequence[RowOp], now_ms: int) -> None:
        """Answer to `Effects.scans`; no rows: the scan has reached its end."""
        if (peer := self.peers.get(node)) is not None:
            self._outflow.rows_scanned(peer, after, rows)

    def sums_read(self, node: str, vv: Mapping[int, int], sums: Sequence[int], now_ms: int) -> None:
        """Answer to `Effects.sums`: the sum of each bucket, taken at `vv`."""
        if (peer := self.peers.get(node)) is not None:
            self.antientropy.sums_read(peer, vv, sums, now_ms)

    def bucket_scanned(self, node: str, after: bytes, rows: Sequence[RowOp], now_ms: int) -> None:
        """Answer to `Effects.bucket_scans`; no rows: the scan has reached its end."""
        if (peer := self.peers.get(node)) is not None:
            self.antientropy.scanned(peer, after, rows)

    def lacking(self, buckets: Callable[[], frozenset[int]]) -> None:
        """Whom to ask which buckets of keys lack rows here (see `Neighbourhood.lacking`)."""
        self._near.lacking = buckets

    # -- frames

    def receive(self, node: str, data: bytes, now_ms: int) -> None:
        """A frame of the peer. PeerError: it broke the protocol, cut it; nothing has changed."""
        peer = self._near.peers[node]
        frame = f.decode_frame(data)
        peer.heard_ms = max(peer.heard_ms, now_ms)
        match frame:
            case f.Records(raws):
                self._inflow.records(peer, raws, now_ms)
            case f.IHave(heads):
                self._inflow.announced(peer, heads, now_ms)
            case f.Want(origin, after, again):
                self._outflow.wanted(peer, origin, after, again)
            case f.Prune(origin):
                self._outflow.pruned(peer, origin)
            case f.Links():
                self._on_links(peer, frame)
            case f.Heartbeat():
                self._on_heartbeat(peer, frame, now_ms)
            case f.SnapshotOffer(origin):
                self._inflow.offered(peer, origin, now_ms)
            case f.SnapshotWant(snapshot_id):
                self._outflow.snapshot_wanted(peer, snapshot_id)
            case f.SnapshotRows():
                self._inflow.rows(peer, frame, now_ms)
            case f.SnapshotEnd():
                self._inflow.rows_end(peer, frame, now_ms)
            case f.BucketSums():
                self.antientropy.told(peer, frame)
            case f.BucketWant():
                self.antientropy.wanted(peer, frame)
            case f.BucketRows():
                self.antientropy.rows(peer, frame, now_ms)
            case f.Session(payload):
                self._near.effects.session.append((node, payload))
            case _:
                if frame.code == f.SHARED_ACTOR:
                    held = self.vv.get(self.actor, 0)
                    self._near.effects.rollbacks.append((node, self.actor, held))
                why = f"refused by the neighbour: {frame.code}: {frame.text}"
                self._near.effects.cuts.append((node, why))

    def _on_links(self, peer: Peer, links: f.Links) -> None:
        nodes = frozenset(links.nodes)
        changed = nodes ^ peer.links
        peer.links = nodes
        peer.far = dict(links.far)
        for origin, node in self._near.nodes.items():
            if node in changed:
                peer.choice.pop(origin, None)
        self._near.tell_links()

    def _told_chain(self, peer: Peer, chain: tuple[int, bytes] | None) -> None:
        if chain is not None and chain != peer.chain:
            peer.chain = chain
            self._near.effects.chains.append((peer.node, peer.greeting.actor, *chain))

    def _on_heartbeat(self, peer: Peer, beat: f.Heartbeat, now_ms: int) -> None:
        peer.heartbeat_answered(beat.echo, beat.held_ms, now_ms)
        peer.echo, peer.echo_at_ms = beat.id, now_ms
        peer.digest, peer.digest_vv_hash = beat.digest, beat.digest_vv_hash
        peer.told_ahead_ms = beat.ahead_ms
        peer.reported_waiting = beat.waiting
        if beat.clock_ms:
            peer.clocks.append(beat.clock_ms + int((peer.rtt_ms or 0) / 2) - now_ms)
        self._told_chain(peer, beat.chain)
        own = self._near.vv_hash()
        peer.vv_hash = beat.vv_hash
        if beat.vv_hash == own:
            for origin, hlc in self.vv.items():
                peer.holds(origin, hlc)
            peer.announce.clear()
        elif peer.quiet == (beat.vv_hash, own):
            self._outflow.announce_all(peer)
        peer.quiet = (beat.vv_hash, own)
        self.antientropy.beat(peer, self.digest, self.digest_vv_hash, now_ms)

    # -- time

    def tick(self, now_ms: int) -> None:
        """Whatever is due: heartbeats, announcements, wants; peers not heard of are cut."""
        beat_ms = self.limits.heartbeat_ms
        if self._ticked_ms is not None and now_ms - self._ticked_ms > beat_ms:
            # This node stood still: what its neighbours sent meanwhile is still in its sockets.
            for peer in self.peers.values():
                peer.heard_ms += now_ms - self._ticked_ms - beat_ms
        self._ticked_ms = now_ms
        self._inflow.tick(now_ms)
        for peer in self.peers.values():
            if peer.state(now_ms) is LinkState.DOWN:
                silent_ms = now_ms - peer.heard_ms
                self._near.effects.cuts.append((peer.node, f"nothing heard for {silent_ms} ms"))
                continue
            if now_ms >= peer.announced_ms + self.limits.ihave_ms:
                self._outflow.announce(peer, now_ms)
            if now_ms >= peer.heartbeat_due_ms:
                self._beat(peer, now_ms)

    def _beat(self, peer: Peer, now_ms: int) -> None:
        wall_ms = now_ms + self.wall_ahead_ms
        skew_ms = peer.skew.get(peer.greeting.actor)
        ahead_ms = 0 if skew_ms is None else skew_ms + self.limits.clock_offset_max_ms - wall_ms
        self._near.emit(
            peer,
            f.Heartbeat(
                id=peer.heartbeat_sent(now_ms),
                echo=peer.echo,
                held_ms=now_ms - peer.echo_at_ms if peer.echo else 0,
                vv_hash=self._near.vv_hash(),
                digest=self.digest,
                digest_vv_hash=self.digest_vv_hash,
                clock_ms=wall_ms + self._near.clock_jumped_ms,
                ahead_ms=max(0, ahead_ms),
                waiting=sum(peer.waiting.values()),
                chain=self.chain,
            ),
        )

    def take_effects(self) -> Effects:
        """All that is to be done since the last call, and when to call `tick` next."""
        self._outflow.serve()
        self.antientropy.serve()
        effects, self._near.effects = self._near.effects, Effects()
        down_ms = self.limits.down_missed * self.limits.heartbeat_ms
        dues = [self._inflow.wake_ms()]
        for peer in self.peers.values():
            dues += [peer.heartbeat_due_ms, peer.heard_ms + down_ms]
            if peer.announce:
                dues.append(peer.announced_ms + self.limits.ihave_ms)
        effects.wake_at_ms = min(dues)
        return effects
