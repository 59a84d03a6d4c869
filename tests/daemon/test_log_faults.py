"""What else may happen to the log's files: no descriptors left, no room, somebody who deletes."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from roost_crdt.errors import Busy, CorruptData, Full
from roost_crdt.logformat import CHAIN_START, KIND_META, KIND_RECORD
from roost_crdt.record import Record, RowOp, encode_record
from roostd import housekeeping, segments
from roostd.log import Log, StoreFailed
from roostd.logrecovery import Applied

SEGMENT = 64 * 1024
COUNT = 400


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Log]]:
    """Opens the log in one directory; each one is closed before the next or at the end."""
    opened: list[Log] = []

    def make_log() -> Log:
        while opened:
            opened.pop().close()
        log = Log(
            tmp_path / "log",
            segment_bytes=SEGMENT,
            retention_bytes=1 << 30,
            store_id=b"i" * 16,
            secret=b"8 bytes.",
            applied=Applied(0, None, (0, 0, CHAIN_START)),
        )
        opened.append(log)
        return log

    yield make_log
    for log in opened:
        log.close()


def until_spare(log: Log) -> None:
    for _ in range(12_000):
        if log._housekeeper.spare is not None:
            return
        time.sleep(0.005)
    raise AssertionError("no segment was made ahead in a minute")


def write(log: Log, raw: bytes) -> int:
    seq = log.append(KIND_META, raw)
    log.sync()
    return seq


def fill(log: Log) -> None:
    """Write until it is refused, at most three segments."""
    for number in range(200):
        for _ in range(6_000):
            try:
                write(log, b"%03d" % number + bytes(1_000))
                break
            except Busy:
                time.sleep(0.01)


def payloads(log: Log) -> list[bytes]:
    return [entry.raw for entry in log.replay(0)]


def record(hlc: int) -> bytes:
    op = RowOp(b"key\0\x02", 1, bytes(500))
    return encode_record(Record(7, hlc, hlc - 1, (op,)))


def files(log: Log) -> list[str]:
    return sorted(path.name for path in log.directory.iterdir())


def test_a_segment_is_begun_without_opening_a_file(
    make: Callable[..., Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be none left to be opened, and what was admitted has to be written."""
    log = make()
    until_spare(log)

    def none_left(*_: Any, **__: Any) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "open", none_left)
    monkeypatch.setattr(housekeeping, "_RETRY_MAX_S", 0.05)
    with pytest.raises(Full, match="Too many open files; reads go on"):
        fill(log)
    wrote = log.durable_seq
    assert log.position.segment == 2
    monkeypatch.undo()
    until_spare(log)
    write(log, b"after")
    assert len(payloads(make())) == wrote + 1


@pytest.mark.parametrize("which", [-1, -2], ids=["made ahead", "in use"])
def test_nothing_is_written_to_a_deleted_segment(make: Callable[..., Log], which: int) -> None:
    log = make()
    write(log, b"kept")
    until_spare(log)
    (log.directory / files(log)[which]).unlink()
    with pytest.raises(StoreFailed, match="it was deleted"):
        fill(log)
    if which == -1:
        kept = payloads(make())
        assert len(kept) == log.durable_seq
        assert kept[0] == b"kept"


def test_whatever_keeps_a_segment_from_being_begun_is_final(
    make: Callable[..., Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in hand then has no known outcome: nobody may wait for it for ever."""
    log = make()
    until_spare(log)

    def fail() -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(log._housekeeper, "take_spare", fail)
    with pytest.raises(StoreFailed, match="Input/output error; nothing is acknowledged"):
        fill(log)
    monkeypatch.undo()
    wrote = log.durable_seq
    assert len(payloads(make())) == wrote > 0


def test_older_segments_may_be_deleted_by_somebody(make: Callable[..., Log]) -> None:
    log = make()
    for hlc in range(1, COUNT):
        log.append(KIND_RECORD, record(hlc), 7, hlc)
        if not hlc % 20:
            log.sync()
            until_spare(log)
    log.sync()
    (log.directory / files(log)[0]).unlink()
    log.trim(log.durable_seq)
    assert log.first_seq() > 1
    (log.directory / files(log)[1]).unlink()
    with pytest.raises(CorruptData, match=r"the log cannot be read: .*No such file"):
        [log.records_after(7, hlc, 1) for hlc in range(COUNT)]
    assert write(log, b"goes on") == log.durable_seq


def test_no_attempt_is_made_where_there_is_no_room(
    make: Callable[..., Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would take what is left away from everybody, four times a second."""
    log = make()
    until_spare(log)
    room = os.statvfs(log.directory)
    monkeypatch.setattr(housekeeping, "_free_bytes", lambda _: SEGMENT - 1)
    monkeypatch.setattr(segments, "create", None)
    with pytest.raises(Full, match=rf"of {SEGMENT} bytes.*\({SEGMENT - 1} bytes free\)"):
        fill(log)
    assert housekeeping._free_bytes(Path("/nowhere")) == SEGMENT - 1
    monkeypatch.undo()
    assert housekeeping._free_bytes(Path("/nowhere")) is None
    assert (housekeeping._free_bytes(log.directory) or 0) <= room.f_blocks * room.f_frsize
    until_spare(log)
    write(log, b"again")
