"""A bit turned in a segment of the log that is no longer written."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from roost_crdt.errors import Busy, CorruptData
from roost_crdt.logformat import CHAIN_START, KIND_RECORD
from roost_crdt.record import Record, RowOp, encode_record
from roostd.log import Log
from roostd.logrecovery import Applied

SEGMENT = 64 * 1024
NOTHING = Applied(0, None, (0, 0, CHAIN_START))


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Log]]:
    opened: list[Log] = []

    def make_log(applied: Applied = NOTHING) -> Log:
        while opened:
            opened.pop().close()
        log = Log(
            tmp_path / "log",
            segment_bytes=SEGMENT,
            retention_bytes=1 << 30,
            store_id=b"i" * 16,
            secret=b"8 bytes.",
            applied=applied,
        )
        opened.append(log)
        return log

    yield make_log
    for log in opened:
        log.close()


def padded(hlc: int) -> bytes:
    """A record of origin 5."""
    return encode_record(Record(5, hlc, hlc - 1, (RowOp(b"k\0\x02", 1, bytes(700)),)))


def append(log: Log, hlc: int) -> None:
    """One record, one group; waiting while the next segment is being made."""
    for _ in range(6_000):
        try:
            log.append(KIND_RECORD, padded(hlc), 5, hlc)
        except Busy:
            time.sleep(0.01)
        else:
            log.sync()
            return
    raise AssertionError("no spare segment in a minute")


@pytest.mark.parametrize("place", ["header", "group", "entry", "zeros", "index", "trailer"])
def test_a_bit_in_a_sealed_segment_is_never_served(make: Callable[..., Log], place: str) -> None:
    """Records come as they were written, or not at all; without its index a segment is read."""
    log = make()
    for hlc in range(1, 601):
        append(log, hlc)
    truth = [padded(hlc) for hlc in range(1, 601)]
    applied, path = Applied(600, log.position, log.head), log._segments[2].path
    end, third, fourth = (log._segments[2].end, *(s.first_seq for s in log._segments[2:4]))
    log.close()
    whole = path.read_bytes()
    index = whole.rindex(b"ROOSTIDX")
    length = int.from_bytes(whole[index + 8 : index + 12], "big")
    where = {
        "header": range(64),
        "group": range(64, 64 + 60),
        "entry": range(64 + 60, 64 + 700),
        "zeros": range(end, len(whole) - length),
        "index": range(len(whole) - length, index),
        "trailer": range(index, len(whole)),
    }[place]
    rng = random.Random(3)
    for at in rng.sample(where, min(4, len(where))):
        data = bytearray(whole)
        data[at] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        found: list[bytes] = []
        refused = False
        try:
            log = make(applied)
            while more := log.records_after(5, len(found), 1 << 20):
                found += more
        except CorruptData as error:
            refused = path.name in str(error)
        assert found == truth[: len(found)]
        if place in ("index", "trailer", "zeros"):
            assert len(found) == 600
        else:
            assert refused or place == "header" or third - 1 <= len(found) < fourth
            assert len(found) < fourth or place == "header"
    path.write_bytes(whole)
