"""Documents: logs of Yjs updates by actor; what is shown, deleted, expired, dead; forks."""

from __future__ import annotations

import random

import pycrdt
import pytest
from crdt.yjs_updates import text_of, updates_of, whole_update

from roost_crdt import document, values
from roost_crdt.collection import dead_rows, end_life
from roost_crdt.errors import CorruptData
from roost_crdt.hlc import hlc_from_ms
from roost_crdt.rows import Delta, Rows, StampReused, decode_row, doc, encode_row, join_delta
from roost_crdt.rows.layout import (
    HEAD,
    TAG_DOC,
    TAG_DOC_ERASURE,
    TYPE_DOC,
    birth_of,
    doc_part,
    erasure_part,
)
from roost_crdt.testing.edits import edit, row_chain

A, B, C = 1, 2, 3


def _put(rows: Rows, update: bytes, hlc: int, actor: int = A, **more: bytes) -> Delta:
    return doc.put(rows, update, (hlc, actor), 0, yjs=document, vv={}, **more)


def _merge(*deltas: Delta) -> Rows:
    rows: Rows = {}
    for delta in deltas:
        rows |= join_delta(TYPE_DOC, rows, delta)
    return rows


def _text(rows: Rows, now_ms: int = 0) -> str | None:
    update = values.doc_update(rows, now_ms)
    return None if update is None else text_of(update)


def test_a_long_document_stays_small_and_whole() -> None:
    yjs: pycrdt.Doc[pycrdt.Text] = pycrdt.Doc(client_id=7)
    made = updates_of(yjs)
    text = yjs.get("t", type=pycrdt.Text)
    drawn = random.Random(1)
    rows: Rows = {}
    largest = hlc = 0
    for step in range(600):
        at = drawn.randint(0, len(text))
        text.insert(at, "abc"[: drawn.randint(1, 3)])
        if step % 7 == 0:
            del text[drawn.randrange(len(text))]
        for update in made:
            hlc += 1
            delta = _put(rows, update, hlc)
            (row,) = delta.values()
            largest = max(largest, sum(map(len, row[5])))
            rows |= delta
        made.clear()
    assert _text(rows) == str(text)
    assert largest <= 2 * doc.ROW_BYTES
    assert len(rows) > 5
    assert sum(len(row[5]) for row in rows.values()) < 100, "closed rows are merged"


def test_a_large_update_has_a_row_of_its_own() -> None:
    rows = _put({}, edit((5, 0)), 1)
    rows |= _put(rows, whole_update() + b"", 2)
    large = edit((6, 0))[:-1]
    assert len(large) < doc.ROW_BYTES
    big: pycrdt.Doc[pycrdt.Text] = pycrdt.Doc(client_id=9)
    big.get("t", type=pycrdt.Text).insert(0, "x" * 5_000)
    rows |= _put(rows, big.get_update(), 3)
    assert sorted(map(birth_of, rows)) == [1, 3]
    rows |= _put(rows, edit((10, 0)), 4)
    assert sorted(map(birth_of, rows)) == [1, 3, 4]


def test_any_order_of_rows_gives_the_same_bytes_and_waits_for_what_is_missing() -> None:
    here: pycrdt.Doc[pycrdt.Text] = pycrdt.Doc(client_id=1)
    made = updates_of(here)
    here.get("t", type=pycrdt.Text).insert(0, "first ")
    first = _put({}, made[0], 1)
    there: pycrdt.Doc[pycrdt.Text] = pycrdt.Doc(client_id=2)
    there.apply_update(made[0])
    replies = updates_of(there)
    there.get("t", type=pycrdt.Text).insert(6, "second")
    second = _put(first, replies[0], 2, B)
    assert _text(second) == "", "what it builds on is not here yet"
    assert _text(_merge(second, first)) == "first second"
    assert values.doc_update(_merge(second, first), 0) == values.doc_update(
        _merge(first, second, second), 0
    )


def test_an_edit_that_a_delete_has_not_seen_survives_alone() -> None:
    here: pycrdt.Doc[pycrdt.Text] = pycrdt.Doc(client_id=1)
    here.get("t", type=pycrdt.Text).insert(0, "gone ")
    base = _put({}, here.get_update(), 1)
    made = updates_of(here)
    here.get("t", type=pycrdt.Text).insert(5, "kept")
    edited = _put(base, made[0], 5, B)
    deleted = doc.delete(base, {A: 1}, (5, A), yjs=document)
    assert _text(_merge(base, deleted)) is None
    for rows in (_merge(base, edited, deleted), _merge(deleted, edited, base)):
        assert _text(rows) == "kept"
        assert doc.exists(rows, 0)
        assert values.dead_parts(TYPE_DOC, rows, 0) == []


def test_a_new_life_shows_nothing_of_the_old_one() -> None:
    rows = _put({}, edit((5, 0)), 1)
    rows |= _put(rows, edit((6, 0), (5, 0)), 2, B)
    rows |= doc.delete(rows, {A: 1, B: 2}, (3, A), yjs=document)
    assert doc.delete(rows, {A: 1, B: 2}, (4, A), yjs=document) == {}
    old = dict(rows)
    rows |= _put(rows, edit((7, 0)), 4)
    new = doc_part(A, 4)
    assert doc.shown(rows) == [new]
    assert set(values.dead_parts(TYPE_DOC, rows, 0)) == set(old) - {HEAD}
    assert values.doc_update(rows, 0) == edit((7, 0))
    rows |= _put(rows, edit((8, 0), (7, 0)), 5)
    assert doc.shown(rows) == [new], "the new life goes on in its own row"


def test_a_delete_ends_what_has_not_been_joined_yet() -> None:
    """Of an update that waits for another one, the delete takes what is written, too."""
    first = _put({}, edit((5, 0)), 1)
    waiting = _put(first, edit((6, 0), (5, 0)), 2, B)
    deleted = doc.delete(waiting, {B: 2}, (3, C), yjs=document)
    rows = _merge(waiting, deleted, first)
    assert doc.exists(rows, 0), "the first edit was not seen"
    shown = pycrdt.Doc[pycrdt.Array[str]]()
    items = shown.get("a", type=pycrdt.Array)
    shown.apply_update(values.doc_update(rows, 0) or b"")
    assert list(items) == ["5.0"]


def test_what_was_not_seen_is_not_cleared() -> None:
    """A row from a repair may be ahead of the vector: an older one of its actor may be missing."""
    early, late = (
        _put({}, edit((5, 0)), 1),
        {doc_part(A, 9): _put({}, edit((6, 0)), 9)[doc_part(A, 9)]},
    )
    deleted = doc.delete(late, {A: 0}, (20, B), yjs=document)
    rows = _merge(late, deleted, early)
    assert doc.exists(rows, 0)
    shown = pycrdt.Doc[pycrdt.Array[str]]()
    items = shown.get("a", type=pycrdt.Array)
    shown.apply_update(values.doc_update(rows, 0) or b"")
    assert list(items) == ["5.0"]


def test_an_expiry_hides_and_the_next_write_ends() -> None:
    rows = _put({}, edit((5, 0)), 1)
    rows |= doc.expire(rows, (2, A), 100)
    assert values.doc_update(rows, 99) == edit((5, 0))
    assert not doc.exists(rows, 100)
    assert doc.updates(rows, 100) == []
    behind = doc.put(rows, edit((7, 0), (5, 0)), (3, B), 99, yjs=document, vv={A: 2})
    after = doc.put(rows, edit((6, 0)), (200, A), 100, yjs=document, vv={A: 2})
    rows = _merge(rows, after)
    assert values.doc_update(rows, 1_000) == edit((6, 0))
    assert doc.shown(rows) == [doc_part(A, 200)]
    assert values.expires_ms(TYPE_DOC, rows, 0) == 0
    rows = _merge(rows, behind)
    shown = pycrdt.Doc[pycrdt.Array[str]]()
    items = shown.get("a", type=pycrdt.Array)
    shown.apply_update(values.doc_update(rows, 0) or b"")
    assert sorted(items) == ["6.0", "7.0"], "an edit that the end has not seen survives it"


def test_a_deleted_document_is_born_without_its_old_expiry() -> None:
    rows = _put({}, edit((5, 0)), 1)
    assert doc.expire({}, (1, A), 5) == {}
    rows |= doc.expire(rows, (2, A), 100)
    rows |= doc.delete(rows, {A: 2}, (3, A), yjs=document)
    rows |= _put(rows, edit((6, 0)), 4)
    assert values.expires_ms(TYPE_DOC, rows, 0) == 0
    assert values.doc_update(rows, 1_000) == edit((6, 0))


def test_rows_of_owners_and_bases_are_kept_apart() -> None:
    rows = _put({}, edit((5, 0)), 1, owner=b"a" * 8)
    rows |= _put(rows, edit((6, 0)), 2, owner=b"b" * 8)
    assert [rows[part][2] for part in sorted(rows)] == [b"a" * 8, b"b" * 8]
    rows |= _put(rows, edit((7, 0)), 3, owner=b"b" * 8)
    assert len(rows) == 2
    # A life that began earlier elsewhere lowers the base.
    rows |= {doc_part(B, 0): doc.first_row(0, 0, b"b" * 8, [edit((8, 0))])}
    assert doc.base({doc_part(B, 0): rows[doc_part(B, 0)]}) == 0
    assert rows[doc_part(A, 2)][1] == 1


def test_bases_are_followed_all_the_way() -> None:
    rows = {
        doc_part(A, 2): doc.first_row(2, 2, doc.NOBODY, [edit((5, 0))]),
        doc_part(B, 4): doc.first_row(4, 2, doc.NOBODY, [edit((6, 0), (5, 0))]),
        doc_part(C, 6): doc.first_row(6, 4, doc.NOBODY, [edit((7, 0), (6, 0))]),
        erasure_part(A, 2): (b"\0\0",),
        erasure_part(A, 3): (b"\0\0",),
    }
    rows[HEAD] = (((A, 2), (B, 4)), 0, 0, 0)
    assert doc.base(rows) == 2
    assert doc.shown(rows) == [doc_part(A, 2), doc_part(B, 4), doc_part(C, 6), erasure_part(A, 3)]
    rows[HEAD] = (((A, 2), (B, 4), (C, 6)), 0, 0, 0)
    assert doc.base(rows) == 0
    assert doc.shown(rows) == []


def test_dead_rows_are_collected_as_a_whole() -> None:
    ms = hlc_from_ms(1)
    rows = _put({}, edit((5, 0)), ms)
    rows |= doc.expire(rows, (2 * ms, A), 50)
    assert dead_rows(TYPE_DOC, b"k", rows, 100, 10) == {}, "only hidden, not ended"
    rows |= end_life(TYPE_DOC, rows, {A: 2 * ms}, (60 * ms, A), 60)
    assert end_life(TYPE_DOC, rows, {A: 60 * ms}, (61 * ms, A), 61) == {}
    assert set(dead_rows(TYPE_DOC, b"k", rows, 100, 10)) == set(rows)
    rows |= _put(rows, edit((6, 0)), 90 * ms)
    assert {part[0] for part in dead_rows(TYPE_DOC, b"k", rows, 100, 10)} == {
        TAG_DOC,
        TAG_DOC_ERASURE,
    }


def test_states_of_a_row_follow_each_other() -> None:
    states = row_chain(A, 1, 1, doc.ROW_UPDATES + 5)
    assert {len(state[5]) for state in states} >= {1, doc.ROW_UPDATES}
    assert states[doc.ROW_UPDATES][3] == doc.ROW_UPDATES + 1, "all in one"
    for low in range(len(states)):
        for high in range(low, len(states)):
            assert doc.join(states[low], states[high]) == states[high]
            assert doc.join(states[high], states[low]) == states[high]


def _fork(row: tuple[object, ...], **changes: object) -> tuple[object, ...]:
    names = ("hlc", "base", "owner", "count", "chain", "updates")
    return tuple(changes.get(name, old) for name, old in zip(names, row, strict=True))


@pytest.mark.parametrize(
    ("at", "changes"),
    [
        (2, {"updates": (edit((9, 0)),)}),
        (4, {"updates": (edit((9, 0)), edit((9, 1), (9, 0)))}),
        (4, {"base": 0}),
        (4, {"owner": b"somebody"}),
        (4, {"chain": bytes(16)}),
        (2, {"count": 2}),
        (40, {"chain": bytes(16)}),
    ],
)
def test_two_writers_of_one_row_are_found(at: int, changes: dict[str, object]) -> None:
    states = row_chain(A, 1, 1, 4)
    other = _fork(states[2], **{"hlc": at, **changes})
    with pytest.raises(StampReused) as one:
        doc.join(states[2], other)
    with pytest.raises(StampReused) as two:
        doc.join(other, states[2])
    assert one.value.kept == two.value.kept == max(states[2], other)


def test_a_fork_is_found_across_a_merge() -> None:
    states = row_chain(A, 1, 1, doc.ROW_UPDATES + 2)
    merged = states[-1]
    assert merged[3] > 1
    low = states[doc.ROW_UPDATES - 1]
    other = edit((9, 0))
    assert doc.join(low, merged) == merged
    # One entry more than the merged one holds would tell; what is merged too far back cannot.
    assert doc.join(_fork(low, updates=(*low[5][:5], other)), merged) == merged
    ahead = _fork(low, updates=(*low[5], other, other))
    with pytest.raises(StampReused):
        doc.join(ahead, merged)


def test_an_erasure_is_written_once() -> None:
    one, two = (b"\0\0",), (b"\0\1\5\1\0\1",)
    assert doc.join_erasure(one, one) is one
    with pytest.raises(StampReused) as reused:
        doc.join_erasure(one, two)
    assert reused.value.kept == two


@pytest.mark.parametrize(
    "row",
    [
        (3, 3, bytes(8), 1, bytes(16), (b"\0\0",)),
        (1, 1, bytes(8), 1, bytes(16), (b"\0\0",)),
        (2, 2, bytes(8), 0, bytes(16), (b"\0\0",)),
        (2, 2, bytes(8), 1, bytes(16), ()),
        (2, 2, bytes(7), 1, bytes(16), (b"\0\0",)),
        (2, 2, bytes(8), 1, bytes(15), (b"\0\0",)),
    ],
)
def test_impossible_rows_are_refused(row: tuple[object, ...]) -> None:
    part = doc_part(A, 2)
    good = (2, 2, bytes(8), 1, bytes(16), (b"\0\0",))
    assert decode_row(TYPE_DOC, part, encode_row(TYPE_DOC, part, good)) == good
    with pytest.raises(CorruptData):
        decode_row(TYPE_DOC, part, encode_row(TYPE_DOC, part, row))


def test_updates_from_outside_are_read_before_they_are_kept() -> None:
    part = doc_part(A, 2)
    body = encode_row(TYPE_DOC, part, (2, 2, bytes(8), 1, bytes(16), (b"garbage",)))
    assert decode_row(TYPE_DOC, part, body), "a stored row was read when it came"
    with pytest.raises(CorruptData, match="Yjs"):
        decode_row(TYPE_DOC, part, body, body_bytes_max=1_000)
    good = encode_row(TYPE_DOC, part, (2, 2, bytes(8), 1, bytes(16), (whole_update(),)))
    assert decode_row(TYPE_DOC, part, good, body_bytes_max=10_000)
    erasure = erasure_part(A, 2)
    assert decode_row(TYPE_DOC, erasure, encode_row(TYPE_DOC, erasure, (b"\0\0",)))
    with pytest.raises(CorruptData, match="adds"):
        decode_row(TYPE_DOC, erasure, encode_row(TYPE_DOC, erasure, (edit((5, 0)),)))


def test_rows_from_outside_have_a_depth_and_a_size() -> None:
    part = doc_part(A, 2)

    def decoded(*updates: bytes) -> Rows:
        body = encode_row(TYPE_DOC, part, (2, 2, bytes(8), 1, bytes(16), updates))
        return {part: decode_row(TYPE_DOC, part, body, body_bytes_max=1 << 24)}

    def maps(levels: int) -> bytes:
        inner = b"".join(b"\x27\0\5" + bytes([clock]) + b"\1k\1" for clock in range(levels - 1))
        return b"\1" + bytes([levels]) + b"\5\0" + b"\x27\1\1m\1k\1" + inner + b"\0"

    assert decoded(maps(64))
    with pytest.raises(CorruptData, match="nested deeper"):
        decoded(maps(65))
    large = b"\1\1\5\0\x03\1\1a\x80\x80\x20" + bytes(1 << 19) + b"\0"
    assert decoded(large)
    with pytest.raises(CorruptData, match="at most"):
        decoded(large, large)


def test_a_document_that_yjs_cannot_read_can_be_deleted() -> None:
    unreadable = b"\1\1\5\0\x05\1\1a\2[x\0"
    rows: Rows = {doc_part(A, 2): doc.first_row(2, 2, bytes(8), [edit((6, 0)), unreadable])}
    with pytest.raises(CorruptData):
        values.doc_update(rows, 0)
    rows |= doc.delete(rows, {A: 2}, (3, A), yjs=document)
    assert rows[erasure_part(A, 3)] == (b"\0\1\6\1\0\1",)
    assert values.doc_update(rows, 0) is None
    again = edit((7, 0))
    rows |= doc.put(rows, again, (4, A), 0, yjs=document, vv={A: 3})
    assert values.doc_update(rows, 0) == again


def test_what_could_show_a_row_again_is_named() -> None:
    rows: Rows = {
        doc_part(A, 2): doc.first_row(2, 2, bytes(8), [edit((5, 0))]),
        doc_part(A, 6): doc.first_row(7, 6, bytes(8), [edit((6, 0))]),
        doc_part(B, 9): doc.first_row(9, 2, bytes(8), [edit((7, 0))]),
        doc_part(B, 12): doc.first_row(12, 12, bytes(8), [edit((8, 0))]),
        erasure_part(A, 11): (b"\0\1\5\1\0\1",),
        HEAD: ((), 0, 0, 0),
    }
    # What is born at 6 takes in what is born at 9, and that what is born at 2.
    named = [(2, doc_part(A, 2), 2), (2, doc_part(A, 6), 7), (2, doc_part(B, 9), 9)]
    assert doc.builders(rows) == [*named, (12, doc_part(B, 12), 12)]


def test_erasures_add_up() -> None:
    one, two = b"\0\1\5\1\0\2", b"\0\2\5\1\1\3\6\1\0\1"
    assert doc.erased([one, two]) == b"\0\2\5\1\0\4\6\1\0\1"
