"""Hybrid logical clock: 48 bits of milliseconds over 16 bits of counter.

After Kulkarni et al., "Logical Physical Clocks" (2014). A stamp is `(hlc, actor)`; for one
actor hlc is strictly increasing, so a stamp also names what was written under it (its dot).
"""

from __future__ import annotations

Stamp = tuple[int, int]
"""`(hlc, actor)`, compared as a pair."""

HLC_MAX = (1 << 64) - 1
ACTOR_MAX = (1 << 64) - 1


def hlc_from_ms(wall_ms: int) -> int:
    """The smallest hlc of a wall-clock millisecond."""
    return wall_ms << 16


def hlc_ms(hlc: int) -> int:
    """The wall-clock milliseconds in an hlc."""
    return hlc >> 16


class Hlc:
    """The clock of one actor; never goes below anything that it gave out or saw."""

    __slots__ = ("last",)

    def __init__(self, last: int = 0) -> None:
        self.last = last

    def tick(self, now_ms: int) -> int:
        """A new hlc, above every earlier one; a full counter runs into the next millisecond."""
        hlc, after = now_ms << 16, self.last + 1
        self.last = hlc = hlc if hlc > after else after
        return hlc

    def observe(self, hlc: int) -> None:
        """Never fall below an hlc seen elsewhere."""
        if hlc > self.last:
            self.last = hlc
