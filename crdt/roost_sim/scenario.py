"""Scenarios: a run told line by line, whose trace a person can read.

    nodes eu us ap              start nodes (each in a region of its own name)
    link eu us 80               make them neighbours, 80 ms apart
    put eu key value            set a register; add, reset: a counter; sadd, srem: a set
    get us key                  what a node shows
    session eu s1               open a session; its client keeps the newest token
    turn eu s1 "hello"          commit a turn; read eu s1: the messages and how many turns lack
    retry us s1                 the last turn again, under its turn id
    call eu s1 c1 finished "r"  one step of a tool call: begun, finished or failed
    keep s1 old, use s1 old     put the client's token aside; show that one from now on
    move eu s1 us               hand a session over; drain eu us: these nodes give all theirs away
    fork eu s1 s2, erase eu s1  a new session with the turns so far; every copy is dropped
    homes s1, show eu s1        what each node knows of a session; its turns in one node's copy
    partition eu us, heal       cut the path between two nodes both ways; all paths are whole again
    crash eu, power eu, stop eu, restart eu
    clock eu 3000, lie eu, pause eu 2000
    remove us ap                us takes ap out of the members
    wait 500, settle            let time pass, or let it pass until all is quiet
    expect eu key value         a register, counter or set (expect eu s1 2: turns of a session)

A line that begins with `>` is trace. `play` returns the commands with the trace that they have now.
"""

from __future__ import annotations

import shlex
from dataclasses import replace

from roost_crdt import values
from roost_crdt.errors import RoostError
from roost_crdt.rows import counter, register
from roost_crdt.rows import set as set_rows
from roost_crdt.rows.layout import TYPE_COUNTER, TYPE_REGISTER, TYPE_SET

from .answers import Request
from .loop import Future, Lost
from .node import Node
from .run import Plan, Run
from .sessions import Sessions

ANSWER_MS = 10_000.0
SETTLE_MS = 30_000.0


class WrongScenario(Exception):
    """A line that cannot be carried out, or an expectation that does not hold."""


class Scenario:
    """One scenario while it is played."""

    def __init__(self) -> None:
        self._run = Run(0, keep_trace=True)
        self._run.plan = Plan("line", 0, 0.0, 0.0, 0, 0, 0.0, {})
        self._run.world.network.jitter_ms = 0.0
        self._loop = self._run.world.loop
        self._tokens: dict[str, bytes] = {}
        self._kept: dict[tuple[str, str], bytes] = {}
        self._last: dict[str, Request] = {}
        self._turns = 0

    def play(self, text: str) -> str:
        """The commands of `text`, each followed by its trace. WrongScenario names the line."""
        out: list[str] = []
        for number, line in enumerate(text.splitlines(), 1):
            if line.startswith(">"):
                continue
            out.append(line.rstrip())
            words = shlex.split(line, comments=True)
            if not words:
                continue
            told = len(self._run.trace.lines)
            try:
                self._do(words[0], words[1:])
            except (KeyError, ValueError, TypeError) as error:
                raise WrongScenario(f"line {number}: {line}: {error!r}") from error
            except WrongScenario as error:
                trace = "\n".join(self._run.trace.lines[told:])
                raise WrongScenario(f"line {number}: {line}: {error}\n{trace}") from error
            out += [f"> {told_line}" for told_line in self._run.trace.lines[told:]]
        return "\n".join(out) + "\n"

    def _do(self, command: str, words: list[str]) -> None:
        method = getattr(self, f"_{command}_", None)
        if method is None:
            raise WrongScenario("no such command")
        method(*words)

    def _node(self, name: str) -> Node:
        return self._run.nodes[name]

    def _say(self, who: str, text: str) -> None:
        self._run.trace.say(self._loop.now_ms, who, text)

    # --- the cluster

    def _nodes_(self, *names: str) -> None:
        for name in names:
            self._run.join(name, ())
            self._run.start(name)

    def _link_(self, a: str, b: str, delay_ms: str) -> None:
        self._run.edges.append((a, b))
        self._run.world.network.link(a, b, float(delay_ms))
        for name, peer, dials in ((a, b, True), (b, a, False)):
            node = self._node(name)
            node.neighbours[peer] = dials
        self._node(a).links.dial_later(b, first=True)
        self._wait_("1000")

    def _wait_(self, time_ms: str) -> None:
        self._loop.run_until(self._loop.now_ms + float(time_ms))

    def _settle_(self) -> None:
        ends_ms = self._loop.now_ms + SETTLE_MS
        while not self._run.converged():
            if self._loop.now_ms >= ends_ms:
                raise WrongScenario("it never comes to rest")
            self._wait_("100")
        self._say("--", "all nodes hold the same")

    def _partition_(self, a: str, b: str) -> None:
        self._run.world.network.block(a, b)
        self._run.world.network.block(b, a)

    def _heal_(self) -> None:
        for source, target in sorted(self._run.world.network.cut):
            self._run.world.network.heal(source, target)

    def _crash_(self, name: str) -> None:
        self._node(name).crash()

    def _power_(self, name: str) -> None:
        self._node(name).crash(power=True)

    def _stop_(self, name: str) -> None:
        self._node(name).stop()

    def _restart_(self, name: str) -> None:
        self._run.start(name)

    def _clock_(self, name: str, offset_ms: str) -> None:
        self._node(name).wall_offset_ms = int(offset_ms)

    def _lie_(self, name: str) -> None:
        self._node(name).excused_rollbacks += 1
        self._node(name).disk.lie()

    def _pause_(self, name: str, time_ms: str) -> None:
        life = self._node(name).life
        assert life is not None
        life.paused_until_ms = self._loop.now_ms + float(time_ms)

    def _remove_(self, name: str, member: str) -> None:
        self._node(name).membership.remove(member)
        self._say(name, f"removes {member}")

    # --- keys

    def _write(self, name: str, key: str, kind: int, what: str, *arguments: str) -> None:
        node = self._node(name)
        raw, now_ms = key.encode(), node.wall_ms()
        rows, stamp = node.rows(raw), node.store.stamp(now_ms)
        delta = {
            "put": lambda: register.put(rows, arguments[0].encode(), stamp),
            "delete": lambda: register.delete(rows, stamp),
            "add": lambda: counter.add(rows, int(arguments[0]), stamp, now_ms),
            "reset": lambda: counter.delete(rows, stamp, now_ms),
            "sadd": lambda: set_rows.add(rows, [arguments[0].encode()], stamp, now_ms),
            "srem": lambda: set_rows.remove(rows, [arguments[0].encode()], now_ms),
        }[what]()
        if delta:
            node.write(raw, kind, delta, stamp)
        done: Future[str] = Future()
        node.when_durable(lambda: done.set("ok"), lambda: done.fail(Lost()))
        self._answer(name, done)

    def _answer(self, name: str, done: Future[str]) -> None:
        ends_ms = self._loop.now_ms + ANSWER_MS
        while not done.done and self._loop.now_ms < ends_ms:
            self._wait_("1")
        try:
            self._say(name, done.result() if done.done else "no answer")
        except Lost:
            self._say(name, "unknown: the node died")
        except RoostError as error:
            self._say(name, f"{type(error).__name__}: {error}")

    def _put_(self, name: str, key: str, value: str) -> None:
        self._write(name, key, TYPE_REGISTER, "put", value)

    def _delete_(self, name: str, key: str) -> None:
        self._write(name, key, TYPE_REGISTER, "delete")

    def _add_(self, name: str, key: str, by: str) -> None:
        self._write(name, key, TYPE_COUNTER, "add", by)

    def _reset_(self, name: str, key: str) -> None:
        self._write(name, key, TYPE_COUNTER, "reset")

    def _sadd_(self, name: str, key: str, element: str) -> None:
        self._write(name, key, TYPE_SET, "sadd", element)

    def _srem_(self, name: str, key: str, element: str) -> None:
        self._write(name, key, TYPE_SET, "srem", element)

    def _shown(self, name: str, key: str) -> str:
        node = self._node(name)
        held = node.store.key_rows(key.encode())
        if held.type == TYPE_COUNTER:
            return str(values.counter_value(held.rows, node.wall_ms()) or 0)
        if held.type == TYPE_SET:
            members = values.set_members(held.rows, node.wall_ms())
            return " ".join(m.decode() for m in members if isinstance(m, bytes))
        value = values.register_value(held.rows, node.wall_ms())
        return value.decode() if isinstance(value, bytes) else "nothing"

    def _get_(self, name: str, key: str) -> None:
        self._say(name, f"{key} is {self._shown(name, key)}")

    def _expect_(self, name: str, key: str, *expected: str) -> None:
        if key in self._tokens:
            live = self._service(name).shelf.live(key)
            shown = "nothing" if live is None else str(live.head_turn())
        else:
            shown = self._shown(name, key)
        if shown != " ".join(expected):
            raise WrongScenario(f"{key} is {shown} at {name}")

    # --- sessions

    def _service(self, name: str) -> Sessions:
        shell = self._node(name).shell
        assert isinstance(shell, Sessions)
        return shell

    def _ask(self, name: str, request: Request) -> None:
        service = self._service(name)

        async def ask() -> str:
            answer = await service.do(request)
            self._tokens[answer.sid] = answer.token
            text = f"turn {answer.turn} by {answer.served_by}, home {answer.home}"
            if request.kind == "call":
                result = f": {answer.result.decode()}" if answer.result else ""
                fresh = " (first)" if answer.fresh else ""
                text = f"{request.call} is {answer.status}{fresh}{result}, home {answer.home}"
            if request.kind == "erase":
                told = (f"{r.node} {'pending' if r.pending else 'done'}" for r in answer.receipts)
                text = ", ".join(sorted(told))
            if request.kind == "read":
                shown = " ".join(message.decode() for message in answer.messages)
                text += f", lacks {answer.stale}: {shown}"
            return text

        self._answer(name, self._loop.spawn(ask(), service.node.life))

    def _session_(self, name: str, sid: str) -> None:
        self._ask(name, Request("open", sid))

    def _turn_(self, name: str, sid: str, message: str) -> None:
        self._turns += 1
        text = f'"{message}"'.encode()
        self._last[sid] = Request("commit", sid, self._tokens[sid], f"id{self._turns}", text)
        self._ask(name, self._last[sid])

    def _retry_(self, name: str, sid: str) -> None:
        self._ask(name, replace(self._last[sid], token=self._tokens[sid]))

    def _call_(self, name: str, sid: str, call: str, status: str, *result: str) -> None:
        raw = f'"{result[0]}"'.encode() if result else None
        token = self._tokens[sid]
        self._ask(name, Request("call", sid, token, call=call, status=status, result=raw))

    def _fork_(self, name: str, sid: str, child: str) -> None:
        self._ask(name, Request("fork", sid, self._tokens[sid], child=child))

    def _erase_(self, name: str, sid: str) -> None:
        self._ask(name, Request("erase", sid, self._tokens[sid]))

    def _keep_(self, sid: str, word: str) -> None:
        self._kept[sid, word] = self._tokens[sid]

    def _use_(self, sid: str, word: str) -> None:
        self._tokens[sid] = self._kept[sid, word]

    def _homes_(self, sid: str) -> None:
        for name, node in sorted(self._run.nodes.items()):
            meta = None if node.life is None else self._service(name).shelf.meta(sid)
            if meta is not None:
                n, home = meta.epoch
                role = "erased" if meta.erased_ms else "a copy" if meta.held else "no copy"
                more = ", to be merged" if meta.unmerged else ""
                self._say(name, f"{role}; epoch {n} {home}, standby {meta.standby}{more}")

    def _show_(self, name: str, sid: str) -> None:
        live = self._service(name).shelf.live(sid)
        assert live is not None, f"{name} holds no copy of {sid}"
        self._say(name, f"{sid}: {' '.join(m.decode() for m in live.fold.messages())}")
        for branch in live.fold.branches():
            beside = " ".join(m.decode() for entry in branch.entries for m in entry.messages)
            self._say(
                name, f"  and beside it, of epoch {branch.epoch[0]} {branch.epoch[1]}: {beside}"
            )

    def _drain_(self, *names: str) -> None:
        """All at once."""
        services = [self._service(name) for name in names]
        drains = [self._loop.spawn(s.drain(), s.node.life) for s in services]
        for name, drained in zip(names, drains, strict=True):

            async def told(drained: Future[int] = drained) -> str:
                return f"drained, {await drained} remain"

            self._answer(name, self._loop.spawn(told(), None))

    def _read_(self, name: str, sid: str) -> None:
        self._ask(name, Request("read", sid, self._tokens[sid]))

    def _move_(self, name: str, sid: str, to: str) -> None:
        service = self._service(name)

        async def move() -> str:
            return "moved" if await service.move(sid, to) else "stays"

        self._answer(name, self._loop.spawn(move(), service.node.life))


def play(text: str) -> str:
    """Play a scenario; its commands with the trace that they have now."""
    return Scenario().play(text)
