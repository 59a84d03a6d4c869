"""Blanking of one segment: what goes, what stays byte for byte."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from roost_crdt import logformat
from roost_crdt.errors import CorruptData
from roost_crdt.logformat import (
    KIND_META,
    KIND_SESSION,
    SEGMENT_HEADER_BYTES,
    OpenGroup,
    OriginIndex,
    Secret,
    SegmentHeader,
)
from roostd import segments
from roostd.blanking import blank_segment, owner_of
from roostd.segments import Segment

SECRET = Secret.from_bytes(b"8 bytes.")
GONE = frozenset((b"s\0gone\0",))
Pairs = list[tuple[bytes, bytes | None]]


def pack(pairs: Pairs) -> bytes:
    return msgspec.msgpack.encode(pairs)


def write(path: Path, groups: list[list[tuple[int, Pairs]]], size: int = 64 << 10) -> Segment:
    """A sealed segment of these entries."""
    segment = segments.create(path, 1, size)
    segment.first_seq, segment.origins = 1, OriginIndex()
    header = SegmentHeader(1, 1, b"i" * 16, b"8 bytes.")
    raw, seq = logformat.encode_segment_header(header), 1
    for entries in groups:
        group = OpenGroup()
        for kind, pairs in entries:
            group.append(kind, pack(pairs))
        raw += group.encode(SECRET, seq, seq - 1, 7, 70 + seq, b"c" * 16)
        seq += len(entries)
    segment.end = len(raw)
    with segment.path.open("r+b") as file:
        file.write(raw)
    segments.seal(segment, seq - 1)
    return segment


def read(segment: Segment) -> list[tuple[int, int, Pairs]]:
    found = []
    place = SEGMENT_HEADER_BYTES
    for data, group, _ in segments.groups(segment, place, segment.end, SECRET):
        for entry in logformat.entries(data, group):
            pairs = msgspec.msgpack.decode(entry.raw, type=list[tuple[bytes, bytes | None]])
            found.append((entry.seq, entry.kind, pairs))
    return found


def test_what_is_erased_goes_and_nothing_else_moves(tmp_path: Path) -> None:
    mine: Pairs = [(b"s\0gone\0e1", b"secret"), (b"s\0gone\0e2", None), (b"s\0gone\0u\0\0", b"x")]
    other: Pairs = [(b"s\0gone2\0e1", b"stays"), (b"m\0gone", b"stub")]
    groups = [
        [(KIND_SESSION, mine), (KIND_META, [(b"s\0gone\0e1", b"of another kind")])],
        [(KIND_SESSION, other)],
        [(KIND_SESSION, [*mine, *other])],
        [(KIND_SESSION, mine)],
    ]
    segment = write(tmp_path, groups)
    os.utime(segment.path, (1_000, 1_000))
    before, size = segment.path.read_bytes(), segment.size
    assert blank_segment(segment, KIND_SESSION, GONE, 4, SECRET) == 6
    assert read(segment) == [
        (1, KIND_SESSION, []),
        (2, KIND_META, [(b"s\0gone\0e1", b"of another kind")]),
        (3, KIND_SESSION, other),
        (4, KIND_SESSION, other),
        (5, KIND_SESSION, mine),
    ], "seq 5 is newer than the erasure"
    after = segment.path.read_bytes()
    assert after.count(b"secret") == 1
    assert segment.size == len(after) < size
    assert segment.path.stat().st_mtime == 1_000, "its age decides when it is deleted"
    assert after[: segment.end].index(b"stays") == before.index(b"stays")
    sealed = logformat.decode_index(segments.footer(segment))
    assert sealed is not None
    assert (sealed.end, sealed.last_seq) == (segment.end, 5)
    assert list(tmp_path.iterdir()) == [segment.path]
    for _, group, _ in segments.groups(segment, SEGMENT_HEADER_BYTES, segment.end, SECRET):
        assert (group.actor, group.hlc, group.chain) == (7, 70 + group.seq, b"c" * 16)


def test_it_can_be_done_again(tmp_path: Path) -> None:
    both: Pairs = [(b"s\0gone\0e1", b"secret"), (b"s\0also\0e1", b"too"), (b"s\0kept\0e1", b"here")]
    segment = write(tmp_path, [[(KIND_SESSION, both)]])
    assert blank_segment(segment, KIND_SESSION, GONE, 1, SECRET) == 1
    assert blank_segment(segment, KIND_SESSION, frozenset((b"s\0also\0",)), 1, SECRET) == 1
    once = segment.path.read_bytes()
    assert blank_segment(segment, KIND_SESSION, GONE, 1, SECRET) == 0
    assert segment.path.read_bytes() == once
    assert read(segment) == [(1, KIND_SESSION, [(b"s\0kept\0e1", b"here")])]


def test_without_an_index_nothing_shrinks(tmp_path: Path) -> None:
    """Never sealed: a crash came between."""
    segment = write(tmp_path, [[(KIND_SESSION, [(b"s\0gone\0e1", b"secret")])]])
    segments.blank(segment.path, segment.end, segment.size - segment.end)
    unread = Segment(segment.path, 1, segment.size, 1)
    assert blank_segment(unread, KIND_SESSION, GONE, 1, SECRET) == 1
    assert unread.path.stat().st_size == segment.size
    assert read(unread) == [(1, KIND_SESSION, [])]


def test_damage_changes_nothing(tmp_path: Path) -> None:
    mine: Pairs = [(b"s\0gone\0e1", b"secret")]
    segment = write(tmp_path, [[(KIND_SESSION, mine)], [(KIND_SESSION, mine)]])
    raw = bytearray(segment.path.read_bytes())
    raw[segment.end - 3] ^= 1
    segment.path.write_bytes(raw)
    with pytest.raises(CorruptData, match="is damaged"):
        blank_segment(segment, KIND_SESSION, GONE, 9, SECRET)
    assert segment.path.read_bytes() == raw
    assert list(tmp_path.iterdir()) == [segment.path]


def test_a_segment_that_was_deleted_meanwhile(tmp_path: Path) -> None:
    segment = write(tmp_path, [[(KIND_SESSION, [(b"s\0gone\0e1", b"secret")])]])
    segment.path.unlink()
    assert blank_segment(segment, KIND_SESSION, GONE, 1, SECRET) == 0
    assert list(tmp_path.iterdir()) == []


def test_owners() -> None:
    assert owner_of(b"s\0sid\0e\0f\0") == b"s\0sid\0"
    assert owner_of(b"m\0sid") == b""
    assert owner_of(b"none") == b""
