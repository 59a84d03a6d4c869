"""Checking and repairing a store: damage is named, and what can be read is kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from store_kit import NOW, Stores, applied, count, incr, put, root_of, value

from roost_crdt.errors import CorruptData
from roost_crdt.logformat import KIND_META, KIND_SESSION, KIND_SPEND, SEGMENT_HEADER_BYTES
from roost_crdt.record import decode_record
from roostd import pages
from roostd.index import Index
from roostd.sealing import sealed_pairs
from roostd.store import Store, StoreLocked, check, repair


@pytest.fixture
def store(stores: Stores) -> Store:
    """20 writes, the last 10 only in the log."""
    store = stores.open()
    write(store, 0, 10)
    store = stores.reopen(store, clean=True)
    # From here on nothing is applied any more.
    store._applier.stop()
    write(store, 10, 20)
    return store


def write(store: Store, first: int, last: int) -> None:
    for number in range(first, last):
        put(store, b"k:%02d" % number, b"%d" % number * 20)
        incr(store, b"c")
        store.put(KIND_SPEND, {b"g": b"%d" % number, b"g%02d" % number: b"%d spent" % number})
        store.flush()


def entries_at(store: Store) -> tuple[Path, list[int]]:
    """The segment in use and where each of its groups begins."""
    (path,) = (store._path / "log").glob("*1.seg")
    mark = store._log._secret.mark.to_bytes(4, "big")
    raw, at, found = path.read_bytes(), SEGMENT_HEADER_BYTES, []
    while (at := raw.find(mark, at + 1)) >= 0:
        found.append(at - 8)
    return path, found


def flip(path: Path, offset: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[offset] ^= 1
    path.write_bytes(raw)


def in_index(store: Store, change: Callable[[Index], None]) -> None:
    index = Index(store._path / "index", 16 << 20)
    change(index)
    index.close()


def test_a_sound_store_has_no_problems(stores: Stores, store: Store) -> None:
    with pytest.raises(StoreLocked):
        check(store._path)
    store.close(clean=False)
    before = {path: path.read_bytes() for path in store._path.rglob("*.seg")}
    findings = check(store._path)
    assert findings.problems == []
    assert (findings.rows, findings.entries) == (11, 60)
    assert repair(store._path, os.urandom).done == []
    assert {path: path.read_bytes() for path in store._path.rglob("*.seg")} == before
    again = stores.open()
    assert (again.store_id, again.actor) == (store.store_id, store.actor)
    assert count(again, b"c") == 20


def test_a_torn_tail_is_no_problem_and_is_left_alone(stores: Stores, store: Store) -> None:
    path, groups = entries_at(store)
    store.close(clean=False)
    flip(path, groups[-1] + 70)
    torn = path.read_bytes()
    assert check(store._path).problems == []
    assert path.read_bytes() == torn
    assert count(stores.open(), b"c") == 19


def test_damage_in_the_log_is_repaired_from_what_is_around_it(stores: Stores, store: Store) -> None:
    path, groups = entries_at(store)
    vv = dict(store.vv)
    raws = store.records_after(store.actor, 0, 1 << 20) or []
    store.close(clean=False)
    flip(path, groups[14] + 70)
    with pytest.raises(CorruptData, match="roost check DIR --repair"):
        stores.open()
    (problem,) = check(store._path).problems
    assert f"between bytes {groups[14]} and {groups[15]}; seq 43 was expected, 46" in problem
    repaired = repair(store._path, os.urandom)
    assert repaired.findings.problems == [problem]
    assert "27 entries of the log above seq 30" in repaired.done[0]
    assert (store._path / "log.damaged-1").is_dir()
    assert check(store._path).problems == []
    again = stores.open()
    assert again.store_id != store.store_id
    assert again.actor != store.actor
    alive = again.keys(b"k:", b"", 100, NOW)
    assert alive == [b"k:%02d" % n for n in range(20) if n != 14]
    assert again.get(KIND_SPEND, b"g") == b"19"
    # Counter rows are whole states, so a later one makes up for the lost one.
    assert count(again, b"c") == 20
    # It vouches only for what came before the gap; neighbours bring the rest.
    held = again.vv[store.actor]
    assert decode_record(raws[27]).hlc == held < vv[store.actor]
    for raw in raws[28:]:
        assert again.accept(raw, decode_record(raw))
    again.flush()
    applied(again)
    assert value(again, b"k:14") == b"14" * 20
    assert again.vv[store.actor] == vv[store.actor]
    assert again.digest(NOW)[1] == root_of(again)


def spoil_a_row(store: Store) -> None:
    def damage(index: Index) -> None:
        ((name, sealed),) = index.rows(b"k:03\0")
        index.write([(name, sealed[:-1] + b"!")], {})

    in_index(store, damage)


def test_a_damaged_row_comes_back_from_a_log_that_still_has_it(
    stores: Stores, store: Store
) -> None:
    vv = dict(store.vv)
    store.close(clean=False)
    spoil_a_row(store)
    (problem,) = check(store._path).problems
    assert "k:03" in problem
    assert "checksum" in problem
    done = repair(store._path, os.urandom).done
    assert done[0] == "1 damaged rows are gone"
    assert done[1] == "60 entries of the log above seq 0 were put into the index"
    assert check(store._path).problems == []
    again = stores.open()
    assert again.vv == vv
    assert len(again.keys(b"k:", b"", 100, NOW)) == 20
    assert count(again, b"c") == 20
    assert again.get(KIND_SPEND, b"g") == b"19"
    assert again.digest(NOW)[1] == root_of(again)


@pytest.mark.parametrize("kind", [KIND_META, KIND_SPEND])
def test_a_pair_that_a_page_shows_no_more_comes_back_from_the_log(
    stores: Stores, kind: int
) -> None:
    """One node of a leaf that cannot be read: the index is put together anew without that entry,
    with all rows, so that nothing but its counts tells that something is missing."""
    store = stores.open()
    for number in range(20):
        put(store, b"k:%02d" % number, b"v")
        store.put(kind, {b"told:%02d" % number: b"%d told" % number})
        store.flush()
    applied(store)
    vv = dict(store.vv)
    store.close()
    damage_node(store._path / "index" / "data.mdb", kind, b"told:03", b"3 told")
    (problem,) = check(store._path).problems
    assert "reaches beyond it" in problem
    done = repair(store._path, os.urandom).done
    assert "40 entries of the log above seq 0 were put into the index" in done
    assert check(store._path).problems == []
    again = stores.open()
    told = [again.get(kind, b"told:%02d" % number) for number in range(20)]
    assert told == [b"%d told" % number for number in range(20)]
    assert again.vv == vv, "no row was lost"


def damage_node(data: Path, kind: int, key: bytes, value: bytes) -> None:
    """Spoil the header of the one node in use that holds a pair: flags that LMDB does not know."""
    ((_, sealed),) = sealed_pairs(kind, [(key, value)])
    entry = key + (sealed or b"")
    raw, free = bytearray(data.read_bytes()), pages.free_pages(data)
    found: list[int] = []
    with pages.PageFile(data) as file:
        for page in set(range(2, file.page_count)).difference(free):
            whole = file.read(page)
            if entry in whole and whole[10] == pages.LEAF:
                nodes = file.places(page, whole, pages.LEAF)
                found += [
                    page * pages.PAGE_BYTES + at for at in nodes if whole.startswith(entry, at + 8)
                ]
    (node,) = found
    raw[node + 4] |= 4
    data.write_bytes(raw)


def test_a_damaged_row_is_taken_out_and_nothing_is_vouched_for(
    stores: Stores, store: Store
) -> None:
    path, groups = entries_at(store)
    store.close(clean=False)
    spoil_a_row(store)
    flip(path, groups[3] + 70)  # the log has a gap below what is applied
    done = repair(store._path, os.urandom).done
    assert done[1] == "30 entries of the log above seq 30 were put into the index"
    again = stores.open()
    assert again.vv == {}
    assert len(again.keys(b"k:", b"", 100, NOW)) == 19
    assert again.digest(NOW)[1] == root_of(again)


def test_wrong_digests_are_found_and_summed_anew(stores: Stores, store: Store) -> None:
    store.close(clean=False)
    in_index(
        store, lambda index: index.write([], {KIND_META: [(b"digest/00", bytes(1_023) + b"x")]})
    )
    findings = check(store._path)
    assert findings.digest_differs
    repair(store._path, os.urandom)
    again = stores.open()
    assert again.digest(NOW)[1] == root_of(again)
    assert again.vv[store.actor] == store.vv[store.actor]
    assert count(again, b"c") == 20


@pytest.mark.parametrize("gone", ["removed", "noise"])
def test_a_lost_index_is_rebuilt_from_a_whole_log(stores: Stores, store: Store, gone: str) -> None:
    store.close(clean=False)
    shutil.rmtree(store._path / "index")
    if gone == "noise":
        (store._path / "index").mkdir()
        (store._path / "index" / "data.mdb").write_bytes(b"noise" * 5_000)
    assert check(store._path).problems
    done = repair(store._path, os.urandom).done
    assert any("60 entries of the log above seq 0" in line for line in done)
    assert check(store._path).problems == []
    again = stores.open()
    assert count(again, b"c") == 20
    assert len(again.keys(b"k:", b"", 100, NOW)) == 20
    assert again.get(KIND_SPEND, b"g") == b"19"
    assert again.vv == store.vv
    assert again.digest(NOW)[1] == root_of(again)


def test_a_lost_log_leaves_what_the_index_holds(stores: Stores, store: Store) -> None:
    store.close(clean=False)
    shutil.rmtree(store._path / "log")
    (store._path / "log").mkdir()
    assert "the log is gone" in check(store._path).problems[0]
    repair(store._path, os.urandom)
    again = stores.open()
    assert count(again, b"c") == 10
    assert 0 < again.vv[store.actor] < store.vv[store.actor]


def test_a_repair_that_was_cut_short_is_done_again(
    stores: Stores, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, groups = entries_at(store)
    store.close(clean=False)
    flip(path, groups[14] + 70)

    def killed(*_: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr("roostd.store.repairing.create_identity", killed)
    with pytest.raises(KeyboardInterrupt):
        repair(store._path, os.urandom)
    monkeypatch.undo()
    repair(store._path, os.urandom)
    assert check(store._path).problems == []
    again = stores.open()
    assert count(again, b"c") == 20
    put(again, b"new", b"v")
    again.put(KIND_SESSION, {b"s": b"v"})
    again.flush()
    assert value(stores.reopen(again), b"new") == b"v"


class Killed(BaseException):
    """The process is gone; Index.write did not return."""


@pytest.mark.parametrize("what", ["a row", "a pair", "a page"])
def test_a_killed_repair_loses_nothing_that_the_log_holds(
    stores: Stores, store: Store, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each of its writes. In between the store is none: damage is gone from it,
    and what it has lost is not back yet."""
    vv = dict(store.vv)
    store.close(clean=False)
    sound, write = stores.base / "sound", Index.write
    if what == "a row":
        spoil_a_row(store)
    elif what == "a pair":
        data = store._path / "index" / "data.mdb"
        ((_, sealed),) = sealed_pairs(KIND_SPEND, [(b"g03", b"3 spent")])
        assert sealed in data.read_bytes()
        data.write_bytes(data.read_bytes().replace(sealed or b"", b"turned bits"))
    else:
        flip(store._path / "index" / "data.mdb", 16)
    shutil.copytree(store._path, sound)
    for moment in range(20):
        shutil.rmtree(store._path)
        shutil.copytree(sound, store._path)
        calls = iter(range(100))

        def killed(*args: Any, at: int = moment, calls: Any = calls) -> None:
            write(*args)
            if next(calls) == at:
                raise Killed

        monkeypatch.setattr(Index, "write", killed)
        with suppress(Killed):
            repair(store._path, os.urandom)
            break
        monkeypatch.undo()
        if (store._path / "repairing").exists():
            with pytest.raises(CorruptData, match="a repair of it did not finish; repair again"):
                stores.open()
            with pytest.raises(CorruptData, match="did not finish"):
                check(store._path)
        assert repair(store._path, os.urandom).done
        assert check(store._path).problems == []
        again = stores.open()
        assert len(again.keys(b"k:", b"", 100, NOW)) == 20, moment
        assert again.get(KIND_SPEND, b"g") == b"19"
        assert again.get(KIND_SPEND, b"g03") == b"3 spent"
        assert count(again, b"c") == 20
        assert again.vv.items() <= vv.items()
        again.close()
    assert moment >= 4
