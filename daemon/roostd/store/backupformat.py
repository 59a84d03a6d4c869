"""A backup file: chunks in a chain, each one checked when it is read.

    "ROOSTBAK" | version u32 | chunk 0 | chunk 1 | ...

A chunk is `number u32, kind u8, length u32, chain 16 B`, then its payload (MessagePack). `chain`
is the hash over the chain of the chunk before, this chunk's header and its payload, so a damaged,
missing, repeated or foreign chunk is found where it is. The first chunk is HEAD, the last one END;
a file without END, or with anything after it, is refused. Order of application is the file's:

- ROWS and PAIRS are pages of the index, as it was when that page was read;
- ENTRIES are the log's, contiguous from `Head.seq` + 1 to `End.seq`; those of one chunk are never
  newer than the pages that follow it, so a page may be put over what the entries before it left.

Together they are the store as of `End.seq` (see roostd.store.backup for why).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec

from roost_crdt.errors import CorruptData
from roost_crdt.logformat import Entry

VERSION = 1
MAGIC = b"ROOSTBAK"
HEAD, ROWS, PAIRS, ENTRIES, END = 1, 2, 3, 4, 5
CHAIN_START = bytes(16)
PAYLOAD_BYTES_MAX = 80 << 20
"""More than any entry or value; a length beyond it is damage, and nothing is read for it."""

_PREAMBLE = struct.Struct(">8sI")
_CHUNK = struct.Struct(">IBI")
_CHAIN_BYTES = 16
CHUNK_HEADER_BYTES = _CHUNK.size + _CHAIN_BYTES

Pairs = list[tuple[bytes, bytes]]


class Head(msgspec.Struct, frozen=True):
    """What was backed up. `vv` is the version vector at `seq`, where the log's entries begin."""

    id: bytes
    schema: int
    store_id: bytes
    actor: int
    seq: int
    vv: dict[int, int]
    started_ms: int
    about: dict[str, str]
    """`node`, `region` and `cluster` of the daemon that was asked."""


class End(msgspec.Struct, frozen=True):
    """The backup is complete and shows the store as of `seq`."""

    seq: int
    ended_ms: int
    rows: int
    pairs: int
    entries: int
    digest: str | None
    """The digest's root at `seq` and `ended_ms`; None where writes never paused for it."""


class KindPairs(msgspec.Struct, array_like=True, frozen=True):
    """Pairs of the database of one kind of log entry."""

    kind: int
    pairs: Pairs


Content = Head | End | KindPairs | Pairs | list[Entry]


class Chunk(NamedTuple):
    """A chunk as read. `offset` is its place in the file; `end` that of the next one."""

    number: int
    kind: int
    content: Any
    offset: int
    end: int


_TYPES: dict[int, Any] = {
    HEAD: Head,
    ROWS: Pairs,
    PAIRS: KindPairs,
    ENTRIES: list[Entry],
    END: End,
}
_DECODERS = {kind: msgspec.msgpack.Decoder(shape) for kind, shape in _TYPES.items()}
_encode = msgspec.msgpack.Encoder().encode


def encode_chunk(number: int, kind: int, content: Content, chain: bytes) -> tuple[bytes, bytes]:
    """The bytes of a chunk, the file's preamble before the first, and the chain after it."""
    payload = _encode(content)
    header = _CHUNK.pack(number, kind, len(payload))
    chain = _chained(chain, header, payload)
    preamble = _PREAMBLE.pack(MAGIC, VERSION) if number == 0 else b""
    return preamble + header + chain + payload, chain


def _chained(chain: bytes, header: bytes, payload: bytes) -> bytes:
    hashed = hashlib.blake2b(chain, digest_size=_CHAIN_BYTES)
    hashed.update(header)
    hashed.update(payload)
    return hashed.digest()


class ChunkReader:
    """Reads chunks one by one and checks each: one chunk is in memory at a time."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name
        self._chain = CHAIN_START
        self._number = 0
        self._offset = 0
        self.ended = False
        """Whether END was read and nothing follows it."""

    def __iter__(self) -> Iterator[Chunk]:
        """The chunks in order. Raises CorruptData, with the place, for whatever does not fit."""
        self._read_preamble()
        while not self.ended:
            yield self._read_chunk()

    def _read_preamble(self) -> None:
        raw = self._file.read(_PREAMBLE.size)
        if len(raw) < _PREAMBLE.size or raw[: len(MAGIC)] != MAGIC:
            raise CorruptData(f"{self._name}: not a backup of roost")
        version = _PREAMBLE.unpack(raw)[1]
        if version != VERSION:
            raise CorruptData(
                f"{self._name}: a backup of format {version}, this release reads {VERSION}; use "
                "the release that wrote it"
            )
        self._offset = len(raw)

    def _read_chunk(self) -> Chunk:
        raw = self._file.read(CHUNK_HEADER_BYTES)
        if len(raw) < CHUNK_HEADER_BYTES:
            raise self._damage("the file ends here, before its end mark: it is incomplete")
        number, kind, length = _CHUNK.unpack_from(raw)
        if number != self._number or kind not in _TYPES or length > PAYLOAD_BYTES_MAX:
            raise self._damage("its header is damaged, or it is not the chunk that belongs here")
        if (kind == HEAD) != (number == 0):
            raise self._damage(f"a chunk of kind {kind} does not belong here")
        payload = self._file.read(length)
        if len(payload) < length:
            raise self._damage(f"{length - len(payload)} of its {length} bytes are missing")
        self._chain = _chained(self._chain, raw[: _CHUNK.size], payload)
        if self._chain != raw[_CHUNK.size :]:
            raise self._damage("its checksum does not hold")
        try:
            content = _DECODERS[kind].decode(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise self._damage(f"its content has another shape: {error}") from error
        offset, self._offset = self._offset, self._offset + CHUNK_HEADER_BYTES + length
        self._number += 1
        if kind == END:
            if self._file.read(1):
                raise self._damage("something follows the end mark")
            self.ended = True
        return Chunk(number, kind, content, offset, self._offset)

    def _damage(self, what: str) -> CorruptData:
        return CorruptData(f"{self._name}: chunk {self._number} at byte {self._offset}: {what}")


def open_backup(path: Path) -> BinaryIO:
    """The file, for a ChunkReader. OSError."""
    return path.open("rb", buffering=1 << 20)
