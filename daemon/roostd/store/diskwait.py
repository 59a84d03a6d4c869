"""Who has the interpreter lock: the node's thread, or the one that applies.

Two threads that both want it hand it over at each call into LMDB, which lets go of it: three futex
calls a row, more than the row itself costs. So the thread that applies works while the node's
thread waits for the disk, and otherwise a little at a time.
"""

from __future__ import annotations

import threading

PAUSE_S = 0.002
"""How long the thread that applies waits for that before it goes on all the same."""
BEHIND_ROWS = 1_000
"""Each so many rows that wait make the pause shorter: readers of the index wait for them."""


class DiskWait:
    """The node's thread waits for the disk within `with`; the other one calls `give_way`."""

    def __init__(self) -> None:
        self._waiting = False
        self._begun = threading.Lock()
        self._begun.acquire()

    def __enter__(self) -> None:
        self._waiting = True
        if self._begun.locked():
            self._begun.release()

    def __exit__(self, *raised: object) -> None:
        self._waiting = False

    def give_way(self, rows: int) -> None:
        """Leave the interpreter to the node's thread unless it waits; `rows` are to be applied."""
        if self._waiting:
            return
        pause_s = PAUSE_S / (1 + rows // BEHIND_ROWS)
        if self._begun.acquire(timeout=pause_s) and not self._waiting:
            self._begun.acquire(timeout=pause_s)  # that wait is over
