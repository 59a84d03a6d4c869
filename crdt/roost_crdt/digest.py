"""Digests: sums over what is live, equal on all nodes that show the same.

Each live element of a key (a value, an actor's count, a set's element, a map's field) is
hashed to a number mod 2**128; sums of them change incrementally and do not depend on order.
Tombstones, dead counts and rate windows are left out, because nodes drop them at different
times. What expires is summed per hour of its expiry and compared only while that hour is not
yet due, because nodes hide it by their own clocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Final, NamedTuple
from zlib import crc32

from roost_crdt.rows import counter, map, register, set  # noqa: A004
from roost_crdt.rows.expiry import head_expiry
from roost_crdt.rows.layout import (
    HEAD,
    TAG_FIELD,
    TYPE_COUNTER,
    TYPE_MAP,
    TYPE_REGISTER,
    TYPE_SET,
    Delta,
    Part,
    Row,
    Rows,
)
from roost_crdt.rows.wire import encode

BUCKETS: Final = 4096
HOUR_MS: Final = 3_600_000
MODULUS: Final = 1 << 128

_DIGESTED = {TYPE_REGISTER, TYPE_COUNTER, TYPE_SET, TYPE_MAP}


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
    """What a key with these rows adds. Rates and documents add nothing here."""
    if type_code not in _DIGESTED:
        return Contribution(0, {})
    return _sum(type_code, key, rows, rows)


def change(type_code: int, key: bytes, before: Rows, delta: Delta) -> Contribution:
    """What applying `delta` to `before` changes, in time proportional to `delta`.

    A new head can hide or show every row: then the whole key is summed.
    """
    if type_code not in _DIGESTED:
        return Contribution(0, {})
    after = {**before, **delta} if HEAD in delta else None
    if after is not None:
        return _sum(type_code, key, after, after).minus(_sum(type_code, key, before, before))
    touched = {part: before[part] for part in delta if part in before}
    new = _sum(type_code, key, _headed(before, delta), delta)
    return new.minus(_sum(type_code, key, before, touched))


def root(buckets: Sequence[int], hours: Mapping[int, int], now_ms: int) -> str:
    """32 hex digits over all buckets and the hours that are not yet due at `now_ms`."""
    assert len(buckets) == BUCKETS
    digest = blake2b(digest_size=16, person=b"roost-root")
    digest.update(b"".join(amount.to_bytes(16, "big") for amount in buckets))
    for hour, amount in sorted(hours.items()):
        if amount and hour * HOUR_MS > now_ms:
            digest.update(hour.to_bytes(8, "big") + amount.to_bytes(16, "big"))
    return digest.hexdigest()


def _headed(before: Rows, delta: Delta) -> Rows:
    head = before.get(HEAD)
    return delta if head is None else {**delta, HEAD: head}


def _sum(type_code: int, key: bytes, rows: Rows, counted: Rows) -> Contribution:
    """The sum over the rows `counted` of a key whose head is in `rows`."""
    live = 0
    hours: dict[int, int] = {}
    for amount, expires_ms in _elements(type_code, key, rows, counted.items()):
        if not expires_ms:
            live = (live + amount) % MODULUS
        else:
            hour = expires_ms // HOUR_MS
            hours[hour] = (hours.get(hour, 0) + amount) % MODULUS
    return Contribution(live, {hour: amount for hour, amount in hours.items() if amount})


def _elements(
    type_code: int, key: bytes, rows: Rows, counted: Iterable[tuple[Part, Row]]
) -> Iterable[tuple[int, int]]:
    """Hash and expiry of each live element, without regard to the time."""
    cleared = set.cleared_of(rows) if type_code == TYPE_SET else {}
    clear = map.clear_stamp(rows) if type_code == TYPE_MAP else (0, 0)
    whole_ms = 0 if type_code == TYPE_REGISTER else head_expiry(rows)[2]
    for part, row in counted:
        ends_ms = whole_ms
        value: tuple[int | bytes, ...] = ()
        if part == HEAD:
            continue
        if type_code == TYPE_REGISTER:
            if not register.exists(rows, 0):
                continue
            value, ends_ms = row[2:4], row[6]
        elif type_code == TYPE_SET:
            if not set.is_present(row, cleared):
                continue
        elif part[0] == TAG_FIELD:
            if not map.is_present(row, clear, 0):
                continue
            value = row[2:4]
            ends_ms = min(filter(None, (row[4], whole_ms)), default=0)
        elif counter.is_live(row):
            value = (row[0] - row[2], row[1] - row[3])
        else:
            continue
        yield _hash(type_code, key, part, (*value, ends_ms)), ends_ms


def _hash(type_code: int, key: bytes, part: Part, value: tuple[int | bytes, ...]) -> int:
    data = encode((type_code, key, part, *value))
    return int.from_bytes(blake2b(data, digest_size=16, person=b"roost-digest").digest(), "big")
