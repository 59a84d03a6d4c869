"""Erasure: dropped here and at every node in reach; who was away hears of it when it is back."""

from __future__ import annotations

from typing import Any

from roost_crdt.errors import RoostError
from roost_crdt.sessions.copy import SessionCopy

from .answers import Answer, Receipt
from .athome import AtHome
from .rpc import Rpc

ERASE_MS = 1_500.0


class Erasing(AtHome):
    """The part of a session service that erases."""

    rpc: Rpc

    async def erase_everywhere(self, live: SessionCopy) -> Answer:
        """One receipt a node; `pending` where one that may hold a copy cannot be reached now."""
        sid, answer = live.meta.sid, self._answer(live)
        nodes = {c.node for c in self.candidates()} | {live.meta.home, live.meta.standby or ""}
        at_ms, me = self.node.wall_ms(), self.node.name
        receipts = [await self._erase_here(sid, at_ms)]
        receipts += await self._ask_to_erase(sid, at_ms, nodes - {me, ""}, {me})
        answer.receipts = tuple(receipts)
        return answer

    async def _erase_here(self, sid: str, at_ms: int) -> Receipt:
        if self.stream.erase_here(sid, at_ms):
            self.count("erased")
            self.node.say(f"erases {sid}")
        await self.durable()
        return Receipt(self.node.name, self.node.world.loop.now_ms)

    async def _ask_to_erase(
        self, sid: str, at_ms: int, nodes: set[str], asked: set[str]
    ) -> list[Receipt]:
        args = (sid, at_ms, nodes | asked)
        loop, life = self.node.world.loop, self.node.life
        calls = [
            (name, loop.spawn(self.rpc.call(name, "erase", args, deadline_ms=ERASE_MS), life))
            for name in sorted(nodes)
        ]
        receipts: list[Receipt] = []
        for name, call in calls:
            try:
                receipts += await call
            except RoostError as error:
                self.count("erasure pending")
                receipts.append(Receipt(name, loop.now_ms, pending=str(error)))
        return receipts

    async def remote_erase(self, peer: str, args: Any) -> list[Receipt]:
        """Erase here, and at the neighbours that the asking node cannot reach itself."""
        sid, at_ms, asked = args
        further = {c.node for c in self.candidates()} - asked
        receipts = [await self._erase_here(sid, at_ms)]
        return receipts + await self._ask_to_erase(sid, at_ms, further, asked)
