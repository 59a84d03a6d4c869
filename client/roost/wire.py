"""The bytes of RESP: commands out, replies in, and the greeting of a connection. No I/O."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol, cast

import hiredis

from roost.address import Address
from roost.types import Hello
from roost_crdt.errors import BadRequest, NoAuth, RoostError, error_from_code

__all__ = [
    "Argument",
    "Command",
    "Reader",
    "as_map",
    "encode",
    "error_of",
    "greeting",
    "new_reader",
    "read_greeting",
    "text_of",
]

Argument = bytes | str | int
Command = tuple[Argument, ...]

CLIENT_NAME = "roost-py"

_CODES_OF_REDIS = {"WRONGPASS": "NOAUTH", "ERR": "BADREQUEST", "NOPROTO": "BADREQUEST"}
_DETAIL = re.compile(r"\s*\[((?:[a-z_]+=[^\s\]]+)(?: [a-z_]+=[^\s\]]+)*)\]$")


class Reader(Protocol):
    """The part of hiredis.Reader that is used here."""

    def feed(self, buffer: bytes | bytearray | memoryview, off: int = 0, size: int = -1) -> None:
        """Take bytes from the socket."""
        ...

    def gets(self) -> Any:
        """The next whole reply; False if there is none yet."""
        ...


def new_reader() -> Reader:
    """A parser of replies; error replies come out as RoostError instances, not raised."""
    return cast("Reader", hiredis.Reader(replyError=error_of))


def encode(commands: Sequence[Command]) -> bytes:
    """The bytes of `commands`, to be sent in one write."""
    return b"".join([hiredis.pack_command(cast("Any", command)) for command in commands])


def error_of(text: str) -> RoostError:
    """The RoostError of a RESP error line `CODE message [name=value ...]`."""
    code, _, message = text.partition(" ")
    if not code.isupper():
        code, message = "BADREQUEST", text
    details: dict[str, Any] = {}
    found = _DETAIL.search(message)
    if found:
        for pair in found[1].split(" "):
            name, _, value = pair.partition("=")
            details[name] = int(value) if value.isdecimal() and len(value) < 20 else value
        message = message[: found.start()]
    retry_after_ms = details.pop("retry_after_ms", None)
    for taken in ("code", "message"):
        details.pop(taken, None)
    return error_from_code(
        _CODES_OF_REDIS.get(code, code),
        message or text,
        retry_after_ms=retry_after_ms if isinstance(retry_after_ms, int) else None,
        **details,
    )


def text_of(value: Any) -> str:
    """A RESP string as text; numbers as they print; nothing as the empty string."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return "" if value is None else str(value)


def as_map(reply: Any) -> dict[str, Any]:
    """A map reply: RESP3 maps and the flat arrays of RESP2 alike, names as str."""
    if isinstance(reply, dict):
        return {text_of(name): value for name, value in reply.items()}
    if isinstance(reply, list) and len(reply) % 2 == 0:
        return {text_of(reply[i]): reply[i + 1] for i in range(0, len(reply), 2)}
    raise BadRequest(f"the daemon answered {type(reply).__name__} where a map was due")


def greeting(address: Address) -> tuple[Command, ...]:
    """The first commands of a connection: protocol and secret, database, who is there."""
    hello: Command = ("HELLO", 3)
    if address.password or address.username:
        hello = (*hello, "AUTH", address.username or "default", address.password)
    commands: list[Command] = [(*hello, "SETNAME", CLIENT_NAME)]
    if address.db:
        commands.append(("SELECT", address.db))
    commands.append(("ROOST.HELLO",))
    return tuple(commands)


def read_greeting(replies: Sequence[Any], address: Address) -> Hello:
    """The Hello in the replies to `greeting`; raises the first error among them."""
    for reply in replies:
        if isinstance(reply, NoAuth):
            raise NoAuth(_why_no_auth(address), retry_after_ms=reply.retry_after_ms)
        if isinstance(reply, RoostError):
            raise reply
    return hello_of(replies[-1])


def _why_no_auth(address: Address) -> str:
    where = str(address).replace("://", "://NAME:SECRET@", 1)
    if not (address.username or address.password):
        found = "the daemon asks who is there, and the URL does not say"
    elif address.username:
        found = f"the daemon has no credentials of the name {address.username!r} with this secret"
    else:
        found = "the daemon has no credentials with this secret"
    return (
        f"{found}: give a name of its credentials.toml ([access] credentials) and its secret in "
        f"the URL, {where} (--url or $ROOST_URL; roost.connect)"
    )


def hello_of(reply: Any) -> Hello:
    """A ROOST.HELLO reply; members that this version does not know are ignored."""
    fields = as_map(reply)
    prefix = fields.get("prefix")
    return Hello(
        node=text_of(fields.get("node")),
        region=text_of(fields.get("region")),
        cluster=text_of(fields.get("cluster")),
        data=text_of(fields.get("data")),
        store_id=_id_bytes(fields.get("store_id")),
        pid_ns=_number(fields.get("pid_ns")),
        seq=_number(fields.get("seq")),
        applied_seq=_number(fields.get("applied_seq")),
        lag_ms=_number(fields.get("lag_ms")),
        prefix=prefix if isinstance(prefix, bytes) else None,
    )


def _number(value: Any) -> int:
    """An int, also from text such as `pid:[4026531836]`; 0 if there is none."""
    if isinstance(value, int):
        return value
    digits = re.search(r"\d+", text_of(value))
    return int(digits[0]) if digits else 0


def _id_bytes(value: Any) -> bytes:
    """16 bytes of an id that came raw or as 32 hex digits."""
    raw = value if isinstance(value, bytes) else text_of(value).encode()
    if len(raw) == 32:
        try:
            return bytes.fromhex(raw.decode("ascii"))
        except ValueError:
            return raw
    return raw
