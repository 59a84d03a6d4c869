"""SCAN cursors. Redis' cursors are numbers; ours stand for the key to go on after.

A cursor is good until `CURSORS_MAX` newer ones were given out, on any connection of the node.
"""

from __future__ import annotations

from collections import OrderedDict

from roostd.api.resp.table import RespError

CURSORS_MAX = 10_000


class Cursors:
    """Numbers given out for places in a listing."""

    def __init__(self) -> None:
        self._places: OrderedDict[int, bytes] = OrderedDict()
        self._next = 1

    def give(self, place: bytes) -> int:
        """A number for `place`."""
        number = self._next
        self._next += 1
        self._places[number] = place
        while len(self._places) > CURSORS_MAX:
            self._places.popitem(last=False)
        return number

    def place(self, cursor: bytes) -> bytes:
        """The place behind a number; b"" for 0. RespError for one that is not known."""
        if not cursor.isdigit() or len(cursor) > 20:
            raise RespError("ERR invalid cursor")
        number = int(cursor)
        if number == 0:
            return b""
        place = self._places.get(number)
        if place is None:
            raise RespError("ERR invalid cursor: it is too old or of another node; begin with 0")
        return place
