"""Sessions of one simulated node: the shell of `roost_crdt.sessions` and `roost_crdt.home`.

What `roostd.sessions` does with asyncio, sockets and signed tokens this does in virtual time with
bare claims: where a request is carried out, takeover on the standby's own evidence, handover.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from roost_crdt.errors import (
    NoSession,
    PeerError,
    RoostError,
    SessionUnavailable,
    Unavailable,
    UnknownOutcome,
)
from roost_crdt.home import Candidate, Meta, Whole, decode_frame, encode_frame, told_once
from roost_crdt.neighbourhood import beyond
from roost_crdt.peer import LinkState
from roost_crdt.sessions.copy import SessionCopy
from roost_crdt.sessions.shelf import Shelf
from roost_crdt.sessions.stream import Stream
from roost_crdt.sessions.table import SessionTable
from roost_crdt.token import Claims, claims_from_json

from .answers import Answer, ForkFirst, Lock, Request, SessionRows, frame_text, live_home
from .erasing import Erasing
from .loop import Future
from .node import Node
from .rpc import Rpc

TAKEOVER_AFTER_MS = 400
TICK_MS = 250.0
SWEEP_AGAIN_MS = 500.0
FORWARD_MS = 3_000.0
PROBE_MS = 300.0
CONFIRM_MS = 600.0
HOPS_MAX = 3


class Sessions(Erasing):
    """One life's session service."""

    def __init__(self, node: Node, rpc: Rpc) -> None:
        self.node = node
        self.rpc = rpc
        self.shelf = Shelf(
            node=node.name,
            region=node.region,
            actor=node.store.actor,
            table=SessionTable(SessionRows(node)),
            limits=node.world.limits,
            now_ms=node.wall_ms,
        )
        self.stream = Stream(self.shelf, self, takeover_after_ms=TAKEOVER_AFTER_MS)
        self._missed: set[str] = set()
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
            "erase": self.remote_erase,
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

    def beyond(self) -> set[str]:
        return beyond(self.node.name, self.node.replica.peers)

    def silent_ms(self, node: str) -> int:
        return self.node.links.silent_ms(node)

    # --- roost_sim.node.Shell

    def link_up(self, peer: str) -> None:
        self.sweep(peer)

    def frame(self, peer: str, payload: bytes) -> None:
        self.count(type(decode_frame(payload)).__name__)
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
            elif not sent and told_once(payload):
                self._missed.add(peer)
            if self.node.world.trace.detailed:
                lost = "" if sent else " (no link or no room)"
                self.node.say(f"-> {peer} {frame_text(payload)}{lost}")
            self.node.wake()

    def _relay(self, peer: str, payload: bytes) -> None:
        """A former home may be no neighbour of the new one: its turns go by way of others."""
        if self.node.replica.routes(peer):
            call = self.rpc.call(peer, "frame", payload, deadline_ms=1_000.0)
            self.node.world.loop.spawn(call, self.node.life)
            self.count("frame relayed")

    async def _remote_frame(self, peer: str, payload: Any) -> None:
        self.frame(peer, payload)

    def actor_changed(self) -> None:
        self.shelf.renew(self.node.store.actor)

    def _after_change(self) -> None:
        if self.node.store.dirty:
            self.node.wake()
        else:
            self.flushed()

    def sweep(self, *newcomers: str, repeated: bool = False) -> None:
        self._missed.clear()
        after: str | None = ""
        while after is not None:
            after = self.stream.sweep_page(after, newcomers, repeated=repeated)
        self._after_change()
        if newcomers:
            self.node.world.loop.after(SWEEP_AGAIN_MS, self.node.life, self._missed_by, newcomers)

    def _missed_by(self, newcomers: tuple[str, ...]) -> None:
        """A link that comes up has little room at first, and epochs are told only once."""
        missed = self._missed.intersection(newcomers, self.node.replica.peers)
        if missed:
            self.count("sweep again")
            self.sweep(*sorted(missed), repeated=True)

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

    # --- where a request goes

    async def do(self, request: Request, hops: int = 0) -> Answer:
        try:
            return await self._route(request, hops)
        except ForkFirst as fork:
            return await self._onto_fork(request, fork, hops)

    async def _onto_fork(self, request: Request, fork: ForkFirst, hops: int) -> Answer:
        """The turn on a fork of its own; a retry finds the fork that the first try made."""
        meta = self.shelf.meta(fork.child) or await self._locate(fork.child, may_begin=True)
        if meta is None:
            live = self.shelf.live(request.sid)
            if live is None:
                raise Unavailable(f"session {request.sid} has just moved")
            self.still_home(live)
            self.fork(live, fork.child, fork.at)
            await self.durable()
        onto = replace(request, sid=fork.child, token=None, on_conflict="append")
        return await self.do(onto, hops)

    async def _route(self, request: Request, hops: int) -> Answer:
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
                self.stream.announce(live)
                await self.durable()
                return self.opened(live)
        shelf.check_lives(meta)
        if meta.home == self.node.name:
            held = shelf.live(sid)
            if held is None:
                if not await self._yield_to_standby(meta):
                    raise SessionUnavailable(f"session {sid} was lost here")
                return await self._forward(request, claims, shelf.meta(sid) or meta, hops)
            with held.pinned():
                await self._confirm(held)
            if held.meta.home == self.node.name:
                return await self._here(held, request, claims, "forwarded" if hops else "home")
        if claims is not None and request.kind == "read":
            copy = shelf.live(sid)
            has = copy is not None and (claims.turn or copy.meta.n)
            if copy is not None and has and not self.lacking(copy, claims):
                await self.durable()
                return self.read(copy, claims, "replica")
        return await self._forward(request, claims, shelf.meta(sid) or meta, hops)

    async def _here(
        self, live: SessionCopy, request: Request, claims: Claims | None, served_by: str
    ) -> Answer:
        if request.kind == "erase":
            return await self.erase_everywhere(live)
        return await self.at_home(live, request, claims, served_by)

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
                if live is None:
                    raise NoSession(f"session {meta.sid} was erased")
                return await self._here(live, request, claims, "takeover")
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
        names = [*(c.node for c in self.candidates()), *sorted(self.beyond())]
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
            if meta is not None and (
                found is None or (meta.erased_ms, meta.epoch) > (found.erased_ms, found.epoch)
            ):
                found = meta
        if found is not None and found.erased_ms:
            raise NoSession(f"session {sid} was erased")
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
        await self.durable()
        return meta if meta is not None and (meta.held or meta.erased_ms) else None

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
        if live_home(self.shelf.meta(sid)) == self.node.name:
            return True  # it was handed over meanwhile
        if not self.stream.take_over(sid, probe_failed=True):
            return False
        silent_ms = self.silent_ms(home)
        if silent_ms < TAKEOVER_AFTER_MS:
            self.node.problems.append(
                f"I9: {self.node.name} takes {sid} over from {home}, which it heard {silent_ms} ms "
                "ago"
            )
        await self.durable()
        self.count("takeover")
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
            self.count("deposed when asking")
            self.shelf.learn(meta.sid, found.epoch, found.standby)
            self.sweep()
            return
        if found is not None and self.stream.shown_copy(live, found.epoch, found.n, found.chain):
            self.count("lost tail found when asking")
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
            await self.durable()
            self.count("yielded")
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
                meta = self.shelf.meta(sid)
                if live.meta.home != self.node.name or (meta is not None and meta.erased_ms):
                    return False
                frame = self.stream.handover(live, node)
                try:
                    await self.rpc.call(node, "adopt", encode_frame(frame), deadline_ms=1_500.0)
                except UnknownOutcome:
                    self.count("handover unknown")
                    self.stream.handover_unknown(live, frame)
                    await self.durable()
                    return False
                except RoostError:
                    return False
                self.stream.handed_over(live, frame)
                await self.durable()
                self.count("handover")
                self.node.say(f"hands {sid} over to {node}")
                return True
        finally:
            live.handing_over = False

    async def _remote_adopt(self, peer: str, payload: Any) -> bool:
        frame = decode_frame(payload)
        assert isinstance(frame, Whole)
        if not self.stream.adopt(frame):
            raise Unavailable(f"session {frame.sid} has a newer epoch here")
        await self.durable()
        return True

    async def drain(self) -> int:
        """Hand every session that is at home here to somebody else; how many remain."""
        remain = 0
        with self.stream.draining():
            for meta in self.shelf.table.heads("", 1_000):
                known = self.shelf.meta(meta.sid) or meta
                if known.held and known.home == self.node.name:
                    remain += not await self._give(known.sid)
        return remain

    async def _give(self, sid: str) -> bool:
        refused: set[str] = set()
        while (live := self.shelf.live(sid)) is not None and live.meta.home == self.node.name:
            node = self.stream.next_home(live, refused)
            if node is None:
                return False
            refused.add(node)
            await self.move(sid, node)
        return True
