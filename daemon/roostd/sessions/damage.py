"""Sessions that cannot be read: said once a minute each, not at every attempt."""

from __future__ import annotations

import logging

from roost_crdt.errors import CorruptData
from roostd.sessions.context import Context

log = logging.getLogger(__name__)

SAID_MAX = 1_000
AGAIN_MS = 60_000


class Damage:
    """What is told of damaged sessions."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._said: dict[str, int] = {}

    def say(self, sid: str, error: CorruptData) -> None:
        """Log it, unless that was done within the last minute."""
        now_ms = self._context.now_ms()
        if now_ms - self._said.get(sid, 0) < AGAIN_MS:
            return
        if len(self._said) >= SAID_MAX:
            self._said.clear()
        self._said[sid] = now_ms
        log.error("session %s: %s; `roost check DIR --repair` mends what is stored", sid, error)
