"""Checking a store that no daemon has open: `roost check DIR`.

A check reads everything and changes nothing: each page of the index, each row's and pair's
checksum and shape, the digests against the rows, the documents of sessions, each group of the log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from roost_crdt import logformat
from roost_crdt.errors import ConfigError, CorruptData
from roost_crdt.logformat import Group, Secret
from roost_crdt.record import RowOp, decode_rows
from roost_crdt.rows.layout import unseal
from roostd import pages, segments
from roostd.index import SCHEMA, Index
from roostd.logrecovery import recover
from roostd.sealing import KIND_NAMES
from roostd.segments import Segment
from roostd.store import identity, suspects
from roostd.store.checksessions import check_sessions
from roostd.store.opening import applied_of
from roostd.store.remaking import digest_of
from roostd.store.sums import load_digest
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
    index_damaged: bool = False
    """LMDB must not touch the index's file: its pages are wrong."""


@dataclass(slots=True)
class Repaired:
    """What a repair did, in sentences; `findings` are those from before it."""

    findings: Findings
    done: list[str]


def silent(what: str, done: int, total: int) -> None:
    """Nobody asked how far it is."""


def check(path: Path, progress: Progress = silent) -> Findings:
    """Read a whole store. StoreLocked if a daemon has it open, ConfigError if it is of
    another schema, OSError if its files may not be opened; damage is in the findings."""
    lock_fd = identity.lock(path)
    try:
        return read_all(path, progress)
    finally:
        identity.unlock(lock_fd)


def read_all(path: Path, progress: Progress) -> Findings:
    """The same, of a store that the caller has locked."""
    findings = Findings()
    _check_pages(path, findings, progress)
    index = None if findings.problems else open_index(path, findings)
    if index is not None:
        try:
            check_rows(index, findings, progress)
            check_pairs(index, findings, progress)
            _check_sessions(index, findings, progress)
            _check_log(path, index, findings, progress)
        finally:
            index.close()
    return findings


def _check_pages(path: Path, findings: Findings, progress: Progress) -> None:
    """Walk the index's file before LMDB does: a damaged page may end the process there."""
    data = path / "index" / "data.mdb"
    if not data.exists() or not data.stat().st_size:
        findings.problems.append(f"{data}: the index is gone")
        return
    data.open("rb").close()  # who may not read it finds no damage
    findings.problems += pages.inspect(
        data, lambda done, total: progress("index pages", done, total)
    )
    findings.index_damaged = bool(findings.problems)


def open_index(path: Path, findings: Findings) -> Index | None:
    data = path / "index" / "data.mdb"
    size = data.stat().st_size if data.exists() else 0
    try:
        if not size:
            raise CorruptData(f"{data}: the index is gone")
        index = Index(path / "index", size + map_margin(path))
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


def check_rows(index: Index, findings: Findings, progress: Progress) -> None:
    total = index.counts()[b"rows"]
    for name, sealed in _stored(index):
        findings.rows += 1
        progress("rows", findings.rows, total)
        try:
            type_code, body = unseal(name, sealed)
            list(decode_rows([RowOp(name, type_code, body)]))
        except CorruptData as exc:
            findings.damaged_rows.append(name)
            findings.problems.append(f"{index.path}: {exc}")
    lacking = len(suspects.decode(index.meta(suspects.NAME)))
    if lacking:
        findings.problems.append(
            f"{index.path}: rows of {lacking} buckets of keys were lost to damage before; a node "
            "with neighbours fetches them by itself once it is started"
        )
    if findings.damaged_rows:
        return
    try:
        findings.digest_differs = load_digest(index) != digest_of(index, progress)
    except CorruptData as exc:
        findings.digest_differs = True
        findings.problems.append(str(exc))
        return
    if findings.digest_differs:
        findings.problems.append(f"{index.path}: the digests are not those of the rows")


def check_pairs(index: Index, findings: Findings, progress: Progress) -> None:
    for kind, name in KIND_NAMES.items():
        told = partial(progress, f"entries of {name.decode()}")
        damaged, missing = index.damaged_pairs(kind, told)
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


def _check_log(path: Path, index: Index, findings: Findings, progress: Progress) -> None:
    secret = Secret.from_bytes(index.meta(b"secret") or b"")
    applied, _ = applied_of(path, index)
    next_seq = 0
    listed = listing(path, findings)
    for segment in listed:
        findings.segments += 1
        progress("log segments", findings.segments, len(listed))
        data = segment.path.read_bytes()
        end = logformat.SEGMENT_HEADER_BYTES
        for group in all_groups(data, secret):
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


def listing(path: Path, findings: Findings) -> list[Segment]:
    try:
        return segments.listing(path / "log")
    except (CorruptData, OSError) as exc:
        findings.problems.append(str(exc))
        return []


def all_groups(data: bytes, secret: Secret) -> Iterator[Group]:
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


def map_margin(path: Path) -> int:
    """Room for what the log may add to the index."""
    logged = sum(segment.size for segment in listing(path, Findings()))
    return _MAP_MARGIN_BYTES + 4 * logged
