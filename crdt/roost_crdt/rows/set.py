"""Add-wins sets.

Row (one per element): `(element, ((actor, add, rem), ...))`, actors ascending; `element` is
empty unless the part holds only its hash. `add` is the hlc of that actor's newest add, `rem`
how far its adds have been removed. A remove raises `rem` to the adds that it observed, so an
add made elsewhere at the same time survives; one clock per element could not tell the two
apart. An element is present if some `add > max(rem, cleared[actor])`. Adding what is present
still writes a new dot, or a concurrent remove would win.

Head: `(((actor, cleared), ...), ehlc, eactor, expires_ms)`. A clear covers in one row what it
observed: of its own actor everything before it, of others what the version vector covers.
Rows arrive joined, so an add can be seen here before its own record arrives and lies above the
version vector then; a clear removes each of those by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from roost_crdt.errors import CorruptData
from roost_crdt.hlc import Stamp
from roost_crdt.rows.expiry import (
    Expiry,
    head_expiry,
    is_hidden,
    join_expiry,
    new_expiry,
)
from roost_crdt.rows.layout import (
    FIELD_BYTES_MAX,
    HEAD,
    TAG_ELEMENT,
    TAG_HEAD,
    TAG_LONG_ELEMENT,
    TAG_LONG_JSON_ELEMENT,
    Delta,
    Part,
    Row,
    Rows,
    StampReused,
    hash_of,
)
from roost_crdt.rows.leaf import (
    KIND_BYTES,
    KIND_JSON,
    Leaf,
    check_json_text,
    kind_and_bytes,
    leaf_from,
)
from roost_crdt.rows.wire import U64, Millis, decoder

Dots = tuple[tuple[int, int, int], ...]
Cleared = tuple[tuple[int, int], ...]

_decode_row = decoder(tuple[bytes, tuple[tuple[U64, U64, U64], ...]])
_decode_head = decoder(tuple[tuple[tuple[U64, U64], ...], U64, U64, Millis])
_SHORT_TAGS = {KIND_BYTES: b"\x04", KIND_JSON: b"\x05"}
_LONG_TAGS = {KIND_BYTES: b"\x06", KIND_JSON: b"\x07"}
_NO_VV: Mapping[int, int] = {}


def decode(part: Part, body: bytes) -> Row:
    row: Row = _decode_row(body)
    element, dots = row
    last = -1
    for actor, add, rem in dots:
        if actor <= last or rem > add:
            raise CorruptData("the dots of a set element are out of order or overdrawn")
        last = actor
    if part[0] < TAG_LONG_ELEMENT:
        if element:
            raise CorruptData("a short set element stands in the body too")
    else:
        if len(element) <= FIELD_BYTES_MAX or hash_of(element) != part[1:]:
            raise CorruptData("a long set element does not fit its hash")
        if part[0] == TAG_LONG_JSON_ELEMENT:
            check_json_text(element)
    return row


def decode_head(part: Part, body: bytes) -> Row:
    row: Row = _decode_head(body)
    last = -1
    for actor, _ in row[0]:
        if actor <= last:
            raise CorruptData("the cleared actors of a set are out of order")
        last = actor
    return row


def join(a: Row, b: Row) -> Row:
    """Pointwise maximum per actor; `a` itself if `b` adds nothing."""
    if a == b:
        return a
    # Only a collision of 128-bit hashes makes elements differ; then both keep the same one.
    element = max(a[0], b[0])
    dots: dict[int, tuple[int, int, int]] = {dot[0]: dot for dot in a[1]}
    for dot in b[1]:
        actor, add, rem = dot
        mine = dots.get(actor)
        if mine is not None:
            dot = (actor, max(add, mine[1]), max(rem, mine[2]))
        dots[actor] = dot
    joined = (element, tuple(sorted(dots.values())))
    return a if joined == a else joined


def join_head(a: Row, b: Row) -> Row:
    """`a` itself if `b` adds nothing; StampReused if one stamp has two expiries."""
    if a == b:
        return a
    cleared = dict(a[0])
    for actor, hlc in b[0]:
        cleared[actor] = max(hlc, cleared.get(actor, 0))
    expiry, reused = join_expiry(a[1:], b[1:])
    joined = (tuple(sorted(cleared.items())), *expiry)
    if reused:
        raise StampReused(f"two expiries under the stamp {expiry[:2]}", joined)
    return a if joined == a else joined


def part_of(leaf: Leaf) -> Part:
    """The part of an element's row."""
    kind, data = kind_and_bytes(leaf)
    if len(data) <= FIELD_BYTES_MAX:
        return _SHORT_TAGS[kind] + data
    return _LONG_TAGS[kind] + hash_of(data)


def element_of(part: Part, row: Row) -> Leaf:
    """The element that a row is about."""
    kind = KIND_BYTES if part[0] in (TAG_ELEMENT, TAG_LONG_ELEMENT) else KIND_JSON
    return leaf_from(kind, row[0] or part[1:])


def cleared_of(rows: Rows) -> dict[int, int]:
    """Up to which hlc each actor's adds are cleared."""
    head = rows.get(HEAD)
    return {} if head is None else dict(head[0])


def expiring_head(rows: Rows, stamp: Stamp, expires_ms: int) -> Delta:
    """The head row of a set or a document, with an expiry set at `stamp`."""
    head = rows.get(HEAD)
    return {HEAD: (head[0] if head else (), *new_expiry(rows, stamp, expires_ms))}


def is_present(row: Row, cleared: Mapping[int, int]) -> bool:
    """Whether some add of the element is neither removed nor cleared."""
    return any(add > rem and add > cleared.get(actor, 0) for actor, add, rem in row[1])


def add(
    rows: Rows,
    elements: Sequence[Leaf],
    stamp: Stamp,
    now_ms: int,
    *,
    vv: Mapping[int, int] = _NO_VV,
) -> Delta:
    """Add elements; all of them carry the dot `stamp`.

    At a set that has expired a new life begins with a clear of what is observed; `vv` (this
    node's version vector) makes that one row, without it every element's row is rewritten.
    """
    delta = _new_life(rows, vv, stamp, now_ms)
    hlc, actor = stamp
    for element in elements:
        part = part_of(element)
        row = delta.get(part) or rows.get(part)
        if row is None:
            _, data = kind_and_bytes(element)
            row = (data if len(data) > FIELD_BYTES_MAX else b"", ())
        assert row_hlc(part, row) <= hlc, f"{stamp} is not above {row[1]}"
        dots = {dot[0]: dot for dot in row[1]}
        removed = dots[actor][2] if actor in dots else 0
        dots[actor] = (actor, hlc, removed)
        delta[part] = (row[0], tuple(sorted(dots.values())))
    return delta


def remove(rows: Rows, elements: Sequence[Leaf], now_ms: int) -> Delta:
    """Remove what is observed of the elements; nothing changes for one that is not present."""
    if is_hidden(rows, now_ms):
        return {}
    cleared = cleared_of(rows)
    delta: Delta = {}
    for element in elements:
        part = part_of(element)
        row = rows.get(part)
        if row is not None and is_present(row, cleared):
            delta[part] = _removed(row)
    return delta


def delete(rows: Rows, vv: Mapping[int, int], stamp: Stamp) -> Delta:
    """Clear what is observed. `vv` is this node's version vector, before this operation."""
    if not exists(rows, 0):
        return {}
    return _clear(rows, vv, stamp, head_expiry(rows))


def expire(rows: Rows, stamp: Stamp, expires_ms: int) -> Delta:
    """Let the whole set expire at `expires_ms` (0 = never).

    The caller checks first that it exists: a later time would show again what has expired.
    """
    return expiring_head(rows, stamp, expires_ms) if exists(rows, 0) else {}


def exists(rows: Rows, now_ms: int) -> bool:
    if is_hidden(rows, now_ms):
        return False
    cleared = cleared_of(rows)
    return any(is_present(row, cleared) for part, row in rows.items() if part[0] != TAG_HEAD)


def members(rows: Rows, now_ms: int) -> list[Leaf]:
    """Present elements in order of their bytes, strings before other JSON."""
    if is_hidden(rows, now_ms):
        return []
    cleared = cleared_of(rows)
    found = [
        element_of(part, row)
        for part, row in rows.items()
        if part[0] != TAG_HEAD and is_present(row, cleared)
    ]
    return sorted(found, key=kind_and_bytes)


def contains(rows: Rows, leaf: Leaf, now_ms: int) -> bool:
    row = rows.get(part_of(leaf))
    return row is not None and not is_hidden(rows, now_ms) and is_present(row, cleared_of(rows))


def row_hlc(part: Part, row: Row) -> int:
    """The highest hlc in the row."""
    return max((add for _, add, _ in row[1]), default=0)


def head_hlc(part: Part, row: Row) -> int:
    """The highest hlc in the head."""
    highest: int = row[1]
    for _, hlc in row[0]:
        highest = max(highest, hlc)
    return highest


def _removed(row: Row) -> Row:
    return (row[0], tuple((actor, add, add) for actor, add, _ in row[1]))


def _clear(rows: Rows, vv: Mapping[int, int], stamp: Stamp, expiry: Expiry) -> Delta:
    hlc, actor = stamp
    cleared = cleared_of(rows)
    actors = {dot[0] for part, row in rows.items() if part[0] != TAG_HEAD for dot in row[1]}
    for seen in actors:
        # Of itself an actor has seen all: an earlier operation of the same record included,
        # which the version vector does not cover yet.
        covered = hlc - 1 if seen == actor else min(vv.get(seen, 0), hlc)
        if covered > cleared.get(seen, 0):
            cleared[seen] = covered
    delta: Delta = {HEAD: (tuple(sorted(cleared.items())), *expiry)}
    for part, row in rows.items():
        if part[0] != TAG_HEAD and is_present(row, cleared):
            delta[part] = _removed(row)
    return delta


def _new_life(rows: Rows, vv: Mapping[int, int], stamp: Stamp, now_ms: int) -> Delta:
    if not head_expiry(rows)[2] or exists(rows, now_ms):
        return {}
    return _clear(rows, vv, stamp, new_expiry(rows, stamp, 0))
