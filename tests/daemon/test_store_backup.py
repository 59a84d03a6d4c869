"""Backups: consistent while the store is written, whole or refused, another store afterwards."""

from __future__ import annotations

import os
import random
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_kit import NOW, Stores, applied, brief, count, incr, put, root_of, value

from roost_crdt.errors import BadRequest, ConfigError, CorruptData, Unavailable
from roost_crdt.logformat import KIND_META, KIND_OUTBOX, KIND_SESSION, KIND_SPEND
from roost_crdt.record import decode_record
from roost_crdt.rows.layout import row_key
from roostd.index import Index
from roostd.log import READ_SEGMENTS
from roostd.store import RESTORED, Store, StoreLocked, backup, backupformat, check, restore
from roostd.store.backupformat import ChunkReader, encode_chunk
from roostd.store.restoring import verify_backup

ABOUT = {"node": "eu-1"}


@pytest.fixture
def store(stores: Stores) -> Store:
    """Keys of two types and pairs of several kinds, some applied, some only in the log."""
    store = stores.open()
    for number in range(40):
        put(store, b"k:%02d" % number, b"%d" % number * 50)
        incr(store, b"c", number)
        store.put(KIND_SESSION, {b"x\0%02d" % number: b"s" * 100})
        store.put(KIND_SPEND, {b"g": b"%d" % number})
    store.put(KIND_META, {b"chain:us-1": b"c", b"policies": b"[p]"})
    store.flush()
    applied(store)
    return store


def back_up(
    store: Store,
    file: Path,
    between: Callable[[int], None] = lambda _: None,
    chunk_bytes: int = 2_000,
) -> list[bytes]:
    """Write a backup in small chunks; the cursors. `between` gets the number of each chunk."""
    before, backup.CHUNK_BYTES = backup.CHUNK_BYTES, chunk_bytes
    cursors = [b""]
    try:
        with file.open("wb") as out:
            number = 0
            while True:
                page = store.backup(cursors[-1], ABOUT, NOW, b"i" * 16)
                out.write(page.chunk)
                if not page.cursor:
                    return cursors
                if not page.chunk:
                    applied(store)
                cursors.append(page.cursor)
                between(number)
                number += 1
    finally:
        backup.CHUNK_BYTES = before


def dump(store: Store) -> dict[Any, Any]:
    """Everything that a store shows but its own names."""
    kinds = {
        kind: store.scan(kind, limit=100_000) for kind in (KIND_SESSION, KIND_SPEND, KIND_OUTBOX)
    }
    rows = {op.row_key: (op.type, op.body) for op in store.scan_rows(b"", 1 << 30)}
    return {"rows": rows, "vv": dict(store.vv), "digest": root_of(store), **kinds}


def test_a_restored_store_has_the_same_state_and_other_names(
    stores: Stores, store: Store, tmp_path: Path
) -> None:
    back_up(store, tmp_path / "f")
    told: list[tuple[str, int, int]] = []
    done = restore(
        tmp_path / "f",
        tmp_path / "b",
        random_bytes=os.urandom,
        progress=lambda what, at, of: told.append((what, at, of)),
    )
    assert done.warnings == []
    assert done.verified.head.about == ABOUT
    assert done.verified.end.digest == store.digest(NOW)[1]
    size = (tmp_path / "f").stat().st_size
    totals = {"checking": size, "restoring": size, "digests": done.verified.end.rows}
    assert {what: of for what, _, of in told} == totals
    assert {what: at for what, at, _ in told} == totals
    again = stores.open("b")
    assert dump(again) == dump(store)
    assert root_of(again) == root_of(store) == again.digest(NOW)[1]
    assert again.store_id == done.store_id != store.store_id
    assert again.actor != store.actor
    assert again.head == (0, bytes(16))
    assert again.get(KIND_META, b"chain:us-1") == b"c"
    assert again.get(KIND_META, RESTORED) == msgspec.msgpack.encode([])
    assert not again.recovery.created
    # It goes on as another actor; what the old one wrote since comes as a stranger's.
    incr(again, b"c", 5)
    put(store, b"k:00", b"later")
    raw = store.last_raw
    assert again.accept(raw, decode_record(raw, body_bytes_max=len(raw)))
    again.flush()
    assert count(again, b"c") == sum(range(40)) + 5
    assert value(again, b"k:00") == b"later"
    again.close()
    assert check(tmp_path / "b").problems == []


@pytest.mark.parametrize("chunk_bytes", [500, 4_000, 1 << 20])
def test_what_is_written_meanwhile_is_in_it_up_to_its_end(
    stores: Stores, store: Store, tmp_path: Path, chunk_bytes: int
) -> None:
    """Writes, drops and deletes before and behind the scan; its end is one seq of all of them."""

    dumps = {store.durable_seq: dump(store)}

    def between(number: int) -> None:
        if number > 120:
            return
        put(store, b"k:%02d" % (number * 7 % 40), b"new %d" % number)
        incr(store, b"c")
        store.put(KIND_SESSION, {b"x\0%02d" % (number * 11 % 40): None if number % 3 else b"back"})
        store.put(KIND_SPEND, {b"g": b"%d" % number, b"h:%d" % number: b"h"})
        if number % 5 == 0:
            name = row_key(b"k:%02d" % (number * 3 % 40), b"\x02")
            store.drop_rows([name])
        store.flush()
        dumps[store.durable_seq] = dump(store)
        if number % 2:
            applied(store)

    back_up(store, tmp_path / "f", between, chunk_bytes)
    end = verify_backup(tmp_path / "f").end
    assert end.digest == dumps[end.seq]["digest"]
    assert restore(tmp_path / "f", tmp_path / "b", random_bytes=os.urandom).warnings == []
    assert dump(stores.open("b")) == dumps[end.seq]
    assert end.seq > min(dumps)


@settings(max_examples=8, deadline=None)
@given(number=st.integers(0, 1 << 32))
def test_any_interleaving_of_writes_applies_and_chunks(
    tmp_path_factory: pytest.TempPathFactory, number: int
) -> None:
    base, seed = tmp_path_factory.mktemp("any"), random.Random(number)
    stores = Stores(base)
    store = stores.open()

    dumps: dict[int, Any] = {}

    def act(_: int = 0) -> None:
        for _ in range(seed.randrange(4)):
            name = b"k:%d" % seed.randrange(12)
            match seed.randrange(6):
                case 0:
                    incr(store, b"c%d" % seed.randrange(3))
                case 1 | 2:
                    put(store, name, os.urandom(seed.randrange(200)))
                case 3:
                    store.drop_rows([row_key(name, b"\x02")])
                case 4:
                    store.put(KIND_SESSION, {name: os.urandom(9) if seed.randrange(3) else None})
                case _:
                    store.put(KIND_OUTBOX, {name: os.urandom(9)})
        store.flush()
        dumps[store.durable_seq] = dump(store)
        if seed.randrange(2):
            applied(store)

    for _ in range(20):
        act()
    back_up(store, base / "f", lambda n: act() if n < 25 else None, 1 + seed.randrange(400))
    done = restore(base / "f", base / "b", random_bytes=os.urandom)
    assert done.warnings == []
    assert dump(stores.open("b")) == dumps[done.verified.end.seq]
    for opened in stores.opened:
        opened.close(clean=False)


def test_the_index_does_not_grow_by_a_backup(store: Store, tmp_path: Path) -> None:
    """No transaction outlives a chunk, so what writers free is used again."""

    def churn(number: int) -> None:
        for _ in range(3):
            put(store, b"k:%02d" % (number % 40), os.urandom(2_000))
            brief(store.flush)
        applied(store)
        assert store._index.stuck_readers(behind=1) == []

    for number in range(40):
        churn(number)
    before = store._index.file_bytes()
    back_up(store, tmp_path / "f", lambda n: churn(n) if n < 30 else None, 1_500)
    assert store._index.file_bytes() <= before + (64 << 12)


def test_an_answer_that_was_lost_is_asked_for_again(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "CHUNK_BYTES", 2_000)
    cursors = back_up(store, tmp_path / "f")
    again = [store.backup(cursor, ABOUT, NOW, b"i" * 16) for cursor in cursors]
    assert b"".join(page.chunk for page in again) == (tmp_path / "f").read_bytes()
    assert len(cursors) > 5


def test_a_cursor_of_another_store_and_no_cursor_are_refused(
    stores: Stores, store: Store, tmp_path: Path
) -> None:
    cursor = back_up(store, tmp_path / "f")[3]
    other = stores.open("other")
    with pytest.raises(BadRequest, match="another store"):
        other.backup(cursor, ABOUT, NOW, b"")
    with pytest.raises(BadRequest, match="not the cursor"):
        store.backup(b"\xc1", ABOUT, NOW, b"")
    with pytest.raises(BadRequest, match="not the cursor"):
        store.backup(cursor[:-3], ABOUT, NOW, b"")


def test_entries_that_are_not_retained_any_more_end_a_backup(
    stores: Stores, tmp_path: Path
) -> None:
    store = stores.open(size_max=1 << 20, log_retention=1)
    put(store, b"k", b"v")
    store.flush()
    applied(store)
    page = store.backup(b"", ABOUT, NOW, b"i" * 16)
    number = 0
    while store._log.first_seq() <= 3:
        brief(lambda: put(store, b"k", os.urandom(3_000)))
        brief(store.flush)
        applied(store)
        number += 1
        assert number < 1_000
    page = store.backup(page.cursor, ABOUT, NOW, b"")
    with pytest.raises(Unavailable, match=r"entry 2 is not retained any more.*begin it again"):
        store.backup(page.cursor, ABOUT, NOW, b"")


def test_segments_stay_for_a_backup_that_reads_them_and_no_longer(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though nothing is to be retained: else whoever stands in one as it ends is outrun."""
    store = stores.open(size_max=1 << 20, log_retention=1)
    segment = store._log.segment_bytes
    page, number = store.backup(b"", ABOUT, NOW, b"i" * 16), 0
    while page.cursor and store._log.first_seq() < 200:
        for _ in range(10):
            brief(lambda: put(store, b"k", os.urandom(3_000)))
            brief(store.flush)
        applied(store)
        assert store.log_bytes() <= (READ_SEGMENTS + 2) * segment, "one is made ahead"
        page = store.backup(page.cursor, ABOUT, NOW, b"")
        number += 1
    assert number > 2 * READ_SEGMENTS
    monkeypatch.setattr("roostd.log._READ_PAUSE_S", 0)
    store.neighbours_hold(None)
    assert store._log.first_seq() > 200
    assert len(store._log._segments) == 1


def test_a_damaged_group_is_not_taken_for_one_that_is_not_retained(stores: Stores) -> None:
    store = stores.open()
    page = store.backup(b"", ABOUT, NOW, b"i" * 16)
    for number in range(3):
        put(store, b"k", b"%d" % number * 50)
        store.flush()
    applied(store)
    (segment,) = (store._path / "log").glob("*1.seg")
    raw = segment.read_bytes()
    segment.write_bytes(raw.replace(b"0" * 50, b"1" * 50))
    page = store.backup(page.cursor, ABOUT, NOW, b"")
    with pytest.raises(CorruptData, match=r"the group at byte 64 is damaged.*--repair"):
        store.backup(page.cursor, ABOUT, NOW, b"")


def test_a_damaged_row_is_not_left_out_in_silence(
    stores: Stores, store: Store, tmp_path: Path
) -> None:
    name = row_key(b"k:07", b"\x02")
    store.close()
    index = Index(store._path / "index", 16 << 20)
    sealed = index.get_rows([name])[name]
    index.write([(name, sealed[:-1] + bytes([sealed[-1] ^ 1]))], {})
    index.close()
    # The second, if the scrub of the start was there first.
    with pytest.raises(CorruptData, match=r"k:07|rows of \d+ buckets .* a backup would lack some"):
        back_up(stores.open(), tmp_path / "f")


def test_what_a_scrub_has_taken_out_is_not_left_out_in_silence(
    stores: Stores, store: Store, tmp_path: Path
) -> None:
    page = store.backup(b"", ABOUT, NOW, b"i" * 16)
    store.suspects.buckets = frozenset((1, 2))
    for cursor in (b"", page.cursor):
        with pytest.raises(CorruptData, match=r"rows of 2 buckets .* a backup would lack some"):
            store.backup(cursor, ABOUT, NOW, b"i" * 16)
    store.suspects.buckets = frozenset()
    # Without a scrub only the digest tells.
    name = store.scan_rows(b"", 1)[0].row_key
    store._index.write([(name, None)], {})
    back_up(store, tmp_path / "f")
    (warning,) = restore(tmp_path / "f", tmp_path / "b", random_bytes=os.urandom).warnings
    assert "that one had lost rows" in warning
    assert stores.open("b").vv == {}


def test_writers_that_are_always_faster_end_in_a_backup_without_a_digest(
    stores: Stores, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "_CATCH_UP_CHUNKS", 3)

    def between(_: int) -> None:
        incr(store, b"c")
        store.flush()
        applied(store)

    back_up(store, tmp_path / "f", between, 300)
    end = verify_backup(tmp_path / "f").end
    assert end.digest is None
    assert restore(tmp_path / "f", tmp_path / "b", random_bytes=os.urandom).warnings == []
    held = count(stores.open("b"), b"c")
    assert held is not None
    assert sum(range(40)) < held < (count(store, b"c") or 0)


# Files


@pytest.fixture
def file(store: Store, tmp_path: Path) -> Path:
    back_up(store, tmp_path / "f")
    return tmp_path / "f"


def refuse(file: Path, directory: Path, match: str) -> None:
    with pytest.raises(CorruptData, match=match):
        restore(file, directory, random_bytes=os.urandom)
    assert not directory.exists()


def test_a_truncated_file_is_refused_wherever_it_ends(file: Path, tmp_path: Path) -> None:
    raw = file.read_bytes()
    with file.open("rb") as stream:
        ends = [chunk.end for chunk in ChunkReader(stream, "f")]
    cuts = {0, 5, 11, 12, *ends[:-1], *(end - 1 for end in ends), *(end + 7 for end in ends[:-1])}
    for cut in sorted(cuts):
        (tmp_path / "cut").write_bytes(raw[:cut])
        refuse(tmp_path / "cut", tmp_path / "b", r"cut: (chunk \d+ at byte|not a backup)")


def test_a_flipped_bit_is_refused_with_its_place(file: Path, tmp_path: Path) -> None:
    raw = file.read_bytes()
    with file.open("rb") as stream:
        chunks = list(ChunkReader(stream, "f"))
    for at in range(12, len(raw), max(1, len(raw) // 400)):
        (tmp_path / "bad").write_bytes(raw[:at] + bytes([raw[at] ^ 4]) + raw[at + 1 :])
        chunk = next(chunk for chunk in chunks if chunk.offset <= at < chunk.end)
        refuse(tmp_path / "bad", tmp_path / "b", f"chunk {chunk.number} at byte {chunk.offset}:")


def test_chunks_that_are_missing_swapped_or_of_another_backup_are_refused(
    store: Store, file: Path, tmp_path: Path
) -> None:
    raw = file.read_bytes()
    with file.open("rb") as stream:
        chunks = list(ChunkReader(stream, "f"))
    parts = [raw[chunk.offset : chunk.end] for chunk in chunks]
    start = raw[:12]
    incr(store, b"c")
    store.flush()
    applied(store)
    back_up(store, tmp_path / "g")
    other = (tmp_path / "g").read_bytes()
    with (tmp_path / "g").open("rb") as stream:
        others = [other[chunk.offset : chunk.end] for chunk in ChunkReader(stream, "g")]
    for mixed in (
        [*parts[:3], *parts[4:]],
        [*parts[:3], parts[4], parts[3], *parts[5:]],
        [*parts[:3], others[3], *parts[4:]],
        [*parts[:3], *others[3:]],
        [*parts, b"x"],
        [*parts, parts[-1]],
        [parts[0], parts[-1]],
    ):
        (tmp_path / "bad").write_bytes(start + b"".join(mixed))
        refuse(tmp_path / "bad", tmp_path / "b", r"bad: chunk \d+ at byte \d+: ")


def test_a_file_that_is_no_backup_or_of_another_release(file: Path, tmp_path: Path) -> None:
    raw = file.read_bytes()
    (tmp_path / "x").write_bytes(b"PK\x03\x04" * 10)
    refuse(tmp_path / "x", tmp_path / "b", "not a backup")
    (tmp_path / "x").write_bytes(raw[:8] + struct.pack(">I", 2) + raw[12:])
    refuse(tmp_path / "x", tmp_path / "b", "format 2, this release reads 1")
    with file.open("rb") as stream:
        head = next(iter(ChunkReader(stream, "f"))).content
    newer = msgspec.structs.replace(head, schema=9)
    one, chain = encode_chunk(0, backupformat.HEAD, newer, backupformat.CHAIN_START)
    end = backupformat.End(newer.seq, NOW, 0, 0, 0, None)
    (tmp_path / "x").write_bytes(one + encode_chunk(1, backupformat.END, end, chain)[0])
    with pytest.raises(ConfigError, match="schema 9, this release reads 2"):
        restore(tmp_path / "x", tmp_path / "b", random_bytes=os.urandom)


@pytest.mark.parametrize(
    ("kind", "content", "match"),
    [
        (backupformat.ROWS, [(b"k\0\x02", b"not sealed")], "checksum"),
        (backupformat.ROWS, [(b"no part", b"x" * 9)], "checksum"),
        (backupformat.PAIRS, backupformat.KindPairs(99, [(b"k", b"v")]), "no store holds"),
        (backupformat.PAIRS, backupformat.KindPairs(KIND_SPEND, [(b"", b"v")]), "no store holds"),
        (backupformat.ENTRIES, [(7, 1, b"")], "entry 7 where 6 is due"),
        (backupformat.ENTRIES, [(6, 1, b"\xc1")], "entry 6 cannot be read"),
        (backupformat.ENTRIES, [(6, 7, b"\xc1")], "entry 6 cannot be read"),
        (backupformat.ENTRIES, [(6, 8, b"\xc1")], "entry 6 cannot be read"),
        (backupformat.ENTRIES, [(6, 3, b"\xc1")], "entry 6 cannot be read"),
        (backupformat.ENTRIES, [(6, 77, b"")], "its kind is 77"),
        (backupformat.END, backupformat.End(5, NOW, 1, 0, 0, None), "it counts"),
        (backupformat.END, backupformat.End(6, NOW, 0, 0, 0, None), "it counts"),
        (backupformat.END, [1, 2], "another shape"),
    ],
)
def test_whole_chunks_with_impossible_content(
    tmp_path: Path, kind: int, content: Any, match: str
) -> None:
    head = backupformat.Head(b"i" * 16, 1, b"s" * 16, 7, 5, {}, NOW, {})
    first, chain = encode_chunk(0, backupformat.HEAD, head, backupformat.CHAIN_START)
    second, chain = encode_chunk(1, kind, content, chain)
    end = backupformat.End(5, NOW, 0, 0, 0, None)
    third = encode_chunk(2, backupformat.END, end, chain)[0] if kind != backupformat.END else b""
    (tmp_path / "x").write_bytes(first + second + third)
    refuse(tmp_path / "x", tmp_path / "b", f"chunk 1 at byte {len(first)}: .*{match}")


# Directories


def test_only_an_empty_directory_takes_a_restore(
    stores: Stores, file: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadRequest, match="not empty"):
        restore(file, tmp_path / "a", random_bytes=os.urandom)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes").write_text("mine")
    with pytest.raises(BadRequest, match=r"not empty \(notes\)"):
        restore(file, tmp_path / "b", random_bytes=os.urandom)
    assert (tmp_path / "b" / "notes").read_text() == "mine"
    (tmp_path / "b" / "notes").unlink()
    restore(file, tmp_path / "b", random_bytes=os.urandom)
    with pytest.raises(BadRequest, match="not empty"):
        restore(file, tmp_path / "b", random_bytes=os.urandom)


def test_a_restore_that_did_not_finish_is_no_store_and_is_begun_again(
    stores: Stores, store: Store, file: Path, tmp_path: Path
) -> None:
    class Killed(BaseException):
        pass

    places = {"n": 0}

    def run(stop: int) -> bool:
        places["n"] = 0

        def progress(what: str, at: int, of: int) -> None:
            places["n"] += what != "checking"
            if places["n"] == stop:
                raise Killed

        try:
            restore(file, tmp_path / "b", random_bytes=os.urandom, progress=progress)
        except Killed:
            return False
        return True

    stop = 1
    while not run(stop):
        with pytest.raises(CorruptData, match="did not finish"):
            check(tmp_path / "b")
        with pytest.raises(CorruptData, match="did not finish"):
            stores.open("b")
        stop += 5
    assert stop > 11
    assert dump(stores.open("b")) == dump(store)


def test_two_restores_do_not_meet(stores: Stores, file: Path, tmp_path: Path) -> None:
    def progress(what: str, at: int, of: int) -> None:
        if what == "digests":
            with pytest.raises(StoreLocked):
                restore(file, tmp_path / "b", random_bytes=os.urandom)

    restore(file, tmp_path / "b", random_bytes=os.urandom, progress=progress)
    assert stores.open("b").vv


def test_what_a_full_disk_keeps_out_of_the_index_is_in_a_backup(
    stores: Stores, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: Any) -> None:
        raise lmdb.MapFullError("mdb_put: MDB_MAP_FULL")

    monkeypatch.setattr(Index, "write", no_space)
    put(store, b"k:00", b"durable")
    incr(store, b"c", 7)
    store.flush()
    while not store.full():
        time.sleep(0.005)
    monkeypatch.setitem(globals(), "applied", lambda _: pytest.fail("the index is waited for"))
    back_up(store, tmp_path / "f")
    monkeypatch.undo()
    done = restore(tmp_path / "f", tmp_path / "b", random_bytes=os.urandom)
    assert done.verified.end.seq == store.durable_seq
    again = stores.open("b")
    assert value(again, b"k:00") == b"durable"
    assert count(again, b"c") == sum(range(40)) + 7
