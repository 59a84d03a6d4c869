"""One simulated node: a store, a replica and its links, driven as `roostd.gossip` drives them.

A crash may come between any two effects: `step` is called there, and raises when the node's time
has come. What waits for durability is released after the flush, never before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from roost_crdt.collection import Stage
from roost_crdt.errors import ActorReused
from roost_crdt.frames import decode_frame
from roost_crdt.lineage import Heads, claim
from roost_crdt.membership import Membership
from roost_crdt.membership.collector import keep_floor, keep_rows_vv, load_floor, load_rows_vv
from roost_crdt.record import Record
from roost_crdt.replica import Effects, Replica
from roost_crdt.rows import Delta, Rows

from .disk import Disk
from .hosting import Shell, Surroundings
from .links import Links
from .loop import START_MS, Crashed, Life
from .store import Store, StoreFailed

TURN_MS = 0.4
"""A turn of the loop and its sync take up to this long."""
MEMBERSHIP_MS = 100.0
"""Reports, collection and reseeds are looked after about so often."""


class Node:
    """A node, alive or not. `start` begins a life, `crash` ends it."""

    def __init__(self, world: Surroundings, name: str, region: str) -> None:
        self.world = world
        self.name = name
        self.region = region
        self.disk = Disk()
        self.life: Life | None = None
        self.neighbours: dict[str, bool] = {}
        """Neighbour -> whether this node dials it."""
        self.links = Links(self)
        self.wall_offset_ms = 0
        self.steps_to_crash = 0
        """Not 0: the node dies after so many more steps."""
        self.excused_rollbacks = 0
        """Disks that lied and copies that were restored: a Rollback is no surprise then."""
        self.rollbacks = 0
        self.repaired = 0
        """Buckets that anti-entropy fetched."""
        self.greeted = False
        """Whether a neighbour has agreed with this life's actor."""
        self.may_write_before_greeting = True
        """False: its store may be a copy that looks like the original."""
        self.attach: Callable[[Node], Shell | None] = lambda node: None
        self.shell: Shell | None = None
        self.rewrote: Callable[[Node, Record], None] = lambda node, record: None
        """Told of what a reseed, or the end of a fork, has written again."""
        self.problems: list[str] = []
        self._waiting: list[Callable[[], None]] = []
        self._lost: list[Callable[[], None]] = []
        self._turning = False
        self._wake_ms = 0.0
        self.largest_bytes = 0

    # --- clocks

    def boot_ms(self) -> int:
        return START_MS + int(self.world.loop.now_ms)

    def wall_ms(self) -> int:
        return self.boot_ms() + self.wall_offset_ms

    def now(self) -> int:
        """The replica's clock, which is told of the wall clock."""
        self.replica.wall_ahead_ms = self.wall_offset_ms
        return self.boot_ms()

    def say(self, text: str) -> None:
        self.world.trace.say(self.world.loop.now_ms, self.name, text)

    def step(self, what: str) -> None:
        """Between two effects: a good moment to die."""
        if self.steps_to_crash:
            self.steps_to_crash -= 1
            if not self.steps_to_crash:
                self.world.trace.count("boundary", what.partition(" to ")[0])
                self.say(f"dies after: {what}")
                raise Crashed(self.name)

    # --- life

    def start(self) -> None:
        """Open the store and begin to dial. CorruptData if the store cannot be opened."""
        world = self.world
        assert self.life is None
        self.life = Life(self.name)
        self._turning = False
        try:
            self.store = Store(
                self.disk,
                now_ms=self.wall_ms(),
                random_bytes=world.random.randbytes,
                step=self.step,
                segments_kept=lambda: world.segments_kept,
            )
        except BaseException:
            self.life = None
            raise
        before = claim(self.store, self.name, world.random.randbytes)
        if before:
            world.trace.count("rule", "store of another node")
            self.say(f"has the store of {before}: takes a new actor")
        self.heads = Heads(self.store)
        recovery = self.store.recovery
        if recovery.torn_bytes:
            world.trace.count("rule", "torn tail cut")
        if recovery.why_new_actor:
            world.trace.count("rule", "new actor at start")
        self.say(
            f"starts: actor {self.store.actor & 0xFFFF:04x}, seq {self.store.seq}, "
            f"{recovery.replayed} replayed, {recovery.torn_bytes} torn"
            + (f", new actor: {recovery.why_new_actor}" if recovery.why_new_actor else "")
        )
        self.replica = Replica(
            node=self.name,
            region=self.region,
            cluster="sim",
            store_id=self.store.store_id,
            actor=self.store.actor,
            vv=self.store.vv,
            limits=world.limits,
            gc_floor=load_floor(self.store),
        )
        self.replica.rows_vv.update(load_rows_vv(self.store))
        self.membership = Membership(
            self.name,
            store=self.store,
            replica=self.replica,
            committed=self._own_record,
            flush=self.flush,
            cut=self.links.cut,
            now_ms=self.wall_ms,
            boot_ms=self.boot_ms,
            random_bytes=world.random.randbytes,
            neighbours=lambda: self.neighbours,
            limits=world.limits,
            new_actor=lambda actor: self._new_actor(),
            rolled_back=self.rollback,
            tell=self.say,
        )
        self.greeted = False
        self._repairs = 0
        self._looked_ms = 0
        self.links.begin()
        self.shell = self.attach(self)
        self.links.dial_all()
        world.loop.after(50.0, self.life, self._apply)
        world.loop.after(MEMBERSHIP_MS * world.random.random(), self.life, self._membership)

    def crash(self, *, power: bool = False) -> None:
        """The process dies: what was written stays, what was in memory is gone."""
        if self.life is None:
            return
        self.steps_to_crash = 0
        life, self.life = self.life, None
        life.end()
        self.links.close(silent=power)
        lost, self._lost = self._lost, []
        self._waiting = []
        self.shell = None
        for callback in lost:
            callback()
        if power:
            what = self.disk.lose_power(self.world.random)
            self.disk.boot_id = self.world.random.randbytes(8)
            self.say(f"power cut: {what}")
        else:
            self.say("killed")

    def stop(self) -> None:
        """A clean shutdown."""
        if self.life is not None:
            self.steps_to_crash = 0
            self.store.close()
            self.say("stopped cleanly")
            self.crash()

    def _apply(self) -> None:
        self.store.apply()
        self.world.loop.after(50.0 + 100.0 * self.world.random.random(), self.life, self._apply)

    def _membership(self) -> None:
        """A tick of what the node does as a member."""
        stage = self.membership.reseeding.stage
        collector = self.membership.collector
        dropped, round_stage = collector.dropped, collector.collection.stage
        self.membership.tick()
        count = self.world.trace.count
        if collector.dropped > dropped:
            self.world.trace.reached["rule:row dropped"] += collector.dropped - dropped
        if round_stage is Stage.DROP and collector.collection.stage is Stage.SCAN:
            count("rule", "collection round ended")
        if stage != self.membership.reseeding.stage:
            count("rule", f"reseed: {stage or 'begun'} done")
        self.step("membership")
        self.wake()
        delay_ms = MEMBERSHIP_MS * (0.5 + self.world.random.random())
        self.world.loop.after(delay_ms, self.life, self._membership)

    def _own_record(self, record: Record) -> None:
        """Membership wrote a record."""
        self.replica.committed(record, self.store.last_raw)
        reseeding = self.membership.reseeding
        again = reseeding.stage and not reseeding.keeps
        if again or self.membership.forking.writing:
            self.rewrote(self, record)
        self.wake()

    def _new_actor(self) -> None:
        if self.shell is not None:
            self.shell.actor_changed()

    # --- clients

    def admits(self) -> bool:
        """Whether own writes are taken at the moment."""
        return not self.membership.reseeding.stage

    def write(self, key: bytes, type_code: int, delta: Delta, stamp: tuple[int, int]) -> Record:
        record = self.store.commit(stamp, [(key, type_code, delta)])
        self.replica.committed(record, self.store.last_raw)
        self.wake()
        return record

    def rows(self, key: bytes) -> Rows:
        return self.store.key_rows(key).rows

    def when_durable(self, callback: Callable[[], None], lost: Callable[[], None]) -> None:
        """Call back once all that is written so far is durable, or `lost` if this life ends."""
        if not self.store.dirty:
            callback()
            return

        def release() -> None:
            self._lost.remove(lost)
            callback()

        self._lost.append(lost)
        self._waiting.append(release)
        self.wake()

    # --- turns

    def wake(self) -> None:
        """One turn for everything that happens until it begins."""
        if not self._turning:
            self._turning = True
            delay_ms = TURN_MS * self.world.random.random()
            self.world.loop.after(delay_ms, self.life, self._turn)

    def _turn(self) -> None:
        self._turning = False
        self._pump()

    def flush(self) -> None:
        """Make what is written durable and release what waits for it."""
        if not self.store.dirty:
            return
        self.step("before flush")
        try:
            self.store.flush()
        except StoreFailed as error:
            self.say(f"store failed: {error}")
            raise Crashed(self.name) from error
        waiting, self._waiting = self._waiting, []
        for callback in waiting:
            callback()
        if self.shell is not None:
            self.shell.flushed()

    def _pump(self) -> None:
        """Carry out the replica's effects in their order."""
        for _ in range(1_000):
            effects = self.replica.take_effects()
            again = self._carry_out(effects)
            if not again:
                break
        else:
            raise AssertionError(f"{self.name} never comes to rest")
        self.flush()
        self._check_windows()
        self._wake_at(effects.wake_at_ms - START_MS)

    def _carry_out(self, effects: Effects) -> bool:
        """One round; whether there is more to do at once."""
        if self._write_all(effects):
            self._send_all(effects.frames)
            refused = False
        else:
            for peer, data in effects.frames:
                self.replica.taken(peer, len(data))
            refused = True
        for peer, origin, after, bytes_max in effects.reads:
            raws = self.store.records_after(origin, after, bytes_max)
            self.replica.records_read(peer, origin, raws, self.now())
        for peer, row_key, bytes_max in effects.scans:
            rows = self.store.scan_rows(row_key, bytes_max)
            self.replica.rows_scanned(peer, row_key, rows, self.now())
        for peer in effects.sums:
            self.world.trace.count("rule", "bucket sums told")
            self.replica.sums_read(peer, *self.store.sums(), self.now())
        repaired = self.replica.antientropy.buckets_repaired
        if repaired > self._repairs:
            self.world.trace.reached["rule:bucket fetched"] += repaired - self._repairs
            self.repaired += repaired - self._repairs
            self._repairs = repaired
        for peer, row_key, bytes_max in effects.bucket_scans:
            rows = self.store.scan_rows(row_key, bytes_max)
            self.replica.bucket_scanned(peer, row_key, rows, self.now())
        for peer, payload in effects.session:
            self.step("session frame")
            if self.shell is not None:
                self.shell.frame(peer, payload)
        for peer, actor, hlc in effects.rollbacks:
            self.rollback(peer, actor, hlc)
        for peer, vv, floor in effects.reseeds:
            self.membership.reseed(peer, vv, floor)
        for peer, reason in effects.cuts:
            self.links.cut(peer, reason)
        scans = effects.scans or effects.sums or effects.bucket_scans
        return bool(refused or effects.reads or scans)

    def _write_all(self, effects: Effects) -> bool:
        refused: set[int] = set()
        for ops, covered in effects.rows:
            keep_rows_vv(self.store, self.replica.rows_vv)
            self.store.accept_rows(ops, covered)
            self.step("rows appended")
        if any(covered for _, covered in effects.rows):
            keep_floor(self.store, self.replica.gc_floor)
        for raw, record in effects.writes:
            try:
                taken = self.membership.accept(raw, record)
            except ActorReused:
                taken = False
            if not taken and self.store.vv.get(record.actor, 0) < record.hlc:
                refused.add(record.actor)
            self.step("record appended")
        for peer, actor, hlc, chain in effects.chains:
            self.heads.keep(peer, actor, hlc, chain)
        for origin in sorted(refused):
            self.replica.refused(origin, self.store.vv.get(origin, 0), self.now())
        scans = effects.scans or effects.bucket_scans
        if effects.frames or effects.rows or effects.writes or effects.reads or scans:
            self.flush()
        return not refused

    def _send_all(self, frames: Sequence[tuple[str, bytes]]) -> None:
        for peer, data in frames:
            if self.links.send(peer, data):
                self.world.trace.count("frame", type(decode_frame(data)).__name__)
                self.largest_bytes = max(self.largest_bytes, len(data))
            self.step(f"frame sent to {peer}")

    def _check_windows(self) -> None:
        limits = self.world.limits
        # One frame of any size fits an empty window.
        bound = limits.window_bytes + 2 * limits.frame_bytes + self.largest_bytes
        for peer in self.replica.peers.values():
            self.world.trace.count("mode", str(peer.mode))
            if peer.window_bytes + peer.batch_bytes > bound:
                self.problems.append(
                    f"I11: {self.name} has {peer.window_bytes} bytes under way to {peer.node}, "
                    f"the window is {limits.window_bytes}"
                )

    def _wake_at(self, when_ms: float) -> None:
        now_ms = self.world.loop.now_ms
        when_ms = min(max(when_ms, now_ms + 1.0), now_ms + 60_000.0)
        if self._wake_ms <= now_ms or when_ms < self._wake_ms:
            self._wake_ms = when_ms
            self.world.loop.at(when_ms, self.life, self._tick)

    def _tick(self) -> None:
        if self.world.loop.now_ms < self._wake_ms:
            return
        now_ms = self.now()
        if now_ms >= self._looked_ms + self.world.limits.heartbeat_ms:
            self._looked_ms = now_ms
            head = self.store.head
            self.replica.chain = head if head[0] else None
            if not self.store.dirty:
                self.replica.digested(*self.store.digest())
        self.replica.tick(now_ms)
        self._pump()

    def rollback(self, peer: str, actor: int, hlc: int) -> None:
        """A neighbour knows more of an actor of this store, or another writer of it."""
        self.rollbacks += 1
        self.world.trace.count("rule", "Rollback found")
        self.say(f"Rollback: {peer} knows {actor & 0xFFFF:04x} up to {hlc}")
        if not self.excused_rollbacks:
            self.problems.append(
                f"I2: {peer} knows more of {self.name}'s actor {actor & 0xFFFF:04x} than "
                f"{self.name} does: something left it that was not durable"
            )
        if actor != self.store.actor:
            return
        self.store.renew_actor(self.world.random.randbytes)
        self._new_actor()
        self.replica.new_actor(self.store.actor)
        self.wake()
