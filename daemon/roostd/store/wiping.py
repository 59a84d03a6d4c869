"""Wiping: what was erased leaves the index's file too, while the index is in use.

A round begins when the deletions are in the index and two transactions have followed them, and
goes through the whole file in steps of bounded size, in the thread that writes to the index:

1. until no reader sees the index as it was before
2. keys of the erased sessions that bound pages are blanked
3. the index is opened anew: no page is written any more from a buffer that held what was erased
4. what lies between the entries, in the order of the keys of each tree: a page that is written
   meanwhile is clean, wherever it lies, and what it replaces is free
5. until no reader sees what was freed up to here
6. free pages, and those behind the last one

A round that was interrupted is begun again (roostd.store.erasing): nothing of it is remembered.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import lmdb

from roost_crdt import logformat
from roost_crdt.errors import CorruptData
from roostd.index import SCHEMA, Index, u64
from roostd.pages import Meta, PageFile, named_trees
from roostd.residue import Residue
from roostd.sealing import KIND_NAMES

STEP_PAGES = 256
"""Pages of a tree that a step goes through, while nothing is written."""
STEP_FREE_PAGES = 512
"""Pages of the file of which a step blanks those that are free."""
_PAUSE_S = 0.0005
_REST = 3
"""So many times as long as a step that has written took is nothing done."""
_WAIT_S = 0.05
_PATIENCE_S = 1.0
"""So long is waited for readers before it is said."""
_SESSIONS = KIND_NAMES[logformat.KIND_SESSION]

Done = Callable[[str], None]


@dataclass(slots=True)
class Round:
    """What a round is for, and who is told why it could not be done, "" if it was."""

    owners: Collection[bytes]
    done: Done


class Wiping:
    """Rounds, one after another. `begin` from the node's thread, the rest from the one that
    writes to the index."""

    def __init__(
        self,
        index: Index,
        wake: Callable[[], None],
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.waits_for = ""
        """What holds up the round in hand."""
        self.written = 0
        """Bytes that were overwritten since the start."""
        self._index = index
        self._wake = wake
        self._now_s = now_s
        self._rounds: deque[Round] = deque()
        self._steps: Iterator[float] | None = None
        self._due_s = 0.0

    def begin(self, owners: Collection[bytes], done: Done) -> None:
        """Wipe what begins with any of `owners` (each ends with NUL), deleted from the index in a
        transaction that two others have followed, and all else that is not in use."""
        self._rounds.append(Round(owners, done))
        self._wake()

    def wait_s(self) -> float:
        """How long until the next step."""
        return max(0.0, self._due_s - self._now_s()) if self._rounds else float("inf")

    def step(self) -> None:
        """The next step, if it is time for one. An error of LMDB is raised where it has closed
        the index; any other ends the round."""
        if self.wait_s():
            return
        began_s, written, problem = self._now_s(), self.written, ""
        if self._steps is None:
            self._steps = self._round(self._rounds[0].owners)
        try:
            pause_s = next(self._steps)
        except StopIteration:
            pass
        except (CorruptData, OSError, lmdb.Error) as exc:
            if self._index.closed:
                raise
            problem = f"the index: {exc}"
        else:
            # Others who write wait for the disk as long as a step does.
            now_s = self._now_s()
            rest = _REST if self.written > written else 1
            self._due_s = now_s + max(pause_s, rest * (now_s - began_s))
            return
        self._steps, self.waits_for = None, ""
        self._rounds.popleft().done(problem)

    def _round(self, owners: Collection[bytes]) -> Iterator[float]:
        with self._index.held() as (newest, _):
            begun = newest
        yield from self._unseen(begun)
        for owner in owners:
            with self._held() as (residue, meta, _):
                residue.blank_bounds(named_trees(residue.file, meta)[_SESSIONS], owner)
            yield _PAUSE_S
        while not self._index.reopen():
            self.waits_for = "almost all slots for readers of the index are taken"
            yield _WAIT_S
        self.waits_for = ""
        with self._held() as (residue, meta, _):
            # LMDB may take a page from behind the last one and list it as free without writing it.
            residue.blank_free(meta, 0, meta.last_page + 1, residue.file.page_count)
            names = sorted(named_trees(residue.file, meta))
        for name in names:
            start: bytes | None = b""
            while start is not None:
                with self._held() as (residue, meta, _):
                    start = residue.blank_tree(
                        named_trees(residue.file, meta)[name], start, STEP_PAGES
                    )
                yield _PAUSE_S
        with self._held() as (residue, meta, _):
            for tree in (meta.names, meta.free):
                residue.blank_tree(tree, b"", meta.last_page)
            last = meta.txn
        yield _PAUSE_S
        # A transaction that changes nothing: what the last one freed is free after it.
        self._index.write((), {logformat.KIND_META: [(b"layout", u64(SCHEMA))]})
        yield from self._unseen(last + 1)
        first = 2
        while first < residue.file.page_count:
            with self._held() as (residue, meta, oldest):
                residue.blank_free(meta, oldest, first, first + STEP_FREE_PAGES)
            first += STEP_FREE_PAGES
            yield _PAUSE_S

    def _unseen(self, txn: int) -> Iterator[float]:
        """Until no reader is left that sees what was there before transaction `txn`."""
        began_s = self._now_s()
        while True:
            with self._index.held() as (_, oldest):
                if oldest >= txn:
                    break
            if self._now_s() - began_s > _PATIENCE_S:
                held = ", ".join(str(pid) for pid, _ in self._index.stuck_readers(0)[:3])
                self.waits_for = f"process {held} reads the index as it was before"
                self._index.reap_readers()
            yield _WAIT_S
        self.waits_for = ""

    @contextmanager
    def _held(self) -> Iterator[tuple[Residue, Meta, int]]:
        """The file while nobody writes, its newest state, and the oldest transaction that a
        reader may see. What was overwritten is durable at the end."""
        fd = os.open(self._index.data_file, os.O_RDWR | os.O_CLOEXEC)
        try:
            with PageFile(self._index.data_file) as file:
                residue = Residue(file, fd)
                with self._index.held() as (newest, oldest):
                    meta = file.newest()
                    if meta.txn != newest:
                        raise file.damaged(newest % 2, f"it is not of transaction {newest}")
                    yield residue, meta, oldest
            if residue.written:
                os.fdatasync(fd)
                self.written += residue.written
        finally:
            os.close(fd)
