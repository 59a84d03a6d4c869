"""The session stream's frames on their way, and what waits for the standby."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from roost_crdt.home import told_once
from roost_crdt.sessions.copy import SessionCopy
from roost_crdt.sessions.stream import Stream
from roostd.sessions.types import Neighbours

SWEEP_PAUSE_S = 0.01
SWEEP_AGAIN_S = 0.5


class Delivery:
    """Sends the frames of one node's stream, each after the group that it speaks of."""

    def __init__(
        self, stream: Stream, neighbours: Neighbours, durable: Callable[[], Awaitable[None]]
    ) -> None:
        self._stream = stream
        self._neighbours = neighbours
        self._durable = durable
        self._sweeping: asyncio.Task[None] | None = None
        self._sweep_again = False
        self._newcomers: set[str] = set()
        self._missed: set[str] = set()
        """Who has missed an epoch since the sweep that goes on began."""

    def after_flush(self) -> None:
        """Send what became durable. A frame without room is dropped; the stream says it again if
        it waits for an answer, and a sweep tells all epochs again to who has missed one."""
        for node, frame in self._stream.take_frames():
            if not self._neighbours.send(node, frame) and told_once(frame):
                self._missed.add(node)

    async def acknowledged(self, live: SessionCopy, n: int, wait_ms: int) -> bool:
        """Wait up to `wait_ms` until the standby holds step n; False if it does not."""
        held = asyncio.Event()
        self._stream.when_held(live, n, held.set)
        if held.is_set():
            return True
        try:
            async with asyncio.timeout(wait_ms / 1000):
                await held.wait()
        except TimeoutError:
            return False
        finally:
            live.waiters[:] = [waiter for waiter in live.waiters if waiter[1] != held.set]
        return True

    def sweep(self, newcomer: str | None = None) -> None:
        """Look through every session once, in the background; a newcomer hears of each."""
        if newcomer is not None:
            self._newcomers.add(newcomer)
        if self._sweeping is not None and not self._sweeping.done():
            self._sweep_again = True
            return
        self._sweeping = asyncio.create_task(self._sweep(), name="session sweep")

    async def _sweep(self) -> None:
        again, missed, far = True, set[str](), set[str]()
        while again:
            others = far or self._newcomers or self._sweep_again
            repeated = bool(missed) and not others
            newcomers, self._newcomers = frozenset(self._newcomers | missed), set()
            self._sweep_again = False
            self._missed.clear()
            after: str | None = ""
            while after is not None:
                after = self._stream.sweep_page(after, newcomers, repeated=repeated)
                await self._durable()
                self.after_flush()
                await asyncio.sleep(SWEEP_PAUSE_S)
            again = self._sweep_again
            # A link that comes up has little room at first, and epochs are told only once.
            missed = self._missed & newcomers & {c.node for c in self._neighbours.candidates()}
            far = self._missed.intersection(self._neighbours.beyond())
            if missed or far:
                self._stream.tell_again(far)
                again = True
                await asyncio.sleep(SWEEP_AGAIN_S)

    def tick(self) -> None:
        """Whatever is due: offers and merges that were not answered, the regular sweep."""
        self._stream.tick()
        if self._stream.sweep_due:
            self.sweep()

    async def stop(self) -> None:
        """End the background sweep."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)
