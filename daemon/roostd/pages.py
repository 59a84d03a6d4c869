"""LMDB's file read without LMDB: page by page, nothing believed.

LMDB trusts its pages: a damaged one may show wrong keys, or end the process by an assertion or a
signal. Before a file is handed to it, `check_head` looks at what every start needs; `inspect`
walks all trees, for `roost check`; `salvage` yields what can be read of a file that LMDB must not
touch. Format: LMDB 0.9, 64 bits, little-endian, pages of 4,096 bytes, no duplicate keys:

    page      pgno u64, pad u16, flags u16, lower u16, upper u16, then u16 places of nodes up to
              `lower`, nodes from `upper` on. An overflow page has its count u32 in place of both
    node      lo u16, hi u16, flags u16, key length u16, key, data. In a leaf lo + hi are the
              data's length, which is a u64 page number where it lies in overflow pages; in a
              branch lo + hi + flags are the page below, and the first key counts as the smallest
    meta      pages 0 and 1: magic u32, version u32, address u64, map size u64, the trees of free
              pages and of names, last page u64, transaction u64. Transaction n is in page n % 2
    tree      pad u32, flags u16, depth u16, pages: branch u64, leaf u64, overflow u64, entries
              u64, root u64
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import Struct, unpack_from
from types import TracebackType
from typing import NamedTuple, Self

from roost_crdt.errors import CorruptData

PAGE_BYTES = 4096
PROBLEMS_MAX = 20

_MAGIC, _VERSION = 0xBEEFC0DE, 1
BRANCH, LEAF, _OVERFLOW, _META_PAGE, BIG, _SUB = 1, 2, 4, 8, 1, 2
_NONE = (1 << 64) - 1
_DEPTH_MAX = 32
_HEADER = Struct("<QHHHH")
_RUN = Struct("<QHHI")
_NODE = Struct("<HHHH")
_META = Struct("<16xIIQQ")
_TREE = Struct("<IHHQQQQQ")
_LAST = Struct("<QQ")
_U64 = Struct("<Q")
_TREES_AT = _META.size
_LAST_AT = _TREES_AT + 2 * _TREE.size
_HEADER_BYTES = _HEADER.size


class Damaged(CorruptData):
    """A page is not what it has to be."""


class Tree(NamedTuple):
    """What a meta page or a named entry says of a tree."""

    depth: int
    branch_pages: int
    leaf_pages: int
    overflow_pages: int
    entries: int
    root: int


class Meta(NamedTuple):
    """The newest committed state of a file."""

    free: Tree
    names: Tree
    last_page: int
    txn: int


class Leaf(NamedTuple):
    """An entry of a leaf: `data` is None where it lies in `pages` overflow pages from `run` on."""

    key: bytes
    data: bytes | None
    size: int
    flags: int
    run: int


Progress = Callable[[int, int], None]


def _tree(raw: bytes, at: int) -> Tree:
    _, _, depth, branch, leaf, overflow, entries, root = _TREE.unpack_from(raw, at)
    return Tree(depth, branch, leaf, overflow, entries, root)


def _pages_of(size: int) -> int:
    return (_HEADER_BYTES + size + PAGE_BYTES - 1) // PAGE_BYTES


def _likely_places(raw: bytes) -> tuple[int, ...]:
    """Where the nodes of a leaf may begin whose header is damaged: each says by itself, by the
    checksum of its data, whether it is one."""
    upper = _HEADER.unpack_from(raw)[4]
    if not _HEADER_BYTES <= upper <= PAGE_BYTES:
        upper = _HEADER_BYTES
    found: list[int] = []
    for (place,) in Struct("<H").iter_unpack(raw[_HEADER_BYTES:]):
        if _HEADER_BYTES + 2 * len(found) >= min(found, default=PAGE_BYTES):
            break
        if not upper <= place <= PAGE_BYTES - _NODE.size:
            break
        found.append(place)
    return tuple(found)


class PageFile:
    """An open data file. Every method raises Damaged (or OSError) instead of reading nonsense."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.page_count = os.fstat(self._fd).st_size // PAGE_BYTES

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._fd)

    def damaged(self, page: int, what: str) -> Damaged:
        return Damaged(f"{self.path}: page {page} at byte {page * PAGE_BYTES}: {what}")

    def read(self, page: int, count: int = 1) -> bytes:
        raw = os.pread(self._fd, count * PAGE_BYTES, page * PAGE_BYTES)
        if len(raw) < count * PAGE_BYTES:
            raise self.damaged(page, "the file ends before it")
        return raw

    def metas(self) -> list[Meta | None]:
        """Both meta pages; None for one that is not whole."""
        return [self._meta(number) for number in (0, 1)]

    def newest(self) -> Meta:
        """The newest meta page that is whole."""
        found = [meta for meta in self.metas() if meta is not None]
        if not found:
            raise self.damaged(0, "neither it nor page 1 is a meta page")
        return max(found, key=lambda meta: meta.txn)

    def _meta(self, number: int) -> Meta | None:
        try:
            raw = self.read(number)
        except Damaged:
            return None
        pgno, _, flags, _, _ = _HEADER.unpack_from(raw)
        magic, version, _, _ = _META.unpack_from(raw)
        last_page, txn = _LAST.unpack_from(raw, _LAST_AT)
        if (pgno, magic, version) != (number, _MAGIC, _VERSION) or flags != _META_PAGE:
            return None
        if txn and txn % 2 != number:
            return None
        found = Meta(_tree(raw, _TREES_AT), _tree(raw, _TREES_AT + _TREE.size), last_page, txn)
        if not self.plausible(found.free, last_page) or not self.plausible(found.names, last_page):
            return None
        if unpack_from("<I", raw, _TREES_AT)[0] != PAGE_BYTES:
            return None
        return found

    def plausible(self, tree: Tree, last_page: int) -> bool:
        """Whether a tree may begin where it says."""
        if tree.root == _NONE:
            return not tree.depth
        in_file = 2 <= tree.root <= last_page and tree.root < self.page_count
        return in_file and 0 < tree.depth <= _DEPTH_MAX

    def places(self, page: int, raw: bytes, kind: int) -> tuple[int, ...]:
        """Where the nodes of a branch or leaf begin."""
        pgno, _, flags, lower, upper = _HEADER.unpack_from(raw)
        if pgno != page or flags != kind:
            raise self.damaged(page, f"its header says page {pgno}, flags {flags}")
        if not _HEADER_BYTES <= lower <= upper <= PAGE_BYTES or lower % 2:
            raise self.damaged(page, f"its bounds are {lower} and {upper}")
        found = unpack_from(f"<{(lower - _HEADER_BYTES) // 2}H", raw, _HEADER_BYTES)
        if found and (min(found) < upper or max(found) > PAGE_BYTES - _NODE.size):
            raise self.damaged(page, "a node lies outside of it")
        end = upper
        for place in sorted(found):
            lo, hi, flags, length = _NODE.unpack_from(raw, place)
            size = 0 if kind == BRANCH else 8 if flags & BIG else lo | hi << 16
            if place != end:
                break
            end += _NODE.size + length + size + 1 & ~1
        if end != PAGE_BYTES:
            raise self.damaged(page, "its nodes do not lie side by side")
        return found

    def below(self, page: int, raw: bytes) -> list[tuple[bytes, int]]:
        """The entries of a branch: first key (b"" for the first), page."""
        places = self.places(page, raw, BRANCH)
        if len(places) < 2:
            raise self.damaged(page, f"a branch of {len(places)} entries")
        found: list[tuple[bytes, int]] = []
        for place in places:
            lo, hi, flags, length = _NODE.unpack_from(raw, place)
            start = place + _NODE.size
            if start + length > PAGE_BYTES:
                raise self.damaged(page, "a key reaches beyond it")
            key = raw[start : start + length] if found else b""
            found.append((key, lo | hi << 16 | flags << 32))
        return found

    def leaf(self, page: int, raw: bytes, place: int) -> Leaf:
        """The entry at a place of a leaf."""
        lo, hi, flags, length = _NODE.unpack_from(raw, place)
        size, start = lo | hi << 16, place + _NODE.size + length
        if not length or start + (8 if flags & BIG else size) > PAGE_BYTES or flags & ~3:
            raise self.damaged(page, f"the entry at {place} reaches beyond it")
        key = raw[place + _NODE.size : start]
        if flags & BIG:
            return Leaf(key, None, size, flags, _U64.unpack_from(raw, start)[0])
        return Leaf(key, raw[start : start + size], size, flags, 0)

    def data(self, page: int, entry: Leaf) -> bytes:
        """The data of an entry, from overflow pages if it lies there."""
        if entry.data is not None:
            return entry.data
        self.run(page, entry)
        raw = self.read(entry.run, _pages_of(entry.size))
        return raw[_HEADER_BYTES : _HEADER_BYTES + entry.size]

    def run(self, page: int, entry: Leaf) -> int:
        """How many overflow pages an entry has: more than it needs where it was larger once."""
        need = _pages_of(entry.size)
        if not 2 <= entry.run <= self.page_count - need:
            raise self.damaged(page, f"its entry {entry.key!r} lies in pages that there are not")
        pgno, _, flags, count = _RUN.unpack_from(self.read(entry.run))
        if (pgno, flags) != (entry.run, _OVERFLOW) or not need <= count <= self.page_count - pgno:
            raise self.damaged(entry.run, "it is not the overflow page that it has to be")
        return int(count)


def check_head(path: Path) -> None:
    """What a start needs to be right before LMDB maps the file. Damaged names the place."""
    with PageFile(path) as file:
        first, second = file.metas()
        if first is None or second is None:
            number = 0 if first is None else 1
            raise file.damaged(number, "the meta page is damaged")
        older, newer = sorted((first, second), key=lambda meta: meta.txn)
        if newer.txn - older.txn > 1 or newer.last_page < older.last_page:
            raise file.damaged(newer.txn % 2, "the two meta pages do not follow one another")
        for tree in named_trees(file, newer).values():
            if not file.plausible(tree, newer.last_page):
                raise file.damaged(newer.names.root, "a database begins where no page is")


def named_trees(file: PageFile, meta: Meta) -> dict[bytes, Tree]:
    """The trees of the named databases."""
    walk = _Walk(file, meta, lambda done, total: None)
    found: dict[bytes, Tree] = {}
    for page, entry in walk.entries(meta.names, b"names"):
        if entry.flags != _SUB or entry.size != _TREE.size:
            raise file.damaged(page, f"its entry {entry.key!r} is not that of a database")
        found[entry.key] = _tree(file.data(page, entry), 0)
    if walk.problems:
        raise Damaged(walk.problems[0])
    return found


def entry_counts(path: Path) -> dict[bytes, int]:
    """How many entries each named database has. Damaged."""
    with PageFile(path) as file:
        return {name: tree.entries for name, tree in named_trees(file, file.newest()).items()}


def free_pages(path: Path) -> list[int]:
    """The pages that hold nothing as of the newest commit. Damaged."""
    with PageFile(path) as file:
        walk = _Walk(file, file.newest(), lambda done, total: None)
        found = walk.free_pages()
        if walk.problems:
            raise Damaged(walk.problems[0])
        return found


def inspect(path: Path, progress: Progress | None = None, *, ordered: bool = True) -> list[str]:
    """Walk all trees of a file that nobody writes; what is wrong, with the place. Not `ordered`:
    names of entries may be damaged."""
    try:
        check_head(path)
    except (CorruptData, OSError) as exc:
        return [str(exc)]
    with PageFile(path) as file:
        meta = file.newest()
        walk = _Walk(file, meta, progress or (lambda done, total: None), ordered)
        free = walk.free_pages()
        for name, tree in sorted(named_trees(file, meta).items()):
            for _ in walk.entries(tree, name):
                pass
        for _ in walk.entries(meta.names, b"names"):
            pass
        both = [page for page in free if page < len(walk.seen) and walk.seen[page]]
        if both:
            walk.problem(file.damaged(both[0], "it is in use, and listed as free"))
        return walk.problems


def salvage(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """All entries that can be read of a file, of all databases, in no order, with no promise that
    they are what was written: whoever takes them checks their checksums.

    Pages that no tree leads to any more, and that are not free, are looked at too: they lie below
    a damaged one. Raises Damaged if no meta page is left.
    """
    with PageFile(path) as file:
        meta = file.newest()
        walk = _Walk(file, meta, lambda done, total: None)
        free = walk.free_pages()
        roots = [meta.names]
        while roots:
            for page, entry in walk.entries(roots.pop(), b"", strict=False):
                try:
                    data = file.data(page, entry)
                except Damaged:
                    continue
                if entry.flags & _SUB and entry.size == _TREE.size:
                    tree = _tree(data, 0)
                    if file.plausible(tree, meta.last_page):
                        roots.append(tree)
                else:
                    yield entry.key, data
        if walk.problems and not walk.free_damaged:
            yield from walk.orphans(frozenset(free))


class _Walk:
    """Goes through trees from their roots, each page once."""

    def __init__(self, file: PageFile, meta: Meta, say: Progress, ordered: bool = True) -> None:
        self.file = file
        self.meta = meta
        self.problems: list[str] = []
        self.ordered, self.free_damaged = ordered, False
        self.seen = bytearray(min(meta.last_page + 1, file.page_count))
        self._progress = say
        self._done = 0

    def problem(self, error: Damaged) -> None:
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(str(error))

    def free_pages(self) -> list[int]:
        """The pages that are listed as free."""
        found: list[int] = []
        for page, entry in self.entries(self.meta.free, b"free pages", numbers=True):
            try:
                data = self.file.data(page, entry)
            except Damaged as exc:
                self.problem(exc)
                continue
            if len(data) < 8 or len(data) // 8 - 1 < _U64.unpack_from(data)[0]:
                self.problem(self.file.damaged(page, "a list of free pages is cut short"))
                continue
            found.extend(unpack_from(f"<{_U64.unpack_from(data)[0]}Q", data, 8))
        self.free_damaged = bool(self.problems)
        return found

    def entries(
        self, tree: Tree, name: bytes, *, numbers: bool = False, strict: bool = True
    ) -> Iterator[tuple[int, Leaf]]:
        """Every entry of a tree, with its page; what is damaged goes to `problems`.

        `numbers`: keys are integers in the machine's order. Not `strict`: an entry that can be
        read counts although its neighbours, or its order, are wrong.
        """
        counts = [0, 0, 0, 0]
        below: list[tuple[int, int, bytes, bytes | None]] = []
        if tree.root != _NONE:
            below.append((tree.root, tree.depth, b"", None))
        before = len(self.problems)
        while below:
            page, depth, low, high = below.pop()
            try:
                raw = self._take(page)
                if depth > 1:
                    counts[0] += 1
                    below += self._children(page, raw, depth, low, high, numbers)
                    continue
            except Damaged as exc:
                self.problem(exc)
                continue
            counts[1] += 1
            try:
                places = self.file.places(page, raw, LEAF)
            except Damaged as exc:
                self.problem(exc)
                places = () if strict else _likely_places(raw)
            for entry in self._leaf(page, raw, places, low, high, numbers, strict):
                counts[3] += 1
                if entry.data is None:
                    counts[2] += self._run(page, entry)
                yield page, entry
        if len(self.problems) == before and tuple(counts) != tree[1:5]:
            self.problem(
                self.file.damaged(
                    tree.root, f"{name.decode()!r} has pages and entries {counts}, not {tree[1:5]}"
                )
            )

    def _take(self, page: int) -> bytes:
        if not 2 <= page < len(self.seen) or self.seen[page]:
            raise self.file.damaged(page, "no such page, or a tree leads to it twice")
        self.seen[page] = 1
        self._done += 1
        if not self._done % 256:
            self._progress(self._done, len(self.seen))
        return self.file.read(page)

    def _children(
        self, page: int, raw: bytes, depth: int, low: bytes, high: bytes | None, numbers: bool
    ) -> list[tuple[int, int, bytes, bytes | None]]:
        """The pages below a branch with the bounds of their keys, the last one first."""
        listed = self.file.below(page, raw)
        bounds: list[tuple[int, int, bytes, bytes | None]] = []
        for at, (key, child) in enumerate(listed):
            start = key if at else low
            stop = listed[at + 1][0] if at + 1 < len(listed) else high
            if stop is not None and _order(start, numbers) >= _order(stop, numbers):
                # Its own bounds are wrong: what lies below is looked at without any.
                self.problem(self.file.damaged(page, "its keys are out of order"))
                start, stop = b"", None
            bounds.append((child, depth - 1, start, stop))
        return bounds[::-1]

    def _leaf(
        self,
        page: int,
        raw: bytes,
        places: tuple[int, ...],
        low: bytes,
        high: bytes | None,
        numbers: bool,
        strict: bool,
    ) -> Iterator[Leaf]:
        last, least = b"", _order(low, numbers)
        most = None if high is None else _order(high, numbers)
        for place in places:
            try:
                entry = self.file.leaf(page, raw, place)
            except Damaged as exc:
                self.problem(exc)
                continue
            key = _order(entry.key, numbers)
            fits = last < key >= least and (most is None or key < most)
            if self.ordered and not fits:
                self.problem(self.file.damaged(page, f"key {entry.key!r} is out of order"))
                if strict:
                    continue
            last = key
            yield entry

    def _run(self, page: int, entry: Leaf) -> int:
        """Mark the pages of an overflow run; how many there are."""
        count = 0
        try:
            count = self.file.run(page, entry)
            for at in range(entry.run, entry.run + count):
                if not 2 <= at < len(self.seen) or self.seen[at]:
                    raise self.file.damaged(at, "no such page, or a tree leads to it twice")
                self.seen[at] = 1
        except Damaged as exc:
            self.problem(exc)
        return count

    def orphans(self, free: frozenset[int]) -> Iterator[tuple[bytes, bytes]]:
        """Entries of the leaves that no tree led to."""
        page = 2
        while page < len(self.seen):
            at, page = page, page + 1
            if self.seen[at] or at in free:
                continue
            raw = self.file.read(at)
            pgno, _, flags, count = _RUN.unpack_from(raw)
            if pgno == at and flags == _OVERFLOW:
                page = at + max(1, count)
                continue
            try:
                places = self.file.places(at, raw, LEAF)
            except Damaged:
                continue
            for place in places:
                try:
                    entry = self.file.leaf(at, raw, place)
                    yield entry.key, self.file.data(at, entry)
                except Damaged:
                    continue


def _order(key: bytes, numbers: bool) -> bytes:
    return key[::-1].rjust(8, b"\0") if numbers else key
