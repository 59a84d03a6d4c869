"""The scrub: reads the whole index in the background, as LMDB has no checksums of its own.

It runs in the thread that applies, a chunk at a time while nothing waits there, at a bounded rate;
without any pause once damage was found. Each row's checksum is looked at, each pair's, and the
sums of the buckets are computed anew: a row whose name was damaged, or that a damaged page does not
show any more, is missing in them. What is applied meanwhile to keys that were read already is added
to them, so that at the end of a pass they have to be those that the index keeps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import lmdb

from roost_crdt import digest
from roost_crdt.errors import CorruptData
from roost_crdt.rows import decode_row
from roost_crdt.rows.layout import Rows, unseal
from roostd.index import Index
from roostd.sealing import KIND_NAMES
from roostd.store.suspects import ALL

CHUNK_ROWS = 500
CHUNK_BYTES = 128 << 10
QUIET_ROWS = 200
"""More than a page has."""
_NAMED_MAX = 20
_LOST_MAX = 1_000
_HURRY_PAUSE_S = 5.0


@dataclass(slots=True)
class Pass:
    """What a pass has found so far."""

    buckets: dict[int, int] = field(default_factory=dict)
    hours: dict[int, int] = field(default_factory=dict)
    rows: int = 0
    damaged: dict[bytes, bytes] = field(default_factory=dict)
    """Name of each damaged row -> the name from which on it was found."""
    pairs: list[str] = field(default_factory=list)
    """Damaged pairs, by name."""
    lost: list[tuple[int, bytes]] = field(default_factory=list)
    """The same by kind and key."""
    structure: str = ""
    """What is wrong with the order of names or the pages."""


@dataclass(slots=True)
class Scrubbed:
    """What a pass says of the index, and the sums of the rows that are left in it."""

    damaged: list[tuple[bytes, bytes]]
    """Where a search for it begins, and its name, of each damaged row."""
    differing: int
    """Buckets whose sums were not those of the rows."""
    lacking: frozenset[int]
    """Buckets that lack rows."""
    pairs: list[str]
    lost: list[tuple[int, bytes]]
    structure: str
    buckets: list[int]
    hours: dict[int, int]

    @property
    def wrong(self) -> bool:
        return bool(self.lacking or self.pairs)

    @property
    def problem(self) -> str:
        """What cannot be mended while the index is open."""
        return self.structure


def judge(found: Pass, buckets: list[int], hours: dict[int, int]) -> Scrubbed:
    """Compare what a pass has summed up with the sums that the index keeps."""
    summed = [found.buckets.get(at, 0) for at in range(digest.BUCKETS)]
    due = {hour: amount for hour, amount in found.hours.items() if amount}
    differing = {at for at in range(digest.BUCKETS) if summed[at] != buckets[at]}
    named = {digest.bucket_of(name.partition(b"\0")[0]) for name in found.damaged}
    others = len(found.damaged) > len(differing)  # rates and deleted rows are in no sum
    everywhere = found.structure or others or due != {hour: n for hour, n in hours.items() if n}
    return Scrubbed(
        [(start, name) for name, start in found.damaged.items()],
        len(differing),
        ALL if everywhere else frozenset(differing | named),
        found.pairs,
        found.lost,
        found.structure,
        summed,
        {**dict.fromkeys(hours, 0), **due},
    )


class Scrub:
    """One pass after another. Called by one thread."""

    def __init__(
        self,
        index: Index,
        *,
        bytes_per_s: int,
        pause_ms: int,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._index = index
        self._bytes_per_s = bytes_per_s
        self._pause_s = pause_ms / 1000
        self._now = now
        self._due = now()
        self._ended = -_HURRY_PAUSE_S
        self._pass: Pass | None = None
        self._steps: Iterator[int] | None = None
        self._upto = b""
        self._hurry = self._again = False

    def wait_s(self) -> float:
        """How long until the next step."""
        return max(0.0, self._due - self._now())

    def hurry(self) -> None:
        """A read met damage: begin a pass soon, or go on without pauses and begin another one, as
        the damage may lie behind. From any thread."""
        self._again = self._again or self._pass is not None
        self._due, self._hurry = max(self._now(), self._ended + _HURRY_PAUSE_S), True

    @property
    def summed(self) -> bytes:
        """Keys below this one are summed up; empty: none are."""
        return b"" if self._pass is None else self._upto

    def add(self, key: bytes, change: digest.Contribution, sign: int) -> None:
        """The sums of a key have changed in the index."""
        if self._pass is not None and key < self._upto:
            self._sum(key, change, sign)

    def step(self) -> Pass | None:
        """Read a chunk; what the pass found if this was its end."""
        if self._pass is None or self._steps is None:
            self._pass, self._upto = Pass(), b""
            self._steps = self._read(self._pass)
        found = self._pass
        try:
            size = next(self._steps, None)
        except (CorruptData, lmdb.CorruptedError, lmdb.PageNotFoundError) as exc:
            found.structure, size = str(exc), None
        except lmdb.Error:
            self._pass = self._steps = None
            self._due = self._now() + _HURRY_PAUSE_S
            raise
        if size is not None:
            quick = self._hurry or found.damaged or found.structure
            self._due = self._now() + (0 if quick else size / self._bytes_per_s)
            return None
        self._pass = self._steps = None
        self._hurry, self._again = self._again, False
        self._ended = self._now()
        self._due = self._ended + (_HURRY_PAUSE_S if self._hurry else self._pause_s)
        return found

    def _sum(self, key: bytes, change: digest.Contribution, sign: int = 1) -> None:
        assert self._pass is not None
        sums = self._pass
        if change.live:
            at = digest.bucket_of(key)
            sums.buckets[at] = (sums.buckets.get(at, 0) + sign * change.live) % digest.MODULUS
        for hour, amount in change.hours.items():
            sums.hours[hour] = (sums.hours.get(hour, 0) + sign * amount) % digest.MODULUS

    def _read(self, found: Pass) -> Iterator[int]:
        """All rows, then all pairs; yields the bytes of each chunk, with no key half read."""
        start, complete, size, keys = b"", False, 0, 0
        key, type_code, last = b"", 0, b""
        kept: Rows = {}
        while not complete:
            entries, complete = self._index.entries_from(start, CHUNK_ROWS, CHUNK_BYTES, QUIET_ROWS)
            for number, (name, sealed, whole) in enumerate(entries):
                if not number % 64:
                    time.sleep(0)  # lets the node's thread have the interpreter
                size += len(name) + len(sealed)
                if not whole:
                    found.damaged.setdefault(name, start)
                    continue
                if name <= last:
                    found.structure = f"{self._index.path}: keys are out of order at {name!r}"
                    continue
                last = name
                its, _, part = name.partition(b"\0")
                if its != key:
                    self._close(key, type_code, kept)
                    found.rows += len(kept)
                    key, kept, keys = its, {}, keys + 1
                type_code, body = unseal(name, sealed)
                kept[part] = decode_row(type_code, part, body)
            if complete or keys < 2:  # the end, or one key larger than a chunk
                start = last + b"\0"
                continue
            self._upto = key
            start, key, kept, last, keys = key + b"\0", b"", {}, b"", 0
            yield size
            size = 0
        self._close(key, type_code, kept)
        found.rows += len(kept)
        self._upto = b"\xff" * 256
        yield size
        for kind in KIND_NAMES:
            yield from self._read_pairs(found, kind)

    def _close(self, key: bytes, type_code: int, rows: Rows) -> None:
        if rows:
            self._sum(key, digest.contribution(type_code, key, rows))

    def _read_pairs(self, found: Pass, kind: int) -> Iterator[int]:
        start, complete = b"", False
        while not complete:
            page, complete = self._index.stored_after(kind, start, CHUNK_ROWS, CHUNK_BYTES)
            for key, stored in page:
                try:
                    self._index.unsealed(kind, key, stored)
                except CorruptData as exc:
                    if len(found.pairs) < _NAMED_MAX:
                        found.pairs.append(str(exc))
                    if len(found.lost) < _LOST_MAX:
                        found.lost.append((kind, key))
                start = key + b"\0"
            yield sum(len(key) + len(stored) for key, stored in page)
