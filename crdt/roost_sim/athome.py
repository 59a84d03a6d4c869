"""Requests carried out where a session is at home, and reads of a copy."""

from __future__ import annotations

from dataclasses import replace

from roost_crdt import fold
from roost_crdt.entries import TurnRef
from roost_crdt.errors import BadRequest, NoSession, TurnConflict, Unavailable
from roost_crdt.home import Candidate
from roost_crdt.sessions.copy import SessionCopy
from roost_crdt.sessions.shelf import Shelf
from roost_crdt.sessions.stream import Stream
from roost_crdt.token import Claims, claims_to_json, lacks

from .answers import Answer, ForkFirst, Lock, Request, refs_of
from .loop import Future
from .node import Node

ACK_SLACK_MS = 100.0


class AtHome:
    """The half of a session service that needs no other node."""

    node: Node
    shelf: Shelf
    stream: Stream
    _locks: dict[str, Lock]

    def candidates(self) -> list[Candidate]:
        """Neighbours whose link is up."""
        raise NotImplementedError

    def count(self, what: str) -> None:
        self.node.world.trace.count("session", what)

    def durable(self) -> Future[None]:
        """Done when all that is written so far is durable."""
        future: Future[None] = Future()
        self.node.when_durable(lambda: future.set(None), lambda: None)
        return future

    def lock(self, sid: str) -> Lock:
        return self._locks.setdefault(sid, Lock())

    def still_home(self, live: SessionCopy) -> None:
        """After every wait: the session may have been erased or have moved meanwhile."""
        meta = self.shelf.meta(live.meta.sid)
        if meta is not None and meta.erased_ms:
            raise NoSession(f"session {meta.sid} was erased")
        if live.meta.home != self.node.name:
            raise Unavailable(f"session {live.meta.sid} has just moved")

    def lacking(self, live: SessionCopy, claims: Claims | None) -> int:
        """How many turns this copy lacks of what the token's bearer has seen."""
        return 0 if claims is None else lacks(claims, live.fold.lineage())

    async def at_home(
        self, live: SessionCopy, request: Request, claims: Claims | None, served_by: str
    ) -> Answer:
        with live.pinned():
            if request.kind == "open":
                answer = self.opened(live)
            elif request.kind == "read":
                answer = self.read(live, claims, served_by)
            elif request.kind == "fork":
                answer = self.fork(live, request.child, request.at)
            else:
                async with self.lock(live.meta.sid):
                    self.still_home(live)
                    if request.kind == "commit":
                        answer = await self._commit(live, request, claims)
                    elif request.kind == "summarise":
                        answer = self._summarise(live, request)
                    else:
                        answer = await self._call(live, request)
        await self.durable()
        return replace(answer, served_by=served_by)

    def _answer(self, live: SessionCopy) -> Answer:
        meta = live.meta
        now_s = self.node.wall_ms() // 1000
        claims = Claims(
            sid=meta.sid,
            home=meta.home,
            standby=meta.standby,
            epoch=meta.epoch,
            turn=live.head_turn(),
            path=live.path_epochs(),
            aud="sim",
            iss=self.node.name,
            iat=now_s,
            exp=now_s + 3_600,
        )
        held = frozenset((n, node, turn) for n, node, turn in refs_of(live))
        return Answer(
            claims_to_json(claims),
            meta.home,
            live.head_turn(),
            sid=meta.sid,
            epoch=meta.epoch,
            node=self.node.name,
            held=held,
            promised_ms=self.node.world.loop.now_ms,
        )

    def opened(self, live: SessionCopy) -> Answer:
        return self._answer(live)

    def read(self, live: SessionCopy, claims: Claims | None, served_by: str) -> Answer:
        answer = self._answer(live)
        answer.messages = live.fold.messages(None)
        answer.stale = self.lacking(live, claims)
        answer.served_by = served_by
        return answer

    def fork(self, live: SessionCopy, child_sid: str, at: int | None) -> Answer:
        """A new session with the turns up to `at`, the fields and the ledger of this one."""
        child = self.shelf.live(child_sid)
        if child is None:
            upto = live.head_turn() if at is None else at
            kept = {turn.ref for turn in live.fold.path() if turn.turn <= upto}
            entries, fields = live.fold.entries_of(kept), live.fold.raw_fields()
            child = self.stream.begin(child_sid, live.meta.epoch[0] + 1, entries, fields)
            self.count("fork made")
        return self._told(child)

    def _told(self, live: SessionCopy) -> Answer:
        """An answer with what the copy holds, for the checker."""
        answer = self._answer(live)
        answer.path = tuple(turn.ref for turn in live.fold.path())
        answer.finished = frozenset(
            name for name, call in live.fold.calls.items() if call.status == "finished"
        )
        return answer

    def _summarise(self, live: SessionCopy, request: Request) -> Answer:
        """A summary of the path up to the turn before the newest; at most one a turn."""
        live.own_epoch(self.node.wall_ms())
        path = live.fold.path(2)
        covers: TurnRef | None = None
        if len(path) == 2:
            covers = path[0].ref
            entry = fold.summary_entry(
                live.meta.epoch, live.head_turn(), covers=path[0].ref, message=request.message
            )
            if not live.document.holds(entry[0]):
                update = live.write(dict([entry]), {}, self.node.wall_ms())
                self.stream.publish(live, update)
                self.count("summary")
        answer = self._answer(live)
        answer.ref = covers
        return answer

    async def _commit(self, live: SessionCopy, request: Request, claims: Claims | None) -> Answer:
        stale = self.lacking(live, claims)
        first = live.fold.find_turn_id(request.turn_id)
        if first is None:
            if claims is not None and not stale:
                self._check_conflict(live, request, claims)
            await self._previous_turn(live)
            self.still_home(live)
            now_ms = self.node.wall_ms()
            live.own_epoch(now_ms)
            turn = live.head_turn() + 1
            entry = fold.turn_entry(
                live.meta.epoch,
                turn,
                parent=live.fold.turn,
                turn_id=request.turn_id,
                messages=[request.message],
                at_ms=now_ms,
            )
            fields = dict(
                live.fold.put_field("kv", name, live.meta.epoch, value, now_ms)
                for name, value in request.put
            )
            update = live.write(dict([entry]), fields, now_ms)
            self.stream.publish(live, update)
            live.turn_n = update.n
            first = live.fold.find_turn_id(request.turn_id)
            assert first is not None
        else:
            self.count("turn id repeated")
        await self.durable()
        answer = self._answer(live)
        answer.ref, answer.stale, answer.turn = first.ref, stale, first.turn
        answer.protected = self.stream.protected(live)
        return answer

    def _check_conflict(self, live: SessionCopy, request: Request, claims: Claims) -> None:
        seen = claims.path[-1] if claims.path else None
        on_path = seen is None or live.fold.on_path((seen[0], seen[1], seen[3]))
        if on_path and live.head_turn() == claims.turn:
            return
        if request.on_conflict == "reject":
            raise TurnConflict(f"session {live.meta.sid} is at {live.head_turn()}")
        if request.on_conflict == "fork":
            raise ForkFirst(f"{live.meta.sid}-{request.turn_id[-10:]}", claims.turn)

    async def _previous_turn(self, live: SessionCopy) -> None:
        """A lost region costs at most one turn: the one before this is at the standby first."""
        wait_ms = next(
            (2 * c.rtt_ms + ACK_SLACK_MS for c in self.candidates() if c.node == live.meta.standby),
            0.0,
        )
        held: Future[None] = Future()
        self.stream.when_held(live, live.turn_n, lambda: held.set(None))
        if wait_ms:
            self.node.world.loop.after(wait_ms, self.node.life, held.set, None)
            await held

    async def _call(self, live: SessionCopy, request: Request) -> Answer:
        now_ms = self.node.wall_ms()
        live.own_epoch(now_ms)
        state, epoch = live.fold.calls.get(request.call), live.meta.epoch
        status = live.fold.status(request.call, epoch)
        if request.status == "begun":
            again = request.retry and status in ("in_doubt", "failed", "begun")
            attempt = 1 if state is None else state.attempt + 1
            done = state is not None and not again
        elif state is None:
            raise BadRequest(f"call {request.call} was never begun")
        else:
            attempt, done = state.attempt, status in ("finished", request.status)
        if not done:
            entry = fold.call_entry(
                request.call,
                attempt,
                request.status,  # type: ignore[arg-type]
                epoch,
                tool="tool",
                args=b"{}",
                result=request.result,
                at_ms=now_ms,
            )
            self.stream.publish(live, live.write(dict([entry]), {}, now_ms))
            self.count(f"call {request.status}")
            status = request.status  # type: ignore[assignment]
        assert status is not None
        result = live.fold.calls[request.call].result
        await self.durable()
        answer = self._answer(live)
        answer.fresh = not done and status == "begun"
        answer.status, answer.result, answer.epoch = status, result, epoch
        return answer
