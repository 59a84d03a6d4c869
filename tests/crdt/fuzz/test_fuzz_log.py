"""A damaged log: nothing that was not written is ever read; the tail is judged or refused."""

from __future__ import annotations

import struct
import zlib

import pytest
from crdt.fuzz.test_fuzz_frames import foreign_records
from fuzzing import throw

from roost_crdt.errors import CorruptData
from roost_crdt.logformat import (
    GROUP_HEADER_BYTES,
    KIND_META,
    KIND_RECORD,
    SEGMENT_HEADER_BYTES,
    TRAILER_BYTES,
    Entry,
    OpenGroup,
    OriginIndex,
    Secret,
    SegmentHeader,
    decode_index,
    decode_segment_header,
    encode_segment_header,
    entries,
    find_whole_group,
    group_length,
    index_bytes,
    judge_tail,
    parse_group,
    record_span,
    scan,
    written_bytes,
)
from roost_crdt.record import encode_record

RAW_SECRET = bytes(range(1, 9))
SECRET = Secret.from_bytes(RAW_SECRET)
TOKENS = (bytes(4), b"\xff" * 4, bytes(64), b"\0\0\0\x01", RAW_SECRET, b"ROOSTLOG", b"ROOSTIDX")
GROUPS = 4
SMALL = (b"", b"\x92\x92\xc4\x01a\xc0", b"\x81\x01\x02")


def segment() -> tuple[bytes, list[Entry], list[bytes]]:
    """A segment of four groups and zeros; its entries; its groups."""
    raws = [encode_record(record) for record in foreign_records()]
    written, groups, seq = [], [], 1
    for number in range(GROUPS):
        group, first = OpenGroup(), seq
        for kind, raw in ((KIND_RECORD, raws[number]), (KIND_META, SMALL[number % 3])):
            group.append(kind, raw)
            written.append(Entry(seq, kind, raw))
            seq += 1
        groups.append(group.encode(SECRET, first, first - 1, 7, 100 + number, bytes(16)))
    header = encode_segment_header(SegmentHeader(1, 1, b"s" * 16, RAW_SECRET))
    return header + b"".join(groups) + bytes(256), written, groups


def index_seed() -> bytes:
    index = OriginIndex()
    for at in range(5):
        index.note(7 + at % 2, 100 + at, 64 + at * 300_000)
    return index.encode(2_000_000, 10)


def test_damaged_segments_give_what_was_written_or_less() -> None:
    whole, written, _ = segment()
    known = set(written)

    def check(raw: bytes) -> None:
        header = decode_segment_header(raw)
        secret = SECRET if header is None else Secret.from_bytes(header.secret)
        at, seq, read = SEGMENT_HEADER_BYTES, 1, 0
        for group in scan(raw, at, 1, secret):
            for entry in entries(raw, group):
                assert entry in known, "an entry that nobody wrote"
                read += 1
            assert 0 < group_length(raw[group.offset : group.payload]) == group.end - group.offset
            at, seq = group.end, seq + group.entry_count
        assert read == seq - 1
        found = find_whole_group(raw, at, secret)
        assert found is None or parse_group(raw, found.offset, secret) == found
        tail = judge_tail(raw, at, seq, 0, secret)
        assert tail.torn_bytes == written_bytes(raw, at)
        assert found is None, "a valid group would be cut off"
        if not tail.torn_bytes and raw == whole:
            assert read == len(written)

    throw("log segments", [whole], check, (CorruptData,), tokens=TOKENS, tree=False)


def test_entries_of_groups_that_check_out_are_refused_or_whole() -> None:
    _, _, groups = segment()
    length_crc = struct.Struct(">II")

    def resealed(raw: bytes) -> bytes:
        """The same damage under a checksum that holds: only shapes can tell it."""
        payload = raw[GROUP_HEADER_BYTES:]
        head = struct.pack(">II", len(payload), 0) + raw[8:GROUP_HEADER_BYTES]
        crc = zlib.crc32(payload, zlib.crc32(head, SECRET.seed))
        return length_crc.pack(len(payload), crc) + head[8:] + payload

    def check(raw: bytes) -> None:
        if len(raw) < GROUP_HEADER_BYTES:
            raise CorruptData("shorter than a header")
        group = parse_group(resealed(raw), 0, SECRET)
        if group is None:
            raise CorruptData("not a group")
        found = list(entries(resealed(raw), group))
        assert len(found) == group.entry_count
        assert sum(len(entry.raw) + 5 for entry in found) == group.end - group.payload
        for entry in found:
            if entry.kind == KIND_RECORD:
                actor, hlc, prev_hlc = record_span(entry.raw)
                assert actor | hlc | prev_hlc is not None

    throw("log entries", groups, check, (CorruptData,), tokens=TOKENS, tree=False)


def test_sealed_indexes_are_whole_or_not_used() -> None:
    seed = index_seed()
    sealed = decode_index(seed)
    assert sealed is not None

    def check(raw: bytes) -> None:
        length = index_bytes(raw[-TRAILER_BYTES:])
        found = None if length is None else decode_index(raw[-length:])
        if found is None:
            raise CorruptData("the segment is scanned instead")
        assert (found.end, found.last_seq) == (sealed.end, sealed.last_seq)
        assert found.origins.places == sealed.origins.places
        assert found.origins.seek(7, 0) == 64

    throw("sealed indexes", [seed], check, (CorruptData,), tokens=TOKENS, tree=False)


@pytest.mark.parametrize("depth", [1_000, 100_000])
def test_a_record_nested_for_ever_is_refused(depth: int) -> None:
    with pytest.raises(CorruptData, match="not a record"):
        record_span(b"\x94\x01\x02\x01" + b"\x91" * depth)
