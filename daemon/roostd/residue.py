"""What LMDB's file still holds of deleted entries, and overwriting it while the file is in use.

LMDB overwrites nothing that it deletes. What is left of an entry lies

    in pages that became free
    in the gap of a branch or leaf between its places and its nodes: pages are written from buffers
        that are used again and again, of which only what the page uses is filled; so any page may
        hold a piece of any other one
    in the rest of the last overflow page of a value, for the same reason
    in branches, as a bound between two pages that outlives the key

Nobody reads any of it but the bounds, so it may be overwritten in place while nobody writes
(`Index.held`): a gap is a gap for all who know the page, and a page that was freed in a transaction
below the oldest that a reader may see is one that LMDB itself might overwrite now. Of a bound what
its owner's keys begin with stays: where no key begins so any more, it parts the same keys. A power
loss leaves old or new bytes of these places, and changes no others. (The odd byte that pads an
entry to an even length is not looked for.)
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise
from operator import itemgetter, neg
from struct import unpack_from
from typing import NamedTuple

from roostd.pages import BIG, BRANCH, LEAF, PAGE_BYTES, Leaf, Meta, PageFile, Tree

_HEADER_BYTES = 16
_BOUNDS_AT = 12
_NODE_BYTES = 8
_READ_PAGES = 64
_ZEROS = bytes(_READ_PAGES * PAGE_BYTES)
_first = itemgetter(0)


class _Page(NamedTuple):
    low: bytes
    """No key on it is below this one."""
    number: int
    raw: bytes
    is_leaf: bool


class Residue:
    """A file whose writers are kept out. Raises Damaged (or OSError) where a page is not what it
    has to be, before anything of that page is overwritten."""

    def __init__(self, file: PageFile, fd: int) -> None:
        """`fd`: the same file, to be read and written."""
        self.file = file
        self.written = 0
        """Bytes that were overwritten; not durable before the caller syncs."""
        self._fd = fd

    def blank_bounds(self, tree: Tree, owner: bytes) -> None:
        """Blank the keys that begin with `owner` and bound pages; nothing, if a key in the tree
        begins so. `owner` ends with NUL."""
        stop = owner[:-1] + b"\x01"
        found: list[tuple[int, bytes]] = []
        for page in self._pages(tree, owner):
            if page.low >= stop:
                break
            for place in self.file.places(page.number, page.raw, LEAF if page.is_leaf else BRANCH):
                start = place + _NODE_BYTES
                key = page.raw[start : start + unpack_from("<H", page.raw, place + 6)[0]]
                if key.startswith(owner):
                    if page.is_leaf:
                        return
                    at = page.number * PAGE_BYTES + start + len(owner)
                    found.append((at, key[len(owner) :]))
        for at, held in found:
            self._blank(at, held)

    def blank_tree(self, tree: Tree, start: bytes, pages_max: int) -> bytes | None:
        """Blank what lies between entries and behind values, from the page of a key on; the key
        to go on from, None at the end. At least the pages on the way to a leaf are done, and
        another one."""
        for count, page in enumerate(self._pages(tree, start)):
            if count >= pages_max and page.low > start:
                return page.low
            kind = LEAF if page.is_leaf else BRANCH
            places = self.file.places(page.number, page.raw, kind)
            lower, upper = unpack_from("<HH", page.raw, _BOUNDS_AT)
            self._blank(page.number * PAGE_BYTES + lower, page.raw[lower:upper])
            if page.is_leaf:
                for place in places:
                    if page.raw[place + 4] & BIG:
                        entry = self.file.leaf(page.number, page.raw, place)
                        self._blank_behind(page.number, entry)
        return None

    def _blank_behind(self, page: int, entry: Leaf) -> None:
        """Blank what lies behind a value in its overflow pages."""
        count = self.file.run(page, entry)
        used = _HEADER_BYTES + entry.size
        whole = used // PAGE_BYTES
        if used < count * PAGE_BYTES:
            raw = self.file.read(entry.run + whole, count - whole)
            at = used - whole * PAGE_BYTES
            self._blank((entry.run + whole) * PAGE_BYTES + at, raw[at:])

    def blank_free(self, meta: Meta, oldest: int, start: int, stop: int) -> None:
        """Blank those of the pages from `start` up to `stop` that were freed below the transaction
        `oldest`, the oldest that a reader may see, or that lie behind the last page in use."""
        stop = min(stop, self.file.page_count)
        free = [page for listed in self._free(meta, oldest, start, stop) for page in listed]
        free.extend(range(max(start, meta.last_page + 1), stop))
        free.sort()
        if any(page == following for page, following in pairwise(free)):
            raise self.file.damaged(free[0], "it or one behind it is listed as free twice")
        at = 0
        while at < len(free):
            first, count = free[at], 1
            while (
                count < _READ_PAGES and at + count < len(free) and free[at + count] == first + count
            ):
                count += 1
            self._blank(first * PAGE_BYTES, self.file.read(first, count))
            at += count
        if stop == self.file.page_count:  # a power loss may have cut the last page in two
            end = stop * PAGE_BYTES
            self._blank(end, os.pread(self._fd, PAGE_BYTES, end))

    def _free(self, meta: Meta, oldest: int, start: int, stop: int) -> Iterator[memoryview[int]]:
        """The lists of free pages, each cut to the pages asked for."""
        for page in self._pages(meta.free, b""):
            if not page.is_leaf:
                continue
            for place in self.file.places(page.number, page.raw, LEAF):
                entry = self.file.leaf(page.number, page.raw, place)
                if int.from_bytes(entry.key, "little") >= oldest:
                    continue
                numbers = memoryview(self.file.data(page.number, entry)).cast("B").cast("Q")
                count = numbers[0] if len(numbers) else 0
                listed = numbers[1 : 1 + count]
                ends = (listed[-1], listed[0]) if len(listed) else (2, 2)
                if len(listed) < count or not 2 <= ends[0] <= ends[1] <= meta.last_page:
                    raise self.file.damaged(page.number, "a list of free pages is damaged")
                # The highest page comes first.
                first = bisect_right(listed, -stop, key=neg)
                yield listed[first : bisect_right(listed, -start, key=neg)]

    def _pages(self, tree: Tree, start: bytes) -> Iterator[_Page]:
        """The pages that keys from `start` on lie on, or that lead there; branches before what
        is below them."""
        waiting = [(b"", tree.root, tree.depth)] if tree.depth else []
        while waiting:
            low, number, depth = waiting.pop()
            raw = self.file.read(number)
            yield _Page(low, number, raw, depth == 1)
            if depth > 1:
                listed = self.file.below(number, raw)
                first = bisect_right(listed, start, key=_first) - 1
                waiting += [
                    (key or low, child, depth - 1) for key, child in reversed(listed[first:])
                ]

    def _blank(self, at: int, held: bytes) -> None:
        size = len(held)
        zeros = _ZEROS[:size] if size <= len(_ZEROS) else bytes(size)
        if held != zeros:
            if os.pwrite(self._fd, zeros, at) != size:
                raise OSError(f"{self.file.path}: short write")
            self.written += size
