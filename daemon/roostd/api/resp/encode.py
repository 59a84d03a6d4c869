"""RESP2 and RESP3 replies as bytes. A handler's reply is the encoded bytes themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from roost_crdt.errors import RoostError

OK = b"+OK\r\n"
PONG = b"+PONG\r\n"
QUEUED = b"+QUEUED\r\n"
ZERO = b":0\r\n"
ONE = b":1\r\n"
EMPTY_ARRAY = b"*0\r\n"
EMPTY_BULK = b"$0\r\n\r\n"
NULL_BULK = b"$-1\r\n"
NULL_ARRAY = b"*-1\r\n"
NULL = b"_\r\n"


def bulk(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


def integer(value: int) -> bytes:
    return b":%d\r\n" % value


def simple(text: str) -> bytes:
    return b"+%b\r\n" % text.encode()


def error(text: str) -> bytes:
    """An error reply; line ends in the text would break the framing, so they become spaces."""
    line = text.replace("\r", " ").replace("\n", " ")
    return b"-%b\r\n" % line.encode("utf-8", "replace")


def refusal(refused: RoostError) -> bytes:
    """`-CODE text [name=value ...]`: with the members that a program may want."""
    members = dict(refused.details)
    if refused.retry_after_ms is not None:
        members["retry_after_ms"] = refused.retry_after_ms
    shown = [
        f"{name}={value}"
        for name, value in members.items()
        if isinstance(value, (int, str)) and not set(str(value)) & set(" ]\t\r\n") and str(value)
    ]
    details = f" [{' '.join(shown)}]" if shown else ""
    return error(f"{refused.code} {refused.message}{details}")


def null(resp3: bool) -> bytes:
    return NULL if resp3 else NULL_BULK


def null_array(resp3: bool) -> bytes:
    return NULL if resp3 else NULL_ARRAY


def bulk_or_null(value: bytes | None, resp3: bool) -> bytes:
    if value is None:
        return NULL if resp3 else NULL_BULK
    return b"$%d\r\n%b\r\n" % (len(value), value)


def array(items: list[bytes]) -> bytes:
    """An array of replies that are encoded already."""
    return b"*%d\r\n%b" % (len(items), b"".join(items))


def bulks(values: Iterable[bytes]) -> bytes:
    """An array of bulk strings."""
    return array([b"$%d\r\n%b\r\n" % (len(value), value) for value in values])


def set_of(items: list[bytes], resp3: bool) -> bytes:
    kind = b"~" if resp3 else b"*"
    return b"%b%d\r\n%b" % (kind, len(items), b"".join(items))


def map_of(pairs: list[tuple[bytes, bytes]], resp3: bool) -> bytes:
    """A map of encoded keys and values: `%` in RESP3, a flat array in RESP2."""
    body = b"".join([part for pair in pairs for part in pair])
    if resp3:
        return b"%%%d\r\n%b" % (len(pairs), body)
    return b"*%d\r\n%b" % (2 * len(pairs), body)


def push(items: list[bytes], resp3: bool) -> bytes:
    kind = b">" if resp3 else b"*"
    return b"%b%d\r\n%b" % (kind, len(items), b"".join(items))


def encode(value: Any, resp3: bool) -> bytes:
    """A plain Python value: dict -> map, list -> array, str and bytes -> bulk string.

    In RESP2 booleans are 1 and 0 and floats are text.
    """
    if isinstance(value, str):
        return bulk(value.encode())
    if isinstance(value, bytes):
        return bulk(value)
    if isinstance(value, msgspec.Raw):
        return bulk(bytes(value))
    if value is None:
        return null(resp3)
    if isinstance(value, bool):
        if resp3:
            return b"#t\r\n" if value else b"#f\r\n"
        return ONE if value else ZERO
    if isinstance(value, int):
        return integer(value)
    if isinstance(value, float):
        text = repr(value).encode()
        return b",%b\r\n" % text if resp3 else bulk(text)
    if isinstance(value, Mapping):
        return map_of([(encode(k, resp3), encode(v, resp3)) for k, v in value.items()], resp3)
    return array([encode(item, resp3) for item in value])


def encode_flat(result: Mapping[str, Any], resp3: bool) -> bytes:
    """The reply of a ROOST.* command: scalars as they are, anything nested as JSON text.

    A nested member `x` (and any member that is JSON text already) is named `x_json`.
    """
    pairs: list[tuple[bytes, bytes]] = []
    for name, value in result.items():
        if isinstance(value, (Mapping, list, tuple, msgspec.Raw)):
            pairs.append((encode(name + "_json", resp3), bulk(msgspec.json.encode(value))))
        else:
            pairs.append((encode(name, resp3), encode(value, resp3)))
    return map_of(pairs, resp3)
