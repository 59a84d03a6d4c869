"""The reader of any Yjs update: what pycrdt writes, and nothing else."""

from __future__ import annotations

import pycrdt
import pytest
from crdt.yjs_updates import whole_update
from hypothesis import given, settings
from hypothesis import strategies as st

from roost_crdt.errors import CorruptData
from roost_crdt.testing.edits import edit
from roost_crdt.ystructs import (
    Structs,
    TooManyStructs,
    check_depth,
    delete_update,
    read_structs,
    readable_runs,
)
from roost_crdt.yupdate import Range, read_state_vector

ARRAY = b"\x01\x01a"


def _one(info: int, content: bytes, clock: bytes = b"\0") -> bytes:
    """An update of one struct in the root array, under client 5."""
    return b"\1\1\5" + clock + bytes([info]) + ARRAY + content + b"\0"


def test_it_reads_what_pycrdt_writes() -> None:
    update = whole_update()
    structs = read_structs(update)
    copy = pycrdt.Doc[pycrdt.Text]()
    copy.apply_update(update)
    (run,) = structs.ranges
    assert {run.client: run.end} == read_state_vector(copy.get_state())
    assert structs.nested
    assert structs.deletes
    assert len(structs.types) == 5
    check_depth(structs)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=8), min_size=1, max_size=8))
def test_clocks_count_as_yjs_counts(texts: list[str]) -> None:
    yjs = pycrdt.Doc[pycrdt.Text](client_id=3)
    for at, text in enumerate(texts):
        yjs.get(f"r{at}", type=pycrdt.Text).insert(0, text)
    ends = {run.client: run.end for run in read_structs(yjs.get_update()).ranges}
    assert ends == read_state_vector(yjs.get_state())


@pytest.mark.parametrize(
    ("content", "clocks"),
    [
        ((1, b"\x03"), 3),
        ((2, b"\x02\x01\x31\x04null"), 2),
        ((3, b"\x02\xff\xfe"), 1),
        ((4, b"\x05\xf0\x9f\x98\x80x"), 3),
        ((5, b"\x02{}"), 1),
        ((6, b"\x01b\x04true"), 1),
        ((7, b"\x00"), 1),
        ((7, b"\x03\x01p"), 1),
        ((8, b"\x02\x7d\xc1\x01\x7c\x00\x00\x00\x00"), 2),
        ((8, b"\x01\x7b" + bytes(8)), 1),
        ((8, b"\x01\x7a" + bytes(8)), 1),
        ((8, b"\x04\x7f\x7e\x79\x78"), 4),
        ((8, b"\x01\x75\x02\x76\x01\x01k\x77\x01v\x74\x01\xff"), 1),
        ((9, b"\x01g\x76\x00"), 1),
    ],
)
def test_every_kind_of_content(content: tuple[int, bytes], clocks: int) -> None:
    kind, raw = content
    assert read_structs(_one(kind, raw)).ranges == [Range(5, 0, clocks)]
    keyed = b"\1\1\5\0" + bytes([kind | 0x20]) + ARRAY + b"\x01k" + raw + b"\0"
    assert read_structs(keyed).ranges == [Range(5, 0, clocks)]
    beside = b"\1\1\5\0" + bytes([kind | 0xC0]) + b"\x06\x00\x06\x01" + raw + b"\0"
    assert read_structs(beside).parents == {(5, 0): (False, (6, 0))}
    right = b"\1\1\5\0" + bytes([kind | 0x40]) + b"\x06\x01" + raw + b"\0"
    assert read_structs(right).parents == {(5, 0): (False, (6, 1))}


def test_garbage_counts_and_holes_do_not() -> None:
    update = b"\1\4\5\2" + b"\x00\x03" + b"\x0a\x02" + b"\x00\x01" + b"\x0a\x01" + b"\0"
    assert read_structs(update).ranges == [Range(5, 2, 5), Range(5, 7, 8)]
    assert read_structs(b"\1\1\5\0\x0a\x02\0").ranges == []
    assert read_structs(b"\0\1\5\2\0\1\3\2") == Structs(deletes=[Range(5, 0, 1), Range(5, 3, 5)])


@pytest.mark.parametrize(
    "update",
    [
        b"",
        b"\0",
        b"\0\0\0",
        b"\1\1\5\0\x08" + ARRAY + b"\x01\x77\x05abc\0",
        b"\2\1\5\0\x00\x01\1\5\1\x00\x01\0",
        _one(10, b"\x00"),
        _one(11, b"\x00"),
        _one(7, b"\x07"),
        _one(8, b"\x01\x73"),
        _one(4, b"\x01\xff"),
        _one(5, b"\x01\xff"),
        b"\1\1\5\0\x08\x02\x01a\x01\x7e\0",
        b"\1\1\5\0\x00\x00\0",
        b"\1\1\5\0\x00\xff\xff\xff\xff\x0f\0",
        b"\1\1\xff\xff\xff\xff\xff\xff\xff\xff\x7f\0\x00\x01\0",
        b"\1\1" + b"\xff" * 10 + b"\0",
        b"\0\1\5\1\0\xff\xff\xff\xff\x0f",
        b"\0\1\5\2\x10\1\x0b\1",
        b"\0\1\5\2\1\3\2\1",
        b"\0\2\5\1\0\1\5\1\3\1",
        b"\0\1\xff\xff\xff\xff\xff\xff\xff\xff\x7f\1\0\1",
        b"\xff\xff\xff\xff\x0f",
        _one(5, b"\x02[x"),
        _one(5, b"\x051e999"),
        _one(6, b"\x01k\x03NaN"),
        _one(8, b"\x01" + b"\x75\x01" * 66 + b"\x7e"),
        _one(8, b"\x01" + b"\x76\x01\x00" * 66 + b"\x7e"),
        _one(5, b"\x43" + b"[" * 67),
        _one(5, b"\x46" + b'{"["' + b"[" * 66),
    ],
)
def test_what_no_client_writes_is_refused(update: bytes) -> None:
    with pytest.raises(CorruptData):
        read_structs(update)


def test_depth_is_of_nesting_not_of_length() -> None:
    flat = _one(8, b"\x01" + b"\x75\x02\x7e\x75\x00" + b"")
    assert read_structs(flat).ranges == [Range(5, 0, 1)]
    many = _one(8, b"\x01\x75\x7f" + b"\x75\x00" * 127)
    assert read_structs(many).ranges == [Range(5, 0, 1)]
    text = b'["' + b"[" * 70 + rb"\"[" + b'",' + b",".join([b"[]"] * 70) + b"]"
    size = bytes([len(text) & 0x7F | 0x80, len(text) >> 7])
    assert read_structs(_one(5, size + text)).ranges == [Range(5, 0, 1)]
    deepest = _one(8, b"\x01" + b"\x75\x01" * 64 + b"\x7e")
    assert read_structs(deepest).ranges == [Range(5, 0, 1)]


def _nested(levels: int, *, backwards: bool = False) -> bytes:
    """Maps in each other, client 5; `backwards`: each clock in the one after it."""
    blocks = bytearray([1]) + _varint(levels) + b"\5\0"
    for clock in range(levels):
        parent = clock + 1 if backwards else clock - 1
        if parent in (-1, levels):
            blocks += bytes([0x27]) + ARRAY + b"\x01k\x01"
        else:
            blocks += bytes([0x27, 0, 5]) + _varint(parent) + b"\x01k\x01"
    return bytes(blocks) + b"\0"


def _varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 127 | 128, number >> 7])


@pytest.mark.parametrize("backwards", [False, True])
def test_shared_types_have_a_depth(backwards: bool) -> None:
    structs = read_structs(_nested(64, backwards=backwards))
    assert len(structs.types) == 64
    check_depth(structs)
    with pytest.raises(CorruptData, match="nested deeper than 64"):
        check_depth(read_structs(_nested(65, backwards=backwards)))
    with pytest.raises(CorruptData, match="nested deeper than 3"):
        check_depth(structs, 3)


def test_siblings_are_no_deeper_and_strangers_are_roots() -> None:
    row = b"".join(bytes([0x87, 5, at, 1]) for at in range(100))
    beside = b"\1\x65\5\0\x07" + ARRAY + b"\x01" + row + b"\0"
    structs = read_structs(beside)
    assert len(structs.types) == 101
    check_depth(structs, 1)
    lost = read_structs(b"\1\1\5\0\x27\0\x06\x00\x01k\x01\0")
    assert lost.nested
    check_depth(lost, 1)


def test_a_circle_is_refused() -> None:
    circle = b"\1\2\5\0" + b"\x27\0\5\1\x01k\x01" + b"\x27\0\5\0\x01k\x01" + b"\0"
    with pytest.raises(CorruptData, match="circle"):
        check_depth(read_structs(circle))


def test_a_deletion_is_read_as_it_was_written() -> None:
    runs = {5: [Range(5, 0, 200), Range(5, 300, 301)], 1 << 40: [Range(1 << 40, 7, 9)]}
    update = delete_update(runs)
    assert read_structs(update) == Structs(deletes=[*runs[5], *runs[1 << 40]])
    assert delete_update({}) == b"\0\0"
    assert read_structs(edit((5, 1), (5, 0), (5, 0))).deletes == [Range(5, 0, 1)]


def test_runs_of_what_can_be_read_are_those_of_the_rest() -> None:
    """One damaged update among many must not hide what the others wrote."""
    good = [edit((5, 0)), edit((5, 1), (5, 0)), edit((5, 3), (5, 1)), edit((6, 0))]
    due = {5: [Range(5, 0, 2), Range(5, 3, 4)], 6: [Range(6, 0, 1)]}
    assert readable_runs(good) == due
    assert readable_runs([good[0], b"garbage", *good[1:], b"", good[2][:-2]]) == due
    assert readable_runs([]) == {}


def test_more_structs_than_were_asked_for_are_counted_before_they_are_read() -> None:
    """Three in one client's run; and two runs together."""
    yjs = pycrdt.Doc[pycrdt.Text](client_id=3)
    other = pycrdt.Doc[pycrdt.Text](client_id=4)
    for doc, texts in ((yjs, 3), (other, 2)):
        for at in range(texts):
            doc.get(f"r{at}", type=pycrdt.Text).insert(0, "x")
    for update, structs in (
        (yjs.get_update(), 3),
        (pycrdt.merge_updates(yjs.get_update(), other.get_update()), 5),
    ):
        assert sum(run.end - run.start for run in read_structs(update, structs).ranges) == structs
        with pytest.raises(TooManyStructs, match="too many structs"):
            read_structs(update, structs - 1)
    with pytest.raises(TooManyStructs):
        read_structs(b"\1\x7f\5\0", 126)
