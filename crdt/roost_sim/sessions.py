"""Sessions of one simulated node: the shell of `roost_crdt.sessions` and `roost_crdt.home`.

What `roostd.sessions` does with asyncio, sockets and signed tokens this does in virtual time with
bare claims: where a request is carried out, takeover on the standby's own evidence, handover.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from roost_crdt import fold, logformat
from roost_crdt.entries import TurnRef
from roost_crdt.errors import (
    BadRequest,
    NoSession,
    PeerError,
    RoostError,
    SessionUnavailable,
    TurnConflict,
    Unavailable,
    UnknownOutcome,
)
from roost_crdt.home import Candidate, Meta, Whole, decode_frame, encode_frame
from roost_crdt.peer import LinkState
from roost_crdt.sessions.copy import SessionCopy
from roost_crdt.sessions.shelf import Shelf
from roost_crdt.sessions.stream import Stream
from roost_crdt.sessions.table import SessionTable
from roost_crdt.token import Claims, claims_from_json, claims_to_json, lacks

from .loop import Future
from .node import Node
from .rpc import Rpc

TAKEOVER_AFTER_MS = 400
TICK_MS = 250.0
FORWARD_MS = 3_000.0
PROBE_MS = 300.0
CONFIRM_MS = 600.0
ACK_SLACK_MS = 100.0
HOPS_MAX = 3


@dataclass(slots=True, frozen=True)
class Request:
    """What a client asks of a session."""

    kind: str
    sid: str
    token: bytes | None = None
    turn_id: str = ""
    message: bytes = b""
    on_conflict: str = "append"
    call: str = ""
    status: str = ""
    result: bytes | None = None


@dataclass(slots=True)
class Answer:
    """What the client is told; `held` is what the copy that answered held, for the checker."""

    token: bytes
    home: str
    turn: int
    stale: int = 0
    served_by: str = "home"
    node: str = ""
    ref: TurnRef | None = None
    messages: list[bytes] = field(default_factory=list)
    held: frozenset[TurnRef] = frozenset()
    status: str = ""
    result: bytes | None = None
    protected: bool = False
    promised_ms: float = 0.0
    """When the node that carried it out answered."""


class Lock:
    """First come, first served."""

    def __init__(self) -> None:
        self._queue: list[Future[None]] = []
        self._held = False

    async def __aenter__(self) -> None:
        while self._held:
            turn: Future[None] = Future()
            self._queue.append(turn)
            await turn
        self._held = True

    async def __aexit__(self, *error: object) -> None:
        self._held = False
        if self._queue:
            self._queue.pop(0).set(None)


class _Rows:
    """The store's SESSION database."""

    def __init__(self, node: Node) -> None:
        self._store = node.store

    def get(self, key: bytes) -> bytes | None:
        return self._store.get(logformat.KIND_SESSION, key)

    def scan(self, prefix: bytes, after: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        return self._store.scan(logformat.KIND_SESSION, prefix, after, limit)

    def put(self, items: Mapping[bytes, bytes | None]) -> int:
        return self._store.put(logformat.KIND_SESSION, items)


class Sessions:
    """One life's session service."""

    def __init__(self, node: Node, rpc: Rpc) -> None:
        self.node = node
        self.rpc = rpc
        self.shelf = Shelf(
            node=node.name,
            region=node.region,
            actor=node.store.actor,
            table=SessionTable(_Rows(node)),
            limits=node.world.limits,
            now_ms=node.wall_ms,
        )
        self.stream = Stream(self.shelf, self, takeover_after_ms=TAKEOVER_AFTER_MS)
        self._locks: dict[str, Lock] = {}
        self._taking: dict[str, Future[Any]] = {}
        self._ticked_ms = node.boot_ms()
        self._reads_frames = False
        rpc.handlers = {
            "do": self._remote_do,
            "locate": self._remote_locate,
            "ping": self._remote_ping,
            "adopt": self._remote_adopt,
            "yield": self._remote_yield,
            "frame": self._remote_frame,
        }
        node.world.loop.after(TICK_MS, node.life, self._tick)
        node.world.loop.after(0, node.life, self.sweep)

    # --- roost_crdt.sessions.stream.Links

    def candidates(self) -> list[Candidate]:
        now_ms = self.node.boot_ms()
        return [
            Candidate(name, peer.greeting.region, peer.rtt_ms or 100.0)
            for name, peer in sorted(self.node.replica.peers.items())
            if peer.state(now_ms) is LinkState.UP
        ]

    def silent_ms(self, node: str) -> int:
        return self.node.silent_ms(node)

    # --- roost_sim.node.Shell

    def link_up(self, peer: str) -> None:
        self.sweep(peer)

    def frame(self, peer: str, payload: bytes) -> None:
        self._count(type(decode_frame(payload)).__name__)
        try:
            self.stream.on_frame(peer, payload)
        except PeerError as error:
            self.node.problems.append(f"I7: {self.node.name} refuses a session frame: {error}")
        self._after_change()

    def flushed(self) -> None:
        """Send what became durable; what has no room is offered again later."""
        for peer, payload in self.stream.take_frames():
            sent = self.node.replica.send_session(peer, payload)
            self.node.largest_bytes = max(self.node.largest_bytes, len(payload) + 64)
            if not sent and peer not in self.node.replica.peers:
                self._relay(peer, payload)
            if self.node.world.trace.detailed:
                lost = "" if sent else " (no link or no room)"
                self.node.say(f"-> {peer} {_frame_text(payload)}{lost}")
            self.node.wake()

    def _relay(self, peer: str, payload: bytes) -> None:
        """A former home may be no neighbour of the new one: its turns go by way of others."""
        if self.node.replica.routes(peer):
            call = self.rpc.call(peer, "frame", payload, deadline_ms=1_000.0)
            self.node.world.loop.spawn(call, self.node.life)
            self._count("frame relayed")

    async def _remote_frame(self, peer: str, payload: Any) -> None:
        self.frame(peer, payload)

    def actor_changed(self) -> None:
        self.shelf.renew(self.node.store.actor)

    def _after_change(self) -> None:
        if self.node.store.dirty:
            self.node.wake()
        else:
            self.flushed()

    def sweep(self, *newcomers: str) -> None:
        after: str | None = ""
        while after is not None:
            after = self.stream.sweep_page(after, newcomers)
        self._after_change()

    def _tick(self) -> None:
        now_ms = self.node.boot_ms()
        if now_ms - self._ticked_ms > TAKEOVER_AFTER_MS:
            self.shelf.generation += 1
            self.node.world.trace.count("rule", "home asks after a pause")
        self._ticked_ms = now_ms
        self.stream.tick()
        if self.stream.sweep_due:
            self.sweep()
        self._after_change()
        self.node.world.loop.after(TICK_MS, self.node.life, self._tick)

    def _count(self, what: str) -> None:
        self.node.world.trace.count("session", what)

    def _durable(self) -> Future[None]:
        future: Future[None] = Future()
        self.node.when_durable(lambda: future.set(None), lambda: None)
        return future

    # --- where a request goes

    async def do(self, request: Request, hops: int = 0) -> Answer:
        claims = None if request.token is None else claims_from_json(request.token)
        sid, shelf = request.sid, self.shelf
        meta = shelf.meta(sid)
        if claims is not None and (meta is None or claims.epoch > meta.epoch):
            meta = shelf.learn(sid, claims.epoch, claims.standby)
            self._after_change()
        if meta is None:
            meta = await self._locate(sid, may_begin=request.kind == "open")
            if meta is None:
                live = self.stream.begin(sid)
                await self._durable()
                return self._opened(live)
        shelf.check_lives(meta)
        if meta.home == self.node.name:
            held = shelf.live(sid)
            if held is None:
                if not await self._yield_to_standby(meta):
                    raise SessionUnavailable(f"session {sid} was lost here")
                return await self._forward(request, claims, shelf.meta(sid) or meta, hops)
            await self._confirm(held)
            if held.meta.home == self.node.name:
                return await self._at_home(
                    held, request, claims, "home" if not hops else "forwarded"
                )
        if claims is not None and request.kind == "read":
            copy = shelf.live(sid)
            has = copy is not None and (claims.turn or copy.meta.n)
            if copy is not None and has and not self.lacking(copy, claims):
                await self._durable()
                return self._read(copy, claims, "replica")
        return await self._forward(request, claims, shelf.meta(sid) or meta, hops)

    async def _forward(
        self, request: Request, claims: Claims | None, meta: Meta, hops: int
    ) -> Answer:
        if hops >= HOPS_MAX:
            raise Unavailable(f"session {meta.sid} changes its home too fast")
        standby_here = meta.standby == self.node.name and self.shelf.live(meta.sid) is not None
        try:
            return await self._ask(meta.home, request, hops, guard=standby_here or not hops)
        except (Unavailable, UnknownOutcome) as error:
            home_error = error
        if standby_here:
            if await self._take_over(meta.sid):
                live = self.shelf.live(meta.sid)
                assert live is not None
                return await self._at_home(live, request, claims, "takeover")
            raise home_error
        if meta.standby is not None and meta.standby not in (self.node.name, meta.home):
            return await self._ask(meta.standby, request, hops, guard=False)
        raise SessionUnavailable(f"session {meta.sid}: {meta.home} is out of reach")

    async def _ask(self, node: str, request: Request, hops: int, *, guard: bool) -> Answer:
        loop, life = self.node.world.loop, self.node.life
        call = loop.spawn(
            self.rpc.call(node, "do", (request, hops + 1), deadline_ms=FORWARD_MS), life
        )
        while not call.done:
            ready: Future[None] = Future()
            call.then(lambda ready=ready: ready.set(None))  # type: ignore[misc]
            loop.after(100.0, life, ready.set, None)
            await ready
            if guard and not call.done and self.silent_ms(node) >= TAKEOVER_AFTER_MS:
                raise Unavailable(f"{node} is silent")
        answer: Answer = call.result()
        claims = claims_from_json(answer.token)
        self.shelf.learn(claims.sid, claims.epoch, claims.standby)
        self._after_change()
        return replace(
            answer, served_by="forwarded" if answer.served_by == "home" else answer.served_by
        )

    async def _locate(self, sid: str, *, may_begin: bool) -> Meta | None:
        names = [c.node for c in self.candidates()]
        loop, life = self.node.world.loop, self.node.life
        calls = [
            loop.spawn(self.rpc.call(name, "locate", sid, deadline_ms=1_000.0), life)
            for name in names
        ]
        found: Meta | None = None
        silent = False
        for call in calls:
            try:
                meta: Meta | None = await call
            except RoostError:
                silent = True
                continue
            if meta is not None and (found is None or meta.epoch > found.epoch):
                found = meta
        if found is not None:
            return self.shelf.meta(sid) or self.shelf.remember_stub(sid, found.epoch, found.standby)
        if self.shelf.meta(sid) is not None:
            return self.shelf.meta(sid)
        if silent:
            raise Unavailable(f"session {sid} is not known here and a neighbour is silent")
        if not may_begin:
            raise NoSession(f"no node knows session {sid}")
        return None

    async def _remote_do(self, peer: str, args: Any) -> Answer:
        request, hops = args
        return await self.do(request, hops)

    async def _remote_locate(self, peer: str, sid: Any) -> Meta | None:
        meta = self.shelf.meta(sid)
        await self._durable()
        return meta if meta is not None and meta.held else None

    async def _remote_ping(self, peer: str, args: Any) -> bool:
        return True

    # --- takeover

    async def _take_over(self, sid: str) -> bool:
        running = self._taking.get(sid)
        if running is None or running.done:
            running = self.node.world.loop.spawn(self._try_take_over(sid), self.node.life)
            self._taking[sid] = running
        taken: bool = await running
        return taken

    async def _try_take_over(self, sid: str) -> bool:
        meta = self.shelf.meta(sid)
        assert meta is not None
        home = meta.home
        wait_ms = TAKEOVER_AFTER_MS - self.silent_ms(home)
        while wait_ms > 0:
            await self.node.world.loop.sleep(wait_ms + 10.0, self.node.life)
            silent_ms = self.silent_ms(home)
            if silent_ms < TAKEOVER_AFTER_MS and silent_ms < wait_ms:
                return False
            wait_ms = TAKEOVER_AFTER_MS - silent_ms
        if not await self.probe_failed(home):
            return False
        if not self.stream.take_over(sid, probe_failed=True):
            return False
        silent_ms = self.silent_ms(home)
        if silent_ms < TAKEOVER_AFTER_MS:
            self.node.problems.append(
                f"I9: {self.node.name} takes {sid} over from {home}, which it heard {silent_ms} ms "
                "ago"
            )
        await self._durable()
        self._count("takeover")
        self.node.say(f"takes over {sid} from {home}")
        return True

    async def probe_failed(self, home: str) -> bool:
        """One more question to a home that is silent."""
        try:
            await self.rpc.call(home, "ping", None, deadline_ms=PROBE_MS)
        except RoostError:
            return True
        return False

    async def _confirm(self, live: SessionCopy) -> None:
        """After a start or a pause: ask the standby whether this node is still home."""
        meta = live.meta
        if live.confirmed == self.shelf.generation or meta.standby is None:
            return
        try:
            found = await self.rpc.call(meta.standby, "locate", meta.sid, deadline_ms=CONFIRM_MS)
        except RoostError:
            return
        if found is not None and found.epoch > live.meta.epoch:
            self._count("deposed when asking")
            self.shelf.learn(meta.sid, found.epoch, found.standby)
            self.sweep()
            return
        live.confirmed = self.shelf.generation

    async def _yield_to_standby(self, meta: Meta) -> bool:
        """This node is named home and holds nothing (its store is new): the standby takes over."""
        if meta.standby is None or meta.standby == self.node.name:
            return False
        try:
            found = await self.rpc.call(meta.standby, "yield", meta.sid, deadline_ms=CONFIRM_MS)
        except RoostError:
            return False
        if found is None:
            return False
        self.shelf.learn(meta.sid, found.epoch, found.standby)
        return True

    async def _remote_yield(self, peer: str, sid: Any) -> Meta | None:
        live = self.shelf.live(sid)
        if live is None:
            return None
        if live.meta.home == peer and live.meta.standby == self.node.name:
            live.enter_epoch(self.node.name, peer, self.node.wall_ms())
            live.confirmed = self.shelf.generation
            self.stream.offer(live)
            await self._durable()
            self._count("yielded")
        return live.meta

    # --- handover

    async def move(self, sid: str, node: str) -> bool:
        """Hand a session that is at home here over; False if it stays."""
        live = self.shelf.live(sid)
        if live is None or live.meta.home != self.node.name or live.handing_over:
            return False
        live.handing_over = True
        try:
            async with self.lock(sid):
                if live.meta.home != self.node.name:
                    return False
                frame = self.stream.handover(live, node)
                try:
                    await self.rpc.call(node, "adopt", encode_frame(frame), deadline_ms=1_500.0)
                except UnknownOutcome:
                    self._count("handover unknown")
                    self.stream.handover_unknown(live, frame)
                    await self._durable()
                    return False
                except RoostError:
                    return False
                self.stream.handed_over(live, frame)
                await self._durable()
                self._count("handover")
                self.node.say(f"hands {sid} over to {node}")
                return True
        finally:
            live.handing_over = False

    async def _remote_adopt(self, peer: str, payload: Any) -> bool:
        frame = decode_frame(payload)
        assert isinstance(frame, Whole)
        if not self.stream.adopt(frame):
            raise Unavailable(f"session {frame.sid} has a newer epoch here")
        await self._durable()
        return True

    async def drain(self) -> int:
        """Hand every session that is at home here to its standby; how many remain."""
        remain = 0
        for meta in self.shelf.table.heads("", 1_000):
            known = self.shelf.meta(meta.sid) or meta
            if known.held and known.home == self.node.name:
                moved = known.standby is not None and await self.move(known.sid, known.standby)
                remain += not moved
        return remain

    # --- at home

    def lock(self, sid: str) -> Lock:
        return self._locks.setdefault(sid, Lock())

    def still_home(self, live: SessionCopy) -> None:
        """After every wait: the session may have moved meanwhile."""
        if live.meta.home != self.node.name:
            raise Unavailable(f"session {live.meta.sid} has just moved")

    def lacking(self, live: SessionCopy, claims: Claims | None) -> int:
        """How many turns this copy lacks of what the token's bearer has seen."""
        return 0 if claims is None else lacks(claims, live.fold.lineage())

    async def _at_home(
        self, live: SessionCopy, request: Request, claims: Claims | None, served_by: str
    ) -> Answer:
        with live.pinned():
            if request.kind == "open":
                answer = self._opened(live)
            elif request.kind == "read":
                answer = self._read(live, claims, served_by)
            else:
                async with self.lock(live.meta.sid):
                    self.still_home(live)
                    if request.kind == "commit":
                        answer = await self._commit(live, request, claims)
                    else:
                        answer = await self._call(live, request)
        await self._durable()
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
            node=self.node.name,
            held=held,
            promised_ms=self.node.world.loop.now_ms,
        )

    def _opened(self, live: SessionCopy) -> Answer:
        return self._answer(live)

    def _read(self, live: SessionCopy, claims: Claims | None, served_by: str) -> Answer:
        answer = self._answer(live)
        answer.messages = live.fold.messages(None)
        answer.stale = self.lacking(live, claims)
        answer.served_by = served_by
        return answer

    async def _commit(self, live: SessionCopy, request: Request, claims: Claims | None) -> Answer:
        stale = self.lacking(live, claims)
        first = live.fold.find_turn_id(request.turn_id)
        if first is None:
            if claims is not None and not stale and request.on_conflict == "reject":
                seen = claims.path[-1] if claims.path else None
                on_path = seen is None or live.fold.on_path((seen[0], seen[1], seen[3]))
                if not on_path or live.head_turn() != claims.turn:
                    raise TurnConflict(f"session {live.meta.sid} is at {live.head_turn()}")
            await self._previous_turn(live)
            self.still_home(live)
            now_ms = self.node.wall_ms()
            turn = live.head_turn() + 1
            entry = fold.turn_entry(
                live.meta.epoch,
                turn,
                parent=live.fold.turn,
                turn_id=request.turn_id,
                messages=[request.message],
                at_ms=now_ms,
            )
            update = live.write(dict([entry]), {}, now_ms)
            self.stream.publish(live, update)
            live.turn_n = update.n
            first = live.fold.find_turn_id(request.turn_id)
            assert first is not None
        else:
            self._count("turn id repeated")
        await self._durable()
        answer = self._answer(live)
        answer.ref, answer.stale, answer.turn = first.ref, stale, first.turn
        answer.protected = self.stream.protected(live)
        return answer

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
        state = live.fold.calls.get(request.call)
        epoch = live.meta.epoch
        status = live.fold.status(request.call, epoch[0]) if state is not None else None
        if request.status == "begun":
            attempt = 1 if state is None else state.attempt + 1
            done = state is not None and status not in ("in_doubt", "failed")
        elif state is None:
            raise BadRequest(f"call {request.call} was never begun")
        else:
            attempt, done = state.attempt, status in ("finished", request.status)
        if not done:
            now_ms = self.node.wall_ms()
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
        await self._durable()
        answer = self._answer(live)
        after = live.fold.calls[request.call]
        answer.status, answer.result = after.status, after.result
        return answer


def _frame_text(payload: bytes) -> str:
    frame = decode_frame(payload)
    parts = [type(frame).__name__, frame.sid]
    for name in ("epoch", "standby", "n"):
        value = getattr(frame, name, None)
        if value is not None:
            parts.append(f"{name} {value}")
    return f"{' '.join(parts)} ({len(payload)} bytes)"


def refs_of(live: SessionCopy) -> list[TurnRef]:
    """Every turn that a copy holds, on whatever branch."""
    branches = [entry.ref for branch in live.fold.branches() for entry in branch.entries]
    return [*(entry.ref for entry in live.fold.path()), *branches]
