"""Opening the log: which segments are in use, where it ends, what a broken tail means.

Only segments from the applied position on are scanned, so a start costs the unapplied tail.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from roost_crdt import logformat
from roost_crdt.errors import CorruptData
from roost_crdt.logformat import OriginIndex, Secret
from roostd import segments
from roostd.segments import Segment

REPAIR = "run: roost check DIR --repair"


class Position(NamedTuple):
    """A place in the log: segment number, byte offset."""

    segment: int
    offset: int


class Applied(NamedTuple):
    """What the index says it holds: entries up to `seq`; the log goes on at `position`.

    `head` is (actor, hlc, chain) of the own actor there.
    """

    seq: int
    position: Position | None
    head: tuple[int, int, bytes]


@dataclass(slots=True)
class Recovered:
    """The log as it was found, torn tail already cut.

    `used` segments in order, the last one is written on; `spares` were made ahead.
    """

    used: list[Segment]
    spares: list[Segment]
    first_replayed: int
    """Index in `used` of the first segment with entries to replay."""
    last_seq: int
    head: tuple[int, int, bytes]
    torn_bytes: int = 0
    torn_at: str = ""
    dropped: tuple[str, ...] = ()
    """Segments from before a gap that lies wholly below what is applied: deleted."""


def recover(
    directory: Path, applied: Applied, store_id: bytes, secret: Secret, *, cut: bool = True
) -> Recovered:
    """Read the end of the log. Raises CorruptData, with place and remedy, for damage.

    `cut` False: only look, leave torn bytes and leftover segments where they are.
    """
    used, headless, spares = _classify(directory, store_id)
    used, dropped = _drop_before_gap(directory, used, applied, cut)
    if not used:
        if applied.seq:
            raise CorruptData(
                f"{directory}: the log is gone, but the index has applied seq {applied.seq}; "
                f"put the log back, or {REPAIR}"
            )
        found = Recovered([], spares, 0, 0, applied.head)
    else:
        found = _scan(directory, used, spares, applied, secret, cut)
    found.dropped = dropped
    if headless is not None:
        # Its first write was torn: the header went with it.
        _cut(found, headless, 0, headless.path.read_bytes(), applied.seq, secret, cut)
        found.spares.insert(0, headless)
    return found


def _classify(
    directory: Path, store_id: bytes
) -> tuple[list[Segment], Segment | None, list[Segment]]:
    """Segments in use, at most one without a readable header, and those made ahead."""
    used: list[Segment] = []
    headless: Segment | None = None
    spares: list[Segment] = []
    listed = segments.listing(directory)
    for segment in listed:
        raw = segments.read(segment, 0, logformat.SEGMENT_HEADER_BYTES)
        try:
            header = logformat.decode_segment_header(raw)
        except logformat.UnknownVersion as exc:
            raise CorruptData(f"{segment.path}: {exc}") from exc
        except CorruptData:
            header = None
        if header is None:
            if segments.is_blank(segment):
                spares.append(segment)
            elif headless is None and not spares:
                headless = segment
            else:
                raise CorruptData(f"{segment.path}: its header is damaged; {REPAIR}")
            continue
        blocking = headless or (spares[0] if spares else None)
        if blocking is not None:
            raise CorruptData(
                f"{blocking.path}: empty or damaged, but segment {segment.number} after it is "
                f"in use; {REPAIR}"
            )
        if header.store_id != store_id:
            raise CorruptData(
                f"{segment.path}: it is of the log {header.store_id.hex()}, the index goes with "
                f"the log {store_id.hex()}: put back what belongs here in place of the other; "
                f"to go on with what the index holds, {REPAIR}"
            )
        if header.number != segment.number:
            raise CorruptData(
                f"{segment.path}: this is segment {header.number} under another name; rename it to "
                f"{header.number:016d}{segments.SUFFIX}, or {REPAIR}"
            )
        segment.first_seq = header.first_seq
        used.append(segment)
    for older, newer in itertools.pairwise(listed):
        if newer.number != older.number + 1 and newer not in used:
            raise CorruptData(f"{directory}: segment {older.number + 1} is missing; {REPAIR}")
    return used, headless, spares


def _drop_before_gap(
    directory: Path, used: list[Segment], applied: Applied, cut: bool
) -> tuple[list[Segment], tuple[str, ...]]:
    """Deleting old segments may be cut short by a crash in any order: what lies before a gap
    is deleted too, if it is applied. Any other gap is damage."""
    for at in range(len(used) - 1, 0, -1):
        if used[at].number == used[at - 1].number + 1:
            continue
        if used[at].first_seq > applied.seq + 1:
            raise CorruptData(
                f"{directory}: segment {used[at].number - 1} is missing and holds entries above "
                f"the applied seq {applied.seq}; {REPAIR}"
            )
        old = used[:at]
        if not cut:
            return used[at:], ()
        for segment in old:
            segment.path.unlink()
        segments.sync_directory(directory)
        return used[at:], tuple(segment.path.name for segment in old)
    return used, ()


def _scan(
    directory: Path,
    used: list[Segment],
    spares: list[Segment],
    applied: Applied,
    secret: Secret,
    cut: bool,
) -> Recovered:
    """Walk the groups from the applied position to the end."""
    for segment, following in itertools.pairwise(used):
        if segment.first_seq >= following.first_seq:
            raise CorruptData(
                f"{following.path}: begins at seq {following.first_seq}, which is "
                f"not above that of the segment before; {REPAIR}"
            )
    first = len(used) - 1
    while first >= 0 and used[first].first_seq > applied.seq + 1:
        first -= 1
    if first < 0:
        raise CorruptData(
            f"{directory}: begins at seq {used[0].first_seq}, but the index has applied only "
            f"{applied.seq}; {REPAIR}"
        )
    found = Recovered(used, spares, first, 0, applied.head)
    known_seq, next_seq = applied.seq, used[first].first_seq
    offset, data = logformat.SEGMENT_HEADER_BYTES, b""
    if applied.position is not None and applied.position.segment == used[first].number:
        offset, next_seq = applied.position.offset, applied.seq + 1
    for at in range(first, len(used)):
        segment = used[at]
        data = segment.path.read_bytes()
        if segment.first_seq > next_seq or (at > first and segment.first_seq != next_seq):
            place = used[at - 1]
            raise CorruptData(
                f"{place.path}: damaged at byte {place.end}: seq {next_seq} was expected there, "
                f"and the next segment begins at seq {segment.first_seq}; {REPAIR}"
            )
        segment.indexed_from, segment.end, segment.origins = offset, offset, OriginIndex()
        for group in logformat.scan(data, offset, next_seq, secret):
            segment.end, next_seq = group.end, group.last_seq + 1
            known_seq = max(known_seq, group.synced_seq)
            found.head = (group.actor, group.hlc, group.chain)
            _note(segment.origins, data, group)
        offset = logformat.SEGMENT_HEADER_BYTES
    found.last_seq = next_seq - 1
    _cut(found, used[-1], used[-1].end, data, known_seq, secret, cut)
    return found


def _note(origins: OriginIndex, data: bytes, group: logformat.Group) -> None:
    for entry in logformat.entries(data, group):
        if entry.kind == logformat.KIND_RECORD:
            actor, hlc, _ = logformat.record_span(entry.raw)
            origins.note(actor, hlc, group.offset)


def _cut(
    found: Recovered,
    segment: Segment,
    offset: int,
    data: bytes,
    known_seq: int,
    secret: Secret,
    cut: bool,
) -> None:
    try:
        tail = logformat.judge_tail(data, offset, found.last_seq + 1, known_seq, secret)
    except CorruptData as exc:
        raise CorruptData(f"{segment.path}: {exc}; {REPAIR}") from exc
    if tail.torn_bytes:
        if cut:
            segments.blank(segment.path, offset, tail.torn_bytes)
        found.torn_bytes += tail.torn_bytes
        found.torn_at = f"{segment.path.name}:{offset}"
