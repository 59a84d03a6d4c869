"""Mending: what was lost to damage is put together again from the log and from the neighbours.

The store says which buckets of keys lack rows (roostd.store.suspects). Its log is read for them,
and every neighbour with a link is asked for all its rows of these buckets. They are mended once a
neighbour has sent all that the lost rows can have been: it holds what this node held when the
damage was found, or the log goes on from what it holds. A log that reaches back to its first entry
is enough by itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import lmdb

from roost_crdt.errors import Busy, CorruptData, RoostError
from roost_crdt.membership.collector import keep_rows_vv
from roost_crdt.record import RowOp
from roost_crdt.replica import Replica
from roostd import wire
from roostd.store import LogRows, Store

log = logging.getLogger("roostd.node.mending")

TICK_MS = 250
STEP_MS = 5
ROOM_MS = 2_000
FETCH_MS = 60_000
"""So long a fetch may take before it is begun again."""


class Mending:
    """One store's damage, looked after. Ticked by its node."""

    def __init__(
        self,
        store: Store,
        replica: Replica,
        schedule: Callable[[], None],
        now_ms: Callable[[], int] = wire.boot_ms,
    ) -> None:
        """`schedule`: have the replica's effects carried out."""
        self._store = store
        self._replica = replica
        self._schedule = schedule
        self._now_ms = now_ms
        replica.lacking(store.mender.lacking)
        self.replace: Callable[[int, bytes], Awaitable[bool]] | None = None
        """Puts something in the place of a pair (kind, key) that the log does not hold."""
        self._refused = 0
        self._full_ms = 0
        self._buckets: frozenset[int] = frozenset()
        self._begin(frozenset())

    def _begin(self, buckets: frozenset[int]) -> None:
        self._buckets = buckets
        self._vv = dict(self._store.vv)
        self._log_rows: LogRows | None = None
        self._log_read = self._mended = False
        self._fetches: dict[str, tuple[int, int, int, Mapping[int, int]]] = {}
        self._ends: tuple[int, str] | None = None

    def status(self) -> dict[str, Any]:
        """What GET /v1/cluster says of damage and of room."""
        return {
            "full": self._store.full(),
            "damaged": self._store.corrupt_rows,
            "suspect_buckets": len(self._store.suspects.buckets),
            "damage": self._store.mender.problem,
            "mended_buckets": self._store.suspects.mended_buckets,
            "damaged_pairs": len(self._store.mender.lost.gone),
            "mended_pairs": self._store.mender.lost.mended,
            "erasing": len(self._store.erasing.waiting),
            "erasing_problem": self._store.erasing.problem,
        }

    def accept_rows(self, ops: Sequence[RowOp], vv: Mapping[int, int]) -> None:
        """The store's, noting what it refuses: that has to be fetched again."""
        try:
            keep_rows_vv(self._store, self._replica.rows_vv)
            self._store.accept_rows(ops, vv)
        except RoostError:
            self._refused += 1
            raise

    async def run(self) -> None:
        """For as long as the node does."""
        while True:
            try:
                pause_ms = self.tick()
                await self._replace_pair()
            except (Busy, CorruptData, lmdb.Error) as error:
                log.error("mending goes on later: %s", error)  # noqa: TRY400 - it is in the text
                pause_ms = 4 * TICK_MS
            await asyncio.sleep(pause_ms / 1000)

    def tick(self) -> int:
        """The next step; milliseconds until the one after it."""
        store = self._store
        store.look_after()
        self._say()
        self._say_full()
        if self._mend_pairs():
            return STEP_MS
        buckets = store.suspects.buckets
        if buckets != self._buckets:
            self._begin(buckets)
        if not buckets or self._mended:
            return TICK_MS
        if self._ends is not None:
            self._end(*self._ends)
        elif self._log_read or self._read_log():
            for node in list(self._replica.peers):
                self._fetch(node)
        else:
            return STEP_MS
        return TICK_MS

    def _mend_pairs(self) -> bool:
        """A step with the pairs that are damaged; whether there is more to do at once."""
        lost = self._store.mender.lost
        try:
            if lost.seeking:
                return lost.step(self._store.put)
            lost.look()
        except RoostError as error:
            log.warning("damaged entries are mended later: %s", error)
        return False

    async def _replace_pair(self) -> None:
        """Have something put in the place of the pair that was looked at last."""
        lost = self._store.mender.lost
        pair = next(reversed(lost.gone), None)
        if pair is None or lost.seeking or self.replace is None:
            return
        try:
            if await self.replace(*pair):
                lost.mended += 1
                log.warning("the damaged entry %r of kind %d was replaced", pair[1], pair[0])
        except RoostError as error:
            log.info("the damaged entry %r is replaced later: %s", pair[1], error)

    def _read_log(self) -> bool:
        """The next step through the log; whether that is done, and not enough."""
        if self._log_rows is None:
            self._log_rows = self._store.mender.log_rows()
        try:
            if not self._log_rows.step():
                return False
        except RoostError as error:
            log.warning("mending from the log goes on later: %s", error)
            return False
        self._log_read = True
        if self._log_rows.problem:
            log.error("the log cannot be read for lost rows: %s", self._log_rows.problem)
        if self._log_rows.whole:
            self._ends = self._store.seq, "the log"
        return self._ends is None

    def _fetch(self, node: str) -> None:
        number, since_ms, refused, held = self._fetches.get(node, (0, 0, 0, {}))
        now_ms = self._now_ms()
        if number and self._replica.antientropy.fetched(node) == number:
            del self._fetches[node]
            if refused == self._refused and self._covers(held):
                # What came last is written before the next tick.
                self._ends = 0, node
            return
        if number and now_ms < since_ms + FETCH_MS:
            return
        held = dict(self._replica.peers[node].held)
        if not self._covers(held):
            return
        number = self._replica.antientropy.fetch(node, sorted(self._buckets), now_ms)
        if number:
            self._fetches[node] = number, now_ms, self._refused, held
            self._schedule()

    def _covers(self, held: Mapping[int, int]) -> bool:
        """Whether all that was held here is what a neighbour holds, and what the log has."""
        for origin, hlc in self._vv.items():
            at = held.get(origin, 0)
            if at < hlc and not self._store.records_after(origin, at, 1):
                return False
        return True

    def _end(self, seq: int, source: str) -> None:
        store = self._store
        if not seq:
            self._ends = store.seq, source
        elif store.applied_seq >= seq:
            store.mender.mended(self._buckets)
            self._mended = True
            log.warning("%d buckets of keys are mended from %s", len(self._buckets), source)

    def _say_full(self) -> None:
        """Once when there is no room, and once when there has been some for a while."""
        full, now_ms = self._store.full(), self._now_ms()
        if full:
            if not self._full_ms:
                log.error("the store takes no writes (FULL): %s", full)
            self._full_ms = now_ms
        elif self._full_ms and now_ms - self._full_ms >= ROOM_MS:
            self._full_ms = 0
            log.warning("there is room again: the store takes writes")

    def _say(self) -> None:
        found, self._store.mender.scrubbed = self._store.mender.scrubbed, []
        for one in found:
            if one.structure:
                log.critical(
                    "pages of the index are damaged: %s; nothing is written any more, and the "
                    "next start puts the index together anew",
                    one.structure,
                )
            log.error(
                "a scrub of the index found %d damaged rows, %d buckets with other sums than their "
                "rows have, %d damaged entries besides%s; what rows lack is fetched from "
                "neighbours, for the rest run: roost check DIR --repair",
                len(one.damaged),
                one.differing,
                len(one.pairs),
                "".join(f"; {text}" for text in (one.structure, *one.pairs[:3]) if text),
            )
