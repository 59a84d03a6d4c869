"""Opening a store: recovery, identity, damage."""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import lmdb
import pytest
from store_kit import LIMITS, NOW, Stores, applied, count, incr, put, root_of, value

from roost_crdt.errors import (
    ConfigError,
    CorruptData,
    Full,
)
from roost_crdt.logformat import CHAIN_START, KIND_META, KIND_SPEND
from roost_crdt.record import Record, chain_next, encode_record, record_hash
from roost_crdt.rows.layout import (
    VALUE,
    row_key,
)
from roostd.index import Index
from roostd.store import Store, StoreFailed, StoreLocked
from roostd.store import identity as identity_module
from roostd.store.identity import Surroundings

# Opening


def test_a_clean_stop_leaves_nothing_to_replay(stores: Stores, store: Store) -> None:
    assert store.recovery.created
    for number in range(20):
        put(store, b"k:%d" % number, b"v")
    store.flush()
    before = (store.store_id, store.actor, dict(store.vv), store.head)
    store = stores.reopen(store, clean=True)
    assert (store.store_id, store.actor, dict(store.vv), store.head) == before
    assert (store.recovery.clean, store.recovery.replayed, store.recovery.created) == (
        True,
        0,
        False,
    )
    assert store.applied_seq == store.seq == 20


def test_a_crash_is_replayed(stores: Stores) -> None:
    store = stores.open(limits=replace(LIMITS, apply_interval_ms=60_000))
    put(store, b"a", b"1")
    store.flush()
    applied(store)
    for number in range(20):
        put(store, b"k:%d" % number, b"v")
        incr(store, b"c")
    store.put(KIND_SPEND, {b"g": b"9"})
    store.flush()
    put(store, b"never", b"acknowledged")
    vv, head = dict(store.vv), store.head
    store = stores.reopen(store)
    assert (store.recovery.clean, store.recovery.replayed) == (False, 41)
    assert (count(store, b"c"), store.get(KIND_SPEND, b"g")) == (20, b"9")
    assert value(store, b"a") == b"1"
    assert store.key_rows(b"never").type == 0
    assert store.head == head
    assert store.vv[store.actor] < vv[store.actor]
    assert store.stamp(0)[0] > store.vv[store.actor], "the clock never goes below the log"
    applied(store)
    assert store.digest(NOW)[1] == root_of(store)


def test_a_torn_tail_is_reported(stores: Stores, store: Store) -> None:
    put(store, b"k", b"kept")
    store.flush()
    applied(store)
    position = store._log.position
    store.close(clean=False)
    segment = next((store._path / "log").glob("*1.seg"))
    with segment.open("r+b") as file:
        file.seek(position.offset)
        file.write(b"the beginning of a group that was never acknowledged")
    store = stores.open()
    assert store.recovery.torn_bytes == 52
    assert store.recovery.torn_at.endswith(f"1.seg:{position.offset}")
    assert value(store, b"k") == b"kept"


def test_a_second_daemon_gets_a_clear_error(stores: Stores, store: Store) -> None:
    with pytest.raises(StoreLocked, match=rf"in use by process {os.getpid()}; one daemon per"):
        stores.open()
    (store._path / "lock").unlink()  # somebody who tidies up
    with pytest.raises(StoreLocked, match="in use by process unknown"):
        stores.open()
    put(store, b"k", b"v")
    store.flush()
    assert stores.reopen(store, clean=True).seq == 1


def test_a_full_disk_at_the_start_says_so(
    stores: Stores, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LMDB maps its table of readers: a hole in it on a full disk would end the process."""
    put(store, b"k", b"v")
    store.close()

    def no_space(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (store._path / "index" / "lock.mdb").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", no_space)
        with pytest.raises(StoreFailed, match=r"cannot be opened: .*No space .*\(\d+ bytes free"):
            stores.open()
    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", no_space)  # of the file that says whose process it is
        assert value(stores.open(), b"k") == b"v"
    with pytest.raises(StoreFailed, match=r"cannot be opened: .*Not a directory"):
        stores.open("a/lock/data")


def test_a_disk_that_takes_no_mark_does_not_spoil_a_stop(
    stores: Stores, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, b"k", b"v")

    def no_space(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(identity_module, "mark_clean", no_space)
        assert re.search("as cleanly stopped .*No space left.*nothing is lost", store.close())
    store = stores.open()
    assert (store.recovery.clean, store.recovery.actor_changed) == (False, False)
    assert value(store, b"k") == b"v"
    assert store.close() == ""
    assert store.close() == ""


def test_an_index_without_its_log_refuses(stores: Stores, store: Store) -> None:
    put(store, b"k", b"v")
    store.flush()
    store.close()
    shutil.rmtree(store._path / "log")
    with pytest.raises(CorruptData, match=r"the log is gone, .* run: roost check DIR --repair"):
        stores.open()


def test_a_log_without_its_index_refuses(stores: Stores, store: Store) -> None:
    put(store, b"k", b"v")
    store.flush()
    store.close()
    shutil.rmtree(store._path / "index")
    with pytest.raises(CorruptData, match=r"there is a log but the index is empty or gone"):
        stores.open()
    with pytest.raises(CorruptData, match=r"there is a log but the index is empty or gone"):
        stores.open()


def test_a_newer_schema_refuses(stores: Stores, store: Store) -> None:
    store.close()
    index = Index(store._path / "index", 16 << 20)
    newer = (3).to_bytes(8, "big")
    index.write([], {KIND_META: [(b"layout", newer), (b"schema", newer)]})
    index.close()
    with pytest.raises(ConfigError, match="schema 3, this release reads 2"):
        stores.open()


# Identity


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    real = identity_module.surroundings

    def move(**changes: Any) -> None:
        monkeypatch.setattr(
            identity_module,
            "surroundings",
            lambda path: Surroundings(*real(path))._replace(**changes),
        )

    return move


@pytest.mark.parametrize(
    ("clean", "changes", "reason"),
    [
        (True, {}, ""),
        (False, {}, ""),
        (True, {"boot_id": b"other"}, ""),
        (False, {"boot_id": b"other"}, "without a clean shutdown"),
        (True, {"host": b"other"}, "another host"),
        (True, {"file_id": b"1:2"}, "copies"),
    ],
)
def test_the_actor_is_used_again_only_if_nothing_can_be_lost(
    stores: Stores,
    store: Store,
    machine: Callable[..., None],
    clean: bool,
    changes: dict[str, Any],
    reason: str,
) -> None:
    put(store, b"k", b"v")
    store.flush()
    before, hlc = store.actor, store.vv[store.actor]
    store.close(clean=clean)
    machine(**changes)
    store = stores.open()
    assert store.recovery.actor_changed == bool(reason)
    assert reason in store.recovery.actor_reason
    assert (store.actor != before) == bool(reason)
    assert store.vv == {before: hlc}
    assert value(store, b"k") == b"v"
    if reason:
        assert store.recovery.actor_before == before
        assert store.head == (0, CHAIN_START)
    put(store, b"k", b"w")
    store.flush()
    actor, vv = store.actor, dict(store.vv)
    store = stores.reopen(store)
    assert (store.actor, store.vv) == (actor, vv)


def test_a_copied_store_writes_under_another_actor(stores: Stores, store: Store) -> None:
    put(store, b"k", b"v")
    store.flush()
    store.close()
    shutil.copytree(store._path, stores.base / "copy")
    copy = stores.open("copy")
    assert copy.actor != store.actor
    assert copy.store_id != store.store_id, "a reader must not compare its seqs with the other's"
    assert "copies" in copy.recovery.actor_reason
    assert value(copy, b"k") == b"v"
    put(copy, b"k", b"w")
    copy.flush()
    again = stores.reopen(copy)
    assert (again.store_id, again.actor, value(again, b"k")) == (copy.store_id, copy.actor, b"w")
    assert stores.open().actor == store.actor


def test_the_clean_mark_is_gone_while_the_store_is_open(stores: Stores, store: Store) -> None:
    store.close()
    assert (store._path / "clean").exists()
    store = stores.open()
    assert not (store._path / "clean").exists()


def test_the_chain_names_each_durable_head(stores: Stores, store: Store) -> None:
    chain = CHAIN_START
    heads = []
    for number in range(30):
        put(store, b"k", b"%d" % number)
        chain = chain_next(chain, record_hash(store.last_raw))
        if number % 3 == 2:
            told = store.head
            assert told != (store.vv[store.actor], chain), "not durable yet"
            store.flush()
            assert store.head == (store.vv[store.actor], chain)
            heads.append(store.head)
    for clean in (False, True, True):
        assert [store.chain_at(hlc) for hlc, _ in heads] == [chain for _, chain in heads]
        assert store.chain_at(heads[0][0] - 1) is None
        assert store.head == heads[-1]
        store = stores.reopen(store, clean=clean)


def test_a_new_actor_is_durable_before_its_first_use(stores: Stores, store: Store) -> None:
    put(store, b"k", b"v")
    before = store.actor
    assert store.renew_actor(os.urandom) == before
    assert store.actor != before
    assert store.durable_seq == 1
    actor = store.actor
    store = stores.reopen(store)
    assert (store.actor, store.head) == (actor, (0, CHAIN_START))
    put(store, b"k", b"w")
    store.flush()
    assert set(store.vv) == {before, actor}
    # The old actor's records come back as anybody else's.
    record = Record(before, store.vv[before] + 1, store.vv[before], ())
    assert store.accept(encode_record(record), record)


# A disk without room for which actor writes


class FullDisk:
    """The index can be opened and read, and takes nothing until there is room."""

    def __init__(self, patch: pytest.MonkeyPatch, code: int = errno.ENOSPC) -> None:
        self.full = True
        write = Index.write

        def refuse(index: Index, *args: Any) -> None:
            if self.full:
                error = lmdb.Error("mdb_txn_commit: No space left on device")
                error.code = code  # type: ignore[attr-defined]
                raise error
            write(index, *args)

        patch.setattr(Index, "write", refuse)
        patch.setattr(Index, "disk_free", lambda index: 0 if self.full else 1 << 30)

    def make_room(self, store: Store) -> None:
        """Returns once writes are taken again."""
        self.full = False
        deadline = time.monotonic() + 5
        while store.full():
            assert time.monotonic() < deadline, store.full()
            time.sleep(0.01)


def refused(store: Store) -> None:
    seq = store.seq
    for write in (lambda: put(store, b"k", b"w"), lambda: store.put(KIND_SPEND, {b"g": b"1"})):
        with pytest.raises(Full, match=r"cannot take which actor .* 0 bytes free .* reads go on"):
            write()
    assert (store.seq, store.dirty) == (seq, False)
    assert value(store, b"k") == b"v"


def test_a_full_disk_does_not_keep_a_store_from_being_opened_elsewhere(
    stores: Stores, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another PID namespace: readers are told by the daemon, and compare with the index."""
    put(store, b"k", b"v")
    store.flush()
    stores.crash(store)
    monkeypatch.setattr(identity_module, "_pid_namespace", lambda: 4242)
    disk = FullDisk(monkeypatch)
    store = stores.open()
    refused(store)
    disk.make_room(store)
    assert store._index.meta(b"pid_ns") == (4242).to_bytes(8, "big")
    put(store, b"k", b"w")
    store.flush()
    assert value(stores.reopen(store), b"k") == b"w"


@pytest.mark.parametrize("stopped", ["killed", "stopped", "with room at last"])
def test_a_new_actor_that_found_no_room_never_wrote(
    stores: Stores, store: Store, stopped: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one before may have lost a tail: no later start goes back to it."""
    put(store, b"k", b"v")
    store.flush()
    applied(store)
    stores.crash(store)
    before = store.actor
    here = identity_module.surroundings
    monkeypatch.setattr(
        identity_module, "surroundings", lambda data: here(data)._replace(boot_id=b"another")
    )
    disk = FullDisk(monkeypatch)
    store = stores.open()
    first = store.actor
    assert first != before
    refused(store)
    if stopped == "with room at last":
        disk.make_room(store)
        put(store, b"k", b"w")
        assert not store.close()
    elif stopped == "stopped":
        assert "could not be marked as cleanly stopped" in store.close()
    else:
        stores.crash(store)
    disk.full = False
    store = stores.open()
    assert (store.actor == first) == (stopped == "with room at last")
    assert store.actor != before
    assert set(store.vv) == ({before, first} if store.actor == first else {before})


def test_a_renewed_actor_writes_once_there_is_room_for_it(
    stores: Stores, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, b"k", b"v")
    store.flush()
    applied(store)
    before, hlc = store.actor, store.vv[store.actor]
    disk = FullDisk(monkeypatch)
    assert store._admission.credit, "a write would have been let in without a look"
    assert store.renew_actor(os.urandom) == before
    actor = store.actor
    refused(store)
    assert store.head == (0, CHAIN_START)
    disk.make_room(store)
    record = put(store, b"k", b"w")
    store.flush()
    assert (record.actor, record.prev_hlc) == (actor, 0)
    assert store.head == (record.hlc, chain_next(CHAIN_START, record_hash(store.last_raw)))
    store = stores.reopen(store)
    assert (store.actor, store.vv) == (actor, {before: hlc, actor: record.hlc})


def test_a_renewed_actor_that_the_disk_fails_ends_the_process(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[StoreFailed] = []
    store.on_failed = told.append
    put(store, b"k", b"v")
    store.flush()
    applied(store)
    disk = FullDisk(monkeypatch, errno.EIO)
    monkeypatch.setattr(Index, "disk_free", lambda index: 1 << 30)
    store.renew_actor(os.urandom)
    with pytest.raises(Full):
        put(store, b"k", b"w")
    deadline = time.monotonic() + 5
    while not told:
        assert time.monotonic() < deadline
        store.look_after()
        time.sleep(0.005)
    assert "applying the log to the index failed" in str(told[0])
    assert disk.full


# Damage in the index


def damage(store: Store, key: bytes) -> None:
    store.close()
    index = Index(store._path / "index", 16 << 20)
    ((name, sealed),) = index.rows(key + b"\0")
    index.write([(name, sealed[:-1] + bytes([sealed[-1] ^ 1]))], {})
    index.close()


def test_a_damaged_row_is_never_served_and_a_neighbours_repairs_it(
    stores: Stores, store: Store
) -> None:
    put(store, b"k", b"v")
    put(store, b"other", b"v")
    store.flush()
    ops = store.scan_rows(b"", 1 << 20)
    damage(store, b"k")
    store = stores.open()
    # A scrub may have found it first.
    with pytest.raises(
        CorruptData, match=r"1 stored rows of key b'k' fail|rows were lost to damage"
    ):
        store.key_rows(b"k")
    assert value(store, b"other") == b"v"
    assert [op.row_key for op in store.scan_rows(b"", 1 << 20)] == [row_key(b"other", VALUE)]
    assert store.corrupt_rows > 0
    store.accept_rows(ops, {})
    store.flush()
    assert value(store, b"k") == b"v"
    applied(store)
    store = stores.reopen(store, clean=True)
    assert value(store, b"k") == b"v"
