"""Requests carried to another node, and where an unknown session lives."""

from __future__ import annotations

import asyncio
from typing import cast

import msgspec

from roost_crdt.errors import NoSession, RoostError, Unavailable, UnknownOutcome
from roost_crdt.home import Meta
from roostd.sessions.context import Context
from roostd.sessions.copies import Copies
from roostd.sessions.types import ANSWERS, NEVER_MS, Answer, Request

FORWARD_DEADLINE_MS = 5_000
LOCATE_DEADLINE_MS = 2_000
DO = "session.do"
LOCATE = "session.locate"


class Forwarder:
    """Asks other nodes on behalf of a request made here."""

    def __init__(self, context: Context, copies: Copies) -> None:
        self._context = context
        self._copies = copies

    async def ask(
        self, node: str, request: Request, meta: Meta, hops: int, origin: str, *, guard: bool
    ) -> Answer:
        """Forward to `node`; with `guard`, give up as soon as a neighbour has fallen silent.

        Unavailable: `node` did not get it, or refuses it. UnknownOutcome: it may have done it.
        """
        context = self._context
        args = {
            "request": msgspec.to_builtins(request, builtin_types=(bytes,)),
            "hops": hops + 1,
            "origin": origin,
        }
        call = asyncio.ensure_future(
            context.neighbours.call(node, DO, args, deadline_ms=FORWARD_DEADLINE_MS)
        )
        try:
            while not call.done():
                await asyncio.wait([call], timeout=0.1)
                silent_ms = context.neighbours.silent_ms(node)
                if call.done() or not guard or silent_ms >= NEVER_MS:
                    continue  # of a node behind a neighbour only the call itself can tell
                if silent_ms >= context.takeover_after_ms:
                    raise UnknownOutcome(f"{node} has been silent for {silent_ms} ms")
            raw = call.result()
        finally:
            call.cancel()
        answer = cast("Answer", msgspec.convert(raw, ANSWERS[type(request)], strict=False))
        token = getattr(answer, "token", None)
        claims = await context.learn_from(token) if token else None
        if answer.served_by == "home":
            answer.served_by = "forwarded"
        if claims is not None:
            await self._copies.after_forward(request, answer, claims, node)
        return answer

    async def locate(self, sid: str, *, may_begin: bool) -> Meta | None:
        """Ask all nodes in reach for an unknown session; None = nobody has it and it may begin."""
        context = self._context
        nodes = [c.node for c in context.neighbours.candidates()]
        nodes += sorted(context.neighbours.beyond())
        answers = await asyncio.gather(
            *(
                context.neighbours.call(node, LOCATE, {"sid": sid}, deadline_ms=LOCATE_DEADLINE_MS)
                for node in nodes
            ),
            return_exceptions=True,
        )
        best: tuple[tuple[int, str], str | None, int] | None = None
        silent: list[str] = []
        for node, answer in zip(nodes, answers, strict=True):
            if isinstance(answer, RoostError):
                silent.append(f"{node} ({answer.message})")
            elif isinstance(answer, BaseException):
                raise answer
            elif answer is not None:
                found = ((int(answer[0][0]), str(answer[0][1])), answer[1], int(answer[2]))
                if best is None or (found[2], found[0]) > (best[2], best[0]):
                    best = found
        if best is not None:
            if best[2]:
                raise NoSession(f"session {sid} was erased; open a new one")
            return context.shelf.remember_stub(sid, best[0], best[1])
        if silent:
            raise Unavailable(
                f"session {sid} is not known here and {', '.join(silent)} did not answer; try "
                "again or give the session's token",
                retry_after_ms=500,
            )
        if may_begin:
            return None
        raise NoSession(f"no node knows session {sid}; open it first")
