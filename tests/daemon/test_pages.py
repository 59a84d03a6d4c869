"""LMDB's file read without LMDB: sound files are called sound, damage is found and read around."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import lmdb
import pytest

from roost_crdt.errors import CorruptData
from roostd import pages

SEEDS = range(4)


def build(path: Path, seed: int) -> dict[bytes, bytes]:
    """A file with branches, overflow pages and a free list; what it holds."""
    rng = random.Random(seed)
    held: dict[bytes, dict[bytes, bytes]] = {b"rows": {}, b"sessions": {}}
    env = lmdb.open(str(path), map_size=64 << 20, max_dbs=4)
    databases = {name: env.open_db(name) for name in held}
    for _ in range(12):
        with env.begin(write=True) as txn:
            for name, database in databases.items():
                for _ in range(60):
                    key = b"%s/%04d" % (name, rng.randrange(600))
                    value = rng.randbytes(rng.choice((10, 200, 1_000, 5_000)))
                    txn.put(key, value, db=database)
                    held[name][key] = value
                for key in rng.sample(sorted(held[name]), 20):
                    txn.delete(key, db=database)
                    del held[name][key]
    env.close()
    return held[b"rows"] | held[b"sessions"]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_sound_file_is_sound_and_salvage_finds_all(tmp_path: Path, seed: int) -> None:
    held = build(tmp_path / "env", seed)
    data = tmp_path / "env" / "data.mdb"
    assert pages.inspect(data) == []
    assert dict(pages.salvage(data)) == held
    counts = pages.entry_counts(data)
    assert sum(counts.values()) == len(held)
    assert counts.keys() == {b"rows", b"sessions"}


def test_an_empty_database_is_sound(tmp_path: Path) -> None:
    env = lmdb.open(str(tmp_path / "env"), map_size=1 << 20, max_dbs=4)
    env.open_db(b"rows")
    env.close()
    assert pages.inspect(tmp_path / "env" / "data.mdb") == []


def test_a_damaged_branch_loses_nothing_that_lies_below(tmp_path: Path) -> None:
    held = build(tmp_path / "env", 1)
    data = tmp_path / "env" / "data.mdb"
    raw = bytearray(data.read_bytes())
    with pages.PageFile(data) as file:
        meta = file.newest()
    branches = [
        at for at in range(2, len(raw) // 4096) if raw[at * 4096 + 10] == 1 and at != meta.free.root
    ]
    found = 0
    for page in branches:
        spoiled = bytearray(raw)
        spoiled[page * 4096 + 10] ^= 2
        data.write_bytes(spoiled)
        if pages.inspect(data):
            found += 1
            assert held.items() <= set(pages.salvage(data))
    assert found >= 2


@pytest.mark.parametrize("seed", SEEDS)
def test_turned_bits_never_break_the_reader(tmp_path: Path, seed: int) -> None:
    """Whatever is turned, it ends, with findings or none."""
    build(tmp_path / "env", seed)
    data = tmp_path / "env" / "data.mdb"
    raw = data.read_bytes()
    rng = random.Random(seed)
    found = 0
    for _ in range(40):
        spoiled = bytearray(raw)
        page = rng.randrange(len(raw) // 4096)
        spoiled[page * 4096 + rng.randrange(40)] ^= 1 << rng.randrange(8)
        data.write_bytes(spoiled)
        try:
            found += bool(pages.inspect(data))
            list(pages.salvage(data))
        except CorruptData:
            found += 1
    assert found


def test_the_head_of_a_file_is_checked_before_it_is_mapped(tmp_path: Path) -> None:
    build(tmp_path / "env", 2)
    data = tmp_path / "env" / "data.mdb"
    raw = data.read_bytes()
    pages.check_head(data)
    for place, what in (
        (16, "the meta page is damaged"),  # magic
        (4096 + 0, "the meta page is damaged"),  # page number
        (4096 + 10, "the meta page is damaged"),  # flags
        (16 + 24 + 40, "the meta page is damaged"),  # a root beyond the file
    ):
        spoiled = bytearray(raw)
        spoiled[place + (2 if what.endswith("root") else 0)] ^= 0x40
        spoiled[place + 3] ^= 0x40 if place == 16 + 24 + 40 else 0
        data.write_bytes(spoiled)
        with pytest.raises(CorruptData, match=what):
            pages.check_head(data)
    data.write_bytes(raw[:4096])
    with pytest.raises(CorruptData, match="meta page"):
        pages.check_head(data)


def test_a_file_cut_short_is_damaged_and_what_is_left_can_be_read(tmp_path: Path) -> None:
    held = build(tmp_path / "env", 3)
    data = tmp_path / "env" / "data.mdb"
    raw = data.read_bytes()
    shutil.copy(data, tmp_path / "whole")
    data.write_bytes(raw[: len(raw) // 2])
    assert pages.inspect(data)
    try:
        left = dict(pages.salvage(data))
    except CorruptData:
        left = {}
    assert left.items() <= held.items()
