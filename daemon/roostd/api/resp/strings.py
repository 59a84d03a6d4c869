"""String commands: registers, and counters, rates, quotas and meters seen as strings.

The key's policy says where a value is: in this node's rows (answered at once) or in consensus
(awaited). A session-local key holds no string.
"""

from __future__ import annotations

from collections.abc import Awaitable

import msgspec

from roost_crdt.errors import CrossClass, TooLarge, Unsupported
from roost_crdt.policy import EVENTUALLY_GLOBAL, LINEARIZABLE, SESSION_LOCAL, Policy
from roostd.api import numbers
from roostd.api.operations_quotas import plain
from roostd.api.resp import encode, linear
from roostd.api.resp.connection import Connection
from roostd.api.resp.options import Expiry, read_expiry, read_set_options
from roostd.api.resp.shapes import count_of, leaf_bytes, not_a_string, shown
from roostd.api.resp.table import (
    ALL_KEYS,
    ONE_KEY,
    Reply,
    RespError,
    command,
    wrong_arity,
    wrong_type,
)

_GROUP = "string"


def local_string(conn: Connection, policy: Policy, key: bytes) -> bytes | None:
    """An eventually-global key as a string; RespError WRONGTYPE if it holds another type."""
    keys = conn.node.keys
    if policy.type == "register":
        leaf = keys.get(key)
        return None if leaf is None else leaf_bytes(leaf)
    if policy.type == "counter":
        count = keys.count(key)
        return None if count is None else numbers.count_text(count, policy.float_)
    if policy.type == "rate":
        return b"%d" % keys.rate(key) if keys.exists(key) else None
    if policy.type == "doc":
        return keys.doc(key)
    if keys.exists(key):
        raise wrong_type()
    return None


async def linear_string(conn: Connection, policy: Policy, key: bytes) -> bytes | None:
    """A linearizable key as a string; quotas and meters as JSON."""
    if policy.type == "quota":
        return msgspec.json.encode(plain(await conn.node.quotas.show(key)))
    if policy.type == "meter":
        return msgspec.json.encode(plain(await conn.node.quotas.meter(key)))
    return linear.text_of(policy, await conn.node.linear.get(key))


def string_of(conn: Connection, key: bytes) -> bytes | Awaitable[bytes | None] | None:
    """The string at a key, now or awaited."""
    policy = conn.policy(key)
    if policy.consistency == EVENTUALLY_GLOBAL:
        return local_string(conn, policy, key)
    if policy.consistency == SESSION_LOCAL:
        raise wrong_type()
    return linear_string(conn, policy, key)


@command("GET", 2, "read", ONE_KEY, _GROUP, "The value of a register or counter.")
def get(conn: Connection, args: list[bytes]) -> Reply:
    found = string_of(conn, args[1])
    if found is None or isinstance(found, bytes):
        return encode.bulk_or_null(found, conn.resp3)
    return _bulk_later(conn, found)


async def _bulk_later(conn: Connection, found: Awaitable[bytes | None]) -> bytes:
    return encode.bulk_or_null(await found, conn.resp3)


@command("STRLEN", 2, "read", ONE_KEY, _GROUP, "The length of a value in bytes.")
def strlen(conn: Connection, args: list[bytes]) -> Reply:
    found = string_of(conn, args[1])
    if found is None or isinstance(found, bytes):
        return encode.integer(len(found or b""))
    return _length_later(found)


async def _length_later(found: Awaitable[bytes | None]) -> bytes:
    return encode.integer(len(await found or b""))


@command("MGET", -2, "read", ALL_KEYS, _GROUP, "Several values, each by its own policy.")
def mget(conn: Connection, args: list[bytes]) -> Reply:
    found: list[bytes | Awaitable[bytes | None] | None] = []
    for key in args[1:]:
        policy = conn.policy(key)
        if policy.consistency == LINEARIZABLE:
            found.append(linear_string(conn, policy, key))
        elif policy.consistency == SESSION_LOCAL:
            found.append(None)
        else:
            found.append(_local_or_none(conn, policy, key))
    if all(value is None or isinstance(value, bytes) for value in found):
        values = [value for value in found if value is None or isinstance(value, bytes)]
        return encode.array([encode.bulk_or_null(value, conn.resp3) for value in values])
    return _mget_later(conn, found)


def _local_or_none(conn: Connection, policy: Policy, key: bytes) -> bytes | None:
    try:
        return local_string(conn, policy, key)
    except RespError:
        return None  # Redis answers nil for a key of another type


async def _mget_later(
    conn: Connection, found: list[bytes | Awaitable[bytes | None] | None]
) -> bytes:
    replies: list[bytes] = []
    for value in found:
        text = value if value is None or isinstance(value, bytes) else await value
        replies.append(encode.bulk_or_null(text, conn.resp3))
    return encode.array(replies)


# --- writes ---------------------------------------------------------------------------------------


def put_local(
    conn: Connection,
    policy: Policy,
    key: bytes,
    value: bytes,
    expires_ms: int | None = None,
    keep_ttl: bool = False,
) -> None:
    """Set a register or counter of this node; other types are refused."""
    if policy.type == "register":
        keys = conn.node.keys
        keys.put(key, value, expires_ms=expires_ms, keep_ttl=keep_ttl, policy=policy)
    elif policy.type == "counter":
        count = count_of(policy, value)
        conn.node.keys.assign(key, count, expires_ms=expires_ms, keep_ttl=keep_ttl)
    else:
        raise not_a_string(policy, key)


@command("SET", -3, "write", ONE_KEY, _GROUP, "SET key value [EX|PX|EXAT|PXAT|KEEPTTL] [GET].")
def set_(conn: Connection, args: list[bytes]) -> Reply:
    if len(args) == 3:
        options = None
    else:
        options = read_set_options(args[3:], conn.node.now_ms())
    key, value = args[1], args[2]
    policy = conn.policy(key)
    if policy.consistency == LINEARIZABLE:
        return linear.run(conn, args)
    if policy.consistency == SESSION_LOCAL:
        raise not_a_string(policy, key)
    if options is None:
        put_local(conn, policy, key, value)
        return encode.OK
    if options.condition:
        raise Unsupported(
            f"SET {options.condition} on the eventually-global '{shown(key)}': two regions would "
            'both win; give the key a policy with stale_read_cost = "incorrect" (linearizable)'
        )
    before = local_string(conn, policy, key) if options.get else None
    put_local(conn, policy, key, value, options.expires_ms, options.keep_ttl)
    return encode.bulk_or_null(before, conn.resp3) if options.get else encode.OK


@command("SETNX", 3, "write", ONE_KEY, _GROUP, "SET NX, where the key is linearizable.")
def setnx(conn: Connection, args: list[bytes]) -> Reply:
    if conn.policy(args[1]).consistency == LINEARIZABLE:
        return linear.run(conn, args)
    return set_(conn, [b"SET", *args[1:], b"NX"])


@command("GETSET", 3, "write", ONE_KEY, _GROUP, "SET with GET.")
def getset(conn: Connection, args: list[bytes]) -> Reply:
    return set_(conn, [b"SET", *args[1:], b"GET"])


@command("SETEX", 4, "write", ONE_KEY, _GROUP, "SET with a ttl in seconds.")
def setex(conn: Connection, args: list[bytes]) -> Reply:
    return _set_for(conn, args, "setex", 1_000)


@command("PSETEX", 4, "write", ONE_KEY, _GROUP, "SET with a ttl in milliseconds.")
def psetex(conn: Connection, args: list[bytes]) -> Reply:
    return _set_for(conn, args, "psetex", 1)


def _set_for(conn: Connection, args: list[bytes], name: str, unit_ms: int) -> Reply:
    expires_ms = read_expiry(args[2], unit_ms, conn.node.now_ms(), name)
    policy = conn.policy(args[1])
    if policy.consistency == LINEARIZABLE:
        return linear.run(conn, args)
    put_local(conn, policy, args[1], args[3], expires_ms)
    return encode.OK


@command("MSET", -3, "write", (1, -1, 2), _GROUP, "Several registers in one record.")
def mset(conn: Connection, args: list[bytes]) -> Reply:
    if len(args) % 2 == 0:
        raise wrong_arity("mset")
    pairs = list(zip(args[1::2], args[2::2], strict=True))
    policies = [conn.policy(key) for key, _ in pairs]
    classes = sorted({policy.consistency for policy in policies})
    if len(classes) > 1:
        raise CrossClass(
            f"MSET over keys that are {' and '.join(classes)}: send one MSET for each class"
        )
    if classes == [LINEARIZABLE]:
        return linear.run(conn, args)
    for policy, (key, value) in zip(policies, pairs, strict=True):
        if policy.type not in ("register", "counter"):
            raise not_a_string(policy, key)
        # All or nothing: refuse before the first write.
        if policy.type == "counter":
            count_of(policy, value)
        elif len(value) > conn.node.limits.value_bytes_max:
            raise TooLarge(f"'{shown(key)}': {len(value)} bytes are over limits.value_max")
    if len(pairs) > conn.node.limits.batch_ops_max:
        raise TooLarge(
            f"MSET of {len(pairs)} keys is over {conn.node.limits.batch_ops_max}; send several"
        )
    with conn.node.keys.batch():
        for policy, (key, value) in zip(policies, pairs, strict=True):
            put_local(conn, policy, key, value)
    return encode.OK


@command("MSETNX", -3, "write", (1, -1, 2), _GROUP, "Refused: see SET NX.")
def msetnx(conn: Connection, args: list[bytes]) -> Reply:
    raise Unsupported("MSETNX: consensus writes one key at a time; use SET NX on linearizable keys")


@command("GETDEL", 2, "write", ONE_KEY, _GROUP, "The value, which is then deleted.")
def getdel(conn: Connection, args: list[bytes]) -> Reply:
    policy = conn.policy(args[1])
    if policy.consistency == LINEARIZABLE:
        return linear.run(conn, args)
    if policy.consistency == SESSION_LOCAL:
        raise wrong_type()
    before = local_string(conn, policy, args[1])
    if before is not None:
        conn.node.keys.delete(args[1])
    return encode.bulk_or_null(before, conn.resp3)


@command("GETEX", -2, "write", ONE_KEY, _GROUP, "The value, with a new expiry.")
def getex(conn: Connection, args: list[bytes]) -> Reply:
    expiry = Expiry.read(args[2:])
    if expiry is None:
        return get(conn, args[:2])
    policy = conn.policy(args[1])
    if policy.consistency == LINEARIZABLE:
        return linear.run(conn, args)
    if policy.consistency == SESSION_LOCAL:
        raise wrong_type()
    before = local_string(conn, policy, args[1])
    if before is not None:
        conn.node.keys.expire(args[1], expiry.expires_ms(conn.node.now_ms()))
    return encode.bulk_or_null(before, conn.resp3)


@command("GETRANGE", 4, "read", ONE_KEY, _GROUP, "A part of a value.")
def getrange(conn: Connection, args: list[bytes]) -> Reply:
    start, end = numbers.parse_int(args[2]), numbers.parse_int(args[3])
    found = string_of(conn, args[1])
    if found is None or isinstance(found, bytes):
        return encode.bulk(_part(found or b"", start, end))
    return _part_later(found, start, end)


async def _part_later(found: Awaitable[bytes | None], start: int, end: int) -> bytes:
    return encode.bulk(_part(await found or b"", start, end))


def _part(value: bytes, start: int, end: int) -> bytes:
    size = len(value)
    if start < 0 and end < 0 and start > end:
        return b""
    first = max(start + size, 0) if start < 0 else start
    last = max(end + size, 0) if end < 0 else end
    return value[first : last + 1] if first <= last else b""
