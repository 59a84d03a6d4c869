"""Records: the unit of atomicity and replication of global state.

A record carries one stamp `(hlc, actor)` and the complete new rows of all that its operations
touched. Each operation ticks a stamp of its own; the record's hlc is the last of them, so it
covers the others, and no row in it may carry a stamp above it: a bound on the record's clock
is a bound on all that it writes. On the wire and in the log a record is
`[actor, hlc, prev_hlc, [[row_key, type, body], ...]]` in MessagePack, kept and passed on
verbatim.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Final, NamedTuple

from roost_crdt.errors import CorruptData
from roost_crdt.limits import DEFAULT_LIMITS
from roost_crdt.rows import Part, Row, decode_row, encode_row, kept_row, row_hlc
from roost_crdt.rows.layout import TYPE_DOC, split_row_key
from roost_crdt.rows.wire import U64, SmallInt, decoder, encode

HASH_BYTES: Final = 16
CHAIN_START: Final = bytes(HASH_BYTES)
"""The chain of an actor that has written nothing."""

_RECORD_HASH = blake2b(digest_size=HASH_BYTES, person=b"roost-record")
_CHAIN_HASH = blake2b(digest_size=HASH_BYTES, person=b"roost-chain")
_BODY_BYTES_MAX = DEFAULT_LIMITS.body_bytes_max


class RowOp(NamedTuple):
    """One row as it is stored and sent; `body` is what `encode_row` gives."""

    row_key: bytes
    type: SmallInt
    body: bytes


class Record(NamedTuple):
    """Rows under one stamp; it extends a version vector iff `prev_hlc <= vv[actor] < hlc`.

    Without rows it only moves the version vector.
    """

    actor: U64
    hlc: U64
    prev_hlc: U64
    ops: tuple[RowOp, ...]


class DecodedRow(NamedTuple):
    """A RowOp, taken apart."""

    key: bytes
    part: Part
    type: int
    row: Row


_decode = decoder(Record)


def encode_record(record: Record) -> bytes:
    """The bytes that every node keeps and passes on for this record."""
    assert record.prev_hlc < record.hlc, f"{record.hlc} is not above {record.prev_hlc}"
    return encode(record)


def decode_record(
    raw: bytes, *, body_bytes_max: int = _BODY_BYTES_MAX, doc_bytes_max: int = _BODY_BYTES_MAX
) -> Record:
    """The record of foreign bytes; CorruptData unless all of it could be joined as it is."""
    if len(raw) > body_bytes_max:
        raise CorruptData(f"a record has {len(raw)} bytes; at most {body_bytes_max}")
    record: Record = _decode(raw)
    if record.prev_hlc >= record.hlc:
        raise CorruptData(f"a record's hlc {record.hlc} is not above {record.prev_hlc}")
    documents = sum(len(op.body) for op in record.ops if op.type == TYPE_DOC)
    if documents > doc_bytes_max:
        raise CorruptData(
            f"a record has {documents} bytes of rows of documents; at most {doc_bytes_max}"
        )
    for decoded in decode_rows(record.ops, body_bytes_max=body_bytes_max):
        highest = row_hlc(decoded.type, decoded.part, decoded.row)
        if highest > record.hlc:
            raise CorruptData(f"a row of key {decoded.key!r} is stamped after its record")
    return record


def decode_rows(ops: Sequence[RowOp], *, body_bytes_max: int | None = None) -> Iterator[DecodedRow]:
    """Each row with its key, part and type; CorruptData at the first that is malformed."""
    for name, type_code, body in ops:
        key, part = split_row_key(name)
        row = decode_row(type_code, part, body, body_bytes_max=body_bytes_max)
        yield DecodedRow(key, part, type_code, row)


def coalesce(records: Sequence[Record]) -> Record:
    """One record in place of contiguous ones of one actor, oldest first; rows are joined.

    It covers the first one's `prev_hlc` to the last one's `hlc`. Each row keeps its own
    stamps. Records may overlap, as coalesced ones from different neighbours do.
    """
    first = records[0]
    held: dict[tuple[bytes, int], tuple[Part, Row]] = {}
    covered = first.prev_hlc
    for record in records:
        assert record.actor == first.actor, "only records of one actor can be coalesced"
        assert record.prev_hlc <= covered < record.hlc, "records are not contiguous"
        covered = record.hlc
        for op, decoded in zip(record.ops, decode_rows(record.ops), strict=True):
            name = (op.row_key, op.type)
            mine = held.get(name)
            part, row = decoded.part, decoded.row
            held[name] = (part, row if mine is None else kept_row(op.type, part, mine[1], row))
    ops = tuple(
        RowOp(name, type_code, encode_row(type_code, part, row))
        for (name, type_code), (part, row) in held.items()
    )
    return Record(first.actor, covered, first.prev_hlc, ops)


def record_hash(raw: bytes) -> bytes:
    """16 bytes that name a record in its actor's chain."""
    hashed = _RECORD_HASH.copy()  # a third quicker than one with its parameters
    hashed.update(raw)
    return hashed.digest()


def chain_next(chain: bytes, hash_of_record: bytes) -> bytes:
    """The chain after one more record. Over hashes, so that a payload can be blanked."""
    assert len(chain) == len(hash_of_record) == HASH_BYTES
    hashed = _CHAIN_HASH.copy()
    hashed.update(chain + hash_of_record)
    return hashed.digest()
