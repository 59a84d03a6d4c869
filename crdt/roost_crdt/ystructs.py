"""What any Yjs update (format v1) holds, read without Yjs.

`roost_crdt.yupdate` takes only what a session document can say. This reader takes all that Yjs
clients write, so that an update of somebody's own document is known before foreign code sees it:
whose clocks it moves, what it deletes, and how deep things are nested in it. Refused are
what only yrs knows (moves, weak links), integers that leave their range and nesting beyond
`Limits.nesting_max`: 32 KB of arrays in each other overflow the stack of any reader.

    struct  = info u8 (0x80 has origin | 0x40 has right origin | 0x20 has key | content), ids,
              parent where there is neither origin, content
    ids     = client: varint, clock: varint
    parent  = 1, root name: string | 0, id of the item that is the parent; key: string
    content = 0: clocks (garbage) | 1: clocks (deleted) | 2: count, JSON text* | 3: buffer
            | 4: string | 5: JSON text | 6: key, JSON text | 7: type [name] | 8: count, any*
            | 9: guid, any (a sub-document) | 10: clocks (a hole)
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec

from roost_crdt.errors import CorruptData
from roost_crdt.limits import DEFAULT_LIMITS
from roost_crdt.yplaces import Runs, runs_by_client
from roost_crdt.yupdate import CLIENT_MAX, CLOCK_MAX, Range

_ORIGIN = 0x80
_RIGHT_ORIGIN = 0x40
_KEY = 0x20
_CONTENT = 0x1F
_GARBAGE, _DELETED, _JSON, _BINARY, _STRING, _EMBED, _FORMAT, _TYPE, _ANY, _DOC, _HOLE = range(11)
_NAMED_TYPES = (3, 5)
_TYPES = 7
_VARINT_BYTES_MAX = 9
_NESTING_MAX = DEFAULT_LIMITS.nesting_max
_ANY_FIXED = {127: 0, 126: 0, 124: 4, 123: 8, 122: 8, 121: 0, 120: 0}
"""Bytes after the tag: undefined, null, float32, float64, bigint, false, true."""

Id = tuple[int, int]
Parent = Id | str
"""Another item, or a root type by its name."""


@dataclass(slots=True)
class Structs:
    """What one update holds."""

    ranges: list[Range] = field(default_factory=list)
    """Clocks of items and garbage, in runs without holes."""
    deletes_at: int = field(default=0, compare=False)
    """Where the update's deletions begin."""
    deletes: list[Range] = field(default_factory=list)
    starts: dict[int, list[int]] = field(default_factory=dict)
    """Client -> first clock of each item that is not garbage."""
    parents: dict[Id, tuple[bool, Parent]] = field(default_factory=dict)
    """Item by its first clock -> (True, its parent) or (False, an item beside it)."""
    types: set[Id] = field(default_factory=set)
    nested: bool = False
    """Whether a shared type stands anywhere but directly in a root type."""


class TooManyStructs(CorruptData):
    """An update says that it has more structs than were asked for."""


def read_structs(raw: bytes, count_max: int = CLOCK_MAX) -> Structs:
    """Raises CorruptData for anything but one whole update, TooManyStructs before it is read."""
    reader = _Reader(raw)
    found = Structs()
    try:
        seen: set[int] = set()
        for _ in range(reader.varint()):
            count, client, clock = reader.varint(), reader.varint(), reader.varint()
            count_max -= count
            if count_max < 0:
                raise TooManyStructs("the update has too many structs")
            if client in seen or client > CLIENT_MAX:
                raise _odd(reader.at)
            seen.add(client)
            start = clock
            for _ in range(count):
                hole, length = _struct(reader, (client, clock), found)
                if hole and start < clock:
                    found.ranges.append(Range(client, start, clock))
                clock += length
                if not length or clock > CLOCK_MAX:
                    raise _odd(reader.at)
                start = clock if hole else start
            if start < clock:
                found.ranges.append(Range(client, start, clock))
        found.deletes_at = reader.at
        _deletes(reader, found)
    except (IndexError, UnicodeDecodeError) as error:
        raise CorruptData("a Yjs update is cut short or garbled") from error
    if reader.at != len(raw):
        raise _odd(reader.at)
    return found


def check_depth(structs: Structs, depth_max: int = _NESTING_MAX) -> None:
    """Raise CorruptData if shared types stand in each other more than `depth_max` deep.

    `structs` are those of a whole document: what an item stands in is looked up among them, and
    an item whose surroundings are not there (yet) counts as standing in a root type.
    """
    depths: dict[Id, int] = {}
    for item in structs.types:
        way: list[tuple[Id, bool]] = []
        at: Id | None = item
        while at is not None and at not in depths:
            if len(way) > len(structs.parents):
                raise CorruptData("a Yjs update builds on itself in a circle")
            inside, other = structs.parents[at]
            way.append((at, inside))
            at = None if isinstance(other, str) else _item_at(structs, other)
        depth = 1 if at is None else depths[at]
        first = at is None
        for step, inside in reversed(way):
            depth += inside and not first
            first = False
            depths[step] = depth
        if depths[item] > depth_max:
            raise CorruptData(f"shared types are nested deeper than {depth_max}")


def readable_runs(updates: Iterable[bytes]) -> Runs:
    """The clocks of all updates that can be read."""
    found: list[Range] = []
    for update in updates:
        with suppress(CorruptData):
            found += read_structs(update).ranges
    return runs_by_client(found)


def delete_update(runs_of: Runs) -> bytes:
    """An update that deletes clocks and says nothing else."""
    parts = [b"\0", _encoded(len(runs_of))]
    for client in sorted(runs_of):
        parts += [_encoded(client), _encoded(len(runs_of[client]))]
        for _, start, end in runs_of[client]:
            parts += [_encoded(start), _encoded(end - start)]
    return b"".join(parts)


def _item_at(structs: Structs, place: Id) -> Id | None:
    client, clock = place
    starts = structs.starts.get(client, [])
    at = bisect_right(starts, clock)
    return (client, starts[at - 1]) if at else None


class _Reader:
    """A position in an update."""

    __slots__ = ("at", "raw")

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.at = 0

    def byte(self) -> int:
        value = self.raw[self.at]
        self.at += 1
        return value

    def varint(self) -> int:
        raw, at = self.raw, self.at
        byte = raw[at]
        at += 1
        value = byte & 0x7F
        shift = 7
        while byte >= 0x80:
            if shift >= 7 * _VARINT_BYTES_MAX:
                raise _odd(at)
            byte = raw[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
        self.at = at
        return value

    def buffer(self) -> bytes:
        size = self.varint()
        start = self.at
        self.skip(size)
        return self.raw[start : self.at]

    def skip(self, size: int) -> None:
        self.at += size
        if self.at > len(self.raw):
            raise IndexError

    def text(self) -> str:
        return self.buffer().decode()

    def json(self, *, parsed: bool = False) -> None:
        """JSON text; `parsed`: yrs reads no update in which it is not valid."""
        text = self.buffer()
        text.decode()
        if _opens_deeper(text, _NESTING_MAX):
            raise CorruptData(f"JSON in a Yjs update is nested deeper than {_NESTING_MAX}")
        if parsed:
            _check_json(text)

    def any(self) -> None:
        """One value of lib0's own encoding, without recursion."""
        left = [1]
        """For each open array or object, how many values it still lacks."""
        keyed = [False]
        while left:
            if not left[-1]:
                left.pop()
                keyed.pop()
                continue
            left[-1] -= 1
            if keyed[-1]:
                self.text()
            tag = self.byte()
            if tag in _ANY_FIXED:
                self.skip(_ANY_FIXED[tag])
            elif tag == 125:
                self.varint()
            elif tag == 119:
                self.text()
            elif tag == 116:
                self.buffer()
            elif tag in (117, 118):
                left.append(self.varint())
                keyed.append(tag == 118)
                if len(left) > _NESTING_MAX + 1:
                    raise CorruptData(f"a Yjs update is nested deeper than {_NESTING_MAX}")
            else:
                raise _odd(self.at)


def _struct(reader: _Reader, item: Id, found: Structs) -> tuple[bool, int]:
    """Read one struct: whether it is a hole, and how many clocks it takes."""
    info = reader.byte()
    content = info & _CONTENT
    if content in (_GARBAGE, _HOLE):
        return content == _HOLE, reader.varint()
    parent: tuple[bool, Parent] | None = None
    if info & _ORIGIN:
        parent = False, (reader.varint(), reader.varint())
    if info & _RIGHT_ORIGIN:
        right = reader.varint(), reader.varint()
        parent = parent or (False, right)
    if parent is None:
        named = reader.varint()
        parent = True, reader.text() if named == 1 else (reader.varint(), reader.varint())
        if named > 1:
            raise _odd(reader.at)
        if info & _KEY:
            reader.text()
    found.parents[item] = parent
    found.starts.setdefault(item[0], []).append(item[1])
    if content == _TYPE:
        found.types.add(item)
        found.nested = found.nested or not isinstance(parent[1], str)
    return False, _content(reader, content)


def _content(reader: _Reader, content: int) -> int:
    """Read the content of an item: how many clocks it takes."""
    if content == _DELETED:
        return reader.varint()
    if content in (_JSON, _ANY):
        count = reader.varint()
        for _ in range(count):
            (reader.any if content == _ANY else reader.json)()
        return count
    if content == _STRING:
        text = reader.text()
        return len(text) + sum(character > "\uffff" for character in text)
    if content == _BINARY:
        reader.buffer()
    elif content == _EMBED:
        reader.json(parsed=True)
    elif content == _FORMAT:
        reader.text()
        reader.json(parsed=True)
    elif content == _TYPE:
        kind = reader.varint()
        if kind >= _TYPES:
            raise _odd(reader.at)
        if kind in _NAMED_TYPES:
            reader.text()
    elif content == _DOC:
        reader.text()
        reader.any()
    else:
        raise _odd(reader.at)
    return 1


def _deletes(reader: _Reader, found: Structs) -> None:
    seen: set[int] = set()
    for _ in range(reader.varint()):
        client = reader.varint()
        if client in seen or client > CLIENT_MAX:
            raise _odd(reader.at)
        seen.add(client)
        end = 0
        for _ in range(reader.varint()):
            clock, length = reader.varint(), reader.varint()
            # yrs loses deletions that are out of order when it merges updates.
            if clock < end or clock + length > CLOCK_MAX:
                raise _odd(reader.at)
            end = clock + length
            found.deletes.append(Range(client, clock, end))


def _check_json(text: bytes) -> None:
    try:
        msgspec.json.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise CorruptData(f"JSON in a Yjs update does not parse: {error}") from None


def _opens_deeper(text: bytes, levels: int) -> bool:
    """Whether a JSON text, valid or not, opens more than `levels` arrays and objects at once."""
    if text.count(b"[") + text.count(b"{") <= levels:
        return False
    depth = 0
    quoted = escaped = False
    for code in text:
        if quoted:
            quoted = escaped or code != 0x22
            escaped = code == 0x5C and not escaped
        elif code == 0x22:
            quoted = True
        elif code in b"[{":
            depth += 1
            if depth > levels:
                return True
        elif code in b"]}":
            depth -= 1
    return False


def _encoded(number: int) -> bytes:
    parts = bytearray()
    while number >= 0x80:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def _odd(at: int) -> CorruptData:
    return CorruptData(f"byte {at} of a Yjs update is nothing that a Yjs client writes")
