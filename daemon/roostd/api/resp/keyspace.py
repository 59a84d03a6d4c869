"""Commands over keys of any type: DEL, EXISTS, TYPE, expiries, SCAN, KEYS, DBSIZE."""

from __future__ import annotations

import asyncio

from roost_crdt.errors import NoPolicy, NoSession, Unsupported
from roost_crdt.policy import EVENTUALLY_GLOBAL, LINEARIZABLE, SESSION_LOCAL, Policy
from roostd.api.caller import READ
from roostd.api.globbing import compiled, literal_prefix
from roostd.api.operations_sessions import session_of
from roostd.api.resp import encode, linear
from roostd.api.resp.connection import Connection
from roostd.api.resp.options import read_expire, read_scan_options
from roostd.api.resp.table import ALL_KEYS, NO_KEYS, ONE_KEY, Reply, RespError, command

_GROUP = "generic"

_REDIS_TYPES = {
    "register": b"string",
    "counter": b"string",
    "rate": b"string",
    "quota": b"string",
    "meter": b"string",
    "doc": b"string",
    "set": b"set",
    "map": b"hash",
    "ledger": b"hash",
    "conversation": b"list",
}


@command("DEL", -2, "write", ALL_KEYS, _GROUP, "Deletes keys; how many there were.")
def del_(conn: Connection, args: list[bytes]) -> Reply:
    policies = [conn.policy(key) for key in args[1:]]
    for policy in policies:
        if policy.consistency == SESSION_LOCAL:
            raise Unsupported(
                f"policy {policy.name} is session-local: erase its session by ROOST.ERASE"
            )
        if policy.type in ("quota", "meter"):
            raise Unsupported(
                f"policy {policy.name} is a {policy.type}: it ends with its period and is not "
                "deleted"
            )
    if all(policy.consistency == LINEARIZABLE for policy in policies):
        return linear.run(conn, args)
    if any(policy.consistency == LINEARIZABLE for policy in policies):
        return _delete_mixed(conn, policies, args[1:])
    keys = conn.node.keys
    if len(args) == 2:
        return encode.ONE if keys.delete(args[1]) else encode.ZERO
    with keys.batch():
        return encode.integer(sum([keys.delete(key) for key in dict.fromkeys(args[1:])]))


async def _delete_mixed(conn: Connection, policies: list[Policy], names: list[bytes]) -> bytes:
    found = 0
    for policy, key in zip(policies, names, strict=True):
        if policy.consistency == LINEARIZABLE:
            found += await conn.node.linear.delete(key)
        else:
            found += conn.node.keys.delete(key)
    return encode.integer(found)


command("UNLINK", -2, "write", ALL_KEYS, _GROUP, "As DEL.")(del_)


@command("EXISTS", -2, "read", ALL_KEYS, _GROUP, "How many of the keys exist.")
def exists(conn: Connection, args: list[bytes]) -> Reply:
    policies = [conn.policy(key) for key in args[1:]]
    if all(policy.consistency == EVENTUALLY_GLOBAL for policy in policies):
        return encode.integer(sum([conn.node.keys.exists(key) for key in args[1:]]))
    return _count_existing(conn, policies, args[1:])


async def _count_existing(conn: Connection, policies: list[Policy], names: list[bytes]) -> bytes:
    pairs = zip(policies, names, strict=True)
    return encode.integer(sum([await key_exists(conn, policy, key) for policy, key in pairs]))


command("TOUCH", -2, "read", ALL_KEYS, _GROUP, "As EXISTS.")(exists)


async def key_exists(conn: Connection, policy: Policy, key: bytes) -> bool:
    """Whether a key of any consistency exists; quotas and meters always do."""
    if policy.consistency == EVENTUALLY_GLOBAL:
        return conn.node.keys.exists(key)
    if policy.consistency == SESSION_LOCAL:
        try:
            await conn.node.sessions.turns(session_of(policy, key), None, 1)
        except NoSession:
            return False
        return True
    if policy.type in ("quota", "meter"):
        return True
    return await conn.node.linear.get(key) is not None


@command("TYPE", 2, "read", ONE_KEY, _GROUP, "The Redis type that a key looks like.")
def type_(conn: Connection, args: list[bytes]) -> Reply:
    policy = conn.policy(args[1])
    if policy.consistency == EVENTUALLY_GLOBAL:
        return _type_reply(policy, conn.node.keys.exists(args[1]))
    return _type_later(conn, policy, args[1])


async def _type_later(conn: Connection, policy: Policy, key: bytes) -> bytes:
    return _type_reply(policy, await key_exists(conn, policy, key))


def _type_reply(policy: Policy, there: bool) -> bytes:
    return b"+%b\r\n" % (_REDIS_TYPES[policy.type] if there else b"none")


# --- expiry ---------------------------------------------------------------------------------------


def _expire(conn: Connection, args: list[bytes], unit_ms: int, relative: bool, name: str) -> Reply:
    now_ms = conn.node.now_ms()
    allowed = _Condition(args[3:])
    expires_ms = read_expire(args[2], unit_ms, now_ms, name, relative=relative)
    policy = conn.policy(args[1])
    if policy.consistency == LINEARIZABLE:
        return linear.run(conn, args)
    if policy.consistency == SESSION_LOCAL:
        raise Unsupported(f"policy {policy.name} is session-local: its ttl is set in the policy")
    keys = conn.node.keys
    current_ms = keys.expires_ms(args[1])
    if current_ms is None or not allowed(current_ms, expires_ms):
        return encode.ZERO
    if expires_ms <= now_ms and policy.type != "rate":
        keys.delete(args[1])
        return encode.ONE
    return encode.ONE if keys.expire(args[1], expires_ms) else encode.ZERO


class _Condition:
    """NX, XX, GT and LT of EXPIRE; no expiry counts as infinitely late."""

    def __init__(self, options: list[bytes]) -> None:
        self.names = {option.upper() for option in options}
        for option in options:
            if option.upper() not in (b"NX", b"XX", b"GT", b"LT"):
                shown = option.decode("utf-8", "backslashreplace")
                raise RespError(f"ERR Unsupported option {shown}")
        if b"NX" in self.names and len(self.names) > 1:
            raise RespError("ERR NX and XX, GT or LT options at the same time are not compatible")
        if b"GT" in self.names and b"LT" in self.names:
            raise RespError("ERR GT and LT options at the same time are not compatible")

    def __call__(self, current_ms: int, wanted_ms: int) -> bool:
        names = self.names
        return not (
            (b"NX" in names and current_ms)
            or (b"XX" in names and not current_ms)
            or (b"GT" in names and (not current_ms or wanted_ms <= current_ms))
            or (b"LT" in names and current_ms and wanted_ms >= current_ms)
        )


@command("EXPIRE", -3, "write", ONE_KEY, _GROUP, "Ends a key in so many seconds.")
def expire(conn: Connection, args: list[bytes]) -> Reply:
    return _expire(conn, args, 1_000, True, "expire")


@command("PEXPIRE", -3, "write", ONE_KEY, _GROUP, "Ends a key in so many milliseconds.")
def pexpire(conn: Connection, args: list[bytes]) -> Reply:
    return _expire(conn, args, 1, True, "pexpire")


@command("EXPIREAT", -3, "write", ONE_KEY, _GROUP, "Ends a key at a unix time in seconds.")
def expireat(conn: Connection, args: list[bytes]) -> Reply:
    return _expire(conn, args, 1_000, False, "expireat")


@command("PEXPIREAT", -3, "write", ONE_KEY, _GROUP, "Ends a key at a unix time in ms.")
def pexpireat(conn: Connection, args: list[bytes]) -> Reply:
    return _expire(conn, args, 1, False, "pexpireat")


@command("PERSIST", 2, "write", ONE_KEY, _GROUP, "Takes a key's expiry away.")
def persist(conn: Connection, args: list[bytes]) -> Reply:
    policy = conn.policy(args[1])
    if policy.consistency == SESSION_LOCAL:
        return _no_ttl(policy)
    if policy.consistency == LINEARIZABLE:
        return _persist_linear(conn, args[1])
    if not conn.node.keys.expires_ms(args[1]):
        return encode.ZERO
    conn.node.keys.expire(args[1], 0)
    return encode.ONE


async def _persist_linear(conn: Connection, key: bytes) -> bytes:
    if not await conn.node.linear.expires_ms(key):
        return encode.ZERO
    return encode.ONE if await conn.node.linear.expire(key, 0) else encode.ZERO


def _no_ttl(policy: Policy) -> bytes:
    raise Unsupported(
        f"policy {policy.name} is session-local: see its ttl by ROOST.POLICY {policy.name}"
    )


def _ttl(conn: Connection, key: bytes, unit_ms: int, absolute: bool) -> Reply:
    policy = conn.policy(key)
    if policy.consistency == SESSION_LOCAL:
        return _no_ttl(policy)
    if policy.consistency == LINEARIZABLE:
        return _ttl_linear(conn, policy, key, unit_ms, absolute)
    return _ttl_reply(conn, conn.node.keys.expires_ms(key), unit_ms, absolute)


async def _ttl_linear(
    conn: Connection, policy: Policy, key: bytes, unit_ms: int, absolute: bool
) -> bytes:
    if policy.type in ("quota", "meter"):
        return encode.integer(-1)
    return _ttl_reply(conn, await conn.node.linear.expires_ms(key), unit_ms, absolute)


def _ttl_reply(conn: Connection, expires_ms: int | None, unit_ms: int, absolute: bool) -> bytes:
    if expires_ms is None:
        return encode.integer(-2)
    if expires_ms == 0:
        return encode.integer(-1)
    left_ms = expires_ms if absolute else max(expires_ms - conn.node.now_ms(), 0)
    return encode.integer((left_ms + unit_ms // 2) // unit_ms)


@command("TTL", 2, "read", ONE_KEY, _GROUP, "Seconds until a key ends; -1 never, -2 no key.")
def ttl(conn: Connection, args: list[bytes]) -> Reply:
    return _ttl(conn, args[1], 1_000, False)


@command("PTTL", 2, "read", ONE_KEY, _GROUP, "Milliseconds until a key ends.")
def pttl(conn: Connection, args: list[bytes]) -> Reply:
    return _ttl(conn, args[1], 1, False)


@command("EXPIRETIME", 2, "read", ONE_KEY, _GROUP, "The unix time at which a key ends.")
def expiretime(conn: Connection, args: list[bytes]) -> Reply:
    return _ttl(conn, args[1], 1_000, True)


@command("PEXPIRETIME", 2, "read", ONE_KEY, _GROUP, "The same in milliseconds.")
def pexpiretime(conn: Connection, args: list[bytes]) -> Reply:
    return _ttl(conn, args[1], 1, True)


# --- listings -------------------------------------------------------------------------------------


def _shown(conn: Connection, key: bytes) -> bool:
    """Whether a stored key is one that this client may see: its own, and with a policy."""
    assert conn.caller is not None
    return conn.caller.may(READ, key)


@command("SCAN", -2, "read", NO_KEYS, _GROUP, "Eventually-global keys page by page.")
def scan(conn: Connection, args: list[bytes]) -> Reply:
    place = conn.server.cursors.place(args[1])
    options = read_scan_options(args[2:], typed=True)
    assert conn.caller is not None
    prefix = conn.caller.prefix
    if options.match is not None:
        prefix += literal_prefix(options.match)
    page = conn.node.keys.scan(prefix, place, options.count)
    cursor = conn.server.cursors.give(page[-1]) if len(page) == options.count else 0
    found = [key for key in page if _shown(conn, key)]
    if options.match is not None:
        matches = compiled(options.match).match
        found = [key for key in found if matches(conn.own(key))]
    if options.type is not None:
        found = [key for key in found if _redis_type(conn, key) == options.type]
    return encode.array([encode.bulk(b"%d" % cursor), encode.bulks(map(conn.own, found))])


def _redis_type(conn: Connection, key: bytes) -> bytes:
    try:
        return _REDIS_TYPES[conn.policy(key).type]
    except NoPolicy:
        return b"none"


@command("KEYS", 2, "read", NO_KEYS, _GROUP, "Eventually-global keys by a glob.", solo=True)
async def keys(conn: Connection, args: list[bytes]) -> bytes:
    assert conn.caller is not None
    matches = compiled(args[1]).match
    found: list[bytes] = []
    prefix, after = conn.caller.prefix + literal_prefix(args[1]), b""
    bound = conn.node.limits.output_bytes_max // 2
    while True:
        page = conn.node.keys.scan(prefix, after, conn.node.limits.page_keys_max)
        own = [conn.own(key) for key in page if _shown(conn, key)]
        found += [key for key in own if matches(key)]
        bound -= sum(map(len, own))
        if bound < 0:
            raise RespError("TOOLARGE KEYS finds more than fits in one reply; use SCAN")
        if len(page) < conn.node.limits.page_keys_max:
            return encode.bulks(found)
        after = page[-1]
        await asyncio.sleep(0)


@command("DBSIZE", 1, "read", NO_KEYS, "server", "How many keys this client sees.", solo=True)
async def dbsize(conn: Connection, args: list[bytes]) -> bytes:
    assert conn.caller is not None
    count, after = 0, b""
    while True:
        page = conn.node.keys.scan(conn.caller.prefix, after, conn.node.limits.page_keys_max)
        count += sum([_shown(conn, key) for key in page])
        if len(page) < conn.node.limits.page_keys_max:
            return encode.integer(count)
        after = page[-1]
        await asyncio.sleep(0)
