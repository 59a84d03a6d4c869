"""Checking and repairing a store that no daemon has open: `roost check DIR [--repair]`.

A check reads everything: each row's checksum and shape, the digests against the rows, each
group of the log. A repair keeps all that can be read, in the index and in every whole group of
the log, also of those behind a damaged place, and gives the store a new identity with an empty
log: what was damaged comes back from neighbours, as the version vector claims only what is
surely held. Nothing is deleted: what could not be used is moved aside inside the directory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from roost_crdt import digest, logformat
from roost_crdt.errors import ConfigError, CorruptData
from roost_crdt.logformat import Entry, Group, Secret
from roost_crdt.record import RowOp, decode_rows
from roost_crdt.rows.layout import unseal
from roostd import segments
from roostd.index import KIND_NAMES, SCHEMA, Index
from roostd.logrecovery import recover
from roostd.segments import Segment
from roostd.store import identity
from roostd.store.applier import BUCKET_PREFIX, HOUR_PREFIX, digest_pairs, load_digest, sealed_row
from roostd.store.checksessions import check_sessions, drop_sessions
from roostd.store.opening import applied_of, create_identity
from roostd.store.replay import redo
from roostd.store.state import State
from roostd.store.upgrading import OLDEST, UPGRADING, check_schema

_PAGE_ROWS = 1_000
_PAGE_BYTES = 4 << 20
_MAP_MARGIN_BYTES = 64 << 20

Progress = Callable[[str, int, int], None]
"""Called with what is being read, and how many of how many there are."""


@dataclass(slots=True)
class Findings:
    """What a check read, and what is wrong (`problems` empty: nothing)."""

    rows: int = 0
    sessions: int = 0
    segments: int = 0
    entries: int = 0
    problems: list[str] = field(default_factory=list)
    damaged_rows: list[bytes] = field(default_factory=list)
    damaged_pairs: dict[int, list[bytes]] = field(default_factory=dict)
    """Kind of log entry -> keys of its database whose values fail their checksum."""
    damaged_sessions: list[str] = field(default_factory=list)
    digest_differs: bool = False


@dataclass(slots=True)
class Repaired:
    """What a repair did, in sentences; `findings` are those from before it."""

    findings: Findings
    done: list[str]


def _silent(what: str, done: int, total: int) -> None:
    """Nobody asked how far it is."""


def check(path: Path, progress: Progress = _silent) -> Findings:
    """Read a whole store. StoreLocked if a daemon has it open, ConfigError if it is of
    another schema; damage is in the findings."""
    lock_fd = identity.lock(path)
    try:
        findings = Findings()
        index = _open_index(path, findings)
        if index is not None:
            try:
                _check_rows(index, findings, progress)
                _check_pairs(index, findings)
                _check_sessions(index, findings, progress)
                _check_log(path, index, findings, progress)
            finally:
                index.close()
        return findings
    finally:
        identity.unlock(lock_fd)


def repair(
    path: Path, random_bytes: Callable[[int], bytes], progress: Progress = _silent
) -> Repaired:
    """Make a damaged store one that opens, if `check` finds anything; else change nothing."""
    findings = check(path, progress)
    if not findings.problems:
        return Repaired(findings, [])
    lock_fd = identity.lock(path)
    try:
        return Repaired(findings, _repair(path, findings, random_bytes))
    finally:
        identity.unlock(lock_fd)


def _open_index(path: Path, findings: Findings) -> Index | None:
    data = path / "index" / "data.mdb"
    size = data.stat().st_size if data.exists() else 0
    try:
        if not size:
            raise CorruptData(f"{data}: the index is gone")
        index = Index(path / "index", size + _map_margin(path))
    except CorruptData as exc:
        findings.problems.append(str(exc))
        return None
    try:
        if check_schema(index) != SCHEMA or index.meta(UPGRADING) is not None:
            raise ConfigError(
                f"{path}: the store has schema {OLDEST}; start roostd on it, which upgrades it, "
                "stop it and check again"
            )
        if index.meta(b"store_id") is None or len(index.meta(b"secret") or b"") != 8:
            raise CorruptData(f"{path / 'index'}: without the store's names in meta")
        applied_of(path, index)
    except CorruptData as exc:
        findings.problems.append(str(exc))
        index.close()
        return None
    except ConfigError:
        index.close()
        raise
    return index


def _stored(index: Index) -> Iterator[tuple[bytes, bytes]]:
    start, complete = b"", False
    while not complete:
        page, complete = index.rows_after(start, _PAGE_ROWS, _PAGE_BYTES)
        yield from page
        if page:
            start = page[-1][0] + b"\0"


def _check_rows(index: Index, findings: Findings, progress: Progress) -> None:
    total = index.row_count()
    for name, sealed in _stored(index):
        findings.rows += 1
        progress("rows", findings.rows, total)
        try:
            type_code, body = unseal(name, sealed)
            list(decode_rows([RowOp(name, type_code, body)]))
        except CorruptData as exc:
            findings.damaged_rows.append(name)
            findings.problems.append(f"{index.path}: {exc}")
    if findings.damaged_rows:
        return
    try:
        findings.digest_differs = load_digest(index) != digest_of(index)
    except CorruptData as exc:
        findings.digest_differs = True
        findings.problems.append(str(exc))
        return
    if findings.digest_differs:
        findings.problems.append(f"{index.path}: the digests are not those of the rows")


def _check_pairs(index: Index, findings: Findings) -> None:
    for kind, name in KIND_NAMES.items():
        damaged, missing = index.damaged_pairs(kind)
        findings.problems += [
            f"{index.path}: {name.decode()} {key!r} fails its checksum" for key in damaged
        ]
        if missing:
            findings.problems.append(f"{index.path}: {missing} entries of {name.decode()} are gone")
        if damaged or missing:
            findings.damaged_pairs[kind] = damaged


def _check_sessions(index: Index, findings: Findings, progress: Progress) -> None:
    if logformat.KIND_SESSION in findings.damaged_pairs:
        return  # a repair looks at what is left
    for sid, wrong in check_sessions(index):
        findings.sessions += 1
        progress("sessions", findings.sessions, 0)
        if wrong:
            findings.damaged_sessions.append(sid)
            findings.problems.append(f"{index.path}: session {sid}: {wrong}")


def digest_of(index: Index) -> tuple[list[int], dict[int, int]]:
    """The sums by bucket and by hour, computed anew."""
    state = State(index, {}, 0, 0)
    buckets = [0] * digest.BUCKETS
    hours: dict[int, int] = {}
    for key in index.keys_from(b"", b""):
        held = state.load(key)
        part = digest.contribution(held.type, key, held.rows)
        at = digest.bucket_of(key)
        buckets[at] = (buckets[at] + part.live) % digest.MODULUS
        for hour, amount in part.hours.items():
            hours[hour] = (hours.get(hour, 0) + amount) % digest.MODULUS
    return buckets, {hour: amount for hour, amount in hours.items() if amount}


def _check_log(path: Path, index: Index, findings: Findings, progress: Progress) -> None:
    secret = Secret.from_bytes(index.meta(b"secret") or b"")
    applied, _ = applied_of(path, index)
    next_seq = 0
    listed = _listing(path, findings)
    for segment in listed:
        findings.segments += 1
        progress("log segments", findings.segments, len(listed))
        data = segment.path.read_bytes()
        end = logformat.SEGMENT_HEADER_BYTES
        for group in _all_groups(data, secret):
            findings.entries += group.entry_count
            if group.offset != end or (next_seq and group.seq != next_seq):
                findings.problems.append(
                    f"{segment.path}: damaged between bytes {end} and {group.offset}; seq "
                    f"{next_seq or 'unknown'} was expected, {group.seq} follows"
                )
            end, next_seq = group.end, group.last_seq + 1
    if findings.problems:
        return
    try:
        recover(path / "log", applied, index.meta(b"log_id") or b"", secret, cut=False)
    except CorruptData as exc:
        findings.problems.append(str(exc))


def _listing(path: Path, findings: Findings) -> list[Segment]:
    try:
        return segments.listing(path / "log")
    except (CorruptData, OSError) as exc:
        findings.problems.append(str(exc))
        return []


def _all_groups(data: bytes, secret: Secret) -> Iterator[Group]:
    """Every whole group of a segment, also those behind a damaged place."""
    at = logformat.SEGMENT_HEADER_BYTES
    while True:
        group = logformat.parse_group(data, at, secret)
        if group is None:
            group = logformat.find_whole_group(data, at, secret)
        if group is None:
            return
        yield group
        at = group.end


def _repair(path: Path, findings: Findings, random_bytes: Callable[[int], bytes]) -> list[str]:
    done: list[str] = []
    index = _open_index(path, Findings())
    entries: list[Entry] = []
    seq, vv = 0, dict[int, int]()
    if index is not None:
        secret = Secret.from_bytes(index.meta(b"secret") or b"")
        applied, vv = applied_of(path, index)
        seq = applied.seq
    else:
        secret = _secret_of_log(path)
        aside = _move_aside(path, "index")
        if aside:
            done.append(f"the index could not be used; it is now {aside}")
        index = Index(path / "index", _map_margin(path))
    try:
        for segment in _listing(path, Findings()):
            data = segment.path.read_bytes()
            for group in _all_groups(data, secret):
                entries += [e for e in _readable(data, group) if e.seq > seq]
        if findings.damaged_rows:
            index.write([(name, None) for name in sorted(findings.damaged_rows)], {})
            done.append(f"{len(findings.damaged_rows)} damaged rows are gone")
            vv = {}
        done += _drop_pairs(index, findings)
        if findings.damaged_sessions:
            drop_sessions(index, findings.damaged_sessions)
            done.append(
                f"{len(findings.damaged_sessions)} damaged sessions are gone here; where there is "
                "a standby, it takes over"
            )
        held = _take_in(index, path, entries, seq, vv)
        done.append(f"{held} entries of the log above seq {seq} were put into the index")
        aside = _move_aside(path, "log")
        if aside:
            done.append(f"the log as it was is now {aside}; delete it when all is well")
        (path / "log").mkdir(mode=0o750)
        create_identity(path, index, random_bytes)
    finally:
        index.close()
    done.append("the store has a new id and a new actor; what is missing comes from its neighbours")
    return done


def _drop_pairs(index: Index, findings: Findings) -> list[str]:
    """Remove damaged pairs, and find the sessions that are not whole without theirs."""
    done = []
    for kind, keys in findings.damaged_pairs.items():
        index.write((), {kind: [(key, None) for key in keys]})
        pairs, complete = index.pairs_after(kind, b"", 1 << 40, 1 << 40)
        assert complete
        index.rewrite(kind, pairs)
        done.append(f"{KIND_NAMES[kind].decode()}: {len(keys)} damaged entries are gone")
    if logformat.KIND_SESSION in findings.damaged_pairs:
        findings.damaged_sessions = [sid for sid, wrong in check_sessions(index) if wrong]
    return done


def _readable(data: bytes, group: Group) -> list[Entry]:
    try:
        return list(logformat.entries(data, group))
    except CorruptData:
        return []


def _take_in(index: Index, path: Path, entries: list[Entry], seq: int, vv: dict[int, int]) -> int:
    """Join entries into the index; vouch only for what surely has no gap before it."""
    state = State(index, vv, seq, 0)
    taken, gapless = 0, bool(vv) or seq == 0
    for entry in sorted(entries, key=lambda entry: entry.seq):
        gapless = gapless and entry.seq == seq + 1
        seq = entry.seq
        try:
            redo(state, entry, path, gapless=gapless)
        except CorruptData:
            gapless = False
            continue
        taken += 1
    batch = state.batch
    rows = [
        (name, None if write is None else sealed_row(name, write))
        for name, write in sorted(batch.rows.items())
    ]
    items = {kind: sorted(pairs.items()) for kind, pairs in batch.items.items()}
    index.write(rows, items)
    old = [
        name
        for prefix in (BUCKET_PREFIX, HOUR_PREFIX)
        for name, _ in index.scan(logformat.KIND_META, prefix, b"", 1 << 20)
    ]
    index.write((), {logformat.KIND_META: [(name, None) for name in old]})
    pairs = digest_pairs(*digest_of(index))
    encoded = msgspec.msgpack.encode(state.vv)
    index.write((), {logformat.KIND_META: sorted([*pairs, (b"vv", encoded)])})
    return taken


def _secret_of_log(path: Path) -> Secret:
    """The secret from any readable segment header, when the index is gone."""
    for segment in _listing(path, Findings()):
        raw = segments.read(segment, 0, logformat.SEGMENT_HEADER_BYTES)
        try:
            header = logformat.decode_segment_header(raw)
        except CorruptData:
            continue
        if header is not None:
            return Secret.from_bytes(header.secret)
    return Secret.from_bytes(bytes(logformat.SECRET_BYTES))


def _map_margin(path: Path) -> int:
    """Room for what the log may add to the index."""
    logged = sum(segment.size for segment in _listing(path, Findings()))
    return _MAP_MARGIN_BYTES + 4 * logged


def _move_aside(path: Path, name: str) -> str:
    """Rename a directory to `name.damaged-N`; its new name, "" if there was none."""
    if not (path / name).exists():
        return ""
    number = 1
    while (path / f"{name}.damaged-{number}").exists():
        number += 1
    (path / name).rename(path / f"{name}.damaged-{number}")
    segments.sync_directory(path)
    return f"{name}.damaged-{number}"
