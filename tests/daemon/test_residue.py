"""What deleted entries leave in LMDB's file is overwritten, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from roost_crdt.logformat import KIND_SESSION
from roostd import pages
from roostd.index import Index
from roostd.pages import Damaged, PageFile, named_trees
from roostd.residue import Residue

OWNER, OTHER = b"s\0gone\0", b"s\0kept\0"


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    made = Index(tmp_path / "index", 64 << 20)
    yield made
    made.close()


@contextmanager
def opened(index: Index) -> Iterator[Residue]:
    """Of the file as it is now."""
    fd = os.open(index.data_file, os.O_RDWR)
    with PageFile(index.data_file) as file:
        yield Residue(file, fd)
    os.close(fd)


def put(index: Index, items: dict[bytes, bytes | None]) -> None:
    index.write((), {KIND_SESSION: sorted(items.items())})


def fill(index: Index, owner: bytes, count: int = 400, size: int = 200) -> None:
    put(index, {owner + b"e-%04d-of-%s" % (n, owner): owner * (size // 7) for n in range(count)})


def drop(index: Index, owner: bytes) -> None:
    put(index, {key: None for key, _ in index.scan(KIND_SESSION, owner, b"", 1 << 20)})


def sessions(file: PageFile) -> pages.Tree:
    return named_trees(file, file.newest())[b"sessions"]


def bounds(index: Index, owner: bytes) -> int:
    """How many names of an owner's keys the pages in use hold that are no keys."""
    with PageFile(index.data_file) as file:
        residue = Residue(file, -1)
        return sum(
            page.raw[int.from_bytes(page.raw[14:16], "little") :].count(owner + b"e-")
            for page in residue._pages(sessions(file), b"")
            if not page.is_leaf
        )


def test_a_bound_that_outlives_its_key_is_blanked(index: Index) -> None:
    for owner in (b"s\0a\0", OWNER, b"s\0z\0"):
        fill(index, owner, 1_000)
    drop(index, OWNER)
    before = index.scan(KIND_SESSION, b"", b"", 1 << 20)
    assert bounds(index, OWNER) > 0, "nothing to blank"
    others = bounds(index, b"s\0a\0"), bounds(index, b"s\0z\0")
    with opened(index) as residue:
        residue.blank_bounds(sessions(residue.file), OWNER)
    assert bounds(index, OWNER) == 0
    assert (bounds(index, b"s\0a\0"), bounds(index, b"s\0z\0")) == others
    assert index.scan(KIND_SESSION, b"", b"", 1 << 20) == before
    assert index.scan(KIND_SESSION, OWNER, b"", 10) == []
    assert pages.inspect(index.data_file) == []
    fill(index, OWNER, 300)  # its id is used again
    assert len(index.scan(KIND_SESSION, OWNER, b"", 1 << 20)) == 300
    assert pages.inspect(index.data_file) == []


def test_bounds_of_what_is_there_stay(index: Index) -> None:
    fill(index, b"s\0z\0")
    fill(index, OWNER)
    put(index, {OWNER + b"e-%04d-of-%s" % (n, OWNER): None for n in range(50, 400)})
    assert bounds(index, OWNER) > 0
    with opened(index) as residue:
        residue.blank_bounds(sessions(residue.file), OWNER)
        assert residue.written == 0


def test_a_tree_is_gone_through_from_key_to_key(index: Index) -> None:
    fill(index, OWNER, size=300)
    fill(index, OTHER, 40, 3_000)
    drop(index, OWNER)
    fill(index, OTHER, 200, 2_500)
    fill(index, b"s\0z\0")
    before = index.scan(KIND_SESSION, b"", b"", 1 << 20)
    with opened(index) as residue:
        file, start, keys = residue.file, b"", list[bytes]()
        while (following := residue.blank_tree(sessions(file), start, 4)) is not None:
            assert following > start
            keys.append(start := following)
        assert len(keys) > 3
        once = residue.written
        assert once > 0
        assert residue.blank_tree(sessions(file), b"", 1 << 20) is None
        assert residue.written == once, "something was left"
        for page in residue._pages(sessions(file), b""):
            lower, upper = (int.from_bytes(page.raw[at : at + 2], "little") for at in (12, 14))
            assert not any(file.read(page.number)[lower:upper])
    assert index.scan(KIND_SESSION, b"", b"", 1 << 20) == before
    assert pages.inspect(index.data_file) == []


def free_that_hold(file: PageFile, words: bytes) -> int:
    return sum(words in file.read(page) for page in pages.free_pages(file.path))


def test_pages_that_somebody_may_see_are_left(index: Index) -> None:
    fill(index, OWNER)
    drop(index, OWNER)
    with opened(index) as residue:
        file, meta = residue.file, residue.file.newest()
        held = free_that_hold(file, OWNER)
        assert held > 20
        residue.blank_free(meta, meta.txn, 2, file.page_count)
        assert free_that_hold(file, OWNER) == held, "they were freed by the newest transaction"
        residue.blank_free(meta, meta.txn + 1, 2, 20)
        some = free_that_hold(file, OWNER)
        assert 0 < some < held
        residue.blank_free(meta, meta.txn + 1, 20, 1 << 40)
        assert free_that_hold(file, OWNER) == 0
    assert pages.inspect(index.data_file) == []


def test_pages_behind_the_last_one_are_blanked(index: Index) -> None:
    """A transaction that was never committed wrote them, the last one in part."""
    fill(index, OTHER, 10)
    with PageFile(index.data_file) as file:
        last = file.newest().last_page
    with index.data_file.open("r+b") as longer:
        longer.seek((last + 1) * 4096)
        longer.write(OWNER * 3_000)
    with opened(index) as residue:
        file = residue.file
        assert any(file.read(last + 1))
        residue.blank_free(file.newest(), 0, 2, 1 << 40)
        assert not any(file.read(last + 1, file.page_count - last - 1))
        assert index.data_file.stat().st_size % 4096, "no page was cut in two"
        assert OWNER not in index.data_file.read_bytes()
    assert len(index.scan(KIND_SESSION, OTHER, b"", 100)) == 10
    assert pages.inspect(index.data_file) == []


@pytest.mark.parametrize("count", [-1, 1 << 40])
def test_a_damaged_list_of_free_pages_is_not_believed(index: Index, count: int) -> None:
    fill(index, OWNER)
    drop(index, OWNER)
    with PageFile(index.data_file) as file:
        (root,) = [p.number for p in Residue(file, -1)._pages(file.newest().free, b"")]
        raw = bytearray(file.read(root))
        place = int.from_bytes(raw[16:18], "little")
    start = place + 16 + (8 if count < 0 else 0)  # its first page, or how many there are
    raw[start : start + 8] = (count % (1 << 64)).to_bytes(8, "little")
    with index.data_file.open("r+b") as damaged:
        damaged.seek(root * 4096)
        damaged.write(raw)
    with PageFile(index.data_file) as file, pytest.raises(Damaged, match="free pages"):
        Residue(file, -1).blank_free(file.newest(), 1 << 40, 2, file.page_count)
