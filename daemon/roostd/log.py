"""The log: what is acknowledged is here, durably, before anybody hears of it.

One thread (the node's) appends and syncs: one write and one fdatasync a group, inline. A thread
of the log's own makes segments ahead, seals and deletes old ones. The format and the decision
about a broken tail are `roost_crdt.logformat`; this module makes the file calls.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Concatenate, NoReturn, ParamSpec, TypeVar

from roost_crdt import logformat
from roost_crdt.errors import Busy, CorruptData, Full, TooLarge
from roost_crdt.limits import DEFAULT_LIMITS
from roost_crdt.logformat import Entry, Group, OpenGroup, OriginIndex, Secret, SegmentHeader
from roostd import segments
from roostd.housekeeping import Housekeeper
from roostd.logrecovery import Applied, Position, Recovered, recover
from roostd.segments import Segment

SEGMENT_BYTES_MAX = 64 * 1024 * 1024
GROUP_BYTES = 4 * 1024 * 1024
"""An open group that would grow beyond this is written first."""
AGE_MAX_MS = DEFAULT_LIMITS.member_silent_ms
"""Older segments are kept for nobody: who was away for so long has to reseed."""
RESERVE = 4
"""This part of the retention is kept for nobody by name: it repairs an index, or brings a node back
that was restored from a backup."""
P = ParamSpec("P")
T = TypeVar("T")
_READ_PAUSE_S = 60.0
READ_SEGMENTS = 4
"""So many are kept, whatever the retention, while somebody reads on through the log: who has just
read to its end is not overtaken by the next segment."""
_RETRY_MS = 50


class StoreFailed(Exception):
    """The disk failed a write or an fdatasync: this process acknowledges nothing any more.

    What it had not acknowledged has an unknown outcome; a restart recovers from the disk.
    """


def _readable(read: Callable[Concatenate[Log, P], T]) -> Callable[Concatenate[Log, P], T]:
    """A file that cannot be read, or was deleted, is damage as any other: CorruptData."""

    @functools.wraps(read)
    def reading(self: Log, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return read(self, *args, **kwargs)
        except OSError as exc:
            raise CorruptData(f"{self.directory}: the log cannot be read: {exc}") from exc

    return reading


class Log:
    """An append-only sequence of entries, numbered from 1. One thread owns it.

    `last_seq` is the newest appended entry, `durable_seq` the newest synced one; `head` is
    (actor, hlc, chain) of the store's own actor and goes into each group header.
    """

    def __init__(
        self,
        directory: Path,
        *,
        segment_bytes: int,
        retention_bytes: int,
        store_id: bytes,
        secret: bytes,
        applied: Applied,
    ) -> None:
        """Open and recover. Raises CorruptData where the log is damaged; see `recovered`."""
        self.directory = directory
        self.segment_bytes = segment_bytes
        self.retention_bytes = retention_bytes
        self.failed: StoreFailed | None = None
        self._acknowledged: Mapping[int, int] | None = None
        self._read_s = -_READ_PAUSE_S
        self._rolling = False
        self._store_id = store_id
        self._secret_raw = secret
        self._secret = Secret.from_bytes(secret)
        directory.mkdir(mode=0o750, exist_ok=True)
        for leftover in directory.glob(f"*{segments.ASIDE}"):
            leftover.unlink()
        self.recovered: Recovered = recover(directory, applied, store_id, self._secret)
        self.head = self.recovered.head
        self.last_seq = self.durable_seq = self.recovered.last_seq
        self._applied_seq = applied.seq
        self._group = OpenGroup()
        self._spans: dict[int, tuple[int, int]] = {}
        self._segments = self.recovered.used
        self._housekeeper = Housekeeper(
            directory, segment_bytes, self._secret, self.recovered.spares
        )
        if not self._segments:
            self._segments.append(self._first_segment())
        self._active = self._segments[-1]
        self._begun = self.last_seq > 0
        """Whether the active segment has its header on disk."""
        self._fd = os.open(self._active.path, os.O_RDWR | os.O_CLOEXEC)
        if self.last_seq > applied.seq:
            os.fdatasync(self._fd)  # a kill may have come between the write and its sync
        self._housekeeper.start(self._active.number + 1)
        self._room = 0
        self._measure()

    def _first_segment(self) -> Segment:
        """A log without entries: its first segment, made now or by an earlier start."""
        spares = self.recovered.spares
        if spares and spares[0].size >= self.segment_bytes:
            segment = spares.pop(0)
        else:
            segment = segments.create(self.directory, 1, self.segment_bytes)
        segment.first_seq, segment.origins = 1, OriginIndex()
        return segment

    def close(self) -> None:
        """End the thread, close the file. What is not synced is dropped."""
        self._housekeeper.stop()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def index_earlier(self) -> None:
        """Let the thread index what lies before the applied position; call once open."""
        if not self._active.complete:
            self._housekeeper.index_earlier(self._active)

    # Writing

    @property
    def dirty(self) -> bool:
        """Whether entries wait for `sync`."""
        return self._group.count > 0

    @property
    def position(self) -> Position:
        """Where the entry after `durable_seq` will begin."""
        return Position(self._active.number, self._active.end)

    @property
    def problem(self) -> str:
        """Why the next segment cannot be made; "" if all is well."""
        return self._housekeeper.problem

    def bytes_used(self) -> int:
        """Bytes of the log's files, the segment made ahead included."""
        spare = self._housekeeper.spare
        return sum(s.size for s in self._segments) + (spare.size if spare else 0)

    def append(self, kind: int, raw: bytes, origin: int = 0, hlc: int = 0) -> int:
        """Put an entry into the open group and return its seq. `origin`, `hlc`: of a RECORD.

        Nothing is durable before `sync`. Raises TooLarge (over a segment), Full (no room for
        the next segment), Busy (it is still being made), StoreFailed; then nothing changed.
        """
        group = self._group
        size = logformat.ENTRY_HEADER_BYTES + len(raw)
        if group.bytes + size > self._room:
            self._make_room(size)
            group = self._group
        group.append(kind, raw)
        self.last_seq += 1
        if origin:
            first = self._spans.get(origin)
            self._spans[origin] = (first[0] if first else hlc, hlc)
        return self.last_seq

    @_readable
    def follows(self, origin: int, hlc: int) -> bool:
        """Whether the durable records of `origin` end at `hlc` and the open group goes on."""
        if origin not in self._spans:
            return False
        for segment in reversed(self._segments):
            last = self._index(segment).last.get(origin)
            if last is not None:
                return last <= hlc
        return True

    def sync(self) -> None:
        """Write the open group and make it durable. StoreFailed is final."""
        if self.failed is not None:
            raise self.failed
        group = self._group
        if not group.count:
            return
        seq = self.durable_seq + 1
        data = group.encode(self._secret, seq, self.durable_seq, *self.head)
        if self._begun and (
            self._active.end + len(data) > self._active.size or self._rolls(len(data))
        ):
            self._rotate(seq)
        active, offset = self._active, self._active.end
        if not self._begun:
            header = SegmentHeader(active.number, seq, self._store_id, self._secret_raw)
            raw, at = logformat.encode_segment_header(header) + data, 0
        else:
            raw, at = data, offset
        try:
            if not os.fstat(self._fd).st_nlink:
                raise OSError("it was deleted")
            written = os.pwrite(self._fd, raw, at)
            if written != len(raw):
                raise OSError(f"short write, {written} of {len(raw)} bytes")
            os.fdatasync(self._fd)
        except OSError as exc:
            self.fail(f"{active.path}: {exc}")
        self._begun = True
        active.end = offset + len(data)
        self.durable_seq = self.last_seq
        assert active.origins is not None
        for origin, (first, last) in self._spans.items():
            active.origins.note(origin, first, offset)
            active.origins.last[origin] = last
        self._spans.clear()
        self._group = OpenGroup()
        self._measure()

    def fail(self, reason: str) -> NoReturn:
        """Refuse every further write."""
        self.failed = StoreFailed(
            f"{reason}; nothing is acknowledged any more. Restart: the store recovers from its log"
        )
        raise self.failed

    def _measure(self) -> None:
        """How large the open group may grow in the active segment."""
        self._room = min(self._active.size - self._active.end, GROUP_BYTES)

    def _make_room(self, size: int) -> None:
        """Make `_room` hold the open group and `size` bytes more, or refuse."""
        if self.failed is not None:
            raise self.failed
        need = logformat.GROUP_HEADER_BYTES + size
        capacity = self.segment_bytes - logformat.SEGMENT_HEADER_BYTES
        if need > capacity:
            raise TooLarge(
                f"{size} bytes do not fit into a log segment of {self.segment_bytes} bytes "
                "(the smaller of 64 MiB and store.size_max / 16)"
            )
        if self._group.count:
            if max(need, self._group.bytes + size) <= self._room:
                return
            self.sync()
        if need <= self._active.size - self._active.end:
            self._room = max(self._room, need)
            return
        if self._housekeeper.spare is None:
            problem = self._housekeeper.problem
            if problem:
                raise Full(f"{problem}; reads go on, writes come back when there is room")
            raise Busy("the next log segment is still being made", retry_after_ms=_RETRY_MS)
        # The group will begin a segment of its own.
        self._room = max(min(capacity, GROUP_BYTES), need)

    def roll(self) -> bool:
        """Have the next group begin a segment of its own; False: none is made ahead yet."""
        self._rolling = self._housekeeper.spare is not None
        return self._rolling

    def _rolls(self, size: int) -> bool:
        spare = self._housekeeper.spare if self._rolling else None
        return spare is not None and logformat.SEGMENT_HEADER_BYTES + size <= spare.size

    def blank(
        self,
        kind: int,
        owners: Collection[bytes],
        last_seq: int,
        done: Callable[[int, str], None],
    ) -> int:
        """Have pairs taken out of the entries up to `last_seq`, which the segment being written
        holds none of (see `roll`); how many times `done` will be called, by another thread."""
        assert self._active.first_seq > last_seq
        old = [segment for segment in self._segments if segment.first_seq <= last_seq]
        for segment in old:
            self._housekeeper.blank(segment, kind, owners, last_seq, done)
        return len(old)

    def ended(self, seq: int) -> bool:
        """Whether the segment of an entry is not written any more."""
        return self._active.first_seq > seq

    def _rotate(self, first_seq: int) -> None:
        """Go on in the segment that was made ahead; the group in hand decided that it is there."""
        self._rolling = False
        old = self._active
        try:
            segment, fd = self._housekeeper.take_spare()
        except OSError as exc:
            self.fail(str(exc))
        segment.first_seq, segment.origins = first_seq, OriginIndex()
        with contextlib.suppress(OSError):  # all that was written to it is synced
            os.close(self._fd)
        self._fd, self._begun, self._active = fd, False, segment
        self._segments.append(segment)
        self._index(old, wait=False)
        self._housekeeper.seal(old, first_seq - 1)
        self.trim(self._applied_seq)

    def trim(self, applied_seq: int) -> None:
        """Delete the oldest segments that are applied and kept for nobody.

        A segment is kept until every neighbour holds its records, up to `retention_bytes` and
        `AGE_MAX_MS`; up to that age the newest `retention_bytes / RESERVE` in any case.
        """
        self._applied_seq = applied_seq
        bound = self.retention_bytes
        if self._is_read():
            bound = max(bound, READ_SEGMENTS * self.segment_bytes)
        kept = sum(segment.size for segment in self._segments)
        while len(self._segments) > 1:
            oldest, following = self._segments[0], self._segments[1]
            if following.first_seq - 1 > applied_seq:
                return
            few = kept <= self.retention_bytes // RESERVE
            within = kept <= bound and not self._aged(oldest)
            if within and (few or self._wanted(oldest)):
                return
            kept -= oldest.size
            del self._segments[0]
            self._housekeeper.delete(oldest)

    def neighbours_hold(self, vv: Mapping[int, int] | None) -> None:
        """What every neighbour holds durably, by origin; None: not known, or no neighbours."""
        self._acknowledged = vv
        self.trim(self._applied_seq)

    def hold(self) -> None:
        """Somebody reads on through the log: `entries_from` comes within a minute."""
        self._read_s = time.monotonic()

    def _is_read(self) -> bool:
        return time.monotonic() < self._read_s + _READ_PAUSE_S

    def _aged(self, segment: Segment) -> bool:
        """Whether a segment is older than anybody may ask for, and nobody reads the log now; or
        is not there any more."""
        if self._is_read():
            return False
        try:
            written_s = segment.path.stat().st_mtime
        except OSError as exc:
            return isinstance(exc, FileNotFoundError)
        return time.time() * 1000 > written_s * 1000 + AGE_MAX_MS

    def _wanted(self, segment: Segment) -> bool:
        """Whether somebody may still ask for what is in a segment."""
        if self._is_read():
            return True
        held = self._acknowledged
        if held is None:
            return True
        if segment.origins is not None:
            self._index(segment, wait=False)
        if segment.origins is None or not segment.complete:
            self._housekeeper.load(segment)
            return True
        return any(held.get(o, 0) < hlc for o, hlc in segment.origins.last.items())

    # Reading

    def replay(self, above_seq: int) -> Iterator[Entry]:
        """The entries above `above_seq`, from the segment that recovery began with."""
        for segment in self._segments[self.recovered.first_replayed :]:
            start = segment.indexed_from
            for data, group, _ in segments.groups(segment, start, segment.end, self._secret):
                if group.last_seq > above_seq:
                    yield from (e for e in logformat.entries(data, group) if e.seq > above_seq)

    def first_position(self) -> Position:
        """Where the oldest entry that is retained begins."""
        return Position(self._segments[0].number, logformat.SEGMENT_HEADER_BYTES)

    @_readable
    def entries_from(
        self, position: Position, seq: int, last_seq: int, bytes_max: int
    ) -> tuple[list[Entry], Position]:
        """The durable entries from `seq` + 1, which begins at `position`, to `last_seq`, in whole
        groups: about `bytes_max`, at least one group if there is one; and where to go on.

        Raises CorruptData if they are not there: damaged, or trimmed meanwhile.
        """
        found: list[Entry] = []
        size = 0
        self.hold()
        if seq >= last_seq:
            return found, position
        for segment in self._segments:
            if segment.number < position.segment:
                continue
            if segment.origins is None:
                self._index(segment)  # says where it ends
            start = logformat.SEGMENT_HEADER_BYTES
            if segment.number == position.segment:
                start = position.offset
            for data, group, place in segments.groups(segment, start, segment.end, self._secret):
                if group.last_seq > last_seq or size >= bytes_max:
                    return found, position
                if group.seq != seq + 1:
                    break
                found += logformat.entries(data, group)
                length = group.end - group.offset
                seq, size = group.last_seq, size + length
                position = Position(segment.number, place + length)
        if seq < last_seq and not found:
            raise CorruptData(
                f"{self.directory}: entry {seq + 1} is not retained any more (the oldest is "
                f"{self.first_seq()}; store.log_retention)"
            )
        return found, position

    def first_seq(self) -> int:
        """The oldest entry that is retained."""
        return self._segments[0].first_seq

    @_readable
    def records_after(self, origin: int, hlc: int, bytes_max: int) -> list[bytes]:
        """Durable records of `origin` above `hlc`, contiguous (each extends the one before, the
        first extends `hlc`), up to `bytes_max` but at least one. Empty: none that continues."""
        found: list[bytes] = []
        size = 0
        for segment in self._segments:
            offset = self._index(segment).seek(origin, hlc)
            if offset is None:
                continue
            for data, group, _ in segments.groups(segment, offset, segment.end, self._secret):
                for entry in logformat.entries(data, group):
                    if entry.kind != logformat.KIND_RECORD:
                        continue
                    actor, entry_hlc, prev_hlc = logformat.record_span(entry.raw)
                    if actor != origin or entry_hlc <= hlc:
                        continue
                    if prev_hlc > hlc or (found and size + len(entry.raw) > bytes_max):
                        return found
                    found.append(entry.raw)
                    size += len(entry.raw)
                    hlc = entry_hlc
        return found

    @_readable
    def chain_at(self, actor: int, hlc: int) -> bytes | None:
        """The chain of the own `actor` once it had written `hlc`, if a group ended there; empty
        if one record follows another over that hlc, which this log's writer never had as its
        head. None: the log does not tell."""
        if self.head[:2] == (actor, hlc):
            return self.head[2]
        for segment in self._segments:
            offset = self._index(segment).seek(actor, hlc - 1)
            if offset is None:
                continue
            for data, group, _ in segments.groups(segment, offset, segment.end, self._secret):
                if group.actor == actor and group.hlc >= hlc:
                    if group.hlc == hlc:
                        return group.chain
                    return b"" if _passes_over(data, group, actor, hlc) else None
        return None

    def _index(self, segment: Segment, wait: bool = True) -> OriginIndex:
        """The origin index of a segment, made complete first (`wait`: read it now if needed)."""
        if segment.origins is None:
            segment.origins = segments.load_index(segment, self._secret)
            segment.indexed_from = logformat.SEGMENT_HEADER_BYTES
        elif not segment.complete:
            if segment.earlier is None and wait:
                segment.earlier = segments.index_of(
                    segment, logformat.SEGMENT_HEADER_BYTES, segment.indexed_from, self._secret
                )
            if segment.earlier is not None:
                segment.earlier.extend(segment.origins)
                segment.origins, segment.earlier = segment.earlier, None
                segment.indexed_from = logformat.SEGMENT_HEADER_BYTES
        return segment.origins


def _passes_over(data: bytes, group: Group, actor: int, hlc: int) -> bool:
    """Whether a record of `actor` in the group follows one below `hlc` and is itself above."""
    for entry in logformat.entries(data, group):
        if entry.kind == logformat.KIND_RECORD:
            origin, entry_hlc, prev_hlc = logformat.record_span(entry.raw)
            if origin == actor and entry_hlc >= hlc:
                return prev_hlc < hlc < entry_hlc
    return False
