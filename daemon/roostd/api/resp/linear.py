"""Commands on linearizable registers and counters as steps of one consensus transaction.

A plan names the steps and how their replies look. One command is one transaction; a MULTI over
linearizable keys puts the steps of all its commands into one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from roost_crdt.errors import BadRequest, RoostError, Unsupported
from roost_crdt.linear.cells import Command, Delete, Expire, Get, Incr, Put, Reply
from roost_crdt.policy import Policy
from roost_crdt.rows import Leaf
from roostd.api import numbers
from roostd.api.resp import encode
from roostd.api.resp.connection import Connection
from roostd.api.resp.options import Expiry, read_expire, read_expiry, read_set_options
from roostd.api.resp.shapes import count_of, leaf_bytes, not_a_string, shown, units_of
from roostd.api.resp.table import RespError


class Plan(NamedTuple):
    """Steps, and the encoded reply made of theirs."""

    steps: list[Command]
    answer: Callable[[Sequence[Reply]], bytes]


Planner = Callable[[Connection, list[bytes]], Plan]


def text_of(policy: Policy, value: Leaf | int | None) -> bytes | None:
    """What RESP sees of a linearizable value."""
    if isinstance(value, int):
        return numbers.count_text(value, policy.float_)
    return None if value is None else leaf_bytes(value)


def plan(conn: Connection, args: list[bytes]) -> Plan:
    """The steps of a command; Unsupported if consensus cannot do it in one transaction."""
    name = args[0].upper()
    planner = _PLANNERS.get(name)
    if planner is None:
        raise Unsupported(
            f"{name.decode('ascii', 'replace')} on linearizable keys within MULTI: send it alone"
        )
    return planner(conn, args)


async def run(conn: Connection, args: list[bytes]) -> bytes:
    """Run one command over linearizable keys."""
    planned = plan(conn, args)
    replies = await transact(conn, planned.steps, None)
    assert replies is not None, "nothing is watched"
    return planned.answer(replies)


async def transact(
    conn: Connection, steps: Sequence[Command], watched: dict[bytes, int] | None
) -> list[Reply] | None:
    """The steps as one transaction; None if a watched key changed."""
    try:
        return await conn.node.linear.transact(steps, watched=watched)
    except BadRequest as error:
        if any(isinstance(step, Incr) for step in steps) and "overflow" in error.message:
            raise RespError("ERR increment or decrement would overflow") from None
        raise


def _policy(conn: Connection, key: bytes) -> Policy:
    policy = conn.policy(key)
    if policy.type not in ("register", "counter"):
        refusal: Exception = not_a_string(policy, key)
        if isinstance(refusal, RoostError):
            raise refusal
        raise Unsupported(str(refusal).removeprefix("WRONGTYPE "))
    return policy


def _value(conn: Connection, key: bytes, text: bytes) -> Leaf | int:
    policy = _policy(conn, key)
    return count_of(policy, text) if policy.type == "counter" else text


# --- reads ----------------------------------------------------------------------------------------


def _get(conn: Connection, args: list[bytes]) -> Plan:
    policy = _policy(conn, args[1])
    return Plan(
        [Get(args[1])],
        lambda replies: encode.bulk_or_null(text_of(policy, replies[0].value), conn.resp3),
    )


def _mget(conn: Connection, args: list[bytes]) -> Plan:
    policies = [_policy(conn, key) for key in args[1:]]

    def answer(replies: Sequence[Reply]) -> bytes:
        texts = [
            text_of(policy, reply.value) for policy, reply in zip(policies, replies, strict=True)
        ]
        return encode.array([encode.bulk_or_null(text, conn.resp3) for text in texts])

    return Plan([Get(key) for key in args[1:]], answer)


def _strlen(conn: Connection, args: list[bytes]) -> Plan:
    policy = _policy(conn, args[1])
    return Plan(
        [Get(args[1])],
        lambda replies: encode.integer(len(text_of(policy, replies[0].value) or b"")),
    )


def _exists(conn: Connection, args: list[bytes]) -> Plan:
    for key in args[1:]:
        _policy(conn, key)
    return Plan([Get(key) for key in args[1:]], _count_done)


def _count_done(replies: Sequence[Reply]) -> bytes:
    return encode.integer(sum(reply.done for reply in replies))


def _type(conn: Connection, args: list[bytes]) -> Plan:
    _policy(conn, args[1])
    return Plan([Get(args[1])], lambda replies: b"+string\r\n" if replies[0].done else b"+none\r\n")


# --- writes ---------------------------------------------------------------------------------------


def _set(conn: Connection, args: list[bytes]) -> Plan:
    options = read_set_options(args[3:], conn.node.now_ms())
    policy = _policy(conn, args[1])
    step = Put(
        args[1],
        _value(conn, args[1], args[2]),
        nx=options.condition == "NX",
        xx=options.condition == "XX",
        expires_ms=options.expires_ms,
        keep_ttl=options.keep_ttl,
        previous=options.get,
    )

    def answer(replies: Sequence[Reply]) -> bytes:
        if options.get:
            return encode.bulk_or_null(text_of(policy, replies[0].value), conn.resp3)
        return encode.OK if replies[0].done else encode.null(conn.resp3)

    return Plan([step], answer)


def _setnx(conn: Connection, args: list[bytes]) -> Plan:
    return Plan([Put(args[1], _value(conn, args[1], args[2]), nx=True)], _count_done)


def _getset(conn: Connection, args: list[bytes]) -> Plan:
    return _set(conn, [b"SET", *args[1:], b"GET"])


def _set_for(unit_ms: int, name: str) -> Planner:
    def planner(conn: Connection, args: list[bytes]) -> Plan:
        expires_ms = read_expiry(args[2], unit_ms, conn.node.now_ms(), name)
        value = _value(conn, args[1], args[3])
        return Plan([Put(args[1], value, expires_ms=expires_ms)], lambda _: encode.OK)

    return planner


def _mset(conn: Connection, args: list[bytes]) -> Plan:
    pairs = zip(args[1::2], args[2::2], strict=True)
    return Plan([Put(key, _value(conn, key, text)) for key, text in pairs], lambda _: encode.OK)


def _del(conn: Connection, args: list[bytes]) -> Plan:
    for key in args[1:]:
        _policy(conn, key)
    return Plan([Delete(key) for key in args[1:]], _count_done)


def _getdel(conn: Connection, args: list[bytes]) -> Plan:
    policy = _policy(conn, args[1])
    return Plan(
        [Delete(args[1], previous=True)],
        lambda replies: encode.bulk_or_null(text_of(policy, replies[0].value), conn.resp3),
    )


def _getex(conn: Connection, args: list[bytes]) -> Plan:
    expiry = Expiry.read(args[2:])
    found = _get(conn, args)
    if expiry is None:
        return found
    return Plan(
        [*found.steps, Expire(args[1], expiry.expires_ms(conn.node.now_ms()))], found.answer
    )


def _expire(unit_ms: int, relative: bool, name: str) -> Planner:
    def planner(conn: Connection, args: list[bytes]) -> Plan:
        expires_ms = read_expire(args[2], unit_ms, conn.node.now_ms(), name, relative=relative)
        if len(args) > 3:
            raise Unsupported(
                f"{name.upper()} with a condition on the linearizable '{shown(args[1])}': "
                "leave the condition out"
            )
        _policy(conn, args[1])
        if expires_ms <= conn.node.now_ms():
            return Plan([Delete(args[1])], _count_done)
        return Plan([Expire(args[1], expires_ms)], _count_done)

    return planner


def _incr(sign: int) -> Planner:
    def planner(conn: Connection, args: list[bytes]) -> Plan:
        by = sign * (numbers.parse_int(args[2]) if len(args) > 2 else 1)
        policy = _policy(conn, args[1])
        if policy.type != "counter":
            raise Unsupported(
                f"INCR on the linearizable register '{shown(args[1])}': give the key a policy of "
                'type = "counter"'
            )
        if policy.float_:
            raise Unsupported(f"'{shown(args[1])}' has fractions: use INCRBYFLOAT")
        if not numbers.INT64_MIN <= by <= numbers.INT64_MAX:
            raise RespError("ERR decrement would overflow")
        return Plan([Incr(args[1], by)], _number)

    return planner


def _number(replies: Sequence[Reply]) -> bytes:
    value = replies[0].value
    assert isinstance(value, int)
    return encode.integer(value)


def _incrbyfloat(conn: Connection, args: list[bytes]) -> Plan:
    policy = _policy(conn, args[1])
    if policy.type != "counter":
        raise Unsupported(f"INCRBYFLOAT on the linearizable register '{shown(args[1])}'")
    by = units_of(policy, numbers.parse_scaled(args[2]), args[1])
    return Plan(
        [Incr(args[1], by)],
        lambda replies: encode.bulk(text_of(policy, replies[0].value) or b""),
    )


_PLANNERS: dict[bytes, Planner] = {
    b"GET": _get,
    b"MGET": _mget,
    b"STRLEN": _strlen,
    b"EXISTS": _exists,
    b"TOUCH": _exists,
    b"TYPE": _type,
    b"SET": _set,
    b"SETNX": _setnx,
    b"GETSET": _getset,
    b"SETEX": _set_for(1_000, "setex"),
    b"PSETEX": _set_for(1, "psetex"),
    b"MSET": _mset,
    b"DEL": _del,
    b"UNLINK": _del,
    b"GETDEL": _getdel,
    b"GETEX": _getex,
    b"EXPIRE": _expire(1_000, True, "expire"),
    b"PEXPIRE": _expire(1, True, "pexpire"),
    b"EXPIREAT": _expire(1_000, False, "expireat"),
    b"PEXPIREAT": _expire(1, False, "pexpireat"),
    b"INCR": _incr(1),
    b"INCRBY": _incr(1),
    b"DECR": _incr(-1),
    b"DECRBY": _incr(-1),
    b"INCRBYFLOAT": _incrbyfloat,
}
