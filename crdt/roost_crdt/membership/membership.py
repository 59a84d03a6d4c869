"""What a node does as a member of its cluster: reports, collection, joining again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from roost_crdt.errors import Busy
from roost_crdt.limits import Limits
from roost_crdt.record import Record
from roost_crdt.replica import Replica

from .collector import Collector
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
        tell: Callable[[str], None],
    ) -> None:
        """`now_ms` is the wall clock, `boot_ms` one that only advances. `neighbours` are those of
        the configuration. `new_actor` is told the actor of a store that was emptied; `tell` gets
        a line for the log."""
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
        self._new_actor = new_actor
        self._neighbours = neighbours
        self._agreed = False
        store.on_flush.append(self.members.changed)

    def reseed(self, peer: str, vv: Mapping[int, int], floor: Mapping[int, int]) -> None:
        """This node is behind what a neighbour (that holds `vv`) has collected up to `floor`, or
        was removed."""
        self.reseeding.trigger(peer, vv, floor)
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
        self.reseeding.tick()
        if self.reseeding.stage:
            return
        if not self._agreed_with():
            return
        if not self._replica.clock_refused():
            self.members.tick()
        self.collector.tick()

    def _agreed_with(self) -> bool:
        """Whether a neighbour knows this node as the actor that it writes as: a store that is a
        copy writes nothing of its own accord before somebody could have told."""
        self._agreed = self._agreed or bool(self._replica.peers) or not any(self._neighbours())
        return self._agreed

    def remove(self, node: str) -> int:
        """Take a node out of the members: what it holds is no longer waited for, and it has to
        reseed. The actor that is refused from now on. Raises BadRequest, Full, Busy."""
        self.admit()
        return self.members.remove(node)

    def listed(self) -> Sequence[dict[str, Any]]:
        """The members, as GET /v1/cluster shows them."""
        return self.members.listed()
