"""Clients of sessions, and what must be true of every session at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random

from roost_crdt.entries import TurnRef
from roost_crdt.errors import RoostError, TurnConflict
from roost_crdt.token import claims_from_json

from .answers import Answer, Request
from .loop import Loop, Lost
from .node import Node
from .sessions import Sessions

ATTEMPTS_MAX = 6


@dataclass(slots=True, eq=False)
class Turn:
    """A turn that a client asked for. `refs` are the places it was told."""

    sid: str
    turn_id: str
    message: bytes
    refs: dict[TurnRef, float] = field(default_factory=dict)
    """Place -> when it was answered, while the answer binds."""
    told_by: dict[TurnRef, str] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Finish:
    """A finished call that was answered."""

    sid: str
    call: str
    result: bytes
    node: str
    at_ms: float


class Talks:
    """What all clients of sessions did."""

    def __init__(self) -> None:
        self.turns: dict[str, Turn] = {}
        self.finishes: list[Finish] = []
        self.results: dict[tuple[str, str], set[bytes]] = {}
        """Every result that was offered for a call: two homes that finish it keep one of them."""
        self.sids: dict[str, None] = {}
        self.opened: dict[str, bytes] = {}
        """The first token of each session; who talks to it later was given it."""
        self.opener: dict[str, Talker] = {}
        self.problems: list[str] = []
        self.voided: list[tuple[str, float, float]] = []

    def binds(self, node: str, promised_ms: float) -> bool:
        """Whether an answer that arrives now was not made void on its way."""
        return not any(
            node == other and since_ms <= promised_ms <= until_ms
            for other, since_ms, until_ms in self.voided
        )

    def void(self, node: str, since_ms: float, now_ms: float) -> None:
        """What this node promised as a home since then it cannot keep."""
        self.voided.append((node, since_ms, now_ms))
        for turn in self.turns.values():
            for ref in [
                r for r, at in turn.refs.items() if turn.told_by[r] == node and at >= since_ms
            ]:
                del turn.refs[ref]
        self.finishes = [f for f in self.finishes if f.node != node or f.at_ms < since_ms]

    def check_read(self, answer: Answer, request: Request, seen: Mapping[TurnRef, float]) -> None:
        """I8: what the token's bearer has seen is there, or counted as lacking."""
        assert request.token is not None
        claims = claims_from_json(request.token)
        path = {(n, node): (start, last) for n, node, start, last in claims.path}
        lacking = [
            ref
            for ref in seen
            if ref[:2] in path
            and path[ref[:2]][0] < ref[2] <= path[ref[:2]][1]
            and ref not in answer.held
        ]
        if len(lacking) > answer.stale:
            self.problems.append(
                f"I8: {answer.node} serves {request.sid} as {answer.stale} turns stale, "
                f"{len(lacking)} are lacking: {lacking[:3]}"
            )


class Talker:
    """One client of one session; another one may talk to the same session."""

    def __init__(
        self, talks: Talks, nodes: Mapping[str, Node], loop: Loop, random: Random, sid: str
    ) -> None:
        self._talks = talks
        self._nodes = nodes
        self._loop = loop
        self._random = random
        self._sid = sid
        self._at = random.choice(sorted(nodes))
        self._token: bytes | None = None
        self._seen: dict[TurnRef, float] = {}
        self._number = 0

    async def run(self, busy: Callable[[], bool], pause_ms: float) -> None:
        while busy():
            await self._loop.sleep(pause_ms * 2 * self._random.random(), None)
            if self._token is None:
                self._token = self._talks.opened.get(self._sid)
            if self._token is None:
                # An open that is retried elsewhere during a cut would begin the session twice.
                first = self._talks.opener.setdefault(self._sid, self)
                if first is self:
                    await self._ask(Request("open", self._sid), stay=True)
                continue
            if self._random.random() < 0.1:
                self._at = self._random.choice(sorted(self._nodes))
            choice = self._random.random()
            if choice < 0.45:
                await self._commit()
            elif choice < 0.8:
                await self._read()
            elif choice < 0.95:
                await self._call()
            else:
                await self._move()

    def _service(self) -> Sessions | None:
        node = self._nodes[self._at]
        if node.life is None or not (node.may_write_before_greeting or node.greeted):
            return None
        shell = node.shell
        assert shell is None or isinstance(shell, Sessions)
        return shell

    async def _ask(self, request: Request, *, stay: bool = False) -> Answer | None:
        """None: it may or may not have happened. TurnConflict is passed on."""
        service = self._service()
        if service is None:
            if not stay:
                self._at = self._random.choice(sorted(self._nodes))
            return None
        trace, life = service.node.world.trace, service.node.life
        service.node.say(f"{request.kind} {self._sid} {request.turn_id}{request.call}".rstrip())
        trace.count("session", request.kind)
        try:
            answer: Answer = await self._loop.spawn(service.do(request), life)
        except TurnConflict:
            trace.count("session", "conflict")
            raise
        except (Lost, RoostError) as error:
            trace.count("session", type(error).__name__)
            if not stay and self._random.random() < 0.5:
                self._at = self._random.choice(sorted(self._nodes))
            return None
        self._token = answer.token
        self._talks.sids[self._sid] = None
        self._talks.opened.setdefault(self._sid, answer.token)
        trace.count("served by", answer.served_by)
        if answer.stale:
            trace.count("session", "stale turns told")
        return answer

    async def _commit(self) -> None:
        self._number += 1
        turn_id = f"{self._sid}.{id_of(self._random)}"
        message = b'"%s"' % turn_id.encode()
        turn = self._talks.turns[turn_id] = Turn(self._sid, turn_id, message)
        on_conflict = self._random.choice(("append", "append", "reject"))
        for _ in range(ATTEMPTS_MAX):
            token = self._token if self._random.random() < 0.9 else None
            request = Request("commit", self._sid, token, turn_id, message, on_conflict=on_conflict)
            try:
                answer = await self._ask(request)
            except TurnConflict:
                await self._read()
                return
            if answer is not None:
                assert answer.ref is not None
                # What was told before is told again: by whom it was committed does not matter.
                if self._talks.binds(answer.node, answer.promised_ms):
                    turn.refs[answer.ref] = answer.promised_ms
                    turn.told_by[answer.ref] = answer.node
                self._seen[answer.ref] = self._loop.now_ms
                return
            await self._loop.sleep(300.0 * self._random.random(), None)

    async def _read(self) -> None:
        request = Request("read", self._sid, self._token)
        answer = await self._ask(request)
        if answer is not None:
            self._talks.check_read(answer, request, self._seen)

    async def _call(self) -> None:
        call = f"call{self._random.randint(1, 4)}"
        begun = await self._ask(Request("call", self._sid, self._token, call=call, status="begun"))
        if begun is None or begun.status == "finished":
            return
        await self._loop.sleep(100.0 * self._random.random(), None)
        result = b'"%s"' % id_of(self._random).encode()
        self._talks.results.setdefault((self._sid, call), set()).add(result)
        done = await self._ask(
            Request("call", self._sid, self._token, call=call, status="finished", result=result)
        )
        if done is None or done.status != "finished" or done.result is None:
            return
        if self._talks.binds(done.node, done.promised_ms):
            self._talks.finishes.append(
                Finish(self._sid, call, done.result, done.node, done.promised_ms)
            )

    async def _move(self) -> None:
        service = self._service()
        if service is None:
            return
        others = [c.node for c in service.candidates()]
        if others:
            target = self._random.choice(others)
            try:
                await self._loop.spawn(service.move(self._sid, target), service.node.life)
            except (Lost, RoostError):
                return


def id_of(random: Random) -> str:
    """A fresh name."""
    return f"{random.getrandbits(40):010x}"


# --- at the end -----------------------------------------------------------------------------------


def settled(nodes: Mapping[str, Node], sids: Mapping[str, None]) -> bool:
    """Whether every session has one home whose standby holds all of it."""
    return not any(_unsettled(nodes, sid) for sid in sids)


def _services(nodes: Mapping[str, Node]) -> dict[str, Sessions]:
    return {
        name: node.shell for name, node in sorted(nodes.items()) if isinstance(node.shell, Sessions)
    }


def _unsettled(nodes: Mapping[str, Node], sid: str) -> str:
    services = _services(nodes)
    metas = {name: service.shelf.meta(sid) for name, service in services.items()}
    homes = [name for name, m in metas.items() if m is not None and m.held and m.home == name]
    if not any(m is not None and m.held for m in metas.values()):
        return ""  # nobody has it any more: an error only if an answer binds
    newest = max((m for m in metas.values() if m is not None and m.held), key=lambda m: m.epoch)
    if not homes and nodes[newest.home].excused_rollbacks and newest.standby is None:
        return ""  # its home lost it and had no standby yet
    if len(homes) != 1:
        return f"I9: {sid} is at home at {homes}"
    home = homes[0]
    meta = metas[home]
    assert meta is not None
    unmerged = [name for name, m in metas.items() if m is not None and m.unmerged]
    if unmerged:
        return f"I9: {unmerged} hold turns of {sid} that {home} has not taken"
    beyond = [name for name, m in metas.items() if m is not None and m.epoch > meta.epoch]
    if beyond:
        return f"I9: {beyond} know a higher epoch of {sid} than its home {home}"
    copy = metas.get(meta.standby or "")
    if copy is None:
        return f"I9: {sid} has no copy at its standby {meta.standby}"
    if (copy.epoch, copy.n, copy.chain) != (meta.epoch, meta.n, meta.chain):
        return f"I9: the standby {meta.standby} of {sid} is behind"
    return ""


def check_sessions(nodes: Mapping[str, Node], talks: Talks) -> list[str]:
    """I7 and I9 of every session."""
    problems = list(talks.problems)
    services = _services(nodes)
    for sid in talks.sids:
        unsettled = _unsettled(nodes, sid)
        if unsettled:
            problems.append(unsettled)
            continue
        home = next(
            (
                service
                for name, service in services.items()
                if (meta := service.shelf.meta(sid)) is not None and meta.held and meta.home == name
            ),
            None,
        )
        if home is not None:
            problems += _check_content(services, home, sid, talks)
        elif any(turn.refs for turn in talks.turns.values() if turn.sid == sid):
            problems.append(f"I9: nobody is at home with {sid}, of which turns were answered")
    return problems


def _check_content(
    services: Mapping[str, Sessions], home: Sessions, sid: str, talks: Talks
) -> list[str]:
    live = home.shelf.live(sid)
    assert live is not None
    problems = []
    path = live.fold.path()
    entries = {entry.ref: entry for entry in path}
    for branch in live.fold.branches():
        entries.update({entry.ref: entry for entry in branch.entries})
    ids = [entry.turn_id for entry in path]
    if len(set(ids)) != len(ids):
        problems.append(f"I9: a turn id is on the active path of {sid} twice")
    for turn in talks.turns.values():
        for ref in turn.refs if turn.sid == sid else ():
            found = entries.get(ref)
            if found is None:
                problems.append(f"I9: turn {ref} of {sid} was answered and is gone")
            elif found.turn_id != turn.turn_id or found.messages != [turn.message]:
                problems.append(f"I9: turn {ref} of {sid} was answered and is another one now")
    problems += _check_calls(live.fold.calls, sid, talks)
    assert live.meta.standby is not None
    copy = services[live.meta.standby].shelf.live(sid)
    if copy is None or copy.fold.raw_entries() != live.fold.raw_entries():
        problems.append(f"I9: the standby's copy of {sid} has other content")
    elif copy.document.encode() and sorted(copy.fold.lineage()) != sorted(live.fold.lineage()):
        problems.append(f"I9: the standby's lineage of {sid} differs")
    return problems


def _check_calls(calls: Mapping[str, object], sid: str, talks: Talks) -> list[str]:
    problems = []
    for finish in talks.finishes:
        if finish.sid != sid:
            continue
        state = calls.get(finish.call)
        status = getattr(state, "status", None)
        if status != "finished":
            problems.append(f"I7: {finish.call} of {sid} was finished and is {status} now")
        elif getattr(state, "result", None) not in talks.results[sid, finish.call]:
            problems.append(f"I7: {finish.call} of {sid} has a result that nobody gave")
    return problems
