"""The ROOST.* commands on sessions. Where a token is asked for, a session id will do."""

from __future__ import annotations

from roost_crdt.errors import BadRequest
from roostd.api.bodies import CommitTurn, NamedCallStep
from roostd.api.jsontext import decode
from roostd.api.resp.connection import Connection
from roostd.api.resp.own import caller_of, flat, text_of, whole, with_json
from roostd.api.resp.table import NO_KEYS, command, wrong_arity

_GROUP = "roost"


def bearer(arg: bytes) -> tuple[str | None, str | None]:
    """(token, None) or (None, session id)."""
    text = text_of(arg, "token")
    if text.startswith("ey") and text.count(".") == 2:
        return text, None
    return None, text


@command(
    "ROOST.OPEN",
    -1,
    "write",
    NO_KEYS,
    _GROUP,
    "ROOST.OPEN [sid or token].",
    solo=True,
    session=True,
)
async def open_(conn: Connection, args: list[bytes]) -> bytes:
    if len(args) > 2:
        raise wrong_arity("roost.open")
    token, sid = bearer(args[1]) if len(args) == 2 else (None, None)
    return flat(conn, await conn.operations.sessions.open(caller_of(conn), token, sid))


@command(
    "ROOST.TURN",
    3,
    "write",
    NO_KEYS,
    _GROUP,
    "ROOST.TURN token body-json.",
    solo=True,
    session=True,
)
async def turn(conn: Connection, args: list[bytes]) -> bytes:
    token, sid = bearer(args[1])
    body = await decode(args[2], CommitTurn, conn.node.limits.nesting_max)
    return flat(conn, await conn.operations.sessions.commit(caller_of(conn), token, sid, body))


@command(
    "ROOST.TURNS", -2, "read", NO_KEYS, _GROUP, "ROOST.TURNS token [last].", solo=True, session=True
)
async def turns(conn: Connection, args: list[bytes]) -> bytes:
    if len(args) > 3:
        raise wrong_arity("roost.turns")
    token, sid = bearer(args[1])
    last = whole(args[2], "last", 0) if len(args) == 3 else None
    return flat(conn, await conn.operations.sessions.turns(caller_of(conn), token, sid, last))


@command(
    "ROOST.CALL",
    3,
    "write",
    NO_KEYS,
    _GROUP,
    "ROOST.CALL token body-json.",
    solo=True,
    session=True,
)
async def call(conn: Connection, args: list[bytes]) -> bytes:
    token, sid = bearer(args[1])
    body = await decode(args[2], NamedCallStep, conn.node.limits.nesting_max)
    sessions = conn.operations.sessions
    answer = await sessions.call(caller_of(conn), token, sid, body.call, body)
    if "result" in answer:
        answer["result_json"] = bytes(answer.pop("result"))
    return flat(conn, answer)


@command(
    "ROOST.SESSION",
    2,
    "read",
    NO_KEYS,
    _GROUP,
    "Everything beside the messages.",
    solo=True,
    session=True,
)
async def session(conn: Connection, args: list[bytes]) -> bytes:
    token, sid = bearer(args[1])
    view = await conn.operations.sessions.show(caller_of(conn), token, sid)
    return flat(conn, with_json(view))


@command(
    "ROOST.SESSIONS",
    -1,
    "read",
    NO_KEYS,
    _GROUP,
    "ROOST.SESSIONS [after [limit]].",
    solo=True,
    session=True,
)
async def sessions_(conn: Connection, args: list[bytes]) -> bytes:
    if len(args) > 3:
        raise wrong_arity("roost.sessions")
    try:
        after = args[1].decode() if len(args) > 1 else ""
    except UnicodeDecodeError:
        raise BadRequest("after is not UTF-8", field="after") from None
    limit = whole(args[2], "limit", 1) if len(args) > 2 else 100
    return flat(conn, await conn.operations.sessions.list(caller_of(conn), after, limit))


@command(
    "ROOST.FORK", -2, "write", NO_KEYS, _GROUP, "ROOST.FORK token [turn].", solo=True, session=True
)
async def fork(conn: Connection, args: list[bytes]) -> bytes:
    if len(args) > 3:
        raise wrong_arity("roost.fork")
    token, sid = bearer(args[1])
    at = whole(args[2], "at", 0) if len(args) == 3 else None
    return flat(conn, await conn.operations.sessions.fork(caller_of(conn), token, sid, at))


@command(
    "ROOST.ERASE",
    2,
    "write",
    NO_KEYS,
    _GROUP,
    "Drops a session everywhere, for ever.",
    solo=True,
    session=True,
)
async def erase(conn: Connection, args: list[bytes]) -> bytes:
    token, sid = bearer(args[1])
    return flat(conn, await conn.operations.sessions.erase(caller_of(conn), token, sid))


@command("ROOST.MOVE", 3, "admin", NO_KEYS, _GROUP, "ROOST.MOVE sid node.", solo=True, session=True)
async def move(conn: Connection, args: list[bytes]) -> bytes:
    caller = caller_of(conn)
    caller.require_admin()
    sid, node = text_of(args[1], "sid"), text_of(args[2], "node")
    return flat(conn, await conn.operations.sessions.move(caller, sid, node))
