"""Reads of an index that a store in another process writes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest

from roost import environment
from roost.address import Address
from roost.mmap import TARGETS_MAX, IndexReader
from roost.types import Hello
from roost_crdt.errors import BadRequest
from roost_crdt.rows import layout

POLICIES = """
[weights]
readers = "cross-session"
stale_read_cost = "annoying"
type = "register"

[tags]
readers = "cross-session"
stale_read_cost = "annoying"
type = "set"
match = ["*:labels"]

[chat]
readers = "single-session"
stale_read_cost = "invisible"
type = "conversation"

[flags]
readers = "cross-session"
stale_read_cost = "incorrect"
type = "register"
"""
HERE = os.stat("/proc/self/ns/pid").st_ino
NOWHERE = Address(path="/nonexistent/roost.sock")


class Writer:
    """The store process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("index_process.py"), path, POLICIES],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.store_id, self.seq = b"", 0

    def do(self, *action: Any) -> int:
        """Act and answer the newest seq."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(action), file=self.process.stdin, flush=True)
        store_id, self.seq, _ = json.loads(self.process.stdout.readline())
        self.store_id = bytes.fromhex(store_id)
        return self.seq

    def hello(self, **changes: Any) -> Hello:
        known = {
            "data": str(self.path),
            "store_id": self.store_id,
            "pid_ns": HERE,
            "seq": self.seq,
            "applied_seq": self.seq,
            "prefix": b"",
        }
        return Hello(**{**known, **changes})

    def stop(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    path = tmp_path / "data"
    path.mkdir()
    started = Writer(path)
    started.do("put", "weights:a", "one")
    started.do("add", "tags:a", ["x", "y"])
    started.do("apply")
    yield started
    started.stop()


@pytest.fixture
def reader(writer: Writer) -> Iterator[IndexReader]:
    opened = IndexReader(NOWHERE)
    opened.greeted(writer.hello())
    yield opened
    opened.close()


def value(reader: IndexReader, key: str | bytes) -> Any:
    reading = reader.get(key, None)
    assert reading is not None, f"{key!r} was not read from the index"
    return reading.value


def test_reads_what_the_store_applied(writer: Writer, reader: IndexReader) -> None:
    assert value(reader, "weights:a") == "one"
    assert value(reader, b"weights:a") == "one"
    assert value(reader, "tags:a") == ["x", "y"]
    assert value(reader, "weights:none") is None
    for n in range(20):
        seq = writer.do("put", "weights:a", str(n))
        reader.acknowledged(seq)
        reading = reader.get("weights:a", None)
        assert reading is None or reading.value == str(n)
        writer.do("apply")
        assert value(reader, "weights:a") == str(n)


def test_a_value_is_read_again_only_once_something_was_committed(
    writer: Writer, reader: IndexReader
) -> None:
    writer.do("put", "weights:json", '{"weight": 1}', "json")
    writer.do("apply")
    assert value(reader, "weights:a") == "one"
    assert value(reader, "weights:none") is None
    first = value(reader, "weights:json")
    index = reader._index
    assert index is not None
    begun: list[Any] = []
    begin = index.begin

    def counted(db: Any) -> Any:
        if db is index.rows:  # policies are looked at again by the clock
            begun.append(db)
        return begin(db)

    index.begin = counted
    assert value(reader, "weights:a") == "one"
    assert value(reader, "weights:none") is None
    again = value(reader, "weights:json")
    assert first == again == {"weight": 1}
    assert first is not again, "what a caller changes in his value is his own"
    assert begun == []
    reader.acknowledged(writer.seq + 1)
    assert reader.get("weights:a", None) is None, "behind the own write"
    begun.clear()
    writer.do("put", "weights:none", "now")
    writer.do("apply")
    assert value(reader, "weights:none") == "now"
    assert value(reader, "weights:a") == "one"
    assert len(begun) == 2
    writer.do("put", "weights:a", "x" * 600)
    writer.do("apply")
    assert value(reader, "weights:a") == value(reader, "weights:a") == "x" * 600
    assert len(begun) == 4, "a long value is not kept"


def test_an_index_behind_the_own_acknowledgement_is_not_asked(
    writer: Writer, reader: IndexReader
) -> None:
    reader.acknowledged(writer.seq + 1)
    assert reader.get("weights:a", None) is None
    assert reader.get("tags:a", None) is None
    writer.do("put", "weights:b", "two")
    writer.do("apply")
    assert value(reader, "weights:a") == "one"
    assert value(reader, "tags:a") == ["x", "y"]
    reader.acknowledged(1)  # a late reply does not set it back
    assert value(reader, "weights:a") == "one"


def test_other_consistencies_and_bad_keys_are_left_to_the_daemon(reader: IndexReader) -> None:
    for key in ("chat:s1", "flags:a", "unheard_of:a"):
        assert reader.get(key, None) is None
    assert value(reader, "weights") is None
    assert value(reader, "app:labels") is None  # claimed by a glob
    assert value(reader, "weights:" + "x" * 190) is None
    for key in ("", "a\0b", "weights:" + "x" * 300, 7):
        with pytest.raises(BadRequest):
            reader.get(key, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"store_id": bytes(16)},
        {"store_id": b""},
        {"pid_ns": HERE + 1},
        {"pid_ns": 0},
        {"data": "/nonexistent"},
        {"data": ""},
    ],
    ids=str,
)
def test_what_is_not_the_daemons_file_is_not_read(writer: Writer, changes: dict[str, Any]) -> None:
    reader = IndexReader(NOWHERE)
    reader.greeted(writer.hello(**changes))
    assert reader.get("weights:a", None) is None
    reader.close()


def test_a_prefix_goes_before_each_key(writer: Writer) -> None:
    reader = IndexReader(NOWHERE)
    reader.greeted(writer.hello(prefix=b"weights:"))
    assert value(reader, "a") == "one"
    reader.close()
    behind_a_login = IndexReader(Address(path="/nonexistent", password="secret"))
    behind_a_login.greeted(writer.hello(prefix=None))
    assert behind_a_login.get("weights:a", None) is None
    behind_a_login.close()


def test_an_older_daemon_that_tells_no_prefix_has_none(writer: Writer) -> None:
    reader = IndexReader(NOWHERE)
    reader.greeted(writer.hello(prefix=None))
    assert value(reader, "weights:a") == "one"
    reader.close()


def test_max_lag_and_a_daemon_that_is_gone(writer: Writer, reader: IndexReader) -> None:
    reading = reader.get("weights:a", 60_000)
    assert reading is not None
    assert not reading.node_up
    time.sleep(0.06)
    assert reader.get("weights:a", 50) is None
    for wrong in ("5", 0.5, float("nan"), [], -1):
        with pytest.raises(BadRequest, match="max_lag_ms must be a whole number"):
            reader.get("weights:a", wrong)  # type: ignore[arg-type]
    later = reader.get("weights:a", None)
    assert later is not None
    assert later.lag_ms >= 50


def test_the_lag_of_the_node_counts_until_the_index_has_it(writer: Writer) -> None:
    reader = IndexReader(NOWHERE)
    reader.greeted(writer.hello(lag_ms=500_000))
    reading = reader.get("weights:a", None)
    assert reading is not None
    assert 500_000 <= reading.lag_ms < 600_000
    reader.greeted(writer.hello(seq=writer.seq + 1))  # in sync, but not applied yet
    reading = reader.get("weights:a", None)
    assert reading is not None
    assert reading.lag_ms >= 500_000
    writer.do("put", "weights:b", "two")
    writer.do("apply")
    reading = reader.get("weights:a", None)
    assert reading is not None
    assert reading.lag_ms < 100_000
    reader.close()


def damaged(writer: Writer, row: bytes, stored: bytes | None) -> IndexReader:
    writer.do("close")
    writer.do("raw", row.hex(), None if stored is None else stored.hex())
    reader = IndexReader(NOWHERE)
    reader.greeted(writer.hello())
    return reader


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"\0\0\0\0",
        b"\0\0\0\0\x01",
        layout.seal(b"weights:b\0\x02", 1, b"\x97\x01\x01\x01\xc4\x01a\0\0\0"),
        layout.seal(b"weights:a\0\x02", 2, b"\x97\x01\x01\x01\xc4\x01a\0\0\0"),
        layout.seal(b"weights:a\0\x02", 1, b"\x97\x01"),
        layout.seal(b"weights:a\0\x02", 1, b"\x97\x01\x01\x07\xc4\x01a\0\0\0"),
    ],
    ids=["empty", "short", "no body", "another row", "another type", "cut", "unknown kind"],
)
def test_damage_is_never_shown(writer: Writer, stored: bytes) -> None:
    reader = damaged(writer, b"weights:a\0\x02", stored)
    assert reader.get("weights:a", None) is None
    beside = reader.get("tags:a", None)  # what fails its checksum may be one of its rows
    assert beside is None if not layout.is_sealed(b"weights:a\0\x02", stored) else beside
    reader.close()


def test_a_name_that_is_damaged_is_not_taken_for_absent(writer: Writer) -> None:
    writer.do("close")
    path = writer.path / "index" / "data.mdb"
    path.write_bytes(path.read_bytes().replace(b"weights:a\0", b"weights:o\0"))
    reader = IndexReader(NOWHERE)
    reader.greeted(writer.hello())
    assert reader.get("weights:a", None) is None, "the daemon has to be asked"
    assert reader.get("weights:o", None) is None
    reader.close()


def test_while_rows_are_missing_the_daemon_is_asked(writer: Writer) -> None:
    writer.do("close")
    writer.do("meta", "suspect", b"\1".hex())
    reader = IndexReader(NOWHERE)
    reader.greeted(writer.hello())
    assert reader.get("weights:a", None) is None
    assert reader.get("nothing:here", None) is None
    reader.close()


def test_one_damaged_row_spoils_its_set_only(writer: Writer) -> None:
    reader = damaged(writer, b"tags:a\0\x04x", b"garbage of some length")
    assert reader.get("tags:a", None) is None
    assert value(reader, "weights:a") == "one"
    reader.close()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("schema", (3).to_bytes(8, "big")),
        ("pid_ns", (HERE + 1).to_bytes(8, "big")),
        ("policies", b"[weights]\nnew_field = 1\n"),
        ("policies", b"\xff"),
        ("policies", b""),
    ],
)
def test_an_index_of_another_release_is_left_to_its_daemon(
    writer: Writer, name: str, content: bytes
) -> None:
    writer.do("close")
    writer.do("meta", name, content.hex())
    reader = IndexReader(NOWHERE)
    reader.greeted(writer.hello())
    assert reader.get("weights:a", None) is None
    reader.close()


def test_a_replaced_file_is_let_go(writer: Writer, reader: IndexReader) -> None:
    assert value(reader, "weights:a") == "one"
    writer.do("close")
    index = writer.path / "index"
    index.rename(writer.path / "gone")
    time.sleep(0.12)
    assert reader.get("weights:a", None) is None
    shutil.copytree(writer.path / "gone", index)
    time.sleep(1.05)  # openings are tried once a second
    assert value(reader, "weights:a") == "one"


def test_no_free_slot_means_the_socket(writer: Writer, reader: IndexReader) -> None:
    assert value(reader, "weights:a") == "one"
    script = (
        "import lmdb, sys\n"
        f"env = lmdb.open({str(writer.path / 'index')!r}, readonly=True, map_size=0, max_dbs=9)\n"
        "held = []\n"
        "try:\n"
        "    while True: held.append(env.begin())\n"
        "except lmdb.ReadersFullError: print('full', flush=True)\n"
        "sys.stdin.read()\n"
    )
    hog = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert hog.stdout is not None
    assert hog.stdin is not None
    assert hog.stdout.readline() == "full\n"
    try:
        assert value(reader, "weights:a") == "one"  # its slot is taken already
        late = IndexReader(NOWHERE)
        late.greeted(writer.hello())
        late.close()
        script = (
            "import sys; from roost.mmap import IndexReader; from roost.address import Address\n"
            "from roost.types import Hello\n"
            "r = IndexReader(Address(path='/nonexistent'))\n"
            f"r.greeted(Hello(data={str(writer.path)!r}, store_id={writer.store_id!r},"
            f" pid_ns={HERE}, prefix=b''))\n"
            "print(r.get('weights:a', None))\n"
        )
        other = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
        )
        assert other.stdout == "None\n", other.stderr
    finally:
        hog.communicate(timeout=60)


def test_more_keys_than_are_kept(writer: Writer, reader: IndexReader) -> None:
    for n in range(2 * TARGETS_MAX + 10):
        assert value(reader, f"weights:{n}") is None
    assert value(reader, "weights:a") == "one"
    assert len(reader._targets) + len(reader._former_targets) <= 2 * TARGETS_MAX


def test_threads_read_while_the_store_writes(writer: Writer, reader: IndexReader) -> None:
    stop = threading.Event()
    wrong: list[Any] = []

    def read() -> None:
        newest = -1
        while not stop.is_set():
            reading = reader.get("weights:n", None)
            if reading is None or reading.value is None:
                continue
            if int(reading.value) < newest:
                wrong.append((newest, reading.value))
            newest = int(reading.value)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for n in range(100):
        writer.do("put", "weights:n", str(n))
        writer.do("apply")
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert value(reader, "weights:n") == "99"


def test_a_fork_closes_and_reopens(writer: Writer, reader: IndexReader) -> None:
    assert value(reader, "weights:a") == "one"
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            try:
                time.sleep(0.02)
                good = value(reader, "weights:a") == "one"
                reader.close()
                os._exit(0 if good else 3)
            finally:
                os._exit(4)
        for _ in range(100):
            assert value(reader, "weights:a") == "one"
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert value(reader, "weights:a") == "one"


def test_one_environment_a_file(writer: Writer, reader: IndexReader) -> None:
    assert value(reader, "weights:a") == "one"
    index = environment.acquire(str(writer.path / "index"))
    assert environment.acquire(str(writer.path / "index")) is index
    environment.release(index)
    environment.release(index)
    assert not index.closed
    reader.close()
    assert index.closed
    with pytest.raises((OSError, lmdb.Error)):
        environment.acquire(str(writer.path / "nothing"))


def test_a_mapping_held_by_somebody_else_in_this_process_is_left_alone(
    writer: Writer, reader: IndexReader
) -> None:
    path = str(writer.path / "index")
    with lmdb.open(path, readonly=True, map_size=0, max_dbs=9, max_readers=1024):
        assert reader.get("weights:a", None) is None
