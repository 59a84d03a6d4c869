"""The log's bytes: what was acknowledged is never cut in silence."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roost_crdt import logformat
from roost_crdt.errors import CorruptData
from roost_crdt.logformat import (
    BLANKED_BYTES,
    CHAIN_START,
    GROUP_HEADER_BYTES,
    KIND_META,
    KIND_RECORD,
    Group,
    OpenGroup,
    OriginIndex,
    Secret,
    SegmentHeader,
    Tail,
    UnknownVersion,
)
from roost_crdt.record import Record, encode_record

SECRET = Secret.from_bytes(b"\x11\x22\x33\x44\x55\x66\x77\x88")
ROOM = 512

payloads = st.lists(
    st.lists(st.binary(max_size=40), min_size=1, max_size=4), min_size=1, max_size=6
)


def segment_of(groups: list[list[bytes]], room: int = ROOM) -> tuple[bytes, list[int]]:
    """Groups one after another as a log writes them, then zeros; and where each one ends."""
    data = b""
    seq = 1
    ends = []
    for group in groups:
        open_group = OpenGroup()
        for raw in group:
            open_group.append(KIND_META, raw)
        encoded = open_group.encode(SECRET, seq, seq - 1, 7, seq, CHAIN_START)
        assert len(encoded) == open_group.bytes
        data += encoded
        ends.append(len(data))
        seq += len(group)
    return data + bytes(room), ends


def recovered(data: bytes, known_seq: int = 0) -> tuple[list[Group], Tail]:
    """What a start makes of these bytes; CorruptData where it refuses."""
    groups = list(logformat.scan(data, 0, 1, SECRET))
    offset = groups[-1].end if groups else 0
    next_seq = groups[-1].last_seq + 1 if groups else 1
    known = max([known_seq, *(group.synced_seq for group in groups)])
    return groups, logformat.judge_tail(data, offset, next_seq, known, SECRET)


def entries_of(data: bytes, groups: list[Group]) -> list[list[bytes]]:
    return [[entry.raw for entry in logformat.entries(data, group)] for group in groups]


@given(payloads)
def test_groups_come_back_as_written(groups: list[list[bytes]]) -> None:
    data, ends = segment_of(groups)
    found, tail = recovered(data)
    assert entries_of(data, found) == groups
    assert tail == Tail(ends[-1], 0)
    seqs = [entry.seq for group in found for entry in logformat.entries(data, group)]
    assert seqs == list(range(1, len(seqs) + 1))


@given(payloads, st.data())
def test_a_write_cut_short_loses_only_the_group_in_flight(
    groups: list[list[bytes]], data_source: st.DataObject
) -> None:
    data, ends = segment_of(groups)
    before = ends[-2] if len(ends) > 1 else 0
    at = data_source.draw(st.integers(before, ends[-1] - 1))
    torn = data[:at] + bytes(len(data) - at)
    found, tail = recovered(torn)
    whole = torn[: ends[-1]] == data[: ends[-1]]
    assert entries_of(torn, found) == (groups if whole else groups[:-1])
    assert tail.torn_bytes == (0 if whole else len(torn[before:].rstrip(b"\0")))


@given(payloads, st.data())
def test_a_truncation_above_which_seqs_are_known_is_refused(
    groups: list[list[bytes]], data_source: st.DataObject
) -> None:
    data, ends = segment_of(groups)
    at = data_source.draw(st.integers(0, ends[-1] - 1))
    torn = data[:at] + bytes(len(data) - at)
    if torn == data:
        return
    newest = sum(map(len, groups))
    with pytest.raises(CorruptData, match="made durable"):
        recovered(torn, known_seq=newest)


@given(payloads, st.data())
def test_a_file_that_was_cut_off_is_not_taken_for_torn(
    groups: list[list[bytes]], data_source: st.DataObject
) -> None:
    data, ends = segment_of(groups)
    before = ends[-2] if len(ends) > 1 else 0
    at = data_source.draw(st.integers(before + 12, ends[-1] - 1))
    with pytest.raises(CorruptData, match=f"end of the file, at {at}: .* cut off"):
        recovered(data[:at])


@settings(max_examples=300)
@given(payloads, st.data())
def test_a_flipped_bit_never_drops_an_acknowledged_group(
    groups: list[list[bytes]], data_source: st.DataObject
) -> None:
    data, ends = segment_of(groups)
    bit = data_source.draw(st.integers(0, len(data) * 8 - 1))
    flipped = bytearray(data)
    flipped[bit // 8] ^= 1 << bit % 8
    damaged = bytes(flipped)
    try:
        found, tail = recovered(damaged)
    except CorruptData:
        before = ends[-2] if len(ends) > 1 else 0
        # The length of the last group may say that the file was cut off.
        assert bit // 8 < before + 4, "nothing after it proves it"
        return
    # Without a group after it, nothing on the disk tells the last group from one in flight.
    kept = groups if bit // 8 >= ends[-1] else groups[:-1]
    assert entries_of(damaged, found) == kept
    assert tail.torn_bytes > 0, "a cut is always reported"


@settings(max_examples=300)
@given(payloads, st.data())
def test_a_flipped_bit_below_what_is_known_is_refused(
    groups: list[list[bytes]], data_source: st.DataObject
) -> None:
    data, ends = segment_of(groups)
    bit = data_source.draw(st.integers(0, ends[-1] * 8 - 1))
    flipped = bytearray(data)
    flipped[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CorruptData, match=r"damaged|missing"):
        recovered(bytes(flipped), known_seq=sum(map(len, groups)))


def test_damage_under_a_torn_group_is_told_by_its_header() -> None:
    data, ends = segment_of([[b"a" * 30], [b"b" * 30], [b"c" * 30]])
    torn = bytearray(data)
    torn[ends[0] + 70] ^= 1  # the second group, which was acknowledged
    torn[ends[2] - 5 : ends[2]] = bytes(5)  # the third one was in flight
    with pytest.raises(CorruptData, match="a group of seq 3 follows"):
        recovered(bytes(torn))


def test_bytes_that_a_client_chose_cannot_pass_for_a_group() -> None:
    other = Secret.from_bytes(b"a secret")
    forged = OpenGroup()
    forged.append(KIND_META, b"x")
    inner = forged.encode(other, 9, 8, 1, 1, CHAIN_START)
    data, ends = segment_of([[b"first"], [inner + bytes(30)]])
    torn = data[: ends[1] - 40] + bytes(40 + ROOM)
    found, tail = recovered(torn)
    assert len(found) == 1
    assert tail.torn_bytes > 0
    # The same bytes under this store's secret are proof of something acknowledged.
    real = forged.encode(SECRET, 9, 8, 1, 1, CHAIN_START)
    data, ends = segment_of([[b"first"], [real + bytes(30)]])
    with pytest.raises(CorruptData, match="seq 9 follows"):
        recovered(data[: ends[1] - 40] + bytes(40 + ROOM))


def test_a_group_with_another_seq_ends_the_scan() -> None:
    data, ends = segment_of([[b"a"], [b"b"]])
    skipped = data[ends[0] :]
    assert list(logformat.scan(skipped, 0, 1, SECRET)) == []
    with pytest.raises(CorruptData, match="seq 2 follows"):
        logformat.judge_tail(skipped, 0, 1, 0, SECRET)


@given(st.binary(max_size=300))
def test_noise_is_no_group(noise: bytes) -> None:
    assert logformat.parse_group(noise, 0, SECRET) is None


def test_a_group_cut_by_the_end_of_the_data_is_none() -> None:
    data, ends = segment_of([[b"abc"]], room=0)
    assert logformat.parse_group(data, 0, SECRET) is not None
    for size in range(ends[0]):
        assert logformat.parse_group(data[:size], 0, SECRET) is None
    assert logformat.group_length(data[:GROUP_HEADER_BYTES]) == len(data)
    assert logformat.group_length(bytes(GROUP_HEADER_BYTES)) == 0


def test_a_group_that_claims_more_entries_than_it_can_hold_is_none() -> None:
    group = OpenGroup()
    group.append(KIND_META, b"abc")
    group.count = 50
    assert logformat.parse_group(group.encode(SECRET, 1, 0, 1, 1, CHAIN_START), 0, SECRET) is None


@pytest.mark.parametrize(
    ("size", "kind", "count", "text"),
    [
        (3, KIND_META, 2, "overrun"),
        (200, KIND_META, 1, "an entry overruns"),
        (3, 99, 1, "unknown kind 99"),
        (2, KIND_META, 1, "bytes after"),
    ],
)
def test_entries_that_do_not_fill_their_group_are_refused(
    size: int, kind: int, count: int, text: str
) -> None:
    payload = size.to_bytes(4, "big") + bytes([kind]) + b"abc"
    data = bytes(GROUP_HEADER_BYTES) + payload
    group = Group(0, GROUP_HEADER_BYTES, len(data), 1, 0, count, 1, 1, CHAIN_START)
    with pytest.raises(CorruptData, match=text):
        list(logformat.entries(data, group))


@given(payloads, st.data())
def test_a_group_of_which_some_is_blanked_reads_as_what_is_left(
    groups: list[list[bytes]], data_source: st.DataObject
) -> None:
    data, _ = segment_of([[raw + bytes(BLANKED_BYTES) for raw in group] for group in groups])
    found = recovered(data)[0]
    group = data_source.draw(st.sampled_from(found))
    entries = list(logformat.entries(data, group))
    chosen = data_source.draw(st.sets(st.sampled_from(entries)))
    for kept_bytes in (9, 2):  # the second time, some of what the first time left goes too
        left = {entry.seq: entry.raw[:-BLANKED_BYTES][:kept_bytes] for entry in chosen}
        blanked = logformat.blank(data, group, left, SECRET)
        data = data[: group.offset] + blanked + data[group.end :]
        assert recovered(data)[0] == found, "the same places, seqs and chain"
        assert list(logformat.entries(data, group)) == [
            entry._replace(raw=left.get(entry.seq, entry.raw)) for entry in entries
        ]


def test_of_what_is_blanked_nothing_stays_in_the_file() -> None:
    data, _ = segment_of([[b"kept" + b"secret" * 4, b"other"]])
    [group] = recovered(data)[0]
    blanked = logformat.blank(data, group, {1: b"kept"}, SECRET)
    assert b"secret" not in blanked
    assert b"kept" in blanked
    assert [entry.raw for entry in logformat.entries(blanked, group)] == [b"kept", b"other"]
    with pytest.raises(AssertionError):
        logformat.blank(data, group, {2: b"other"}, SECRET)  # no room to say what is left


@pytest.mark.parametrize(
    ("left", "text"),
    [
        (b"\1\0\0\0", "what is left of it is cut short"),
        (b"\1\0\0\0\4abc", "what is left of it is cut short"),
        (b"\x63\0\0\0\3abc", "unknown kind 99"),
        (b"\x09\0\0\0\3abc", "unknown kind 9"),
    ],
)
def test_a_blanked_entry_of_another_shape_is_refused(left: bytes, text: str) -> None:
    open_group = OpenGroup()
    open_group.append(logformat.KIND_BLANKED, left)
    data = open_group.encode(SECRET, 1, 0, 7, 1, CHAIN_START)
    [group] = logformat.scan(data, 0, 1, SECRET)
    with pytest.raises(CorruptData, match=text):
        list(logformat.entries(data, group))


def test_the_mark_alone_proves_nothing() -> None:
    data, _ = segment_of([[b"a" * 20]])
    mark = SECRET.mark.to_bytes(4, "big")
    assert recovered(data[:-100] + mark + data[-96:])[1].torn_bytes > 0
    at_the_end = data[:-4] + mark
    assert recovered(at_the_end)[1].torn_bytes > 0
    assert logformat.find_whole_group(at_the_end, 1, SECRET) is None
    assert logformat.find_whole_group(bytes(9) + data, 1, SECRET) is not None


def test_written_bytes_finds_the_last_one() -> None:
    size = 200_000
    assert logformat.written_bytes(bytes(size), 0) == 0
    for last in (0, 1, 65_535, 65_536, 70_000, size - 1):
        data = bytearray(size)
        data[last] = 1
        assert logformat.written_bytes(bytes(data), 0) == last + 1
        assert logformat.written_bytes(bytes(data), last) == 1
        assert logformat.written_bytes(bytes(data), last + 1) == 0


HEADER = SegmentHeader(3, 41, b"s" * 16, b"secret!!")


def test_segment_headers() -> None:
    raw = logformat.encode_segment_header(HEADER)
    assert logformat.decode_segment_header(raw + bytes(100)) == HEADER
    assert logformat.decode_segment_header(bytes(64)) is None
    with pytest.raises(CorruptData, match="cut short"):
        logformat.decode_segment_header(raw[:63])


@given(st.integers(0, 64 * 8 - 1))
def test_a_flipped_bit_in_a_segment_header_is_seen(bit: int) -> None:
    raw = bytearray(logformat.encode_segment_header(HEADER))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CorruptData, match="checksum"):
        logformat.decode_segment_header(bytes(raw))


def test_a_newer_format_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logformat, "VERSION", 2)
    raw = logformat.encode_segment_header(HEADER)
    monkeypatch.undo()
    with pytest.raises(UnknownVersion, match="version 2; this release reads 1"):
        logformat.decode_segment_header(raw)


def test_record_span() -> None:
    raw = encode_record(Record(5, 9, 4, ()))
    assert logformat.record_span(raw) == (5, 9, 4)
    for wrong in (b"", b"\xc1", raw[:3], b"\x93\x01\x02\x03", b"\x94\xa1a\x02\x03\x90"):
        with pytest.raises(CorruptData):
            logformat.record_span(wrong)


# The sparse index

notes = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 400_000)), min_size=1, max_size=40)


def indexed(steps: list[tuple[int, int]]) -> tuple[OriginIndex, list[tuple[int, int, int]]]:
    """An index of records (origin, hlc, offset) whose groups lie `step` bytes apart."""
    index = OriginIndex()
    records = []
    offset = 64
    for hlc, (origin, step) in enumerate(steps, 10):
        index.note(origin, hlc, offset)
        records.append((origin, hlc, offset))
        offset += step
    return index, records


@given(notes, st.integers(1, 4), st.integers(0, 60))
def test_seek_never_skips_a_record(steps: list[tuple[int, int]], origin: int, above: int) -> None:
    index, records = indexed(steps)
    later = [offset for o, hlc, offset in records if o == origin and hlc > above]
    place = index.seek(origin, above)
    if not later:
        assert place is None
        return
    assert place is not None
    assert place <= later[0]
    own = [offset for o, _, offset in records if o == origin]
    assert place in own
    assert later[0] - place <= logformat.INDEX_EVERY_BYTES + max(
        (b - a for a, b in pairwise(own)), default=0
    )


@given(notes)
def test_a_sealed_index_comes_back(steps: list[tuple[int, int]]) -> None:
    index, _ = indexed(steps)
    raw = index.encode(12_345, 99)
    assert logformat.index_bytes(raw[-logformat.TRAILER_BYTES :]) == len(raw)
    sealed = logformat.decode_index(raw)
    assert sealed is not None
    assert (sealed.end, sealed.last_seq) == (12_345, 99)
    assert sealed.origins.places == index.places
    assert sealed.origins.last == index.last


@given(notes, st.data())
def test_a_damaged_index_is_none(steps: list[tuple[int, int]], data_source: st.DataObject) -> None:
    raw = bytearray(indexed(steps)[0].encode(1, 1))
    bit = data_source.draw(st.integers(0, len(raw) * 8 - 1))
    raw[bit // 8] ^= 1 << bit % 8
    assert logformat.decode_index(bytes(raw)) is None


def test_what_is_no_index() -> None:
    assert logformat.index_bytes(bytes(logformat.TRAILER_BYTES)) is None
    assert logformat.index_bytes(b"ROOSTIDX") is None
    assert logformat.decode_index(b"short") is None


@given(notes, st.integers(0, 40), st.integers(1, 3), st.integers(0, 60))
def test_two_parts_of_an_index_make_the_whole(
    steps: list[tuple[int, int]], cut: int, origin: int, above: int
) -> None:
    _, records = indexed(steps)
    earlier, later = OriginIndex(), OriginIndex()
    for part, some in ((earlier, records[:cut]), (later, records[cut:])):
        for record in some:
            part.note(*record)
    earlier.extend(later)
    wanted = [offset for o, hlc, offset in records if o == origin and hlc > above]
    place = earlier.seek(origin, above)
    assert (place is None) == (not wanted)
    assert place is None or place <= wanted[0]


def test_kinds_are_the_ones_on_disk() -> None:
    assert KIND_RECORD == 1
    assert sorted(logformat.KINDS) == list(range(1, 9))


def test_an_index_shorter_than_its_trailer_is_not_used() -> None:
    assert logformat.decode_index(bytes(logformat.TRAILER_BYTES - 1)) is None
    assert logformat.index_bytes(bytes(logformat.TRAILER_BYTES - 1)) is None


def test_an_index_of_which_a_part_is_missing_is_not_used() -> None:
    """A segment's end is read in two steps: the trailer, then as much as it speaks of."""
    index, _ = indexed([(1, 0), (2, 100)])
    raw = index.encode(12_345, 99)
    assert logformat.decode_index(raw) is not None
    assert logformat.decode_index(raw[1:]) is None, "shorter than its trailer says"
    assert logformat.decode_index(b"\0" + raw) is None, "longer"
    overwritten = raw[: -logformat.TRAILER_BYTES] + b"NOTINDEX" + raw[8 - logformat.TRAILER_BYTES :]
    assert len(overwritten) == len(raw)
    assert logformat.decode_index(overwritten) is None, "other magic"
