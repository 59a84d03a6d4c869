"""First answers kept for a repeated Idempotency-Key, where nothing durable keeps them.

A retried `begun` must read "fresh" again for the client whose first answer was lost, and "begun"
for everybody else. Turns, spends and increments carry their id into what they write instead. An
answer that is forgotten (bounded, or after a restart) reads as the state so far, which is safe.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

from roost_crdt.errors import BadRequest

REPEATS_MAX = 10_000
Place = tuple[str, ...]


class Repeats:
    """Answers by (caller, what, id)."""

    def __init__(self) -> None:
        self._answers: OrderedDict[Place, tuple[bytes, asyncio.Task[dict[str, Any]]]] = (
            OrderedDict()
        )

    async def once(
        self, place: Place, digest: bytes, act: Callable[[], Awaitable[dict[str, Any]]]
    ) -> dict[str, Any]:
        """The first answer under `place`; errors are not kept. BadRequest for another body."""
        known = self._answers.get(place)
        if known is None:
            task = asyncio.ensure_future(_awaited(act))
            self._answers[place] = (digest, task)
            task.add_done_callback(lambda done: self._forget_failed(place, done))
            while len(self._answers) > REPEATS_MAX:
                self._answers.popitem(last=False)
        else:
            first, task = known
            if first != digest:
                raise BadRequest(
                    "this Idempotency-Key was used with another body", field="Idempotency-Key"
                )
        return await asyncio.shield(task)

    def _forget_failed(self, place: Place, task: asyncio.Task[dict[str, Any]]) -> None:
        if task.cancelled() or task.exception() is not None:
            self._answers.pop(place, None)


async def _awaited(act: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
    return await act()
