"""Which part of the log the neighbours still need: what each of them holds, durably.

A neighbour shows what it holds by its greeting, its announcements and heartbeats, and by the
report that every member writes into the roster; all of them tell of durable records only. One
that is away holds what it last reported. The bounds by bytes and age are the log's own.
"""

from __future__ import annotations

from collections.abc import Mapping

from roost_crdt.members import Roster
from roostd import wire
from roostd.gossip import Gossip
from roostd.store import Store

LOOK_MS = 2_000


class Retention:
    """Tells the store what it need not keep for its neighbours."""

    def __init__(self, store: Store, gossip: Gossip, roster: Roster) -> None:
        self._store = store
        self._gossip = gossip
        self._roster = roster
        self._looked_ms = 0

    def tick(self) -> None:
        """Called every quarter of a second; looks now and then."""
        now_ms = wire.boot_ms()
        if now_ms >= self._looked_ms + LOOK_MS:
            self._looked_ms = now_ms
            self._store.neighbours_hold(self.held())

    def held(self) -> Mapping[int, int] | None:
        """Origin -> hlc that every neighbour holds; None without neighbours."""
        shown = [self._held_by(link.peer) for link in self._gossip.links()]
        if not shown:
            return None
        first, others = shown[0], shown[1:]
        return {
            origin: min(hlc, *(other.get(origin, 0) for other in others)) if others else hlc
            for origin, hlc in first.items()
        }

    def _held_by(self, node: str) -> Mapping[int, int]:
        member, peer = self._roster.members.get(node), self._gossip.replica.peers.get(node)
        reported = {} if member is None else member.vv
        if peer is None:
            return reported
        return {o: max(hlc, peer.held.get(o, 0)) for o, hlc in {**peer.held, **reported}.items()}
