"""Yjs updates of clients: refused before they become rows, or taken for good and shown as sent."""

from __future__ import annotations

import pycrdt
import pytest
from crdt.yjs_updates import updates_of, whole_update
from fuzzing import VARINTS, throw

from roost_crdt import document, values
from roost_crdt.errors import BadRequest, NoPerm, TooLarge, Unavailable
from roost_crdt.outside import admit, owner_of
from roost_crdt.rows import Rows, decode_row, doc, encode_row
from roost_crdt.rows.layout import TYPE_DOC
from roost_crdt.testing.edits import edit
from roost_crdt.yplaces import runs_by_client
from roost_crdt.ystructs import read_structs

ANN, BOB = owner_of("ann"), owner_of("bob")
BODY_BYTES_MAX = 1 << 20
HOSTILE = (
    b"\1\1\5\1\0\xfe\xff\xff\xff\x0f\0",
    b"\1\1\x09\0\x28\1\1m\1a\1" + b"\x76\1\1a" * 16_000 + b"\x7e\0",
    b"\1\1\x09\0\x28\1\1m\1a\1" + b"\x75\1" * 16_000 + b"\x7e\0",
    b"\1\1\x09\0\x25\1\1m\1a\xd0\x0f" + b"[" * 2_000 + b"\0",
    b"\1\1\x09\0\x2b\1\1m\1a\0\0",
    b"\0\1\x4d\2\x10\1\x0b\1",
    b"\0\2\x4d\1\x0b\1\x4d\1\x10\1",
    b"\xff\xff\xff\xff\x0f" * 3,
)
"""The struct that moves a clock to its end, three kinds of depth, a move, deletions out of
order and in two places, counts that nothing follows."""


def put(rows: Rows, update: bytes, at: int, owner: bytes) -> Rows:
    vv = {1: at - 1}
    return rows | doc.put(rows, update, (at, 1), 0, yjs=document, vv=vv, owner=owner)


def encoded(rows: Rows) -> dict[bytes, bytes]:
    return {part: encode_row(TYPE_DOC, part, row) for part, row in rows.items()}


def held_rows() -> Rows:
    """What two clients have written."""
    rows: Rows = {}
    writes = [(edit((5, 0)), ANN), (edit((6, 0), (5, 0)), BOB), (whole_update(77), ANN)]
    for at, (update, owner) in enumerate(writes, 1):
        rows = put(rows, admit(rows, update, 0, owner), at, owner)
    return rows


def client_updates(held: bytes) -> list[bytes]:
    """What a client sends that goes on from there: each change, and all as one."""
    yjs: pycrdt.Doc[pycrdt.Text] = pycrdt.Doc(client_id=91)
    yjs.apply_update(held)
    made = updates_of(yjs)
    text = yjs.get("t", type=pycrdt.Text)
    text.insert(3, "w\u00f6rd \U0001f600")  # indexes are of bytes
    del text[0:2]
    text.format(0, 2, {"a": 1})
    fields = yjs.get("m", type=pycrdt.Map)
    fields["f"] = pycrdt.Map({"x": pycrdt.Array([1, 2])})
    items = yjs.get("a", type=pycrdt.Array)
    items.insert(1, b"between")
    del items[0]
    root = yjs.get("x", type=pycrdt.XmlFragment)
    root.children.append(pycrdt.XmlElement("q", {"a": "b"}))
    return [*made, yjs.get_update(), edit((5, 1), (5, 0)), edit((8, 0), (6, 0), (5, 0))]


def shown(*updates: bytes) -> object:
    """What a client holds that applies these: not as values, which pycrdt may not get to read."""
    for _ in range(2):  # once more: how items are split depends on the way they came
        yjs: pycrdt.Doc[pycrdt.Text] = pycrdt.Doc(client_id=0)
        for update in updates:
            yjs.apply_update(update)
        updates = (yjs.get_update(),)
    structs = read_structs(updates[0])
    return runs_by_client(structs.ranges), runs_by_client(structs.deletes), structs.parents


def test_an_update_of_a_client_is_taken_as_it_is_or_refused() -> None:
    rows = held_rows()
    before = encoded(rows)
    held = values.doc_update(rows, 0)
    assert held is not None

    def check(raw: bytes) -> None:
        owner = BOB if len(raw) % 2 else ANN
        try:
            news = admit(rows, raw, 0, owner)
        finally:
            assert encoded(rows) == before
        if not news:
            return
        after = put(rows, news, 9, owner)
        for part, body in encoded(after).items():
            assert decode_row(TYPE_DOC, part, body, body_bytes_max=BODY_BYTES_MAX) == after[part]
        update = values.doc_update(after, 0)
        assert update is not None
        assert shown(update) == shown(held, raw), "copies differ for ever"
        assert admit(after, raw, 0, owner) == b"", "the same once more is nothing"
        gone = after | doc.delete(after, {1: 9}, (10, 1), yjs=document)
        assert values.doc_update(gone, 0) is None

    seeds = [seed for seed in client_updates(held) if _is_for_both(rows, seed)]
    refusals = (BadRequest, NoPerm, TooLarge, Unavailable)
    throw("clients", [*seeds, whole_update(88), held], check, refusals, tokens=VARINTS, tree=False)
    for hostile in HOSTILE:
        with pytest.raises(BadRequest):
            admit(rows, hostile, 0, ANN)
    assert encoded(rows) == before


def _is_for_both(rows: Rows, update: bytes) -> bool:
    try:
        return all(admit(rows, update, 0, owner) for owner in (ANN, BOB))
    except (NoPerm, Unavailable):
        return False
