"""Digests: sums over what is live, equal on all nodes that show the same.

Each live element of a key (a value, an actor's count, a set's element, a map's field, a shown
row of a document) is hashed to a number mod 2**128; sums of them change incrementally and do not
depend on order. Tombstones, dead counts and rate windows are left out, because nodes drop them at
different times. What expires is summed per hour of its expiry and compared only while that hour is
not yet due, because nodes hide it by their own clocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Final, NamedTuple
from zlib import crc32

from roost_crdt.rows import counter, doc, map, set  # noqa: A004
from roost_crdt.rows.layout import (
    HEAD,
    NO_STAMP,
    TAG_FIELD,
    TYPE_COUNTER,
    TYPE_DOC,
    TYPE_MAP,
    TYPE_REGISTER,
    TYPE_SET,
    VALUE,
    Delta,
    Part,
    Row,
    Rows,
)
from roost_crdt.rows.leaf import KIND_DEAD
from roost_crdt.rows.wire import encode

BUCKETS: Final = 4096
HOUR_MS: Final = 3_600_000
MODULUS: Final = 1 << 128

_HASH = blake2b(digest_size=16, person=b"roost-digest")
_DIGESTED = {TYPE_REGISTER, TYPE_COUNTER, TYPE_SET, TYPE_MAP, TYPE_DOC}


class Contribution(NamedTuple):
    """What a key adds to its bucket and, by the hour of expiry, to the hours. Mod 2**128."""

    live: int
    hours: dict[int, int]

    def minus(self, other: Contribution) -> Contribution:
        """What turns the sums that hold `other` into the ones that hold `self`."""
        hours = dict(self.hours)
        for hour, amount in other.hours.items():
            hours[hour] = (hours.get(hour, 0) - amount) % MODULUS
        kept = {hour: amount for hour, amount in hours.items() if amount}
        return Contribution((self.live - other.live) % MODULUS, kept)


def bucket_of(key: bytes) -> int:
    """The bucket of a key, 0 to 4,095."""
    return crc32(key) % BUCKETS


def contribution(type_code: int, key: bytes, rows: Rows) -> Contribution:
    """What a key with these rows adds. Rates add nothing here."""
    if type_code not in _DIGESTED:
        return Contribution(0, {})
    if type_code == TYPE_DOC:
        return _sum(type_code, key, _shown(rows), rows.get(HEAD))
    return _sum(type_code, key, rows, rows.get(HEAD))


def register_amount(key: bytes, row: Row) -> int:
    """What the row of a register adds: to the hour of its expiry `row[6]`, without one to the
    bucket of its key. 0: nothing, it is dead."""
    if row[2] == KIND_DEAD:
        return 0
    hashed = _HASH.copy()
    hashed.update(encode((TYPE_REGISTER, key, VALUE, row[2], row[3], row[6])))
    return int.from_bytes(hashed.digest(), "big")


def count_amount(type_code: int, key: bytes, part: Part, row: Row, ends_ms: int) -> int:
    """The same of one actor's row of a counter, or of a counting field; `ends_ms`: the key's."""
    if not counter.is_live(row):
        return 0
    hashed = _HASH.copy()
    hashed.update(encode((type_code, key, part, row[0] - row[2], row[1] - row[3], ends_ms)))
    return int.from_bytes(hashed.digest(), "big")


def change(type_code: int, key: bytes, before: Rows, delta: Delta) -> Contribution:
    """What applying `delta` to `before` changes, in time proportional to `delta`.

    A new head can hide or show every row: then the whole key is summed. `before` may be no more
    than the rows that `delta` touches and the head, or the whole key if `delta` has a head or the
    key is a document.
    """
    if type_code not in _DIGESTED:
        return Contribution(0, {})
    if HEAD in delta:
        after = contribution(type_code, key, {**before, **delta})
        return after.minus(contribution(type_code, key, before))
    head = before.get(HEAD)
    if type_code == TYPE_DOC:
        old, now = _shown(before), _shown({**before, **delta})
        gone = {part: row for part, row in old.items() if now.get(part) is not row}
        come = {part: row for part, row in now.items() if old.get(part) is not row}
        return _sum(type_code, key, come, head).minus(_sum(type_code, key, gone, head))
    touched = {part: before[part] for part in delta if part in before}
    new = _sum(type_code, key, delta, head)
    return new.minus(_sum(type_code, key, touched, head)) if touched else new


def root(buckets: Sequence[int], hours: Mapping[int, int], now_ms: int) -> str:
    """32 hex digits over all buckets and the hours that are not yet due at `now_ms`."""
    assert len(buckets) == BUCKETS
    digest = blake2b(digest_size=16, person=b"roost-root")
    digest.update(b"".join(amount.to_bytes(16, "big") for amount in buckets))
    for hour, amount in sorted(hours.items()):
        if amount and hour * HOUR_MS > now_ms:
            digest.update(hour.to_bytes(8, "big") + amount.to_bytes(16, "big"))
    return digest.hexdigest()


def _sum(type_code: int, key: bytes, rows: Rows, head: Row | None) -> Contribution:
    live = 0
    hours: dict[int, int] = {}
    for amount, expires_ms in _elements(type_code, key, rows, head):
        if not expires_ms:
            live += amount
        else:
            hour = expires_ms // HOUR_MS
            hours[hour] = (hours.get(hour, 0) + amount) % MODULUS
    return Contribution(live % MODULUS, {hour: amount for hour, amount in hours.items() if amount})


def _elements(
    type_code: int, key: bytes, rows: Rows, head: Row | None
) -> Iterator[tuple[int, int]]:
    """Hash and expiry of each live element under a head, without regard to the time."""
    if type_code == TYPE_REGISTER:
        for row in rows.values():
            if row[2] != KIND_DEAD:
                yield register_amount(key, row), row[6]
        return
    whole_ms: int = head[-1] if head else 0
    cleared = dict(head[0]) if head and type_code == TYPE_SET else {}
    clear = head[:2] if head and type_code == TYPE_MAP else NO_STAMP
    for part, row in rows.items():
        if part == HEAD:
            continue
        if type_code == TYPE_DOC:
            yield _hash((type_code, key, part, encode(row), whole_ms)), whole_ms
        elif type_code == TYPE_SET:
            if set.is_present(row, cleared):
                yield _hash((type_code, key, part, whole_ms)), whole_ms
        elif part[0] == TAG_FIELD:
            if map.is_present(row, clear, 0):
                ends_ms = min(filter(None, (row[4], whole_ms)), default=0)
                yield _hash((type_code, key, part, row[2], row[3], ends_ms)), ends_ms
        elif counter.is_live(row):
            yield count_amount(type_code, key, part, row, whole_ms), whole_ms


def _shown(rows: Rows) -> Rows:
    return {part: rows[part] for part in doc.shown(rows)}


def _hash(element: tuple[int | bytes, ...]) -> int:
    hashed = _HASH.copy()
    hashed.update(encode(element))
    return int.from_bytes(hashed.digest(), "big")
