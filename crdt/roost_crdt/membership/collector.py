"""Collection at this node: pages of a scan and of drops, a little each tick."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec

from roost_crdt.collection import Collection, Stage, dead_rows, end_life, head_actor
from roost_crdt.errors import CorruptData, RoostError
from roost_crdt.hlc import hlc_ms
from roost_crdt.limits import Limits
from roost_crdt.logformat import KIND_META
from roost_crdt.members import Roster
from roost_crdt.record import Record
from roost_crdt.replica import Replica
from roost_crdt.rows.layout import Part, row_key

from .storage import MemberStore

GC_FLOOR = b"gc_floor"
ROWS_VV = b"rows_vv"
_PAGE_BYTES = 128 << 10
_DROP_KEYS = 500

_decode_vector = msgspec.msgpack.Decoder(dict[int, int]).decode


def load_floor(store: MemberStore) -> dict[int, int]:
    """What has been collected in this store, or at the neighbour whose snapshot it took."""
    return _load(store, GC_FLOOR)


def keep_floor(store: MemberStore, floor: Mapping[int, int]) -> None:
    """Durable with the group in hand, before anything that it speaks of."""
    _keep(store, GC_FLOOR, floor)


def load_rows_vv(store: MemberStore) -> dict[int, int]:
    """What rows that came into this store without a vector may show."""
    return _load(store, ROWS_VV)


def keep_rows_vv(store: MemberStore, rows_vv: Mapping[int, int]) -> None:
    """Durable with the group in hand, before the rows that it speaks of."""
    if rows_vv:
        _keep(store, ROWS_VV, rows_vv)


def _load(store: MemberStore, name: bytes) -> dict[int, int]:
    raw = store.get(KIND_META, name)
    return {} if raw is None else _decode_vector(raw)


def _keep(store: MemberStore, name: bytes, vv: Mapping[int, int]) -> None:
    raw = msgspec.msgpack.encode(dict(vv))
    if store.get(KIND_META, name) != raw:
        store.put(KIND_META, {name: raw})


class Collector:
    """Runs one `Collection` after another."""

    def __init__(
        self,
        node: str,
        *,
        roster: Roster,
        store: MemberStore,
        replica: Replica,
        committed: Callable[[Record], None],
        flush: Callable[[], None],
        now_ms: Callable[[], int],
        neighbours: Callable[[], Iterable[str]],
        limits: Limits,
        tell: Callable[[str], None],
    ) -> None:
        self.collection = Collection(node, roster, limits.gc_rows_max)
        self.dropped = 0
        """Rows that were collected since this node started."""
        self._node = node
        self._roster = roster
        self._store = store
        self._replica = replica
        self._committed = committed
        self._flush = flush
        self._now_ms = now_ms
        self._neighbours = neighbours
        self._limits = limits
        self._tell = tell
        self._after = b""
        self._scanned = b""
        self._due_ms = 0

    def tick(self) -> None:
        """One page of a scan, a look at the reports, or one page of drops."""
        work = self.collection
        try:
            if work.stage is Stage.SCAN:
                if self._now_ms() >= self._due_ms:
                    self._scan()
            elif work.stage is Stage.DROP:
                self._drop()
            elif self._agreed():
                self._raise_floor()
        except (RoostError, CorruptData) as error:
            self._tell(f"collection goes on later: {error}")

    def _scan(self) -> None:
        self._flush()
        page = self._store.scan_rows(self._after, _PAGE_BYTES)
        more = True
        for key in dict.fromkeys(op.row_key.partition(b"\0")[0] for op in page):
            if key != self._scanned:
                self._end_life(key)
                more = self.collection.found(key, self._dead(key))
                self._scanned = key
            if not more:
                break
        self._after = page[-1].row_key if page else b""
        if not more:
            self._after = row_key(self._scanned, b"\xff")
        if page and more:
            return
        self._due_ms = 0 if page else self._now_ms() + self._limits.gc_pause_ms
        self._scanned = b""
        if not self.collection.begin(self._store.vv, self._replica.rows_vv):
            self._due_ms = self._now_ms() + self._limits.gc_pause_ms

    def _end_life(self, key: bytes) -> None:
        """Write what the next life of a long expired key would begin with, if it is ours to do."""
        try:
            held = self._store.key_rows(key)
        except CorruptData:
            return
        now_ms = self._now_ms() - self._limits.clock_offset_max_ms - self._limits.gc_grace_ms
        actor = head_actor(held.rows)
        if not actor or self._owner(actor) != self._node:
            return
        stamp = self._store.stamp(self._now_ms())
        delta = end_life(held.type, held.rows, self._store.vv, stamp, now_ms)
        if delta:
            self._committed(self._store.commit(stamp, [(key, held.type, delta)]))

    def _owner(self, actor: int) -> str:
        members = self._roster.members
        for member in members.values():
            if actor == member.actor or actor in member.retired:
                return member.node
        return min(members, default=self._node)

    def _dead(self, key: bytes) -> dict[Part, bytes]:
        try:
            held = self._store.key_rows(key)
        except CorruptData:
            return {}  # a neighbour's rows repair it first
        now_ms = self._now_ms() - self._limits.clock_offset_max_ms
        return dead_rows(held.type, key, held.rows, now_ms, self._limits.gc_grace_ms)

    def _agreed(self) -> bool:
        replica = self._replica
        if replica.takes_rows or replica.gives_rows or self._store.dirty:
            return False
        known = {(member.node, member.actor) for member in self._roster.members.values()}
        if any((p.node, p.greeting.actor) not in known for p in replica.peers.values()):
            return False  # somebody has just come and is still to be entered
        if self._unentered():
            return False  # it may have written what it does not know to be deleted
        if any(name not in self._roster.nodes for name in self._neighbours()):
            return False  # never met: it may hold what is older than what is deleted here
        return self.collection.step(self._store.vv) is Stage.DROP

    def _unentered(self) -> bool:
        """Whether somebody wrote what is here and is in no roster yet: who took it first still
        has to enter the node. One that was never entered is waited for as long as a silent one."""
        vv, now_ms = self._store.vv, self._now_ms()
        unknown = self._roster.unknown(actor for actor, hlc in vv.items() if hlc)
        silent_ms = self._limits.member_silent_ms
        return any(now_ms - hlc_ms(vv[a]) < silent_ms for a in unknown if a != self._store.actor)

    def _raise_floor(self) -> None:
        floor = self.collection.floor(self._replica.gc_floor)
        try:
            keep_floor(self._store, floor)
        except RoostError:
            self.collection.end()
            raise
        self._replica.gc_floor = floor

    def _drop(self) -> None:
        work = self.collection
        names: list[bytes] = []
        for key in list(work.candidates)[:_DROP_KEYS]:
            names += [row_key(key, part) for part in work.drop(key, self._dead(key))]
        if names:
            self._store.drop_rows(names)
            self.dropped += len(names)
        if not work.candidates:
            work.end()
