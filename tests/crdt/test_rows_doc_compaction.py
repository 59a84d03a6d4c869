"""A document of many thousand small updates: few rows, bounded bytes, the same text."""

from __future__ import annotations

import random
from collections.abc import Callable

import pycrdt
import pytest
from crdt.yjs_updates import updates_of

from roost_crdt import document, values
from roost_crdt.limits import DEFAULT_LIMITS
from roost_crdt.outside import admit, owner_of
from roost_crdt.rows import Rows, doc, encode_row, join_delta
from roost_crdt.rows.layout import TYPE_DOC

UPDATES = 4_000
OWNER = owner_of("ann")
Text = pycrdt.Text


def append(text: Text, rng: random.Random) -> None:
    text += rng.choice("abc")


def insert(text: Text, rng: random.Random) -> None:
    text.insert(rng.randrange(len(text) + 1), rng.choice("abc"))


def churn(text: Text, rng: random.Random) -> None:
    insert(text, rng)
    if len(text) > 40:
        del text[rng.randrange(len(text))]


@pytest.mark.parametrize("edit", [append, insert, churn])
def test_rows_are_as_many_as_their_bytes_fill(edit: Callable[[Text, random.Random], None]) -> None:
    rng = random.Random(9)
    yjs: pycrdt.Doc[Text] = pycrdt.Doc(client_id=77)
    made = updates_of(yjs)
    text = yjs.get("t", type=Text)
    rows: Rows = {}
    elsewhere: Rows = {}
    wrote, largest = 0, 0
    for hlc in range(1, UPDATES + 1):
        edit(text, rng)
        news = document.merge(made)
        made.clear()
        wrote += len(news)
        delta = doc.put(rows, news, (hlc, 5), 0, yjs=document, vv={5: hlc}, owner=OWNER)
        rows |= delta
        largest = max(largest, sum(len(encode_row(TYPE_DOC, p, row)) for p, row in delta.items()))
        if not hlc % 50:
            elsewhere |= join_delta(TYPE_DOC, elsewhere, rows)
    elsewhere |= join_delta(TYPE_DOC, elsewhere, rows)
    assert elsewhere == rows
    held = sum(len(encode_row(TYPE_DOC, part, row)) for part, row in rows.items())
    print(f"{UPDATES} updates of {wrote} bytes: {len(rows)} rows of {held} bytes")
    assert len(rows) <= 2 + held // doc.ROW_BYTES, "rows stay far from full"
    assert held < wrote, "nothing was merged"
    assert largest < 3 * doc.ROW_BYTES, "a delta is as large as the document"
    shown: pycrdt.Doc[Text] = pycrdt.Doc()
    update = values.doc_update(rows, 0)
    assert update is not None
    shown.apply_update(update)
    assert str(shown.get("t", type=Text)) == str(text)
    assert shown.get_state() == yjs.get_state()
    assert admit(rows, yjs.get_update(), 0, OWNER, DEFAULT_LIMITS) == b"", "a change was lost"


def test_what_two_nodes_compact_is_one_document() -> None:
    """Each its own rows, merged in any order of arrival."""
    rng = random.Random(11)
    sides = []
    for actor in (5, 6):
        yjs: pycrdt.Doc[Text] = pycrdt.Doc(client_id=70 + actor)
        sides.append((actor, yjs, updates_of(yjs), yjs.get("t", type=Text)))
    rows: Rows = {}
    for hlc in range(1, 1_001):
        actor, yjs, made, text = sides[hlc % 2]
        insert(text, rng)
        news = document.merge(made)
        made.clear()
        rows |= doc.put(rows, news, (hlc, actor), 0, yjs=document, vv={5: hlc, 6: hlc})
        other = sides[1 - hlc % 2]
        other[1].apply_update(news)
        other[2].clear()
    shown: pycrdt.Doc[Text] = pycrdt.Doc()
    update = values.doc_update(rows, 0)
    assert update is not None
    shown.apply_update(update)
    assert str(shown.get("t", type=Text)) == str(sides[0][3]) == str(sides[1][3])
    assert len(rows) < 30
