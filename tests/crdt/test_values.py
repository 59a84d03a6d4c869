"""The read side: what shows, until when, and what no reader will ever see again."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roost_crdt import document, values
from roost_crdt.hlc import hlc_from_ms
from roost_crdt.rows import Rows, counter, doc, rate, register
from roost_crdt.rows import map as maps
from roost_crdt.rows import set as sets
from roost_crdt.rows.layout import (
    HEAD,
    TYPE_BY_NAME,
    TYPE_COUNTER,
    TYPE_DOC,
    TYPE_MAP,
    TYPE_RATE,
    TYPE_REGISTER,
    TYPE_SET,
    VALUE,
    actor_part,
    field_counter_part,
    field_part,
    window_part,
)
from roost_crdt.testing import START_MS, TYPES, WINDOW_MS, row_states
from roost_crdt.testing.edits import edit

A, B = 1, 2


def _shown(type_code: int, rows: Rows, now_ms: int) -> Any:
    shown = {
        TYPE_REGISTER: values.register_value,
        TYPE_COUNTER: values.counter_value,
        TYPE_SET: values.set_members,
        TYPE_MAP: values.map_fields,
        TYPE_RATE: lambda rows, now_ms: values.rate_estimate(rows, now_ms, WINDOW_MS),
        TYPE_DOC: values.doc_update,
    }
    return values.exists(type_code, rows, now_ms), shown[type_code](rows, now_ms)


def _examples() -> dict[int, Rows]:
    """A key of each type that ends at 1,050."""
    stamp, later = (hlc_from_ms(1_000), A), (hlc_from_ms(1_000) + 1, A)
    rows: dict[int, Rows] = {
        TYPE_REGISTER: register.put({}, b"v", stamp, 1_050),
        TYPE_COUNTER: counter.add({}, 5, stamp, 1_000),
        TYPE_SET: sets.add({}, [b"e", "1"], stamp, 1_000),
        TYPE_MAP: maps.put({}, {b"f": "1"}, stamp, 1_000),
        TYPE_RATE: rate.add({}, 5, stamp, 1_000, 100),
        TYPE_DOC: doc.put({}, edit((5, 0)), stamp, 1_000, yjs=document, vv={}),
    }
    for code, module in ((TYPE_COUNTER, counter), (TYPE_SET, sets), (TYPE_MAP, maps)):
        rows[code] |= module.expire(rows[code], later, 1_050)
    rows[TYPE_RATE] |= rate.expire(rows[TYPE_RATE], later, 1_050)
    rows[TYPE_DOC] |= doc.expire(rows[TYPE_DOC], later, 1_050)
    return rows


@pytest.mark.parametrize("name", TYPES)
def test_a_key_shows_until_it_expires(name: str) -> None:
    code = TYPE_BY_NAME[name]
    rows = _examples()[code]
    assert values.expires_ms(code, rows, 1_049) == 1_050
    assert values.exists(code, rows, 1_049)
    assert not values.exists(code, rows, 1_050)
    assert values.expires_ms(code, rows, 1_050) == 0
    assert not values.exists(code, {}, 0)


def test_what_shows() -> None:
    rows = _examples()
    assert values.register_value(rows[TYPE_REGISTER], 0) == b"v"
    assert values.counter_value(rows[TYPE_COUNTER], 0) == 5
    assert values.set_members(rows[TYPE_SET], 0) == [b"e", "1"]
    assert values.set_contains(rows[TYPE_SET], "1", 0)
    assert not values.set_contains(rows[TYPE_SET], b"1", 0)
    assert values.map_fields(rows[TYPE_MAP], 0) == {b"f": "1"}
    assert values.map_field(rows[TYPE_MAP], b"f", 0) == "1"
    assert values.rate_estimate(rows[TYPE_RATE], 1_000, 100) == 5


def test_a_type_of_another_version_shows_nothing() -> None:
    assert not values.exists(99, {b"\x63": ()}, 0)
    assert values.expires_ms(99, {b"\x63": ()}, 0) == 0


def test_a_document_shows_one_update() -> None:
    one, two = edit((5, 0)), edit((6, 0), (5, 0))
    rows = doc.put({}, one, (3, A), 0, yjs=document, vv={})
    assert values.doc_update(rows, 0) == one
    rows |= doc.put(rows, two, (4, A), 0, yjs=document, vv={})
    assert values.doc_update(rows, 0) == document.merge([two, one])
    assert values.newest_stamp(TYPE_DOC, rows) == (4, A)
    rows |= doc.expire(rows, (5, A), 100)
    assert values.expires_ms(TYPE_DOC, rows, 99) == 100
    assert values.newest_stamp(TYPE_DOC, rows) == (5, A)
    assert values.doc_update(rows, 99) is not None
    assert values.doc_update(rows, 100) is None
    assert values.doc_update({}, 0) is None


def test_a_key_without_expiry_never_ends() -> None:
    assert values.expires_ms(TYPE_COUNTER, counter.add({}, 1, (1, A), 0), 0) == 0
    assert values.expires_ms(TYPE_REGISTER, register.put({}, b"", (1, A)), 0) == 0


def test_a_rate_ends_with_its_last_window_at_the_latest() -> None:
    rows: Rows = {
        window_part(10, A): (1, 0, 100),
        window_part(11, A): (1, 0, 100),
        window_part(12, A): (1, 1, 100),
    }
    assert values.expires_ms(TYPE_RATE, rows, 1_100) == 1_300
    rows[HEAD] = (1, A, 5_000)
    assert values.expires_ms(TYPE_RATE, rows, 1_100) == 1_300


@pytest.mark.parametrize("name", TYPES)
def test_dead_parts_are_never_missed(name: str) -> None:
    code = TYPE_BY_NAME[name]

    @settings(max_examples=150, deadline=None)
    @given(row_states(name), st.integers(-150, 150), st.integers(0, 300))
    def check(rows: Rows, at_ms: int, later_ms: int) -> None:
        now_ms = START_MS + at_ms
        dead = values.dead_parts(code, rows, now_ms)
        assert len({*dead}) == len(dead)
        left = {part: row for part, row in rows.items() if part not in dead}
        for read_ms in (now_ms, now_ms + later_ms):
            assert _shown(code, left, read_ms) == _shown(code, rows, read_ms)
        if not values.exists(code, rows, now_ms):
            assert left == {}
        # Rows may go without the head, never the head without the rows.
        assert HEAD not in dead or left == {}

    check()


def test_dead_parts_by_type() -> None:
    assert values.dead_parts(TYPE_REGISTER, {}, 0) == []
    live = register.put({}, b"", (1, A))
    assert values.dead_parts(TYPE_REGISTER, live, 0) == []
    assert values.dead_parts(TYPE_REGISTER, register.delete(live, (2, A)), 0) == [VALUE]
    one, two = actor_part(A, 1), actor_part(B, 1)
    counts: Rows = {one: (1, 0, 1, 0), two: (1, 1, 0, 0), HEAD: (1, A, 0)}
    assert values.dead_parts(TYPE_COUNTER, counts, 0) == [one]
    counts[two] = (1, 1, 1, 1)
    assert values.dead_parts(TYPE_COUNTER, counts, 0) == [one, two, HEAD]
    f, g, n = field_part(b"f"), field_part(b"g"), field_counter_part(b"n", A, 1)
    fields: Rows = {
        HEAD: (5, A, 0, 0, 0),
        f: (5, A, 1, b"", 0),
        g: (6, A, 1, b"", 0),
        n: (1, 0, 1, 0),
    }
    assert values.dead_parts(TYPE_MAP, fields, 0) == [f, n]
    elements = sets.add({}, [b"x", b"y"], (1, A), 0)
    elements |= sets.remove(elements, [b"x"], 0)
    assert values.dead_parts(TYPE_SET, elements, 0) == [sets.part_of(b"x")]
    windows: Rows = {window_part(10, A): (1, 0, 100), window_part(12, A): (1, 0, 100)}
    assert values.dead_parts(TYPE_RATE, windows, 1_200) == [window_part(10, A)]


def test_the_newest_stamp_is_that_of_the_latest_write_of_any_kind() -> None:
    rows = _examples()
    ends = (hlc_from_ms(1_000) + 1, A)
    for code in (TYPE_SET, TYPE_MAP):
        assert values.newest_stamp(code, rows[code]) == ends
    assert values.newest_stamp(TYPE_REGISTER, rows[TYPE_REGISTER]) == (hlc_from_ms(1_000), A)
    later, latest = (hlc_from_ms(2_000), B), (hlc_from_ms(3_000), A)
    register_rows = rows[TYPE_REGISTER] | register.expire(rows[TYPE_REGISTER], later, 5_000)
    assert values.newest_stamp(TYPE_REGISTER, register_rows) == later
    map_rows = maps.put(rows[TYPE_MAP], {b"f": "2"}, later, 1_000)
    assert values.newest_stamp(TYPE_MAP, rows[TYPE_MAP] | map_rows) == later
    cleared = rows[TYPE_MAP] | maps.delete(rows[TYPE_MAP], latest)
    assert values.newest_stamp(TYPE_MAP, cleared) == latest
    grown = rows[TYPE_SET] | sets.add(rows[TYPE_SET], [b"g"], later, 1_000)
    assert values.newest_stamp(TYPE_SET, grown) == later
    emptied = grown | sets.delete(grown, {}, latest)
    assert values.newest_stamp(TYPE_SET, emptied) is not None
    counted = maps.add({}, b"f", 1, later, 1_000)
    assert values.newest_stamp(TYPE_MAP, counted) is None


def test_sums_and_nothing_keep_no_stamp() -> None:
    rows = _examples()
    assert values.newest_stamp(TYPE_COUNTER, rows[TYPE_COUNTER]) is None
    assert values.newest_stamp(TYPE_RATE, rows[TYPE_RATE]) is None
    assert values.newest_stamp(TYPE_SET, {}) is None
