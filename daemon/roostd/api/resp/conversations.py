"""List commands: a conversation, read as its messages. Writing goes through a turn."""

from __future__ import annotations

from roost_crdt.errors import NoSession, Unsupported
from roost_crdt.policy import EVENTUALLY_GLOBAL, SESSION_LOCAL
from roostd.api import numbers
from roostd.api.operations_sessions import session_of
from roostd.api.resp import encode
from roostd.api.resp.connection import Connection
from roostd.api.resp.table import ONE_KEY, Reply, command, wrong_type

_GROUP = "list"


async def _messages(conn: Connection, key: bytes) -> list[bytes]:
    """The messages of the session's active path; empty if there is no such session."""
    try:
        read = await conn.node.sessions.turns(session_of(conn.policy(key), key), None, None)
    except NoSession:
        return []
    return list(read.messages)


def _is_empty(conn: Connection, key: bytes) -> bool:
    """True where Redis would find no list; WRONGTYPE for a key that is none."""
    policy = conn.policy(key)
    if policy.type == "conversation":
        return False
    if policy.consistency == EVENTUALLY_GLOBAL and not conn.node.keys.exists(key):
        return True
    raise wrong_type()


@command("LRANGE", 4, "read", ONE_KEY, _GROUP, "Messages of a conversation.")
def lrange(conn: Connection, args: list[bytes]) -> Reply:
    start, stop = numbers.parse_int(args[2]), numbers.parse_int(args[3])
    if _is_empty(conn, args[1]):
        return encode.EMPTY_ARRAY
    return _range(conn, args[1], start, stop)


async def _range(conn: Connection, key: bytes, start: int, stop: int) -> bytes:
    messages = await _messages(conn, key)
    size = len(messages)
    first = max(start + size, 0) if start < 0 else start
    last = stop + size if stop < 0 else stop
    return encode.bulks(messages[first : last + 1] if last >= 0 else [])


@command("LLEN", 2, "read", ONE_KEY, _GROUP, "How many messages a conversation has.")
def llen(conn: Connection, args: list[bytes]) -> Reply:
    return encode.ZERO if _is_empty(conn, args[1]) else _length(conn, args[1])


async def _length(conn: Connection, key: bytes) -> bytes:
    return encode.integer(len(await _messages(conn, key)))


@command("LINDEX", 3, "read", ONE_KEY, _GROUP, "One message of a conversation.")
def lindex(conn: Connection, args: list[bytes]) -> Reply:
    index = numbers.parse_int(args[2])
    if _is_empty(conn, args[1]):
        return encode.null(conn.resp3)
    return _index(conn, args[1], index)


async def _index(conn: Connection, key: bytes, index: int) -> bytes:
    messages = await _messages(conn, key)
    there = -len(messages) <= index < len(messages)
    return encode.bulk_or_null(messages[index] if there else None, conn.resp3)


def _refuse(conn: Connection, args: list[bytes]) -> Reply:
    policy = conn.policy(args[1])
    name = args[0].decode("ascii", "replace").upper()
    if policy.consistency == SESSION_LOCAL:
        raise Unsupported(
            f"{name} on a session: a conversation grows by whole turns; use ROOST.TURN (or POST "
            "/v1/sessions/SID/turns), and a summary entry to trim it"
        )
    raise Unsupported(
        f"{name}: there are no lists beside conversations, because regions that push at once "
        "would interleave; use a session (ROOST.TURN) or a set (SADD)"
    )


for _name, _arity in {
    "RPUSH": -3,
    "LPUSH": -3,
    "RPUSHX": -3,
    "LPUSHX": -3,
    "RPOP": -2,
    "LPOP": -2,
    "LTRIM": 4,
    "LSET": 4,
    "LREM": 4,
    "LINSERT": 5,
    "LPOS": -3,
}.items():
    command(_name, _arity, "write", ONE_KEY, _GROUP, "Refused: see ROOST.TURN.")(_refuse)
