"""The sockets of replication: runs a `Replica` over websockets to the neighbours.

This file knows frames as bytes only. It dials the configured neighbours, listens for the others,
keeps one link a neighbour (of duelling dials the lower node id's stays), carries out the
replica's effects in their order, and cuts what makes no progress.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from websockets.exceptions import ConnectionClosed, WebSocketException

from roost_crdt.errors import ActorReused, Busy, CorruptData, PeerError, RoostError
from roost_crdt.frames import SHARED_ACTOR, Greeting, check_identity
from roost_crdt.neighbourhood import beyond
from roost_crdt.peer import LinkState
from roost_crdt.record import Record
from roost_crdt.replica import Effects, Replica

from . import wire
from .links import Events, Link, LinkStatus, StoreHooks
from .wire import Tls, Wire

__all__ = ["Events", "Gossip", "LinkStatus", "StoreHooks"]

STEADY_MS = 30_000
"""A link that lasted this long starts its next reconnect from the shortest delay."""
STOP_S = 1.0
STATUSES_MAX = 1_000
LONG_BYTES = 16 << 10

_log = logging.getLogger("roostd.gossip")


class Gossip:
    """Links of one node. All methods belong to the event loop's thread."""

    def __init__(
        self,
        *,
        replica: Replica,
        store: StoreHooks,
        events: Events,
        wall_ms: Callable[[], int],
        listen: tuple[str, int] | None,
        neighbours: Sequence[tuple[str, str]] = (),
        tls: Tls | None = None,
        rpc_handler: wire.Handler | None = None,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """`neighbours` are (id, url) to dial; `tls` None means plain websockets (insecure)."""
        self.replica = replica
        self._store = store
        self._events = events
        self._wall_ms = wall_ms
        self._neighbours = dict(neighbours)
        self._tls = tls
        self._jitter = jitter
        self._limits = replica.limits
        self._links: dict[str, Link] = {}
        self._statuses: dict[str, LinkStatus] = {}
        self._heard: dict[str, int] = {}
        """When a neighbour that has no link now was last heard."""
        self._dials: list[asyncio.Task[None]] = []
        self._refusing: set[asyncio.Task[None]] = set()
        self._pumping = False
        self._timer: asyncio.TimerHandle | None = None
        self._looked_ms = 0
        self._stopping = False
        handlers: dict[str, wire.Handler] = {wire.GOSSIP_PATH: self._accepted}
        if rpc_handler is not None:
            handlers[wire.RPC_PATH] = rpc_handler
        self._listener = (
            None if listen is None else wire.Listener(*listen, tls, self._limits, handlers)
        )

    @property
    def port(self) -> int:
        """The port listened on (asked for port 0, the one that the system chose)."""
        return 0 if self._listener is None else self._listener.port

    # -- life

    async def start(self) -> None:
        """OSError if the address cannot be bound. Neighbours are dialled in the background."""
        if self._listener is not None:
            await self._listener.start()
        self._dials = [
            asyncio.create_task(self._dial(peer, url), name=f"gossip-dial-{peer}")
            for peer, url in self._neighbours.items()
        ]

    async def stop(self) -> None:
        """Send what is queued, for a second at most, then close all links."""
        self._pump()
        if self._links:
            sent = [asyncio.create_task(link.idle.wait()) for link in self._links.values()]
            _, late = await asyncio.wait(sent, timeout=STOP_S)
            for task in late:
                task.cancel()
        self._stopping = True
        if self._timer is not None:
            self._timer.cancel()
        for dial in self._dials:
            dial.cancel()
        await asyncio.gather(*self._dials, return_exceptions=True)
        links = list(self._links.values())
        for link in links:
            self._lost(link, "this node stops")
        await asyncio.gather(*(wire.end(link.wire, "stopping", code=1001) for link in links))
        await asyncio.gather(*self._refusing)
        if self._listener is not None:
            await self._listener.stop()

    # -- what the node asks for

    def committed(self, record: Record, raw: bytes) -> None:
        """A record of this node entered its log; it is sent once it is durable."""
        self.replica.committed(record, raw)
        if self._links:
            self.schedule()

    def send_session(self, peer: str, payload: bytes) -> bool:
        """Queue session bytes, behind a flush; False without a link or room in its window."""
        sent = self.replica.send_session(peer, payload)
        if sent:
            self.schedule()
        return sent

    def new_actor(self, actor: int) -> None:
        """The store has taken a new actor: all links are greeted anew."""
        self.replica.new_actor(actor)
        self.schedule()

    def cut(self, peer: str, reason: str) -> None:
        """End a link; it may come back."""
        link = self._links.get(peer)
        if link is not None:
            self._cut(link, reason)

    def lag_ms(self) -> int:
        return self.replica.lag_ms(self._now())

    def silent_ms(self, peer: str) -> int | None:
        """Milliseconds since the last byte from a neighbour; None if it was never heard."""
        known = self.replica.peers.get(peer)
        heard_ms = self._heard.get(peer) if known is None else known.heard_ms
        return None if heard_ms is None else max(0, wire.boot_ms() - heard_ms)

    def linked(self, peer: str) -> bool:
        """Whether there is a link, be it suspect."""
        return peer in self.replica.peers

    def up(self, peer: str) -> bool:
        """Whether a link is up and not suspect."""
        known = self.replica.peers.get(peer)
        return known is not None and known.state(self._now()) is LinkState.UP

    def converged(self) -> bool:
        """Equal digests at equal version vectors on all links."""
        return all(self.replica.converged(peer) for peer in self.replica.peers)

    def routes(self, target: str) -> list[str]:
        """Neighbours over which a node is reached, fewest hops first."""
        return self.replica.routes(target)

    def beyond(self) -> set[str]:
        """Nodes that are no live neighbours and are reached through one."""
        return beyond(self.replica.node, self.replica.peers)

    def public_url(self, peer: str) -> str:
        """The public HTTP URL that a linked neighbour told; "" if it told none or is not linked."""
        known = self.replica.peers.get(peer)
        return known.greeting.public if known is not None else ""

    def holders(self, actor: int, hlc: int) -> int:
        """Linked neighbours that have shown to hold an actor's records up to `hlc`."""
        return sum(peer.held.get(actor, 0) >= hlc for peer in self.replica.peers.values())

    def links(self) -> list[LinkStatus]:
        """Every neighbour configured or seen, by id."""
        peers = sorted(self._neighbours.keys() | self._statuses.keys() | self._links.keys())
        return [self._status(peer) for peer in peers]

    def _status(self, node: str) -> LinkStatus:
        before = self._statuses.get(node, LinkStatus(node))
        peer = self.replica.peers.get(node)
        if peer is None:
            return replace(before, mode=self.replica.mode(node).value)
        now_ms = self._now()
        theirs_ms = peer.clock_ahead_ms
        offset_ms = None if theirs_ms is None else self.replica.wall_ahead_ms - theirs_ms
        return replace(
            before,
            region=peer.greeting.region,
            state=peer.state(now_ms).value,
            mode=peer.mode.value,
            rtt_ms=peer.rtt_ms,
            lag_ms=self.replica.peer_lag_ms(node, now_ms),
            lag_records=peer.reported_waiting,
            received=before.received + peer.received,
            duplicates=before.duplicates + peer.duplicates,
            last_heard_ms=max(0, now_ms - peer.heard_ms),
            converged=self.replica.converged(node),
            clock_offset_ms=offset_ms,
            last_error=before.last_error or self._clock_error(offset_ms),
            warnings=peer.warnings,
        )

    def _clock_error(self, offset_ms: int | None) -> str:
        if offset_ms is None or abs(offset_ms) <= self._limits.clock_offset_max_ms:
            return ""
        return f"its clock is {abs(offset_ms)} ms {'behind' if offset_ms > 0 else 'ahead of'} this"

    # -- links

    async def _dial(self, peer: str, url: str) -> None:
        """Keep a link: dial when there is none, with full jitter between attempts."""
        shortest_ms = 2 * self._limits.reconnect_min_ms
        backoff_ms = shortest_ms
        while True:
            link = self._links.get(peer)
            began_ms = wire.boot_ms() if link is None else link.up_ms
            if link is not None:
                await link.gone.wait()
            else:
                try:
                    await self._dial_once(peer, url)
                except (OSError, TimeoutError, PeerError, WebSocketException) as error:
                    self._note(peer, f"{type(error).__name__}: {error}")
            delay_ms = self._jitter(self._limits.reconnect_min_ms, backoff_ms)
            steady = wire.boot_ms() - began_ms >= STEADY_MS
            doubled_ms = min(2 * backoff_ms, self._limits.reconnect_max_ms)
            backoff_ms = shortest_ms if steady else doubled_ms
            await asyncio.sleep(delay_ms / 1000)

    async def _dial_once(self, peer: str, url: str) -> None:
        if self.replica.reseeding:
            raise PeerError(f"Reseed: {self.replica.node} is giving up its rows")
        head, actor = self._events.head_of(peer, 0), self.replica.actor
        try:
            connection, theirs = await wire.dial(
                url,
                wire.GOSSIP_PATH,
                node=peer,
                greeting=self.replica.greeting(head),
                tls=self._tls,
                limits=self._limits,
            )
        except PeerError as error:
            if error.code == SHARED_ACTOR and actor == self.replica.actor:
                self._events.rollback(peer, actor, self.replica.vv.get(actor, 0))
            raise
        try:
            same = actor == self.replica.actor  # or else the neighbour was greeted as another
            link = self._adopt(connection, theirs, self.replica.node) if same else None
            if link is None:
                await wire.end(connection, "another link stays, or is dialled as a new actor")
            else:
                await self._read(link)
        except PeerError as error:
            await wire.refuse(connection, error)
            raise
        finally:
            connection.transport.abort()

    async def _accepted(self, connection: wire.Accepted, greeting: Greeting) -> None:
        answer = self.replica.greeting(self._events.head_of(greeting.node, greeting.actor))
        try:
            link = self._adopt(connection, greeting, greeting.node, answer)
        except PeerError:
            if greeting.node in self.replica.reseeds and not self.replica.reseeding:
                await connection.send(answer)  # by it the other side knows what it lacks
            raise
        if link is None:
            await wire.end(connection, "another link stays")
        else:
            await self._read(link)

    def _adopt(
        self, connection: Wire, greeting: Greeting, dialler: str, answer: bytes | None = None
    ) -> Link | None:
        """The link that this connection becomes; None if the other of two duelling ones stays."""
        peer, now_ms = greeting.node, self._now()
        other = self._links.get(peer)
        if other is not None and dialler not in (other.dialler, min(peer, self.replica.node)):
            return None
        try:
            check_identity(greeting, node=self.replica.node, cluster=self.replica.cluster)
            self._events.check_greeting(greeting)
            if other is not None:
                self._lost(other, "replaced by a newer link", replaced=True)
                other.wire.transport.abort()
            self.replica.link_up(peer, greeting, now_ms)
        except PeerError as error:
            if other is not None and peer not in self._links:
                self._events.link_down(peer)
            self._note(peer, str(error))
            self.schedule()
            raise
        link = Link(peer, connection, dialler, now_ms, self._taken, greeting=answer)
        link.start()
        self._links[peer] = link
        _log.info("link to %s is up", peer)
        self._events.link_up(peer, greeting)
        self.replica.tick(now_ms)
        self.schedule()
        return link

    def _lost(self, link: Link, reason: str, *, replaced: bool = False) -> None:
        """Forget the link, once; its connection is the caller's to end.

        The neighbour of a link that is `replaced` is not down: calls to it go on.
        """
        if self._links.get(link.peer) is not link:
            return
        status = self._status(link.peer)
        self._heard[link.peer] = self.replica.peers[link.peer].heard_ms
        del self._links[link.peer]
        self.replica.link_down(link.peer, self._now())
        self._statuses[link.peer] = replace(
            status, state=LinkState.DOWN.value, lag_records=0, converged=False
        )
        self._note(link.peer, reason)
        link.end()
        if replaced:
            _log.info("link to %s: %s", link.peer, reason)
        else:
            _log.warning("link to %s is down: %s", link.peer, reason)
            self._events.link_down(link.peer)
        self.schedule()

    def _note(self, peer: str, error: str) -> None:
        if peer in self._statuses or len(self._statuses) < STATUSES_MAX:
            before = self._statuses.get(peer, LinkStatus(peer))
            self._statuses[peer] = replace(before, last_error=error)

    # -- bytes

    async def _read(self, link: Link) -> None:
        """Until the link ends. PeerError if the neighbour broke the protocol."""
        try:
            while True:
                data = await link.wire.recv(decode=False)
                if self._links.get(link.peer) is not link:
                    return
                self.replica.receive(link.peer, data, self._now())
                self.schedule()
                if len(data) > LONG_BYTES:  # others may wait in the socket's buffer
                    await asyncio.sleep(0)
        except ConnectionClosed as closed:
            self._lost(link, f"closed: {closed}")
        except PeerError as error:
            self._lost(link, str(error))
            raise
        finally:
            self._lost(link, "cut")

    def _taken(self, peer: str, size: int) -> None:
        self.replica.taken(peer, size)
        self.schedule()

    def _cut(self, link: Link, reason: str) -> None:
        self._lost(link, reason)
        link.wire.transport.abort()

    def _refuse(self, peer: str, error: PeerError) -> None:
        """End a link whose neighbour broke the protocol, and tell it why."""
        link = self._links.get(peer)
        if link is None:
            return
        self._lost(link, str(error))
        task = asyncio.create_task(wire.refuse(link.wire, error), name=f"gossip-refuse-{peer}")
        self._refusing.add(task)
        task.add_done_callback(self._refusing.discard)

    # -- the replica's effects

    def _now(self) -> int:
        now_ms = wire.boot_ms()
        self.replica.wall_ahead_ms = self._wall_ms() - now_ms
        return now_ms

    def schedule(self) -> None:
        """One pump for all events of a turn of the loop."""
        if not self._pumping and not self._stopping:
            self._pumping = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        if self._stopping:
            return
        effects = self.replica.take_effects()
        if self._write_all(effects):
            self._send(effects.frames)
        else:
            for peer, data in effects.frames:
                self.replica.taken(peer, len(data))
            self.schedule()
        self._answer(effects)
        delay_s = max(1, effects.wake_at_ms - wire.boot_ms()) / 1000
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(min(delay_s, 60.0), self._tick)

    def _tick(self) -> None:
        now_ms = self._now()
        for link in list(self._links.values()):
            self.replica.heard(link.peer, link.wire.heard_ms)
            stuck_ms = link.stuck_ms(now_ms)
            if stuck_ms >= self._limits.heartbeat_ms * self._limits.down_missed:
                self._cut(link, f"no byte taken for {stuck_ms} ms")
        if now_ms >= self._looked_ms + self._limits.heartbeat_ms:
            self._looked_ms = now_ms
            self.replica.chain = self._store.chain()
            if (digest := self._store.digest()) is not None:
                self.replica.digested(*digest)
        self.replica.tick(now_ms)
        self._pump()

    def _write_all(self, effects: Effects) -> bool:
        """Append and flush; False if the store refused something, and nothing may be sent."""
        refused: set[int] = set()
        for ops, covered in effects.rows:
            try:
                self._store.accept_rows(ops, covered)
                if covered:
                    self._store.keep_floor(self.replica.gc_floor)
            except (RoostError, CorruptData, ActorReused) as error:
                _log.warning("rows of a snapshot refused: %s", error)
                refused |= covered.keys() or {self.replica.actor}
        for raw, record in effects.writes:
            if record.actor in refused:
                continue
            try:
                taken = self._store.accept(raw, record)
            except (RoostError, CorruptData, ActorReused) as error:
                _log.warning("record of actor %x refused: %s", record.actor, error)
                taken = False
            if not taken and self._store.vv().get(record.actor, 0) < record.hlc:
                refused.add(record.actor)
        for peer, actor, hlc, chain in effects.chains:
            self._events.chain(peer, actor, hlc, chain)
        for origin in refused:
            self.replica.refused(origin, self._store.vv().get(origin, 0), self._now())
        scans = effects.scans or effects.bucket_scans
        if effects.frames or effects.rows or effects.writes or effects.reads or scans:
            self._store.flush()
        return not refused

    def _send(self, frames: Sequence[tuple[str, bytes]]) -> None:
        for peer, data in frames:
            link = self._links.get(peer)
            if link is not None:
                link.send(data)

    def _read_log(self, origin: int, after: int, bytes_max: int) -> Sequence[bytes] | None:
        try:
            return self._store.records_after(origin, after, bytes_max)
        except CorruptData as error:
            # As if it were older than the log: a snapshot has what the damaged place had.
            _log.error("rows are sent for records: %s", error)
            return None

    def _answer(self, effects: Effects) -> None:
        for peer, origin, after, bytes_max in effects.reads:
            raws = self._read_log(origin, after, bytes_max)
            self.replica.records_read(peer, origin, raws, self._now())
        for peer in effects.sums:
            if (sums := self._store.sums()) is not None:
                self.replica.sums_read(peer, *sums, self._now())
        scans = [(self.replica.rows_scanned, *scan) for scan in effects.scans]
        scans += [(self.replica.bucket_scanned, *scan) for scan in effects.bucket_scans]
        for scanned, peer, row_key, bytes_max in scans:
            try:
                rows = self._store.scan_rows(row_key, bytes_max)
            except (Busy, CorruptData) as error:
                _log.error("no rows for %s: %s", peer, error)
                self.cut(peer, f"its rows cannot be read here: {error}")
            else:
                scanned(peer, row_key, rows, self._now())
        if effects.reads or effects.scans or effects.sums or effects.bucket_scans:
            self.schedule()
        for peer, payload in effects.session:
            try:
                self._events.session(peer, payload)
            except PeerError as error:
                self._refuse(peer, error)
        for peer, actor, hlc in effects.rollbacks:
            self._events.rollback(peer, actor, hlc)
        for peer, vv, floor in effects.reseeds:
            self._events.reseed(peer, vv, floor)
        for peer, reason in effects.cuts:
            self.cut(peer, reason)
