"""Erasure: terminal, outranks every epoch, answered with a receipt by each holder."""

from __future__ import annotations

import asyncio
from typing import Any

from roost_crdt.errors import BadRequest, RoostError
from roost_crdt.home import check_sid
from roost_crdt.sessions.stream import Stream
from roostd.sessions.context import Context
from roostd.sessions.copies import Copies

ERASE = "session.erase"
ERASE_DEADLINE_MS = 5_000


class Erasure:
    """Drops sessions here and at every node in reach; the others learn of it on return."""

    def __init__(self, context: Context, stream: Stream, copies: Copies) -> None:
        self._context = context
        self._stream = stream
        self._copies = copies

    async def everywhere(self, sid: str) -> list[dict[str, Any]]:
        """One receipt a node; `pending` where home or standby cannot be reached now."""
        meta = self._context.shelf.meta(sid)
        holders = {meta.home, meta.standby} if meta is not None else set()
        nodes = {c.node for c in self._context.neighbours.candidates()}
        nodes |= {node for node in holders if node is not None}
        at_ms = self._context.now_ms()
        receipts = [await self._here(sid, at_ms)]
        receipts += await self._ask(sid, at_ms, nodes - {self._context.node}, {self._context.node})
        return _one_each(receipts)

    async def remote_erase(self, peer: str, args: dict[str, Any]) -> Any:
        """Erase here, and at the neighbours that the asking node cannot reach itself."""
        try:
            sid, at_ms = str(args["sid"]), int(args["at_ms"])
            asked = {str(node) for node in args["asked"]}
            check_sid(sid, BadRequest)
        except (KeyError, TypeError, ValueError) as error:
            raise BadRequest(f"{peer} asked for a malformed erasure: {error!r}") from error
        further = {c.node for c in self._context.neighbours.candidates()} - asked
        receipts = [await self._here(sid, at_ms)]
        return receipts + await self._ask(sid, at_ms, further, asked)

    async def _here(self, sid: str, at_ms: int) -> dict[str, Any]:
        held = self._stream.erase_here(sid, at_ms)
        await self._context.durable()
        return {"node": self._context.node, "held": held, "erased_ms": at_ms}

    async def _ask(
        self, sid: str, at_ms: int, nodes: set[str], asked: set[str]
    ) -> list[dict[str, Any]]:
        args = {"sid": sid, "at_ms": at_ms, "asked": sorted(nodes | asked)}
        order = sorted(nodes)
        call = self._context.neighbours.call
        answers = await asyncio.gather(
            *(call(node, ERASE, args, deadline_ms=ERASE_DEADLINE_MS) for node in order),
            return_exceptions=True,
        )
        receipts: list[dict[str, Any]] = []
        for node, answer in zip(order, answers, strict=True):
            if isinstance(answer, RoostError):
                receipts.append({"node": node, "pending": answer.message})
            elif isinstance(answer, BaseException):
                raise answer
            else:
                receipts += answer
        return receipts


def _one_each(receipts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of several receipts of a node, asked over several ways, the one that says most."""
    best: dict[str, dict[str, Any]] = {}
    for receipt in receipts:
        known = best.get(receipt["node"])
        if known is None or "pending" in known or receipt.get("held"):
            best[receipt["node"]] = receipt
    return list(best.values())
