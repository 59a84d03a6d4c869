"""What a node does as a member of its cluster: reports, collection, joining again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from roost_crdt.errors import Busy
from roost_crdt.limits import Limits
from roost_crdt.record import Record
from roost_crdt.replica import Replica

from .collector import Collector
from .forking import Forking
from .reports import Members
from .reseeding import Reseeding
from .storage import MemberStore


class Membership:
    """Members and collection of one node; ticked by it."""

    def __init__(
        self,
        node: str,
        *,
        store: MemberStore,
        replica: Replica,
        committed: Callable[[Record], None],
        flush: Callable[[], None],
        cut: Callable[[str, str], None],
        now_ms: Callable[[], int],
        boot_ms: Callable[[], int],
        random_bytes: Callable[[int], bytes],
        neighbours: Callable[[], Iterable[str]],
        limits: Limits,
        new_actor: Callable[[int], None],
        rolled_back: Callable[[str, int, int], None],
        tell: Callable[[str], None],
    ) -> None:
        """`now_ms` is the wall clock, `boot_ms` one that only advances. `neighbours` are those of
        the configuration. `new_actor` is told the actor of a store that was emptied;
        `rolled_back` that a node reports more of the own actor than this one wrote, or another
        history of it (node, actor, hlc); `tell` gets a line for the log."""
        flush()
        self._replica = replica
        self.members = Members(
            node,
            store=store,
            replica=replica,
            committed=committed,
            now_ms=now_ms,
            boot_ms=boot_ms,
            neighbours=neighbours,
            limits=limits,
            cut=cut,
            tell=tell,
        )
        self.collector = Collector(
            node,
            roster=self.members.roster,
            store=store,
            replica=replica,
            committed=committed,
            flush=flush,
            now_ms=now_ms,
            neighbours=neighbours,
            limits=limits,
            tell=tell,
        )
        self.reseeding = Reseeding(
            node,
            store=store,
            replica=replica,
            roster=self.members.roster,
            committed=committed,
            flush=flush,
            now_ms=now_ms,
            emptied=self._emptied,
            random_bytes=random_bytes,
            tell=tell,
        )
        self.forking = Forking(store, replica, committed, now_ms, random_bytes, tell)
        self._store = store
        self._new_actor = new_actor
        self._neighbours = neighbours
        self._agreed = False
        self._rolled_back = rolled_back
        self._compared: dict[str, tuple[int, int]] = {}
        """Node -> the actor, and the hlc of it in that node's report, that were looked at."""
        store.on_flush.append(self.members.changed)

    def reseed(self, peer: str, vv: Mapping[int, int], floor: Mapping[int, int]) -> None:
        """This node is behind what a neighbour (that holds `vv`) has collected up to `floor`, or
        was removed."""
        self.reseeding.trigger(peer, vv, floor)
        self.collector.collection.end()

    def accept(self, raw: bytes, record: Record) -> bool:
        """Take a neighbour's record, as the store does; of an own actor that has another history
        also one that is no news."""
        held = self._store.vv.get(record.actor, 0)
        taken = self._store.accept(raw, record)
        if taken and record.prev_hlc < held:
            self.forking.cross(record.actor, held)
        self.forking.take(record)
        return taken

    def _emptied(self, actor: int) -> None:
        self.members.load()
        self._new_actor(actor)

    def admit(self) -> None:
        """Raise Busy while own writes have to wait for a reseed."""
        if self.reseeding.stage:
            raise Busy(
                "this node was away for too long and takes its neighbours' rows now; write at "
                "another one, or try again",
                retry_after_ms=1_000,
            )

    def tick(self) -> None:
        """Called every quarter of a second."""
        self.reseeding.tick()
        if self.reseeding.stage:
            if self.reseeding.reports and not self._replica.clock_refused():
                self.members.tick()
            return
        if not self._agreed_with():
            return
        self._compare_reports()
        if not self._replica.clock_refused():
            self.members.tick()
            self.forking.tick()
        self.collector.tick()

    def _agreed_with(self) -> bool:
        """Whether a neighbour knows this node as the actor that it writes as: a store that is a
        copy writes nothing of its own accord before somebody could have told."""
        self._agreed = self._agreed or bool(self._replica.peers) or not any(self._neighbours())
        return self._agreed

    def _compare_reports(self) -> None:
        """What members report of the own actor is a greeting of nodes that are no neighbours."""
        actor = self._store.actor
        for member in self.members.roster.nodes.values():
            known = actor, member.vv.get(actor, 0)
            if known == self._compared.get(member.node, (actor, 0)):
                continue
            self._compared[member.node] = known
            hlc = known[1]
            if hlc > self._store.vv.get(actor, 0) or self._store.chain_at(hlc) == b"":
                self.forking.part(hlc)
                self._rolled_back(member.node, actor, hlc)
                return

    def remove(self, node: str) -> int:
        """Take a node out of the members: what it holds is no longer waited for, and it has to
        reseed. The actor that is refused from now on. Raises BadRequest, Full, Busy."""
        self.admit()
        return self.members.remove(node)

    def listed(self) -> Sequence[dict[str, Any]]:
        """The members, as GET /v1/cluster shows them."""
        return self.members.listed()
