"""The links as sessions see them: who is up, who is silent, how to reach whom."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from roost_crdt.errors import BadRequest, RoostError
from roost_crdt.home import Candidate
from roostd.gossip import Gossip
from roostd.rpc import Rpc
from roostd.sessions.types import NEVER_MS

log = logging.getLogger(__name__)

DEFAULT_RTT_MS = 100.0
FRAME = "session.frame"
RELAY_DEADLINE_MS = 5_000
RELAYS_MAX = 64
"""Session frames on their way to nodes that are no neighbours; more are dropped, and said again."""

TakeFrame = Callable[[str, bytes], None]


class Links:
    """roostd.sessions.Neighbours over gossip and rpc."""

    def __init__(self, gossip: Gossip, rpc: Rpc) -> None:
        self._gossip = gossip
        self._rpc = rpc
        self._relays: set[asyncio.Task[None]] = set()

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
        """Over the link; to a node that is no neighbour by way of others: a former home may be
        none of the new one's. False if it was not even queued."""
        if self._gossip.send_session(node, payload):
            return True
        reached = not self._gossip.linked(node) and bool(self._gossip.routes(node))
        if not reached or len(self._relays) >= RELAYS_MAX:
            return False
        task = asyncio.create_task(self._relay(node, payload), name=f"session frame to {node}")
        self._relays.add(task)
        task.add_done_callback(self._relays.discard)
        return True

    async def _relay(self, node: str, payload: bytes) -> None:
        try:
            await self._rpc.call(node, FRAME, {"frame": payload}, deadline_ms=RELAY_DEADLINE_MS)
        except RoostError as error:
            log.info("a session frame did not reach %s: %s", node, error.message)

    def receive(self, take: TakeFrame) -> None:
        """Hand frames that came by way of other nodes to `take(origin, payload)`."""

        async def frame(origin: str, args: dict[str, Any]) -> Any:
            payload = args.get("frame")
            if not isinstance(payload, bytes):
                raise BadRequest(f"{origin} relayed no session frame")
            take(origin, payload)

        handler: Callable[[str, dict[str, Any]], Awaitable[Any]] = frame
        self._rpc.register(FRAME, handler)

    async def stop(self) -> None:
        """Give up what is still on its way."""
        relays = list(self._relays)
        for task in relays:
            task.cancel()
        await asyncio.gather(*relays, return_exceptions=True)

    async def call(self, node: str, method: str, args: dict[str, Any], *, deadline_ms: int) -> Any:
        return await self._rpc.call(node, method, args, deadline_ms=deadline_ms)
