"""The log's files: rotation, retention, recovery, and disks that fail or are full."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from roost_crdt.errors import Busy, CorruptData, Full, TooLarge
from roost_crdt.logformat import (
    CHAIN_START,
    KIND_META,
    KIND_RECORD,
    SEGMENT_HEADER_BYTES,
    TRAILER_BYTES,
)
from roost_crdt.record import Record, RowOp, encode_record
from roostd import housekeeping, segments
from roostd.log import Log, StoreFailed
from roostd.logrecovery import Applied, Position

SEGMENT = 64 * 1024
NOTHING = Applied(0, None, (0, 0, CHAIN_START))
STORE_ID = b"i" * 16


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Log]]:
    """Opens the log in one directory; each one is closed before the next or at the end."""
    opened: list[Log] = []

    def make_log(applied: Applied = NOTHING, **options: Any) -> Log:
        while opened:
            opened.pop().close()
        settings = {
            "segment_bytes": SEGMENT,
            "retention_bytes": 1 << 30,
            "store_id": STORE_ID,
            "secret": b"8 bytes.",
        }
        opened.append(Log(tmp_path / "log", applied=applied, **{**settings, **options}))
        return opened[-1]

    yield make_log
    for log in opened:
        log.close()


def append(log: Log, kind: int, raw: bytes, origin: int = 0, hlc: int = 0) -> int:
    """Append, waiting while the next segment is being made."""
    for _ in range(6_000):
        try:
            return log.append(kind, raw, origin, hlc)
        except Busy:
            time.sleep(0.01)
    raise AssertionError("no spare segment in a minute")


def write(log: Log, raw: bytes) -> int:
    seq = append(log, KIND_META, raw)
    log.sync()
    return seq


def write_record(log: Log, actor: int, hlc: int, prev_hlc: int) -> bytes:
    raw = encode_record(Record(actor, hlc, prev_hlc, ()))
    append(log, KIND_RECORD, raw + b"", actor, hlc)
    log.sync()
    return raw


def fill(log: Log) -> None:
    for number in range(300):
        write(log, b"%03d" % number + bytes(1_000))


def payloads(log: Log, above_seq: int = 0) -> list[bytes]:
    return [entry.raw for entry in log.replay(above_seq)]


def files(log: Log) -> list[str]:
    return sorted(path.name for path in log.directory.iterdir())


def last_used(log: Log) -> Path:
    return log.directory / f"{log.position.segment:016d}.seg"


def patch_file(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def flip(path: Path, offset: int) -> None:
    patch_file(path, offset, bytes([path.read_bytes()[offset] ^ 1]))


def test_entries_come_back_in_order(make: Callable[..., Log]) -> None:
    log = make()
    assert log.last_seq == log.durable_seq == 0
    for number in range(5):
        assert log.append(KIND_META, b"%d" % number) == number + 1
    assert (log.last_seq, log.durable_seq, log.dirty) == (5, 0, True)
    log.sync()
    assert (log.durable_seq, log.dirty) == (5, False)
    log = make()
    assert log.last_seq == log.durable_seq == 5
    assert payloads(log) == [b"0", b"1", b"2", b"3", b"4"]
    assert payloads(log, above_seq=3) == [b"3", b"4"]
    assert log.append(KIND_META, b"next") == 6


def test_what_was_not_synced_is_not_there(make: Callable[..., Log]) -> None:
    log = make()
    write(log, b"kept")
    log.append(KIND_META, b"lost")
    log = make()
    assert payloads(log) == [b"kept"]
    assert log.recovered.torn_bytes == 0


def test_segments_follow_one_another_and_are_sealed(make: Callable[..., Log]) -> None:
    log = make()
    wanted = [b"%03d" % n + bytes(1_000) for n in range(200)]
    for raw in wanted:
        write(log, raw)
    assert len(files(log)) >= 4
    log = make()
    assert payloads(log) == wanted
    first = log.directory / "0000000000000001.seg"
    assert first.read_bytes()[-TRAILER_BYTES:].startswith(b"ROOSTIDX")


def test_a_group_that_grows_too_large_is_written_early(make: Callable[..., Log]) -> None:
    log = make()
    for number in range(200):
        append(log, KIND_META, b"%03d" % number + bytes(1_000))
    assert 0 < log.durable_seq < 200
    log.sync()
    assert log.durable_seq == 200
    assert [raw[:3] for raw in payloads(make())] == [b"%03d" % n for n in range(200)]


def test_what_no_segment_holds_is_too_large(make: Callable[..., Log]) -> None:
    log = make()
    with pytest.raises(TooLarge, match=r"65531 bytes do not fit .* store.size_max"):
        log.append(KIND_META, bytes(65_526))
    largest = SEGMENT - SEGMENT_HEADER_BYTES - 64 - 5
    assert write(log, bytes(largest)) == 1
    assert write(log, bytes(largest)) == 2
    assert [len(raw) for raw in payloads(make())] == [largest, largest]


def test_replay_begins_at_the_applied_position(make: Callable[..., Log]) -> None:
    log = make()
    for number in range(100):
        write(log, b"%03d" % number + bytes(1_000))
        if number == 49:
            applied = Applied(log.last_seq, log.position, log.head)
    log = make(applied)
    assert [raw[:3] for raw in payloads(log, 50)] == [b"%03d" % n for n in range(50, 100)]
    # Damage before it is not looked at (a scrub does that).
    flip(log.directory / "0000000000000001.seg", 200)
    assert len(payloads(make(applied), 50)) == 50


def test_a_torn_tail_is_cut_and_reported(make: Callable[..., Log]) -> None:
    log = make()
    write(log, b"first")
    write(log, b"second")
    end = log.position.offset
    flip(last_used(log), end - 2)
    log = make()
    assert payloads(log) == [b"first"]
    assert log.recovered.torn_bytes > 0
    assert log.recovered.torn_at == f"0000000000000001.seg:{end - 64 - 5 - 6}"
    # What was cut is gone from the file: a later start finds nothing to cut.
    write(log, b"x")
    log = make()
    assert payloads(log) == [b"first", b"x"]
    assert log.recovered.torn_bytes == 0


def test_a_tail_that_the_index_knows_is_not_cut(make: Callable[..., Log]) -> None:
    log = make()
    write(log, b"first")
    write(log, b"second")
    path, before = last_used(log), last_used(log).read_bytes()
    flip(path, log.position.offset - 2)
    damaged = path.read_bytes()
    with pytest.raises(CorruptData, match=r"seq 2 was made durable; run: roost check"):
        make(Applied(2, None, (0, 0, CHAIN_START)))
    assert path.read_bytes() == damaged != before


def test_damage_in_the_middle_refuses_with_its_place(make: Callable[..., Log]) -> None:
    log = make()
    for number in range(20):
        write(log, b"%03d" % number)
    path = last_used(log)
    flip(path, 64 + 72 * 3 + 70)
    damaged = path.read_bytes()
    with pytest.raises(
        CorruptData,
        match=r"0001.seg: bytes 280\.\.352 are damaged .* run: roost check DIR --repair",
    ):
        make()
    assert path.read_bytes() == damaged


def test_damage_in_an_older_segment_refuses(make: Callable[..., Log]) -> None:
    log = make()
    for number in range(150):
        write(log, b"%03d" % number + bytes(1_000))
    first = log.directory / "0000000000000001.seg"
    flip(first, 30_000)
    with pytest.raises(CorruptData, match=r"0001.seg: damaged at byte \d+: seq \d+"):
        make()


def test_a_missing_segment_refuses(make: Callable[..., Log]) -> None:
    log = make()
    for number in range(250):
        write(log, b"%03d" % number + bytes(1_000))
    applied = Applied(log.last_seq, log.position, log.head)
    path = log.directory / "0000000000000002.seg"
    raw = path.read_bytes()
    path.unlink()
    with pytest.raises(CorruptData, match=r"segment [23] is missing"):
        make()
    path.write_bytes(raw)
    log = make()
    assert len(payloads(log)) == 250
    # Below what is applied it was going to be deleted anyway.
    path.unlink()
    log = make(applied)
    assert log.recovered.dropped == ("0000000000000001.seg",)
    assert write(log, b"x") == 251


def test_a_missing_newest_segment_refuses(make: Callable[..., Log]) -> None:
    log = make()
    for number in range(100):
        write(log, b"%03d" % number + bytes(1_000))
    log.close()
    last_used(log).unlink()
    with pytest.raises(CorruptData, match="segment 2 is missing"):
        make()


def test_a_log_that_is_gone_refuses(make: Callable[..., Log]) -> None:
    with pytest.raises(CorruptData, match="the log is gone, but the index has applied seq 7"):
        make(Applied(7, None, (0, 0, CHAIN_START)))


def test_a_log_that_begins_above_what_is_applied_refuses(make: Callable[..., Log]) -> None:
    log = make()
    for number in range(150):
        write(log, b"%03d" % number + bytes(1_000))
    log.close()
    (log.directory / "0000000000000001.seg").unlink()
    with pytest.raises(CorruptData, match=r"begins at seq .*, but the index has applied only 0"):
        make()


def test_a_torn_first_write_of_a_segment_is_cut(make: Callable[..., Log]) -> None:
    log = make()
    write(log, b"kept")
    log.close()
    spare = log.directory / "0000000000000002.seg"
    patch_file(spare, 512, b"half of a group, its header not written")
    log = make()
    assert payloads(log) == [b"kept"]
    assert log.recovered.torn_at == "0000000000000002.seg:0"
    assert not spare.read_bytes().strip(b"\0")


def test_a_segment_with_a_damaged_header_is_not_taken_for_torn(make: Callable[..., Log]) -> None:
    log = make()
    for number in range(100):
        write(log, b"%03d" % number + bytes(1_000))
    path = last_used(log)
    flip(path, 20)
    with pytest.raises(CorruptData, match=r"0002.seg: bytes 0\.\.64 are damaged .* follows"):
        make()
    flip(path, 20)
    flip(log.directory / "0000000000000001.seg", 20)
    with pytest.raises(CorruptData, match=r"0001.seg: empty or damaged, but segment 2"):
        make()


def test_another_stores_segment_is_named(make: Callable[..., Log]) -> None:
    write(make(), b"x")
    with pytest.raises(CorruptData, match=f"of the log {STORE_ID.hex()}, .* check DIR --repair"):
        make(store_id=b"j" * 16)


def test_a_renamed_segment_says_its_name(make: Callable[..., Log]) -> None:
    log = make()
    fill(log)
    log.close()
    (log.directory / "0000000000000002.seg").rename(log.directory / "0000000000000001.seg")
    with pytest.raises(CorruptData, match=r"rename it to 0000000000000002.seg, or .* --repair"):
        make()


def test_a_foreign_file_is_named(make: Callable[..., Log]) -> None:
    log = make()
    (log.directory / "notes.txt").write_text("hello")
    with pytest.raises(CorruptData, match=r"notes.txt: not a log segment"):
        make()


def test_a_directory_that_is_a_file_system_of_its_own(make: Callable[..., Log]) -> None:
    log = make()
    (log.directory / "lost+found").mkdir()
    write(log, b"x")
    assert payloads(make()) == [b"x"]


def test_a_half_made_segment_is_made_again(make: Callable[..., Log]) -> None:
    log = make()
    write(log, b"kept")
    log.close()
    spare = log.directory / "0000000000000002.seg"
    with spare.open("r+b") as file:
        file.truncate(1_000)
    log = make()
    assert payloads(log) == [b"kept"]
    for number in range(80):
        write(log, b"%03d" % number + bytes(1_000))
    assert spare.stat().st_size >= SEGMENT
    assert len(payloads(make())) == 81


def test_retention_keeps_what_is_not_applied(make: Callable[..., Log]) -> None:
    log = make(retention_bytes=2 * SEGMENT)
    for number in range(300):
        write(log, b"%03d" % number + bytes(1_000))
    assert "0000000000000001.seg" in files(log)
    log.trim(150)
    first_kept = log.first_seq()
    assert 1 < first_kept <= 151
    log.trim(300)
    assert log.first_seq() > first_kept
    applied = Applied(300, log.position, log.head)
    log.close()
    assert sum(path.stat().st_size for path in log.directory.iterdir()) <= 4 * SEGMENT
    log = make(applied)
    assert write(log, b"x") == 301


def padded(hlc: int) -> bytes:
    """A record of origin 5."""
    return encode_record(Record(5, hlc, hlc - 1, (RowOp(b"k\0\x02", 1, bytes(700)),)))


def filled(make: Callable[..., Log]) -> Log:
    """Nine segments of records of origin 5, hlc 1 to 600; all of them applied."""
    log = make(retention_bytes=8 * SEGMENT)
    for hlc in range(1, 601):
        append(log, KIND_RECORD, padded(hlc), 5, hlc)
        log.sync()
    assert len(log._segments) > 6
    log.trim(600)
    return log


def kept(log: Log) -> int:
    """The oldest hlc that the log still has, in segments beside the reserve."""
    return log.first_seq()


def test_retention_ends_where_every_neighbour_holds_the_records(make: Callable[..., Log]) -> None:
    log = filled(make)
    assert kept(log) == 1, "dropped though nobody is known to hold it"
    log.neighbours_hold({5: 200})
    assert 100 < kept(log) <= 201
    log.neighbours_hold({5: 600})
    assert sum(s.size for s in log._segments) <= 2 * SEGMENT, "the reserve is a quarter"
    assert kept(log) > 400
    log.neighbours_hold(None)
    assert write(log, b"x") == 601


def test_retention_is_bound_by_age(make: Callable[..., Log]) -> None:
    log = filled(make)
    log.neighbours_hold({5: 0})
    assert kept(log) == 1
    eight_days_ago = time.time() - 8 * 86_400
    for segment in log._segments[:3]:
        os.utime(segment.path, (eight_days_ago, eight_days_ago))
    fourth = log._segments[3].first_seq
    log.trim(600)
    assert kept(log) == fourth
    for segment in log._segments:
        os.utime(segment.path, (eight_days_ago, eight_days_ago))
    log.trim(600)
    assert len(log._segments) == 1, "the one that is written; what was erased is not kept for ever"


def test_who_reads_the_log_is_not_left_behind(make: Callable[..., Log]) -> None:
    log = filled(make)
    entries, _ = log.entries_from(log.first_position(), 0, 600, 1_000)
    assert entries
    log.neighbours_hold({5: 600})
    assert kept(log) == 1, "a backup is between two of its chunks"


def test_indexes_are_loaded_aside_before_anything_is_dropped(make: Callable[..., Log]) -> None:
    first = filled(make)
    first.close()
    log = make(retention_bytes=8 * SEGMENT, applied=Applied(600, first.position, first.head))
    assert log._segments[0].origins is None
    log.neighbours_hold({5: 600})
    assert kept(log) == 1, "the node's thread does not read whole segments"
    until = time.monotonic() + 60
    while kept(log) <= 400 and time.monotonic() < until:
        time.sleep(0.01)
        log.neighbours_hold({5: 600})
    assert kept(log) > 400


@pytest.fixture
def history(make: Callable[..., Log]) -> tuple[Log, dict[int, list[tuple[int, bytes]]]]:
    """Records of three origins over several segments: origin -> [(hlc, raw)]."""
    log = make()
    wrote: dict[int, list[tuple[int, bytes]]] = {1: [], 2: [], 3: []}
    newest = {1: 0, 2: 0, 3: 0}
    for number in range(300):
        actor = 1 + number % 2 if number < 200 else 3
        hlc = number + 10
        raw = encode_record(Record(actor, hlc, newest[actor], ()))
        log.head = (1, newest[1] if actor != 1 else hlc, b"%016d" % number)
        append(log, KIND_RECORD, raw, actor, hlc)
        append(log, KIND_META, bytes(800))
        log.sync()
        newest[actor] = hlc
        wrote[actor].append((hlc, raw))
    return log, wrote


def test_records_after(
    make: Callable[..., Log], history: tuple[Log, dict[int, list[tuple[int, bytes]]]]
) -> None:
    log, wrote = history
    applied = Applied(log.last_seq, log.position, log.head)
    for reopened in (False, True):
        if reopened:
            log = make(applied)
        for origin, records in wrote.items():
            for above in (0, 10, 57, 58, 209, 230, 309, 400):
                wanted = [raw for hlc, raw in records if hlc > above]
                got = log.records_after(origin, above, 1 << 20)
                assert got == wanted, (reopened, origin, above)
    some = log.records_after(3, 0, 100)
    assert some == [raw for _, raw in wrote[3]][: len(some)]
    assert 0 < len(some) < 20
    assert len(log.records_after(3, 0, 1)) == 1
    assert log.records_after(99, 0, 100) == []


def test_records_that_do_not_follow_one_another_end_the_answer(make: Callable[..., Log]) -> None:
    log = make()
    first = write_record(log, 5, 10, 0)
    second = write_record(log, 5, 20, 10)
    later = write_record(log, 5, 40, 30)  # 20..30 came as rows, with a snapshot
    assert log.records_after(5, 0, 1 << 20) == [first, second]
    assert log.records_after(5, 20, 1 << 20) == []
    assert log.records_after(5, 30, 1 << 20) == [later]
    assert log.records_after(5, 35, 1 << 20) == [later]


def test_only_durable_records_are_read(make: Callable[..., Log]) -> None:
    log = make()
    raw = encode_record(Record(5, 10, 0, ()))
    log.append(KIND_RECORD, raw, 5, 10)
    assert log.records_after(5, 0, 100) == []
    assert log.follows(5, 0)
    log.sync()
    assert log.records_after(5, 0, 100) == [raw]
    assert not log.follows(5, 0)


def test_chain_at(
    make: Callable[..., Log], history: tuple[Log, dict[int, list[tuple[int, bytes]]]]
) -> None:
    log, wrote = history
    applied = Applied(log.last_seq, log.position, log.head)
    for reopened in (False, True):
        if reopened:
            log = make(applied)
        for hlc, _ in wrote[1][::7]:
            assert log.chain_at(1, hlc) == b"%016d" % (hlc - 10)
        assert log.chain_at(1, 11) == b"", "its records at 10 and 20 follow one another"
        assert log.chain_at(2, 10) is None
        assert log.chain_at(*log.head[:2]) == log.head[2]


def test_a_damaged_group_is_not_read(
    history: tuple[Log, dict[int, list[tuple[int, bytes]]]],
) -> None:
    log, _ = history
    flip(log.directory / "0000000000000001.seg", 5_000)
    with pytest.raises(CorruptData, match=r"0001.seg: the group at byte \d+ is damaged"):
        log.records_after(1, 0, 1 << 20)


def fail(*_: Any) -> int:
    raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("call", ["fdatasync", "pwrite"])
def test_a_failed_sync_is_final(
    make: Callable[..., Log], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    log = make()
    write(log, b"kept")
    log.append(KIND_META, b"unknown")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(StoreFailed, match="Input/output error; nothing is acknowledged any more"):
        log.sync()
    monkeypatch.undo()
    assert log.durable_seq == 1
    with pytest.raises(StoreFailed):
        log.sync()
    assert payloads(make())[:1] == [b"kept"]


def test_a_short_write_is_final(make: Callable[..., Log], monkeypatch: pytest.MonkeyPatch) -> None:
    log = make()
    write(log, b"kept")
    log.append(KIND_META, b"x" * 100)
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:80], at))
    with pytest.raises(StoreFailed, match="short write, 80 of 169 bytes"):
        log.sync()
    monkeypatch.undo()
    log = make()
    assert payloads(log) == [b"kept"]
    assert log.recovered.torn_bytes > 0


def test_a_full_disk_refuses_before_it_accepts_and_recovers(
    make: Callable[..., Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    create = segments.create

    def no_space(*_: Any) -> segments.Segment:
        raise OSError(errno.ENOSPC, "No space left on device")

    log = make()
    while log._housekeeper.spare is None:
        time.sleep(0.005)
    monkeypatch.setattr(segments, "create", no_space)
    monkeypatch.setattr(housekeeping, "_RETRY_MAX_S", 0.05)
    with pytest.raises(Full, match=r"cannot be made .* bytes free.*No space.*reads go on"):
        fill(log)
    wrote = log.durable_seq
    assert wrote > 60
    assert not log.dirty
    monkeypatch.setattr(segments, "create", create)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            write(log, b"again")
            break
        except (Full, Busy):
            time.sleep(0.02)
    assert log.durable_seq == wrote + 1
    assert len(payloads(make())) == wrote + 1


def test_positions_are_where_the_next_entry_begins(make: Callable[..., Log]) -> None:
    log = make()
    assert log.position == Position(1, SEGMENT_HEADER_BYTES)
    write(log, b"abc")
    assert log.position == Position(1, SEGMENT_HEADER_BYTES + 64 + 5 + 3)
    assert log.bytes_used() >= SEGMENT
