"""Clients of sessions: they talk, read, call tools, fork, move and erase, and retry what failed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random

from roost_crdt.entries import TurnRef
from roost_crdt.errors import NoSession, RoostError, TurnConflict

from .answers import Answer, Request
from .loop import Loop, Lost
from .node import Node
from .sessions import Sessions
from .talks import Talks, Turn

ATTEMPTS_MAX = 6
FIELDS = ("x", "y", "z")
CONFLICTS = ("append", "append", "append", "reject", "reject", "fork")


class Talker:
    """One client of one session at a time; another one may talk to the same session.

    A `rival` opens its session without regard to whether another client does.
    """

    def __init__(
        self,
        talks: Talks,
        nodes: Mapping[str, Node],
        loop: Loop,
        random: Random,
        sid: str,
        *,
        at: str | None = None,
        rival: bool = False,
    ) -> None:
        self._talks = talks
        self._nodes = nodes
        self._loop = loop
        self._random = random
        self._sid = sid
        self._at = at or random.choice(sorted(nodes))
        self._rival = rival
        self._token: bytes | None = None
        self._seen: dict[TurnRef, float] = {}
        self._acts: dict[Callable[[], object], float] = {
            self._commit: 42.0,
            self._read: 33.0,
            self._call: 14.0,
            self._move: 5.0,
            self._summarise: 3.0,
            self._fork: 2.0,
            self._erase: 0.7,
        }

    async def run(self, busy: Callable[[], bool], pause_ms: float) -> None:
        acts, weights = list(self._acts), list(self._acts.values())
        while busy():
            await self._loop.sleep(pause_ms * 2 * self._random.random(), None)
            if self._token is None and not self._rival:
                self._token = self._talks.opened.get(self._sid)
            if self._token is None:
                await self._open()
                continue
            if self._random.random() < 0.1:
                self._at = self._random.choice(sorted(self._nodes))
            act = self._random.choices(acts, weights)[0]
            await act()  # type: ignore[misc]

    async def _open(self) -> None:
        # An open that is retried elsewhere during a cut would begin the session twice.
        if self._rival or self._talks.opener.setdefault(self._sid, self) is self:
            await self._ask(Request("open", self._sid), stay=True)

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
            if isinstance(error, NoSession) and "erased" in str(error):
                self._another()
            elif not stay and self._random.random() < 0.5:
                self._at = self._random.choice(sorted(self._nodes))
            return None
        self._talks.told(answer, request)
        if answer.sid == self._sid:
            self._token = answer.token
            self._talks.opened.setdefault(self._sid, answer.token)
        trace.count("served by", answer.served_by)
        if answer.stale:
            trace.count("session", "stale turns told")
        return answer

    def _talk_to(self, sid: str, token: bytes | None) -> None:
        self._sid, self._token, self._rival = sid, token, False
        self._seen = {}

    def _another(self) -> None:
        """The session was erased: all its clients open one and the same instead."""
        after = self._talks.after.setdefault(self._sid, f"{self._sid}+")
        self._talk_to(after, self._talks.opened.get(after))

    # --- what it does

    async def _commit(self) -> None:
        turn_id = f"{self._sid}.{id_of(self._random)}"
        message = b'"%s"' % turn_id.encode()
        put: tuple[tuple[str, bytes | None], ...] = ()
        if self._random.random() < 0.3:
            value = None if self._random.random() < 0.2 else message
            put = ((self._random.choice(FIELDS), value),)
        turn = self._talks.turns[turn_id] = Turn(turn_id, message, put)
        on_conflict = self._random.choice(
            ("append", "append", "append", "reject", "reject", "fork")
        )
        sid = self._sid
        if on_conflict == "fork":
            self._talks.children[f"{sid}-{turn_id[-10:]}"] = None
        for _ in range(ATTEMPTS_MAX):
            token = self._token if self._random.random() < 0.9 else None
            request = Request(
                "commit", sid, token, turn_id, message, on_conflict=on_conflict, put=put
            )
            try:
                answer = await self._ask(request)
            except TurnConflict:
                await self._read()
                return
            if self._sid != sid:
                return  # it was erased
            if answer is not None:
                assert answer.ref is not None
                self._talks.told_turn(turn, answer)
                if answer.sid != sid:
                    self._loop_count("turn onto a fork")
                    self._talks.opened.setdefault(answer.sid, answer.token)
                    self._talk_to(answer.sid, answer.token)
                self._seen[answer.ref] = self._loop.now_ms
                return
            await self._loop.sleep(300.0 * self._random.random(), None)

    async def _read(self) -> None:
        request = Request("read", self._sid, self._token)
        answer = await self._ask(request)
        if answer is not None and request.token is not None:
            self._talks.check_read(answer, request, self._seen)

    async def _call(self) -> None:
        sid, talks = self._sid, self._talks
        call = f"{sid.partition('-')[0]}.call{self._random.randint(1, 4)}"
        retry = self._random.random() < 0.5
        talks.asked[sid, call] = talks.asked.get((sid, call), 0) + 1
        request = Request("call", sid, self._token, call=call, status="begun", retry=retry)
        begun = await self._ask(request)
        if begun is None:
            return
        if begun.served_by == "home":
            talks.asked[sid, call] -= 1
        talks.told_call(begun, call)
        if begun.status == "in_doubt":
            self._loop_count("call in doubt")
        if begun.status == "finished" or not (begun.fresh or self._random.random() < 0.2):
            return
        await self._loop.sleep(100.0 * self._random.random(), None)
        result = b'"%s"' % id_of(self._random).encode()
        status = "failed" if self._random.random() < 0.2 else "finished"
        if status == "finished":
            talks.results.setdefault(call, set()).add(result)
        if self._sid != sid:
            return
        request = Request("call", sid, self._token, call=call, status=status, result=result)
        done = await self._ask(request)
        if done is not None:
            talks.told_call(done, call)

    async def _summarise(self) -> None:
        message = b'"summary %s"' % id_of(self._random).encode()
        answer = await self._ask(Request("summarise", self._sid, self._token, message=message))
        if answer is not None and answer.ref is not None:
            self._talks.told_summary(answer)

    async def _fork(self) -> None:
        child = f"{self._sid.partition('-')[0]}-f{id_of(self._random)}"
        self._talks.children[child] = None
        at = None if self._random.random() < 0.5 else self._random.randint(0, 3)
        request = Request("fork", self._sid, self._token, child=child, at=at)
        answer = await self._ask(request)
        if answer is None:
            return
        self._talks.opened.setdefault(child, answer.token)
        self._talks.told_fork(answer)
        if self._random.random() < 0.5:
            self._talk_to(child, answer.token)

    async def _erase(self) -> None:
        sid = self._sid
        answer = await self._ask(Request("erase", sid, self._token))
        if answer is not None and self._sid == sid:
            self._another()

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

    def _loop_count(self, what: str) -> None:
        self._nodes[self._at].world.trace.count("session", what)


def id_of(random: Random) -> str:
    """A fresh name."""
    return f"{random.getrandbits(40):010x}"
