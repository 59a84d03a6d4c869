"""The links as sessions see them: who is up, who is silent, how to reach whom."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from roost_crdt.errors import BadRequest, RoostError
from roost_crdt.home import Candidate
from roost_crdt.limits import KIB
from roostd.gossip import Gossip
from roostd.rpc import Rpc
from roostd.sessions.types import NEVER_MS

log = logging.getLogger(__name__)

DEFAULT_RTT_MS = 100.0
FRAME = "session.frame"
RELAY_DEADLINE_MS = 5_000
RELAYS_MAX = 64
"""Nodes that are no neighbours to which session frames are on their way at a time."""
RELAY_BYTES = 256 * KIB
"""Session frames that wait for one of them; more are dropped, and said again."""

TakeFrame = Callable[[str, bytes], None]


class Links:
    """roostd.sessions.Neighbours over gossip and rpc."""

    def __init__(self, gossip: Gossip, rpc: Rpc) -> None:
        self._gossip = gossip
        self._rpc = rpc
        self._relays: dict[str, asyncio.Task[None]] = {}
        self._waiting: dict[str, list[bytes]] = {}
        """Frames for nodes that are no neighbours, in order: the next call takes all of them."""

    def candidates(self) -> list[Candidate]:
        return [
            Candidate(link.peer, link.region, link.rtt_ms or DEFAULT_RTT_MS)
            for link in self._gossip.links()
            if link.state == "up"
        ]

    def beyond(self) -> set[str]:
        return self._gossip.beyond()

    def silent_ms(self, node: str) -> int:
        silent_ms = self._gossip.silent_ms(node)
        return NEVER_MS if silent_ms is None else silent_ms

    def send(self, node: str, payload: bytes) -> bool:
        """Over the link; to a node that is no neighbour by way of others: a former home may be
        none of the new one's. False if it was not even queued."""
        if self._gossip.send_session(node, payload):
            return True
        if self._gossip.linked(node) or not self._gossip.routes(node):
            return False
        waiting = self._waiting.get(node, [])
        if waiting and sum(map(len, waiting)) + len(payload) > RELAY_BYTES:
            return False
        if node not in self._relays:
            if len(self._relays) >= RELAYS_MAX:
                return False
            task = asyncio.create_task(self._relay(node), name=f"session frames to {node}")
            self._relays[node] = task
        self._waiting.setdefault(node, []).append(payload)
        return True

    async def _relay(self, node: str) -> None:
        try:
            while frames := self._waiting.pop(node, None):
                args = {"frame": frames[0], "more": frames[1:]}
                try:
                    await self._rpc.call(node, FRAME, args, deadline_ms=RELAY_DEADLINE_MS)
                except RoostError as error:
                    log.info("session frames did not reach %s: %s", node, error.message)
        finally:
            del self._relays[node]

    def receive(self, take: TakeFrame) -> None:
        """Hand frames that came by way of other nodes to `take(origin, payload)`."""

        async def frame(origin: str, args: dict[str, Any]) -> Any:
            payloads = [args.get("frame"), *_several(args.get("more", []))]
            if not all(isinstance(payload, bytes) for payload in payloads):
                raise BadRequest(f"{origin} relayed no session frame")
            for payload in payloads:
                take(origin, payload)

        handler: Callable[[str, dict[str, Any]], Awaitable[Any]] = frame
        self._rpc.register(FRAME, handler)

    async def stop(self) -> None:
        """Give up what is still on its way."""
        relays = list(self._relays.values())
        for task in relays:
            task.cancel()
        await asyncio.gather(*relays, return_exceptions=True)

    async def call(self, node: str, method: str, args: dict[str, Any], *, deadline_ms: int) -> Any:
        return await self._rpc.call(node, method, args, deadline_ms=deadline_ms)


def _several(raw: Any) -> list[Any]:
    """The further frames of a call; nodes of the release before send none."""
    return raw if isinstance(raw, list) else [raw]
