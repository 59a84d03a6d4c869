from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost_crdt import entries
from roost_crdt.entries import (
    call_entry,
    check_entry,
    check_field,
    field_entry,
    field_rank,
    field_value,
    read_place,
    read_step,
    read_summary,
    read_turn,
    summary_entry,
    turn_entry,
    turn_leaf,
)
from roost_crdt.errors import CorruptData

EU = (1, "eu")
NODES = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=20) | (
    st.sampled_from(["eu-1.example", "a.b.c", "1.2", "x/y"])
)
TEXTS = st.lists(st.binary(max_size=40), max_size=4)


def pack(*parts: object) -> bytes:
    return msgspec.msgpack.encode(parts)


@given(st.integers(1, 500_000), NODES, st.integers(1, 1 << 31), TEXTS, st.none() | st.text())
def test_a_turn_comes_back_as_it_went_in(
    n: int, node: str, turn: int, messages: list[bytes], turn_id: str | None
) -> None:
    parent = None if turn == 1 else (n, node, turn - 1)
    key, leaf = turn_entry(
        (n, node), turn, parent=parent, turn_id=turn_id, messages=messages, at_ms=7
    )
    check_entry(key, leaf)
    entry = read_turn(key, leaf)
    assert entry == (n, node, turn, parent, turn_id, messages, 7)
    assert entry.ref == (n, node, turn)
    assert turn_leaf(entry) == leaf


@given(st.integers(1, 99), NODES, st.integers(0, 99), st.binary(max_size=20))
def test_a_summary_comes_back_as_it_went_in(n: int, node: str, k: int, message: bytes) -> None:
    key, leaf = summary_entry((n, node), k, covers=(1, "eu", 3), message=message)
    check_entry(key, leaf)
    assert read_place(key) == (n, node, k)
    assert read_summary(key, leaf) == ((1, "eu", 3), message)


@given(NODES, st.text(min_size=1, max_size=20).filter(lambda t: "/" not in t), st.integers(1, 9))
def test_a_step_comes_back_as_it_went_in(node: str, call: str, attempt: int) -> None:
    key, leaf = call_entry(
        call, attempt, "failed", (3, node), tool="t", args=b"{}", result=b"1", at_ms=9
    )
    check_entry(key, leaf)
    place, body = read_step(key, leaf)
    assert place == (call, attempt, "failed", (3, node))
    assert (body.tool, body.args, body.result, body.at_ms) == ("t", b"{}", b"1", 9)


def test_a_field_comes_back_as_it_went_in() -> None:
    for value in (b'"x"', None):
        key, leaf = field_entry("kv", "a\0b", (3, "eu"), value, 9)
        check_field(key, leaf)
        assert key == "kv\0a\0b"
        assert field_value(leaf) == value
        assert field_rank(leaf) == (3, "eu", 9, leaf)
    check_field(None, None)


def test_a_turn_follows_its_parent() -> None:
    with pytest.raises(AssertionError):
        turn_entry(EU, 3, parent=(1, "eu", 1), turn_id=None, messages=[], at_ms=1)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "t/",
        "x/1.eu.1",
        "t/1.eu",
        "t/1..1",
        "t/0.eu.1",
        "t/1.eu.0",
        "t/01.eu.1",
        "t/1.eu.01",
        "t/-1.eu.1",
        "t/1.eu.-1",
        "t/1.eu.+1",
        "t/1.eu. 1",
        "t/1.eu.1_0",
        "t/1.eu.\u0661",
        "t/524288.eu.1",
        "t/1.eu.99999999999",
        "t/1.eu." + "9" * 10_000,
        "t/1." + "n" * 200 + ".1",
        "t/1.eu.2",
    ],
)
def test_a_key_has_one_spelling(key: str) -> None:
    with pytest.raises(CorruptData):
        check_entry(key, pack(None, None, [b"m"], 1))


@pytest.mark.parametrize(
    "leaf",
    [
        b"",
        b"\xc1",
        b"\x94",
        pack(),
        pack(None, None, [b"m"]),
        pack(None, None, [b"m"], 1, 2),
        pack(None, None, ["text"], 1),
        pack(None, 5, [b"m"], 1),
        pack(None, None, [b"m"], -1),
        pack(None, None, [b"m"], 1 << 60),
        pack(None, None, [b"m"], True),
        pack(None, None, [b"m"], 1.0),
        pack([1, "eu", 1], None, [b"m"], 1),
        pack([1, "eu"], None, [b"m"], 1),
        b"\x94\xc0\xa2\xff\xff\x90\x01",
        b"\x94\xc0\xc0" + b"\x91" * 5_000 + b"\x90\x01",
    ],
)
def test_a_body_has_one_shape(leaf: bytes) -> None:
    with pytest.raises(CorruptData):
        check_entry("t/1.eu.1", leaf)


def test_a_parent_is_the_turn_before_of_no_later_epoch() -> None:
    good = pack([1, "eu", 4], None, [], 1)
    check_entry("t/1.eu.5", good)
    check_entry("t/2.ap.5", good)
    for key in ("t/1.ap.5", "t/1.eu.4", "t/2.eu.6", "t/2.eu.1"):
        with pytest.raises(CorruptData):
            check_entry(key, good)
    with pytest.raises(CorruptData):
        check_entry("t/2.eu.5", pack(None, None, [], 1))


@pytest.mark.parametrize(
    ("key", "leaf"),
    [
        ("c/a/1/begun", pack("t", b"", None, 1)),
        ("c//1/begun/1.eu", pack("t", b"", None, 1)),
        ("c/a/1/begun/", pack("t", b"", None, 1)),
        ("c/a/1/begun/eu", pack("t", b"", None, 1)),
        ("c/a/1/begun/1.", pack("t", b"", None, 1)),
        ("c/a/1/begun/0.eu", pack("t", b"", None, 1)),
        ("c/a/1/begun/01.eu", pack("t", b"", None, 1)),
        ("c/a/1/begun/600000.eu", pack("t", b"", None, 1)),
        ("c/a/1/ended/1.eu", pack("t", b"", None, 1)),
        ("c/a/0/begun/1.eu", pack("t", b"", None, 1)),
        ("c/a/01/begun/1.eu", pack("t", b"", None, 1)),
        ("c/a/x/begun/1.eu", pack("t", b"", None, 1)),
        ("c/" + "a" * 1_000 + "/1/begun/1.eu", pack("t", b"", None, 1)),
        ("c/a/1/begun/1.eu", pack("t", b"", None, -1)),
        ("c/a/1/begun/1.eu", pack("t", b"", None)),
        ("s/1.eu.1", pack([1, "eu"], b"m")),
        ("s/1.1", pack([1, "eu", 1], b"m")),
    ],
)
def test_other_entries_have_one_shape_too(key: str, leaf: bytes) -> None:
    with pytest.raises(CorruptData):
        check_entry(key, leaf)


@pytest.mark.parametrize(
    ("key", "leaf"),
    [
        ("kv", pack(1, "eu", b"1", 1)),
        ("\0a", pack(1, "eu", b"1", 1)),
        ("k" * 300 + "\0a", pack(1, "eu", b"1", 1)),
        ("kv\0a", pack(0, "eu", b"1", 1)),
        ("kv\0a", pack(1 << 19, "eu", b"1", 1)),
        ("kv\0a", pack(1, "", b"1", 1)),
        ("kv\0a", pack(1, "eu", "1", 1)),
        ("kv\0a", pack(1, "eu", b"1", -1)),
        ("kv\0a", pack(1, "eu", b"1")),
        ("kv\0a", b"\x94\x01\xa1\xff\xc0\x01"),
    ],
)
def test_fields_have_one_shape_too(key: str, leaf: bytes) -> None:
    with pytest.raises(CorruptData):
        check_field(key, leaf)


def test_a_decoded_entry_is_encoded_as_it_was_made() -> None:
    key, leaf = turn_entry(
        (2, "eu"), 4, parent=(1, "us", 3), turn_id="t", messages=[b"{}"], at_ms=9
    )
    assert entries.turn_leaf(read_turn(key, leaf)) == leaf
    key, leaf = summary_entry((2, "eu"), 4, covers=(1, "us", 3), message=b'"s"')
    assert entries.summary_leaf(read_summary(key, leaf)) == leaf


def test_what_a_field_ranks_by_is_its_epoch_and_then_its_time() -> None:
    _, low = field_entry("kv", "a", (1, "us"), b"1", 99)
    _, later = field_entry("kv", "a", (1, "us"), b"2", 100)
    _, high = field_entry("kv", "a", (1, "za"), None, 1)
    assert entries.field_rank(low) < entries.field_rank(later) < entries.field_rank(high)
    assert entries.field_value(low) == b"1"
    assert entries.field_value(high) is None
    with pytest.raises(CorruptData):
        entries.field_rank(b"\x90")
