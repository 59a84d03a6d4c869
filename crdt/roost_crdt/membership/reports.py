"""This node's place in the roster: its reports, whom it enters, whom it removes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from roost_crdt.errors import BadRequest, CorruptData, RoostError
from roost_crdt.limits import Limits
from roost_crdt.members import (
    Member,
    Roster,
    covers,
    member_delta,
    member_key,
    removal_delta,
    removal_key,
)
from roost_crdt.record import Record, RowOp
from roost_crdt.replica import Replica
from roost_crdt.rows import Delta
from roost_crdt.rows.layout import RESERVED, TYPE_REGISTER, Rows

from .reseeding import own_actors
from .storage import MemberStore

_SCAN_BYTES = 1 << 20
OBSERVED_MS = 3_600_000
"""A node that has just started lets everybody report for so long before it removes anyone."""
RETIRED_MAX = 1_000
_LOOK_MS = 1_000
_SAY_MS = 60_000


class Members:
    """Keeps the roster in memory as the store's rows say, and writes what this node adds to it."""

    def __init__(
        self,
        node: str,
        *,
        store: MemberStore,
        replica: Replica,
        committed: Callable[[Record], None],
        now_ms: Callable[[], int],
        boot_ms: Callable[[], int],
        neighbours: Callable[[], Iterable[str]],
        limits: Limits,
        cut: Callable[[str, str], None],
        tell: Callable[[str], None],
    ) -> None:
        self.node = node
        self.roster = Roster()
        self._store = store
        self._replica = replica
        self._committed = committed
        self._now_ms = now_ms
        self._boot_ms = boot_ms
        self._neighbours = neighbours
        self._limits = limits
        self._cut = cut
        self._tell = tell
        self._started_ms = boot_ms()
        self._looked_ms = 0
        self._said_ms = -_SAY_MS
        self.load()

    def load(self) -> None:
        """Read the whole roster from the store."""
        self.roster.nodes.clear()
        self.roster.removed.clear()
        self.roster.rewritten.clear()
        after = RESERVED
        while page := self._scan(after):
            keys = [op.row_key.partition(b"\0")[0] for op in page]
            own = [key for key in keys if key.startswith(RESERVED)]
            for key in own:
                self.roster.load(key, self._rows(key))
            after = page[-1].row_key
            if len(own) < len(keys):
                break
        self._apply()

    def _scan(self, after: bytes) -> Sequence[RowOp]:
        try:
            return self._store.scan_rows(after, _SCAN_BYTES)
        except CorruptData as error:
            self._tell(f"the roster is read as far as it can be: {error}")
            return ()

    def _rows(self, key: bytes) -> Rows:
        """The rows of a key; none while they are damaged, until they are mended."""
        try:
            return self._store.key_rows(key).rows
        except CorruptData as error:
            self._tell(f"the roster lacks an entry: {error}")
            return {}

    def changed(self, keys: Iterable[bytes]) -> None:
        """Rows of these keys have become durable."""
        own = [key for key in keys if key.startswith(RESERVED)]
        for key in own:
            self.roster.load(key, self._rows(key))
        if own:
            self._apply()

    def _apply(self) -> None:
        replica = self._replica
        replica.roster_hash = self.roster.hash()
        replica.removed = frozenset(self.roster.removed)
        for peer in list(replica.peers.values()):
            if peer.greeting.actor in replica.removed:
                self._cut(peer.node, f"{peer.node} was removed from the members")

    def tick(self) -> None:
        """Whatever is due: an own report, a neighbour to enter, a silent member to remove."""
        now_ms = self._now_ms()
        if abs(now_ms - self._looked_ms) < _LOOK_MS:
            return
        self._looked_ms = now_ms
        try:
            self._report(now_ms)
            vv = self._store.vv
            for actor, node in list(self._replica.nodes.items()):
                if actor != self._store.actor and (node in self._replica.peers or vv.get(actor)):
                    self._enter(node, actor)
            if self._boot_ms() - self._started_ms >= OBSERVED_MS:
                self._remove_silent(now_ms)
        except RoostError as error:
            if now_ms >= self._said_ms + _SAY_MS:
                self._said_ms = now_ms
                self._tell(f"the roster is written later: {error}")

    def _report(self, now_ms: int) -> None:
        store, mine = self._store, self.roster.nodes.get(self.node)
        # Who collects waits for all members, but knows of none whom this node has still to meet.
        met = self._has_met_all()
        vv = store.vv if met else {}
        # Who has just come waits to be told that nothing is collected without it any more.
        news = (peer.greeting.actor for peer in self._replica.peers.values())
        told = mine is not None and not any(vv.get(a) and a not in mine.vv for a in news)
        if mine is not None and told and mine.actor == mine.stamp[1] == store.actor:
            age_ms = now_ms - mine.told_ms
            same = covers(mine.vv, self.roster.content(vv)) and (met or not mine.vv)
            recent = 0 <= age_ms < self._limits.report_ms
            if recent or (same and age_ms < self._limits.report_idle_ms):
                return
        # An actor that nobody met is named too: its writes may have been taken by now.
        before = (*(() if mine is None else (*mine.retired, mine.actor)), *own_actors(store))
        retired = tuple(dict.fromkeys(a for a in before if a != store.actor))[-RETIRED_MAX:]
        wrote = self.roster.content(store.vv).get(store.actor, 0)
        self._write_member(Member(self.node, store.actor, retired, dict(vv), wrote))

    def _has_met_all(self) -> bool:
        return all(name in self.roster.nodes for name in self._neighbours())

    def _enter(self, node: str, actor: int) -> None:
        """Nobody joins unseen: collection has to wait for whoever may have written, also if the
        link did not last."""
        known = self.roster.nodes.get(node)
        if known is not None and actor in (known.actor, *known.retired):
            return
        peer = self._replica.peers.get(node)
        if known is not None and (peer is None or peer.greeting.actor != actor):
            return  # an actor of before: the node itself tells of it
        retired = () if known is None else (*known.retired, known.actor)[-RETIRED_MAX:]
        self._write_member(Member(node, actor, retired, {}, 0))

    def _write_member(self, member: Member) -> None:
        key = member_key(member.node)
        rows = self._rows(key)
        stamp = self._store.stamp(self._now_ms())
        self._write(key, member_delta(rows, member, stamp), stamp)

    def _write(self, key: bytes, delta: Delta, stamp: tuple[int, int]) -> None:
        self._committed(self._store.commit(stamp, [(key, TYPE_REGISTER, delta)]))
        self.roster.load(key, self._rows(key))

    def _remove_silent(self, now_ms: int) -> None:
        for member in list(self.roster.members.values()):
            silent_ms = now_ms - member.told_ms
            linked = member.node in self._replica.peers or member.node == self.node
            if silent_ms >= self._limits.member_silent_ms and not linked:
                self._tell(f"{member.node} has been silent for {silent_ms} ms: removed")
                self.remove(member.node)

    def remove(self, node: str) -> int:
        """Take a node out of the members; the actor that is refused from now on.

        Raises BadRequest for this node or one that is no member; Full, Busy.
        """
        member = self.roster.members.get(node)
        if node == self.node:
            raise BadRequest(f"{node} is this node: remove it at another one, or stop it")
        if member is None:
            known = ", ".join(sorted(self.roster.members)) or "none"
            raise BadRequest(f"{node!r} is no member; members are {known}", field="id")
        key = removal_key(member.actor)
        rows = self._rows(key)
        stamp = self._store.stamp(self._now_ms())
        self._write(key, removal_delta(rows, node, stamp), stamp)
        self._apply()
        return member.actor

    def listed(self) -> list[dict[str, object]]:
        """The members, as GET /v1/cluster and `roost member list` show them."""
        now_ms = self._now_ms()
        content = self.roster.content(self._store.vv)
        listed: list[dict[str, object]] = [
            {
                "node": member.node,
                "actor": f"{member.actor:016x}",
                "reported_ms": max(0, now_ms - member.told_ms),
                "current": covers(member.vv, content),
                "retired": len(member.retired),
            }
            for _, member in sorted(self.roster.members.items())
        ]
        if self.node not in self.roster.members:  # its first report is still to come
            actor = f"{self._store.actor:016x}"
            own = {"node": self.node, "actor": actor, "reported_ms": None}
            listed.append(own | {"current": True, "retired": 0})
        return listed
