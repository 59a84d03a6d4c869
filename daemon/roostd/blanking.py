"""Blanking: what was erased is taken out of segments of the log that are no longer written.

A segment that holds some of it is copied aside without it, entry for entry as long as it was, so
that every offset stays; then the copy takes the segment's place. A kill leaves the one or the
other. The copy has no room behind its groups: a segment that was ended early shrinks to what it
holds. Called by the log's own thread.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import msgspec

from roost_crdt import logformat
from roost_crdt.errors import CorruptData
from roost_crdt.logformat import Entry, Secret
from roostd import segments
from roostd.segments import Segment

_COPY_BYTES = 1 << 20
_PAUSE_S = 0.0005
_FEW = 8
"""So many are looked for faster than an entry is decoded."""

_encode = msgspec.msgpack.Encoder().encode
_decode_items = msgspec.msgpack.Decoder(list[tuple[bytes, bytes | None]]).decode


def owner_of(key: bytes) -> bytes:
    """What a pair belongs to: the key up to and including its second NUL."""
    return key[: key.find(b"\0", key.find(b"\0") + 1) + 1]


def blank_segment(
    segment: Segment, kind: int, owners: Collection[bytes], last_seq: int, secret: Secret
) -> int:
    """Take the pairs of `kind` that belong to `owners` out of the entries up to `last_seq`, put
    or deleted; how many there were. A segment that is deleted meanwhile is none.

    Raises CorruptData where a group is damaged, OSError; the segment is then as it was.
    """
    try:
        if segment.origins is None:
            segment.origins = segments.load_index(segment, secret)
        found = 0
        aside = segment.path.with_suffix(segments.ASIDE)
        target = -1
        try:
            for offset, raw, count in _blanked(segment, kind, owners, last_seq, secret):
                if target < 0:
                    target = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o640)
                    _copy(segment, target)
                if os.pwrite(target, raw, offset) != len(raw):
                    raise OSError(f"{aside}: short write")
                found += count
            if target >= 0:
                _replace(segment, target, aside)
        finally:
            if target >= 0:
                os.close(target)
                aside.unlink(missing_ok=True)
    except FileNotFoundError:
        return 0
    return found


def _blanked(
    segment: Segment, kind: int, owners: Collection[bytes], last_seq: int, secret: Secret
) -> Iterator[tuple[int, bytes, int]]:
    """Offset and new bytes of each group that holds some of it, and how many pairs."""
    start = logformat.SEGMENT_HEADER_BYTES
    for data, group, place in segments.groups(segment, start, segment.end, secret):
        time.sleep(_PAUSE_S)  # lets the node's thread have the interpreter
        if group.seq > last_seq:
            return
        left: dict[int, bytes] = {}
        count = 0
        for entry in logformat.entries(data, group):
            if entry.kind == kind and entry.seq <= last_seq:
                gone, kept = _without(entry, owners)
                if gone:
                    left[entry.seq], count = kept, count + gone
        if left:
            yield place, logformat.blank(data, group, left, secret), count


def _without(entry: Entry, owners: Collection[bytes]) -> tuple[int, bytes]:
    """How many pairs of an entry belong to `owners`, and the entry without them."""
    if len(owners) <= _FEW and not any(owner in entry.raw for owner in owners):
        return 0, b""
    try:
        pairs = _decode_items(entry.raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise CorruptData(f"log entry of seq {entry.seq} cannot be read: {exc}") from exc
    kept = [pair for pair in pairs if owner_of(pair[0]) not in owners]
    return len(pairs) - len(kept), _encode(kept)


def _copy(segment: Segment, target: int) -> None:
    """The segment's groups and its index, if it has one behind them; else all of it."""
    footer = segments.footer(segment)
    with segment.path.open("rb", buffering=0) as source:
        stop = segment.end if footer else os.fstat(source.fileno()).st_size
        at = 0
        while at < stop:
            raw = os.pread(source.fileno(), min(_COPY_BYTES, stop - at), at)
            if not raw or os.pwrite(target, raw, at) != len(raw):
                raise OSError(f"{segment.path}: it could not be copied")
            at += len(raw)
            time.sleep(_PAUSE_S)
        if os.pwrite(target, footer, at) != len(footer):
            raise OSError(f"{segment.path}: it could not be copied")


def _replace(segment: Segment, target: int, aside: Path) -> None:
    """Let the copy take the segment's place; its age stays, which tells when it is deleted."""
    before = segment.path.stat()
    os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.fsync(target)
    aside.rename(segment.path)
    segments.sync_directory(segment.path.parent)
    segment.size = os.fstat(target).st_size
