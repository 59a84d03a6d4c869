"""Making a damaged store one that opens: `roost check DIR --repair`.

A repair keeps all that can be read, in the index and in every whole group of the log, also of
those behind a damaged place, and gives the store a new identity with an empty log: what was
damaged comes back from neighbours, as the version vector claims only what is surely held. Nothing
is deleted: what could not be used is moved aside inside the directory. A repair that was killed is
begun again.

An index that LMDB must not touch (roostd.pages) is put together anew from its readable entries,
each of which says by its checksum what it is. Where the log has no gap up to its end, all of it is
taken in again, and so brings back damaged rows and pairs whose last write it still holds.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import msgspec

from roost_crdt import logformat
from roost_crdt.errors import ConfigError, CorruptData
from roost_crdt.logformat import Entry, Group, Secret
from roostd import pages, segments
from roostd.index import SCHEMA, Index, u64
from roostd.log import StoreFailed
from roostd.sealing import KIND_NAMES
from roostd.store import identity, suspects
from roostd.store.applier import sealed_row
from roostd.store.checking import (
    Findings,
    Progress,
    Repaired,
    all_groups,
    check_pairs,
    check_rows,
    listing,
    map_margin,
    open_index,
    read_all,
    silent,
)
from roostd.store.checksessions import check_sessions, drop_sessions
from roostd.store.opening import applied_of, create_identity
from roostd.store.remaking import (
    SALVAGED,
    WRITE_BYTES,
    Whole,
    carry,
    digest_of,
    move_aside,
    swap,
)
from roostd.store.replay import redo
from roostd.store.state import State
from roostd.store.sums import BUCKET_PREFIX, HOUR_PREFIX, digest_pairs
from roostd.store.upgrading import OLDEST, UPGRADING

_META = logformat.KIND_META


def repair(
    path: Path, random_bytes: Callable[[int], bytes], progress: Progress = silent
) -> Repaired:
    """Make a damaged store one that opens, if `check` finds anything; else change nothing.

    Raises what `check` does, and StoreFailed where the disk is full or fails.
    """
    lock_fd = identity.lock(path, repair=True)
    try:
        findings = read_all(path, progress)
        begun = (path / identity.REPAIRING).exists()
        if begun:
            findings.problems.append(f"{path}: a repair of it did not finish")
        if not findings.problems:
            return Repaired(findings, [])
        done = _repair(path, findings, Whole(not begun, not begun), random_bytes, progress)
        identity.give_to_owner(path, *path.iterdir())
        identity.unmark(path, identity.REPAIRING)
        return Repaired(findings, done)
    except PermissionError:
        raise
    except (lmdb.Error, OSError) as exc:
        room = os.statvfs(path)
        raise StoreFailed(
            f"{path}: the repair did not finish: {exc} ({room.f_bavail * room.f_frsize} bytes free "
            "on the disk); see to that, then repair again: roost check DIR --repair"
        ) from exc
    finally:
        identity.unlock(lock_fd)


def _repair(
    path: Path,
    before: Findings,
    whole: Whole,
    random_bytes: Callable[[int], bytes],
    progress: Progress,
) -> list[str]:
    """`whole`: nothing that the findings do not tell may have been lost before."""
    done: list[str] = []
    findings = before
    index = None if before.index_damaged else open_index(path, Findings())
    if index is None:
        rows, pairs = _salvage(path, done, random_bytes, progress)
        whole = Whole(whole.rows and rows, whole.pairs and pairs)
        index = open_index(path, Findings())
        assert index is not None, "it was just made"
        findings = Findings()
        check_rows(index, findings, progress)
        check_pairs(index, findings, progress)
    try:
        identity.mark(path, identity.REPAIRING)
        _mend(path, index, findings, whole, done, progress)
        aside = move_aside(path, "log")
        if aside:
            done.append(f"the log as it was is now {aside}; delete it when all is well")
        (path / "log").mkdir(mode=0o750)
        create_identity(path, index, random_bytes)
    finally:
        index.close()
    done.append(
        "the store has a new id and a new actor; what is missing comes from its neighbours; where "
        "there are none, or none has it, a backup may"
    )
    return done


def _mend(
    path: Path,
    index: Index,
    findings: Findings,
    whole: Whole,
    done: list[str],
    progress: Progress,
) -> None:
    """Take out what is damaged, put in what the log has, compute the digests anew."""
    rows_whole, pairs_whole = whole.rows, whole.pairs and not findings.damaged_pairs
    secret = Secret.from_bytes(index.meta(b"secret") or b"")
    applied, vv = applied_of(path, index)
    seq = applied.seq
    if findings.damaged_rows:
        index.write([(name, None) for name in sorted(findings.damaged_rows)], {})
        done.append(f"{len(findings.damaged_rows)} damaged rows are gone")
        rows_whole = False
    if findings.digest_differs:
        rows_whole = False  # of rows that are gone without a trace nothing else tells
    if index.meta(suspects.NAME) is not None:
        index.write((), {_META: [(suspects.NAME, None)]})
        rows_whole = False
    _drop_pairs(index, findings, done)
    if not rows_whole:
        vv = {}
    first, last = _extent(path, secret)
    if first and last >= seq and not (rows_whole and pairs_whole):
        # Puts and drops below an applied one are harmless only if all those after it follow.
        from_seq = first - 1
    else:
        from_seq = seq
    held = _take_in(index, path, _entries(path, secret, from_seq, progress), seq, vv, progress)
    done.append(f"{held} entries of the log above seq {from_seq} were put into the index")
    damaged = [sid for sid, wrong in check_sessions(index) if wrong]
    if damaged:
        drop_sessions(index, damaged)
        done.append(
            f"{len(damaged)} damaged sessions are gone here; where there is a standby, it takes "
            "over"
        )


def _drop_pairs(index: Index, findings: Findings, done: list[str]) -> None:
    """Remove damaged pairs; a database that has lost some is put together anew."""
    for kind, keys in findings.damaged_pairs.items():
        index.write((), {kind: [(key, None) for key in keys]})
        pairs, complete = index.pairs_after(kind, b"", 1 << 40, 1 << 40)
        assert complete
        index.rewrite(kind, pairs)
        done.append(f"{KIND_NAMES[kind].decode()}: {len(keys)} damaged entries are gone")


# The index, without LMDB


def _salvage(
    path: Path, done: list[str], random_bytes: Callable[[int], bytes], progress: Progress
) -> Whole:
    """Put a new index together from what can be read of the old one; what of it is whole."""
    if not (path / "index").exists() and (path / SALVAGED).exists():
        (path / SALVAGED).rename(path / "index")  # killed between two renames
        return Whole(rows=False, pairs=False)
    making = path / "index.salvaging"
    shutil.rmtree(making, ignore_errors=True)
    shutil.rmtree(path / SALVAGED, ignore_errors=True)
    data = path / "index" / "data.mdb"
    size = data.stat().st_size if data.exists() else 0
    index = Index(making, 2 * size + map_margin(path))
    try:
        plain: dict[bytes, set[bytes]] = {}
        read, whole = carry(data, index, progress, plain) if size else (0, Whole(False, False))
        _refuse_other_schema(path, index, plain)
        lost = _lost(data, index)
        _name(path, index, random_bytes)
    except BaseException:
        shutil.rmtree(making)
        raise
    finally:
        index.close()
    identity.mark(path, identity.REPAIRING)
    aside = swap(path, making)
    if aside:
        done.append(f"the index could not be used; it is now {aside}")
    done.append(f"{read} of its entries could be read and are in the new one; {lost}")
    return whole


def _lost(data: Path, index: Index) -> str:
    """How many entries the salvaged index lacks, in words."""
    try:
        due = pages.entry_counts(data)
    except (CorruptData, OSError):
        return "how many there were cannot be told"
    held = index.counts()
    names = {b"rows": "rows"}
    names |= {n: f"entries of {n.decode()}" for kind, n in KIND_NAMES.items() if kind != _META}
    lacking = [
        f"{due[name] - held[name]} of {due[name]} {what}"
        for name, what in names.items()
        if due.get(name, 0) > held[name]
    ]
    return f"it lacks {', '.join(lacking) or 'none'}"


def _refuse_other_schema(path: Path, index: Index, plain: dict[bytes, set[bytes]]) -> None:
    """ConfigError if what was salvaged is of another release, whose entries look otherwise."""
    layout = index.meta(b"layout")
    told = {layout} if layout is not None else plain.get(b"schema", set())
    upgrading = index.meta(UPGRADING) is not None
    if upgrading or (told and u64(SCHEMA) not in told):
        schema = OLDEST if upgrading else int.from_bytes(max(told), "big")
        raise ConfigError(
            f"{path}: the index is damaged, and it is of schema {schema}, of which this release "
            f"({SCHEMA}) cannot tell whole entries from damaged ones; repair it with the release "
            "that wrote it, restore a backup, or start with an empty node.data and let neighbours "
            "fill it"
        )


def _name(path: Path, index: Index, random_bytes: Callable[[int], bytes]) -> None:
    """Give a salvaged index the names that a check asks for, where it has them no more."""
    log_secret = secret_of_log(path)
    meta: dict[bytes, bytes] = {}
    for name, value in (
        (b"secret", log_secret),
        (b"log_id", random_bytes(16)),
        (b"applied", u64(0)),
        (b"vv", msgspec.msgpack.encode({})),
        (b"head", msgspec.msgpack.encode((0, 0, logformat.CHAIN_START))),
        (b"position", msgspec.msgpack.encode((0, 0))),
    ):
        meta[name] = index.meta(name) or value
    meta[b"applied_seq"] = meta[b"applied"]
    meta |= {b"schema": u64(SCHEMA), b"layout": u64(SCHEMA), b"store_id": random_bytes(16)}
    index.write((), {_META: sorted(meta.items())})


def secret_of_log(path: Path) -> bytes:
    """The secret from any readable segment header, when the index is gone."""
    for segment in listing(path, Findings()):
        raw = segments.read(segment, 0, logformat.SEGMENT_HEADER_BYTES)
        try:
            header = logformat.decode_segment_header(raw)
        except CorruptData:
            continue
        if header is not None:
            return header.secret
    return bytes(logformat.SECRET_BYTES)


# The log


def _groups(path: Path, secret: Secret) -> Iterator[tuple[bytes, Group]]:
    for segment in listing(path, Findings()):
        data = segment.path.read_bytes()
        for group in all_groups(data, secret):
            yield data, group


def _extent(path: Path, secret: Secret) -> tuple[int, int]:
    """First and last entry of a log without a gap; (0, 0) if it has one."""
    first = last = 0
    for _, group in _groups(path, secret):
        if last and group.seq != last + 1:
            return 0, 0
        first, last = first or group.seq, group.last_seq
    return first, last


def _entries(path: Path, secret: Secret, above: int, progress: Progress) -> Iterator[Entry]:
    count = 0
    for data, group in _groups(path, secret):
        if group.last_seq <= above:
            continue
        try:
            for entry in logformat.entries(data, group):
                if entry.seq > above:
                    count += 1
                    if not count % 1_000:
                        progress("log entries", count, 0)
                    yield entry
        except CorruptData:
            continue


def _take_in(
    index: Index,
    path: Path,
    entries: Iterator[Entry],
    applied: int,
    vv: dict[int, int],
    progress: Progress,
) -> int:
    """Join entries into the index; vouch only for what surely has no gap before it."""
    taken, gapless, size = 0, bool(vv) or applied == 0, 0
    seq = applied
    state = State(index, vv, applied, 0)
    for entry in entries:
        if entry.seq > applied:
            gapless = gapless and entry.seq == seq + 1
            seq = entry.seq
        try:
            redo(state, entry, path, gapless=gapless)
        except CorruptData:
            gapless = False
            continue
        taken += 1
        size += len(entry.raw)
        if size > WRITE_BYTES:
            _write(index, state)
            state, size = State(index, state.vv, applied, 0), 0
    _write(index, state)
    old = [
        name
        for prefix in (BUCKET_PREFIX, HOUR_PREFIX)
        for name, _ in index.scan(_META, prefix, b"", 1 << 20)
    ]
    index.write((), {_META: [(name, None) for name in old]})
    sums = digest_pairs(*digest_of(index, progress))
    encoded = msgspec.msgpack.encode(state.vv)
    index.write((), {_META: sorted([*sums, (b"vv", encoded)])})
    return taken


def _write(index: Index, state: State) -> None:
    batch = state.batch
    rows = [
        (name, None if write is None else sealed_row(name, write))
        for name, write in sorted(batch.rows.items())
    ]
    items = {kind: sorted(pairs.items()) for kind, pairs in batch.items.items()}
    index.write(rows, items)
