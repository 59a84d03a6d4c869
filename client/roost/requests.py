"""Requests without I/O: the commands, how the replies are read, and what a loss means.

Both faces run the same Request values. `repeat` says that the same bytes may be sent again
after a lost connection: reads, and writes that carry an id under which the daemon applies them
once. `effect` says that the request changes state, so that a lost reply leaves its outcome
unknown.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NoReturn, TypeVar

from roost.address import Address
from roost.types import Ack, Hello, Reading, Spent
from roost.wire import Command, as_map, hello_of, text_of
from roost_crdt.errors import BadRequest, RoostError, Unavailable, UnknownOutcome
from roost_crdt.limits import DEFAULT_LIMITS

__all__ = [
    "Request",
    "delete",
    "get",
    "hello",
    "incr",
    "json_bytes",
    "key_bytes",
    "key_text",
    "keys_page",
    "lost",
    "refused",
    "release",
    "reserve",
    "set_value",
    "settle",
    "spend",
    "update",
    "value_of",
]

T = TypeVar("T")

RETRY_AFTER_MS = 250
TTL_MS_MAX = 1 << 47
INT64_MAX = (1 << 63) - 1
PAGE_KEYS = DEFAULT_LIMITS.page_keys_max


@dataclass(frozen=True, slots=True)
class Request(Generic[T]):
    """`commands` go out in one write; `parse` gets the reply of the last one."""

    commands: tuple[Command, ...]
    parse: Callable[[Any], T]
    repeat: bool = False
    effect: bool = True
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Members of the error if the outcome is unknown: the id to retry with."""

    def answer(self, replies: Sequence[Any]) -> T:
        """The parsed last reply; raises the first error among `replies`."""
        for reply in replies:
            for part in (reply, *reply) if isinstance(reply, list) else (reply,):
                if isinstance(part, RoostError):
                    raise part
        return self.parse(replies[-1])


def lost(request: Request[Any], address: Address, error: BaseException) -> RoostError:
    """The error for a reply that did not come."""
    why = "did not answer in time" if isinstance(error, TimeoutError) else f"was lost ({error})"
    name = text_of(request.commands[0][0])
    if not request.effect:
        return Unavailable(f"{address} {why} after {name}", retry_after_ms=RETRY_AFTER_MS)
    ids = ", ".join(f"{name} {value}" for name, value in request.details.items())
    remedy = (
        f"retry with the same {ids}: it applies once"
        if ids
        else "read the key before writing it again"
    )
    return UnknownOutcome(
        f"{address} {why} after {name}: it may have been applied; {remedy}",
        retry_after_ms=RETRY_AFTER_MS,
        **request.details,
    )


def refused(address: Address, error: BaseException) -> RoostError:
    """The error for a connection that could not be opened: nothing was sent."""
    hint = "is roostd running there?"
    if isinstance(error, PermissionError):
        hint = "who may connect is decided by the socket's owner, group and mode"
    return Unavailable(
        f"no daemon answers at {address} ({error}); {hint}",
        retry_after_ms=RETRY_AFTER_MS,
        connected=False,
    )


# --- arguments --------------------------------------------------------------------------------


def key_bytes(key: str | bytes) -> bytes:
    """A key as its bytes; BadRequest if it is empty, too long or holds a NUL."""
    raw = raw_bytes(key, "key")
    if not raw or b"\0" in raw or len(raw) > DEFAULT_LIMITS.key_bytes_max:
        raise BadRequest(
            f"key {raw[:80]!r}: a key has 1 to {DEFAULT_LIMITS.key_bytes_max} bytes and no NUL"
        )
    return raw


def raw_bytes(text: str | bytes, what: str) -> bytes:
    """A str or bytes as its bytes; BadRequest for anything else."""
    if isinstance(text, bytes):
        return text
    if not isinstance(text, str):
        raise BadRequest(f"a {what} is str or bytes, not {type(text).__name__}")
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise BadRequest(f"{what} {text!r} is not UTF-8") from None


def key_text(raw: bytes) -> str:
    """A key as str; bytes that are not UTF-8 survive as surrogate escapes."""
    return raw.decode("utf-8", "surrogateescape")


def json_bytes(value: Any, what: str) -> bytes:
    """`value` as JSON; BadRequest for what JSON cannot say (NaN, other types, cycles)."""
    try:
        text = json.dumps(
            value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_no_json
        )
        return text.encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise BadRequest(f"{what} cannot be written as JSON: {error}") from None


def canonical_json(value: Any, what: str) -> bytes:
    """JSON with sorted members: one text for equal values, to be hashed."""
    try:
        text = json.dumps(
            value, ensure_ascii=True, allow_nan=False, sort_keys=True, separators=(",", ":")
        )
    except (ValueError, TypeError, RecursionError) as error:
        raise BadRequest(f"{what} cannot be written as JSON: {error}") from None
    return text.encode()


def digest_id(*parts: bytes) -> str:
    """32 hex digits that name `parts`, whatever bytes they hold."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(len(part).to_bytes(8, "big"))
        state.update(part)
    return state.hexdigest()


def whole(value: int, what: str, least: int, most: int = INT64_MAX) -> int:
    """`value` if it is an int within bounds, else BadRequest."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise BadRequest(f"{what} must be a whole number from {least} to {most}, not {value!r}")
    return value


def identifier(value: str, what: str) -> str:
    """A caller's id: 1 to 128 bytes of UTF-8 text, else BadRequest."""
    if not isinstance(value, str) or not value.isprintable():
        raise BadRequest(f"{what} must be printable text, not {value!r}")
    if not 0 < len(value.encode()) <= DEFAULT_LIMITS.request_id_bytes_max:
        raise BadRequest(f"{what} must have 1 to {DEFAULT_LIMITS.request_id_bytes_max} bytes")
    return value


def _no_json(value: Any) -> NoReturn:
    raise TypeError(f"a {type(value).__name__} is not JSON")


# --- values -----------------------------------------------------------------------------------


def value_of(fields: Mapping[str, Any]) -> Any:
    """The value in a reply: `value` raw or as a scalar, or `value_json` as JSON text."""
    if "value_json" in fields:
        text = fields["value_json"]
        return None if text is None else unwrapped(json.loads(text_of(text)))
    value = fields.get("value")
    return plain(value) if isinstance(value, bytes) else value


def plain(raw: bytes) -> str | bytes:
    """A string's bytes as str, or as they are if they are not UTF-8."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def unwrapped(value: Any) -> Any:
    """A JSON value in which `{"base64": ...}` stands for bytes that are not UTF-8.

    Members and elements of the first level are looked at too: maps and sets of such strings.
    """
    if isinstance(value, dict):
        raw = _wrapped_bytes(value)
        if raw is not None:
            return raw
        return {name: _unwrapped_leaf(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_unwrapped_leaf(element) for element in value]
    return value


def _unwrapped_leaf(value: Any) -> Any:
    raw = _wrapped_bytes(value) if isinstance(value, dict) else None
    return value if raw is None else raw


def _wrapped_bytes(value: Mapping[str, Any]) -> bytes | None:
    """The bytes in `{"base64": ...}`; None for an object that only looks like it.

    A wrapper is only ever made for bytes that are not UTF-8, so that a caller's own object with
    a member of that name reads back as the object that it is.
    """
    text = value.get("base64")
    if len(value) != 1 or not isinstance(text, str):
        return None
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw if isinstance(plain(raw), bytes) else None


# --- keys -------------------------------------------------------------------------------------


def hello() -> Request[Hello]:
    """Who the daemon is, and how far its store has come."""
    return Request((("ROOST.HELLO",),), hello_of, repeat=True, effect=False)


def get(key: str | bytes, max_lag_ms: int | None) -> Request[Reading]:
    """Read a key of any consistency through the daemon."""
    raw = key_bytes(key)
    if max_lag_ms is not None:
        whole(max_lag_ms, "max_lag_ms", 0)

    def parse(reply: Any) -> Reading:
        fields = as_map(reply)
        lag_ms = _int(fields, "lag_ms")
        if max_lag_ms is not None and lag_ms > max_lag_ms:
            raise too_old(raw, lag_ms, max_lag_ms)
        source = text_of(fields.get("source"))
        return Reading(value_of(fields), lag_ms, "consensus" if source == "consensus" else "node")

    return Request((("ROOST.GET", raw),), parse, repeat=True, effect=False)


def too_old(key: bytes, lag_ms: int, max_lag_ms: int) -> Unavailable:
    """The error for a copy that lags more than the caller allows."""
    return Unavailable(
        f"{key_text(key)}: this node lags {lag_ms} ms behind its neighbours, more than "
        f"max_lag_ms={max_lag_ms}; try again, or ask another node",
        retry_after_ms=RETRY_AFTER_MS,
        lag_ms=lag_ms,
    )


def set_value(key: str | bytes, value: Any, ttl_ms: int | None) -> Request[Ack]:
    """Write a register, or assign a counter."""
    raw = key_bytes(key)
    expiry: Command = () if ttl_ms is None else ("PX", whole(ttl_ms, "ttl_ms", 1, TTL_MS_MAX))
    if isinstance(value, (bytes, bytearray, memoryview)):
        return Request((("SET", raw, bytes(value), *expiry), ("ROOST.HELLO",)), _ack_by_hello)
    return Request((("ROOST.SET", raw, json_bytes(value, "the value"), *expiry),), _ack)


def incr(key: str | bytes, by: int | float | Mapping[str, int], request_id: str) -> Request[Ack]:
    """Add to a counter or rate, or to the fields of a map that counts.

    `request_id` makes it repeatable where linearizable.
    """
    amount: int | bytes
    if isinstance(by, float):
        amount = json_bytes(by, "by")
    elif isinstance(by, Mapping):
        amount = json_bytes(dict(by), "by")
    else:
        amount = whole(by, "by", -INT64_MAX - 1)
    return Request(
        (("ROOST.INCR", key_bytes(key), amount, identifier(request_id, "request_id")),),
        _ack,
        details={"request_id": request_id},
    )


def delete(key: str | bytes) -> Request[Ack]:
    """Delete a key of any type."""
    return Request((("ROOST.DEL", key_bytes(key)),), _ack)


def update(
    key: str | bytes,
    put: Mapping[Any, Any] | Iterable[Any],
    drop: Iterable[Any],
) -> Request[Ack]:
    """Put and drop fields of a map (`put` a mapping) or elements of a set (`put` a sequence).

    One record: all of it or nothing. Where bytes are among the names or values, none may be
    JSON other than strings, since those travel as they are.
    """
    for name, part in (("put", put), ("drop", drop)):
        if isinstance(part, (str, bytes)) or not isinstance(part, Iterable):
            raise BadRequest(f"{name} must be a collection, not {type(part).__name__}")
    raw = key_bytes(key)
    fields = dict(put) if isinstance(put, Mapping) else None
    elements = [] if fields is not None else list(put)
    dropped = list(drop)
    given = [*(fields or {}), *(fields or {}).values(), *elements, *dropped]
    if len(dropped) + len(elements) + len(fields or {}) > DEFAULT_LIMITS.batch_ops_max:
        raise BadRequest(f"put and drop take at most {DEFAULT_LIMITS.batch_ops_max} together")
    if any(isinstance(item, bytes) for item in given):
        return _update_raw(raw, fields, elements, dropped, given)
    body: dict[str, Any] = {}
    if fields or elements:
        body["put"] = fields or elements
    if dropped or not body:
        body["drop"] = dropped
    return Request((("ROOST.UPDATE", raw, json_bytes(body, "put and drop")),), _ack)


def _update_raw(
    key: bytes,
    fields: dict[Any, Any] | None,
    elements: list[Any],
    dropped: list[Any],
    given: list[Any],
) -> Request[Ack]:
    wrong = [item for item in given if not isinstance(item, (str, bytes))]
    if wrong:
        raise BadRequest(
            f"{wrong[0]!r} cannot be in one update with bytes: send them separately, "
            "or the bytes as text"
        )
    commands: list[Command] = [("MULTI",)]
    if fields:
        pairs = [item for pair in fields.items() for item in pair]
        commands.append(("HSET", key, *pairs))
    if elements:
        commands.append(("SADD", key, *elements))
    if dropped:
        commands.append(("SREM" if elements or fields is None else "HDEL", key, *dropped))
    return Request((*commands, ("EXEC",), ("ROOST.HELLO",)), _ack_by_hello)


def keys_page(pattern: str | bytes, after: bytes) -> Request[list[bytes]]:
    """One page of existing keys that match a glob, in order, after `after`."""
    glob = raw_bytes(pattern, "pattern")
    if not glob or len(glob) > 4 * DEFAULT_LIMITS.key_bytes_max:
        raise BadRequest(f"pattern {glob[:80]!r}: give a glob such as model_router_weights:*")
    command: Command = ("ROOST.KEYS", glob, after, PAGE_KEYS)
    return Request((command,), list, repeat=True, effect=False)


def applies_once(key: str | bytes) -> Request[bool]:
    """True if writes of the key carry a request id under which they apply once."""

    def parse(reply: Any) -> bool:
        return text_of(as_map(reply).get("consistency")) == "linearizable"

    return Request((("ROOST.POLICY", key_bytes(key)),), parse, repeat=True, effect=False)


def _ack(reply: Any) -> Ack:
    fields = as_map(reply)
    durable = fields.get("durable", 1)
    return Ack(_int(fields, "seq"), bool(durable), value_of(fields))


def _ack_by_hello(reply: Any) -> Ack:
    return Ack(hello_of(reply).seq, True)


def _int(fields: Mapping[str, Any], name: str) -> int:
    value = fields.get(name)
    return value if isinstance(value, int) else int(text_of(value) or 0)


def stamp_of(reply: Any) -> tuple[int, int] | None:
    """The `(hlc, actor)` in a reply, if the daemon told it."""
    fields = as_map(reply)
    stamp = fields.get("stamp")
    if "stamp_json" in fields:
        stamp = json.loads(fields["stamp_json"])
    if isinstance(stamp, list) and len(stamp) == 2:
        return int(stamp[0]), int(stamp[1])
    return None


# --- quotas -----------------------------------------------------------------------------------


def spend(key: str | bytes, n: int, request_id: str) -> Request[Spent]:
    """Spend `n` of a quota, once per `request_id`."""

    def parse(reply: Any) -> Spent:
        fields = as_map(reply)
        return Spent(_int(fields, "remaining_local"), _int(fields, "granted"))

    return Request(
        (
            (
                "ROOST.SPEND",
                key_bytes(key),
                whole(n, "n", 1),
                identifier(request_id, "request_id"),
            ),
        ),
        parse,
        repeat=True,
        details={"request_id": request_id},
    )


def reserve(key: str | bytes, n: int, request_id: str, ttl_ms: int) -> Request[str]:
    """Set aside `n` of a quota for at most `ttl_ms`; the reservation's id."""
    command: Command = (
        "ROOST.RESERVE",
        key_bytes(key),
        whole(n, "n", 1),
        identifier(request_id, "request_id"),
        whole(ttl_ms, "ttl_ms", 1, TTL_MS_MAX),
    )
    return Request((command,), _reservation_id, repeat=True, details={"request_id": request_id})


def _reservation_id(reply: Any) -> str:
    return text_of(reply if isinstance(reply, (bytes, str)) else as_map(reply).get("id"))


def settle(reservation: str, used: int) -> Request[None]:
    """Turn `used` of a reservation into spending and give the rest back; repeatable."""
    return Request(
        (("ROOST.SETTLE", reservation, whole(used, "used", 0)),),
        _nothing,
        repeat=True,
        details={"reservation": reservation},
    )


def release(reservation: str) -> Request[None]:
    """Give a whole reservation back; repeatable."""
    return Request(
        (("ROOST.RELEASE", reservation),),
        _nothing,
        repeat=True,
        details={"reservation": reservation},
    )


def _nothing(reply: Any) -> None:
    del reply


def glob_escaped(prefix: bytes) -> bytes:
    """`prefix` as a glob that matches only itself."""
    return re.sub(rb"([*?\[\]\\])", rb"\\\1", prefix)
