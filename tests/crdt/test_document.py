from __future__ import annotations

import gc
import random
import weakref
from contextlib import suppress
from dataclasses import replace

import msgspec
import pycrdt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from roost_crdt import fold
from roost_crdt.document import (
    EPOCH_BITS,
    Changes,
    Document,
    client_id,
    merge,
    rehearse,
    written,
)
from roost_crdt.errors import CorruptData, TooLarge
from roost_crdt.fold import Epoch, Fold
from roost_crdt.limits import DEFAULT_LIMITS
from roost_crdt.testing.edits import edit
from roost_crdt.ystructs import read_structs
from roost_crdt.yupdate import Range, read_state_vector, read_update

SID = "s-1"
EU: Epoch = (1, "eu")
US: Epoch = (2, "us")
HOSTILE = b"\x01\x01\x05\x00\x00\xfe\xff\xff\xff\x0f\x00"
"""A garbage-collection struct that takes the clock of client 5 to 2^32 - 2."""
ACTORS = {"eu": 11, "us": 22, "ap": 33}


def turn(
    epoch: Epoch, number: int, parent: fold.TurnRef | None, text: str = "hi"
) -> dict[str, bytes]:
    return dict(
        [
            fold.turn_entry(
                epoch,
                number,
                parent=parent,
                turn_id=None,
                messages=[b'{"role":"user","content":"%s"}' % text.encode()],
                at_ms=1,
            )
        ]
    )


def field(epoch: Epoch, name: str, value: bytes | None, at_ms: int = 1) -> dict[str, bytes]:
    return dict([fold.field_entry("kv", name, epoch, value, at_ms)])


def document(epoch: Epoch, *updates: bytes, actor: int | None = None) -> Document:
    actor = ACTORS[epoch[1]] if actor is None else actor
    return Document.load(client_id(epoch[0], actor, SID), updates)


def conversation(turns: int, epoch: Epoch = EU) -> tuple[Document, list[bytes]]:
    home = document(epoch)
    updates = []
    parent: fold.TurnRef | None = None
    for number in range(1, turns + 1):
        updates.append(
            home.write(turn(epoch, number, parent), field(epoch, "seen", b"%d" % number, number))
        )
        parent = (*epoch, number)
    return home, updates


def raw_copy(of: Document) -> tuple[pycrdt.Doc[pycrdt.Map[bytes]], pycrdt.Map[bytes]]:
    """The same content in a plain pycrdt document, and its fields."""
    doc: pycrdt.Doc[pycrdt.Map[bytes]] = pycrdt.Doc(client_id=1)
    doc.apply_update(of.encode())
    return doc, doc.get("f", type=pycrdt.Map)


def _varint(number: int) -> bytes:
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


def clocks(of: Document) -> dict[int, int]:
    """The state vector without regard to its order."""
    return read_state_vector(of.state_vector())


# --- identity ---------------------------------------------------------------------------


def test_a_client_id_is_the_epoch_over_a_hash_and_fits_53_bits() -> None:
    top = client_id((1 << EPOCH_BITS) - 1, (1 << 64) - 1, SID)
    assert 0 < top < 1 << 53
    assert client_id(2, 7, SID) > client_id(1, 7, SID)
    ids = {client_id(1, actor, sid) for actor in range(50) for sid in ("a", "b")}
    assert len(ids) == 100, "no two actors and no two sessions share an id"
    with pytest.raises(AssertionError):
        client_id(1 << EPOCH_BITS, 1, SID)


def test_another_node_may_not_write_under_this_documents_id() -> None:
    home, updates = conversation(2)
    clone = document(EU, updates[0])
    with pytest.raises(CorruptData, match="cloned or rolled back"):
        clone.apply(updates[1], outside=True)
    assert clone.apply(updates[1]).entries.keys() == {"t/1.eu.2"}
    assert clone.entries() == home.entries()


# --- writing and reading ------------------------------------------------------------------


def test_one_write_is_one_update_that_another_copy_takes_in() -> None:
    home = document(EU)
    update = home.write(turn(EU, 1, None), field(EU, "a", b"1"))
    copy = document(US)
    changes = copy.apply(update)
    assert changes == Changes(turn(EU, 1, None), field(EU, "a", b"1"), {}, ())
    assert copy.entries() == home.entries() == turn(EU, 1, None)
    assert copy.fields() == home.fields() == field(EU, "a", b"1")
    assert clocks(copy) == clocks(home)


def test_an_empty_write_is_no_update() -> None:
    home, _ = conversation(1)
    before = home.encode()
    assert home.write({}, {}) == b""
    assert home.encode() == before


def test_the_same_update_again_changes_nothing() -> None:
    home, updates = conversation(3)
    copy = document(US, *updates)
    for update in (*updates, home.encode()):
        assert copy.apply(update) == Changes({}, {}, {}, ())
    assert clocks(copy) == clocks(home)


def test_an_entry_is_written_once() -> None:
    home, _ = conversation(1)
    assert home.holds("t/1.eu.1")
    assert not home.holds("t/1.eu.2")
    with pytest.raises(AssertionError, match="written once"):
        home.write(turn(EU, 1, None, "other"), {})
    assert not home.broken


def test_diff_is_what_the_other_lacks() -> None:
    home, updates = conversation(5)
    copy = document(US, *updates[:2])
    assert copy.apply(home.diff(copy.state_vector())).entries.keys() == {
        "t/1.eu.3",
        "t/1.eu.4",
        "t/1.eu.5",
    }
    assert copy.fields() == home.fields()
    with pytest.raises(CorruptData):
        home.diff(b"\xff\xff")
    assert not home.broken


def test_more_operations_than_one_transaction_takes_are_still_one_update() -> None:
    limits = replace(DEFAULT_LIMITS, batch_ops_max=10)
    home = Document(5, limits)
    fields = {}
    for number in range(35):
        fields |= field(EU, f"f{number}", b"1")
    update = home.write(turn(EU, 1, None), fields)
    copy = document(US)
    changes = copy.apply(update)
    assert changes.fields == fields
    assert changes.entries == turn(EU, 1, None)
    again = home.write({}, field(EU, "f34", b"2", 2))
    assert copy.apply(again).fields == field(EU, "f34", b"2", 2)


def test_merge_does_what_all_updates_do() -> None:
    home, updates = conversation(200)
    merged = merge(updates)
    assert document(US, merged).entries() == home.entries()
    assert document(US, merged).fields() == home.fields()
    assert document(US, merge([])).entries() == {}
    assert merge(updates[:1]) == updates[0]
    with pytest.raises(CorruptData):
        merge([updates[0], b"\xff\xff\xff"])


# --- gaps -----------------------------------------------------------------------------------


def test_a_gap_is_refused_and_nothing_changed() -> None:
    home, updates = conversation(3)
    copy = document(US, updates[0])
    before = copy.encode()
    with pytest.raises(CorruptData, match="gap"):
        copy.apply(updates[2])
    assert copy.encode() == before
    assert not copy.broken
    copy.apply(updates[1])
    copy.apply(updates[2])
    assert copy.entries() == home.entries()


def test_a_hole_inside_a_merged_update_is_a_gap() -> None:
    _, updates = conversation(3)
    with pytest.raises(CorruptData, match="gap"):
        document(US).apply(merge([updates[0], updates[2]]))


def test_an_overwrite_of_what_is_not_held_is_a_gap() -> None:
    _, updates = conversation(1)
    us = document(US, *updates)
    start = us.state_vector()
    us.write({}, field(US, "seen", b"9", 9))
    with pytest.raises(CorruptData, match="gap"):
        document((3, "ap")).apply(us.diff(start))


def test_a_deletion_of_what_is_not_held_is_a_gap() -> None:
    """Yjs would keep it in mind, and drop it when the document is encoded again."""
    _, updates = conversation(2)
    copy = document(US, updates[0])
    before = copy.encode()
    written_in_second = read_update(updates[1]).ranges[0]
    deletion = b"\0\1" + _varint(written_in_second.client) + b"\1" + b"\3\1"
    assert written_in_second.start <= 3 < written_in_second.end
    with pytest.raises(CorruptData, match=r"deletes \d+:3, not held here"):
        copy.apply(deletion)
    assert copy.encode() == before
    assert not copy.broken


def test_a_circle_is_refused_before_the_document_sees_it() -> None:
    # Two items that each replace the other: complete by their clocks, yet never applied.
    _, updates = conversation(1)
    copy = document(US, *updates)
    leaf = next(iter(field(US, "x", b"1").values()))
    body = b"\x01t" + bytes([len(leaf)]) + leaf
    update = b"\x02\x01\x09\x00\xa8\x08\x00" + body + b"\x01\x08\x00\xa8\x09\x00" + body + b"\x00"
    before = copy.encode()
    with pytest.raises(CorruptData, match="circle"):
        copy.apply(update)
    assert copy.encode() == before
    assert not copy.broken
    fresh = document(US)
    with pytest.raises(CorruptData, match="as a whole"):
        fresh.apply(update)
    assert fresh.broken


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 30))
def test_gaps_are_exactly_what_yjs_would_keep_pending(seed: int) -> None:
    chance = random.Random(seed)
    epochs: list[Epoch] = [(1, "eu"), (2, "us"), (3, "ap")]
    homes = [document(epoch) for epoch in epochs]
    log: list[bytes] = []
    for at_ms in range(20):
        at = chance.randrange(3)
        for update in chance.sample(log, min(len(log), 4)):
            with suppress(CorruptData):
                homes[at].apply(update)
        fields = {}
        for name in chance.sample("abc", chance.randrange(1, 3)):
            fields |= field(epochs[at], name, b"%d" % at_ms, at_ms)
        log.append(homes[at].write({}, fields))
    copy = document((4, "eu"))
    for update in chance.choices(log, k=40):
        scratch, fields_held = raw_copy(copy)
        scratch.apply_update(update)
        held = read_state_vector(scratch.get_state())
        if all(held.get(r.client, 0) >= r.end for r in read_update(update).ranges):
            before = copy.fields()
            changes = copy.apply(update)
            assert copy.fields() == {k: bytes(v) for k, v in fields_held.items()}
            assert clocks(copy) == held
            assert before | changes.fields == copy.fields() | changes.repairs
        else:
            with pytest.raises(CorruptData, match="gap"):
                copy.apply(update)
    assert not copy.broken


# --- documents of any kind -----------------------------------------------------------------


def test_what_is_written_counts_also_behind_a_gap() -> None:
    """`pycrdt.get_state` stops at the first gap; what waits behind it is written all the same."""
    updates = [edit((5, clock), (5, clock - 1) if clock else None) for clock in range(4)]
    assert written(updates) == {5: [Range(5, 0, 4)]}
    assert written([updates[0], updates[2], updates[3]]) == {5: [Range(5, 0, 1), Range(5, 2, 4)]}
    assert written([updates[3], edit((6, 0))]) == {5: [Range(5, 3, 4)], 6: [Range(6, 0, 1)]}
    assert written([]) == {}
    with pytest.raises(CorruptData):
        written([updates[0], b"\xff\xff\xff"])


def test_a_rehearsal_tells_what_would_move_and_what_is_new() -> None:
    held = merge([edit((5, 0)), edit((6, 0), (5, 0))])
    update = merge([edit((5, 0)), edit((5, 1), (5, 0))])
    done = rehearse(held, update)
    assert (done.before, done.after) == ({5: 1, 6: 1}, {5: 2, 6: 1})
    assert read_structs(done.news).ranges == [Range(5, 1, 2)]
    assert rehearse(held, held).after == done.before
    ahead = rehearse(held, edit((9, 3), (9, 2)))
    assert ahead.before == ahead.after, "what has to wait moves nothing"
    with pytest.raises(CorruptData):
        rehearse(held, b"\xff\xff\xff")


# --- concurrent homes -----------------------------------------------------------------------


def _exchange(homes: list[Document], chance: random.Random, view: list[Fold]) -> None:
    """Bring all documents together in some order; a home that finds repairs writes them."""
    for _ in range(3):
        for at in chance.sample(range(len(homes)), len(homes)):
            for other in chance.sample(range(len(homes)), len(homes)):
                if at == other:
                    continue
                changes = homes[at].apply(homes[other].encode())
                _take(view[at], changes.entries, changes.fields)
                homes[at].write({}, changes.repairs)


def _take(view: Fold, entries: dict[str, bytes], fields: dict[str, bytes]) -> None:
    for key, leaf in entries.items():
        view.add(key, leaf)
    for key, leaf in fields.items():
        view.add_field(key, leaf)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 1 << 30),
    st.lists(
        st.tuples(st.integers(2, 4), st.sampled_from(["eu", "us", "ap"])),
        min_size=2,
        max_size=4,
        unique=True,
    ),
)
@example(669195753, [(4, "us"), (3, "us"), (2, "eu"), (3, "eu")])
@example(1020005324, [(4, "ap"), (4, "eu"), (4, "us"), (3, "eu")])
def test_homes_that_write_at_once_lose_no_turn_and_agree_on_fields(
    seed: int, epochs: list[Epoch]
) -> None:
    # The examples: two homes repair one field at once, Yjs joins the loser's dead values, and
    # the winner replaced one in the middle of them.
    chance = random.Random(seed)
    _, common = conversation(2)
    homes = [document(epoch, *common) for epoch in epochs]
    views = [Fold() for _ in epochs]
    for home, view in zip(homes, views, strict=True):
        _take(view, home.entries(), home.fields())
    written: dict[str, bytes] = dict(homes[0].entries())
    for step in range(chance.randrange(1, 12)):
        at = chance.randrange(len(epochs))
        epoch, view = epochs[at], views[at]
        parent = view.turn
        assert parent is not None
        number = parent[2] + 1
        entries = turn(epoch, number, parent, f"{step}") if parent < (*epoch, number) else {}
        fields = {}
        for name in chance.sample(["a", "b", "seen"], chance.randrange(3)):
            key, leaf = view.put_field("kv", name, epoch, b"%d" % step, chance.randrange(5))
            fields[key] = leaf
        homes[at].write(entries, fields)
        _take(view, entries, fields)
        written |= entries
    _exchange(homes, chance, views)
    for home, view in zip(homes, views, strict=True):
        assert home.entries() == written
        assert clocks(home) == clocks(homes[0])
        assert home.fields() == homes[0].fields()
        assert view.raw_entries() == written
        assert view.raw_fields() == home.fields(), "Yjs's resolution is the fold's"
        assert view.messages() == views[0].messages()
        assert sum(len(b.entries) for b in view.branches()) + len(view.path()) == len(written)


def test_equal_numbers_are_settled_by_node_and_written_again() -> None:
    pairs: list[tuple[Epoch, Epoch]] = [((5, "eu"), (5, "us")), ((5, "ap"), (5, "eu"))]
    repaired = 0
    for low, high in pairs:
        homes = [document(low), document(high)]
        lost = field(low, "a", b"1", 99)
        won = field(high, "a", b"2", 1)
        homes[0].write({}, lost)
        homes[1].write({}, won)
        changes = homes[0].apply(homes[1].encode())
        assert changes.fields == won
        repaired += len(changes.repairs)
        homes[0].write({}, changes.repairs)
        back = homes[1].apply(homes[0].encode())
        assert not back.repairs
        assert homes[0].fields() == homes[1].fields() == won
    assert repaired == 1, "the pairs are chosen so that Yjs is right once and wrong once"


def test_a_repair_brings_back_no_older_value_of_the_home_that_it_repairs() -> None:
    low, high = (1, "ap"), (1, "eu")
    former, home = document(low, actor=7), document(high, actor=8)
    former.write({}, field(low, "a", None, 0))
    home.write({}, field(high, "a", None, 0))
    repair = former.apply(home.encode()).repairs
    assert repair == field(high, "a", None, 0), "or Yjs was right, and there is nothing to repair"
    former.write({}, repair)
    newer = field(high, "a", b"0", 1)
    home.write({}, newer)
    again = home.apply(former.encode())
    assert again.repairs == newer, "Yjs prefers the repair"
    assert not again.fields
    home.write({}, again.repairs)
    former.apply(home.encode())
    assert home.fields() == former.fields() == newer


def test_two_writers_of_one_entry_are_named_and_stay_mergeable() -> None:
    _, common = conversation(1)
    one = Document.load(client_id(1, 11, SID), common)
    two = Document.load(client_id(1, 12, SID), common)
    one.write(turn(EU, 2, (*EU, 1), "one"), {})
    two.write(turn(EU, 2, (*EU, 1), "two"), {})
    before_one, before_two = one.encode(), two.encode()
    changes = one.apply(before_two)
    assert changes.collisions == ("t/1.eu.2",)
    assert two.apply(before_one).collisions == ("t/1.eu.2",)
    assert one.entries() == two.entries()
    assert changes.entries["t/1.eu.2"] == one.entries()["t/1.eu.2"]
    third = document(US, *common)
    third.apply(one.encode())
    third.apply(two.encode())
    assert third.entries() == one.entries()
    late = Document.load(client_id(1, 12, SID), [before_two])
    late.apply(one.encode())
    assert late.entries() == one.entries()


# --- bounds ---------------------------------------------------------------------------------


def test_a_full_document_refuses_a_write_before_anything_changes() -> None:
    home = Document(5, replace(DEFAULT_LIMITS, session_bytes_max=2_000))
    home.write(turn(EU, 1, None, "x" * 500), {})
    before = home.encode()
    with pytest.raises(TooLarge, match="summary"):
        home.write(turn(EU, 2, (*EU, 1), "y" * 1_500), {})
    assert home.encode() == before
    home.write(turn(EU, 2, (*EU, 1), "z"), {})
    home.write({}, field(EU, "a", b"x" * 3_000), bounded=False)
    assert home.fields() == field(EU, "a", b"x" * 3_000)


def test_overwritten_fields_do_not_fill_a_document() -> None:
    home = Document(5, replace(DEFAULT_LIMITS, session_bytes_max=2_000))
    for number in range(200):
        home.write({}, field(EU, "a", b"%050d" % number, number))
    assert len(home.encode()) < 2_000
    assert home.size_bytes == len(home.encode())


def test_an_update_over_the_bound_is_refused_unread() -> None:
    home = Document(5, replace(DEFAULT_LIMITS, session_bytes_max=100))
    with pytest.raises(CorruptData, match="over the bound"):
        home.apply(bytes(101))


def test_a_document_that_is_let_go_frees_its_memory() -> None:
    home, updates = conversation(3)
    home.write(turn(EU, 4, (*EU, 3)), {})
    inner = weakref.ref(home._doc)
    gc.disable()
    try:
        del home
        assert inner() is None, "an observer or a cycle keeps the document alive"
    finally:
        gc.enable()
    assert len(updates) == 3


def test_a_session_has_a_bound_of_writes_too() -> None:
    """Each of them takes its time when the session is loaded, however small it is."""
    document = Document(5, replace(DEFAULT_LIMITS, session_writes_max=10))
    field = msgspec.msgpack.encode([1, "eu", b"1", 5])
    for _ in range(10):
        document.write({}, {"policy\0field": field})
    with pytest.raises(TooLarge, match="at most 10 turns, calls and fields written; fork it"):
        document.write({}, {"policy\0field": field})
    assert document.write({}, {"policy\0field": field}, bounded=False)
