"""Sealing: pairs of the index behind checksums, as LMDB has none of its own."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path
from struct import Struct

from roost_crdt import logformat
from roost_crdt.errors import CorruptData

KIND_NAMES = {
    logformat.KIND_SESSION: b"sessions",
    logformat.KIND_SPEND: b"spend",
    logformat.KIND_OUTBOX: b"outbox",
    logformat.KIND_CONSENSUS: b"consensus",
    logformat.KIND_META: b"meta",
}
META_OWN = frozenset(
    b"schema store_id log_id applied_seq pid_ns actor secret vv head position "
    b"boot_id host file_id applied layout upgrading suspect began_empty".split()
)
PLAIN_META = frozenset(b"schema store_id applied_seq pid_ns policies suspect".split())
"""Read by clients as they are; `applied` repeats applied_seq behind a checksum, `layout` schema;
while there is `suspect` rows are missing (roostd.store.suspects)."""
_CRC = Struct(">I")

_TURNED_BYTES_MAX = 64 << 10

Writes = Iterable[tuple[bytes, bytes | None]]
"""Key and value in key order; None deletes."""


class DamagedPair(CorruptData):
    """A pair whose value is not the one that was put under its key."""

    def __init__(self, path: Path, kind: int, key: bytes) -> None:
        super().__init__(
            f"{path}: {KIND_NAMES[kind].decode()} {key!r} fails its checksum; "
            "run: roost check DIR --repair"
        )
        self.kind = kind
        self.key = key


def _crc_of(kind: int, key: bytes, value: bytes) -> int:
    return zlib.crc32(value, zlib.crc32(key, kind))


def sealed_pairs(kind: int, writes: Writes) -> Writes:
    """Values behind a checksum over kind, key and value: LMDB has none of its own."""
    plain = PLAIN_META if kind == logformat.KIND_META else ()
    for key, value in writes:
        if value is None or key in plain:
            yield key, value
        else:
            yield key, _CRC.pack(_crc_of(kind, key, value)) + value


def unsealed(path: Path, kind: int, key: bytes, stored: bytes) -> bytes:
    """What `sealed_pairs` was given for a pair of the index at `path`. DamagedPair."""
    if kind == logformat.KIND_META and key in PLAIN_META:
        return stored
    value = stored[_CRC.size :]
    if len(stored) < _CRC.size or _CRC.unpack_from(stored)[0] != _crc_of(kind, key, value):
        raise DamagedPair(path, kind, key)
    return value


def name_before(kind: int, key: bytes, stored: bytes) -> bytes | None:
    """The name under which a damaged pair was put, if one bit of it has turned since: the checksum
    tells. None if it is none of those, or the value is too large to try."""
    if not _CRC.size < len(stored) <= _TURNED_BYTES_MAX:
        return None
    due, value = _CRC.unpack_from(stored)[0], stored[_CRC.size :]
    for at in range(len(key)):
        for bit in range(8):
            name = key[:at] + bytes([key[at] ^ 1 << bit]) + key[at + 1 :]
            if _crc_of(kind, name, value) == due:
                return name
    return None
