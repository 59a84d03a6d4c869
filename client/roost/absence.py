"""Whether a row that LMDB does not find is surely absent.

A row whose name was damaged hides itself and may lead the search for others astray, as LMDB looks
for names by halves; but then whoever looks for them ends up beside it. So what lies beside the
place where a search ended is looked at. Who cannot be sure asks the daemon, which has it mended.
"""

from __future__ import annotations

from typing import Any

from roost_crdt.errors import CorruptData
from roost_crdt.rows import layout

__all__ = ["before", "check", "prove"]

PASSING_BYTES_MAX = 256 << 10
"""Larger rows are not looked at on the way to another one."""


def before(cursor: Any, name: bytes) -> bytes:
    """The name of the row before where `name` is or belongs; b"" if there is none.

    A row whose name was damaged hides itself and may lead the search for others astray; who looks
    for them ends up beside it. CorruptData: so it may be here, and the daemon knows.
    """
    found = cursor.set_range(name)
    if not (cursor.prev() if found else cursor.last()):
        return b""
    last, stored = cursor.item()
    if last >= name:
        raise CorruptData("rows are out of order")
    check(last, stored)
    return bytes(last)


def prove(txn: Any, name: bytes) -> None:
    """CorruptData if a row that was not found may be there all the same."""
    cursor = txn.cursor()
    before(cursor, name)
    if cursor.set_range(name):
        after, stored = cursor.item()
        if after < name:
            raise CorruptData("rows are out of order")
        check(after, stored)


def check(name: bytes, stored: bytes) -> None:
    """CorruptData if a row in passing is not what was stored under its name."""
    if len(stored) <= PASSING_BYTES_MAX:
        layout.unseal(name, stored)
