"""Session requests carried out where the session is at home, and reads of a copy."""

from __future__ import annotations

import hashlib
import logging
from typing import Any

import msgspec

from roost_crdt import fold
from roost_crdt.errors import (
    BadRequest,
    CallConflict,
    NoSession,
    TurnConflict,
    Unavailable,
    UnknownOutcome,
    WrongType,
)
from roost_crdt.home import Update
from roost_crdt.sessions.copy import SessionCopy
from roost_crdt.sessions.stream import Stream
from roost_crdt.token import Claims, lacks
from roostd.sessions.context import Context
from roostd.sessions.delivery import Delivery
from roostd.sessions.types import (
    Branch,
    CallReply,
    CallStep,
    Commit,
    Committed,
    Fork,
    Opened,
    ServedBy,
    SessionView,
    Show,
    Turns,
    TurnsRead,
)

log = logging.getLogger(__name__)

ACK_SLACK_MS = 100
CALL_BYTES_MAX = 128
STANDBY_WAIT_MS = 3_000


class Moved(Exception):
    """The session has another home by now: the request is to be sent there."""


class Local:
    """What a node does for the sessions that it holds."""

    def __init__(self, context: Context, stream: Stream, delivery: Delivery) -> None:
        self._context = context
        self._stream = stream
        self._delivery = delivery

    # --- opening ---

    def create(self, sid: str, epoch_n: int = 1, *, named: bool = False) -> SessionCopy:
        """A new, empty session with this node as its home; durable with the open group.

        `named`: the caller chose its id, so another node may begin it at the same time.
        """
        live = self._stream.begin(sid, epoch_n)
        if named:
            self._stream.announce(live)
        return live

    def opened(self, live: SessionCopy, *, created: bool = False) -> Opened:
        meta = live.meta
        return Opened(
            sid=meta.sid,
            token=self._context.token(live),
            home=meta.home,
            standby=meta.standby,
            epoch=meta.epoch[0],
            turn=live.head_turn(),
            created=created,
        )

    async def fork(self, live: SessionCopy, request: Fork) -> Opened:
        """A new session with the turns up to `at`, the fields and the ledger of this one."""
        turns = live.fold.path(None)
        at = live.head_turn() if request.at is None else request.at
        if not 0 <= at <= live.head_turn():
            raise BadRequest(
                f"session {live.meta.sid} has turns 0 to {live.head_turn()}; {at} is not one"
            )
        kept = {(t.n, t.node, t.turn) for t in turns if t.turn <= at}
        entries = live.fold.entries_of(kept)
        # Above every epoch of the copied turns, so that the next turn continues their path.
        child = self._stream.begin(
            request.new_sid, live.meta.epoch[0] + 1, entries, live.fold.raw_fields()
        )
        await self._context.durable()
        return self.opened(child, created=True)

    # --- reading ---

    def stale_turns(self, live: SessionCopy, claims: Claims | None) -> int:
        """How many turns this copy lacks of what the token's bearer has seen."""
        return 0 if claims is None else lacks(claims, live.fold.lineage())

    def turns(
        self, live: SessionCopy, request: Turns, claims: Claims | None, served_by: ServedBy
    ) -> TurnsRead:
        stale = self.stale_turns(live, claims)
        return TurnsRead(
            messages=live.fold.messages(request.last),
            turn=live.head_turn(),
            stale_turns=stale,
            token=self._context.token(live),
            home=live.meta.home,
            served_by=served_by,
            lag_ms=self._copy_age_ms(live) if stale else 0,
        )

    def show(
        self, live: SessionCopy, request: Show, claims: Claims | None, served_by: ServedBy
    ) -> SessionView:
        meta = live.meta
        stale = self.stale_turns(live, claims)
        calls: dict[str, dict[str, Any]] = {}
        for name, state in live.fold.calls.items():
            calls[name] = {
                "status": live.fold.status(name, meta.epoch),
                "tool": state.tool,
                "args": state.args,
                "result": state.result,
                "attempt": state.attempt,
            }
        return SessionView(
            sid=meta.sid,
            home=meta.home,
            standby=meta.standby,
            epoch=meta.epoch[0],
            turn=live.head_turn(),
            protected=self._stream.protected(live),
            stale_turns=stale,
            token=self._context.token(live),
            fields=live.fold.fields(),
            calls=calls,
            reconciled=_reconciled(live),
            served_by=served_by,
            lag_ms=self._copy_age_ms(live) if stale else 0,
        )

    # --- writing at home ---

    async def commit(
        self, live: SessionCopy, request: Commit, claims: Claims | None, origin: str
    ) -> Committed:
        """One turn: durable here before the answer, streamed to the standby after it."""
        context = self._context
        self._check_put(request)
        stale = self.stale_turns(live, claims)
        first = live.fold.find_turn_id(request.turn_id)
        if first is None:
            if live.head_turn() != self._base(live, request, claims):
                if request.on_conflict == "reject":
                    raise self._conflict(live, request, claims)
                if request.on_conflict == "fork":
                    return await self._commit_forked(live, request, claims, origin)
            self._check_standby(live)
            await self._await_previous_turn(live)
            self.check_home(live)
            now_ms = context.now_ms()
            live.own_epoch(now_ms)
            head = live.fold.turn
            turn = live.head_turn() + 1
            entry = fold.turn_entry(
                live.meta.epoch,
                turn,
                parent=head,
                turn_id=request.turn_id,
                messages=request.messages,
                at_ms=now_ms,
            )
            update = live.write(dict([entry]), self._put_fields(live, request), now_ms)
            self._publish(live, update)
            live.turn_n = update.n
            live.follow = live.follow.counted(origin if origin != context.node else "")
        else:
            turn = first.turn
        await context.durable()
        if context.durable_at_standby():
            await self._await_standby(live, request, turn)
        return Committed(
            sid=live.meta.sid,
            token=context.token(live),
            turn=turn,
            stale_turns=stale,
            protected=self._stream.protected(live),
            home=live.meta.home,
            contested=live.confirmed != context.shelf.generation,
        )

    async def call(self, live: SessionCopy, request: CallStep) -> CallReply:
        """One step of a tool call; a repeated `begun` answers the state so far."""
        if not request.call or len(request.call) > CALL_BYTES_MAX or "/" in request.call:
            raise BadRequest(f"a call key has 1 to {CALL_BYTES_MAX} characters and no slash")
        state = live.fold.calls.get(request.call)
        if state is not None and not _same_call(state.tool, state.args, request):
            raise CallConflict(
                f"call {request.call} of session {live.meta.sid} is {state.tool} with other "
                "arguments; use another call key"
            )
        status = live.fold.status(request.call, live.meta.epoch)
        if request.status == "begun":
            again = request.retry and status in ("in_doubt", "failed", "begun")
            if state is not None and not again:
                assert status is not None, "a known call has a status"
                return self._call_reply(live, status, state.result)
            attempt = 1 if state is None else state.attempt + 1
        else:
            if state is None:
                raise BadRequest(
                    f"call {request.call} of session {live.meta.sid} was never begun; "
                    "say status begun first"
                )
            if status in ("finished", request.status):
                assert status is not None, "a known call has a status"
                return self._call_reply(live, status, state.result)
            attempt = state.attempt
        tool, args = (request.tool, request.args) if state is None else (state.tool, state.args)
        if tool is None:
            raise BadRequest(f"call {request.call}: the first begun names its tool")
        now_ms = self._context.now_ms()
        live.own_epoch(now_ms)
        entry = fold.call_entry(
            request.call,
            attempt,
            request.status,
            live.meta.epoch,
            tool=tool,
            args=args or b"null",
            result=request.result,
            at_ms=now_ms,
        )
        self._publish(live, live.write(dict([entry]), {}, now_ms))
        await self._context.durable()
        answer = "fresh" if request.status == "begun" else request.status
        return self._call_reply(live, answer, request.result)

    # --- inside ---

    def _call_reply(self, live: SessionCopy, status: str, result: bytes | None) -> CallReply:
        return CallReply(status, self._context.token(live), result, home=live.meta.home)

    def _publish(self, live: SessionCopy, update: Update) -> None:
        self._stream.publish(live, update)

    def _base(self, live: SessionCopy, request: Commit, claims: Claims | None) -> int:
        """The turn that the caller built on; the current one if it does not say."""
        if request.base is not None:
            return request.base
        if claims is None:
            return live.head_turn()
        if lacks(claims, live.fold.lineage()):
            return live.head_turn()  # this copy is behind the token: nothing to conflict with
        seen = claims.path[-1] if claims.path else None
        if seen is None or live.fold.on_path((seen[0], seen[1], seen[3])):
            return claims.turn
        return -1  # the bearer saw a turn of a branch that is not the active one

    def _conflict(self, live: SessionCopy, request: Commit, claims: Claims | None) -> TurnConflict:
        what = f"base {request.base}" if request.base is not None else "the token"
        return TurnConflict(
            f"session {live.meta.sid} is at turn {live.head_turn()} and {what} is behind it; "
            'read the turns and commit again, or say on_conflict "append" or "fork"',
            turn=live.head_turn(),
        )

    async def _commit_forked(
        self, live: SessionCopy, request: Commit, claims: Claims | None, origin: str
    ) -> Committed:
        """The turn goes onto a new session that branches where the caller stood."""
        base = request.base if request.base is not None else claims.turn if claims else None
        digest = hashlib.blake2b(
            f"{live.meta.sid}\0{request.turn_id}".encode(), digest_size=12
        ).hexdigest()
        new_sid = f"{live.meta.sid[:90]}-{digest}"
        child = self._context.shelf.live(new_sid)
        if child is None:
            await self.fork(live, Fork(new_sid=new_sid, at=base))
            child = self._context.shelf.live(new_sid)
        assert child is not None, "a fork that was just made is held here"
        onto = msgspec.structs.replace(request, base=None, on_conflict="append")
        return await self.commit(child, onto, None, origin)

    def check_home(self, live: SessionCopy) -> None:
        """Raises NoSession or Moved if the session was erased or moved while the request waited."""
        meta = self._context.shelf.meta(live.meta.sid)
        if meta is not None and meta.erased_ms:
            raise NoSession(f"session {meta.sid} was erased; open a new one")
        if live.meta.home != self._context.node:
            raise Moved(f"session {live.meta.sid} has just moved to {live.meta.home}")

    def _check_standby(self, live: SessionCopy) -> None:
        """Under durability "standby" a turn that nobody else can hold is refused beforehand."""
        if self._context.durable_at_standby() and not self._ack_wait_ms(live):
            raise Unavailable(
                f"session {live.meta.sid} needs its standby's disk (durability) and "
                f"{live.meta.standby or 'no standby'} is not up; try again",
                retry_after_ms=1_000,
            )

    async def _await_standby(self, live: SessionCopy, request: Commit, turn: int) -> None:
        """Raises UnknownOutcome if the standby does not acknowledge the turn in time."""
        if not await self._delivery.acknowledged(live, live.turn_n, STANDBY_WAIT_MS):
            raise UnknownOutcome(
                f"turn {turn} of session {live.meta.sid} is on disk here, and its standby "
                f"{live.meta.standby} has not acknowledged it; commit it again with the same "
                "turn_id",
                request_id=request.turn_id,
            )

    def _check_put(self, request: Commit) -> None:
        table = self._context.policies().policies
        for name, values in request.put.items():
            policy = table.get(name)
            if policy is None or policy.consistency != "session-local" or policy.type != "map":
                known = [p.name for p in self._context.session_policies() if p.type == "map"]
                raise WrongType(
                    f"put names {name!r}, which is no session-local map policy; "
                    f"there are: {', '.join(known) or 'none'}"
                )
            for field_name in values:
                if len(field_name.encode()) > self._context.limits.field_bytes_max:
                    raise BadRequest(f"put.{name}: a field name is too long")

    def _put_fields(self, live: SessionCopy, request: Commit) -> dict[str, bytes]:
        now_ms = self._context.now_ms()
        return dict(
            live.fold.put_field(policy, name, live.meta.epoch, value, now_ms)
            for policy, values in request.put.items()
            for name, value in values.items()
        )

    async def _await_previous_turn(self, live: SessionCopy) -> None:
        """A lost region must cost at most one turn: the one before this is at the standby first.

        Bounded: a standby that does not answer makes the turn unprotected, not impossible.
        """
        await self._delivery.acknowledged(live, live.turn_n, self._ack_wait_ms(live))

    def _ack_wait_ms(self, live: SessionCopy) -> int:
        for candidate in self._context.neighbours.candidates():
            if candidate.node == live.meta.standby:
                return min(int(2 * candidate.rtt_ms) + ACK_SLACK_MS, 2_000)
        return 0

    def _copy_age_ms(self, live: SessionCopy) -> int:
        return max(0, self._context.now_ms() - live.meta.used_ms)


def _reconciled(live: SessionCopy) -> list[Branch]:
    """Branches beside the active path, without turns that were retried onto it."""
    found = live.fold.branches()
    if not found:
        return []
    onto = {(turn.turn_id, *turn.messages) for turn in live.fold.path() if turn.turn_id}
    branches = []
    for branch in found:
        kept = [turn for turn in branch.entries if (turn.turn_id, *turn.messages) not in onto]
        if kept:
            messages = [message for turn in kept for message in turn.messages]
            branches.append(Branch(epoch=branch.epoch[0], turn=kept[-1].turn, messages=messages))
    return branches


def _same_call(tool: str, args: bytes, request: CallStep) -> bool:
    if request.tool is not None and request.tool != tool:
        return False
    return request.args is None or _canonical(request.args) == _canonical(args)


def _canonical(args: bytes) -> bytes:
    """Arguments without regard to white space and key order."""
    try:
        return msgspec.json.encode(msgspec.json.decode(args), order="deterministic")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return args
