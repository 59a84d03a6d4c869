"""Counter commands: local on a counter or rate, consensus on a linearizable one, durable on a
meter. On anything else an increment would be lost or has no meaning, and is refused."""

from __future__ import annotations

from roost_crdt.errors import BadRequest, Unsupported
from roost_crdt.policy import EVENTUALLY_GLOBAL, SESSION_LOCAL, Policy
from roostd.api import numbers
from roostd.api.operations_quotas import new_id, plain
from roostd.api.resp import encode, linear
from roostd.api.resp.connection import Connection
from roostd.api.resp.shapes import not_a_string, shown, units_of
from roostd.api.resp.table import ONE_KEY, Reply, RespError, command, wrong_type

_GROUP = "string"
_OVERFLOW = "ERR increment or decrement would overflow"


@command("INCR", 2, "write", ONE_KEY, _GROUP, "Adds one.")
def incr(conn: Connection, args: list[bytes]) -> Reply:
    return add(conn, args[1], 1)


@command("DECR", 2, "write", ONE_KEY, _GROUP, "Takes one.")
def decr(conn: Connection, args: list[bytes]) -> Reply:
    return add(conn, args[1], -1)


@command("INCRBY", 3, "write", ONE_KEY, _GROUP, "Adds a whole number.")
def incrby(conn: Connection, args: list[bytes]) -> Reply:
    return add(conn, args[1], numbers.parse_int(args[2]))


@command("DECRBY", 3, "write", ONE_KEY, _GROUP, "Takes a whole number.")
def decrby(conn: Connection, args: list[bytes]) -> Reply:
    by = numbers.parse_int(args[2])
    if by == numbers.INT64_MIN:
        raise RespError("ERR decrement would overflow")
    return add(conn, args[1], -by)


def add(conn: Connection, key: bytes, by: int) -> Reply:
    """Add a whole number to the key, as its policy says."""
    policy = conn.policy(key)
    if policy.consistency != EVENTUALLY_GLOBAL:
        return _add_elsewhere(conn, policy, key, by)
    keys = conn.node.keys
    if policy.type == "counter" and not policy.float_:
        return encode.integer(_add_local(conn, key, by))
    if policy.type == "counter":
        if (keys.count(key) or 0) % numbers.SCALE:
            raise numbers.NotANumber("value is not an integer or out of range")
        return encode.integer(_add_local(conn, key, by * numbers.SCALE) // numbers.SCALE)
    if policy.type == "rate":
        if by < 0:
            raise Unsupported(f"policy {policy.name} is a rate: it only counts up")
        return encode.integer(keys.incr(key, by))
    raise not_countable(conn, policy, key)


def _add_local(conn: Connection, key: bytes, by: int) -> int:
    if not numbers.INT64_MIN <= by <= numbers.INT64_MAX:
        raise RespError(_OVERFLOW)
    try:
        return conn.node.keys.incr(key, by)
    except BadRequest:
        # The key and the number are sound, so the sum is out of range.
        raise RespError(_OVERFLOW) from None


def not_countable(conn: Connection, policy: Policy, key: bytes) -> Exception:
    """Why a key cannot be incremented."""
    if policy.consistency == SESSION_LOCAL:
        return not_a_string(policy, key)
    if policy.type in ("set", "map", "doc"):
        return wrong_type()
    if policy.type == "quota":
        return Unsupported(f"'{shown(key)}' is a quota: use ROOST.SPEND")
    return Unsupported(
        f"INCR on the {policy.consistency} register '{shown(key)}': concurrent increments would be "
        'lost; give the key a policy of type = "counter"'
    )


def _add_elsewhere(conn: Connection, policy: Policy, key: bytes, by: int) -> Reply:
    if policy.type == "meter":
        if by < 1:
            raise Unsupported(f"policy {policy.name} is a meter: it only counts up")
        return _add_metered(conn, key, by)
    if policy.consistency == SESSION_LOCAL or policy.type != "counter":
        raise not_countable(conn, policy, key)
    return linear.run(conn, [b"INCRBY", key, b"%d" % by])


async def _add_metered(conn: Connection, key: bytes, by: int) -> bytes:
    meter = plain(await conn.node.quotas.meter_add(key, by, new_id()))
    return encode.integer(meter["committed"] + meter["pending"])


@command("INCRBYFLOAT", 3, "write", ONE_KEY, _GROUP, "Adds a number where float = true.")
def incrbyfloat(conn: Connection, args: list[bytes]) -> Reply:
    key = args[1]
    by = numbers.parse_scaled(args[2])
    policy = conn.policy(key)
    if policy.type != "counter":
        raise not_countable(conn, policy, key)
    if policy.consistency != EVENTUALLY_GLOBAL:
        return linear.run(conn, args)
    units = units_of(policy, by, key)
    return encode.bulk(numbers.count_text(_add_local(conn, key, units), policy.float_))
