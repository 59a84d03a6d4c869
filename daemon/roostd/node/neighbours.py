"""The links as sessions see them: who is up, who is silent, how to reach whom."""

from __future__ import annotations

from typing import Any

from roost_crdt.home import Candidate
from roostd.gossip import Gossip
from roostd.rpc import Rpc
from roostd.sessions.types import NEVER_MS

DEFAULT_RTT_MS = 100.0


class Links:
    """roostd.sessions.Neighbours over gossip and rpc."""

    def __init__(self, gossip: Gossip, rpc: Rpc) -> None:
        self._gossip = gossip
        self._rpc = rpc

    def candidates(self) -> list[Candidate]:
        return [
            Candidate(link.peer, link.region, link.rtt_ms or DEFAULT_RTT_MS)
            for link in self._gossip.links()
            if link.state == "up"
        ]

    def silent_ms(self, node: str) -> int:
        silent_ms = self._gossip.silent_ms(node)
        return NEVER_MS if silent_ms is None else silent_ms

    def send(self, node: str, payload: bytes) -> bool:
        return self._gossip.send_session(node, payload)

    async def call(self, node: str, method: str, args: dict[str, Any], *, deadline_ms: int) -> Any:
        return await self._rpc.call(node, method, args, deadline_ms=deadline_ms)
