"""One turn of the event loop is one group of the log.

What is written in a turn is appended to the open group; at the end of the turn one fdatasync makes
it durable, then every held answer and frame is released together. Nothing that a crash could take
back is ever shown. A turn that many connections make long is several groups: what came first does
not wait for the last.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from roostd.store import Store, StoreFailed

log = logging.getLogger(__name__)


GROUP_S = 0.001
"""A group that is older is not left open for the rest of the turn,"""
FLUSHES = 4
"""unless that many flushes take longer: a slow disk would hold up more than it releases."""
GROUP_MAX_S = 0.02


class Groups:
    """Flushes the store once a loop turn, and holds what waits for it."""

    def __init__(self, store: Store, on_failed: Callable[[BaseException], None]) -> None:
        self._store = store
        self._on_failed = on_failed
        self._waiting: list[Callable[[], None]] = []
        self._after: list[Callable[[], None]] = []
        self._futures: list[asyncio.Future[None]] = []
        self._loop = asyncio.get_running_loop()
        self._scheduled = False
        self._due_s = 0.0
        self._flush_s = 0.0
        """How long a flush took of late."""
        store.schedule = self._schedule

    @property
    def pending(self) -> bool:
        """Whether something is written that is not durable yet."""
        return self._store.dirty

    def after_each(self, callback: Callable[[], None]) -> None:
        """Call back after every group, when it is durable: frames leave here."""
        self._after.append(callback)

    def on_durable(self, callback: Callable[[], None]) -> None:
        """Call back once when all that is written so far is durable; at once if it is."""
        if not self.hold(callback):
            callback()

    def hold(self, callback: Callable[[], None]) -> bool:
        """Call back once when all that is written so far is durable; False, and no call, if it
        is already."""
        if not self._store.dirty:
            return False
        self._waiting.append(callback)
        return True

    def end_due(self, now_s: float) -> None:
        """Flush if the open group has lasted long enough; `now_s` is monotonic."""
        if now_s > self._due_s:
            self.flush()

    async def durable(self) -> None:
        """Return when all that is written so far is durable. Raises UnknownOutcome if it failed."""
        if not self._store.dirty:
            return
        future = self._loop.create_future()
        self._futures.append(future)
        await future

    def flush(self) -> None:
        """Make the open group durable and release what waits for it; also if the store itself
        has flushed it meanwhile."""
        if not self._store.dirty and not self._waiting and not self._futures:
            return
        began_s = time.monotonic()
        try:
            self._store.flush()
        except StoreFailed as error:
            self._waiting.clear()  # nothing of this group is ever acknowledged
            futures, self._futures = self._futures, []
            for future in futures:
                if not future.done():
                    future.set_exception(error)
                    future.exception()  # who waits may be cancelled before it sees that
            self._on_failed(error)
            return
        self._flush_s = (self._flush_s + time.monotonic() - began_s) / 2
        waiting, self._waiting = self._waiting, []
        futures, self._futures = self._futures, []
        for callback in waiting:
            callback()
        for future in futures:
            if not future.done():
                future.set_result(None)
        for callback in self._after:
            callback()

    def _schedule(self) -> None:
        lasts_s = min(max(GROUP_S, FLUSHES * self._flush_s), GROUP_MAX_S)
        self._due_s = time.monotonic() + lasts_s
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._end_turn)

    def _end_turn(self) -> None:
        self._scheduled = False
        self.flush()
