"""The node's time: the machine's wall clock, without jumps that no neighbour's clock confirms."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from roost_crdt.limits import Limits
from roost_crdt.wallclock import WallClock
from roostd.node.startup import wall_ms
from roostd.wire import boot_ms

log = logging.getLogger(__name__)


class Clock:
    """One process's clock. `expected` is how many neighbours the configuration names."""

    def __init__(
        self,
        limits: Limits,
        expected: int,
        *,
        wall_ms: Callable[[], int] = wall_ms,
        boot_ms: Callable[[], int] = boot_ms,
    ) -> None:
        self._wall_ms = wall_ms
        self._boot_ms = boot_ms
        self._expected = expected
        self._clock = WallClock(wall_ms(), boot_ms(), offset_max_ms=limits.clock_offset_max_ms)
        self._said = False
        self._read = (-1, 0)

    def now_ms(self) -> int:
        """Wall-clock milliseconds."""
        wall_ms = self._wall_ms()
        read_ms, now_ms = self._read
        if wall_ms != read_ms:  # else the answer is that of a moment ago
            now_ms = self._clock.read(wall_ms, self._boot_ms())
            self._read = (wall_ms, now_ms)
        return now_ms

    @property
    def jumped_ms(self) -> int:
        """How far the machine's clock has left this one; 0 while they are one."""
        return self._clock.jumped_ms

    def tick(self, neighbours: Sequence[int]) -> None:
        """Follow a jump that enough neighbours confirm; `neighbours` as WallClock.confirm has."""
        self._read = (-1, 0)
        self.now_ms()
        jumped_ms = self._clock.jumped_ms
        if self._clock.confirm(neighbours, self._expected):
            why = "as the neighbours' clocks confirm"
            if not neighbours:
                why = "which is followed at once as there are no neighbours"
            log.warning("the clock moved by %+d ms, %s", jumped_ms, why)
            self._said = False
            self._read = (-1, 0)
        elif jumped_ms and not self._said:
            log.error(
                "this machine's clock jumped by %+d ms and no neighbour's did: time goes on "
                "without the jump until two neighbours' clocks confirm it; set the clock",
                jumped_ms,
            )
            self._said = True
        elif not jumped_ms and self._said:
            log.warning("this machine's clock is back")
            self._said = False
