"""How leaves and counts look as Redis strings, and why a key holds none."""

from __future__ import annotations

from roost_crdt.errors import Unsupported
from roost_crdt.policy import SESSION_LOCAL, Policy
from roost_crdt.rows import Leaf
from roostd.api import numbers
from roostd.api.resp.table import RespError


def shown(key: bytes) -> str:
    """A key in an error."""
    return key.decode("utf-8", "backslashreplace")


def leaf_bytes(leaf: Leaf | int) -> bytes:
    """What RESP sees of a leaf: a string's bytes, another JSON value's compact text."""
    if isinstance(leaf, bytes):
        return leaf
    return leaf.encode() if isinstance(leaf, str) else b"%d" % leaf


def count_of(policy: Policy, text: bytes) -> int:
    """A counter's value in its units; NotANumber."""
    return numbers.parse_scaled(text) if policy.float_ else numbers.parse_int(text)


_USE = {
    "set": "SADD",
    "map": "HSET",
    "rate": "INCRBY",
    "quota": "ROOST.SPEND",
    "meter": "INCRBY",
    "doc": "ROOST.UPDATE with a Yjs update",
}


def not_a_string(policy: Policy, key: bytes) -> Unsupported | RespError:
    """Why a string cannot be written at a key."""
    if policy.consistency == SESSION_LOCAL:
        way = "ROOST.CALL" if policy.type == "ledger" else "ROOST.TURN"
        return Unsupported(f"policy {policy.name} is session-local: write it by {way}")
    return RespError(
        f"WRONGTYPE '{shown(key)}' is a {policy.type} by policy {policy.name}: "
        f"use {_USE.get(policy.type, 'GET')}"
    )


def units_of(policy: Policy, scaled: int, key: bytes) -> int:
    """An increment (in 1e-9) in the counter's units; Unsupported for a fraction of a whole."""
    if policy.float_:
        return scaled
    if scaled % numbers.SCALE:
        raise Unsupported(
            f"an increment of '{shown(key)}' by a fraction: say float = true in policy "
            f"{policy.name}"
        )
    return scaled // numbers.SCALE
