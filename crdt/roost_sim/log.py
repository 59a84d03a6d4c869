"""A simulated store's log: groups of the production format in segments of a simulated disk.

One group a flush, each with the chain of the own actor; old segments go once they are applied. What
`roostd.log` does with files this does with a `Disk`: the scan at start, the decision about a torn
tail, the sync of what was read back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from roost_crdt import logformat
from roost_crdt.logformat import OpenGroup, Secret, SegmentHeader
from roost_crdt.record import CHAIN_START

from .disk import Disk, Index

SEGMENT_BYTES = 16 * 1024

Head = tuple[int, int, bytes]
"""Own actor, its newest hlc, its chain."""


class StoreFailed(Exception):
    """A sync failed: this process acknowledges nothing any more."""


class Entry(NamedTuple):
    """One entry that is durable."""

    kind: int
    raw: bytes
    seq: int


class Log:
    """`seq` is the newest entry, `durable_seq` the newest that is synced."""

    def __init__(
        self,
        disk: Disk,
        store_id: bytes,
        step: Callable[[str], None],
        segments_kept: Callable[[], int],
    ) -> None:
        self._disk = disk
        self._store_id = store_id
        self._secret = Secret.from_bytes(disk.index.meta[b"secret"])
        self._step = step
        self._segments_kept = segments_kept
        self._group = OpenGroup()
        self._open: list[tuple[int, bytes]] = []
        self._records: dict[int, list[tuple[int, int, bytes, int]]] = {}
        """Durable records that the log still holds, by origin: hlc, prev_hlc, raw, seq."""
        self._own: dict[int, list[tuple[int, int, int]]] = {}
        """Records that were written here, by actor: hlc, prev_hlc, seq."""
        self._starts: dict[int, int] = {}
        """First seq of each segment."""
        self._chains: dict[tuple[int, int], tuple[bytes, int]] = {}
        """`(actor, hlc)` of each group that the log still holds -> its chain, its last seq."""
        self.seq = self.durable_seq = disk.index.applied_seq
        self.head: Head = disk.index.head
        self._durable_head: Head = (0, 0, CHAIN_START)
        self.torn_bytes = 0

    # --- opening

    def begin(self) -> None:
        """The first segment of a new log."""
        self._begin_segment(1, 1)

    def replay(self, index: Index) -> Iterator[Entry]:
        """Read every segment: what lies above the index's position is to be taken in again.

        CorruptData if the log does not reach as far as it must.
        """
        known_seq, next_seq, data, offset = index.applied_seq, 0, b"", 0
        last = 0
        """Where the last group begins."""
        for number in sorted(self._disk.files):
            data = bytes(self._disk.files[number])
            header = logformat.decode_segment_header(data)
            offset = logformat.SEGMENT_HEADER_BYTES
            if header is None:
                offset = 0
                break
            self._starts[number] = header.first_seq
            next_seq = next_seq or header.first_seq
            for group in logformat.scan(data, offset, next_seq, self._secret):
                last, offset, next_seq = group.offset, group.end, group.last_seq + 1
                known_seq = max(known_seq, group.synced_seq)
                self.head = (group.actor, group.hlc, group.chain)
                self._chains[group.actor, group.hlc] = group.chain, group.last_seq
                for entry in logformat.entries(data, group):
                    if entry.seq > index.applied_seq:
                        yield Entry(entry.kind, entry.raw, entry.seq)
                    self._note(entry.kind, entry.raw, entry.seq, group.actor)
        next_seq = next_seq or 1
        tail = logformat.judge_tail(data, offset, next_seq, known_seq, self._secret)
        number = max(self._disk.files)
        if tail.torn_bytes:
            self._disk.write(number, tail.offset, bytes(tail.torn_bytes))
            self._disk.sync()
            self.torn_bytes = tail.torn_bytes
        self.seq = self.durable_seq = next_seq - 1
        self._number, self._end = number, offset
        self._make_sure(number, last)
        if offset == 0:
            self._write_header(number, next_seq)

    def _make_sure(self, number: int, last: int) -> None:
        """The last group may have been written and not synced by the life before: it is read from
        the page cache, and from here on it counts as durable."""
        file = self._disk.files[number]
        self._disk.write(number, last, bytes(file[last : self._end]))
        self._disk.sync()

    def _note(self, kind: int, raw: bytes, seq: int, writer: int) -> None:
        if kind == logformat.KIND_RECORD:
            actor, hlc, prev_hlc = logformat.record_span(raw)
            self._records.setdefault(actor, []).append((hlc, prev_hlc, raw, seq))
            if actor == writer:
                self._own.setdefault(actor, []).append((hlc, prev_hlc, seq))

    def _begin_segment(self, number: int, first_seq: int, size: int = 0) -> None:
        self._disk.create(number, max(SEGMENT_BYTES, size + logformat.SEGMENT_HEADER_BYTES))
        self._write_header(number, first_seq)

    def _write_header(self, number: int, first_seq: int) -> None:
        secret = self._disk.index.meta[b"secret"]
        header = SegmentHeader(number, first_seq, self._store_id, secret)
        self._disk.write(number, 0, logformat.encode_segment_header(header))
        self._starts[number] = first_seq
        self._number, self._end = number, logformat.SEGMENT_HEADER_BYTES

    # --- reading

    @property
    def open(self) -> bool:
        """Whether entries wait for a flush."""
        return bool(self._open)

    @property
    def durable_head(self) -> Head:
        """What neighbours may be told."""
        return self._durable_head if self._open else self.head

    @property
    def position(self) -> tuple[int, int]:
        """Segment and offset at which the log goes on."""
        return self._number, self._end

    def chain_at(self, actor: int, hlc: int) -> bytes | None:
        """The chain of an own actor at an earlier head; empty if its records pass over that hlc,
        None if the log does not know."""
        if self.head[:2] == (actor, hlc):
            return self.head[2]
        if (actor, hlc) in self._chains:
            return self._chains[actor, hlc][0]
        over = any(prev < hlc < at for at, prev, _ in self._own.get(actor, ()))
        return b"" if over else None

    def records_after(self, origin: int, hlc: int, bytes_max: int) -> list[bytes]:
        """Contiguous records of an origin that go on from `hlc`, as far as the log holds them."""
        found: list[bytes] = []
        size, at = 0, hlc
        for record_hlc, prev_hlc, raw, _ in self._records.get(origin, []):
            if record_hlc <= at:
                continue
            if prev_hlc > at or (found and size + len(raw) > bytes_max):
                break
            found.append(raw)
            size += len(raw)
            at = record_hlc
        return found

    def follows(self, origin: int, hlc: int) -> bool:
        """Whether the open group may hold what goes on from `hlc`."""
        held = self._records.get(origin, [])
        waits = any(kind == logformat.KIND_RECORD for kind, _ in self._open)
        return waits and (not held or held[-1][0] <= hlc)

    # --- writing

    def append(self, kind: int, raw: bytes) -> None:
        if not self._open:
            self._durable_head = self.head
        self._group.append(kind, raw)
        self._open.append((kind, raw))
        self.seq += 1

    def flush(self) -> list[Entry]:
        """One write and one sync for the open group, which is returned. StoreFailed is final."""
        seq = self.durable_seq + 1
        data = self._group.encode(self._secret, seq, self.durable_seq, *self.head)
        if self._end + len(data) > len(self._disk.files[self._number]):
            self._begin_segment(self._number + 1, seq, len(data))
        self._disk.write(self._number, self._end, data)
        self._step("log written")
        try:
            self._disk.sync()
        except OSError as error:
            raise StoreFailed(str(error)) from error
        self._step("log synced")
        self._end += len(data)
        entries = [Entry(kind, raw, seq + at) for at, (kind, raw) in enumerate(self._open)]
        for entry in entries:
            self._note(*entry, self.head[0])
        self.durable_seq = self.seq
        self._chains[self.head[:2]] = self.head[2], self.seq
        self._group, self._open = OpenGroup(), []
        return entries

    def trim(self, applied_seq: int) -> None:
        """Old segments go, as far as the index holds them."""
        numbers = sorted(self._starts)
        kept = self._segments_kept()
        while len(numbers) > kept and self._starts[numbers[1]] - 1 <= applied_seq:
            number = numbers.pop(0)
            del self._starts[number]
            self._disk.delete(number)
        first_seq = self._starts[numbers[0]]
        for records in self._records.values():
            while records and records[0][3] < first_seq:
                del records[0]
        for own in self._own.values():
            while own and own[0][2] < first_seq:
                del own[0]
        for head in [head for head, (_, seq) in self._chains.items() if seq < first_seq]:
            del self._chains[head]
