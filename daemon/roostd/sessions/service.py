"""The session service of one node: where a request is carried out, and what happens when home
does not answer.

A request goes, in this order, to: this node if it is home; this node's copy for a read, if the
copy has the token's turn; home; the standby. The standby makes itself home only on its own
evidence (roost_crdt.home.may_take_over). A reply always carries a fresh token, from which every
node on the way learns the epoch in force.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Literal, cast

import msgspec

from roost_crdt.errors import (
    BadRequest,
    CorruptData,
    NoSession,
    RoostError,
    SessionUnavailable,
    TooLarge,
    Unavailable,
    UnknownOutcome,
)
from roost_crdt.home import Meta, check_sid
from roost_crdt.sessions.copy import SessionCopy
from roost_crdt.sessions.stream import Stream
from roost_crdt.token import Claims
from roostd.sessions import types
from roostd.sessions.context import Context
from roostd.sessions.copies import Copies
from roostd.sessions.damage import Damage
from roostd.sessions.delivery import Delivery
from roostd.sessions.erasure import ERASE, Erasure
from roostd.sessions.forward import DO, LOCATE, Forwarder
from roostd.sessions.handover import Handover
from roostd.sessions.local import Local, Moved
from roostd.sessions.recall import COPY as RECALL_COPY
from roostd.sessions.recall import RECALL, Recall, Restored
from roostd.sessions.takeover import YIELD, Takeover
from roostd.sessions.types import Answer, Request, ServedBy

log = logging.getLogger(__name__)

HOPS_MAX = 3

_READS = (types.Open, types.Turns, types.Show)


class Sessions:
    """Opens, reads and commits sessions, here or where they live.

    Every method raises the RoostErrors of CONTRACT: BadToken, NoSession, TurnConflict,
    CallConflict, TooLarge, SessionUnavailable, Unavailable, UnknownOutcome, Full, Busy.
    """

    def __init__(
        self,
        context: Context,
        random_sid: Callable[[], str],
        restored: Restored | None = None,
    ) -> None:
        self.context = self._context = context
        self._random_sid = random_sid
        self.stream = Stream(
            context.shelf,
            context.neighbours,
            takeover_after_ms=context.takeover_after_ms,
            residency=context.residency,
        )
        self.delivery = Delivery(self.stream, context.neighbours, context.durable)
        self._local = Local(context, self.stream, self.delivery)
        self._copies = Copies(context)
        self._forwarder = Forwarder(context, self._copies)
        self.handover = Handover(context, self.stream)
        self._takeover = Takeover(context, self.stream, self.delivery)
        self._erasure = Erasure(context, self.stream, self._copies)
        self.recall = Recall(context, self.stream, self.delivery, restored)
        self._last_tick_ms = context.shelf.steady_ms()
        self._following: set[asyncio.Task[None]] = set()
        context.shelf.on_corrupt = Damage(context).say
        context.shelf.on_erased = self._copies.drop

    # --- requests of faces ---

    async def open(self, token: str | None, sid: str | None) -> types.Opened:
        """A new session, or a fresh token for a known one."""
        if token is None and sid is None:
            self.recall.check()
            return await self._begin(self._random_sid())
        if sid is not None:
            check_sid(sid, BadRequest)
        return cast("types.Opened", await self.do(types.Open(token=token, sid=sid)))

    async def do(self, request: Request) -> Answer:
        """Carry out one request wherever it has to be."""
        return await self._dispatch(request, hops=0, origin=self._context.node)

    async def turns(self, sid: str | None, token: str | None, last: int | None) -> types.TurnsRead:
        """The messages of the newest `last` turns (None = all), with how stale they are."""
        if last is not None and last < 0:
            raise BadRequest(f"last counts turns; {last} is below 0")
        request = types.Turns(sid=sid, token=token, last=last)
        return cast("types.TurnsRead", await self.do(request))

    async def commit(
        self,
        sid: str | None,
        token: str | None,
        *,
        messages: list[bytes],
        turn_id: str | None = None,
        base: int | None = None,
        put: dict[str, dict[str, bytes | None]] | None = None,
        on_conflict: types.OnConflict = "reject",
    ) -> types.Committed:
        """One turn. Without a turn_id a retry by the caller commits another turn."""
        size = sum(map(len, messages))
        if size > self._context.limits.value_bytes_max:
            raise TooLarge(
                f"the messages of a turn have {size} bytes, over limits.value_max "
                f"({self._context.limits.value_bytes_max}); split the turn"
            )
        request = types.Commit(
            sid=sid,
            token=token,
            messages=messages,
            turn_id=turn_id or self._random_sid(),
            base=base,
            put=put or {},
            on_conflict=on_conflict,
        )
        return cast("types.Committed", await self.do(request))

    async def call(
        self,
        sid: str | None,
        token: str | None,
        call: str,
        *,
        status: Literal["begun", "finished", "failed"],
        tool: str | None = None,
        args: bytes | None = None,
        result: bytes | None = None,
        retry: bool = False,
    ) -> types.CallReply:
        """One step of a tool call; `fresh` means that the caller is the first to begin it."""
        request = types.CallStep(
            sid=sid,
            token=token,
            call=call,
            status=status,
            tool=tool,
            args=args,
            result=result,
            retry=retry,
        )
        return cast("types.CallReply", await self.do(request))

    async def show(self, sid: str | None, token: str | None) -> types.SessionView:
        """Fields, calls and reconciled branches of a session."""
        return cast("types.SessionView", await self.do(types.Show(sid=sid, token=token)))

    async def erase(self, sid: str | None, token: str | None) -> list[dict[str, Any]]:
        """Erase a session everywhere; one receipt a node."""
        request = types.EraseRequest(sid=sid, token=token)
        return cast("types.Erased", await self.do(request)).receipts

    async def fork(self, sid: str | None, token: str | None, at: int | None) -> types.Opened:
        request = types.Fork(new_sid=self._random_sid(), sid=sid, token=token, at=at)
        return cast("types.Opened", await self.do(request))

    async def list(self, after: str, limit: int) -> list[dict[str, Any]]:
        """Sessions held here, in order of id."""
        self.recall.check()
        rows = []
        for stored in self._context.shelf.table.heads(after, limit):
            meta = self._context.shelf.meta(stored.sid) or stored
            role = "home" if meta.home == self._context.node else "standby"
            if meta.standby != self._context.node and role == "standby":
                role = "former"
            rows.append(
                {
                    "sid": meta.sid,
                    "role": "erased" if meta.erased_ms else role if meta.held else "stub",
                    "home": meta.home,
                    "standby": meta.standby,
                    "epoch": meta.epoch[0],
                    "turn": meta.turn,
                    "used_ms": meta.used_ms,
                }
            )
        return rows

    async def move(self, sid: str, node: str) -> types.Opened:
        """Hand a session that is at home here over to `node`, with no stale turn."""
        live = self._context.shelf.live(sid)
        if live is None or live.meta.home != self._context.node:
            meta = self._context.shelf.meta(sid)
            where = f"its home is {meta.home}; ask there" if meta else "it is not known here"
            raise NoSession(f"session {sid} is not at home on this node: {where}")
        await self.handover.to(live, node)
        return self._local.opened(live)

    # --- requests of other nodes ---

    def methods(self) -> dict[str, Callable[[str, dict[str, Any]], Any]]:
        """Remote methods by name."""
        return {
            DO: self._remote_do,
            LOCATE: self._remote_locate,
            "session.copy": self._remote_copy,
            "session.adopt": self.handover.remote_adopt,
            ERASE: self._erasure.remote_erase,
            "session.ping": self._remote_ping,
            YIELD: self._takeover.remote_yield,
            RECALL: self.recall.remote_recall,
            RECALL_COPY: self.recall.remote_copy,
        }

    async def _remote_do(self, peer: str, args: dict[str, Any]) -> Any:
        try:
            request = msgspec.convert(args["request"], Request)
            hops, origin = int(args["hops"]), str(args["origin"])
        except (KeyError, TypeError, ValueError, msgspec.ValidationError) as error:
            raise BadRequest(f"{peer} forwarded a malformed session request: {error}") from error
        answer = await self._dispatch(request, hops=hops, origin=origin)
        return msgspec.to_builtins(answer, builtin_types=(bytes,))

    async def _remote_locate(self, peer: str, args: dict[str, Any]) -> Any:
        meta = self._context.shelf.meta(str(args.get("sid", "")))
        if meta is None or (not meta.held and not meta.erased_ms):
            return None
        where = [list(meta.epoch), meta.standby, meta.erased_ms, meta.turn]
        return where if meta.unmerged else [*where, meta.n, meta.chain]

    async def _remote_copy(self, peer: str, args: dict[str, Any]) -> Any:
        live = self._context.shelf.live(str(args.get("sid", "")))
        return None if live is None else self._copies.export(live)

    async def _remote_ping(self, peer: str, args: dict[str, Any]) -> Any:
        return True

    # --- where a request goes ---

    async def _claims(self, request: Request) -> tuple[Claims | None, str]:
        claims: Claims | None = None
        if request.token is not None:
            claims, _expired = await self._context.verify(request.token)
            if request.sid is not None and request.sid != claims.sid:
                raise BadRequest(f"the token belongs to session {claims.sid}, not to {request.sid}")
        sid = claims.sid if claims is not None else request.sid
        if sid is None:
            raise BadRequest("name a session: give its token or its sid")
        return claims, sid

    async def _dispatch(self, request: Request, *, hops: int, origin: str) -> Answer:
        try:
            return await self._route(request, hops=hops, origin=origin)
        except CorruptData as error:
            raise SessionUnavailable(
                f"the session is damaged on {self._context.node}: {error}; stop the node and run "
                "`roost check DIR --repair`"
            ) from error
        except Moved as moved:
            if hops >= HOPS_MAX:
                raise Unavailable(f"{moved}; try again", retry_after_ms=200) from None
            return await self._dispatch(request, hops=hops + 1, origin=origin)

    async def _route(self, request: Request, *, hops: int, origin: str) -> Answer:
        context = self._context
        claims, sid = await self._claims(request)
        self.recall.check()
        meta = context.shelf.meta(sid)
        if claims is not None and (meta is None or claims.epoch > meta.epoch):
            meta = context.shelf.learn(sid, claims.epoch, claims.standby)
        if meta is None:
            meta = await self._forwarder.locate(sid, may_begin=isinstance(request, types.Open))
            if meta is None:
                return await self._begin(sid, named=True)
        context.shelf.check_lives(meta)
        if meta.home == context.node:
            held = context.shelf.live(sid)
            if held is None:
                if not await self._takeover.yield_to_standby(meta, claims):
                    return await self._lost(request, meta)
                return await self._forward(request, claims, self._known(sid, meta), hops, origin)
            with held.pinned():
                await self._takeover.confirm(held)
            if held.meta.home == context.node:
                served_by: ServedBy = "home" if hops == 0 else "forwarded"
                return await self._at_home(held, request, claims, served_by, origin)
        copy = self._read_copy(sid, request, claims)
        if copy is not None:
            return copy
        return await self._forward(request, claims, self._known(sid, meta), hops, origin)

    def _known(self, sid: str, otherwise: Meta) -> Meta:
        return self._context.shelf.meta(sid) or otherwise

    def _read_copy(self, sid: str, request: Request, claims: Claims | None) -> Answer | None:
        """A read from a copy that provably has what the bearer saw: no round trip."""
        if claims is None or not isinstance(request, _READS):
            return None
        live = self._context.shelf.live(sid) or self._copies.get(sid)
        if live is None or self._local.stale_turns(live, claims):
            return None
        if claims.turn == 0 and live.meta.home != self._context.node and not live.meta.n:
            return None
        if isinstance(request, types.Open):
            opened = self._local.opened(live)
            opened.served_by = "replica"
            return opened
        if isinstance(request, types.Turns):
            return self._local.turns(live, request, claims, "replica")
        return self._local.show(live, request, claims, "replica")

    async def _at_home(
        self,
        live: SessionCopy,
        request: Request,
        claims: Claims | None,
        served_by: ServedBy,
        origin: str,
    ) -> Answer:
        with live.pinned():
            answer = await self._carry_out(live, request, claims, served_by, origin)
        answer.served_by = served_by
        await self._context.durable()
        return answer

    async def _carry_out(
        self,
        live: SessionCopy,
        request: Request,
        claims: Claims | None,
        served_by: ServedBy,
        origin: str,
    ) -> Answer:
        answer: Answer
        match request:
            case types.Open():
                answer = self._local.opened(live)
            case types.Turns():
                answer = self._local.turns(live, request, claims, served_by)
            case types.Show():
                answer = self._local.show(live, request, claims, served_by)
            case types.Commit():
                async with self._context.lock(live):
                    self._local.check_home(live)
                    answer = await self._local.commit(live, request, claims, origin)
                self._follow(live)
            case types.CallStep():
                async with self._context.lock(live):
                    self._local.check_home(live)
                    answer = await self._local.call(live, request)
            case types.Fork():
                answer = await self._local.fork(live, request)
            case types.EraseRequest():
                answer = types.Erased(await self._erasure.everywhere(live.meta.sid))
        return answer

    async def _begin(self, sid: str, *, named: bool = False) -> types.Opened:
        """A new session: here, or in a region that residency allows."""
        context = self._context
        if context.may_hold(context.region):
            live = self._local.create(sid, named=named)
            await context.durable()
            return self._local.opened(live, created=True)
        allowed = [c for c in context.neighbours.candidates() if context.may_hold(c.region)]
        if not allowed:
            raise Unavailable(
                f"residency allows sessions in {', '.join(context.residency())} only, this node "
                f"is in {context.region}, and no neighbour there is up; try again",
                retry_after_ms=1_000,
            )
        nearest = min(allowed, key=lambda c: (c.rtt_ms, c.node))
        meta = Meta(sid, (1, nearest.node), None, held=False)
        answer = await self._forwarder.ask(
            nearest.node, types.Open(sid=sid), meta, 0, context.node, guard=False
        )
        return cast("types.Opened", answer)

    # --- home is elsewhere ---

    async def _forward(
        self, request: Request, claims: Claims | None, meta: Meta, hops: int, origin: str
    ) -> Answer:
        context = self._context
        if hops >= HOPS_MAX:
            raise Unavailable(
                f"session {meta.sid} changes its home faster than it can be followed; try again",
                retry_after_ms=200,
            )
        copy = context.shelf.live(meta.sid)
        standby_here = meta.standby == context.node and copy is not None
        try:
            return await self._forwarder.ask(
                meta.home, request, meta, hops, origin, guard=standby_here or hops == 0
            )
        except (Unavailable, UnknownOutcome) as error:
            at_home = error
        if standby_here:
            if await self._takeover.take_over(meta.sid):
                live = context.shelf.live(meta.sid)
                if live is None:
                    raise Moved(f"session {meta.sid} was erased while it was taken over")
                return await self._at_home(live, request, claims, "takeover", origin)
            if hops == 0 and self._may_repeat(request, at_home):
                raise Moved(f"session {meta.sid}: {meta.home} answers again")
            raise self._told(request, at_home)
        if meta.standby is None or meta.standby in (context.node, meta.home):
            return await self._lost(request, meta, at_home)
        try:
            return await self._forwarder.ask(meta.standby, request, meta, hops, origin, guard=False)
        except (Unavailable, UnknownOutcome) as error:
            return await self._lost(request, meta, at_home, error)

    @staticmethod
    def _may_repeat(request: Request, error: Unavailable | UnknownOutcome) -> bool:
        """Whether asking again cannot do it twice: a turn has its id, a call's step has none."""
        return isinstance(error, Unavailable) or isinstance(request, (*_READS, types.Commit))

    def _told(self, request: Request, error: Unavailable | UnknownOutcome) -> RoostError:
        """What the caller is told of an error on the way: a read has no outcome to be unknown."""
        if isinstance(error, UnknownOutcome) and not isinstance(request, _READS):
            error.details.setdefault("request_id", getattr(request, "turn_id", None))
            return error
        return Unavailable(error.message, retry_after_ms=error.retry_after_ms or 500)

    async def _lost(
        self, request: Request, meta: Meta, *errors: Unavailable | UnknownOutcome
    ) -> Answer:
        """Home and standby cannot be had: an error, or a new empty session where the policy says
        so and both are out of reach (who answers and refuses is not lost)."""
        write = not isinstance(request, _READS)
        for error in errors:
            sent = isinstance(error, UnknownOutcome)
            if (sent and write) or not (sent or error.details.get("no_route")):
                raise self._told(request, error)
        if self._context.recreate_on_loss() and self._context.may_hold(self._context.region):
            live = self._local.create(meta.sid, meta.epoch[0] + 1)
            log.warning("session %s was lost with its home and is recreated empty", meta.sid)
            return await self._at_home(live, request, None, "home", self._context.node)
        reasons = "; ".join(error.message for error in errors) or "its home holds nothing of it"
        raise SessionUnavailable(
            f"session {meta.sid}: home {meta.home} and standby {meta.standby or '(none)'} are out "
            f"of reach ({reasons}); try again when one of them is back",
            retry_after_ms=2_000,
        )

    # --- follow ---

    def _follow(self, live: SessionCopy) -> None:
        node = live.follow.node
        if not live.follow.due(self._context.follow_after_turns) or live.handing_over:
            return
        if not self.handover.allowed(live, node):
            return
        task = asyncio.create_task(self.handover.follow(live, node), name=f"follow to {node}")
        self._following.add(task)
        task.add_done_callback(self._following.discard)

    # --- events ---

    def tick(self) -> None:
        """Called about four times a second."""
        now_ms = self._context.shelf.steady_ms()
        if now_ms - self._last_tick_ms > self._context.takeover_after_ms:
            self._context.shelf.generation += 1
        self._last_tick_ms = now_ms
        if not self.recall.waiting:
            self.delivery.tick()

    def on_link_up(self, peer: str) -> None:
        """A neighbour is back: offer it what it lacks, send it what it must merge."""
        if self.recall.waiting:
            self.recall.on_link_up(peer)
        else:
            self.delivery.sweep(peer)

    def counts(self) -> dict[str, int]:
        """Sessions in memory by role."""
        home = sum(
            live.meta.home == self._context.node for live in self._context.shelf.lives.values()
        )
        return {"home": home, "standby": len(self._context.shelf.lives) - home}

    async def stop(self) -> None:
        """End background work; sessions stay where they are."""
        for task in self._following:
            task.cancel()
        await asyncio.gather(*self._following, return_exceptions=True)
        await self.recall.stop()
        await self._takeover.stop()
        await self.delivery.stop()
