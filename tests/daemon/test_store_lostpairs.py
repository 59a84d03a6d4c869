"""Damaged pairs come back from the log; without it they stay refused, or go with their like."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from store_kit import LIMITS, Stores, applied, brief, incr, put, root_of, value

from roost_crdt import logformat
from roost_crdt.errors import CorruptData, Full
from roost_crdt.logformat import KIND_META, KIND_OUTBOX, KIND_SESSION, KIND_SPEND
from roostd import pages, segments
from roostd.index import Index
from roostd.sealing import KIND_NAMES, DamagedPair, sealed_pairs
from roostd.store import Store, check, repair
from roostd.store.applier import Applier
from roostd.store.sums import group_name

LATE = replace(LIMITS, start_check_bytes=0)
"""The start looks at nothing."""


def damage(path: Path, kind: int, *keys: bytes) -> None:
    """Another byte at the end of these values."""
    index = Index(path / "index", 16 << 20)
    stored = dict(index.stored_after(kind, b"", 1 << 20, 1 << 30)[0])
    for key in keys:
        spoilt = stored[key][:-1] + bytes([stored[key][-1] ^ 1])
        index.write_stored({kind: [(key, spoilt)]})
        with pytest.raises(DamagedPair, match=KIND_NAMES[kind].decode()):
            index.get(kind, key)
    index.close()


def settle(store: Store, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline, store.mender.problem
        store.look_after()
        if store.mender.lost.seeking:
            store.mender.lost.step(store.put)
        store.flush()
        time.sleep(0.002)
    store.flush()
    applied(store)


def turn(path: Path, kind: int, key: bytes) -> bytes:
    """Another bit in the name of a pair; its new one."""
    index = Index(path / "index", 16 << 20)
    stored = dict(index.stored_after(kind, b"", 1 << 20, 1 << 30)[0])
    name = key[:-1] + bytes([key[-1] ^ 4])
    index.write_stored({kind: [(key, None), (name, stored[key])]})
    assert index.get(kind, key) is None
    index.close()
    return name


KINDS = (KIND_SESSION, KIND_SPEND, KIND_OUTBOX, KIND_META)


def filled(store: Store) -> None:
    for number in range(20):
        for kind in KINDS:
            items = {b"one": b"%d" % number, b"two:%d" % number: b"x" * 100}
            brief(lambda kind=kind, items=items: store.put(kind, items))
        put(store, b"k:%d" % number, b"v")
        store.flush()
    applied(store)


@pytest.mark.parametrize("limits", [LIMITS, LATE], ids=["at the start", "while it runs"])
def test_they_come_back_from_the_log(stores: Stores, limits: object) -> None:
    store = stores.open()
    filled(store)
    store.close()
    for kind in KINDS:
        damage(store._path, kind, b"one", b"two:7")
    store = stores.open(limits=limits)
    if limits is LATE:
        with pytest.raises(DamagedPair):
            store.get(KIND_SPEND, b"one")
        with pytest.raises(DamagedPair):
            store.scan(KIND_SESSION)
    settle(store, lambda: store.mender.lost.mended == 2 * len(KINDS))
    for kind in KINDS:
        assert store.get(kind, b"one") == b"19", "the newest"
        assert store.get(kind, b"two:7") == b"x" * 100
        assert [key for key, _ in store.scan(kind, b"two:")] == store.names(kind, b"two:")
    assert store.mender.problem == ""
    assert not store.mender.lost.gone
    store.close()
    assert check(store._path).problems == []


def test_a_start_finds_the_name_that_a_pair_had(stores: Stores) -> None:
    """The log does not hold it any more."""
    store = trimmed(stores)
    name = turn(store._path, KIND_SESSION, b"old")
    store = stores.open(size_max=1 << 20, log_retention=64 << 10)
    assert store.get(KIND_SESSION, b"old") == b"value"
    assert store.get(KIND_SESSION, name) is None
    assert store.mender.lost.mended == 1
    assert store.mender.problem == ""


@pytest.mark.parametrize("name", [b"vv", b"head", b"position", b"actor"])
def test_a_store_without_one_of_its_own_names_is_refused_and_repaired(
    stores: Stores, name: bytes
) -> None:
    store = stores.open()
    filled(store)
    store.close()
    turn(store._path, KIND_META, name)
    with pytest.raises(CorruptData, match=f"no {name.decode()} in meta; run: roost check DIR --re"):
        stores.open()
    assert check(store._path).problems
    repair(store._path, os.urandom)
    assert check(store._path).problems == []
    store = stores.open()
    assert value(store, b"k:7") == b"v"
    assert store.get(KIND_SPEND, b"one") == b"19"


def test_a_page_that_hides_pairs_is_refused_and_repaired(stores: Stores) -> None:
    """LMDB would find neither them nor the damage."""
    store = stores.open()
    filled(store)
    store.close()
    data = store._path / "index" / "data.mdb"
    at = leaf_of(data, b"two:7", sealed(KIND_SPEND, b"two:7", b"x" * 100)) * pages.PAGE_BYTES
    raw = bytearray(data.read_bytes())
    raw[at + 18] ^= 0x40  # where the second entry begins
    data.write_bytes(raw)
    with pytest.raises(CorruptData, match=r"page \d+ .*entries of spend are lost; run: roost"):
        stores.open()
    repair(store._path, os.urandom)
    assert check(store._path).problems == []
    store = stores.open()
    for number in range(20):
        assert store.get(KIND_SPEND, b"two:%d" % number) == b"x" * 100


def leaf_of(data: Path, key: bytes, stored: bytes) -> int:
    """The page that holds an entry."""
    free = set(pages.free_pages(data))
    with pages.PageFile(data) as file:
        for page in set(range(2, file.page_count)) - free:
            raw = file.read(page)
            with contextlib.suppress(CorruptData):
                for place in file.places(page, raw, pages.LEAF):
                    if file.leaf(page, raw, place)[:2] == (key, stored):
                        return page
    raise AssertionError(key)


def sealed(kind: int, key: bytes, value: bytes) -> bytes:
    ((_, stored),) = sealed_pairs(kind, [(key, value)])
    assert stored is not None
    return stored


def trimmed(stores: Stores) -> Store:
    """A store whose log has forgotten its first pairs."""
    options = {"size_max": 1 << 20, "log_retention": 64 << 10}
    store = stores.open(**options)
    store.put(KIND_SPEND, {b"l1": b"a", b"l2": b"b", b"v1": b"c", b"i1": b"d", b"witness": b"e"})
    store.put(KIND_SESSION, {b"old": b"value"})
    store.flush()
    for number in range(40):
        brief(lambda n=number: put(store, b"pad:%d" % (n % 4), bytes(20_000)))
        store.flush()
        applied(store)
    assert store._log.first_seq() > 2
    store.close()
    return store


def test_what_the_log_has_forgotten_stays_refused(stores: Stores) -> None:
    store = trimmed(stores)
    damage(store._path, KIND_SESSION, b"old")
    store = stores.open(size_max=1 << 20, log_retention=64 << 10)
    with pytest.raises(DamagedPair, match=r"sessions b'old' fails its checksum; run: roost check"):
        store.get(KIND_SESSION, b"old")
    assert "1 damaged entries are not in the log" in store.mender.problem
    settle(store, lambda: not store.mender.lost.seeking)
    assert list(store.mender.lost.gone) == [(KIND_SESSION, b"old")]
    store.put(KIND_SESSION, {b"old": b"another"})
    store.flush()
    settle(store, lambda: (store.mender.lost.look(), not store.mender.lost.gone)[1])
    assert store.mender.problem == ""


def test_a_start_removes_what_has_to_go_with_it(stores: Stores) -> None:
    """Whoever opens the store says so; the rest stays."""
    store = trimmed(stores)
    damage(store._path, KIND_SPEND, b"v1", b"witness")
    asked = []

    def forget(kind: int, key: bytes) -> tuple[bytes, ...] | None:
        asked.append((kind, key))
        return (b"l",) if key == b"v1" else None

    store = stores.open(size_max=1 << 20, log_retention=64 << 10, forget=forget)
    assert sorted(asked) == [(KIND_SPEND, b"v1"), (KIND_SPEND, b"witness")]
    assert store.names(KIND_SPEND, b"") == [b"i1", b"witness"]
    assert list(store.mender.lost.gone) == [(KIND_SPEND, b"witness")]
    assert store.mender.lost.forgotten == 1


def test_a_newer_value_is_not_taken_back(stores: Stores) -> None:
    """Put while the log is read for the old one."""
    store = stores.open()
    filled(store)
    store.close()
    damage(store._path, KIND_SESSION, b"one")
    store = stores.open(limits=LATE)
    with pytest.raises(DamagedPair):
        store.get(KIND_SESSION, b"one")
    lost = store.mender.lost
    assert lost._begin()
    store.put(KIND_SESSION, {b"one": b"newer"})
    store.flush()
    applied(store)
    while lost.step(store.put):
        pass
    assert store.get(KIND_SESSION, b"one") == b"newer"
    assert lost.mended == 0


def test_a_damaged_log_proves_nothing(stores: Stores) -> None:
    """The newest value may lie where it cannot be read."""
    store = stores.open(size_max=1 << 20)
    filled(store)
    store.close()
    damage(store._path, KIND_SESSION, b"one")
    (segment, *_) = segments.listing(store._path / "log")
    with segment.path.open("r+b") as file:
        file.seek(logformat.SEGMENT_HEADER_BYTES + logformat.GROUP_HEADER_BYTES + 10)
        file.write(b"\xff\xff")
    store = stores.open(size_max=1 << 20)
    with pytest.raises(DamagedPair):
        store.get(KIND_SESSION, b"one")
    assert list(store.mender.lost.gone) == [(KIND_SESSION, b"one")]


def test_a_refused_put_is_tried_again(stores: Stores) -> None:
    store = stores.open()
    filled(store)
    store.close()
    damage(store._path, KIND_SESSION, b"one")
    store = stores.open(limits=LATE)
    with pytest.raises(DamagedPair):
        store.get(KIND_SESSION, b"one")

    def full(*_: object) -> None:
        raise Full("no room")

    lost = store.mender.lost
    with pytest.raises(Full):
        lost.step(full)
    assert lost.seeking
    settle(store, lambda: lost.mended == 1)
    assert store.get(KIND_SESSION, b"one") == b"19"


def test_damaged_sums_are_computed_anew(stores: Stores) -> None:
    store = stores.open()
    for number in range(200):
        put(store, b"k:%d" % number, b"v%d" % number)
        incr(store, b"c:%d" % (number % 7), number)
    put(store, b"brief", b"v", expires_ms=1_700_000_000_000 + 7_200_000)
    store.flush()
    applied(store)
    root = store.digest()[1]
    store.close()
    damage(store._path, KIND_META, group_name(0), group_name(9), group_name(63))
    store = stores.open()
    assert store.recovery.sums_recomputed
    assert store.digest()[1] == root == root_of(store)
    assert value(store, b"k:7") == b"v7"
    store = stores.reopen(store, clean=True)
    assert not store.recovery.sums_recomputed
    assert store.digest()[1] == root
    store.close()
    assert check(store._path).problems == []


def test_a_damaged_sum_is_put_right_while_it_runs(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = stores.open()
    filled(store)
    root = store.digest()[1]
    monkeypatch.setattr(Applier, "_tight", lambda self: True)
    store._applier.stop()
    index = store._index
    stored = dict(index.stored_after(KIND_META, b"", 1 << 20, 1 << 30)[0])
    name = min(name for name in stored if name.startswith(b"digest/"))
    index.write_stored({KIND_META: [(name, stored[name][:-1] + b"?")]})
    with pytest.raises(CorruptData):
        index.get(KIND_META, name)
    applier = store._applier
    applier._stopping = False
    while applier.scrub_passes < 3:
        applier._scrub._due = 0
        applier._look_after()
    assert index.get(KIND_META, name) is not None
    store.look_after()
    assert store.digest()[1] == root
