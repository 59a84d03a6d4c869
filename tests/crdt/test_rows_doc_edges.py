"""Documents at their edges: what continues a row, when one is full, what a deletion covers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from hashlib import blake2b
from typing import Any

import pytest

from roost_crdt import document
from roost_crdt.errors import CorruptData
from roost_crdt.rows import Row, Rows, StampReused, decode_row, doc, encode_row, row_hlc
from roost_crdt.rows.layout import HEAD, TYPE_DOC, doc_part, erasure_part
from roost_crdt.testing.edits import edit
from roost_crdt.yplaces import Runs

A, B = 1, 2
OWNER = b"owner..."


class Glue:
    """Merges by putting bytes together: sizes are what a test makes them."""

    @staticmethod
    def merge(updates: Sequence[bytes], /) -> bytes:
        return b"".join(updates)

    @staticmethod
    def written(updates: Sequence[bytes], /) -> Runs:
        raise AssertionError("nothing is deleted")


def chain(*updates: bytes) -> bytes:
    """The hash chain over the updates that were merged into one."""

    def step(before: bytes, update: bytes) -> bytes:
        return blake2b(before + update, digest_size=16, person=b"roost-doc").digest()

    return reduce(step, updates, b"")


def row(hlc: int, merged: Sequence[bytes], *updates: bytes) -> Row:
    """A row of which `merged` were merged into the first of `updates`."""
    return (hlc, 3, OWNER, len(merged), chain(*merged), updates)


def put(rows: Rows, update: bytes, hlc: int, *, yjs: Any = Glue) -> Rows:
    return {**rows, **doc.put(rows, update, (hlc, A), 0, yjs=yjs, vv={}, owner=OWNER)}


# --- what continues what --------------------------------------------------------------------------

FOLLOWING = {
    "one more update": (row(6, [b"a"], b"a"), row(7, [b"a"], b"a", b"b")),
    "all merged": (row(6, [b"a"], b"a", b"b"), row(7, [b"a", b"b", b"c"], b"abc")),
    "some merged, the rest as it was": (
        row(8, [b"a"], b"a", b"b", b"c", b"d"),
        row(9, [b"a", b"b", b"c"], b"abc", b"d", b"e"),
    ),
    "one merged": (row(7, [b"a"], b"a", b"b", b"c"), row(9, [b"a", b"b"], b"ab", b"c")),
    "merged beyond what is held": (row(6, [b"a"], b"a", b"b"), row(9, [b"x"] * 7, b"y")),
}
FORKED = {
    "one hlc": (row(7, [b"a"], b"a"), row(7, [b"a"], b"a", b"b")),
    "another first update": (row(6, [b"a"], b"a", b"b"), row(7, [b"a"], b"x", b"b", b"c")),
    "another update behind": (row(6, [b"a"], b"a", b"b"), row(7, [b"a"], b"a", b"x", b"c")),
    "fewer merged than before": (
        row(6, [b"a", b"b", b"c"], b"m"),
        (8, 3, OWNER, 1, chain(b"a", b"b", b"c"), (b"m", b"m")),
    ),
    "another one was merged": (
        row(8, [b"a"], b"a", b"b", b"c"),
        row(9, [b"a", b"x"], b"ax", b"c"),
    ),
    "another one is left": (
        row(8, [b"a"], b"a", b"b", b"c", b"d"),
        row(9, [b"a", b"b", b"c"], b"abc", b"x"),
    ),
}


@pytest.mark.parametrize("name", FOLLOWING)
def test_the_later_state_of_a_row_is_kept(name: str) -> None:
    low, high = FOLLOWING[name]
    assert doc.join(low, high) == doc.join(high, low) == high


@pytest.mark.parametrize("name", FORKED)
def test_states_that_do_not_follow_each_other_name_two_writers(name: str) -> None:
    low, high = FORKED[name]
    for pair in ((low, high), (high, low)):
        with pytest.raises(StampReused) as refused:
            doc.join(*pair)
        assert refused.value.kept == high


def test_the_hlc_of_a_row_is_that_of_its_newest_update() -> None:
    rows = put(put({}, b"a", 5), b"b", 9)
    part = doc_part(A, 5)
    assert row_hlc(TYPE_DOC, part, rows[part]) == 9


# --- when a row is full ---------------------------------------------------------------------------


def test_a_row_takes_updates_up_to_its_bytes_then_they_are_merged() -> None:
    first = bytes(400)
    exact = put(put({}, first, 5), bytes(doc.ROW_BYTES - 400), 6)
    assert exact[doc_part(A, 5)][5] == (first, bytes(doc.ROW_BYTES - 400)), "just full"
    held = put(put({}, first, 5), b"b", 6)
    over = put(held, bytes(doc.ROW_BYTES - 400), 7)[doc_part(A, 5)]
    assert over[3:] == (
        3,
        chain(first, b"b", bytes(doc.ROW_BYTES - 400)),
        (first + b"b" + bytes(doc.ROW_BYTES - 400),),
    )
    assert doc.join(held[doc_part(A, 5)], over) == over


def test_what_would_make_a_merged_row_too_large_begins_another_one() -> None:
    held = put(put({}, bytes(500), 5), bytes(500), 6)
    exact = put(held, bytes(2 * doc.ROW_BYTES - 1_000), 7)
    assert set(exact) == {doc_part(A, 5)}
    assert len(exact[doc_part(A, 5)][5][0]) == 2 * doc.ROW_BYTES
    over = put(held, bytes(2 * doc.ROW_BYTES - 999), 7)
    assert set(over) == {doc_part(A, 5), doc_part(A, 7)}
    assert over[doc_part(A, 5)] == held[doc_part(A, 5)]


def test_every_merge_goes_on_with_the_chain() -> None:
    updates = [b"%02d" % at for at in range(2 * doc.ROW_UPDATES + 1)]
    rows: Rows = {}
    for hlc, update in enumerate(updates, 5):
        rows = put(rows, update, hlc)
    (merged,) = rows.values()
    count = merged[3]
    assert count > doc.ROW_UPDATES, "merged twice"
    assert merged[4] == chain(*updates[:count])
    assert b"".join(merged[5]) == b"".join(updates)


# --- deletion, expiry -----------------------------------------------------------------------------


def shared(hlc: int = 5) -> Rows:
    return put({}, edit((7, 0)), hlc, yjs=document)


def test_a_deletion_and_an_expiry_do_not_look_at_the_clock() -> None:
    """Whoever calls has; an end in the first millisecond is one like any other."""
    rows = shared()
    rows |= doc.expire(rows, (6, A), 1)
    later = doc.expire(rows, (7, A), 500)
    assert later[HEAD][-1] == 500
    deleted = doc.delete(rows, {A: 6}, (8, A), yjs=document)
    assert set(deleted) == {HEAD, erasure_part(A, 8)}
    assert not doc.exists({**rows, **deleted}, 0)


def test_the_end_of_a_life_covers_an_own_update_of_the_moment_before() -> None:
    rows = shared(hlc=9)
    rows[HEAD] = ((), 9, A, 50)
    ended = doc.end(rows, {}, (10, A), 60, yjs=document)
    assert ended[HEAD][0] == ((A, 9),)
    assert not doc.exists({**rows, **ended}, 0)


def test_an_update_of_an_actor_that_is_not_seen_at_all_survives() -> None:
    rows = shared()
    rows |= doc.put({}, edit((8, 0)), (1, B), 0, yjs=document, vv={}, owner=OWNER)
    deleted = doc.delete(rows, {A: 5}, (9, A), yjs=document)
    assert dict(deleted[HEAD][0])[B] == 0
    assert doc.exists({**rows, **deleted}, 0)


def test_the_end_of_what_was_deleted_erases_nothing_more() -> None:
    rows = shared()
    rows |= doc.expire(rows, (6, A), 50)
    rows |= doc.delete(rows, {A: 6}, (7, A), yjs=document)
    assert set(doc.end(rows, {A: 7}, (8, A), 60, yjs=document)) == {HEAD}


# --- what comes from outside ----------------------------------------------------------------------


def test_updates_are_read_where_a_bound_says_that_they_come_from_outside() -> None:
    part = doc_part(A, 5)
    body = encode_row(TYPE_DOC, part, (5, 5, OWNER, 1, bytes(16), (b"no update",)))
    assert decode_row(TYPE_DOC, part, body)[5] == (b"no update",), "stored: read when it is shown"
    with pytest.raises(CorruptData):
        decode_row(TYPE_DOC, part, body, body_bytes_max=1_000)
