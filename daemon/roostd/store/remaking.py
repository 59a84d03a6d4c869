"""Putting an index together anew from what can be read of a damaged one, without LMDB.

A start does it by itself where only rows can be lost: everything else is there to the last entry.
Identity, log and version vector stay; the buckets whose sums the rows that are left do not have are
suspect from then on (roostd.store.suspects), and mended from the log and the neighbours. Where more
is damaged the start is refused with the command.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from roost_crdt import digest, logformat
from roost_crdt.errors import CorruptData
from roost_crdt.rows.layout import split_row_key, unseal
from roostd import pages, segments
from roostd.index import SCHEMA, Index, u64
from roostd.logrecovery import REPAIR
from roostd.sealing import KIND_NAMES, PLAIN_META, sealed_pairs
from roostd.store import suspects
from roostd.store.identity import surroundings
from roostd.store.reads import names
from roostd.store.state import State
from roostd.store.sums import BUCKET_PREFIX, HOUR_PREFIX, digest_pairs, load_digest

SALVAGED = "index.salvaged"
WRITE_BYTES = 8 << 20
_SALVAGING = "index.salvaging"

Progress = Callable[[str, int, int], None]


def remake_if_damaged(path: Path, size_max: int, check_bytes: int) -> tuple[str, bool]:
    """Look at the pages of an index that is small enough, or that a scrub found damaged; what was
    done about them ("" for nothing), and whether all of them are known to be right now. CorruptData
    if more than rows is lost."""
    if not (path / "index").exists() and (path / SALVAGED).exists():
        (path / SALVAGED).rename(path / "index")  # killed between two renames
        segments.sync_directory(path)
    data, wanted = path / "index" / "data.mdb", path / suspects.WANTED
    size = data.stat().st_size if data.exists() else 0
    if not size:
        return "", False
    if size > check_bytes and not wanted.exists():
        try:
            pages.check_head(data)
        except CorruptData:
            pass
        else:
            return "", False
    problems = pages.inspect(data)
    done = ""
    if problems:
        try:
            done = _remake(path, data, size_max)
        except CorruptData as exc:
            shutil.rmtree(path / _SALVAGING, ignore_errors=True)
            raise CorruptData(f"{problems[0]}; {exc}; {REPAIR}") from exc
        done = f"{problems[0]}; {done}"
    wanted.unlink(missing_ok=True)
    return done, True


def _remake(path: Path, data: Path, size_max: int) -> str:
    """CorruptData: more than rows is lost; nothing was changed."""
    counts = pages.entry_counts(data)
    making = path / _SALVAGING
    for leftover in (making, path / SALVAGED):
        shutil.rmtree(leftover, ignore_errors=True)
    index = Index(making, max(size_max, 2 * data.stat().st_size))
    try:
        plain: dict[bytes, set[bytes]] = {}
        carry(data, index, lambda what, done, total: None, plain)
        _put_plain(data, index, plain)
        held = index.counts()
        for name in KIND_NAMES.values():
            if held[name] < counts.get(name, 1):
                raise CorruptData(f"{data}: entries of {name.decode()} are lost")
        lost = counts.get(b"rows", 0) - held[b"rows"]
        lacking = _set_sums(index, lost)
    finally:
        index.close()
    aside = swap(path, making)
    return (
        f"the index was put together anew: {held[b'rows']} rows, {max(lost, 0)} lost, of "
        f"{len(lacking)} buckets of keys; the old one is {aside}, delete it when all is well"
    )


def _put_plain(data: Path, index: Index, plain: dict[bytes, set[bytes]]) -> None:
    """The pairs of meta that have no checksum: each of them is repeated, or made at each start."""
    if index.meta(b"layout") != u64(SCHEMA) or index.meta(b"applied") is None:
        raise CorruptData(f"{data}: the index has no names in meta, or they are another release's")
    pairs = {b"schema": index.meta(b"layout"), b"applied_seq": index.meta(b"applied")}
    for name in PLAIN_META - pairs.keys():
        found = plain.get(name, set())
        if len(found) > 1 or (name == b"store_id" and len(found) != 1):
            raise CorruptData(f"{data}: {name.decode()} in meta is damaged")
        pairs[name] = next(iter(found), None)
    now = surroundings(data)
    if index.meta(b"file_id") == now.file_id:  # else the store was copied, which a start notices
        pairs[b"file_id"] = surroundings(index.data_file).file_id
    index.write((), {logformat.KIND_META: sorted(pairs.items())})


def _set_sums(index: Index, lost: int) -> frozenset[int]:
    """Set the sums right; the buckets that lack rows, all if `lost` rows are more than they tell
    of: rates and deleted rows are in no sum."""
    before, hours_before = load_digest(index)
    buckets, hours = digest_of(index)
    due = hours != {hour: amount for hour, amount in hours_before.items() if amount}
    differing = frozenset(at for at in range(digest.BUCKETS) if buckets[at] != before[at])
    unknown = due or lost > len(differing)
    lacking = suspects.decode(index.meta(suspects.NAME)) | (suspects.ALL if unknown else differing)
    pairs = digest_pairs(buckets, {**dict.fromkeys(hours_before, 0), **hours})
    pairs.append((suspects.NAME, suspects.encode(lacking)))
    index.write((), {logformat.KIND_META: sorted(pairs)})
    return lacking


def swap(path: Path, making: Path) -> str:
    """Let a new index take the place of the old one; the old one's new name, "" if it is gone."""
    for name in ("data.mdb", "lock.mdb", ""):  # who may read the one may read the other
        if (path / "index" / name).exists():
            (making / name).chmod((path / "index" / name).stat().st_mode & 0o777)
    segments.sync_directory(making)
    making.rename(path / SALVAGED)
    segments.sync_directory(path)
    aside = move_aside(path, "index")
    (path / SALVAGED).rename(path / "index")
    segments.sync_directory(path)
    return aside


def digest_of(
    index: Index, progress: Progress = lambda *_: None
) -> tuple[list[int], dict[int, int]]:
    """The sums by bucket and by hour, computed anew."""
    state = State(index, {}, 0, 0)
    summed, total = 0, index.counts()[b"rows"]
    buckets = [0] * digest.BUCKETS
    hours: dict[int, int] = {}
    for key in index.keys_from(b"", b""):
        held = state.load(key)
        summed += len(held.rows)
        progress("digests", summed, total)
        part = digest.contribution(held.type, key, held.rows)
        at = digest.bucket_of(key)
        buckets[at] = (buckets[at] + part.live) % digest.MODULUS
        for hour, amount in part.hours.items():
            hours[hour] = (hours.get(hour, 0) + amount) % digest.MODULUS
    return buckets, {hour: amount for hour, amount in hours.items() if amount}


def recompute_sums(index: Index) -> None:
    """Put sums computed from the rows in the place of damaged ones. CorruptData if the rows cannot
    be read in order."""
    state = State(index, {}, 0, 0)
    old = [n for p in (BUCKET_PREFIX, HOUR_PREFIX) for n in names(state, logformat.KIND_META, p)]
    stored = {**dict.fromkeys(old), **dict(digest_pairs(*digest_of(index)))}
    index.write((), {logformat.KIND_META: sorted(stored.items())})


class Whole(NamedTuple):
    """Whether none can be missing."""

    rows: bool
    pairs: bool


def carry(
    data: Path, index: Index, progress: Progress, plain: dict[bytes, set[bytes]] | None = None
) -> tuple[int, Whole]:
    """Copy every entry whose checksum holds; how many, and what is whole. Values of the names in
    meta that have no checksum are put into `plain`."""
    rows: dict[bytes, bytes] = {}
    items: dict[int, dict[bytes, bytes]] = {}
    count, size = 0, 0

    def write() -> None:
        index.write(
            sorted(rows.items()), {kind: sorted(pairs.items()) for kind, pairs in items.items()}
        )
        rows.clear()
        items.clear()

    try:
        for key, stored in pages.salvage(data):
            kind = _kind_of(key, stored)
            if kind is None:
                if plain is not None and key in PLAIN_META:
                    plain.setdefault(key, set()).add(stored)
                continue
            if kind == logformat.KIND_RECORD:
                rows[key] = stored
            else:
                items.setdefault(kind, {})[key] = stored[4:]
            count, size = count + 1, size + len(key) + len(stored)
            if size > WRITE_BYTES:
                write()
                size = 0
                progress("readable entries", count, 0)
        write()
        due = pages.entry_counts(data)
    except CorruptData:
        write()
        return count, Whole(rows=False, pairs=False)
    held = index.counts()
    held[KIND_NAMES[logformat.KIND_META]] += len(plain or ())
    pairs = all(held[name] == due.get(name) for name in KIND_NAMES.values())
    return count, Whole(held[b"rows"] == due.get(b"rows"), pairs)


def _kind_of(key: bytes, stored: bytes) -> int | None:
    """Which database an entry is of (KIND_RECORD: a row), by its checksum; None: of none."""
    if len(stored) < 5:
        return None
    try:
        unseal(key, stored)
        split_row_key(key)
    except CorruptData:
        for kind in KIND_NAMES:
            ((_, sealed),) = sealed_pairs(kind, [(key, stored[4:])])
            if sealed == stored:
                return kind
        return None
    return logformat.KIND_RECORD


def move_aside(path: Path, name: str) -> str:
    """Rename a directory to `name.damaged-N`; its new name, "" if there was none."""
    if not (path / name).exists():
        return ""
    number = 1
    while (path / f"{name}.damaged-{number}").exists():
        number += 1
    (path / name).rename(path / f"{name}.damaged-{number}")
    segments.sync_directory(path)
    return f"{name}.damaged-{number}"
