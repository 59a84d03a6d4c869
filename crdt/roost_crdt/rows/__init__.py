"""Rows of state-based CRDTs: decode, encode, join.

All joins are pointwise maxima, hence idempotent, commutative and associative: rows may arrive
in any order, any number of times, in any batches. What an actor may never do: use one stamp
for two operations, or write under a stamp that is not above all it has seen. A join that finds
one stamp with two bodies keeps the same one everywhere and raises StampReused.

The writing side is one module per type (register, counter, set, map, rate, doc); each operation
returns a Delta: the complete new row of every part that it touches, already joined with what
was there. So `rows.update(delta)` applies it where it was made, and `join_delta` anywhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from roost_crdt.errors import CorruptData
from roost_crdt.rows import counter, doc, map, rate, register, set  # noqa: A004
from roost_crdt.rows.expiry import join_plain_head
from roost_crdt.rows.layout import (
    HEAD,
    TAG_ACTOR,
    TAG_DOC,
    TAG_DOC_ERASURE,
    TAG_ELEMENT,
    TAG_FIELD,
    TAG_FIELD_COUNTER,
    TAG_HEAD,
    TAG_JSON_ELEMENT,
    TAG_LONG_ELEMENT,
    TAG_LONG_JSON_ELEMENT,
    TAG_VALUE,
    TAG_WINDOW,
    TYPE_COUNTER,
    TYPE_DOC,
    TYPE_MAP,
    TYPE_NAMES,
    TYPE_RATE,
    TYPE_REGISTER,
    TYPE_SET,
    Delta,
    Part,
    Row,
    Rows,
    StampReused,
)
from roost_crdt.rows.leaf import Leaf
from roost_crdt.rows.wire import encode

__all__ = [
    "Delta",
    "Leaf",
    "Part",
    "Row",
    "Rows",
    "StampReused",
    "counter",
    "decode_row",
    "doc",
    "encode_row",
    "join_delta",
    "join_row",
    "kept_row",
    "map",
    "rate",
    "register",
    "row_hlc",
    "set",
]


class _Codec(NamedTuple):
    decode: Callable[[Part, bytes], Row]
    join: Callable[[Row, Row], Row]
    hlc: Callable[[Part, Row], int]


_PLAIN_HEAD = _Codec(counter.decode_head, join_plain_head, counter.head_hlc)
_CLEARED_HEAD = _Codec(set.decode_head, set.join_head, set.head_hlc)
_ELEMENT = _Codec(set.decode, set.join, set.row_hlc)
_COUNT = _Codec(counter.decode, counter.join, counter.row_hlc)
_BY_TYPE: dict[int, dict[int, _Codec]] = {
    TYPE_REGISTER: {TAG_VALUE: _Codec(register.decode, register.join, register.row_hlc)},
    TYPE_COUNTER: {TAG_HEAD: _PLAIN_HEAD, TAG_ACTOR: _COUNT},
    TYPE_SET: {
        TAG_HEAD: _CLEARED_HEAD,
        TAG_ELEMENT: _ELEMENT,
        TAG_JSON_ELEMENT: _ELEMENT,
        TAG_LONG_ELEMENT: _ELEMENT,
        TAG_LONG_JSON_ELEMENT: _ELEMENT,
    },
    TYPE_MAP: {
        TAG_HEAD: _Codec(map.decode_head, map.join_head, map.head_hlc),
        TAG_FIELD: _Codec(map.decode, map.join, map.row_hlc),
        TAG_FIELD_COUNTER: _COUNT,
    },
    TYPE_RATE: {TAG_HEAD: _PLAIN_HEAD, TAG_WINDOW: _Codec(rate.decode, rate.join, rate.row_hlc)},
    TYPE_DOC: {
        TAG_HEAD: _CLEARED_HEAD,
        TAG_DOC: _Codec(doc.decode, doc.join, doc.row_hlc),
        TAG_DOC_ERASURE: _Codec(doc.decode_erasure, doc.join_erasure, doc.erasure_hlc),
    },
}
_CODECS: dict[int, _Codec] = {
    type_code << 8 | tag: codec
    for type_code, tags in _BY_TYPE.items()
    for tag, codec in tags.items()
}


def decode_row(
    type_code: int, part: Part, body: bytes, *, body_bytes_max: int | None = None
) -> Row:
    """The row of a body; CorruptData if no writer of this version can have made it.

    `part` comes from `split_row_key`, which has checked its shape. `body_bytes_max` bounds what
    comes from outside; a stored row was within the bound of its day and stays readable.
    """
    if body_bytes_max is not None and len(body) > body_bytes_max:
        raise CorruptData(f"a row's body has {len(body)} bytes; at most {body_bytes_max}")
    codec = _CODECS.get(type_code << 8 | part[0])
    if codec is None:
        raise CorruptData(_no_codec(type_code, part[0]))
    row = codec.decode(part, body)
    if body_bytes_max is not None and type_code == TYPE_DOC and part != HEAD:
        doc.check(part, row)
    return row


def encode_row(type_code: int, part: Part, row: Row) -> bytes:
    """The canonical body of a row: equal rows have equal bytes."""
    assert type_code << 8 | part[0] in _CODECS, _no_codec(type_code, part[0])
    return encode(row)


def join_row(type_code: int, part: Part, a: Row, b: Row) -> Row:
    """The join of two rows of one part; `a` itself if `b` adds nothing.

    Raises StampReused, with the row to keep in `.kept`, if one stamp came with two bodies.
    """
    codec = _CODECS.get(type_code << 8 | part[0])
    assert codec is not None, _no_codec(type_code, part[0])
    return codec.join(a, b)


def kept_row(type_code: int, part: Part, a: Row, b: Row) -> Row:
    """The join of two rows, also of two bodies under one stamp: the one that all nodes keep.

    For rows that were taken before: whoever took the second one has raised the alarm.
    """
    try:
        return join_row(type_code, part, a, b)
    except StampReused as error:
        kept: Row = error.kept
        return kept


def join_delta(type_code: int, rows: Rows, delta: Delta) -> Delta:
    """The joined rows of `delta` that differ from `rows`, which stays as it is.

    Raises StampReused after all parts are joined, with the whole Delta to keep in `.kept`.
    """
    changed: Delta = {}
    reused: list[str] = []
    for part, theirs in delta.items():
        mine = rows.get(part)
        if mine is None:
            changed[part] = theirs
            continue
        try:
            joined = join_row(type_code, part, mine, theirs)
        except StampReused as error:
            joined = error.kept
            reused.append(str(error))
        if joined is not mine and joined != mine:
            changed[part] = joined
    if reused:
        raise StampReused("; ".join(reused), changed)
    return changed


def row_hlc(type_code: int, part: Part, row: Row) -> int:
    """The highest hlc that a row carries. No honest record's own hlc is lower."""
    codec = _CODECS.get(type_code << 8 | part[0])
    assert codec is not None, _no_codec(type_code, part[0])
    return codec.hlc(part, row)


def _no_codec(type_code: int, tag: int) -> str:
    name = TYPE_NAMES.get(type_code, f"unknown type {type_code}")
    return f"{name} has no rows with tag {tag}"
