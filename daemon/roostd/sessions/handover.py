"""Moving a session's home without a stale turn: to a user who moved, on request, at drain.

The session is frozen, the whole document goes to the next home, which stores it under the next
epoch before it answers; only then does this node store the epoch too and become the standby. If
the answer is lost, this node takes an epoch above the one that may exist, so that one home wins.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from roost_crdt.errors import (
    BadRequest,
    NoSession,
    PeerError,
    RoostError,
    Unavailable,
    UnknownOutcome,
)
from roost_crdt.home import Follow, Whole, decode_frame, encode_frame
from roost_crdt.sessions.copy import SessionCopy
from roost_crdt.sessions.stream import Stream
from roostd.sessions.context import Context

log = logging.getLogger(__name__)

ADOPT_DEADLINE_MS = 5_000
DRAIN_AT_ONCE = 8
PAGE = 500


class Handover:
    """Gives sessions away and takes them in."""

    def __init__(self, context: Context, stream: Stream) -> None:
        self._context = context
        self._stream = stream

    def allowed(self, live: SessionCopy, node: str) -> bool:
        """Whether `node` is up and residency lets the session live there."""
        residency = self._context.residency()
        return any(
            c.node == node and (not residency or c.region in residency)
            for c in self._context.neighbours.candidates()
        )

    async def to(self, live: SessionCopy, node: str) -> None:
        """Make `node` the home of a session that is at home here.

        Raises Unavailable, or NoSession if it was erased while this waited for its turn.
        """
        context = self._context
        if node == context.node:
            return
        if not self.allowed(live, node):
            raise Unavailable(
                f"session {live.meta.sid} cannot move to {node}: it is not up, no neighbour, or "
                "outside of the policy's residency"
            )
        live.handing_over = True
        try:
            with live.pinned():
                async with context.lock(live):
                    meta = context.shelf.meta(live.meta.sid)
                    if meta is not None and meta.erased_ms:
                        raise NoSession(f"session {meta.sid} was erased; there is nothing to move")
                    if live.meta.home != context.node:
                        raise Unavailable(f"session {live.meta.sid} has moved to {live.meta.home}")
                    await self._hand_over(live, node)
        finally:
            live.handing_over = False

    async def _hand_over(self, live: SessionCopy, node: str) -> None:
        context = self._context
        frame = self._stream.handover(live, node)
        args = {"frame": encode_frame(frame)}
        try:
            await context.neighbours.call(
                node, "session.adopt", args, deadline_ms=ADOPT_DEADLINE_MS
            )
        except UnknownOutcome:
            self._stream.handover_unknown(live, frame)
            await context.durable()
            raise
        self._stream.handed_over(live, frame)
        await context.durable()
        log.info("session %s: home moved to %s, epoch %d", frame.sid, node, frame.epoch[0])

    async def follow(self, live: SessionCopy, node: str) -> None:
        """The user has moved: so does the session; a failure leaves it where it is."""
        try:
            await self.to(live, node)
        except RoostError as error:
            live.follow = Follow()
            log.info("session %s stays here: %s", live.meta.sid, error.message)

    async def remote_adopt(self, peer: str, args: dict[str, Any]) -> Any:
        """Become home of the session in the frame; durable before the answer."""
        try:
            frame = decode_frame(args["frame"])
        except (KeyError, PeerError) as error:
            raise BadRequest(f"{peer} handed over a malformed session: {error}") from error
        context = self._context
        if not isinstance(frame, Whole) or frame.epoch[1] != context.node:
            raise BadRequest(f"{peer} handed over a session that names another home")
        if not self._stream.adopts:
            raise Unavailable(f"{context.node} is drained itself: session {frame.sid} is not taken")
        if not self._stream.adopt(frame):
            raise Unavailable(
                f"session {frame.sid} has a newer epoch here; the handover of {peer} is void"
            )
        await context.durable()
        return True

    async def drain(self, deadline_ms: int) -> int:
        """Hand every session that is at home here to its standby, or, where that does not take it
        (it may be drained too), to another neighbour; how many remain."""
        with self._stream.draining():
            return await self._give_all(deadline_ms)

    async def _give_all(self, deadline_ms: int) -> int:
        context = self._context
        loop = asyncio.get_running_loop()
        ends = loop.time() + deadline_ms / 1000
        slots = asyncio.Semaphore(DRAIN_AT_ONCE)
        remaining = 0

        async def give(sid: str) -> bool:
            async with slots:
                live = context.shelf.live(sid)
                if live is None or live.meta.home != context.node:
                    return True
                return await self._give(live, lambda: loop.time() >= ends)

        after = ""
        while True:
            heads = context.shelf.table.heads(after, PAGE)
            mine = [
                m.sid for m in heads if m.held and not m.erased_ms and not context.shelf.expired(m)
            ]
            done = await asyncio.gather(*(give(sid) for sid in mine))
            remaining += done.count(False)
            if len(heads) < PAGE:
                return remaining
            after = heads[-1].sid

    async def _give(self, live: SessionCopy, late: Callable[[], bool]) -> bool:
        """Whether somebody took it."""
        refused: set[str] = set()
        why = "nobody is up who could take it"
        while not late() and (node := self._stream.next_home(live, refused)) is not None:
            try:
                await self.to(live, node)
            except RoostError as error:
                refused.add(node)
                why = error.message
            else:
                return True
            if live.meta.home != self._context.node:
                return True
        log.warning("drain: session %s stays: %s", live.meta.sid, why)
        return False
