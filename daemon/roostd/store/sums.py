"""The sums of the digest as the index keeps them: buckets in groups, and hours."""

from __future__ import annotations

import lmdb

from roost_crdt import digest, logformat
from roost_crdt.errors import CorruptData
from roostd.index import Index, u64
from roostd.logrecovery import REPAIR

BUCKET_PREFIX = b"digest/"
HOUR_PREFIX = b"digest_hour/"
_GROUP_BUCKETS = 64
_AMOUNT_BYTES = 16


class DigestChange:
    """What a batch adds to the sums, by bucket and by hour; `noted` what of it concerns keys below
    `summed`, which a scrub has summed up already."""

    def __init__(self, summed: bytes) -> None:
        self.noted: list[tuple[bytes, digest.Contribution, int]] = []
        self._summed = summed
        self.buckets: dict[int, int] = {}
        self.hours: dict[int, int] = {}

    def add_one(self, key: bytes, amount: int, expires_ms: int) -> None:
        """Add what one element adds, negative to take it away."""
        if key < self._summed:
            hours = {expires_ms // digest.HOUR_MS: amount} if expires_ms else {}
            self.noted.append((key, digest.Contribution(0 if hours else amount, hours), 1))
        if expires_ms:
            hour = expires_ms // digest.HOUR_MS
            self.hours[hour] = self.hours.get(hour, 0) + amount
        else:
            bucket = digest.bucket_of(key)
            self.buckets[bucket] = self.buckets.get(bucket, 0) + amount

    def add(self, key: bytes, amount: digest.Contribution, sign: int = 1) -> None:
        if key < self._summed:
            self.noted.append((key, amount, sign))
        if amount.live:
            bucket = digest.bucket_of(key)
            self.buckets[bucket] = self.buckets.get(bucket, 0) + sign * amount.live
        for hour, part in amount.hours.items():
            self.hours[hour] = self.hours.get(hour, 0) + sign * part


def digest_pairs(buckets: list[int], hours: dict[int, int]) -> list[tuple[bytes, bytes | None]]:
    """All sums as meta stores them."""
    groups = ((group_name(group), raw) for group, raw in packed(buckets).items())
    return [*groups, *hour_pairs(hours)]


def packed(buckets: list[int]) -> dict[int, bytes]:
    """Group -> its buckets as they are stored."""
    return {
        first // _GROUP_BUCKETS: b"".join(map(_amount, buckets[first : first + _GROUP_BUCKETS]))
        for first in range(0, digest.BUCKETS, _GROUP_BUCKETS)
    }


def repacked(groups: dict[int, bytes], changed: dict[int, int]) -> dict[int, bytes]:
    """Those groups that `changed` touches, with what it changes."""
    found: dict[int, bytearray] = {}
    for at, amount in changed.items():
        group, place = divmod(at, _GROUP_BUCKETS)
        raw = found.get(group)
        if raw is None:
            raw = found[group] = bytearray(groups[group])
        raw[place * _AMOUNT_BYTES : (place + 1) * _AMOUNT_BYTES] = _amount(amount)
    return {group: bytes(found[group]) for group in sorted(found)}


def group_name(group: int) -> bytes:
    return BUCKET_PREFIX + b"%02x" % group


_GROUPS = {group_name(at // _GROUP_BUCKETS): at for at in range(0, digest.BUCKETS, _GROUP_BUCKETS)}
"""Name of each stored group of buckets -> its first bucket."""


def hour_pairs(hours: dict[int, int]) -> list[tuple[bytes, bytes | None]]:
    return [(HOUR_PREFIX + u64(at), _amount(n) if n else None) for at, n in hours.items()]


def load_digest(index: Index) -> tuple[list[int], dict[int, int]]:
    """The sums by bucket and by hour that the index holds. CorruptData: they are none."""
    try:
        return _load_buckets(index), _load_hours(index)
    except lmdb.Error as exc:
        raise CorruptData(f"{index.path}: damaged: {exc}; {REPAIR}") from exc


def _load_buckets(index: Index) -> list[int]:
    buckets = [0] * digest.BUCKETS
    for name, value in index.scan(logformat.KIND_META, BUCKET_PREFIX, b"", digest.BUCKETS):
        first = _GROUPS.get(name)
        if first is None or len(value) != _GROUP_BUCKETS * _AMOUNT_BYTES:
            raise CorruptData(f"{index.path}: meta {name!r} is damaged; {REPAIR}")
        for at in range(_GROUP_BUCKETS):
            raw = value[at * _AMOUNT_BYTES : (at + 1) * _AMOUNT_BYTES]
            buckets[first + at] = int.from_bytes(raw, "big")
    return buckets


def _load_hours(index: Index) -> dict[int, int]:
    hours: dict[int, int] = {}
    after = b""
    while page := index.scan(logformat.KIND_META, HOUR_PREFIX, after, 1_000):
        for name, value in page:
            hours[int.from_bytes(name[len(HOUR_PREFIX) :], "big")] = int.from_bytes(value, "big")
        after = page[-1][0]
    return hours


def _amount(value: int) -> bytes:
    return value.to_bytes(_AMOUNT_BYTES, "big")
