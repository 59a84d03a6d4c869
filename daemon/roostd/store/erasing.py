"""Erasing: what was removed for good goes out of the log too, out of all of its segments.

Who erases says so before it deletes anything (`mark`, durable in meta with the deletions). From
then on, step by step: the log goes on in a new segment; the deletions are applied to the index, in
a transaction that another one follows, so that no crash takes them back; the older segments are
blanked by the log's own thread (roostd.blanking), and the index's file by the one that applies
(roostd.store.wiping); the mark is taken away. A start goes on with the marks that it finds.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from itertools import islice

from roost_crdt import logformat
from roost_crdt.errors import RoostError
from roost_crdt.limits import Limits
from roostd.log import Log
from roostd.store.wiping import Wiping

PREFIX = b"erasing/"
"""Of names in meta: what keys of sessions begin with that are on their way off the disk."""
_META = logformat.KIND_META
_BATCH_MAX = 1_000
_AGAIN_S = 600.0
"""Until what could not be blanked is tried again."""

Put = Callable[[int, Mapping[bytes, bytes | None]], int]


class Erasing:
    """What waits to be blanked, and the batch in hand. Called by the node's thread."""

    def __init__(
        self,
        log: Log,
        wiping: Wiping,
        put: Put,
        limits: Limits,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.waiting: dict[bytes, None] = {}
        self.blanked = 0
        """Pairs that were taken out of the log since the start."""
        self.problem = ""
        """Why something could not be blanked, or has to wait; tried again later."""
        self._log = log
        self._wiping = wiping
        self._put = put
        self._pause_s = limits.erase_pause_ms / 1000
        self._now_s = now_s
        self._due_s = self._begun_s = now_s()
        self._batch: list[bytes] = []
        self._through = self._seq = self._commits = self._jobs = 0
        self._answers: deque[tuple[int, str]] = deque()

    def mark(self, owner: bytes) -> None:
        """What belongs to `owner` (roostd.blanking.owner_of) is about to be deleted for good;
        durable with the group. Raises Full, Busy, StoreFailed; nothing has changed then."""
        self._put(_META, {PREFIX + owner: b"1"})
        self.waiting[owner] = None

    def load(self, names: Iterable[bytes]) -> None:
        """Go on with the marks that a start has found."""
        self.waiting.update(dict.fromkeys(name.removeprefix(PREFIX) for name in names))

    def look(self, applied_seq: int) -> None:
        """The next step, if it is time for one."""
        if not self.waiting or self._log.failed is not None:
            return
        try:
            self._step(applied_seq)
        except RoostError as error:
            self.problem = f"erased payloads stay on the disk for now: {error.message}"

    def _step(self, applied_seq: int) -> None:
        if self._jobs:
            self._collect()
        elif not self._batch:
            if self._now_s() >= self._due_s:
                self._begin()
        elif applied_seq < self._seq:
            return
        elif not self._log.ended(self._through) or self._commits < 2:
            self._commit()
        else:
            self._jobs = self._log.blank(
                logformat.KIND_SESSION,
                frozenset(self._batch),
                self._through,
                lambda count, problem: self._answers.append((count, problem)),
            )
            self._jobs += 1
            self._wiping.begin(self._batch, lambda problem: self._answers.append((0, problem)))

    def _begin(self) -> None:
        if self._log.dirty:
            return  # the segment is to end behind what is to be blanked
        self._through, self._commits = self._log.last_seq, 0
        batch = list(islice(self.waiting, _BATCH_MAX))
        if self._commit(batch):
            self._batch, self._begun_s = batch, self._now_s()

    def _commit(self, batch: list[bytes] | None = None) -> bool:
        """Write something: it ends the segment, and has the index commit what came before."""
        if not self._log.ended(self._through) and not self._log.roll():
            return False
        owners = self._batch if batch is None else batch
        self._seq = self._put(_META, {PREFIX + owner: b"1" for owner in owners})
        self._commits += 1
        return True

    def _collect(self) -> None:
        if len(self._answers) < self._jobs:
            self.problem = self._wiping.waits_for
            return
        problems = [problem for _, problem in self._answers if problem]
        if not problems:
            self._put(_META, {PREFIX + owner: None for owner in self._batch})
        self._jobs = 0
        self.blanked += sum(count for count, _ in self._answers)
        self._answers.clear()
        self.problem = problems[0] if problems else ""
        # A large index takes long to go through: not all of the time.
        took_s = self._now_s() - self._begun_s
        self._due_s = self._now_s() + (_AGAIN_S if problems else max(self._pause_s, took_s))
        for owner in self._batch:
            del self.waiting[owner]
            if problems:
                self.waiting[owner] = None  # behind those that may be luckier
        self._batch = []
