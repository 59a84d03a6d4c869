"""What a session document cannot hold is refused, and changes nothing."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pycrdt
import pytest
from crdt.test_document import EU, HOSTILE, US, conversation, document, field, turn
from hypothesis import given, settings
from hypothesis import strategies as st

from roost_crdt import fold
from roost_crdt.document import Document, check_update, merge
from roost_crdt.errors import CorruptData
from roost_crdt.limits import DEFAULT_LIMITS


def _update_of(build: object) -> bytes:
    doc: pycrdt.Doc[pycrdt.Map[bytes]] = pycrdt.Doc(client_id=99)
    assert callable(build)
    build(doc)
    return doc.get_update()


def _set(doc: pycrdt.Doc[pycrdt.Map[object]], root: str, key: str, value: object) -> None:
    doc.get(root, type=pycrdt.Map)[key] = value


def _deep(levels: int) -> object:
    value: object = b"x"
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "build",
    [
        lambda doc: _set(doc, "e", "t/1.eu.1", 5),
        lambda doc: _set(doc, "e", "t/1.eu.1", "text"),
        lambda doc: _set(doc, "e", "t/1.eu.1", [b"a", b"b"]),
        lambda doc: _set(doc, "e", "t/1.eu.1", _deep(60)),
        lambda doc: _set(doc, "e", "t/1.eu.1", pycrdt.Map({"a": b"b"})),
        lambda doc: _set(doc, "x", "t/1.eu.1", b"b"),
        lambda doc: _set(doc, "entries", "t/1.eu.1", b"b"),
        lambda doc: doc.get("e", type=pycrdt.Array).append(b"b"),
        lambda doc: doc.get("f", type=pycrdt.Text).insert(0, "abc"),
        lambda doc: _set(doc, "e", "t/1.eu.1", b"not a turn"),
        lambda doc: _set(doc, "e", "t/01.eu.1", b"x"),
        lambda doc: _set(doc, "e", "z/1", b"x"),
        lambda doc: _set(doc, "f", "no policy", next(iter(field(EU, "a", b"1").values()))),
        lambda doc: _set(doc, "f", "kv\0a", b"not a field"),
    ],
)
def test_foreign_shapes_are_refused(build: object) -> None:
    home, _ = conversation(2)
    before = home.encode()
    with pytest.raises(CorruptData):
        home.apply(_update_of(build))
    assert home.encode() == before
    assert not home.broken


def test_a_garbage_collection_struct_cannot_move_a_clock() -> None:
    home = Document(5)
    home.write(turn(EU, 1, None), {})
    with pytest.raises(CorruptData):
        home.apply(HOSTILE)
    for number in range(2, 6):
        home.write(turn(EU, number, (*EU, number - 1)), {})
    assert len(home.entries()) == 5


def test_an_entry_cannot_be_deleted_or_overwritten() -> None:
    home, _ = conversation(3)
    for spoil in (
        lambda entries: entries.pop("t/1.eu.2"),
        lambda entries: entries.update(turn(EU, 2, (*EU, 1), "other")),
    ):
        doc: pycrdt.Doc[pycrdt.Map[bytes]] = pycrdt.Doc(client_id=99)
        entries = doc.get("e", type=pycrdt.Map)
        doc.apply_update(home.encode())
        entries["t/7.zz.1"] = next(iter(turn((7, "zz"), 1, None).values()))
        spoil(entries)
        before = home.encode()
        with pytest.raises(CorruptData, match="write-once entry"):
            home.apply(doc.get_update())
        assert home.encode() == before
        assert not home.broken


def test_a_field_cannot_be_deleted() -> None:
    home, _ = conversation(1)
    doc: pycrdt.Doc[pycrdt.Map[bytes]] = pycrdt.Doc(client_id=99)
    fields = doc.get("f", type=pycrdt.Map)
    doc.apply_update(home.encode())
    fields["kv\0other"] = next(iter(field(EU, "other", b"1").values()))
    del fields["kv\0seen"]
    before = home.encode()
    with pytest.raises(CorruptData, match="deletes a field"):
        home.apply(doc.get_update())
    assert home.encode() == before
    assert not home.broken


def test_a_field_deleted_where_only_trying_shows_it_breaks_the_document() -> None:
    doc: pycrdt.Doc[pycrdt.Map[bytes]] = pycrdt.Doc(client_id=99)
    fields = doc.get("f", type=pycrdt.Map)
    fields["kv\0a"] = next(iter(field(EU, "a", b"1").values()))
    del fields["kv\0a"]
    home = document(EU)
    with pytest.raises(CorruptData, match="deletes a field"):
        home.apply(doc.get_update())
    assert home.broken
    with pytest.raises(CorruptData, match="load it again"):
        home.entries()


def test_an_entry_that_comes_dead_is_refused() -> None:
    home, _ = conversation(1)
    doc: pycrdt.Doc[pycrdt.Map[bytes]] = pycrdt.Doc(client_id=99)
    entries = doc.get("e", type=pycrdt.Map)
    updates: list[bytes] = []
    subscription = doc.observe(lambda event: updates.append(event.update))
    entries["t/1.us.1"] = next(iter(turn((1, "us"), 1, None).values()))
    del entries["t/1.us.1"]
    doc.unobserve(subscription)
    with pytest.raises(CorruptData, match="write-once entry"):
        home.apply(merge(updates))
    assert not home.broken


def test_a_panic_becomes_corrupt_data_and_breaks_the_document() -> None:
    home, _ = conversation(1)
    number: Any = 2**64  # pycrdt panics on it; past the types, straight into pycrdt
    with pytest.raises(CorruptData, match="pycrdt") as caught, home._guard:
        home._transact([(home._entries, "t/1.eu.2", number)])
    assert not isinstance(caught.value.__cause__, Exception), "a panic is a BaseException"
    assert home.broken
    for use in (home.encode, home.entries, home.fields, home.state_vector):
        with pytest.raises(CorruptData, match="load it again"):
            use()


def test_a_write_without_an_update_breaks_the_document() -> None:
    home = Document(5)
    # Past the reader: the struct that moves this client's clock to its end.
    home._doc.apply_update(HOSTILE)
    home.write(turn(EU, 1, None), {})
    with pytest.raises(CorruptData, match="pycrdt"):
        home.write(turn(EU, 2, (*EU, 1)), {})
    assert home.broken


def test_an_interrupt_passes_through_and_breaks_the_document() -> None:
    home = Document(5)
    with pytest.raises(KeyboardInterrupt), home._guard:
        raise KeyboardInterrupt
    assert home.broken


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_mutated_update_is_refused_or_loses_nothing(data: st.DataObject) -> None:
    home, updates = conversation(4)
    copy = document(US, *updates[:2])
    before, fields_before = copy.entries(), copy.fields()
    base = bytearray(data.draw(st.sampled_from([updates[1], updates[2], home.encode()])))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(base) - 1))
        kind = data.draw(st.sampled_from(["set", "cut", "insert"]))
        if kind == "set":
            base[at] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del base[at : at + data.draw(st.integers(1, 4))]
        else:
            base[at:at] = data.draw(st.binary(min_size=1, max_size=4))
        if not base:
            break
    try:
        changes = copy.apply(bytes(base))
    except CorruptData:
        if not copy.broken:
            assert copy.entries() == before
            assert copy.fields() == fields_before
        return
    after = copy.entries()
    assert before.items() <= after.items()
    assert {k: v for k, v in after.items() if before.get(k) != v} == changes.entries
    for key, leaf in after.items():
        fold.check_entry(key, leaf)
    assert document(US, copy.encode()).entries() == after, "nothing was pending"


def test_an_update_is_checked_without_a_document() -> None:
    home, updates = conversation(3)
    assert check_update(updates[1]) == turn(EU, 2, (*EU, 1))
    assert check_update(home.encode()) == home.entries()
    assert check_update(home.write({}, field(EU, "b", b"1"))) == {}
    limits = replace(DEFAULT_LIMITS, session_bytes_max=10)
    with pytest.raises(CorruptData, match="over the bound"):
        check_update(updates[1], limits)
    for root, key, value in (
        ("e", "t/1.eu.1", b"no turn"),
        ("f", "kv\0a", b"no field"),
        ("f", "no policy", next(iter(field(EU, "a", b"1").values()))),
        ("e", "t/1.eu.1", 5),
    ):
        spoilt = _update_of(partial(_set, root=root, key=key, value=value))
        with pytest.raises(CorruptData):
            check_update(spoilt)
