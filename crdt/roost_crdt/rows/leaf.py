"""Leaves: the values that rows hold.

A leaf is `bytes` (what a JSON string or a RESP client put) or `str` (the compact text of any
other JSON value; number literals, key order and escapes stay as they were written). In a row
it stands as a kind and bytes, so that a row in memory and its body on disk look the same.
"""

from __future__ import annotations

import json
from base64 import b64encode
from itertools import pairwise
from typing import Any, Final

import msgspec

from roost_crdt.errors import BadRequest, CorruptData
from roost_crdt.limits import DEFAULT_LIMITS

Leaf = bytes | str

KIND_DEAD: Final = 0
KIND_BYTES: Final = 1
KIND_JSON: Final = 2

_NESTING_MAX = DEFAULT_LIMITS.nesting_max
_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS = bytes(code for code in range(256) if code not in b"[]{}")
_skip = msgspec.json.Decoder(msgspec.Raw).decode
_decode_string = msgspec.json.Decoder(str).decode
_encode_json = msgspec.json.Encoder().encode


def kind_and_bytes(leaf: Leaf) -> tuple[int, bytes]:
    """How a leaf stands in a row."""
    if isinstance(leaf, bytes):
        return KIND_BYTES, leaf
    return KIND_JSON, leaf.encode()


def leaf_from(kind: int, data: bytes) -> Leaf:
    """The leaf of a row that is not dead."""
    return data if kind == KIND_BYTES else data.decode()


def check_leaf(kind: int, data: bytes) -> None:
    """Raise CorruptData unless the pair can be a row's value: dead ones are empty."""
    if kind == KIND_JSON:
        check_json_text(data)
    elif kind > KIND_JSON or (kind == KIND_DEAD and data):
        raise CorruptData(f"a value of kind {kind} with {len(data)} bytes")


def check_json_text(data: bytes) -> None:
    """Raise CorruptData unless `data` can be the text of a JSON leaf (never a string)."""
    try:
        data.decode()
        value = _skip(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise CorruptData(f"a JSON value of {len(data)} bytes does not parse: {error}") from None
    if len(bytes(value)) != len(data) or data[:1] == b'"' or nested_deeper(data, _NESTING_MAX):
        raise CorruptData(f"a JSON value of {len(data)} bytes is not in its stored form")


def nested_deeper(text: bytes, levels: int) -> bool:
    """Whether valid JSON has more than `levels` arrays and objects inside each other."""
    if text.count(b"[") + text.count(b"{") <= levels:
        return False
    # Without escaped quotes, every second piece between quotes is outside of a string.
    unescaped = text.replace(rb"\\", b"").replace(rb"\"", b"")
    bare = b"".join(unescaped.split(b'"')[::2]).translate(_BRACKETS, _NOT_BRACKETS)
    for _ in range(levels):
        bare = bare.replace(b"[]", b"")
        if not bare:
            return False
    return True


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> None:
    if len(dict(pairs)) != len(pairs):
        names = sorted(name for name, _ in pairs)
        twice = next(name for name, following in pairwise(names) if name == following)
        raise BadRequest(f"the name {twice[:64]!r} stands twice in one JSON object")


def compact_json(text: bytes, *, nesting_max: int = _NESTING_MAX) -> bytes:
    """`text` without insignificant white space; literals, order and escapes are kept.

    Raises BadRequest for what is not strict JSON in UTF-8: NaN, Infinity, lone surrogates, a
    name twice in one object, more than `nesting_max` arrays and objects inside each other.
    """
    try:
        text.decode()
        # Whole grammar, without converting anything: a number keeps its literal.
        compact: bytes = msgspec.json.format(text, indent=-1)
    except UnicodeDecodeError as error:
        raise BadRequest(f"the JSON text is not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise BadRequest(f"the JSON text is nested deeper than {nesting_max}") from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise BadRequest(f"the text is not JSON: {error}") from None
    if nested_deeper(compact, nesting_max):
        raise BadRequest(f"the JSON text is nested deeper than {nesting_max}")
    if b"{" in compact:
        # `len` stands for "keep the literal": int() refuses more than 4,300 digits.
        json.loads(compact, object_pairs_hook=_refuse_duplicates, parse_int=len, parse_float=len)
    return compact


def leaf_of(json_text: bytes, *, nesting_max: int = _NESTING_MAX) -> Leaf:
    """The leaf of a JSON text: a string's bytes, any other value as compact text.

    Raises BadRequest as `compact_json` does.
    """
    compact = compact_json(json_text, nesting_max=nesting_max)
    if compact[:1] == b'"':
        return _decode_string(compact).encode()
    return compact.decode()


def _number(literal: str) -> int | float:
    try:
        return int(literal)
    except ValueError:
        return float(literal)


def json_of(leaf: Leaf) -> Any:
    """What a face shows: str of UTF-8 bytes, {"base64": ...} of others, else the parsed JSON.

    Numbers become Python's; use `json_text` where literals must survive.
    """
    if isinstance(leaf, str):
        return json.loads(leaf, parse_int=_number)
    try:
        return leaf.decode()
    except UnicodeDecodeError:
        return {"base64": b64encode(leaf).decode()}


def json_text(leaf: Leaf) -> str:
    """The JSON text of what `json_of` shows, number literals kept."""
    if isinstance(leaf, str):
        return leaf
    return _encode_json(json_of(leaf)).decode()
