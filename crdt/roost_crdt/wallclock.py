"""Wall time that does not follow a jump before the neighbours' clocks confirm it.

A machine's wall clock steps: a time server corrects it, an operator mistypes it, a virtual machine
is resumed. A stamp taken from a clock that is far ahead cannot be taken back: neighbours hold it
up until its time has come. So time runs on evenly (by a clock that no one sets) when the wall
clock leaves it by more than a bound, until enough neighbours' clocks show what it shows.
"""

from __future__ import annotations

from collections.abc import Sequence

AGREE = 2
"""Neighbours whose clocks have to agree with a jump; fewer where there are fewer."""


def ahead_of_median(ahead_ms: int, neighbours: Sequence[int]) -> int | None:
    """How far a clock is ahead of the median of its neighbours', all relative to one even clock.

    Of two medians it is the later one, so that one neighbour that lags says nothing of this node.
    None without neighbours.
    """
    if not neighbours:
        return None
    return ahead_ms - sorted(neighbours)[len(neighbours) // 2]


class WallClock:
    """Milliseconds of wall time. `boot_ms` is a clock that runs evenly and through a suspend."""

    __slots__ = ("ahead_ms", "jumped_ms", "offset_max_ms")

    def __init__(self, wall_ms: int, boot_ms: int, *, offset_max_ms: int) -> None:
        self.offset_max_ms = offset_max_ms
        self.ahead_ms = wall_ms - boot_ms
        """The wall clock in force minus the even clock."""
        self.jumped_ms = 0
        """How far the machine's wall clock has left the one in force; 0: it is in force."""

    def read(self, wall_ms: int, boot_ms: int) -> int:
        """The time, when the machine's clocks show these."""
        ahead_ms = wall_ms - boot_ms
        moved_ms = ahead_ms - self.ahead_ms
        if -self.offset_max_ms <= moved_ms <= self.offset_max_ms:
            self.ahead_ms, self.jumped_ms = ahead_ms, 0
            return wall_ms
        self.jumped_ms = moved_ms
        return boot_ms + self.ahead_ms

    def confirm(self, neighbours: Sequence[int], expected: int) -> bool:
        """Follow a jump that enough neighbours' clocks confirm; whether it was followed now.

        `neighbours` are their wall clocks minus this node's even clock, `expected` how many
        neighbours there should be. A node that has none follows at once: nobody is harmed.
        """
        if not self.jumped_ms:
            return False
        machine_ms = self.ahead_ms + self.jumped_ms
        agree = sum(abs(ahead_ms - machine_ms) <= self.offset_max_ms for ahead_ms in neighbours)
        if agree < min(AGREE, max(expected, len(neighbours))):
            return False
        self.ahead_ms, self.jumped_ms = machine_ms, 0
        return True
