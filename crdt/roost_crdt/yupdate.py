"""What a Yjs update (format v1) of a session document holds, read without Yjs.

A session document has two root maps, `e` (write-once entries) and `f` (fields), whose values are
byte strings. That is a small part of what an update can say, and the only part that this reader
takes: no nested types, no text, no numbers, no garbage-collection structs, no holes. So nothing
that could hang, overflow or panic foreign code ever reaches it, and what an update needs to be
complete (clocks, origins, deletions) is known before it is applied.

    update     = clients: varint, block*, delete set
    block      = structs: varint, client: varint, clock: varint, struct*
    struct     = info u8 (0x80 has origin | 0x20 has key | content), origin | parent, content
    origin     = client: varint, clock: varint       (parent and key are those of the origin)
    parent     = 1, root name: string, key: string
    content    = 8: count = 1, tag 116 (bytes), value: string | 1: number of deleted clocks
    delete set = clients: varint, (client, ranges: varint, (clock, length)*)*
"""

from __future__ import annotations

from typing import NamedTuple

from roost_crdt.errors import CorruptData

CLIENT_MAX = (1 << 53) - 1
CLOCK_MAX = (1 << 31) - 1
"""Yjs counts in 32 bits; half of it is far above any bounded document, and no sum can wrap."""
STRUCTS_MAX = 100_000
"""Several times what a session may have; reading so many takes 0.2 s."""
ENTRIES = "e"
FIELDS = "f"

_HAS_ORIGIN = 0x80
_HAS_RIGHT_ORIGIN = 0x40
_HAS_KEY = 0x20
_CONTENT = 0x1F
_DELETED = 1
_ANY = 8
_SKIP = 10
_BYTES = 116
_ENTRIES_BYTE = ord(ENTRIES)
_FIELDS_BYTE = ord(FIELDS)
_VARINT_BYTES_MAX = 9


class Range(NamedTuple):
    """Clocks `start` (inclusive) to `end` (exclusive) of one client."""

    client: int
    start: int
    end: int


class Item(NamedTuple):
    """One value of a root map; `value` is None where only the place is left of it.

    `last` is the last clock that it takes (a place can stand for several dead values).
    """

    key: str
    value: bytes | None
    client: int
    clock: int
    last: int


class Overwrite(NamedTuple):
    """A later value of the key that the item at `origin` (client, clock) has."""

    origin: tuple[int, int]
    value: bytes | None
    client: int
    clock: int
    last: int


class Contents(NamedTuple):
    """What one update holds."""

    ranges: list[Range]
    entries: list[Item]
    fields: list[Item]
    overwrites: list[Overwrite]
    deletes: list[Range]


def read_update(raw: bytes) -> Contents:
    """Raises CorruptData for anything but one whole update of a session document."""
    contents = Contents([], [], [], [], [])
    try:
        blocks, at = _varint(raw, 0)
        seen: set[int] = set()
        total = 0
        for _ in range(blocks):
            structs, at = _varint(raw, at)
            total += structs
            if total > STRUCTS_MAX:
                raise CorruptData(f"an update of more than {STRUCTS_MAX} structs is not taken")
            client, at = _varint(raw, at)
            clock, at = _varint(raw, at)
            if client in seen or not structs or client > CLIENT_MAX:
                raise _foreign(at)
            seen.add(client)
            at, end = _structs(raw, at, structs, client, clock, contents)
            contents.ranges.append(Range(client, clock, end))
        at = _delete_set(raw, at, contents.deletes)
    except (IndexError, UnicodeDecodeError) as error:
        raise CorruptData("an update of a session document is cut short or garbled") from error
    if at != len(raw):
        raise _foreign(at)
    return contents


def read_state_vector(raw: bytes) -> dict[int, int]:
    """Client to the number of its clocks held. Raises CorruptData."""
    clocks: dict[int, int] = {}
    try:
        count, at = _varint(raw, 0)
        for _ in range(count):
            client, at = _varint(raw, at)
            clocks[client], at = _varint(raw, at)
    except IndexError as error:
        raise CorruptData("a state vector is cut short") from error
    if at != len(raw) or len(clocks) != count:
        raise CorruptData("a state vector does not add up")
    return clocks


def _structs(
    raw: bytes, at: int, structs: int, client: int, clock: int, contents: Contents
) -> tuple[int, int]:
    """Read one client's structs; the place after them and the clock after the last."""
    entries, fields, overwrites = contents.entries, contents.fields, contents.overwrites
    for _ in range(structs):
        info = raw[at]
        at += 1
        content = info & _CONTENT
        if content == _SKIP:
            raise CorruptData("an update of a session document has a gap: something is missing")
        root = key = None
        origin = (0, 0)
        if info & _HAS_ORIGIN:
            origin_client, at = _varint(raw, at)
            origin_clock, at = _varint(raw, at)
            origin = (origin_client, origin_clock)
        else:
            if raw[at] != 1 or raw[at + 1] != 1 or not info & _HAS_KEY:
                raise _foreign(at)
            root = raw[at + 2]
            size = raw[at + 3]
            at += 4
            if size >= 0x80:
                size, at = _varint(raw, at - 1)
            key = raw[at : at + size].decode()
            at += size
        if info & _HAS_RIGHT_ORIGIN:
            raise _foreign(at)
        value: bytes | None = None
        length = 1
        if content == _ANY:
            if raw[at] != 1 or raw[at + 1] != _BYTES:
                raise _foreign(at)
            size, at = _varint(raw, at + 2)
            value = raw[at : at + size]
            at += size
            if at >= len(raw):
                raise IndexError
        elif content == _DELETED:
            length, at = _varint(raw, at)
            if not length:
                raise _foreign(at)
        else:
            raise _foreign(at)
        last = clock + length - 1
        if key is None:
            overwrites.append(Overwrite(origin, value, client, clock, last))
        elif root == _ENTRIES_BYTE:
            entries.append(Item(key, value, client, clock, last))
        elif root == _FIELDS_BYTE:
            fields.append(Item(key, value, client, clock, last))
        else:
            raise _foreign(at)
        clock = last + 1
        if clock > CLOCK_MAX:
            raise _foreign(at)
    return at, clock


def _delete_set(raw: bytes, at: int, deletes: list[Range]) -> int:
    clients, at = _varint(raw, at)
    for _ in range(clients):
        client, at = _varint(raw, at)
        ranges, at = _varint(raw, at)
        for _ in range(ranges):
            clock, at = _varint(raw, at)
            length, at = _varint(raw, at)
            if clock + length > CLOCK_MAX or client > CLIENT_MAX:
                raise _foreign(at)
            deletes.append(Range(client, clock, clock + length))
    return at


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    byte = raw[at]
    if byte < 0x80:
        return byte, at + 1
    value = byte & 0x7F
    shift = 7
    start = at
    while True:
        at += 1
        byte = raw[at]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at + 1
        shift += 7
        if at - start >= _VARINT_BYTES_MAX:
            raise _foreign(at)


def _foreign(at: int) -> CorruptData:
    return CorruptData(f"byte {at} of an update is nothing that a session document can hold")
