"""Reseed of documents: what a neighbour lacks is written again, and shows beside what it holds."""

from __future__ import annotations

from random import Random

import pycrdt
from crdt.test_reseed import written_again
from hypothesis import given, settings
from hypothesis import strategies as st

from roost_crdt import document, values
from roost_crdt.reseed import Lacking, is_lacking, rewrite
from roost_crdt.rows import Delta, Rows, doc
from roost_crdt.rows.layout import HEAD, TYPE_DOC, doc_part, erasure_part
from roost_crdt.testing.edits import edit

ME, PEER, NEW = 1, 2, 9
ANN, BOB = b"ann     ", b"bob     "


def _put(rows: Rows, update: bytes, hlc: int, actor: int, owner: bytes = ANN) -> Delta:
    return doc.put(rows, update, (hlc, actor), 0, yjs=document, vv={}, owner=owner)


def _items(rows: Rows) -> list[str]:
    shown = pycrdt.Doc[pycrdt.Array[str]]()
    items = shown.get("a", type=pycrdt.Array)
    shown.apply_update(values.doc_update(rows, 0) or b"\0\0")
    return sorted(items)


def test_own_edits_are_written_again_under_the_new_actor() -> None:
    held = _put({}, edit((5, 0)), 1, ME)
    held |= _put(held, edit((6, 0), (5, 0)), 2, PEER)
    mine = held | _put(held, edit((5, 1), (5, 0)), 3, ME)
    mine |= _put(mine, edit((7, 0), (5, 1)), 4, ME, BOB)
    lacking = Lacking({ME}, {ME: 1, PEER: 2}, (20, NEW))
    told = {part for part, row in mine.items() if is_lacking(part, row, TYPE_DOC, lacking)}
    assert told == {doc_part(ME, 1), doc_part(ME, 4)}
    delta = rewrite(TYPE_DOC, held, mine, lacking)
    assert set(delta) == {doc_part(NEW, 20), doc_part(NEW, 19)}
    assert {row[2] for row in delta.values()} == {ANN, BOB}
    assert _items(held | delta) == _items(mine) == ["5.0", "5.1", "6.0", "7.0"]


def test_own_deletions_are_written_again() -> None:
    held = _put({}, edit((5, 0)), 1, PEER)
    deleted = doc.delete(held, {PEER: 1}, (3, ME), yjs=document)
    mine = {**held, **deleted}
    lacking = Lacking({ME}, {PEER: 1}, (20, NEW))
    delta = rewrite(TYPE_DOC, held, mine, lacking)
    assert set(delta) == {HEAD, erasure_part(NEW, 20)}
    assert not doc.exists(held | delta, 0)
    unseen = held | delta | _put(held, edit((6, 0), (5, 0)), 4, PEER)
    assert _items(unseen) == ["6.0"]


def test_what_the_neighbour_got_without_its_vector_is_not_written_twice() -> None:
    """Rows of a repair come before the records that they belong to."""
    mine = _put({}, edit((5, 0)), 1, ME)
    lacking = Lacking({ME}, {}, (20, NEW))
    assert all(is_lacking(part, row, TYPE_DOC, lacking) for part, row in mine.items())
    assert rewrite(TYPE_DOC, mine, mine, lacking) == {}
    further = mine | _put(mine, edit((5, 1), (5, 0)), 2, ME)
    (row,) = rewrite(TYPE_DOC, mine, further, lacking).values()
    assert row[5] == (edit((5, 1), (5, 0)),), "the one update that is missing there"


def test_an_own_edit_that_was_deleted_again_does_not_come_back() -> None:
    mine = _put({}, edit((5, 0)), 1, ME)
    mine |= doc.delete(mine, {ME: 1}, (2, ME), yjs=document)
    mine |= doc.put(mine, edit((7, 0)), (3, ME), 0, yjs=document, vv={ME: 2}, owner=ANN)
    lacking = Lacking({ME}, {}, (20, NEW))
    delta = rewrite(TYPE_DOC, {}, mine, lacking)
    assert _items(delta) == ["7.0"]
    assert doc_part(NEW, 20) in delta
    assert len([part for part in delta if part != HEAD]) == 2, "the new edit and the erasure"
    assert rewrite(TYPE_DOC, {HEAD: delta[HEAD], **mine}, mine, lacking).keys() <= {
        erasure_part(NEW, 20)
    }


def test_nothing_is_written_where_nothing_is_lacking() -> None:
    held = _put({}, edit((5, 0)), 1, ME)
    assert rewrite(TYPE_DOC, held, held, Lacking({ME}, {ME: 1}, (20, NEW))) == {}


def _doc_op(random: Random, rows: Rows, stamp: tuple[int, int], vv: dict[int, int]) -> Delta:
    hlc, actor = stamp
    if random.randrange(4) == 0:
        return doc.delete(rows, vv, stamp, yjs=document)
    live = [(int(item.partition(".")[0]), 0) for item in _items(rows)]
    origin = random.choice(live) if live else None
    doomed = random.choice(live) if live and random.randrange(5) < 2 else None
    update = edit((1_000 * actor + hlc % 1_000, 0), origin, doomed)
    return _put(rows, update, hlc, actor, b"%8d" % actor)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1 << 32))
def test_nothing_collected_the_result_is_that_of_a_join(seed: int) -> None:
    """Also of edits that build on what the neighbour has deleted meanwhile."""
    got, wanted = written_again(TYPE_DOC, _doc_op, seed)
    assert values.exists(TYPE_DOC, got, 0) == values.exists(TYPE_DOC, wanted, 0)
    assert _items(got) == _items(wanted)
