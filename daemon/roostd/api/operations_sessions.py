"""What a session operation means, once for both faces."""

from __future__ import annotations

import base64
from typing import Any

import msgspec

from roost_crdt.errors import BadRequest, NoPerm, NoSession, TooLarge, Unsupported
from roost_crdt.policy import SESSION_LOCAL, Policy
from roostd.api.bodies import CallStep, CommitTurn
from roostd.api.caller import ADMIN, READ, WRITE, Caller
from roostd.api.jsontext import is_object, raw_parts
from roostd.node import Node

Result = dict[str, Any]


class SessionOperations:
    """Reads and writes of sessions; every method raises RoostError.

    Answers carry `token`, `home`, `served_by` and `stale_turns` where there are such: HTTP
    shows them as headers too. `sid` None means the one in the token.
    """

    def __init__(self, node: Node) -> None:
        self.node = node

    async def open(self, caller: Caller, token: str | None, sid: str | None) -> Result:
        """`{sid, token, home, standby, epoch, turn, created, served_by}`."""
        self._require(caller, WRITE, sid, token=token)
        return _opened(await self.node.sessions.open(token, sid))

    async def turns(
        self, caller: Caller, token: str | None, sid: str | None, last: int | None
    ) -> Result:
        """`{messages, turn, stale_turns, served_by, lag_ms, token, home}`."""
        self._require(caller, READ, sid, "conversation", token)
        read = await self.node.sessions.turns(sid, token, last)
        return {
            "messages": [msgspec.Raw(message) for message in read.messages],
            "turn": read.turn,
            "stale_turns": read.stale_turns,
            "served_by": read.served_by,
            "lag_ms": read.lag_ms,
            "token": read.token,
            "home": read.home,
        }

    async def commit(
        self,
        caller: Caller,
        token: str | None,
        sid: str | None,
        body: CommitTurn,
        request_id: str | None = None,
    ) -> Result:
        """`{sid, token, turn, stale_turns, protected, served_by, home, lag_ms, contested?}`."""
        self._require(caller, WRITE, sid, "conversation", token)
        messages = [bytes(message) for message in body.messages]
        for index, message in enumerate(messages):
            if not is_object(message):
                raise BadRequest(
                    f"messages[{index}] is not a JSON object", field=f"messages[{index}]"
                )
        size = sum(map(len, messages))
        if size > self.node.limits.value_bytes_max:
            raise TooLarge(
                f"the messages of a turn have {size} bytes, over limits.value_max "
                f"({self.node.limits.value_bytes_max})",
                field="messages",
            )
        done = await self.node.sessions.commit(
            sid,
            token,
            messages=messages,
            turn_id=body.turn_id or request_id,
            base=body.base,
            put=self._put(caller, token, sid, body),
            on_conflict=body.on_conflict,
        )
        answer: Result = {
            "sid": getattr(done, "sid", sid),
            "token": done.token,
            "turn": done.turn,
            "stale_turns": done.stale_turns,
            "protected": done.protected,
            "served_by": done.served_by,
            "home": done.home,
            "lag_ms": 0,
        }
        if getattr(done, "contested", False):
            answer["contested"] = True
        return answer

    async def call(
        self, caller: Caller, token: str | None, sid: str | None, call: str, body: CallStep
    ) -> Result:
        """`{status, result?, token, served_by, stale_turns, home, lag_ms}`."""
        self._require(caller, WRITE, sid, "ledger", token)
        if body.status == "begun" and body.tool is None:
            raise BadRequest("a call that begins names its tool", field="tool")
        result = bytes(body.result)
        if result and body.status == "begun":
            raise BadRequest("a call that begins has no result", field="result")
        args = bytes(body.args)
        if len(result) + len(args) > self.node.limits.value_bytes_max:
            raise TooLarge("args and result are over limits.value_max", field="result")
        reply = await self.node.sessions.call(
            sid,
            token,
            call,
            status=body.status,
            tool=body.tool,
            args=args or (b"{}" if body.status == "begun" else None),
            result=result or None,
            retry=body.retry,
        )
        answer: Result = {"status": reply.status, "token": reply.token}
        if reply.result is not None:
            answer["result"] = msgspec.Raw(reply.result)
        served = {name: getattr(reply, name) for name in ("served_by", "stale_turns", "home")}
        return {**answer, **served, "lag_ms": 0}

    async def show(self, caller: Caller, token: str | None, sid: str | None) -> Result:
        """The members of GET session, with `token` and `lag_ms`."""
        self._require(caller, READ, sid, token=token)
        return _view(await self.node.sessions.show(sid, token))

    async def fork(
        self, caller: Caller, token: str | None, sid: str | None, at: int | None
    ) -> Result:
        self._require(caller, WRITE, sid, token=token)
        return _opened(await self.node.sessions.fork(sid, token, at))

    async def erase(self, caller: Caller, token: str | None, sid: str | None) -> Result:
        """`{receipts}`: one for each node that held something of the session."""
        self._require(caller, WRITE, sid, token=token)
        receipts = await self.node.sessions.erase(sid, token)
        return {"receipts": [_plain(receipt) for receipt in receipts]}

    async def list(self, caller: Caller, after: str, limit: int) -> Result:
        """`{sessions, next}`, in order of sid."""
        self._require(caller, READ, None)
        limit = max(1, min(limit, self.node.limits.page_keys_max))
        found = await self.node.sessions.list(after, limit)
        sessions = [_plain(session) for session in found]
        last = sessions[-1].get("sid") if len(sessions) == limit else None
        return {"sessions": sessions, "next": last}

    async def move(self, caller: Caller, sid: str, node: str) -> Result:
        """Hand a session's home over to another node."""
        self._require(caller, ADMIN, sid)
        moved = _plain(await self.node.sessions.move(sid, node))
        return moved if isinstance(moved, dict) else {"sid": sid, "home": node}

    async def value(self, policy: Policy, stored: bytes) -> tuple[msgspec.Raw | None, int]:
        """A session-local key (`policy:sid`) as JSON text, and its copy's age in ms."""
        sid = session_of(policy, stored)
        try:
            if policy.type == "conversation":
                read = await self.node.sessions.turns(sid, None, None)
                return msgspec.Raw(b"[" + b",".join(read.messages) + b"]"), read.lag_ms
            view = _view(await self.node.sessions.show(sid, None))
        except NoSession:
            return None, 0
        part = view["calls"] if policy.type == "ledger" else view["fields"].get(policy.name)
        return None if part is None else msgspec.Raw(msgspec.json.encode(part)), view["lag_ms"]

    # --- inside -------------------------------------------------------------------------------

    def _put(
        self, caller: Caller, token: str | None, sid: str | None, body: CommitTurn
    ) -> dict[str, dict[str, bytes | None]]:
        put: dict[str, dict[str, bytes | None]] = {}
        policies = self.node.policies.policies
        for name, fields in body.put.items():
            policy = policies.get(name)
            if policy is None or policy.consistency != SESSION_LOCAL or policy.type != "map":
                known = [p.name for p in policies.values() if _is_session_map(p)]
                raise Unsupported(
                    f"put.{name}: a turn writes session-local maps; known: "
                    f"{', '.join(known) or 'none'}",
                    field=f"put.{name}",
                )
            if not caller.free:
                caller.require(WRITE, f"{name}:{sid or claimed_sid(token or '') or ''}".encode())
            put[name] = {
                field: None if bytes(raw).strip() == b"null" else bytes(raw)
                for field, raw in fields.items()
            }
        return put

    def _require(
        self,
        caller: Caller,
        right: str,
        sid: str | None,
        type_: str = "",
        token: str | None = None,
    ) -> None:
        """A session's rights are those on its keys: `policy:sid` of a policy of `type_` (any).

        The sid that a token claims will do: what is done with the token is refused anyway if
        its signature is not good.
        """
        if caller.free:
            return
        if sid is None and token is not None:
            sid = claimed_sid(token)
        kinds = [
            policy.name
            for policy in self.node.policies.policies.values()
            if policy.consistency == SESSION_LOCAL and type_ in ("", policy.type)
        ]
        tail = (sid or "").encode()
        if not any(caller.may(right, name.encode() + b":" + tail) for name in kinds):
            raise NoPerm(f"{caller.name} has no right to {right} the {type_ or 'session'}")


def session_of(policy: Policy, stored: bytes) -> str:
    """The session id in a session-local key, `policy:sid` or `policy:sid:...`."""
    _, _, rest = stored.partition(b":")
    try:
        sid = rest.decode()
    except UnicodeDecodeError:
        raise BadRequest("a session id is UTF-8 text") from None
    if not sid:
        raise BadRequest(f"policy {policy.name} is session-local: its keys are {policy.name}:SID")
    return sid


def claimed_sid(token: str) -> str | None:
    """The session id that a token names, not verified; None if it names none."""
    payload = token.split(".")[1] if token.count(".") == 2 else ""
    try:
        claims = msgspec.json.decode(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (ValueError, RecursionError):
        return None
    sid = claims.get("sid") if isinstance(claims, dict) else None
    return sid if isinstance(sid, str) else None


def _is_session_map(policy: Policy) -> bool:
    return policy.consistency == SESSION_LOCAL and policy.type == "map"


def _plain(value: Any) -> Any:
    return msgspec.to_builtins(value) if isinstance(value, msgspec.Struct) else value


def _opened(opened: Any) -> Result:
    return {
        "sid": opened.sid,
        "token": opened.token,
        "home": opened.home,
        "standby": opened.standby,
        "epoch": opened.epoch,
        "turn": opened.turn,
        "created": opened.created,
        "served_by": getattr(opened, "served_by", "home"),
    }


def _view(view: Any) -> Result:
    return {
        "sid": view.sid,
        "home": view.home,
        "standby": view.standby,
        "epoch": view.epoch,
        "turn": view.turn,
        "protected": view.protected,
        "stale_turns": view.stale_turns,
        "served_by": view.served_by,
        "lag_ms": getattr(view, "lag_ms", 0),
        "fields": raw_parts(view.fields),
        "calls": raw_parts(view.calls),
        "reconciled": [
            {
                "epoch": branch.epoch,
                "turn": branch.turn,
                "messages": [msgspec.Raw(message) for message in branch.messages],
            }
            for branch in view.reconciled
        ],
        "token": view.token,
    }
