"""Erasure: terminal, outranks every epoch, answered with a receipt by each holder."""

from __future__ import annotations

import asyncio
from typing import Any

from roost_crdt.errors import RoostError
from roost_crdt.sessions.stream import Stream
from roostd.sessions.context import Context
from roostd.sessions.copies import Copies

ERASE_DEADLINE_MS = 5_000


class Erasure:
    """Drops sessions here and at every neighbour that is up; the others learn of it on return."""

    def __init__(self, context: Context, stream: Stream, copies: Copies) -> None:
        self._context = context
        self._stream = stream
        self._copies = copies

    async def here(self, sid: str, at_ms: int) -> dict[str, Any]:
        held = self._stream.erase_here(sid, at_ms)
        self._copies.drop(sid)
        await self._context.durable()
        return {"node": self._context.node, "held": held, "erased_ms": at_ms}

    async def everywhere(self, sid: str) -> list[dict[str, Any]]:
        context = self._context
        at_ms = context.now_ms()
        receipts = [await self.here(sid, at_ms)]
        nodes = [c.node for c in context.neighbours.candidates()]
        answers = await asyncio.gather(
            *(
                context.neighbours.call(
                    node,
                    "session.erase",
                    {"sid": sid, "at_ms": at_ms},
                    deadline_ms=ERASE_DEADLINE_MS,
                )
                for node in nodes
            ),
            return_exceptions=True,
        )
        for node, answer in zip(nodes, answers, strict=True):
            if isinstance(answer, RoostError):
                receipts.append({"node": node, "pending": answer.message})
            elif isinstance(answer, BaseException):
                raise answer
            else:
                receipts.append(answer)
        return receipts
