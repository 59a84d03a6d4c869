"""One linearizable register or counter as consensus holds it, and what a command makes of it.

Pure: a command takes the cell as it was read and gives the cell as it should be; swaps.py sends
both as one compare-and-swap. A cell's expiry is stored with it. Whoever first finds it due (by his
own clock) deletes it in consensus before he answers: so a key that one reader saw expire is gone
for every later reader, whatever their clocks say, and expiry is a write like any other.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import msgspec

from roost_crdt.errors import BadRequest, CorruptData, WrongType
from roost_crdt.linear.transactions import Item
from roost_crdt.policy import Policy

__all__ = [
    "Cell",
    "Command",
    "Delete",
    "Expire",
    "Get",
    "Incr",
    "Leaf",
    "Put",
    "Reply",
    "counter_of",
    "decode_cell",
    "encode_cell",
    "live_cell",
    "step",
]

Leaf = bytes | str
INT64_MIN, INT64_MAX = -(1 << 63), (1 << 63) - 1

_VERSION = 1
_INTEGER = re.compile(r"-?[0-9]{1,19}", re.ASCII)


class Cell(NamedTuple):
    """An int is a counter, bytes or str a register; `expires_ms` 0 = never."""

    value: Leaf | int
    expires_ms: int = 0


class Get(NamedTuple):
    key: bytes


class Put(NamedTuple):
    """`expires_ms` None = by the policy's ttl, 0 = never; `previous` asks for the old value."""

    key: bytes
    value: Leaf | int
    nx: bool = False
    xx: bool = False
    expires_ms: int | None = None
    keep_ttl: bool = False
    previous: bool = False

    @property
    def blind(self) -> bool:
        """It needs to know nothing of what was there."""
        return not (self.nx or self.xx or self.keep_ttl or self.previous)


class Incr(NamedTuple):
    key: bytes
    by: int


class Delete(NamedTuple):
    key: bytes
    previous: bool = False


class Expire(NamedTuple):
    """0 = never."""

    key: bytes
    expires_ms: int


Command = Get | Put | Incr | Delete | Expire


class Reply(NamedTuple):
    """`done`: Get, Delete or Expire found it, Put put it. `value`: found, previous or new."""

    done: bool
    value: Leaf | int | None = None


class Step(NamedTuple):
    cell: Cell | None
    reply: Reply
    wrote: bool


def step(command: Command, cell: Cell | None, policy: Policy, now_ms: int) -> Step:
    """What `command` makes of a cell (None: there is none, or it has expired)."""
    if isinstance(command, Get):
        return Step(cell, Reply(cell is not None, cell and cell.value), False)
    if isinstance(command, Put):
        return _put(command, cell, policy, now_ms)
    if isinstance(command, Incr):
        return _incr(command, cell, policy, now_ms)
    if cell is None:
        return Step(None, Reply(False), False)
    if isinstance(command, Delete):
        return Step(None, Reply(True, cell.value if command.previous else None), True)
    if 0 < command.expires_ms <= now_ms:
        return Step(None, Reply(True), True)
    return Step(Cell(cell.value, command.expires_ms), Reply(True), True)


def _put(command: Put, cell: Cell | None, policy: Policy, now_ms: int) -> Step:
    previous = cell.value if cell is not None and command.previous else None
    if (command.nx and cell is not None) or (command.xx and cell is None):
        return Step(cell, Reply(False, previous), False)
    if command.keep_ttl and cell is not None:
        expires_ms = cell.expires_ms
    elif command.expires_ms is None or command.keep_ttl:
        expires_ms = _policy_expiry(policy, now_ms, 0)
    else:
        expires_ms = command.expires_ms
    if 0 < expires_ms <= now_ms:
        return Step(None, Reply(True, previous), True)
    return Step(Cell(command.value, expires_ms), Reply(True, previous), True)


def _incr(command: Incr, cell: Cell | None, policy: Policy, now_ms: int) -> Step:
    before = 0 if cell is None else cell.value
    assert isinstance(before, int)
    after = before + command.by
    if not INT64_MIN <= after <= INT64_MAX:
        raise BadRequest(
            f"{before} + {command.by} overflows a counter, which holds {INT64_MIN} to {INT64_MAX}"
        )
    expires_ms = _policy_expiry(policy, now_ms, 0 if cell is None else cell.expires_ms)
    return Step(Cell(after, expires_ms), Reply(True, after), True)


def _policy_expiry(policy: Policy, now_ms: int, otherwise: int) -> int:
    """A policy's ttl counts from the key's last write."""
    return now_ms + policy.ttl_ms if policy.ttl_ms else otherwise


def counter_of(leaf: Leaf | int, policy: Policy) -> int:
    """The whole number that a text names (in units of 1e-9 where float), or BadRequest."""
    if isinstance(leaf, int) and not isinstance(leaf, bool):
        number = leaf
    else:
        text = leaf.decode("ascii", "replace") if isinstance(leaf, bytes) else str(leaf)
        if not _INTEGER.fullmatch(text):
            raise BadRequest(f"a counter of policy {policy.name} takes a number, not {text:.40}")
        number = int(text)
    if not INT64_MIN <= number <= INT64_MAX:
        raise BadRequest(f"a counter of policy {policy.name} holds 64 bits: {number} is too large")
    return number


def encode_cell(cell: Cell) -> bytes:
    """msgpack [version, value, expires_ms]: bin is bytes, str a JSON leaf, int a counter."""
    return msgspec.msgpack.encode([_VERSION, cell.value, cell.expires_ms])


def decode_cell(raw: bytes, policy: Policy, key: bytes) -> Cell:
    """The cell that consensus holds; WrongType if it is no cell of this policy's type."""
    try:
        return _decode(raw, policy)
    except CorruptData as error:
        raise WrongType(
            f"consensus holds something else at {key.decode(errors='backslashreplace')}: {error}; "
            "delete it there or choose another key"
        ) from None


def live_cell(item: Item, policy: Policy, key: bytes, now_ms: int) -> Cell | None:
    """The cell of an item that was read; None if it has expired. WrongType as `decode_cell`."""
    cell = decode_cell(item.value, policy, key)
    return None if 0 < cell.expires_ms <= now_ms else cell


def _decode(raw: bytes, policy: Policy) -> Cell:
    try:
        body: Any = msgspec.msgpack.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        body = None
    if not isinstance(body, list) or len(body) != 3 or body[0] != _VERSION:
        raise CorruptData(f"no cell of roost: {raw!r:.60}")
    _, value, expires_ms = body
    if isinstance(expires_ms, bool) or not isinstance(expires_ms, int) or expires_ms < 0:
        raise CorruptData(f"an expiry of {expires_ms!r:.40}")
    if policy.type == "counter":
        if isinstance(value, bool) or not isinstance(value, int):
            raise CorruptData("no counter")
        if not INT64_MIN <= value <= INT64_MAX:
            raise CorruptData("a counter beyond 64 bits")
    elif not isinstance(value, bytes | str):
        raise CorruptData("no register")
    return Cell(value, expires_ms)
