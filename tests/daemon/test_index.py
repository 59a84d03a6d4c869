"""The index: ordered reads, one-transaction writes, and how full it is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from roost_crdt.errors import CorruptData
from roost_crdt.logformat import KIND_META, KIND_SESSION
from roost_crdt.rows.layout import seal
from roostd.environment import PAGE_BYTES, READERS_MAX
from roostd.index import Index, u64

SIZE_MAX = 4 << 20


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    opened = Index(tmp_path / "index", SIZE_MAX)
    yield opened
    opened.close()


def name(key: str, part: str = "\x02") -> bytes:
    return f"{key}\0{part}".encode()


def test_the_disk_holds_all_of_the_lock_table(index: Index) -> None:
    """A slot on a page without a block would be SIGBUS in a reader's process on a full disk."""
    held = (index.path / "lock.mdb").stat()
    assert held.st_blocks * 512 >= held.st_size > 1_000 * 64


def test_what_was_written_is_read(index: Index) -> None:
    index.write(
        [(name("a"), b"1"), (name("b"), b"2")],
        {KIND_SESSION: [(b"s", b"3")], KIND_META: [(b"applied_seq", u64(7))]},
    )
    assert index.rows(b"a\0") == [(name("a"), b"1")]
    assert index.get(KIND_SESSION, b"s") == b"3"
    assert index.meta(b"applied_seq") == (7).to_bytes(8, "big")
    assert index.get(KIND_SESSION, b"a") is None
    assert index.get_rows([name("a"), name("b"), name("c")]) == {name("a"): b"1", name("b"): b"2"}
    index.write([(name("a"), None), (name("b"), b"4")], {KIND_SESSION: [(b"s", None)]})
    assert index.rows(b"") == [(name("b"), b"4")]
    assert index.get(KIND_SESSION, b"s") is None


def test_the_table_of_readers_has_no_holes(index: Index) -> None:
    stat = (index.path / "lock.mdb").stat()
    assert stat.st_blocks * 512 >= stat.st_size > READERS_MAX * 64
    assert index._env.info()["max_readers"] == READERS_MAX


def test_a_failed_write_changes_nothing(index: Index) -> None:
    index.write([(name("a"), b"1")], {})
    with pytest.raises(lmdb.BadValsizeError):
        index.write([(name("a"), b"2")], {KIND_META: [(b"k" * 600, b"")]})
    assert index.rows(b"a\0") == [(name("a"), b"1")]
    with pytest.raises(lmdb.MapFullError):
        index.write([(name("b"), bytes(SIZE_MAX))], {})
    assert index.rows(b"") == [(name("a"), b"1")]


def test_rows_of_a_key_are_not_those_of_a_longer_one(index: Index) -> None:
    rows = [(name("k", "\x01"), b"h"), (name("k", "\x04x"), b"x"), (name("kk"), b"o")]
    index.write(rows, {})
    assert index.rows(b"k\0") == rows[:2]


def test_scan_pages(index: Index) -> None:
    pairs = [(b"p%03d" % n, b"%d" % n) for n in range(50)]
    index.write([], {KIND_SESSION: [(b"o", b""), *pairs, (b"q", b"")]})
    assert index.scan(KIND_SESSION, b"p", b"", 100) == pairs
    assert index.scan(KIND_SESSION, b"p", b"p009", 5) == pairs[10:15]
    assert index.scan(KIND_SESSION, b"p", b"p049", 5) == []
    assert index.scan(KIND_SESSION, b"", b"", 2) == [(b"o", b""), pairs[0]]
    assert index.scan(KIND_SESSION, b"z", b"", 2) == []


def test_rows_after_is_bounded(index: Index) -> None:
    rows = [(name(f"{n:03d}"), b"v" * 93) for n in range(30)]
    index.write(rows, {})
    assert index.rows_after(b"", 100, 1 << 20) == (rows, True)
    assert index.rows_after(b"", 7, 1 << 20) == (rows[:7], False)
    assert index.rows_after(b"", 100, 300) == (rows[:3], False)
    assert index.rows_after(rows[28][0], 100, 1) == (rows[28:29], False)
    assert index.rows_after(rows[29][0], 100, 1) == (rows[29:], True)
    assert index.rows_after(b"\xff", 100, 1) == ([], True)


def test_keys_from_gives_each_key_once(index: Index) -> None:
    keys = [f"k:{n:04d}" for n in range(2_500)]
    names = [name(key, part) for key in keys for part in ("\x01", "\x04a", "\x04b")]
    index.write([(row, seal(row, 3, b"")) for row in (*names, name("z"))], {})
    wanted = [key.encode() for key in keys]
    assert list(index.keys_from(b"k:", b"k:")) == wanted
    assert list(index.keys_from(b"k:2400\x01", b"k:")) == wanted[2_401:]
    assert list(index.keys_from(b"k:1", b"k:1")) == wanted[1_000:2_000]
    assert list(index.keys_from(b"y", b"")) == [b"z"]


def test_used_bytes_falls_when_rows_go(index: Index) -> None:
    empty = index.used_bytes()
    rows = [(name(f"{n:05d}"), bytes(1_000)) for n in range(1_000)]
    index.write(rows, {})
    full = index.used_bytes()
    assert full > empty + 1_000_000
    index.write([(key, None) for key, _ in rows], {})
    assert index.used_bytes() < empty + 50 * PAGE_BYTES
    assert index.file_bytes() >= full - empty


def test_a_stuck_reader_is_named_and_its_pages_count(index: Index) -> None:
    for _ in range(3):
        index.write([(name(f"{n:05d}"), bytes(1_000)) for n in range(500)], {})
    code = (
        "import lmdb, sys\n"
        f"env = lmdb.open({str(index.path)!r}, readonly=True, max_dbs=8)\n"
        "txn = env.begin()\n"
        "print('reading', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"reading\n"
        for turn in range(70):
            index.write([(name(f"{turn:05d}"), bytes(1_000))], {})
        ((pid, behind),) = index.stuck_readers()
        assert (pid, behind) == (reader.pid, 70)
        stuck = index.used_bytes()
        reader.kill()
        reader.wait()
    assert index.reap_readers() == 1
    assert index.stuck_readers() == []
    assert index.used_bytes() < stuck


def test_a_file_that_is_no_index_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "index"
    path.mkdir()
    (path / "data.mdb").write_bytes(b"not LMDB" * 2_000)
    with pytest.raises(CorruptData, match=r"not a usable index: .* run: roost check DIR --repair"):
        Index(path, SIZE_MAX)
