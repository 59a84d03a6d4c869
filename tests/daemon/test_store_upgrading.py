"""Stores of an earlier schema: brought to this one at a start, whatever interrupts it.

`data/store-schema-1.tar.xz` was written by the last release of schema 1: 150 writes of
power_loss_writer.py, closed cleanly.
"""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
from pathlib import Path

import lmdb
import pytest

from roost_crdt.errors import ConfigError, CorruptData
from roost_crdt.logformat import KIND_META
from roostd import store as stores
from roostd.index import SCHEMA, Index, u64
from roostd.sealing import KIND_NAMES, sealed_pairs
from roostd.store import StoreFailed, upgrading

sys.path.insert(0, str(Path(__file__).parent))
from power_loss_writer import check, open_store, pretend, written

OLD = Path(__file__).with_name("data") / "store-schema-1.tar.xz"
COUNT = 150


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pretend("boot", monkeypatch)
    with tarfile.open(OLD) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "store"


def stored(path: Path) -> dict[bytes, dict[bytes, bytes]]:
    """Every pair as LMDB holds it."""
    env = lmdb.open(str(path / "index"), max_dbs=8, map_size=1 << 20)
    found = {}
    for name in KIND_NAMES.values():
        with env.begin(db=env.open_db(name)) as txn, txn.cursor() as cursor:
            found[name] = dict(cursor)
    env.close()
    return found


def test_an_older_store_is_upgraded_and_shows_what_it_held(old: Path) -> None:
    before = stored(old)
    store = open_store(old)
    assert store.recovery.upgraded_pairs == sum(map(len, before.values()))
    assert not store.recovery.actor_changed
    assert check(store, COUNT) == COUNT
    store.close()
    assert stores.check(old).problems == []
    for name, pairs in stored(old).items():
        for key, value in before[name].items():
            if name != b"meta":
                assert pairs[key][4:] == value, (name, key)
        assert pairs.keys() >= before[name].keys()
    again = open_store(old)
    assert again.recovery.upgraded_pairs == 0
    assert written(again) == COUNT
    again.close()


def test_an_upgrade_that_is_cut_anywhere_goes_on_at_the_next_start(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upgrading, "_CHUNK_PAIRS", 3)
    real = Index.write_stored
    left, cuts = 0, 0

    def cut(self: Index, items: object) -> None:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        real(self, items)  # type: ignore[arg-type]

    while True:
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(old, tmp_path / "copy")
        left = cuts
        with monkeypatch.context() as patch:
            patch.setattr(Index, "write_stored", cut)
            try:
                open_store(tmp_path / "copy").close()
            except KeyboardInterrupt:
                pass
            else:
                break
        cuts += 1
        store = open_store(tmp_path / "copy")
        assert check(store, COUNT) == COUNT, f"cut at transaction {cuts}"
        store.close()
        assert stores.check(tmp_path / "copy").problems == []
    assert cuts > 5


def test_a_full_bound_stops_the_upgrade_and_room_lets_it_go_on(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Index, items: object) -> None:
        raise lmdb.MapFullError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(Index, "write_stored", full)
        with pytest.raises(StoreFailed, match=r"cannot be opened: .*no room"):
            open_store(old)
    store = open_store(old)
    assert check(store, COUNT) == COUNT
    store.close()


def test_an_older_store_is_checked_after_its_upgrade(old: Path) -> None:
    with pytest.raises(ConfigError, match=r"schema 1.*start roostd"):
        stores.check(old)


@pytest.mark.parametrize("bit", range(64))
def test_a_turned_bit_of_the_schema_is_told_from_another_release(old: Path, bit: int) -> None:
    open_store(old).close()
    env = lmdb.open(str(old / "index"), max_dbs=8, map_size=1 << 20)
    with env.begin(write=True) as txn:
        txn.put(b"schema", u64(SCHEMA ^ 1 << bit), db=env.open_db(b"meta", txn=txn))
    env.close()
    index = Index(old / "index", 1 << 20)
    with pytest.raises(CorruptData, match="the number of its schema is damaged"):
        upgrading.check_schema(index)
    index.write((), {KIND_META: [(b"layout", None)]})
    with pytest.raises((CorruptData, ConfigError)):
        upgrading.check_schema(index)
    index.close()


def test_a_damaged_index_of_another_schema_is_left_to_its_release(old: Path) -> None:
    """Without checksums a repair cannot tell which entries are whole, and would drop them all."""
    data = old / "index" / "data.mdb"
    raw = data.read_bytes()
    data.write_bytes(raw[:16] + b"noise" + raw[21:])
    assert stores.check(old).problems
    with pytest.raises(ConfigError, match="it is of schema 1, of which this release"):
        stores.repair(old, os.urandom)
    assert data.read_bytes() == raw[:16] + b"noise" + raw[21:]
    assert not (old / "repairing").exists()
    assert not (old / "index.salvaging").exists()


def test_a_newer_store_is_refused_whatever_else_is_wrong_with_it(old: Path) -> None:
    """With a database that this release does not know, and with a damaged page."""
    open_store(old).close()
    env = lmdb.open(str(old / "index"), max_dbs=9, map_size=1 << 20)
    newer = {b"schema": u64(SCHEMA + 1), b"layout": u64(SCHEMA + 1)}
    with env.begin(write=True, db=env.open_db(b"meta")) as txn:
        for name, stored_as in sealed_pairs(KIND_META, sorted(newer.items())):
            txn.put(name, stored_as or b"")
    env.open_db(b"of later")
    env.close()
    data = old / "index" / "data.mdb"
    raw = data.read_bytes()
    for content in (raw, raw[:16] + b"noise" + raw[21:]):
        data.write_bytes(content)
        for attempt in (lambda: open_store(old), lambda: stores.repair(old, os.urandom)):
            with pytest.raises((ConfigError, CorruptData), match=r"schema 3|damaged"):
                attempt()
        assert data.read_bytes() == content
    with pytest.raises(ConfigError, match="it is of schema 3"):
        stores.repair(old, os.urandom)
    data.write_bytes(raw)
    with pytest.raises(ConfigError, match="has schema 3, this release reads 2; run the release"):
        open_store(old)
