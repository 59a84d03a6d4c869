"""What a client's Yjs update may do to a document, and what it may not."""

from __future__ import annotations

import pycrdt
import pytest
from crdt.yjs_updates import text_of, updates_of, whole_update

from roost_crdt import document, outside, values
from roost_crdt.errors import BadRequest, NoPerm, TooLarge, Unavailable
from roost_crdt.limits import Limits
from roost_crdt.outside import admit, owner_of
from roost_crdt.rows import Rows, doc
from roost_crdt.rows.layout import doc_part
from roost_crdt.testing.edits import edit
from roost_crdt.ystructs import read_structs

ANN, BOB = owner_of("ann"), owner_of("bob")


def _written(*updates: bytes, owner: bytes = ANN, rows: Rows | None = None, hlc: int = 1) -> Rows:
    rows = dict(rows or {})
    for at, update in enumerate(updates, hlc):
        news = admit(rows, update, 0, owner)
        rows |= doc.put(rows, news, (at, 1), 0, yjs=document, vv={1: at}, owner=owner)
    return rows


def _client(client_id: int, *updates: bytes) -> pycrdt.Doc[pycrdt.Text]:
    yjs: pycrdt.Doc[pycrdt.Text] = pycrdt.Doc(client_id=client_id)
    for update in updates:
        yjs.apply_update(update)
    return yjs


def test_only_what_is_new_is_kept() -> None:
    yjs = _client(7)
    made = updates_of(yjs)
    text = yjs.get("t", type=pycrdt.Text)
    text.insert(0, "some ")
    rows = _written(made[0])
    text.insert(5, "text")
    news = admit(rows, yjs.get_update(), 0, ANN)
    assert news == made[1], "of a whole state, what is not held"
    rows |= doc.put(rows, news, (9, 1), 0, yjs=document, vv={}, owner=ANN)
    assert text_of(values.doc_update(rows, 0) or b"") == "some text"
    for known in (*made, yjs.get_update(), b"\0\0"):
        assert admit(rows, known, 0, BOB) == b""
    del text[0:5]
    assert admit(rows, made[2], 0, BOB), "anybody may delete"


def test_the_same_state_once_more_is_nothing() -> None:
    """Deletions too, though merging does not always give the same bytes."""
    for update in (whole_update(), document.merge([whole_update(77), whole_update(88)])):
        rows = _written(update)
        assert admit(rows, update, 0, BOB) == b""
        assert admit(rows, b"\0\1\x4d\2\1\1\x13\1", 0, BOB) == b""
        assert admit(rows, b"\0\1\x4d\1\1\2", 0, BOB), "one of two clocks was deleted"
        assert admit(rows, b"\0\1\x4d\1\3\0", 0, BOB) == b"", "no clock at all"


def test_an_update_that_builds_on_what_is_missing_is_refused() -> None:
    yjs = _client(7)
    made = updates_of(yjs)
    text = yjs.get("t", type=pycrdt.Text)
    for word in ("one ", "two ", "three"):
        text.insert(len(text), word)
    for held in ([], made[:1]):
        rows = _written(*held)
        with pytest.raises(Unavailable, match="whole state") as refused:
            admit(rows, made[2], 0, ANN)
        assert refused.value.retry_after_ms
        whole = _written(yjs.get_update(), rows=rows, hlc=5)
        assert text_of(values.doc_update(whole, 0) or b"") == "one two three"


def test_an_update_completes_what_waits_here() -> None:
    """A row of another actor may wait for one that the client brings."""
    waiting = {doc_part(2, 5): doc.first_row(5, 5, BOB, [edit((6, 0), (5, 0))])}
    news = admit(waiting, edit((5, 0)), 0, ANN)
    rows = waiting | doc.put(waiting, news, (6, 1), 0, yjs=document, vv={}, owner=ANN)
    assert document.rehearse(values.doc_update(rows, 0) or b"", b"\0\0").before == {5: 1, 6: 1}


def test_a_client_id_belongs_to_its_first_mover() -> None:
    rows = _written(edit((5, 0)), edit((6, 0), (5, 0)))
    for client in (5, 6):
        with pytest.raises(NoPerm, match=f"client id {client} "):
            admit(rows, edit((client, 1), (5, 0)), 0, BOB)
        assert admit(rows, edit((client, 1), (5, 0)), 0, ANN)
    rows = _written(edit((8, 0)), owner=BOB, rows=rows, hlc=5)
    assert admit(rows, edit((8, 1)), 0, BOB)
    with pytest.raises(NoPerm):
        admit(rows, edit((8, 1)), 0, ANN)
    unowned = {doc_part(2, 1): doc.first_row(1, 1, doc.NOBODY, [edit((5, 0))])}
    assert admit(unowned, edit((5, 1)), 0, BOB)


def test_garbage_cannot_move_a_clock_out_of_reach() -> None:
    rows = _written(edit((5, 0)))
    for clocks in (b"\xfd\xff\xff\xff\x0f", b"\xff\xff\xff\xff\x07"):
        with pytest.raises(BadRequest, match="Yjs client writes"):
            admit(rows, b"\1\1\5\1\x00" + clocks + b"\0", 0, ANN)
    with pytest.raises(NoPerm):
        admit(rows, b"\1\1\5\1\x00\x64\0", 0, BOB)


def test_nothing_is_deleted_ahead_of_its_writing() -> None:
    rows = _written(edit((5, 0)))
    for ahead in (b"\0\1\5\1\0\2", b"\0\1\6\1\0\1"):
        with pytest.raises(BadRequest, match="not written yet"):
            admit(rows, ahead, 0, ANN)
    assert admit(rows, b"\0\1\5\1\0\1", 0, ANN)
    # Known here, though what it deletes is not: a client only hands it back.
    held = {doc_part(2, 1): doc.first_row(1, 1, ANN, [b"\1\1\6\0\x00\x01" + b"\1\x09\1\0\3"])}
    assert admit(held, b"\0\1\x09\1\1\2", 0, ANN) == b""


def test_what_was_deleted_does_not_come_back_with_its_old_document() -> None:
    rows = _written(edit((5, 0)))
    rows |= doc.delete(rows, {1: 1}, (4, 1), yjs=document)
    for old in (edit((5, 0)), document.merge([edit((5, 0)), edit((5, 1), (5, 0))])):
        with pytest.raises(BadRequest, match=r"new Y\.Doc"):
            admit(rows, old, 0, ANN)
    rows = _written(edit((6, 0)), rows=rows, hlc=7)
    with pytest.raises(BadRequest, match=r"new Y\.Doc"):
        admit(rows, edit((5, 0)), 0, ANN)
    rows |= doc.expire(rows, (9, 1), 100)
    assert admit(rows, edit((6, 1), (6, 0)), 99, ANN)
    with pytest.raises(BadRequest, match=r"new Y\.Doc"):
        admit(rows, edit((6, 0)), 100, ANN)


def test_sizes_are_bounded_before_anything_is_read() -> None:
    limits = Limits(doc_bytes_max=100)
    rows = _written(edit((5, 0)))
    with pytest.raises(TooLarge, match="bound 100"):
        admit(rows, b"x" * 90, 0, ANN, limits)
    assert admit(rows, edit((6, 0)), 0, ANN, limits)


def _maps(levels: int, parent: bytes, start: int = 0) -> bytes:
    """Maps in each other under client 5."""
    structs = b""
    for clock in range(start, start + levels):
        place = parent if clock == start else b"\0\5" + bytes([clock - 1])
        structs += b"\x27" + place + b"\x01k\x01"
    return b"\1" + bytes([levels]) + b"\5" + bytes([start]) + structs + b"\0"


def test_depth_is_bounded_over_updates() -> None:
    rows = _written(_maps(40, b"\1\1m"))
    with pytest.raises(BadRequest, match="nested deeper"):
        admit(rows, _maps(30, b"\0\5\x27", 40), 0, ANN)
    assert admit(rows, _maps(24, b"\0\5\x27", 40), 0, ANN)
    with pytest.raises(BadRequest, match="nested deeper"):
        admit({}, _maps(65, b"\1\1m"), 0, ANN)


def test_a_document_that_could_be_deep_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the update itself adds no type: a neighbour's rows are not read as strictly."""
    deep = {doc_part(2, 1): doc.first_row(1, 1, ANN, [_maps(100, b"\1\1m")])}
    assert admit(deep, edit((6, 0)), 0, ANN), "100 types are no danger"
    monkeypatch.setattr(outside, "TYPE_BYTES_MAX", 50)
    with pytest.raises(BadRequest, match="nested deeper"):
        admit(deep, edit((6, 0)), 0, ANN)


@pytest.mark.parametrize("update", [b"", b"hello", whole_update()[:-3], b"\xff" * 40])
def test_garbage_is_the_senders_fault(update: bytes) -> None:
    with pytest.raises(BadRequest, match="format v1"):
        admit({}, update, 0, ANN)


def test_every_kind_of_content_is_taken() -> None:
    update = whole_update()
    rows = _written(update)
    assert read_structs(values.doc_update(rows, 0) or b"") == read_structs(update)


def test_an_update_of_too_many_changes_is_refused_by_its_bound() -> None:
    yjs: pycrdt.Doc[pycrdt.Array[int]] = pycrdt.Doc(client_id=7)
    items = yjs.get("a", type=pycrdt.Array)
    for number in range(30):
        items.insert(0, number)
    with pytest.raises(TooLarge, match=r"at most 29 changes \(structs\); send it in several"):
        admit({}, yjs.get_update(), 1, ANN, Limits(doc_structs_max=29))
    assert admit({}, yjs.get_update(), 1, ANN, Limits(doc_structs_max=30))


def test_deletions_that_are_known_are_not_kept_again() -> None:
    """Whoever sends differences to a state vector sends all deletions there ever were."""
    yjs = _client(7)
    cells = yjs.get("m", type=pycrdt.Map)
    text = yjs.get("t", type=pycrdt.Text)
    rows: Rows = {}
    sent = 0
    for at in range(1, 401):
        before = yjs.get_state()
        cells[f"k{at % 7}"] = at
        text.insert(at % 5, "word ")
        del text[0 : at % 6]
        update = yjs.get_update(before)
        sent += len(update)
        rows |= doc.put(
            rows, admit(rows, update, 0, ANN), (at, 1), 0, yjs=document, vv={1: at}, owner=ANN
        )
    stored = sum(map(len, doc.updates(rows, 0)))
    assert stored < sent / 10
    shown = _client(8, values.doc_update(rows, 0) or b"")
    assert shown.get("m", type=pycrdt.Map).to_py() == cells.to_py()
    assert str(shown.get("t", type=pycrdt.Text)) == str(text)
    assert admit(rows, yjs.get_update(), 0, BOB) == b""
