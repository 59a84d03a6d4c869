"""Compare-and-swap with retry: from the items that were read to one transaction, until it holds.

A write computes from what it read what its keys should be, and sends both as one transaction that
compares the revisions read. Who loses tries again from what the answer showed, a bounded number of
times and within the deadline. An answer that changed nothing always comes from a fresh read. A
request id is stored with the effect: a retry, on any node, gets the first answer.

There is no I/O here, and no event loop: the endpoint, the clocks and the pause are the caller's,
and so is the order among writers of one key on one node.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

from roost_crdt.errors import Busy, RoostError, Unavailable, UnknownOutcome
from roost_crdt.linear.cells import Cell, Reply, encode_cell, live_cell, step
from roost_crdt.linear.transactions import COMPARES_MAX, Compare, Item, Outcome, Txn
from roost_crdt.linear.work import Work, revision_of, stored_key

__all__ = ["Endpoint", "Swaps"]

ATTEMPTS_MAX = 256
KNOWN_MAX = 1_024
KNOWN_BYTES_MAX = 4_096
"""Larger values are read again rather than held."""
NEVER = (1 << 63) - 1
"""A revision that no key has."""


class Endpoint(Protocol):
    """Raises Unavailable (nothing was applied) or UnknownOutcome (it may have been)."""

    async def get(self, keys: Sequence[bytes], *, deadline_ms: int) -> list[Item | None]: ...

    async def txn(
        self, txn: Txn, *, request_id: bytes | None = None, result: bytes = b"", deadline_ms: int
    ) -> Outcome: ...


class _Run(NamedTuple):
    """What commands make of the items that were read."""

    puts: dict[bytes, bytes | None]
    replies: list[Reply]


class Swaps:
    """One node's way to the endpoint, and the items that it has seen last.

    `clock_s` never goes back; `now_ms` is the wall clock, by which keys expire.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        now_ms: Callable[[], int],
        clock_s: Callable[[], float],
        pause: Callable[[], Awaitable[None]],
        deadline_ms: int,
    ) -> None:
        self._endpoint = endpoint
        self._now_ms = now_ms
        self._clock_s = clock_s
        self._pause = pause
        self._deadline_ms = deadline_ms
        self._known: OrderedDict[bytes, Item | None] = OrderedDict()

    async def attempts(self, work: Work, ends_s: float) -> list[Reply] | None:
        """The replies, or None if a watched key has changed. One at a time of any key's writers.

        Busy (lost every race), Unavailable (nothing was changed) or UnknownOutcome.
        """
        items = self._recall(work)
        fresh = False
        for _ in range(ATTEMPTS_MAX):
            if items is None:
                items = await self._endpoint.get(work.stored, deadline_ms=self._left(ends_s, work))
                fresh = True
            if not work.unchanged(items):
                return await self._first_answer(work, ends_s)
            try:
                run = self._run(work, items)
            except RoostError:
                first = await self._first_answer(work, ends_s) if fresh else None
                if first is not None:
                    return first
                if fresh:
                    raise
                items = None
                continue
            if not run.puts and work.request is None:
                if fresh:
                    return run.replies
                items = None
                continue
            if work.reads:
                await self._bury(work, run, items, ends_s)
                items = None
                continue
            replies, items = await self._send(work, run, items, ends_s)
            if replies is not None:
                return replies
            fresh = True
            work.overtaken += 1
            await self._pause()
        raise self._overtaken(work)

    def _run(self, work: Work, items: Sequence[Item | None]) -> _Run:
        now_ms = self._now_ms()
        cells: dict[bytes, Cell | None] = {}
        written: set[bytes] = set()
        for key, item in zip(work.keys, items, strict=True):
            cells[key] = None
            if item is not None and not work.blind:
                cells[key] = live_cell(item, work.policies[key], key, now_ms)
                if cells[key] is None:
                    written.add(key)
        replies: list[Reply] = []
        for command in work.commands:
            key = command.key
            made = step(command, cells[key], work.policies[key], now_ms)
            cells[key] = made.cell
            replies.append(made.reply)
            if made.wrote:
                written.add(key)
        puts: dict[bytes, bytes | None] = {}
        for key in sorted(written):
            cell = cells[key]
            puts[key] = None if cell is None else encode_cell(cell)
        return _Run(puts, replies)

    async def _send(
        self, work: Work, run: _Run, items: Sequence[Item | None], ends_s: float
    ) -> tuple[list[Reply] | None, list[Item | None] | None]:
        compares = () if work.blind else tuple(map(Compare, work.stored, map(revision_of, items)))
        puts = tuple((stored_key(key), value) for key, value in run.puts.items())
        # What is known stands for nothing from here on, however this ends.
        self._forget(work)
        try:
            outcome = await self._endpoint.txn(
                Txn(compares, puts),
                request_id=work.request_key,
                result=b"" if work.request is None else work.answer(run.replies),
                deadline_ms=self._left(ends_s, work),
            )
        except UnknownOutcome as error:
            raise self._unknown(error, work) from None
        if not outcome.ok:
            return None, list(outcome.items)
        if outcome.duplicate:
            return work.read_answer(outcome.result), None
        self._remember(work, run, items, outcome.revision)
        return run.replies, None

    async def _bury(
        self, work: Work, run: _Run, items: Sequence[Item | None], ends_s: float
    ) -> None:
        """Make expiries that a read found due true for everybody, before it is answered."""
        due = [
            (Compare(stored_key(key), item.revision), (stored_key(key), None))
            for key, item in zip(work.keys, items, strict=True)
            if key in run.puts and item is not None
        ][:COMPARES_MAX]
        compares, puts = zip(*due, strict=True)
        self._forget(work)
        with contextlib.suppress(UnknownOutcome):  # the read that follows shows what happened
            await self._endpoint.txn(Txn(compares, puts), deadline_ms=self._left(ends_s, work))

    async def _first_answer(self, work: Work, ends_s: float) -> list[Reply] | None:
        """What an earlier try with this request id was answered, if there was one."""
        if work.request is None:
            return None
        impossible = Txn((Compare(work.stored[0], NEVER),), ())
        try:
            outcome = await self._endpoint.txn(
                impossible, request_id=work.request_key, deadline_ms=self._left(ends_s, work)
            )
        except UnknownOutcome as error:
            raise self._unknown(error, work) from None
        return work.read_answer(outcome.result) if outcome.duplicate else None

    def _left(self, ends_s: float, work: Work) -> int:
        left_ms = int((ends_s - self._clock_s()) * 1000)
        if left_ms <= 0 and work.overtaken:
            raise self._overtaken(work)
        if left_ms <= 0:
            raise Unavailable(
                f"{work.shown}: consensus took longer than {self._deadline_ms} ms; nothing was "
                "changed"
            )
        return left_ms

    @staticmethod
    def _overtaken(work: Work) -> Busy:
        return Busy(
            f"{work.shown} is written by too many at once: {work.overtaken} attempts were "
            "overtaken; nothing was changed",
            retry_after_ms=100,
        )

    def _unknown(self, error: UnknownOutcome, work: Work) -> UnknownOutcome:
        if work.request is None:
            advice = "no request id was given: read the key to see"
        else:
            advice = "retry with the same request id"
        return UnknownOutcome(
            f"{work.shown} may have been written ({error.message}); {advice}",
            request_id=None if work.request is None else work.request.decode(errors="replace"),
        )

    # --- what is known here

    def _recall(self, work: Work) -> list[Item | None] | None:
        if work.blind:
            return [None for _ in work.keys]
        if work.reads or work.watched or any(key not in self._known for key in work.keys):
            return None
        return [self._known[key] for key in work.keys]

    def _remember(self, work: Work, run: _Run, items: Sequence[Item | None], revision: int) -> None:
        for key, item in zip(work.keys, items, strict=True):
            known = item
            if key in run.puts:
                value = run.puts[key]
                known = None if value is None else Item(value, revision)
            self._known.pop(key, None)
            if (known is None or len(known.value) <= KNOWN_BYTES_MAX) and revision:
                self._known[key] = known
        while len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)

    def _forget(self, work: Work) -> None:
        for key in work.keys:
            self._known.pop(key, None)
