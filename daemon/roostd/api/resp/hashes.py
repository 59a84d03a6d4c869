"""Hash commands: maps of this node, and (read only) the maps of a session."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from roost_crdt import values
from roost_crdt.errors import BadRequest, NoSession, Unsupported
from roost_crdt.policy import EVENTUALLY_GLOBAL, SESSION_LOCAL, Policy
from roost_crdt.rows import Leaf
from roostd.api import numbers
from roostd.api.globbing import compiled
from roostd.api.operations_sessions import session_of
from roostd.api.resp import encode
from roostd.api.resp.connection import Connection
from roostd.api.resp.options import read_scan_options
from roostd.api.resp.sets import page_of
from roostd.api.resp.shapes import leaf_bytes
from roostd.api.resp.table import (
    ONE_KEY,
    Reply,
    RespError,
    command,
    wrong_arity,
    wrong_type,
)

_GROUP = "hash"
Fields = dict[bytes, Leaf | int]


async def _session_fields(conn: Connection, policy: Policy, key: bytes) -> Fields:
    try:
        view = await conn.node.sessions.show(session_of(policy, key), None)
    except NoSession:
        return {}
    found = view.fields.get(policy.name, {})
    return {name.encode(): values.leaf_of(raw) for name, raw in found.items()}


def _with_fields(conn: Connection, key: bytes, answer: Callable[[Fields], bytes]) -> Reply:
    """`answer` over the fields at a key, now or, for a session's map, when they have come."""
    policy = conn.policy(key)
    if policy.type == "map" and policy.consistency == EVENTUALLY_GLOBAL:
        return answer(conn.node.keys.fields(key))
    if policy.type == "map":
        return _later(_session_fields(conn, policy, key), answer)
    if policy.consistency == EVENTUALLY_GLOBAL and not conn.node.keys.exists(key):
        return answer({})
    raise wrong_type()


async def _later(fields: Awaitable[Fields], answer: Callable[[Fields], bytes]) -> bytes:
    return answer(await fields)


def _one(
    conn: Connection, key: bytes, field: bytes, answer: Callable[[bytes | None], bytes]
) -> Reply:
    """`answer` over one field, without decoding the others where that is possible."""
    policy = conn.policy(key)
    if policy.type == "map" and policy.consistency == EVENTUALLY_GLOBAL:
        leaf = conn.node.keys.field(key, field)
        return answer(None if leaf is None else leaf_bytes(leaf))
    return _with_fields(
        conn, key, lambda fields: answer(leaf_bytes(fields[field]) if field in fields else None)
    )


def _to_write(conn: Connection, key: bytes) -> Policy:
    policy = conn.policy(key)
    if policy.consistency == SESSION_LOCAL:
        way = (
            f'ROOST.TURN with {{"put": {{"{policy.name}": ...}}}}'
            if policy.type == "map"
            else "ROOST.TURN or ROOST.CALL"
        )
        raise Unsupported(f"policy {policy.name} is session-local: write it by {way}")
    if policy.type != "map":
        shown = key.decode("utf-8", "backslashreplace")
        raise RespError(
            f"WRONGTYPE '{shown}' is a {policy.type} by policy {policy.name}, not a map"
        )
    return policy


def _put(conn: Connection, args: list[bytes], name: str) -> int:
    if len(args) % 2:
        raise wrong_arity(name)
    policy = _to_write(conn, args[1])
    fields = dict(zip(args[2::2], args[3::2], strict=True))
    if policy.counter_fields:
        raise Unsupported(
            f'policy {policy.name} has fields = "counter": use HINCRBY, which regions can add up'
        )
    return conn.node.keys.map_put(args[1], dict(fields))


@command("HSET", -4, "write", ONE_KEY, _GROUP, "Sets fields; how many are new.")
def hset(conn: Connection, args: list[bytes]) -> Reply:
    return encode.integer(_put(conn, args, "hset"))


@command("HMSET", -4, "write", ONE_KEY, _GROUP, "Sets fields.")
def hmset(conn: Connection, args: list[bytes]) -> Reply:
    _put(conn, args, "hmset")
    return encode.OK


@command("HSETNX", 4, "write", ONE_KEY, _GROUP, "Refused: two regions would both win.")
def hsetnx(conn: Connection, args: list[bytes]) -> Reply:
    _to_write(conn, args[1])
    raise Unsupported("HSETNX: two regions would both win; use SET NX on a linearizable key")


@command("HDEL", -3, "write", ONE_KEY, _GROUP, "Removes fields; how many were there.")
def hdel(conn: Connection, args: list[bytes]) -> Reply:
    policy = conn.policy(args[1])
    if (
        policy.consistency == EVENTUALLY_GLOBAL
        and policy.type != "map"
        and not conn.node.keys.exists(args[1])
    ):
        return encode.ZERO
    _to_write(conn, args[1])
    return encode.integer(conn.node.keys.map_drop(args[1], args[2:]))


@command("HINCRBY", 4, "write", ONE_KEY, _GROUP, 'Adds where the policy says fields = "counter".')
def hincrby(conn: Connection, args: list[bytes]) -> Reply:
    by = numbers.parse_int(args[3])
    _to_write(conn, args[1])
    return encode.integer(_add(conn, args[1], args[2], by))


def _add(conn: Connection, key: bytes, field: bytes, by: int) -> int:
    if not numbers.INT64_MIN <= by <= numbers.INT64_MAX:
        raise RespError("ERR increment or decrement would overflow")
    try:
        return conn.node.keys.map_incr(key, field, by)
    except BadRequest as error:
        if len(field) > conn.node.limits.field_bytes_max:
            raise
        raise RespError("ERR increment or decrement would overflow") from error


@command("HINCRBYFLOAT", 4, "write", ONE_KEY, _GROUP, "Adds a number to a counting field.")
def hincrbyfloat(conn: Connection, args: list[bytes]) -> Reply:
    by = numbers.parse_scaled(args[3])
    policy = _to_write(conn, args[1])
    whole, fraction = divmod(by, numbers.SCALE)
    if fraction and policy.counter_fields:
        raise Unsupported(
            f"HINCRBYFLOAT by a fraction: the fields of policy {policy.name} count whole numbers; "
            "use INCRBYFLOAT on a counter with float = true, one key for each field"
        )
    return encode.bulk(b"%d" % _add(conn, args[1], args[2], whole))


@command("HGET", 3, "read", ONE_KEY, _GROUP, "One field.")
def hget(conn: Connection, args: list[bytes]) -> Reply:
    return _one(conn, args[1], args[2], lambda value: encode.bulk_or_null(value, conn.resp3))


@command("HEXISTS", 3, "read", ONE_KEY, _GROUP, "Whether a field is there.")
def hexists(conn: Connection, args: list[bytes]) -> Reply:
    return _one(conn, args[1], args[2], lambda value: encode.ZERO if value is None else encode.ONE)


@command("HSTRLEN", 3, "read", ONE_KEY, _GROUP, "The length of a field's value.")
def hstrlen(conn: Connection, args: list[bytes]) -> Reply:
    return _one(conn, args[1], args[2], lambda value: encode.integer(len(value or b"")))


@command("HMGET", -3, "read", ONE_KEY, _GROUP, "Several fields.")
def hmget(conn: Connection, args: list[bytes]) -> Reply:
    def answer(fields: Fields) -> bytes:
        wanted = (fields.get(name) for name in args[2:])
        return encode.array(
            [
                encode.bulk_or_null(None if leaf is None else leaf_bytes(leaf), conn.resp3)
                for leaf in wanted
            ]
        )

    return _with_fields(conn, args[1], answer)


@command("HGETALL", 2, "read", ONE_KEY, _GROUP, "All fields and values.")
def hgetall(conn: Connection, args: list[bytes]) -> Reply:
    return _with_fields(
        conn,
        args[1],
        lambda fields: encode.map_of(
            [(encode.bulk(name), encode.bulk(leaf_bytes(leaf))) for name, leaf in fields.items()],
            conn.resp3,
        ),
    )


@command("HKEYS", 2, "read", ONE_KEY, _GROUP, "All field names.")
def hkeys(conn: Connection, args: list[bytes]) -> Reply:
    return _with_fields(conn, args[1], encode.bulks)


@command("HVALS", 2, "read", ONE_KEY, _GROUP, "All values.")
def hvals(conn: Connection, args: list[bytes]) -> Reply:
    return _with_fields(
        conn, args[1], lambda fields: encode.bulks(map(leaf_bytes, fields.values()))
    )


@command("HLEN", 2, "read", ONE_KEY, _GROUP, "How many fields there are.")
def hlen(conn: Connection, args: list[bytes]) -> Reply:
    return _with_fields(conn, args[1], lambda fields: encode.integer(len(fields)))


@command("HSCAN", -3, "read", ONE_KEY, _GROUP, "Fields and values page by page.")
def hscan(conn: Connection, args: list[bytes]) -> Reply:
    place = conn.server.cursors.place(args[2])
    options = read_scan_options(args[3:])

    def answer(fields: Fields) -> bytes:
        page, cursor = page_of(conn, sorted(fields), place, options.count)
        if options.match is not None:
            matches = compiled(options.match).match
            page = [name for name in page if matches(name)]
        flat: list[bytes] = []
        for name in page:
            flat += (name, leaf_bytes(fields[name]))
        return encode.array([encode.bulk(b"%d" % cursor), encode.bulks(flat)])

    return _with_fields(conn, args[1], answer)
