"""JSON that came from outside, checked before anything believes it.

Refused: bytes that are not UTF-8, NaN and infinities, a name twice in one object, nesting beyond
a bound. What passes is decoded by msgspec into a typed body whose free parts stay raw text, so
that number literals, key order and unknown fields of a message are kept.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any, TypeVar

import msgspec

from roost_crdt import values
from roost_crdt.errors import BadRequest
from roost_crdt.rows.leaf import nested_deeper

T = TypeVar("T")

INLINE_BYTES_MAX = 128 * 1024
"""A larger text is checked in a thread, so that the loop goes on."""

_NAMES = re.compile(rb'"([^"\\]{1,80})"\s*:')
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}]', re.S)
_BYTE = re.compile(r"\(byte (\d+)\)")
_skip = msgspec.json.Decoder(msgspec.Raw).decode
_PLACE = re.compile(r" - at `(?:key in )?\$\.?([^`]*)`")
_FIELD = re.compile(r"field `([^`]*)`")


class _Refused(ValueError):
    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


def check_text(data: bytes, nesting_max: int, what: str = "the body") -> None:
    """Raises BadRequest unless `data` is one strict JSON value."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _refusal(what, "not UTF-8", data, error.start) from None
    try:
        _skip(data)
    except RecursionError:
        raise _too_deep(what, data, nesting_max) from None
    except msgspec.DecodeError as error:
        at = _BYTE.search(str(error))
        where = int(at[1]) if at else len(data)
        why = (
            "no JSON (a lone surrogate, or cut off)"
            if "truncated" in str(error)
            else (f"no JSON ({error})")
        )
        raise _refusal(what, why, data, where) from None
    if nested_deeper(data, nesting_max):
        raise _too_deep(what, data, nesting_max)
    try:
        json.loads(text, object_pairs_hook=_unique, parse_int=len, parse_float=len)
    except _Refused as error:
        raise BadRequest(f"{what} is refused: {error}", field=error.field) from None
    except ValueError as error:
        raise BadRequest(f"{what} is not JSON: {error}") from None


def _refusal(what: str, why: str, data: bytes, at: int) -> BadRequest:
    """A BadRequest naming the last field that begins before the fault."""
    names = _NAMES.findall(data[max(0, at - 4_096) : at])
    if not names:
        return BadRequest(f"{what} is {why}")
    field = names[-1].decode("utf-8", "replace")
    return BadRequest(f"{what} is {why}, in field '{field}'", field=field)


def _too_deep(what: str, data: bytes, nesting_max: int) -> BadRequest:
    depth, at = 0, len(data)
    for token in _TOKEN.finditer(data):
        depth += 1 if token[0] in (b"[", b"{") else -1 if token[0] in (b"]", b"}") else 0
        if depth > nesting_max:
            at = token.start()
            break
    return _refusal(what, f"nested deeper than {nesting_max} levels", data, at)


def _unique(pairs: list[tuple[str, Any]]) -> None:
    names = {name for name, _ in pairs}
    if len(names) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _Refused(f"field '{name[:80]}' is given twice", name[:80])
            seen.add(name)


async def decode(data: bytes, type_: type[T], nesting_max: int, what: str = "the body") -> T:
    """`data` as a typed body; BadRequest naming the field that is wrong."""
    if len(data) > INLINE_BYTES_MAX:
        await asyncio.to_thread(check_text, data, nesting_max, what)
    else:
        check_text(data, nesting_max, what)
    return convert(data, type_, what)


def convert(data: bytes, type_: type[T], what: str = "the body") -> T:
    """A checked text as a typed body; BadRequest naming the field."""
    try:
        return msgspec.json.decode(data, type=type_)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        text = str(error)
        place = _PLACE.search(text) or _FIELD.search(text)
        members: dict[str, Any] = {"field": place[1]} if place and place[1] else {}
        raise BadRequest(f"{what} is refused: {text.replace('`', '')}", **members) from None


def raw_leaf(leaf: bytes | str | int) -> str:
    """The JSON text of one leaf or count."""
    return str(leaf) if isinstance(leaf, int) else values.json_text(leaf)


def raw_list(leaves: list[bytes | str]) -> msgspec.Raw:
    """The JSON text of set elements."""
    return msgspec.Raw(("[" + ",".join([raw_leaf(leaf) for leaf in leaves]) + "]").encode())


def raw_object(fields: dict[bytes, Any]) -> msgspec.Raw:
    """The JSON text of map fields. A field name that is not UTF-8 is shown with \\x escapes."""
    members = [
        json.dumps(name.decode("utf-8", "backslashreplace"), ensure_ascii=False)
        + ":"
        + raw_leaf(leaf)
        for name, leaf in fields.items()
    ]
    return msgspec.Raw(("{" + ",".join(members) + "}").encode())


def raw_parts(value: Any) -> Any:
    """A node's answer with JSON texts (bytes) in it, for msgspec.json.encode."""
    if isinstance(value, bytes):
        return msgspec.Raw(value)
    if isinstance(value, dict):
        return {name: raw_parts(member) for name, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [raw_parts(member) for member in value]
    return value


def is_object(raw: bytes) -> bool:
    return raw.lstrip(b" \t\r\n")[:1] == b"{"


def is_array(raw: bytes) -> bool:
    return raw.lstrip(b" \t\r\n")[:1] == b"["
