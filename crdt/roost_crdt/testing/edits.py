"""Yjs updates made by hand: one item of the root array "a" each, and rows made of them."""

from __future__ import annotations

from typing import Final

from roost_crdt import document
from roost_crdt.rows import Row, doc
from roost_crdt.rows.layout import doc_part
from roost_crdt.ystructs import delete_update
from roost_crdt.yupdate import Range

Id = tuple[int, int]
"""`(client, clock)`"""


def edit(item: Id, origin: Id | None = None, deletes: Id | None = None) -> bytes:
    """Put the text `client.clock` behind `origin` (none: at the start); delete another item."""
    client, clock = item
    text = f"{client}.{clock}".encode()
    info, place = (0x08, b"\1\1a") if origin is None else (0x88, _ids(*origin))
    content = bytes([1, 119, len(text)]) + text
    doomed = {} if deletes is None else {deletes[0]: [Range(*deletes, deletes[1] + 1)]}
    return (
        b"\1\1"
        + _ids(client, clock)
        + bytes([info])
        + place
        + content
        + (delete_update(doomed)[1:])
    )


def row_chain(actor: int, birth: int, base: int, length: int) -> list[Row]:
    """The states that one row of updates goes through, merged in between."""
    client = 1_000 * actor + birth % 1_000
    rows: dict[bytes, Row] = {}
    states: list[Row] = []
    part = doc_part(actor, birth)
    for clock in range(length):
        update = edit((client, clock), (client, clock - 1) if clock else None)
        if not clock:
            rows[part] = doc.first_row(birth, base, doc.NOBODY, [update])
        else:
            rows |= doc.put(rows, update, (birth + clock, actor), 0, yjs=document, vv={})
        states.append(rows[part])
    return states


def _ids(client: int, clock: int) -> bytes:
    return _varint(client) + _varint(clock)


def _varint(number: int) -> bytes:
    return (
        bytes([number]) if number < 0x80 else bytes([number & 0x7F | 0x80]) + _varint(number >> 7)
    )


ROW_LENGTH: Final = doc.ROW_UPDATES + 3
