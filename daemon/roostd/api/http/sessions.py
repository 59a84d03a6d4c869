"""/v1/sessions."""

from __future__ import annotations

import hashlib

from starlette.responses import Response

from roost_crdt.errors import BadRequest
from roostd.api import bodies, jsontext
from roostd.api.http.answers import answer, session_answer
from roostd.api.http.request import Call
from roostd.api.http.routes import IDEMPOTENCY, LIMIT, TABLE, TOKEN, Parameter
from roostd.api.operations import Result

_HEADERS = ("Roost-Token", "Roost-Stale-Turns", "Roost-Served-By", "Roost-Lag-Ms", "Roost-Home")
_OPENED = ("Roost-Token", "Roost-Served-By", "Roost-Home")
_READ_ERRORS = ("BADREQUEST", "BADTOKEN", "NOSESSION", "UNAVAILABLE", "SESSIONUNAVAILABLE")
_WRITE_ERRORS = (*_READ_ERRORS, "TURNCONFLICT", "TOOLARGE", "UNKNOWNOUTCOME", "FULL")

LAST = Parameter("last", "query", "only the newest turns", "integer", {"minimum": 0})


@TABLE.add(
    "POST",
    "/v1/sessions",
    "Open a session",
    "sessions",
    body=bodies.OpenSession,
    body_required=False,
    parameters=(TOKEN,),
    answers={
        201: (bodies.SessionOpened, "A new session; this node is its home."),
        200: (bodies.SessionOpened, "A known session, with a fresh token."),
    },
    headers=_OPENED,
    errors=_READ_ERRORS,
)
async def open_session(call: Call) -> Response:
    caller = call.caller
    body = await call.body(bodies.OpenSession, optional=True)
    opened = await call.operations.sessions.open(caller, call.token, body.sid)
    status = 201 if opened["created"] else 200
    return session_answer(call, opened, status, hide=("created", "served_by"))


@TABLE.add(
    "GET",
    "/v1/sessions",
    "List the sessions that this node holds",
    "sessions",
    parameters=(
        Parameter("after", "query", "the last sid of the page before"),
        LIMIT,
    ),
    answers={200: (bodies.SessionList, "A page in order of sid.")},
)
async def list_sessions(call: Call) -> Response:
    limit = call.query_number("limit", 100, 1) or 100
    page = await call.operations.sessions.list(call.caller, call.query("after") or "", limit)
    return answer(page)


@TABLE.add(
    "GET",
    "/v1/sessions/{sid}",
    "Everything beside the messages",
    "sessions",
    parameters=(TOKEN,),
    answers={200: (bodies.SessionView, "The session as this node serves it.")},
    headers=_HEADERS,
    errors=_READ_ERRORS,
)
async def show_session(call: Call) -> Response:
    sid = call.path_text("sid")
    view = await call.operations.sessions.show(call.caller, call.token, sid)
    return session_answer(call, view, hide=("token",))


@TABLE.add(
    "DELETE",
    "/v1/sessions/{sid}",
    "Erase a session everywhere, for ever",
    "sessions",
    parameters=(TOKEN,),
    answers={200: (bodies.Receipts, "One receipt for each node that held something of it.")},
    errors=_READ_ERRORS,
)
async def erase_session(call: Call) -> Response:
    sid = call.path_text("sid")
    return answer(await call.operations.sessions.erase(call.caller, call.token, sid))


@TABLE.add(
    "GET",
    "/v1/sessions/{sid}/turns",
    "The conversation",
    "sessions",
    parameters=(TOKEN, LAST),
    answers={200: (bodies.TurnsRead, "Messages along the active path, as they were sent.")},
    headers=_HEADERS,
    errors=_READ_ERRORS,
)
async def read_turns(call: Call) -> Response:
    sid = call.path_text("sid")
    last = call.query_number("last", None)
    read = await call.operations.sessions.turns(call.caller, call.token, sid, last)
    return session_answer(call, read, hide=("token", "home"))


@TABLE.add(
    "POST",
    "/v1/sessions/{sid}/turns",
    "Commit a turn",
    "sessions",
    body=bodies.CommitTurn,
    parameters=(TOKEN, IDEMPOTENCY),
    answers={200: (bodies.TurnCommitted, "The turn is durable.")},
    headers=_HEADERS,
    errors=_WRITE_ERRORS,
)
async def commit_turn(call: Call) -> Response:
    sid, caller, request_id = call.path_text("sid"), call.caller, call.request_id
    body = await call.body(bodies.CommitTurn)
    done = await call.operations.sessions.commit(caller, call.token, sid, body, request_id)
    return session_answer(call, done, hide=("sid", "home", "lag_ms"))


@TABLE.add(
    "PUT",
    "/v1/sessions/{sid}/calls/{call}",
    "Record a step of a tool call",
    "sessions",
    body=bodies.CallStep,
    parameters=(TOKEN, IDEMPOTENCY),
    answers={200: (bodies.CallAnswer, "What is known of the call; fresh = it may run now.")},
    headers=_HEADERS,
    errors=(*_WRITE_ERRORS, "CALLCONFLICT"),
)
async def record_call(call: Call) -> Response:
    sid, key = call.path_text("sid"), call.path_text("call")
    if len(key.encode()) > call.node.limits.request_id_bytes_max:
        raise BadRequest("the call's key is too long", field="call")
    caller, request_id = call.caller, call.request_id
    raw = await call.body_bytes()
    body = await _decoded(call, raw)

    async def record() -> Result:
        return await call.operations.sessions.call(caller, call.token, sid, key, body)

    if request_id is None:
        done = await record()
    else:
        digest = hashlib.blake2b(raw, digest_size=16).digest()
        place = (caller.name, sid, key, request_id)
        done = await call.operations.repeats.once(place, digest, record)
    return session_answer(
        call, dict(done), hide=("token", "home", "served_by", "stale_turns", "lag_ms")
    )


async def _decoded(call: Call, raw: bytes) -> bodies.CallStep:
    if not raw.strip():
        raise BadRequest("the request needs a JSON body", field="body")
    return await jsontext.decode(raw, bodies.CallStep, call.node.limits.nesting_max)


@TABLE.add(
    "POST",
    "/v1/sessions/{sid}/fork",
    "Fork a session",
    "sessions",
    body=bodies.ForkSession,
    body_required=False,
    parameters=(TOKEN,),
    answers={201: (bodies.SessionOpened, "A new session with the turns up to there.")},
    headers=_OPENED,
    errors=_READ_ERRORS,
)
async def fork_session(call: Call) -> Response:
    sid, caller = call.path_text("sid"), call.caller
    body = await call.body(bodies.ForkSession, optional=True)
    opened = await call.operations.sessions.fork(caller, call.token, sid, body.at)
    return session_answer(call, opened, 201, hide=("created", "served_by"))


@TABLE.add(
    "POST",
    "/v1/sessions/{sid}/move",
    "Hand a session's home over to another node",
    "sessions",
    body=bodies.MoveSession,
    answers={200: (dict[str, str | int | None], "The session at its new home.")},
    errors=_READ_ERRORS,
)
async def move_session(call: Call) -> Response:
    sid, caller = call.path_text("sid"), call.caller
    caller.require_admin()
    body = await call.body(bodies.MoveSession)
    return answer(await call.operations.sessions.move(caller, sid, body.node))
