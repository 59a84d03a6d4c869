"""Suspects: buckets of keys of which rows were lost to damage, until they are mended.

A row whose name is damaged is a row that is absent: nothing at a read tells so. What tells are the
sums of the buckets (roostd.store.scrub). While a bucket is suspect, what its keys lack is not taken
for absent: reads of them are refused, except those that one whole row answers. The set is durable
in `meta` (`suspect`, a bit for each bucket behind a checksum), where clients that read the index
themselves see it too.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path

from roost_crdt import digest
from roost_crdt.errors import CorruptData
from roost_crdt.rows.layout import TYPE_REGISTER
from roostd.logrecovery import REPAIR
from roostd.segments import sync_directory
from roostd.store.memory import KeyRows

NAME = b"suspect"
ALL = frozenset(range(digest.BUCKETS))
WANTED = "remake"
"""A file in the store that is there once pages were found that LMDB must not go on with: the next
start puts the index together anew (roostd.store.remaking)."""
_BYTES = digest.BUCKETS // 8


class Suspects:
    """The buckets that lack rows. Set by the thread that applies, cleared by the node's."""

    def __init__(self, stored: bytes | None) -> None:
        self.buckets: frozenset[int] = decode(stored)
        self.mended_buckets = 0
        self.lost_rows = 0
        """Damaged rows that were taken out of the index."""

    def check(self, key: bytes, held: KeyRows) -> None:
        """CorruptData if more than what is held may belong to a key."""
        if digest.bucket_of(key) not in self.buckets:
            return
        if held.type == TYPE_REGISTER and held.rows:
            return
        raise CorruptData(
            f"rows were lost to damage on this node's disk, key {key!r} may be among them; "
            "they are fetched from neighbours: try again or ask another node; without any, "
            f"{REPAIR}"
        )

    def check_all(self) -> None:
        """CorruptData if a listing may lack keys."""
        if self.buckets:
            raise CorruptData(
                f"rows of {len(self.buckets)} of {digest.BUCKETS} buckets of keys were lost to "
                "damage on this node's disk, so a listing may lack some; they are fetched from "
                f"neighbours: try again, or ask another node; without any, {REPAIR}"
            )


def want_remake(path: Path) -> None:
    """Have the next start of the store in `path` put its index together anew."""
    (path / WANTED).touch()
    sync_directory(path)


def encode(buckets: Iterable[int]) -> bytes | None:
    """What `meta` stores; None for no buckets."""
    bits = bytearray(_BYTES)
    for bucket in buckets:
        bits[bucket // 8] |= 1 << bucket % 8
    return zlib.crc32(bits).to_bytes(4, "big") + bits if any(bits) else None


def decode(stored: bytes | None) -> frozenset[int]:
    """The buckets; all of them if what is stored is damaged itself."""
    if stored is None:
        return frozenset()
    bits = stored[4:]
    if len(bits) != _BYTES or zlib.crc32(bits).to_bytes(4, "big") != stored[:4]:
        return ALL
    return frozenset(b for b in ALL if bits[b // 8] >> b % 8 & 1)
