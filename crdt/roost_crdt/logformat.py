"""The log's bytes: segments of groups of entries, and what a broken tail means.

A segment is a file that was filled with zeros ahead of its use:

    segment header (64 B) | group | group | ... | zeros [| sealed index | trailer]

A group is what one write and one fdatasync made durable: a header of 64 bytes, then `count`
entries of `length u32, kind u8, bytes`. A length of 0 ends the written part. Integers are
big-endian. Each header carries `synced_seq`, the newest seq that was durable when the group
was written; only one group is ever in flight, so a group that follows another one proves that
the other one had been acknowledged.

The tail decision (`judge_tail`): bytes that do not parse may be cut only if nothing valid
follows them and they lie above `applied_seq` and every `synced_seq`; that is what a crash
during a write leaves behind. Everything else is damage: acknowledged entries would be lost by
a cut, so the log refuses with the place, and whoever runs it decides.

Valid groups are searched for by a mark and a checksum seed (`Secret`) that are random per
store and never leave it: a value that a client chose cannot look like a group.

Pure: the daemon's log makes the file calls, the simulator runs the same functions.
"""

from __future__ import annotations

import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec

from roost_crdt.errors import CorruptData

VERSION = 1
KIND_RECORD = 1
KIND_SESSION = 2
KIND_SPEND = 3
KIND_OUTBOX = 4
KIND_CONSENSUS = 5
KIND_META = 6
KIND_ROWS = 7
KIND_DROP = 8
KINDS = frozenset(range(KIND_RECORD, KIND_DROP + 1))
KIND_BLANKED = 9
"""An entry of another kind out of which something was erased: `kind u8, length u32, what is left,
zeros`, as long as it was. `entries` yields what is left."""

CHAIN_START = bytes(16)
SECRET_BYTES = 8

_SEGMENT = struct.Struct(">8sIQQ16s8s8xI")
_GROUP = struct.Struct(">IIIQQIQQ16s")
_ENTRY = struct.Struct(">IB")
_BLANKED = struct.Struct(">BI")
_U32 = struct.Struct(">I")
_SEGMENT_MAGIC = b"ROOSTLOG"

SEGMENT_HEADER_BYTES = _SEGMENT.size
GROUP_HEADER_BYTES = _GROUP.size
ENTRY_HEADER_BYTES = _ENTRY.size
BLANKED_BYTES = _BLANKED.size
_MARK_AT = 8


class Secret(NamedTuple):
    """How this store's groups are told from any other bytes: `mark` u32, checksum `seed` u32."""

    mark: int
    seed: int

    @classmethod
    def from_bytes(cls, raw: bytes) -> Secret:
        """From `SECRET_BYTES` random bytes."""
        assert len(raw) == SECRET_BYTES
        return cls(int.from_bytes(raw[:4], "big") | 1, int.from_bytes(raw[4:], "big"))


class UnknownVersion(CorruptData):
    """A segment that is whole, but of a format that this release does not read."""


class SegmentHeader(NamedTuple):
    """The first 64 bytes of a segment. `first_seq` is the seq of its first entry."""

    number: int
    first_seq: int
    store_id: bytes
    secret: bytes


class Group(NamedTuple):
    """A group as it lies in a segment: `offset` .. `end`, entries from `payload`.

    `actor`, `hlc`, `chain` are the store's own actor, its newest hlc and the chain over its
    record hashes once this group was written.
    """

    offset: int
    payload: int
    end: int
    seq: int
    synced_seq: int
    entry_count: int
    actor: int
    hlc: int
    chain: bytes

    @property
    def last_seq(self) -> int:
        return self.seq + self.entry_count - 1


class Entry(NamedTuple):
    seq: int
    kind: int
    raw: bytes


class Tail(NamedTuple):
    """The end of the log: groups are valid up to `offset`; `torn_bytes` after it are to be cut."""

    offset: int
    torn_bytes: int


def encode_segment_header(header: SegmentHeader) -> bytes:
    """The 64 bytes that begin a segment."""
    body = _SEGMENT.pack(
        _SEGMENT_MAGIC, VERSION, header.number, header.first_seq, header.store_id, header.secret, 0
    )
    return body[:-4] + _U32.pack(zlib.crc32(body[:-4]))


def decode_segment_header(raw: bytes) -> SegmentHeader | None:
    """The header, or None where the segment was never used (zeros).

    Raises UnknownVersion for a newer format, CorruptData for anything else.
    """
    raw = raw[:SEGMENT_HEADER_BYTES]
    if not any(raw):
        return None
    if len(raw) < SEGMENT_HEADER_BYTES:
        raise CorruptData("segment header cut short")
    magic, version, number, first_seq, store_id, secret, crc = _SEGMENT.unpack(raw)
    if zlib.crc32(raw[:-4]) != crc or magic != _SEGMENT_MAGIC:
        raise CorruptData("segment header fails its checksum")
    if version != VERSION:
        raise UnknownVersion(f"log format version {version}; this release reads {VERSION}")
    return SegmentHeader(number, first_seq, store_id, secret)


class OpenGroup:
    """Entries on their way into one group; `bytes` is its size so far, header included."""

    __slots__ = ("_parts", "bytes", "count")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self.count = 0
        self.bytes = GROUP_HEADER_BYTES

    def append(self, kind: int, raw: bytes) -> None:
        size = len(raw)
        self._parts.append(_ENTRY.pack(size, kind))
        self._parts.append(raw)
        self.count += 1
        self.bytes += ENTRY_HEADER_BYTES + size

    def encode(
        self, secret: Secret, seq: int, synced_seq: int, actor: int, hlc: int, chain: bytes
    ) -> bytes:
        """The whole group; `seq` is that of its first entry."""
        assert self.count
        assert synced_seq < seq
        payload = b"".join(self._parts)
        mark, seed = secret
        head = _GROUP.pack(len(payload), 0, mark, seq, synced_seq, self.count, actor, hlc, chain)
        crc = zlib.crc32(payload, zlib.crc32(head, seed))
        return b"".join((head[:4], _U32.pack(crc), head[8:], payload))


def parse_group(data: bytes, offset: int, secret: Secret) -> Group | None:
    """The group at `offset` of `data`, or None if no whole valid group is there."""
    payload = offset + GROUP_HEADER_BYTES
    if payload > len(data):
        return None
    length, crc, mark, seq, synced_seq, count, actor, hlc, chain = _GROUP.unpack_from(data, offset)
    end = payload + length
    if not length or mark != secret.mark or end > len(data):
        return None
    view = memoryview(data)
    state = zlib.crc32(view[offset : offset + 4], secret.seed)
    state = zlib.crc32(b"\0\0\0\0", state)
    if zlib.crc32(view[offset + 8 : end], state) != crc:
        return None
    if not count or synced_seq >= seq or length < count * ENTRY_HEADER_BYTES:
        return None
    return Group(offset, payload, end, seq, synced_seq, count, actor, hlc, chain)


def group_length(header: bytes) -> int:
    """Bytes of the group that begins with `header` (64 B), unchecked; 0 where nothing begins."""
    length: int = _U32.unpack_from(header)[0]
    return length and GROUP_HEADER_BYTES + length


def read_group_header(data: bytes, offset: int) -> Group:
    """The header at `offset` without its checksum, to walk over groups that were verified."""
    length, _, _, seq, synced, count, actor, hlc, chain = _GROUP.unpack_from(data, offset)
    payload = offset + GROUP_HEADER_BYTES
    return Group(offset, payload, payload + length, seq, synced, count, actor, hlc, chain)


def entries(data: bytes, group: Group) -> Iterator[Entry]:
    """The entries of a verified group. Raises CorruptData if they do not fill it exactly."""
    at, seq = group.payload, group.seq
    for _ in range(group.entry_count):
        if at + ENTRY_HEADER_BYTES > group.end:
            raise CorruptData(f"log group of seq {group.seq}: entries overrun it")
        size, kind = _ENTRY.unpack_from(data, at)
        at += ENTRY_HEADER_BYTES
        if at + size > group.end:
            raise CorruptData(f"log group of seq {group.seq}: an entry overruns it")
        raw = bytes(data[at : at + size])
        if kind == KIND_BLANKED:
            kind, raw = _left_of(seq, raw)
        if kind not in KINDS:
            raise CorruptData(f"log entry of seq {seq} has the unknown kind {kind}")
        yield Entry(seq, kind, raw)
        at += size
        seq += 1
    if at != group.end:
        raise CorruptData(f"log group of seq {group.seq}: bytes after its last entry")


def _left_of(seq: int, raw: bytes) -> tuple[int, bytes]:
    """Kind and bytes of what is left of a blanked entry."""
    if len(raw) >= _BLANKED.size:
        kind, length = _BLANKED.unpack_from(raw)
        if _BLANKED.size + length <= len(raw):
            return kind, raw[_BLANKED.size : _BLANKED.size + length]
    raise CorruptData(f"log entry of seq {seq}: what is left of it is cut short")


def blank(data: bytes, group: Group, left: Mapping[int, bytes], secret: Secret) -> bytes:
    """A verified group with some entries blanked: seq -> what is left of it, shorter than it by
    at least `BLANKED_BYTES`. As long as it was, of the same header but for the checksum."""
    raw = bytearray(data[group.offset : group.end])
    at = GROUP_HEADER_BYTES
    for seq in range(group.seq, group.last_seq + 1):
        size, kind = _ENTRY.unpack_from(raw, at)
        at += ENTRY_HEADER_BYTES
        kept = left.get(seq)
        if kept is not None:
            if kind == KIND_BLANKED:
                kind = raw[at]
            assert len(kept) + BLANKED_BYTES <= size
            _ENTRY.pack_into(raw, at - ENTRY_HEADER_BYTES, size, KIND_BLANKED)
            raw[at : at + size] = (_BLANKED.pack(kind, len(kept)) + kept).ljust(size, b"\0")
        at += size
    raw[4:8] = bytes(4)
    raw[4:8] = _U32.pack(zlib.crc32(raw, secret.seed))
    return bytes(raw)


def scan(data: bytes, offset: int, seq: int, secret: Secret) -> Iterator[Group]:
    """Valid groups from `offset` on, the first of which must begin with `seq`.

    Ends, without saying why, at the first place that holds none: `judge_tail` says why.
    """
    while True:
        group = parse_group(data, offset, secret)
        if group is None or group.seq != seq:
            return
        yield group
        offset, seq = group.end, group.seq + group.entry_count


def find_group(data: bytes, offset: int, next_seq: int, secret: Secret) -> Group | None:
    """Proof, at or after `offset`, that seq `next_seq` had been acknowledged: the first group
    that is valid, or whose own bytes are torn but whose header says that it was written after
    `next_seq` was durable."""
    for start in _marks(data, offset, secret):
        group = parse_group(data, start, secret)
        if group is not None:
            return group
        if start + GROUP_HEADER_BYTES <= len(data):
            torn = read_group_header(data, start)
            if torn.synced_seq >= next_seq and torn.seq == torn.synced_seq + 1:
                return torn
    return None


def find_whole_group(data: bytes, offset: int, secret: Secret) -> Group | None:
    """The first valid group at or after `offset`, wherever it begins."""
    found = (parse_group(data, start, secret) for start in _marks(data, offset, secret))
    return next((group for group in found if group is not None), None)


def _marks(data: bytes, offset: int, secret: Secret) -> Iterator[int]:
    """Where groups may begin: places with this store's mark."""
    mark = _U32.pack(secret.mark)
    at = data.find(mark, offset + _MARK_AT)
    while at >= 0:
        yield at - _MARK_AT
        at = data.find(mark, at + 1)


_ZEROS = bytes(1 << 16)


def written_bytes(data: bytes, offset: int) -> int:
    """How many bytes from `offset` on there are up to the last one that is not zero."""
    end = len(data)
    while end > offset:
        start = max(offset, end - len(_ZEROS))
        chunk = data[start:end]
        if chunk != _ZEROS[: end - start]:
            return start - offset + len(chunk.rstrip(b"\0"))
        end = start
    return 0


def judge_tail(data: bytes, offset: int, next_seq: int, known_seq: int, secret: Secret) -> Tail:
    """What to do with the bytes of the last used segment from `offset` on, where no group
    that begins with `next_seq` could be parsed.

    `known_seq` is the newest seq that must exist: the greatest of applied_seq and every
    synced_seq that was read. Returns the tail to cut (`torn_bytes` may be 0); raises
    CorruptData, naming the place, when a cut would drop acknowledged entries.
    """
    written = written_bytes(data, offset)
    follows = find_group(data, offset, next_seq, secret) if written else None
    if follows is not None:
        raise CorruptData(
            f"bytes {offset}..{follows.offset} are damaged (seq {next_seq} was expected there); "
            f"a group of seq {follows.seq} follows"
        )
    if known_seq >= next_seq:
        state = "damaged" if written else "missing"
        raise CorruptData(
            f"the log is {state} from byte {offset} on: it ends at seq {next_seq - 1}, "
            f"but seq {known_seq} was made durable"
        )
    begun = data[offset : offset + _MARK_AT + 4]
    if begun[_MARK_AT:] == _U32.pack(secret.mark) and group_length(begun) > len(data) - offset:
        raise CorruptData(
            f"the group at byte {offset} goes on beyond the end of the file, at {len(data)}: a "
            "segment is as long as it may become before it is used, so this one was cut off"
        )
    return Tail(offset, written)


_PEEK = msgspec.msgpack.Decoder(tuple[int, int, int, msgspec.Raw])


def record_span(raw: bytes) -> tuple[int, int, int]:
    """Actor, hlc, prev_hlc of an encoded record, without its operations. CorruptData."""
    try:
        actor, hlc, prev_hlc, _ = _PEEK.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise CorruptData(f"not a record: {exc}") from exc
    return actor, hlc, prev_hlc


INDEX_EVERY_BYTES = 256 * 1024
_INDEX_MAGIC = b"ROOSTIDX"
_INDEX_ORIGIN = struct.Struct(">QQI")
_INDEX_PLACE = struct.Struct(">QQ")
_TRAILER = struct.Struct(">8sIQQI")
TRAILER_BYTES = _TRAILER.size


class OriginIndex:
    """Where the records of each origin lie in one segment, sparsely: a place for the first
    record of an origin, then one for each 256 KiB. Records of one origin lie in hlc order."""

    __slots__ = ("last", "places")

    def __init__(self) -> None:
        self.last: dict[int, int] = {}
        """The newest hlc of each origin in this segment."""
        self.places: dict[int, list[tuple[int, int]]] = {}

    def note(self, origin: int, hlc: int, offset: int) -> None:
        """A record of `origin` lies in the group at `offset`; called in log order."""
        self.last[origin] = hlc
        places = self.places.get(origin)
        if places is None:
            self.places[origin] = [(hlc, offset)]
        elif offset - places[-1][1] >= INDEX_EVERY_BYTES:
            places.append((hlc, offset))

    def extend(self, later: OriginIndex) -> None:
        """Append the index of a later part of the same segment."""
        for origin, places in later.places.items():
            self.places.setdefault(origin, []).extend(places)
            self.last[origin] = later.last[origin]

    def seek(self, origin: int, hlc: int) -> int | None:
        """The offset to read from for records of `origin` above `hlc`; None: there are none."""
        if self.last.get(origin, 0) <= hlc:
            return None
        places = self.places[origin]
        at = bisect_right(places, (hlc, 1 << 64)) - 1
        return places[max(at, 0)][1]

    def encode(self, end: int, last_seq: int) -> bytes:
        """The bytes that end a sealed segment, whose groups end at `end` with `last_seq`."""
        parts = []
        for origin, places in sorted(self.places.items()):
            parts.append(_INDEX_ORIGIN.pack(origin, self.last[origin], len(places)))
            parts.extend(_INDEX_PLACE.pack(*place) for place in places)
        body = b"".join(parts)
        head = _TRAILER.pack(_INDEX_MAGIC, len(body), end, last_seq, 0)[:-4]
        return body + head + _U32.pack(zlib.crc32(head, zlib.crc32(body)))


class Sealed(NamedTuple):
    """The end of a sealed segment: its groups end at `end`, its newest entry is `last_seq`."""

    origins: OriginIndex
    end: int
    last_seq: int


def index_bytes(trailer: bytes) -> int | None:
    """Bytes of index and trailer, from a segment's last `TRAILER_BYTES`; None: not sealed."""
    if len(trailer) != TRAILER_BYTES or not trailer.startswith(_INDEX_MAGIC):
        return None
    length: int = _TRAILER.unpack(trailer)[1]
    return length + TRAILER_BYTES


def decode_index(raw: bytes) -> Sealed | None:
    """The sealed index in the last `index_bytes` of a segment; None if it is not whole
    (an index is a convenience: the segment is scanned instead)."""
    if len(raw) < TRAILER_BYTES:
        return None
    body, trailer = raw[:-TRAILER_BYTES], raw[-TRAILER_BYTES:]
    magic, length, end, last_seq, crc = _TRAILER.unpack(trailer)
    if magic != _INDEX_MAGIC or length != len(body):
        return None
    if zlib.crc32(trailer[:-4], zlib.crc32(body)) != crc:
        return None
    index, at = OriginIndex(), 0
    while at < len(body):
        origin, last, count = _INDEX_ORIGIN.unpack_from(body, at)
        at += _INDEX_ORIGIN.size
        stop = at + count * _INDEX_PLACE.size
        index.places[origin] = [(hlc, o) for hlc, o in _INDEX_PLACE.iter_unpack(body[at:stop])]
        index.last[origin] = last
        at = stop
    return Sealed(index, end, last_seq)
