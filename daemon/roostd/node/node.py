"""One daemon: opens the store, links to the neighbours, and hands each room what it needs."""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Callable, Mapping
from typing import Any

from roost_crdt import logformat
from roost_crdt.errors import BadToken, Busy, PeerError, RoostError
from roost_crdt.frames import Greeting
from roost_crdt.membership import Membership
from roost_crdt.membership.collector import keep_floor, load_floor, load_rows_vv
from roost_crdt.policy import PolicyTable, refuse_changes
from roost_crdt.record import Record
from roost_crdt.replica import Replica
from roost_crdt.sessions.shelf import Shelf
from roost_crdt.sessions.table import SessionTable, prefix_of
from roostd import wire
from roostd.config import Config, load_credentials, load_policies
from roostd.consensus.base import Table
from roostd.consensus.witness import Witness
from roostd.gossip import Events, Gossip, StoreHooks
from roostd.keyring import Keyring
from roostd.metrics import registry
from roostd.node.backends import consensus_backend
from roostd.node.clock import Clock
from roostd.node.groups import Groups
from roostd.node.identity import Identity
from roostd.node.issuers import KEYS_OF, Issuers
from roostd.node.keys import Keys
from roostd.node.linear import Linear
from roostd.node.lostrows import LostRows, forget
from roostd.node.mending import Mending
from roostd.node.neighbours import Links
from roostd.node.quotas import Quotas
from roostd.node.restored import Restored
from roostd.node.retention import Retention
from roostd.node.sessionrows import SessionRows
from roostd.node.standby import Standbys
from roostd.node.startup import limits_of, pid_namespace, publish, tls_of
from roostd.node.stored import policies_with_keys
from roostd.node.watch import Callback, Watchers
from roostd.rpc import Rpc
from roostd.sessions import Context, Sessions, session_ttl_ms
from roostd.store import Store

log = logging.getLogger("roostd.node")

TICK_S = 0.25
DRAIN_DEADLINE_MS = 8_000
SID_BYTES = 12


class Node:
    """A running daemon without its faces (roostd.api puts them on)."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.limits = limits_of(config)
        self.clock = Clock(self.limits, len(config.neighbours))
        self.policies: PolicyTable = load_policies(config)
        self.credentials = load_credentials(config)
        self.metrics = registry(self.cluster)
        self._watchers = Watchers(self.limits)
        self._stopped: asyncio.Future[None] | None = None
        self._ticking: asyncio.Task[None] | None = None
        self._data = str(config.node.data.resolve())
        self._pid_ns = pid_namespace()
        self._clock_good_ms = -1
        """When this clock was last found to be one that neighbours follow."""
        self._told: tuple[int, str, tuple[bytes, Mapping[int, int]]] | None = None

    # --- life ---

    async def start(self) -> None:
        """Open the store and the links. Raises ConfigError, CorruptData, StoreLocked, OSError."""
        config = self.config
        self._stopped = asyncio.get_running_loop().create_future()
        self.store = Store.open(
            config.node.data,
            limits=self.limits,
            size_max=config.store.size_max,
            log_retention=config.store.log_retention,
            now_ms=self.now_ms(),
            random_bytes=os.urandom,
            forget=forget,
        )
        self._published = publish(self.store, self.policies)
        self.store.flush()
        self.identity = Identity(self.store, config.node.id, self._new_actor)
        self.identity.say_recovery()
        self.store.on_failed = self._store_failed
        self.store.on_flush.append(self._watchers.changed)
        self.groups = Groups(self.store, self._store_failed)
        self.keyring = Keyring.load(
            config.token.keys,
            node=config.node.id,
            audience=config.node.cluster,
            limits=self.limits,
        )
        for peer, keys in self.identity.kept_keys():
            self.keyring.add_peer_keys(peer, keys)
        self._wire_links()
        self._wire_keys()
        self._wire_sessions()
        await self.consensus.start()
        await self.quotas.start()
        await self.rpc.start()
        await self.gossip.start()
        self._ticking = asyncio.create_task(self._tick(), name="node tick")
        self._looking_after = asyncio.create_task(self.mending.run(), name="node mending")

    def _wire_links(self) -> None:
        config, store = self.config, self.store
        tls = tls_of(config)
        replica = Replica(
            node=config.node.id,
            region=config.node.region,
            cluster=config.node.cluster,
            store_id=store.store_id,
            actor=store.actor,
            vv=store.vv,
            limits=self.limits,
            policy_hashes=self.policies.hashes(),
            public_keys=self.keyring.public_keys(),
            public=config.node.public or "",
            gc_floor=load_floor(store),
        )
        replica.rows_vv.update(load_rows_vv(store))
        self.mending = Mending(store, replica, lambda: self.gossip.schedule())
        neighbours = [(n.id, n.url) for n in config.neighbours]
        self.rpc = Rpc(
            node=config.node.id,
            region=config.node.region,
            cluster=config.node.cluster,
            neighbours=neighbours,
            routes=replica.routes,
            tls=tls,
            limits=self.limits,
        )
        self.gossip = Gossip(
            replica=replica,
            store=StoreHooks(
                accept=lambda raw, record: self.membership.accept(raw, record),
                accept_rows=self.mending.accept_rows,
                flush=self.groups.flush,
                vv=lambda: store.vv,
                records_after=store.records_after,
                scan_rows=store.scan_rows,
                keep_floor=lambda floor: keep_floor(store, floor),
                digest=self._digest,
                sums=store.digest_buckets,
                chain=lambda: store.head if store.head[0] else None,
            ),
            events=Events(
                link_up=self._link_up,
                link_down=self._link_down,
                session=self._session_frame,
                rollback=self.identity.rollback,
                reseed=lambda peer, vv, floor: self.membership.reseed(peer, vv, floor),
                chain=self.identity.keep_chain,
                head_of=self.identity.head_for,
                check_greeting=self.identity.check_greeting,
            ),
            wall_ms=self.now_ms,
            listen=config.listen.gossip,
            neighbours=neighbours,
            tls=tls,
            rpc_handler=self.rpc.accepted,
        )
        self._wire_membership()

    def _wire_membership(self) -> None:
        neighbours = [neighbour.id for neighbour in self.config.neighbours]
        self.membership = Membership(
            self.config.node.id,
            store=self.store,
            replica=self.gossip.replica,
            committed=self._committed,
            flush=self.groups.flush,
            cut=self.gossip.cut,
            now_ms=self.now_ms,
            boot_ms=wire.boot_ms,
            random_bytes=os.urandom,
            neighbours=lambda: neighbours,
            limits=self.limits,
            new_actor=lambda actor: self.shelf.renew(actor),
            rolled_back=self.identity.rollback,
            tell=log.warning,
        )
        self.identity.part = self.membership.forking.part
        self.retention = Retention(self.store, self.gossip, self.membership.members.roster)

    def _wire_keys(self) -> None:
        config = self.config

        def table(kind: int) -> Table:
            return Table(
                get=lambda key: self.store.get(kind, key),
                scan=lambda prefix, after, limit: self.store.scan(kind, prefix, after, limit),
                put=lambda items: self.store.put(kind, items),
                durable=self.groups.durable,
            )

        self.keys = Keys(
            self.store,
            self._committed,
            lambda: self.policies,
            self.clock.now_ms,
            self.limits,
            self._admit,
        )
        self.keys.collected = lambda: bool(self.gossip.replica.gc_floor)
        self.standbys = Standbys.between(self.gossip, self.rpc, self.groups, self.store)
        self.keys.check_standby = self.standbys.check
        spends = table(logformat.KIND_SPEND)
        self.consensus = consensus_backend(
            config, table(logformat.KIND_CONSENSUS), Witness(spends), self.rpc, self.limits
        )
        deadline_ms = config.consensus.deadline_ms
        self.linear = Linear(
            self.consensus,
            policies=lambda: self.policies,
            now_ms=self.now_ms,
            random=random.random,
            deadline_ms=deadline_ms,
            limits=self.limits,
        )
        self.quotas = Quotas(
            self.consensus,
            spends=spends,
            outbox=table(logformat.KIND_OUTBOX),
            policies=lambda: self.policies,
            node_id=config.node.id,
            actor=lambda: self.store.actor,
            now_ms=self.now_ms,
            random=random.random,
            random_bytes=os.urandom,
            nodes=lambda: 1 + len(self.gossip.links()),
            deadline_ms=deadline_ms,
            limits=self.limits,
            forward=self._forward,
        )
        for method, handler in self.quotas.handlers().items():
            self.rpc.register(method, handler)

    def _wire_sessions(self) -> None:
        config = self.config
        self.shelf = Shelf(
            node=config.node.id,
            region=config.node.region,
            actor=self.store.actor,
            table=SessionTable(SessionRows(self.store)),
            limits=self.limits,
            now_ms=self.now_ms,
            ttl_ms=lambda: session_ttl_ms(self.policies),
            steady_ms=wire.boot_ms,
        )
        self.shelf.before_erasure = lambda sid: self.store.erasing.mark(prefix_of(sid))
        self.issuers = Issuers(
            self.keyring,
            node=config.node.id,
            call=self._forward,
            neighbours=lambda: [link.peer for link in self.gossip.links() if link.state == "up"],
            beyond=self.gossip.beyond,
            keep=self.identity.keep_keys,
            now_ms=self.now_ms,
        )
        self.rpc.register(KEYS_OF, self.issuers.answer)
        self._near = Links(self.gossip, self.rpc)
        self._near.receive(self._session_frame)
        self.sessions = Sessions(
            Context(
                shelf=self.shelf,
                cluster=config.node.cluster,
                policies=lambda: self.policies,
                keyring=self.keyring,
                verify=self.issuers.verify,
                neighbours=self._near,
                durable=self.groups.durable,
                token_ttl_s=config.token.ttl_s,
                takeover_after_ms=config.session.takeover_after_ms,
                follow_after_turns=config.session.follow_after_turns,
            ),
            random_sid=lambda: "s-" + os.urandom(SID_BYTES).hex(),
            restored=Restored(self.store, [n.id for n in config.neighbours], os.urandom),
        )
        for method, handler in self.sessions.methods().items():
            self.rpc.register(method, handler)
        self.groups.after_each(self.sessions.delivery.after_flush)
        stream = self.sessions.stream
        lost = LostRows(self.store, self.shelf, stream, self._forward, self.quotas.again)
        self.mending.replace = lost.replace

    async def stop(self) -> None:
        """Give back what can be given back, close links and the store."""
        if self._ticking is not None:
            self._ticking.cancel()
            self._looking_after.cancel()
            await asyncio.gather(self._ticking, self._looking_after, return_exceptions=True)
        await self.quotas.stop()
        await self.standbys.stop()
        await self.sessions.stop()
        await self._near.stop()
        await self.issuers.stop()
        await self.consensus.stop()
        await self.gossip.stop()
        await self.rpc.stop()
        self.groups.flush()
        if problem := self.store.close():
            log.warning("%s", problem)

    async def run_until_stopped(self) -> None:
        """Return never, unless the store failed: then raises StoreFailed."""
        assert self._stopped is not None, "the node is started"
        await self._stopped

    async def drain(self) -> int:
        """Hand every session to its standby; how many remain here."""
        return await self.sessions.handover.drain(DRAIN_DEADLINE_MS)

    async def reload(self) -> None:
        """Read policies, keys and credentials again. Raises ConfigError; then the old ones stay."""
        policies = load_policies(self.config)
        credentials = load_credentials(self.config)
        held = await policies_with_keys(
            self.policies,
            scan=lambda prefix, after, limit: self.store.keys(prefix, after, limit, self.now_ms()),
            scan_linear=self.linear.scan,
            has_sessions=lambda: bool(self.shelf.table.heads("", 1)),
        )
        refuse_changes(self.policies, policies, held.__contains__)
        self.keyring.reload()
        self.policies, self.credentials = policies, credentials
        self._published = publish(self.store, policies)
        replica = self.gossip.replica
        replica.policy_hashes = policies.hashes()
        replica.public_keys = self.keyring.public_keys()

    # --- what faces ask ---

    def now_ms(self) -> int:
        return self.clock.now_ms()

    @property
    def pending(self) -> bool:
        """Whether something is written that is not durable yet."""
        return self.groups.pending

    async def durable(self) -> None:
        await self.groups.durable()

    def on_durable(self, callback: Callable[[], None]) -> None:
        self.groups.on_durable(callback)

    def watch(self, prefix: bytes, callback: Callback) -> Callable[[], None]:
        return self._watchers.watch(prefix, callback)

    def lag_ms(self) -> int:
        return self.gossip.lag_ms()

    def ready(self) -> tuple[bool, str]:
        """Whether this node should get traffic, and why not."""
        if self._stopped is None or self._ticking is None:
            return False, "starting"
        if self._stopped.done():
            return False, "the store has failed"
        if self.membership.reseeding.stage:
            return False, "joining again"
        return True, "ready"

    def hello(self) -> dict[str, Any]:
        """What a client on this machine needs to read the index itself."""
        return {
            "node": self.config.node.id,
            "region": self.config.node.region,
            "cluster": self.config.node.cluster,
            "data": self._data,
            "store_id": self.store.store_id,
            "pid_ns": self._pid_ns,
            "seq": self.store.seq,
            "applied_seq": self.store.applied_seq,
        }

    def cluster(self) -> dict[str, Any]:
        """GET /v1/cluster."""
        store = self.store
        _, root = store.digest(self.now_ms())
        return {
            "node": self.config.node.id,
            "region": self.config.node.region,
            "cluster": self.config.node.cluster,
            "actor": f"{store.actor:016x}",
            "converged": self.gossip.converged(),
            "digest": root,
            "version_vector": {f"{actor:016x}": hlc for actor, hlc in sorted(store.vv.items())},
            "links": [link.shown() for link in self.gossip.links()],
            "members": self.membership.listed(),
            "consensus": self.consensus.status().as_dict(),
            "store": {
                "bytes": store.bytes_used(),
                "size_max": store.size_max,
                "seq": store.seq,
                "durable_seq": store.durable_seq,
                "applied_seq": store.applied_seq,
                **self.mending.status(),
            },
            "sessions": self.sessions.counts(),
        }

    def status(self) -> dict[str, Any]:
        return self.cluster()

    # --- events ---

    async def _forward(self, node: str, method: str, args: dict[str, Any], deadline_ms: int) -> Any:
        return await self.rpc.call(node, method, args, deadline_ms=deadline_ms)

    def _admit(self) -> None:
        """Refuse own global writes while most neighbours say that this clock is far ahead."""
        self.membership.admit()
        now_ms = self.clock.now_ms()
        if now_ms == self._clock_good_ms:
            return
        if self.gossip.replica.clock_refused():
            ahead_ms = self.gossip.replica.clock_offset_ms()
            raise Busy(
                f"this node's clock is {ahead_ms} ms ahead of its neighbours', who would not take "
                "its writes; set the clock, or write at another node",
                retry_after_ms=1_000,
            )
        self._clock_good_ms = now_ms

    def _committed(self, record: Record) -> None:
        self.gossip.committed(record, self.store.last_raw)

    def _link_up(self, peer: str, greeting: Greeting) -> None:
        try:
            self.keyring.add_peer_keys(peer, greeting.public_keys)
        except BadToken as error:
            log.warning("the public keys of %s are not taken: %s", peer, error)
        else:
            self.identity.keep_keys(peer, greeting.public_keys)
        self.rpc.peer_up(peer)
        self.sessions.on_link_up(peer)

    def _link_down(self, peer: str) -> None:
        """A link that was closed says nothing of calls: their connections end by themselves."""
        silent_ms = self.gossip.silent_ms(peer)
        if silent_ms is None or silent_ms >= self.limits.heartbeat_ms * self.limits.down_missed:
            self.rpc.peer_down(peer)

    def _session_frame(self, peer: str, payload: bytes) -> None:
        try:
            self.sessions.stream.on_frame(peer, payload)
        except PeerError as error:
            self.gossip.cut(peer, str(error))
        except RoostError as error:
            log.warning("a session frame of %s is not taken: %s", peer, error)  # offered again
        if not self.groups.pending:
            self.sessions.delivery.after_flush()

    def _new_actor(self, actor: int) -> None:
        self.shelf.renew(actor)
        self.gossip.new_actor(actor)

    def _digest(self) -> tuple[bytes, Mapping[int, int]] | None:
        seq, root = self.store.digest(self.now_ms())
        if self._told is None or self._told[:2] != (seq, root):
            self._told = (seq, root, (bytes.fromhex(root), self.store.digest_buckets()[0]))
        return self._told[2]

    def _store_failed(self, error: BaseException) -> None:
        if self._stopped is not None and not self._stopped.done():
            log.critical("the store failed; nothing more is acknowledged: %s", error)
            self._stopped.set_exception(error)
            self._stopped.exception()  # a start that fails meanwhile raises it itself

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.clock.tick(self.gossip.replica.neighbours_clocks())
            self.gossip.replica.clock_jumped(self.clock.jumped_ms)
            self.sessions.tick()
            self.issuers.tick()
            self.membership.tick()
            self._published = self._published or publish(self.store, self.policies)
            if not self.membership.reseeding.stage:
                self.retention.tick()
            if not self.groups.pending:
                self.sessions.delivery.after_flush()
