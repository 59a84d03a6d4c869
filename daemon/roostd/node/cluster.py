"""What a node does as a member of its cluster: reports, collection, joining again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from roost_crdt.errors import Busy
from roost_crdt.limits import Limits
from roost_crdt.record import Record
from roostd import wire
from roostd.gossip import Gossip
from roostd.node.collector import Collector
from roostd.node.groups import Groups
from roostd.node.members import Members
from roostd.node.reseeding import Reseeding
from roostd.node.retention import Retention
from roostd.store import Store

__all__ = ["Membership"]


class Membership:
    """Members and collection of one node; ticked by it."""

    def __init__(
        self,
        node: str,
        *,
        store: Store,
        gossip: Gossip,
        groups: Groups,
        committed: Callable[[Record], None],
        now_ms: Callable[[], int],
        limits: Limits,
        new_actor: Callable[[int], None],
    ) -> None:
        replica = gossip.replica
        groups.flush()
        self._gossip = gossip
        self.members = Members(
            node,
            store=store,
            replica=replica,
            committed=committed,
            now_ms=now_ms,
            boot_ms=wire.boot_ms,
            limits=limits,
            cut=gossip.cut,
        )
        self.collector = Collector(
            node,
            roster=self.members.roster,
            store=store,
            replica=replica,
            committed=committed,
            flush=groups.flush,
            now_ms=now_ms,
            limits=limits,
        )
        self.reseeding = Reseeding(
            node,
            store=store,
            replica=replica,
            roster=self.members.roster,
            committed=committed,
            flush=groups.flush,
            now_ms=now_ms,
            emptied=self._emptied,
        )
        self.retention = Retention(store, gossip, self.members.roster)
        self._new_actor = new_actor
        store.on_flush.append(self.members.changed)

    def reseed(self, peer: str, vv: Mapping[int, int]) -> None:
        """This node is behind what a neighbour (that holds `vv`) has collected, or was removed."""
        self.reseeding.trigger(peer, vv)
        self.collector.collection.end()

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
        if self.reseeding.stage:
            self.reseeding.tick()
            return
        if not self._gossip.replica.clock_refused():
            self.members.tick()
        self.collector.tick()
        self.retention.tick()

    def remove(self, node: str) -> int:
        """Take a node out of the members: what it holds is no longer waited for, and it has to
        reseed. The actor that is refused from now on. Raises BadRequest, Full, Busy."""
        self.admit()
        return self.members.remove(node)

    def listed(self) -> Sequence[dict[str, Any]]:
        """The members, as GET /v1/cluster shows them."""
        return self.members.listed()
