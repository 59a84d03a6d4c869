"""What a node does as a member of its cluster: reports, collection, joining again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from roost_crdt.limits import Limits
from roost_crdt.record import Record
from roostd import wire
from roostd.gossip import Gossip
from roostd.node.collector import Collector
from roostd.node.groups import Groups
from roostd.node.members import Members
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
        store.on_flush.append(self.members.changed)

    def tick(self) -> None:
        if not self._gossip.replica.clock_refused():
            self.members.tick()
        self.collector.tick()

    def listed(self) -> Sequence[dict[str, Any]]:
        """The members, as GET /v1/cluster shows them."""
        return self.members.listed()
