"""The stored form of sessions: what is written is read back, in order, and of one session only."""

from __future__ import annotations

import pytest
from session_network import Rows

from roost_crdt.errors import CorruptData
from roost_crdt.home import Meta
from roost_crdt.sessions.table import (
    PAGE,
    Items,
    SessionTable,
    base_item,
    head_item,
    head_key,
    scan_all,
    update_item,
    view_items,
)

NEIGHBOURS = ("s", "s1", "s10", "s2")
"""Ids of which one is the beginning of another, or sorts next to it."""


def everything_of(sid: str) -> Items:
    text = sid.encode()
    return {
        **head_item(Meta(sid, (1, "eu"), None)),
        **base_item(sid, b"base of " + text),
        **update_item(sid, 1, b"one of " + text),
        **view_items(sid, {"t/1.eu.1": b"turn of " + text}, {"kv\0f": b"field of " + text}),
    }


@pytest.fixture
def table() -> SessionTable:
    table = SessionTable(Rows())
    for sid in NEIGHBOURS:
        table.put(everything_of(sid))
    return table


@pytest.mark.parametrize("sid", NEIGHBOURS)
def test_each_session_reads_what_is_its_own(table: SessionTable, sid: str) -> None:
    text = sid.encode()
    assert table.head(sid) == Meta(sid, (1, "eu"), None)
    assert table.document(sid) == [b"base of " + text, b"one of " + text]
    assert table.view(sid) == ({"t/1.eu.1": b"turn of " + text}, {"kv\0f": b"field of " + text})


@pytest.mark.parametrize("sid", NEIGHBOURS)
def test_what_is_dropped_is_all_of_one_session_but_its_head(table: SessionTable, sid: str) -> None:
    table.put(table.drop_items(sid))
    assert table.document(sid) == []
    assert table.view(sid) == ({}, {})
    assert table.drop_items(sid) == {}
    assert table.head(sid) is not None
    for other in set(NEIGHBOURS) - {sid}:
        assert len(table.document(other)) == 2


def test_an_unknown_session_has_nothing() -> None:
    table = SessionTable(Rows())
    assert table.head("s1") is None
    assert table.document("s1") == []
    assert table.view("s1") == ({}, {})
    assert table.heads("", 10) == []


def test_updates_come_in_the_order_of_their_numbers() -> None:
    table = SessionTable(Rows())
    numbers = [300, 2, 1 << 40, 255, 256, 1]
    for n in numbers:
        table.put(update_item("s1", n, str(n).encode()))
    assert table.document("s1") == [str(n).encode() for n in sorted(numbers)]
    assert len(table.update_keys("s1")) == len(numbers)
    table.put({**base_item("s1", b"base"), **dict.fromkeys(table.update_keys("s1"))})
    assert table.document("s1") == [b"base"]


def test_an_entry_may_be_of_any_length_and_any_text() -> None:
    table = SessionTable(Rows())
    entries = {"": b"", "t/1.ü.1": b"\0" * 1_000, "c/\0/1/begun/1.eu": b"x"}
    table.put(view_items("s1", entries, {}))
    assert table.view("s1") == (entries, {})


def test_heads_are_listed_page_by_page(table: SessionTable) -> None:
    seen: list[str] = []
    after = ""
    while page := table.heads(after, 3):
        seen += [meta.sid for meta in page]
        after = page[-1].sid
    assert seen == list(NEIGHBOURS)


def test_a_damaged_head_is_corrupt_and_not_absent() -> None:
    table = SessionTable(Rows())
    table.put({head_key("s1"): b"\xc1"})
    with pytest.raises(CorruptData, match="stored head"):
        table.head("s1")


@pytest.mark.parametrize("count", [0, 1, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE])
def test_a_scan_passes_every_item_once_whatever_the_page(count: int) -> None:
    rows = Rows()
    items = {b"p%06d" % at: b"%d" % at for at in range(count)}
    rows.put({**items, b"q": b"of another prefix"})
    assert dict(found := list(scan_all(rows.scan, b"p"))) == items
    assert len(found) == count
