from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

import pycrdt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost_crdt.errors import CorruptData
from roost_crdt.yupdate import (
    CLIENT_MAX,
    Contents,
    Item,
    Overwrite,
    Range,
    read_state_vector,
    read_update,
)

Doc = pycrdt.Doc[Any]
EMPTY = b"\0\0"


def document(client: int) -> tuple[Doc, pycrdt.Map[bytes], pycrdt.Map[bytes], list[bytes]]:
    """A document, its two maps, and the update of each transaction."""
    doc: Doc = pycrdt.Doc(client_id=client)
    updates: list[bytes] = []
    doc.observe(lambda event: updates.append(event.update))
    return doc, doc.get("e", type=pycrdt.Map), doc.get("f", type=pycrdt.Map), updates


def test_a_transaction_reads_as_what_it_wrote() -> None:
    doc, entries, fields, updates = document(7)
    with doc.transaction():
        entries["t/1"] = b"hello"
        fields["a"] = b""
    assert read_update(updates[0]) == Contents(
        ranges=[Range(7, 0, 2)],
        entries=[Item("t/1", b"hello", 7, 0, 0)],
        fields=[Item("a", b"", 7, 1, 1)],
        overwrites=[],
        deletes=[],
    )
    fields["a"] = b"2"
    assert read_update(updates[1]) == Contents(
        [Range(7, 2, 3)], [], [], [Overwrite((7, 1), b"2", 7, 2, 2)], [Range(7, 1, 2)]
    )
    whole = read_update(doc.get_update())
    assert whole.ranges == [Range(7, 0, 3)]
    assert whole.fields == [Item("a", None, 7, 1, 1)], "only its place is left"
    assert whole.overwrites == [Overwrite((7, 1), b"2", 7, 2, 2)]


def test_dead_values_that_yjs_joined_are_one_item() -> None:
    doc, _, fields, _ = document(7)
    for value in (b"1", b"2", b"3", b"4"):
        fields["a"] = value
    whole = read_update(doc.get_update())
    assert whole.ranges == [Range(7, 0, 4)]
    assert whole.fields == [Item("a", None, 7, 0, 2)]
    assert whole.overwrites == [Overwrite((7, 2), b"4", 7, 3, 3)]


def test_an_empty_update_and_long_names_read_too() -> None:
    assert read_update(EMPTY) == Contents([], [], [], [], [])
    doc, entries, _, updates = document(CLIENT_MAX)
    entries["k" * 500] = bytes(100_000)
    (item,) = read_update(updates[0]).entries
    assert (len(item.key), len(item.value or b""), item.client) == (500, 100_000, CLIENT_MAX)
    assert read_state_vector(doc.get_state()) == {CLIENT_MAX: 1}


@given(st.integers(0, 1 << 30))
def test_everything_that_yjs_makes_of_two_maps_is_read(seed: int) -> None:
    """Updates, diffs, merges and whole documents of copies that write at the same time."""
    chance = random.Random(seed)
    copies = [document(client) for client in (3, 200, 1 << 50)]
    for step in range(30):
        doc, entries, fields, updates = chance.choice(copies)
        kind = chance.randrange(4)
        if kind == 0:
            entries[f"t/{step}"] = b"%d" % step
        elif kind == 1:
            with doc.transaction():
                for name in chance.choices("abc", k=3):
                    fields[name] = b"%d" % step
        elif kind == 2:
            other = chance.choice(copies)[0]
            diff = other.get_update(doc.get_state())
            read_update(diff)
            doc.apply_update(diff)
        else:
            doc.apply_update(pycrdt.merge_updates(EMPTY, chance.choice(copies)[0].get_update()))
        for update in (doc.get_update(), pycrdt.merge_updates(EMPTY, *updates[-3:-2])):
            contents = read_update(update)
            held = {r.client: r.end for r in contents.ranges if not r.start}
            assert held == read_state_vector(pycrdt.get_state(update))
        whole = read_update(doc.get_update())
        live = {item.key: item.value for item in whole.entries if item.value is not None}
        assert live == {key: bytes(value) for key, value in entries.items()}


def _item(content: bytes, *, info: int = 0x28, parent: bytes = b"\x01\x01e\x01k") -> bytes:
    return b"\x01\x01\x05\x00" + bytes([info]) + parent + content + b"\x00"


GOOD = _item(b"\x01t\x01x")


def test_the_hand_made_update_is_good_before_it_is_spoilt() -> None:
    assert read_update(GOOD).entries == [Item("k", b"x", 5, 0, 0)]


@pytest.mark.parametrize(
    "spoilt",
    [
        b"",
        b"\x00",
        GOOD[:-1],
        GOOD[:-3],
        GOOD + b"\x00",
        b"\x02" + GOOD[1:],
        b"\x01\x00\x05\x00\x00",
        b"\x01\x01\x05\x00\x00\x05\x00",
        b"\x01\x01\x05\x00\x0a\x05\x00",
        b"\x02" + GOOD[1:-1] + GOOD[1:],
        b"\x01\x01" + b"\xff" * 7 + b"\x7f\x00" + GOOD[4:],
        b"\x01\x01" + b"\xff" * 20 + b"\x00",
        b"\x01\x01\x05\xff\xff\xff\xff\x0f" + GOOD[4:],
        _item(b"\x02t\x01xt\x01x"),
        _item(b"\x00"),
        _item(b"\x01\x7d\x01"),
        _item(b"\x01\x77\x01x"),
        _item(b"\x01\x75\x00"),
        _item(b"\x01\x76\x00"),
        _item(b"\x01t\x7fx"),
        _item(b"\x01t\xff\xff\xff\xff\xff\xff\xff\x7fx"),
        _item(b"\x01t\x01x", info=0x08),
        _item(b"\x01t\x01x", info=0x68, parent=b"\x05\x00\x01\x01e\x01k"),
        _item(b"\x01t\x01x", parent=b"\x00\x05\x00\x01k"),
        _item(b"\x01t\x01x", parent=b"\x01\x01x\x01k"),
        _item(b"\x01t\x01x", parent=b"\x01\x02ee\x01k"),
        _item(b"\x01t\x01x", parent=b"\x01\x01e\x01\xff"),
        _item(b"\x00", info=0x21),
        _item(b"\xff\xff\xff\xff\x0f", info=0x21),
        *(_item(b"\x01x", info=0x20 | kind) for kind in (2, 3, 4, 5, 6, 7, 9, 11, 31)),
        GOOD[:-1] + b"\x01\x05\x01\xff\xff\xff\xff\x07\x01",
        GOOD[:-1] + b"\x01\x05\x05\x00\x01",
    ],
)
def test_what_is_not_one_whole_update_of_two_maps_is_corrupt(spoilt: bytes) -> None:
    with pytest.raises(CorruptData):
        read_update(spoilt)


def test_a_place_between_two_others_belongs_to_no_map() -> None:
    """Only sequences know a right neighbour: an array of byte strings named as our root."""
    doc: Doc = pycrdt.Doc(client_id=7)
    updates: list[bytes] = []
    doc.observe(lambda event: updates.append(event.update))
    items = doc.get("e", type=pycrdt.Array)
    items.extend([b"first", b"last"])
    items.insert(1, b"between")
    assert updates[1][4] == 0xC8, "origin, right origin, any"
    with pytest.raises(CorruptData, match="nothing that a session document can hold"):
        read_update(updates[1])


@pytest.mark.parametrize(
    "spoilt", [b"", b"\x01", b"\x01\x05", b"\x00\x00", b"\x02\x05\x01\x05\x01"]
)
def test_what_is_no_state_vector_is_corrupt(spoilt: bytes) -> None:
    with pytest.raises(CorruptData):
        read_state_vector(spoilt)


@given(st.data())
def test_what_is_read_is_safe_for_pycrdt(data: st.DataObject) -> None:
    raw = bytearray(data.draw(st.sampled_from([GOOD, GOOD * 2, b""])))
    raw[data.draw(st.integers(0, len(raw))) :] = data.draw(st.binary(max_size=30))
    with suppress(CorruptData):
        contents = read_update(bytes(raw))
        doc: Doc = pycrdt.Doc(client_id=1)
        entries = doc.get("e", type=pycrdt.Map)
        doc.apply_update(bytes(raw))
        found = {item.key: item.value for item in contents.entries}
        assert all(found[key] == bytes(value) for key, value in entries.items())
    with suppress(CorruptData):
        assert all(count >= 0 for count in read_state_vector(bytes(raw)).values())


def test_more_structs_than_any_session_has_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an update says of itself is enough: 12 MB of tiny ones would take seconds."""
    yjs: pycrdt.Doc[Any] = pycrdt.Doc(client_id=5)
    entries = yjs.get("e", type=pycrdt.Map)
    with yjs.transaction():
        for number in range(50):
            entries[f"k{number}"] = b"v"
    assert len(read_update(yjs.get_update()).entries) == 50
    monkeypatch.setattr("roost_crdt.yupdate.STRUCTS_MAX", 49)
    with pytest.raises(CorruptData, match="more than 49 structs"):
        read_update(yjs.get_update())
