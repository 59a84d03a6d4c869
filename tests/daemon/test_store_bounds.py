"""The store at its bounds: memory, size, disk, retention; and failure, which is final."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import lmdb
import pytest
from store_kit import LIMITS, NOW, Stores, applied, brief, put, value

from roost_crdt.errors import (
    Busy,
    Full,
    RoostError,
)
from roost_crdt.logformat import KIND_SESSION
from roost_crdt.record import decode_record
from roost_crdt.rows import register
from roost_crdt.rows.layout import (
    TYPE_REGISTER,
)
from roostd.index import Index
from roostd.store import Store, StoreFailed
from roostd.store.memory import KeyRows

# Memory


def test_clean_rows_in_memory_are_bounded(stores: Stores) -> None:
    store = stores.open(limits=replace(LIMITS, rows_memory_bytes=100_000))
    for number in range(1_000):
        brief(lambda number=number: put(store, b"k:%04d" % number, b"v" * 500))
        if number % 50 == 49:
            store.flush()
            applied(store)
    store.flush()
    applied(store)
    memory = store._state.memory
    assert memory.pinned_bytes == 0 or memory.unpin(store.applied_seq, 10_000) is None
    assert memory.pinned == {}
    assert memory.pinned_bytes == 0
    assert len(memory._young) + len(memory._old) <= 100_000 // 500
    assert all(value(store, b"k:%04d" % number) == b"v" * 500 for number in range(1_000))


def test_busy_above_the_pinned_bound_until_it_is_applied(stores: Stores) -> None:
    limits = replace(LIMITS, pinned_bytes_max=200_000, apply_interval_ms=60_000)
    store = stores.open(limits=limits)
    put(store, b"first", b"v")
    store.flush()
    applied(store)  # the applier has begun its pause

    def fill() -> None:
        for number in range(1_000):
            put(store, b"k:%d" % number, bytes(1_000))
            store.flush()

    with pytest.raises(Busy, match="200000 bytes wait to be applied") as caught:
        fill()
    assert caught.value.retry_after_ms == 100
    assert 100 < store.seq < 200
    seq = store.seq
    with pytest.raises(Busy):
        store.put(KIND_SESSION, {b"s": b"v"})
    assert (store.seq, store.dirty) == (seq, False)
    assert store._applier.drain(10)
    put(store, b"later", b"v")


# Full


def fill_up(store: Store) -> None:
    """Write until FULL is the answer even when all is applied."""
    number = refused = 0
    while refused < 2:
        try:
            brief(lambda key=b"k:%06d" % number: put(store, key, bytes(2_000)))
        except Full:
            refused += 1
            store.flush()
            applied(store)
            if refused == 2:
                raise
        else:
            refused = 0
            number += 1
            store.flush()


def test_full_at_the_bound_reads_go_on_and_it_recovers(stores: Stores) -> None:
    store = stores.open(size_max=4 << 20, log_retention=1 << 20)
    with pytest.raises(Full, match=r"the store is full: \d+ of 4194304 bytes .* reads go on"):
        fill_up(store)
    applied(store)
    with pytest.raises(Full):
        brief(lambda: put(store, b"more", bytes(2_000)))
    assert 2 << 20 < store.bytes_used() < 4 << 20
    wrote = store.seq
    assert wrote > 500
    assert not store.dirty
    assert len(value(store, b"k:000001")) == 2_000
    store = stores.reopen(store, clean=True, size_max=4 << 20, log_retention=1 << 20)
    assert all(len(value(store, b"k:%06d" % n)) == 2_000 for n in range(wrote))
    with pytest.raises(Full, match="delete keys, or raise store"):
        brief(lambda: put(store, b"more", bytes(2_000)))
    # Deletes still go; then there is room again.
    for number in range(0, wrote, 2):
        key = b"k:%06d" % number

        def delete(key: bytes = key) -> None:
            stamp = store.stamp(NOW)
            delta = register.delete(store.key_rows(key).rows, stamp)
            store.commit(stamp, [(key, TYPE_REGISTER, delta)], shrinks=True)

        brief(delete)
        store.flush()
    applied(store)
    deadline = time.monotonic() + 60
    while store.full() and time.monotonic() < deadline:
        time.sleep(0.02)
    brief(lambda: put(store, b"more", bytes(2_000)))
    store.flush()
    assert len(value(store, b"more")) == 2_000
    store = stores.reopen(store, clean=True, size_max=1 << 20, log_retention=1 << 20)
    with pytest.raises(Full, match="reads go on; raise store"):  # no delete would be let in either
        brief(lambda: put(store, b"more", bytes(2_000)))


def test_an_index_that_cannot_grow_stops_applying_not_serving(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, b"k", b"v")
    store.flush()
    applied(store)
    write = Index.write

    def no_space(*_: Any) -> None:
        raise lmdb.MapFullError("mdb_put: MDB_MAP_FULL")

    monkeypatch.setattr(Index, "write", no_space)
    put(store, b"k", b"w")
    store.flush()
    deadline = time.monotonic() + 60
    while not store.full():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert value(store, b"k") == b"w"
    store._admission.credit = 0
    with pytest.raises(Full, match=r"cannot take 1 rows: .* writes come back when there is room"):
        put(store, b"k", b"x")
    monkeypatch.setattr(Index, "write", write)
    applied(store)
    put(store, b"k", b"x")
    store.flush()
    assert value(store, b"k") == b"x"


# Failure is final


def fail(*_: Any) -> None:
    raise OSError(errno.EIO, "Input/output error")


def test_a_failed_fdatasync_is_final(
    stores: Stores, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[StoreFailed] = []
    flushed: list[list[bytes]] = []
    store.on_failed = told.append
    put(store, b"k", b"kept")
    store.flush()
    store.on_flush.append(flushed.append)
    put(store, b"k", b"unknown")
    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(StoreFailed, match="Input/output error"):
        store.flush()
    monkeypatch.undo()
    assert len(told) == 1
    assert flushed == []
    assert store.durable_seq == 1
    for again in (
        store.flush,
        lambda: put(store, b"k", b"no"),
        lambda: store.put(KIND_SESSION, {b"k": b"v"}),
    ):
        with pytest.raises(StoreFailed):
            again()
    assert len(told) == 1
    with pytest.raises(StoreFailed):
        store.close()
    store = stores.open()
    assert not store.recovery.clean
    assert value(store, b"k") in (b"kept", b"unknown")


def test_a_failing_index_is_final(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Index, "write", lambda *_: (_ for _ in ()).throw(lmdb.PanicError("dead")))
    put(store, b"k", b"v")
    store.flush()
    deadline = time.monotonic() + 60
    while store._applier.failed is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    put(store, b"k", b"w")
    with pytest.raises(StoreFailed, match="applying the log to the index failed: dead"):
        store.flush()


def test_a_failing_index_is_told_though_nothing_is_written(
    stores: Stores, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LMDB refuses everything once a meta page could not be written: no page is wrong by that."""
    told: list[StoreFailed] = []
    store.on_failed = told.append
    with monkeypatch.context() as patch:
        for name in ("write", "rows_of"):
            patch.setattr(Index, name, lambda *_: (_ for _ in ()).throw(lmdb.PanicError("dead")))
        store._state.memory.add(b"k", KeyRows(0, {}, frozenset()))
        put(store, b"k", b"v")
        store.flush()
        deadline = time.monotonic() + 60
        while not told:
            assert time.monotonic() < deadline
            store.look_after()
            time.sleep(0.005)
    store.look_after()
    assert [str(error) for error in told] == ["applying the log to the index failed: dead; restart"]
    assert store._state.damage_seen == 0
    assert not (store._path / "remake").exists()
    store = stores.reopen(store)
    assert value(store, b"k") == b"v"


def test_a_meta_page_that_could_not_be_written_is_no_damage(store: Store) -> None:
    """Every read of the index is refused until the process ends, and none speaks of damage."""
    data = store._index.data_file
    synced = next(fd for fd in open_files(data) if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DSYNC)
    full = os.open("/dev/full", os.O_RDWR)
    os.dup2(full, synced)  # LMDB writes its meta pages through that one
    os.close(full)
    put(store, b"k", b"v")
    store.flush()
    deadline = time.monotonic() + 60
    while store._applier.failed is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert isinstance(store._applier.failed, lmdb.Error)
    reads: list[Callable[[], object]] = [
        lambda: store.key_rows(b"other"),
        lambda: store.keys(b"", b"", 10, NOW),
        lambda: store.scan_rows(b"", 1_000),
        lambda: store.get(KIND_SESSION, b"s"),
        lambda: store.scan(KIND_SESSION),
        lambda: store.backup(b"", {}, NOW, bytes(16)),
    ]
    for read in reads:
        with pytest.raises(Busy, match=r"the index cannot be read: .*; the node stops and recover"):
            read()
    assert value(store, b"k") == b"v", "it is in memory"
    assert store._state.damage_seen == 0
    assert not (store._path / "remake").exists()


def open_files(path: Path) -> list[int]:
    """This process's descriptors of a file."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}") == str(path):
                found.append(int(name))
    return found


# Retention


def test_the_log_stays_below_its_retention(stores: Stores) -> None:
    options = {"size_max": 4 << 20, "log_retention": 1 << 20}
    store = stores.open(**options)
    records: list[bytes] = []
    for number in range(4_000):
        brief(lambda number=number: put(store, b"k:%d" % (number % 50), b"%d" % number * 100))
        records.append(store.last_raw)
        if number % 20 == 0:
            store.flush()
    store.flush()
    applied(store)
    actor = store.actor
    assert store.records_after(actor, 0, 1 << 20) is None
    since = decode_record(records[-50]).hlc
    assert store.records_after(actor, since, 1 << 20) == records[-49:]
    store = stores.reopen(store, clean=True, **options)
    assert store.log_bytes() <= (1 << 20) + 3 * (256 << 10)
    assert store.records_after(actor, 0, 1 << 20) is None
    assert store.records_after(actor, since, 1 << 20) == records[-49:]
    assert store.records_after(actor, since, 1) == records[-49:-48]


@pytest.mark.interpreted
def test_the_log_is_trimmed_though_nobody_writes_any_more(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the applier did after the last write is seen when retention is looked at."""
    store = stores.open(size_max=16 << 20, log_retention=2 << 20)
    monkeypatch.setattr(store, "_reap", lambda keys: None)  # as if nothing were applied yet
    for number in range(200):
        brief(lambda number=number: put(store, b"k", b"%d" % number + bytes(20_000)))
        store.flush()
    monkeypatch.undo()
    assert store._applier.drain(10)
    assert store.log_bytes() > 4 << 20
    store.neighbours_hold({store.actor: 0})
    assert store.log_bytes() <= (2 << 20) + store._log.segment_bytes, "one is made ahead"


def test_errors_are_roost_errors() -> None:
    assert issubclass(Full, RoostError)
    assert not issubclass(StoreFailed, RoostError), "it ends the process, not one request"
