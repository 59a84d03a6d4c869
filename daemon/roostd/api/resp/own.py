"""The ROOST.* commands on keys, quotas and the node. Those on sessions are in own_sessions.

Each answers a map (a flat array in RESP2) of what HTTP answers; nested members are JSON text
under the name `x_json`.
"""

from __future__ import annotations

import os

import msgspec

from roost_crdt.errors import BadRequest
from roostd.api.bodies import PatchValue
from roostd.api.caller import READ, Caller
from roostd.api.globbing import compiled, literal_prefix
from roostd.api.jsontext import decode
from roostd.api.numbers import NotANumber, parse_int
from roostd.api.operations import Result
from roostd.api.operations_quotas import new_id, plain
from roostd.api.resp import encode
from roostd.api.resp.connection import Connection
from roostd.api.resp.table import NO_KEYS, command, syntax_error, wrong_arity

_GROUP = "roost"
BACKUP_ID_BYTES = 16


def text_of(arg: bytes, what: str) -> str:
    """An argument that must be UTF-8 text and not empty."""
    try:
        text = arg.decode()
    except UnicodeDecodeError:
        raise BadRequest(f"{what} is not UTF-8", field=what) from None
    if not text:
        raise BadRequest(f"{what} is empty", field=what)
    return text


def request_id_of(conn: Connection, arg: bytes) -> str:
    if len(arg) > conn.node.limits.request_id_bytes_max:
        raise BadRequest(
            f"a request id has at most {conn.node.limits.request_id_bytes_max} bytes",
            field="request_id",
        )
    return text_of(arg, "request_id")


def whole(arg: bytes, what: str, least: int) -> int:
    """An argument that must be a whole number."""
    try:
        value = parse_int(arg)
    except NotANumber:
        value = least - 1
    if value < least:
        raise BadRequest(f"{what} must be a whole number of at least {least}", field=what)
    return value


def caller_of(conn: Connection) -> Caller:
    assert conn.caller is not None, "execute() lets nobody else through"
    return conn.caller


def flat(conn: Connection, result: Result) -> bytes:
    return encode.encode_flat(result, conn.resp3)


@command(
    "ROOST.HELLO", 1, "read", NO_KEYS, _GROUP, "Who this node is, and how far its store.", solo=True
)
def hello(conn: Connection, args: list[bytes]) -> bytes:
    known = {"lag_ms": conn.node.lag_ms(), "prefix": caller_of(conn).prefix}
    return flat(conn, {**conn.node.hello(), **known})


@command("ROOST.GET", 2, "read", NO_KEYS, _GROUP, "A key of any consistency, as JSON.", solo=True)
async def get(conn: Connection, args: list[bytes]) -> bytes:
    found = await conn.operations.get(caller_of(conn), args[1])
    value = found.pop("value")
    text = value if value is None else msgspec.json.encode(plain(value))
    return flat(conn, {**found, "value_json": text})


def _written(conn: Connection, result: Result) -> bytes:
    answer: Result = {"seq": result["seq"], "durable": int(result["durable"])}
    if "value" in result:
        answer["value_json"] = msgspec.json.encode(result["value"])
    return flat(conn, answer)


@command("ROOST.SET", -3, "write", NO_KEYS, _GROUP, "ROOST.SET key json [PX ms].", solo=True)
async def set_(conn: Connection, args: list[bytes]) -> bytes:
    ttl_ms = None
    if len(args) == 5 and args[3].upper() == b"PX":
        ttl_ms = whole(args[4], "ttl_ms", 1)
    elif len(args) != 3:
        raise syntax_error()
    await decode(args[2], msgspec.Raw, conn.node.limits.nesting_max, "the value")
    return _written(conn, await conn.operations.put(caller_of(conn), args[1], args[2], ttl_ms))


@command("ROOST.INCR", -2, "write", NO_KEYS, _GROUP, "ROOST.INCR key [n [request_id]].", solo=True)
async def incr(conn: Connection, args: list[bytes]) -> bytes:
    if len(args) > 4:
        raise wrong_arity("roost.incr")
    request_id = request_id_of(conn, args[3]) if len(args) == 4 else None
    amount = args[2] if len(args) > 2 else b"1"
    done = await conn.operations.incr(caller_of(conn), args[1], amount, request_id)
    return _written(conn, done)


@command("ROOST.DEL", -2, "write", NO_KEYS, _GROUP, "ROOST.DEL key [request_id].", solo=True)
async def delete(conn: Connection, args: list[bytes]) -> bytes:
    if len(args) > 3:
        raise wrong_arity("roost.del")
    request_id = request_id_of(conn, args[2]) if len(args) == 3 else None
    return _written(conn, await conn.operations.delete(caller_of(conn), args[1], request_id))


@command("ROOST.UPDATE", 3, "write", NO_KEYS, _GROUP, "Changes parts, by a body.", solo=True)
async def update(conn: Connection, args: list[bytes]) -> bytes:
    body = await decode(args[2], PatchValue, conn.node.limits.nesting_max)
    return _written(conn, await conn.operations.patch(caller_of(conn), args[1], body))


@command("ROOST.KEYS", 4, "read", NO_KEYS, _GROUP, "ROOST.KEYS pattern after limit.", solo=True)
def keys(conn: Connection, args: list[bytes]) -> bytes:
    limit = whole(args[3], "limit", 1)
    matches = compiled(args[1]).match
    prefix = literal_prefix(args[1])
    after, found = args[2], list[bytes]()
    for _ in range(_PAGES_PER_CALL):
        page = conn.operations.list_keys(caller_of(conn), prefix, after, limit)
        found += [key for key in page if matches(key)]
        if len(page) < min(limit, conn.node.limits.page_keys_max) or len(found) >= limit:
            break
        after = page[-1]
    return encode.bulks(found[:limit])


_PAGES_PER_CALL = 1_000


@command("ROOST.POLICY", 2, "read", NO_KEYS, _GROUP, "The policy of a key, and why.", solo=True)
def policy(conn: Connection, args: list[bytes]) -> bytes:
    return flat(conn, with_json(conn.operations.policy(caller_of(conn), args[1])))


@command("ROOST.POLICIES", 1, "read", NO_KEYS, _GROUP, "All policies.", solo=True)
def policies(conn: Connection, args: list[bytes]) -> bytes:
    return flat(conn, {"policies": conn.operations.policies()})


@command("ROOST.STATUS", 1, "read", NO_KEYS, _GROUP, "Node, links, store, consensus.", solo=True)
def status(conn: Connection, args: list[bytes]) -> bytes:
    return flat(conn, with_json(plain(conn.node.status())))


def with_json(result: Result) -> Result:
    """`result` and, as `json`, its whole text."""
    return {**result, "json": msgspec.json.encode(result)}


# --- quotas ---------------------------------------------------------------------------------------


@command("ROOST.SPEND", -3, "write", NO_KEYS, _GROUP, "ROOST.SPEND key n [request_id].", solo=True)
async def spend(conn: Connection, args: list[bytes]) -> bytes:
    if len(args) > 4:
        raise wrong_arity("roost.spend")
    n = whole(args[2], "n", 1)
    request_id = request_id_of(conn, args[3]) if len(args) == 4 else new_id()
    return flat(conn, await conn.operations.quotas.spend(caller_of(conn), args[1], n, request_id))


@command("ROOST.RESERVE", 5, "write", NO_KEYS, _GROUP, "ROOST.RESERVE key n id ttl-ms.", solo=True)
async def reserve(conn: Connection, args: list[bytes]) -> bytes:
    n, ttl_ms = whole(args[2], "n", 1), whole(args[4], "ttl_ms", 1)
    request_id = request_id_of(conn, args[3])
    caller = caller_of(conn)
    return flat(conn, await conn.operations.quotas.reserve(caller, args[1], n, request_id, ttl_ms))


@command("ROOST.SETTLE", 3, "write", NO_KEYS, _GROUP, "ROOST.SETTLE id used.", solo=True)
async def settle(conn: Connection, args: list[bytes]) -> bytes:
    used = whole(args[2], "used", 0)
    done = await conn.operations.quotas.settle(caller_of(conn), text_of(args[1], "id"), used)
    return flat(conn, done)


@command("ROOST.RELEASE", 2, "write", NO_KEYS, _GROUP, "ROOST.RELEASE id.", solo=True)
async def release(conn: Connection, args: list[bytes]) -> bytes:
    return flat(conn, await conn.operations.quotas.release(caller_of(conn), text_of(args[1], "id")))


@command(
    "ROOST.QUOTA",
    -2,
    "read",
    NO_KEYS,
    _GROUP,
    "ROOST.QUOTA key | SET key n | FORFEIT key node.",
    solo=True,
)
async def quota(conn: Connection, args: list[bytes]) -> bytes:
    caller, operations = caller_of(conn), conn.operations
    if len(args) == 2:
        return flat(conn, await operations.quotas.show(caller, args[1]))
    if len(args) == 4 and args[1].upper() == b"SET":
        limit = whole(args[3], "limit", 0)
        return flat(conn, await operations.quotas.set_limit(caller, args[2], limit))
    if len(args) == 4 and args[1].upper() == b"FORFEIT":
        node = text_of(args[3], "node")
        return flat(conn, await operations.quotas.forfeit(caller, args[2], node))
    raise syntax_error()


# --- the node -------------------------------------------------------------------------------------


@command("ROOST.DRAIN", 1, "admin", NO_KEYS, _GROUP, "Hands all sessions over.", solo=True)
async def drain(conn: Connection, args: list[bytes]) -> bytes:
    caller_of(conn).require_admin()
    return flat(conn, {"remaining": await conn.node.drain()})


@command("ROOST.BACKUP", -1, "admin", NO_KEYS, _GROUP, "ROOST.BACKUP [cursor].", solo=True)
def backup(conn: Connection, args: list[bytes]) -> bytes:
    caller_of(conn).require_admin()
    if len(args) > 2:
        raise wrong_arity("roost.backup")
    node, cursor = conn.node, args[1] if len(args) == 2 else b""
    me = node.config.node
    about = {"node": me.id, "region": me.region, "cluster": me.cluster}
    page = node.store.backup(cursor, about, node.now_ms(), os.urandom(BACKUP_ID_BYTES))
    return flat(conn, page._asdict())


@command("ROOST.MEMBERS", 1, "read", NO_KEYS, _GROUP, "Who takes part in collection.", solo=True)
def members(conn: Connection, args: list[bytes]) -> bytes:
    caller_of(conn).require(READ, b"")
    return flat(conn, {"members": plain(conn.node.membership.listed())})


@command("ROOST.MEMBER", 3, "admin", NO_KEYS, _GROUP, "ROOST.MEMBER REMOVE id.", solo=True)
async def member(conn: Connection, args: list[bytes]) -> bytes:
    caller_of(conn).require_admin()
    if args[1].upper() != b"REMOVE":
        raise syntax_error()
    node = text_of(args[2], "id")
    actor = conn.node.membership.remove(node)
    await conn.node.durable()
    return flat(conn, {"removed": node, "actor": f"{actor:016x}"})
