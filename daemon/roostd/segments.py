"""The log's files: zero-filled segments, created ahead of their use.

Blocks are written with zeros, not only allocated: a group then changes no metadata, so its
fdatasync costs one journal-free write, and a full disk shows here, before a write is accepted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from roost_crdt import logformat
from roost_crdt.errors import CorruptData
from roost_crdt.logformat import Group, OriginIndex, Secret

_ZEROS = bytes(1024 * 1024)
_READ_BYTES = 1024 * 1024
SUFFIX = ".seg"
_LOST_FOUND = "lost+found"
"""In a directory that is a file system of its own."""
ASIDE = ".blanking"
"""Of a copy on its way into a segment's place (roostd.blanking); left by a kill."""


@dataclass(slots=True, eq=False)
class Segment:
    """One file of the log. Groups lie in `SEGMENT_HEADER_BYTES` .. `end`.

    `origins` is complete from `indexed_from` on; None: not loaded yet.
    """

    path: Path
    number: int
    size: int
    first_seq: int = 0
    end: int = logformat.SEGMENT_HEADER_BYTES
    origins: OriginIndex | None = None
    indexed_from: int = logformat.SEGMENT_HEADER_BYTES
    earlier: OriginIndex | None = field(default=None, repr=False)
    """The index of the part before `indexed_from`, read by a thread, not merged yet."""
    asked: bool = False
    """Whether the thread was told to load the index."""

    @property
    def complete(self) -> bool:
        """Whether `origins` covers the segment from its first group on."""
        return self.indexed_from == logformat.SEGMENT_HEADER_BYTES


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def create(directory: Path, number: int, size: int) -> Segment:
    """A new zero-filled segment, file and name durable. OSError (ENOSPC): nothing is left."""
    path = directory / f"{number:016d}{SUFFIX}"
    path.unlink(missing_ok=True)  # a power loss may have left half of one
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
    try:
        left = size
        while left:
            left -= os.write(fd, _ZEROS if left >= len(_ZEROS) else _ZEROS[:left])
        os.fsync(fd)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
    sync_directory(directory)
    return Segment(path, number, size)


def listing(directory: Path) -> list[Segment]:
    """The segments of a directory in order, headers unread. CorruptData for foreign files."""
    found = []
    for path in directory.iterdir():
        if path.suffix == ASIDE or path.name == _LOST_FOUND:
            continue
        stem = path.name.removesuffix(SUFFIX)
        if path.suffix != SUFFIX or not stem.isdecimal():
            raise CorruptData(f"{path}: not a log segment; move it away")
        found.append(Segment(path, int(stem), path.stat().st_size))
    return sorted(found, key=lambda segment: segment.number)


def read(segment: Segment, offset: int, size: int) -> bytes:
    """Up to `size` bytes of the file from `offset` on."""
    with segment.path.open("rb", buffering=0) as file:
        return os.pread(file.fileno(), size, offset)


def is_blank(segment: Segment) -> bool:
    """Whether a segment holds nothing but zeros."""
    with segment.path.open("rb", buffering=0) as file:
        while data := file.read(len(_ZEROS)):
            if data != (_ZEROS if len(data) == len(_ZEROS) else _ZEROS[: len(data)]):
                return False
    return True


def groups(
    segment: Segment, offset: int, stop: int, secret: Secret
) -> Iterator[tuple[bytes, Group, int]]:
    """`(data, group in data, offset of the group in the file)` from `offset` to `stop`.

    Raises CorruptData, with the place, if a group there does not check out.
    """
    with segment.path.open("rb", buffering=0) as file:
        want = _READ_BYTES
        while offset < stop:
            asked = min(want, stop - offset)
            data = os.pread(file.fileno(), asked, offset)
            at, want = 0, _READ_BYTES
            while (group := logformat.parse_group(data, at, secret)) is not None:
                yield data, group, offset + at
                at = group.end
            if at == 0:
                want = logformat.group_length(data[: logformat.GROUP_HEADER_BYTES].ljust(4, b"\0"))
                if want <= len(data) or offset + want > stop or len(data) < asked:
                    raise CorruptData(
                        f"{segment.path}: the group at byte {offset} is damaged; "
                        "run: roost check DIR --repair"
                    )
            offset += at


def index_of(segment: Segment, offset: int, stop: int, secret: Secret) -> OriginIndex:
    """The origin index of the groups between two offsets, read from the file."""
    index = OriginIndex()
    for data, group, place in groups(segment, offset, stop, secret):
        time.sleep(0)  # a thread that reads must not keep the node's from running
        for entry in logformat.entries(data, group):
            if entry.kind == logformat.KIND_RECORD:
                actor, hlc, _ = logformat.record_span(entry.raw)
                index.note(actor, hlc, place)
    return index


def footer(segment: Segment) -> bytes:
    """The index that ends a sealed segment, with its trailer, unchecked; b"" if there is none."""
    size = segment.path.stat().st_size
    length = logformat.index_bytes(
        read(segment, size - logformat.TRAILER_BYTES, logformat.TRAILER_BYTES)
    )
    return b"" if length is None or length > size else read(segment, size - length, length)


def load_index(segment: Segment, secret: Secret) -> OriginIndex:
    """The index of a segment that is no longer written: its sealed one, or read anew."""
    sealed = logformat.decode_index(footer(segment))
    if sealed is not None:
        segment.end = sealed.end
        return sealed.origins
    # Never sealed (a crash came between): its end is where the groups stop.
    data = segment.path.read_bytes()
    start = logformat.SEGMENT_HEADER_BYTES
    for group in logformat.scan(data, start, segment.first_seq, secret):
        segment.end = group.end
    return index_of(segment, start, segment.end, secret)


def seal(segment: Segment, last_seq: int) -> None:
    """Write the index behind the groups; where it does not fit, the file grows."""
    assert segment.origins is not None
    footer = segment.origins.encode(segment.end, last_seq)
    with segment.path.open("r+b", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        at = max(size - len(footer), segment.end)
        written = os.pwrite(file.fileno(), footer, at)
        if written != len(footer):
            raise OSError(f"{segment.path}: short write of the index")
        os.fdatasync(file.fileno())


def blank(path: Path, offset: int, size: int) -> None:
    """Overwrite part of a file with zeros, durably."""
    with path.open("r+b", buffering=0) as file:
        at, stop = offset, offset + size
        while at < stop:
            at += os.pwrite(file.fileno(), _ZEROS[: min(len(_ZEROS), stop - at)], at)
        os.fdatasync(file.fileno())
