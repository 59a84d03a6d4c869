"""Sessions without I/O: requests over a token, and what is known after each reply.

A client follows its session: each reply carries a fresh token, which names the last turn that
its bearer saw, so that a node which lacks turns says how many.
"""

from __future__ import annotations

import base64
import binascii
import json
import uuid
from collections.abc import Iterable, Mapping
from typing import Any, Literal, cast

import msgspec

from roost.requests import Request, canonical_json, digest_id, identifier, json_bytes, whole
from roost.types import ServedBy, Turn, Turns
from roost.wire import Command, as_map, text_of
from roost_crdt.errors import BadRequest, BadToken
from roost_crdt.limits import DEFAULT_LIMITS
from roost_crdt.token import Claims, claims_from_json

__all__ = ["CallState", "CallStatus", "OnConflict", "Opened", "SessionState", "open_session"]

OnConflict = Literal["reject", "append", "fork"]
CallStatus = Literal["fresh", "finished", "failed", "in_doubt"]

_ON_CONFLICT = ("reject", "append", "fork")
_SERVED_BY = ("home", "replica", "forwarded", "takeover")


class Opened(msgspec.Struct, frozen=True):
    """A session as it was opened or forked."""

    sid: str
    token: str
    home: str
    standby: str | None
    epoch: int
    turn: int


def open_session(token: str | None, sid: str | None) -> Request[Opened]:
    """Open a session: by token, by sid, or (with neither) a new one."""
    if token is not None and sid is not None:
        raise BadRequest("open takes a token or a sid, not both: a token names its session")
    name = _token(token) if token is not None else None
    if sid is not None:
        name = identifier(sid, "sid")
        if len(name.encode()) > DEFAULT_LIMITS.sid_bytes_max:
            raise BadRequest(f"sid must have at most {DEFAULT_LIMITS.sid_bytes_max} bytes")
    command: Command = ("ROOST.OPEN",) if name is None else ("ROOST.OPEN", name)
    # Without a name a repeat opens a second, empty session: harmless, it dies by its ttl.
    return Request((command,), _opened, repeat=True)


class SessionState:
    """What both faces of a session share: its newest token and the requests made from it."""

    def __init__(self, opened: Opened) -> None:
        self.sid = opened.sid
        self.token = opened.token
        self.home = opened.home
        self.standby = opened.standby
        self.epoch = opened.epoch
        self.turn = opened.turn
        self._order = _order(_claims(opened.token))

    def __repr__(self) -> str:
        return f"<Session {self.sid} at turn {self.turn}, home {self.home}>"

    def follow(self, token: str) -> None:
        """Keep `token` unless it is older than the one kept (replies of threads may cross)."""
        if not token or token == self.token:
            return
        claims = _claims(token)
        order = _order(claims)
        if order < self._order:
            return
        self.token, self._order = token, order
        if claims is not None:
            self.home, self.standby = claims.home, claims.standby
            self.epoch, self.turn = claims.epoch[0], claims.turn

    def turns_request(self, last: int | None) -> Request[Turns]:
        """Read the newest `last` turns (None = all)."""
        command: Command = ("ROOST.TURNS", self.token)
        if last is not None:
            command = (*command, whole(last, "last", 0))
        return Request((command,), self._read_turns, repeat=True, effect=False)

    def commit_request(
        self,
        messages: Iterable[Mapping[str, Any]],
        turn_id: str | None,
        base: int | None,
        put: Mapping[str, Mapping[str, Any]] | None,
        on_conflict: OnConflict,
    ) -> Request[Turn]:
        """Commit one turn under `turn_id` (made here if None), so that it may be repeated."""
        if isinstance(messages, (str, bytes, Mapping)):
            raise BadRequest("messages must be a sequence of dicts")
        kept = list(messages)
        for message in kept:
            if not isinstance(message, Mapping):
                raise BadRequest(f"a message is a dict, not {type(message).__name__}")
        if on_conflict not in _ON_CONFLICT:
            raise BadRequest(f"on_conflict is one of {', '.join(_ON_CONFLICT)}")
        named = uuid.uuid4().hex if turn_id is None else identifier(turn_id, "turn_id")
        body: dict[str, Any] = {"turn_id": named, "messages": [dict(message) for message in kept]}
        if base is not None:
            body["base"] = whole(base, "base", 0)
        if put:
            body["put"] = {policy: dict(fields) for policy, fields in _fields(put)}
        if on_conflict != "reject":
            body["on_conflict"] = on_conflict

        def parse(reply: Any) -> Turn:
            fields = as_map(reply)
            turn = Turn(
                token=text_of(fields.get("token")),
                number=int(fields["turn"]),
                stale_turns=int(fields.get("stale_turns") or 0),
                protected=bool(fields.get("protected")),
                served_by=_served_by(fields),
                turn_id=named,
                contested=bool(fields.get("contested")),
            )
            self.follow(turn.token)
            return turn

        command: Command = ("ROOST.TURN", self.token, json_bytes(body, "the turn"))
        return Request(
            (command,), parse, repeat=True, details={"request_id": named, "turn_id": named}
        )

    def show_request(self) -> Request[dict[str, Any]]:
        """Everything that the session holds beside its messages."""
        return Request((("ROOST.SESSION", self.token),), self._view, repeat=True, effect=False)

    def field_request(self, policy: str, name: str) -> Request[Any]:
        """One field of a session-local map, None if it is not set."""
        request = self.show_request()

        def parse(reply: Any) -> Any:
            fields = request.parse(reply).get("fields") or {}
            return (fields.get(policy) or {}).get(name)

        return Request(request.commands, parse, repeat=True, effect=False)

    def fork_request(self, at: int | None) -> Request[Opened]:
        """A new session with this one's turns up to `at` (None = all)."""
        command: Command = ("ROOST.FORK", self.token)
        if at is not None:
            command = (*command, whole(at, "at", 0))
        return Request((command,), _opened, repeat=True)

    def erase_request(self) -> Request[list[dict[str, Any]]]:
        """Drop the session everywhere, for ever; one receipt a holder."""
        return Request((("ROOST.ERASE", self.token),), _receipts, repeat=True)

    def _read_turns(self, reply: Any) -> Turns:
        fields = members(reply)
        self.follow(text_of(fields.get("token")))
        return Turns(
            messages=fields.get("messages") or [],
            turn=int(fields.get("turn") or 0),
            stale_turns=int(fields.get("stale_turns") or 0),
            served_by=_served_by(fields),
            lag_ms=int(fields.get("lag_ms") or 0),
        )

    def _view(self, reply: Any) -> dict[str, Any]:
        fields = members(reply)
        self.follow(text_of(fields.get("token")))
        return fields


class CallState:
    """A tool call in the session's ledger: the requests of its steps, and what is known of it.

    `key` names the call. `status` and `result` (parsed JSON) are those of the newest reply.
    """

    def __init__(
        self, session: SessionState, tool: str, args: Any, key: str | None, turn_id: str | None
    ) -> None:
        self.tool = identifier(tool, "tool")
        self.key = (
            _call_key(session.turn, tool, args, turn_id) if key is None else identifier(key, "key")
        )
        self.status: CallStatus = "in_doubt"
        self.result: Any = None
        self._session = session
        self._args = json_bytes(args, "args")

    def __repr__(self) -> str:
        return f"<Call {self.tool} {self.key}: {self.status}>"

    def begin_request(self, *, retry: bool = False) -> Request[None]:
        """Note that the call begins. `retry` opens the next attempt after a failed one."""
        return self._step("begun", {"retry": True} if retry else {}, repeat=not retry)

    def end_request(self, status: Literal["finished", "failed"], result: Any) -> Request[None]:
        """Note how the call ended; the same end twice changes nothing."""
        return self._step(status, {"result": msgspec.Raw(json_bytes(result, "the result"))})

    def _step(self, status: str, more: dict[str, Any], *, repeat: bool = True) -> Request[None]:
        body = {
            "call": self.key,
            "status": status,
            "tool": self.tool,
            "args": msgspec.Raw(self._args),
            **more,
        }

        def parse(reply: Any) -> None:
            fields = members(reply)
            self._session.follow(text_of(fields.get("token")))
            known = text_of(fields.get("status"))
            # Begun by somebody else, or by a process of ours that died: did the tool run?
            self.status = "in_doubt" if known == "begun" else cast("CallStatus", known)
            self.result = fields.get("result")

        command: Command = ("ROOST.CALL", self._session.token, msgspec.json.encode(body))
        return Request((command,), parse, repeat=repeat, details={"request_id": self.key})


def error_text(error: Any) -> Any:
    """What `fail` stores: an exception as its type and text, anything else as it is."""
    return f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else error


def _call_key(turn: int, tool: str, args: Any, turn_id: str | None) -> str:
    """The name of a call in one turn: equal for equal tool, arguments and turn.

    Without a `turn_id` the turn being prepared is named by the number of the turn before it,
    so that a process that died and came back asks under the same key.
    """
    named = turn_id if turn_id is not None else f"after {turn}"
    return digest_id(tool.encode(), canonical_json(args, "args"), named.encode())


def members(reply: Any) -> dict[str, Any]:
    """A reply's members, those named `x_json` parsed and renamed to `x`, strings as str."""
    fields: dict[str, Any] = {}
    for name, value in as_map(reply).items():
        if name.endswith("_json"):
            fields[name.removesuffix("_json")] = None if value is None else json.loads(value)
        else:
            fields[name] = text_of(value) if isinstance(value, bytes) else value
    return fields


def _opened(reply: Any) -> Opened:
    fields = members(reply)
    return Opened(
        sid=fields["sid"],
        token=fields["token"],
        home=fields.get("home") or "",
        standby=fields.get("standby") or None,
        epoch=int(fields.get("epoch") or 0),
        turn=int(fields.get("turn") or 0),
    )


def _receipts(reply: Any) -> list[dict[str, Any]]:
    if isinstance(reply, (bytes, str)):
        return cast("list[dict[str, Any]]", json.loads(reply))
    if isinstance(reply, list) and not (reply and isinstance(reply[0], bytes)):
        return [members(receipt) for receipt in reply]
    return cast("list[dict[str, Any]]", members(reply).get("receipts") or [])


def _served_by(fields: Mapping[str, Any]) -> ServedBy:
    served_by = text_of(fields.get("served_by"))
    return cast("ServedBy", served_by if served_by in _SERVED_BY else "home")


def _fields(
    put: Mapping[str, Mapping[str, Any]],
) -> Iterable[tuple[str, Mapping[str, Any]]]:
    if not isinstance(put, Mapping):
        raise BadRequest("put is {policy: {field: value or None}}")
    for policy, fields in put.items():
        if not isinstance(fields, Mapping):
            raise BadRequest(f"put[{policy!r}] must be a dict of fields")
        yield policy, fields


def _token(token: str) -> str:
    if not isinstance(token, str) or not token or len(token) > DEFAULT_LIMITS.token_bytes_max:
        raise BadToken("a session token is text of at most 2 KiB")
    if not token.isascii() or token.count(".") != 2:
        raise BadToken("not a session token: it has three parts with dots between them")
    return token


def _claims(token: str) -> Claims | None:
    """The claims of a token that the daemon has verified or made; None if they do not parse."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        payload = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        return claims_from_json(payload)
    except (BadToken, binascii.Error, ValueError):
        return None


def _order(claims: Claims | None) -> tuple[tuple[int, str], int]:
    return ((0, ""), 0) if claims is None else (claims.epoch, claims.turn)
