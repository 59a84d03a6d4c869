"""Becoming home when home is silent, and making sure of still being home after a pause."""

from __future__ import annotations

import asyncio
import logging
from typing import Any
from weakref import WeakKeyDictionary

from roost_crdt.errors import RoostError
from roost_crdt.home import Meta
from roost_crdt.sessions.copy import SessionCopy
from roost_crdt.sessions.stream import Stream
from roost_crdt.token import Claims
from roostd.sessions.context import Context
from roostd.sessions.delivery import Delivery
from roostd.sessions.forward import LOCATE

log = logging.getLogger(__name__)

PROBE_DEADLINE_MS = 500
CONFIRM_DEADLINE_MS = 1_500
WAITS_MAX = 3
"""Times `takeover_after_ms` that a request waits for a home that is heard now and then."""
YIELD = "session.yield"


class Takeover:
    """One node's takeovers: at most one attempt at a time for a session."""

    def __init__(self, context: Context, stream: Stream, delivery: Delivery) -> None:
        self._context = context
        self._stream = stream
        self._delivery = delivery
        self._running: dict[str, asyncio.Task[bool]] = {}
        self._started_ms = context.shelf.steady_ms()
        self._asked: WeakKeyDictionary[SessionCopy, int] = WeakKeyDictionary()
        """The generation in which a copy's standby was asked and did not answer."""

    async def take_over(self, sid: str) -> bool:
        """Become home if the evidence allows it; one attempt at a time for a session."""
        running = self._running.get(sid)
        if running is None:
            running = asyncio.ensure_future(self._try_take_over(sid))
            self._running[sid] = running
            running.add_done_callback(lambda _: self._running.pop(sid, None))
        return await asyncio.shield(running)

    async def _try_take_over(self, sid: str) -> bool:
        context = self._context
        meta = context.shelf.meta(sid)
        assert meta is not None, "a takeover is of a session held here"
        home = meta.home
        ends_ms = context.shelf.steady_ms() + WAITS_MAX * context.takeover_after_ms
        while (wait_ms := context.takeover_after_ms - self._silent_ms(home)) > 0:
            if context.shelf.steady_ms() > ends_ms:
                return False  # it is heard, though it does not answer
            await asyncio.sleep(wait_ms / 1000 + 0.01)
            # Heard meanwhile: it lives, or this was still under way when it fell silent.
            heard = self._silent_ms(home) < context.takeover_after_ms
            if heard and await self._answers(home):
                return False
        if await self._answers(home):
            return False
        if not self._stream.take_over(sid, probe_failed=True):
            return False
        await context.durable()
        log.warning("session %s: took over from %s, which is silent", sid, home)
        return True

    def _silent_ms(self, home: str) -> int:
        """A home that was never heard is silent for as long as this node could have heard it."""
        since_start_ms = self._context.shelf.steady_ms() - self._started_ms
        return min(self._context.neighbours.silent_ms(home), since_start_ms)

    async def _answers(self, home: str) -> bool:
        context = self._context
        try:
            await context.neighbours.call(home, "session.ping", {}, deadline_ms=PROBE_DEADLINE_MS)
        except RoostError as error:
            log.info("probe of %s failed: %s", home, error.message)
            return False
        return True

    async def yield_to_standby(self, meta: Meta, claims: Claims | None) -> bool:
        """This node is named home and holds nothing: its store is new, and the standby takes over;
        or nobody has anything, and NoSession if the token is so old that the session has ended."""
        context = self._context
        if meta.standby is None or meta.standby == context.node:
            context.check_outlived(meta, claims)
            return False
        args = {"sid": meta.sid}
        try:
            found = await context.neighbours.call(
                meta.standby, YIELD, args, deadline_ms=CONFIRM_DEADLINE_MS
            )
        except RoostError as error:
            log.info("session %s: standby %s: %s", meta.sid, meta.standby, error.message)
            return False
        if found is None:
            context.check_outlived(meta, claims)
            return False
        context.shelf.learn(meta.sid, (int(found[0][0]), str(found[0][1])), found[1])
        return True

    async def remote_yield(self, peer: str, args: dict[str, Any]) -> Any:
        """Home itself says that it lost the session: become home; the epoch, or None."""
        context = self._context
        live = context.shelf.live(str(args.get("sid", "")))
        if live is None:
            return None
        if live.meta.home == peer and live.meta.standby == context.node:
            live.enter_epoch(context.node, peer, context.now_ms())
            live.confirmed = context.shelf.generation
            self._stream.offer(live)
            await context.durable()
            log.warning("session %s: took over from %s, which has lost it", live.meta.sid, peer)
        return [list(live.meta.epoch), live.meta.standby]

    async def confirm(self, live: SessionCopy) -> None:
        """After a start or a pause, ask the standby whether this node is still home.

        Once, while it is out of reach: the link that comes up brings the answer.
        """
        context, meta = self._context, live.meta
        generation = context.shelf.generation
        if live.confirmed == generation or meta.standby is None:
            return
        up = any(c.node == meta.standby for c in context.neighbours.candidates())
        if not up and self._asked.get(live) == generation:
            return
        try:
            found = await context.neighbours.call(
                meta.standby,
                LOCATE,
                {"sid": meta.sid},
                deadline_ms=CONFIRM_DEADLINE_MS,
            )
        except RoostError as error:
            log.info("session %s: standby %s: %s", meta.sid, meta.standby, error.message)
            self._asked[live] = generation
            return
        if found is not None and (int(found[0][0]), str(found[0][1])) > live.meta.epoch:
            context.shelf.learn(meta.sid, (int(found[0][0]), str(found[0][1])), found[1])
            self._delivery.sweep()
            return
        if found is not None and len(found) > 5:  # nodes of the release before leave it out
            epoch, n = (int(found[0][0]), str(found[0][1])), int(found[4])
            if self._stream.shown_copy(live, epoch, n, bytes(found[5])):
                log.warning(
                    "session %s: standby %s holds steps that this store has lost; home goes on in "
                    "epoch %d and takes them back",
                    meta.sid,
                    meta.standby,
                    live.meta.epoch[0],
                )
        live.confirmed = generation

    async def stop(self) -> None:
        """Give up attempts that are under way."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
