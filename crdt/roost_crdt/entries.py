"""Keys and bodies of what a session's document holds.

    t/{n}.{node}.{turn}                                     [parent, turn_id, messages, at_ms]
    s/{n}.{node}.{k}                                        [covers, message]
    c/{call}/{attempt}/{begun|finished|failed}/{n}.{node}   [tool, args, result, at_ms]
    {policy} NUL {field}                                    [n, node, value, at_ms]

Entries (`t`, `s`, `c`) are written once: each names the epoch that it was written under, which one
actor has to itself, so that a home that lost a tail cannot write another one of the same name.
Fields are overwritten. Bodies are MessagePack arrays,
messages and values in them raw JSON texts: as numbers of a document they would not survive.
What is read here came from a disk or another node, so each part has its one spelling and bound.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

import msgspec

from roost_crdt.errors import CorruptData
from roost_crdt.limits import DEFAULT_LIMITS

Epoch = tuple[int, str]
"""`(n, node)`, compared as a pair."""
TurnRef = tuple[int, str, int]
"""`(n, node, turn)`: which turn, under which epoch; compared as a triple."""
FieldRank = tuple[int, str, int, bytes]
"""`(n, node, at_ms, leaf)` of a field's value."""
Step = Literal["begun", "finished", "failed"]
Status = Literal["begun", "finished", "failed", "in_doubt"]

EPOCH_MAX = (1 << 19) - 1
TURN_MAX = (1 << 32) - 1
NODE_BYTES_MAX = 128
CALL_BYTES_MAX = 512
_MS_MAX = 1 << 48
_EPOCH = rf"([1-9][0-9]{{0,5}})\.(.{{1,{NODE_BYTES_MAX}}})"
_PLACE = re.compile(rf"[ts]/{_EPOCH}\.(0|[1-9][0-9]{{0,9}})")
_WRITTEN = re.compile(_EPOCH)
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not what they should be (text that is not UTF-8 too)."""
_STEPS = ("begun", "failed", "finished")


class TurnEntry(NamedTuple):
    """One committed turn. `messages` are raw JSON texts, as they were given."""

    n: int
    node: str
    turn: int
    parent: TurnRef | None
    turn_id: str | None
    messages: list[bytes]
    at_ms: int

    @property
    def ref(self) -> TurnRef:
        return self[0], self[1], self[2]


class Summary(NamedTuple):
    """A message that stands for the path up to and with turn `covers`."""

    covers: TurnRef
    message: bytes


class TurnLeaf(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    parent: TurnRef | None
    turn_id: str | None
    messages: list[bytes]
    at_ms: int


class SummaryLeaf(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    covers: TurnRef
    message: bytes


class CallLeaf(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    tool: str
    args: bytes
    result: bytes | None
    at_ms: int


class FieldLeaf(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    n: int
    node: str
    value: bytes | None
    at_ms: int


encode_leaf = msgspec.msgpack.Encoder().encode
_decode_turn = msgspec.msgpack.Decoder(TurnLeaf).decode
_decode_summary = msgspec.msgpack.Decoder(SummaryLeaf).decode
_decode_call = msgspec.msgpack.Decoder(CallLeaf).decode
_decode_field = msgspec.msgpack.Decoder(FieldLeaf).decode


# --- making entries -----------------------------------------------------------------------------


def turn_entry(
    epoch: Epoch,
    turn: int,
    *,
    parent: TurnRef | None,
    turn_id: str | None,
    messages: list[bytes],
    at_ms: int,
) -> tuple[str, bytes]:
    """Key and leaf of a turn; `turn` is its parent's number plus 1."""
    assert turn == (1 if parent is None else parent[2] + 1), f"turn {turn} after {parent}"
    return (
        f"t/{epoch[0]}.{epoch[1]}.{turn}",
        encode_leaf(TurnLeaf(parent, turn_id, messages, at_ms)),
    )


def summary_entry(epoch: Epoch, k: int, *, covers: TurnRef, message: bytes) -> tuple[str, bytes]:
    """Key and leaf of a summary; `k` is unique under the epoch (the current turn's number does)."""
    return f"s/{epoch[0]}.{epoch[1]}.{k}", encode_leaf(SummaryLeaf(covers, message))


def call_entry(
    call: str,
    attempt: int,
    status: Step,
    epoch: Epoch,
    *,
    tool: str,
    args: bytes,
    result: bytes | None,
    at_ms: int,
) -> tuple[str, bytes]:
    """Key and leaf of one step of a tool call; `attempt` counts from 1."""
    return (
        f"c/{call}/{attempt}/{status}/{epoch[0]}.{epoch[1]}",
        encode_leaf(CallLeaf(tool, args, result, at_ms)),
    )


def field_entry(
    policy: str, field: str, epoch: Epoch, value: bytes | None, at_ms: int
) -> tuple[str, bytes]:
    """Key and leaf of a field; `None` removes it.

    `at_ms` must rise with each write of a field under one epoch: `Fold.put_field` sees to it.
    """
    return f"{policy}\0{field}", encode_leaf(FieldLeaf(epoch[0], epoch[1], value, at_ms))


# --- reading entries ----------------------------------------------------------------------------


class CallPlace(NamedTuple):
    call: str
    attempt: int
    status: Step
    epoch: Epoch


def read_turn(key: str, leaf: bytes) -> TurnEntry:
    n, node, turn = read_place(key)
    if not turn:
        raise CorruptData(f"entry {key!r} counts turns from 1")
    try:
        body = _decode_turn(leaf)
    except _UNREADABLE as error:
        raise _unreadable(key, error) from error
    parent = body.parent
    if parent is not None and (parent >= (n, node, turn) or parent[2] != turn - 1):
        raise CorruptData(f"entry {key!r} cannot follow turn {parent!r}")
    if parent is None and turn != 1:
        raise CorruptData(f"entry {key!r} follows no turn")
    if not 0 <= body.at_ms < _MS_MAX:
        raise CorruptData(f"entry {key!r} has no such time")
    return TurnEntry(n, node, turn, parent, body.turn_id, body.messages, body.at_ms)


def read_summary(key: str, leaf: bytes) -> Summary:
    read_place(key)
    try:
        body = _decode_summary(leaf)
    except _UNREADABLE as error:
        raise _unreadable(key, error) from error
    return Summary(body.covers, body.message)


def read_step(key: str, leaf: bytes) -> tuple[CallPlace, CallLeaf]:
    parts = key.split("/", 4)
    if len(parts) != 5 or not parts[1] or parts[3] not in _STEPS:
        raise CorruptData(f"entry {key!r} is no step of a call")
    _, call, attempt, status, written = parts
    match = _WRITTEN.fullmatch(written)
    if match is None or int(match[1]) > EPOCH_MAX:
        raise CorruptData(f"entry {key[:80]!r} names no epoch and node")
    if len(key) > CALL_BYTES_MAX + NODE_BYTES_MAX:
        raise CorruptData("the key of a call's step is too long")
    try:
        body = _decode_call(leaf)
    except _UNREADABLE as error:
        raise _unreadable(key, error) from error
    if not 0 <= body.at_ms < _MS_MAX:
        raise CorruptData(f"entry {key!r} has no such time")
    number = _number(key, attempt, TURN_MAX)
    if not number:
        raise CorruptData(f"entry {key!r} counts attempts from 1")
    epoch = (int(match[1]), match[2])
    return CallPlace(call, number, status, epoch), body  # type: ignore[arg-type]


def read_field(key: str | None, leaf: bytes) -> FieldLeaf:
    if key is not None and not 0 < key.find("\0") <= DEFAULT_LIMITS.key_bytes_max:
        raise CorruptData(f"field {key!r} has no policy")
    try:
        body = _decode_field(leaf)
    except _UNREADABLE as error:
        raise _unreadable(key or "of a field", error) from error
    if not (0 < body.n <= EPOCH_MAX and body.node and 0 <= body.at_ms < _MS_MAX):
        raise CorruptData(f"a value of field {key!r} has no such epoch or time")
    return body


def read_place(key: str) -> TurnRef:
    """`x/{n}.{node}.{number}`; a node's name may have dots of its own."""
    match = _PLACE.fullmatch(key)
    if match is None:
        raise CorruptData(f"entry {key[:80]!r} names no epoch, node and number")
    n, node, number = int(match[1]), match[2], int(match[3])
    if n > EPOCH_MAX or number > TURN_MAX:
        raise CorruptData(f"entry {key!r} has a number out of range")
    return n, node, number


def _number(key: str, digits: str, bound: int) -> int:
    """Digits in their one spelling: another would be a second key of the same entry."""
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 10):
        raise CorruptData(f"entry {key!r} has {digits[:20]!r} where a number is due")
    number = int(digits)
    if number > bound or (digits[0] == "0" and digits != "0"):
        raise CorruptData(f"entry {key!r} has {digits!r} where a number is due")
    return number


def _unreadable(key: str, error: Exception) -> CorruptData:
    return CorruptData(f"the body of entry {key!r} cannot be read: {error}")


def check_entry(key: str, leaf: bytes) -> None:
    """Raises CorruptData for what `Fold.add` would refuse."""
    kind = key[:2]
    if kind == "t/":
        read_turn(key, leaf)
    elif kind == "c/":
        read_step(key, leaf)
    elif kind == "s/":
        read_summary(key, leaf)
    else:
        raise CorruptData(f"entry {key[:40]!r} is of no known kind")


def check_field(key: str | None, leaf: bytes | None) -> None:
    """Raises CorruptData for what `Fold.add_field` would refuse; what is None is not checked."""
    if leaf is not None:
        read_field(key, leaf)


def field_value(leaf: bytes) -> bytes | None:
    """The raw JSON in a field's leaf that was checked before; None if it was removed."""
    return _decode_field(leaf).value


def field_rank(leaf: bytes, key: str | None = None) -> FieldRank:
    """Of a field's values the one that ranks highest is in force. Raises CorruptData."""
    body = read_field(key, leaf)
    return body.n, body.node, body.at_ms, leaf


def turn_leaf(entry: TurnEntry) -> bytes:
    return encode_leaf(TurnLeaf(entry.parent, entry.turn_id, entry.messages, entry.at_ms))


def summary_leaf(summary: Summary) -> bytes:
    return encode_leaf(SummaryLeaf(summary.covers, summary.message))
