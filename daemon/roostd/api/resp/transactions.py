"""MULTI, EXEC, DISCARD, WATCH, UNWATCH.

A transaction over eventually-global keys is one record: applied together here and everywhere.
WATCH compares with what this node holds; another region may write at the same moment, which is
what eventually-global means. A transaction over linearizable registers and counters is one
transaction of consensus, and WATCH compares revisions there. One command on a quota, a meter or a
session is atomic by itself and may stand alone in a MULTI; several are refused.
"""

from __future__ import annotations

from typing import Any

from roost_crdt.errors import CrossClass, Unsupported
from roost_crdt.linear.cells import Command as Step
from roost_crdt.policy import EVENTUALLY_GLOBAL, LINEARIZABLE, SESSION_LOCAL
from roostd.api.resp import encode, linear
from roostd.api.resp.connection import Connection
from roostd.api.resp.pubsub import Mark
from roostd.api.resp.table import (
    ALL_KEYS,
    NO_KEYS,
    Command,
    Reply,
    RespError,
    command,
)

_GROUP = "transactions"
Queue = list[tuple[Command, list[bytes]]]


class Watched:
    """What WATCH noted of one key: a mark for changes and the state that it saw."""

    __slots__ = ("_mark", "_state")

    def __init__(self, conn: Connection, key: bytes) -> None:
        self._mark: Mark = conn.server.pubsub.mark(key)
        self._state = _state(conn, key)
        conn.after(self._mark.arm)

    def changed(self, conn: Connection, key: bytes) -> bool:
        return self._mark.touched or _state(conn, key) != self._state

    def forget(self) -> None:
        self._mark.forget()


def _state(conn: Connection, key: bytes) -> tuple[Any, ...]:
    keys = conn.node.keys
    kind = keys.kind(key)
    if kind is None:
        return (None,)
    read = {
        "register": keys.get,
        "counter": keys.count,
        "set": keys.members,
        "map": keys.fields,
        "rate": keys.rate,
    }.get(kind)
    return (kind, read(key) if read else None, keys.expires_ms(key))


@command("MULTI", 1, "read", NO_KEYS, _GROUP, "Begins a transaction.")
def multi(conn: Connection, args: list[bytes]) -> Reply:
    if conn.queue is not None:
        raise RespError("ERR MULTI calls can not be nested")
    conn.queue = []
    conn.queue_failed = False
    return encode.OK


@command("DISCARD", 1, "read", NO_KEYS, _GROUP, "Drops a transaction.")
def discard(conn: Connection, args: list[bytes]) -> Reply:
    if conn.queue is None:
        raise RespError("ERR DISCARD without MULTI")
    conn.forget_transaction()
    return encode.OK


@command("WATCH", -2, "read", ALL_KEYS, _GROUP, "EXEC only if these keys stay as they are here.")
def watch(conn: Connection, args: list[bytes]) -> Reply:
    if conn.queue is not None:
        raise RespError("ERR WATCH inside MULTI is not allowed")
    remote: list[bytes] = []
    for key in args[1:]:
        policy = conn.policy(key)
        if policy.consistency == SESSION_LOCAL or policy.type in ("quota", "meter"):
            raise Unsupported(
                f"WATCH on a {policy.type} (policy {policy.name} is {policy.consistency}): a "
                "session's turn compares its base (ROOST.TURN), a spend its request id"
            )
        if policy.consistency == LINEARIZABLE:
            remote.append(key)
    for key in args[1:]:
        if key not in conn.watched and key not in remote:
            conn.watched[key] = Watched(conn, key)
    wanted = [key for key in remote if key not in conn.revisions]
    return _watch_linear(conn, wanted) if wanted else encode.OK


async def _watch_linear(conn: Connection, keys: list[bytes]) -> bytes:
    conn.revisions |= await conn.node.linear.revisions(keys)
    return encode.OK


@command("UNWATCH", 1, "read", NO_KEYS, _GROUP, "Forgets what WATCH noted.")
def unwatch(conn: Connection, args: list[bytes]) -> Reply:
    conn.forget_watched()
    return encode.OK


@command("EXEC", 1, "read", NO_KEYS, _GROUP, "Runs a transaction.")
def exec_(conn: Connection, args: list[bytes]) -> Reply:
    queue = conn.queue
    if queue is None:
        raise RespError("ERR EXEC without MULTI")
    failed = conn.queue_failed
    changed = any(mark.changed(conn, key) for key, mark in conn.watched.items())
    revisions = dict(conn.revisions)
    watched = {conn.policy(key).consistency for key in (*conn.watched, *revisions)}
    conn.forget_transaction()
    if failed:
        raise RespError("EXECABORT Transaction discarded because of previous errors.")
    if changed:
        return encode.null_array(conn.resp3)
    classes = watched | _classes(conn, queue)
    if len(classes) > 1:
        raise CrossClass(
            f"a MULTI over keys that are {' and '.join(sorted(classes))} cannot be atomic: send "
            "one transaction for each class"
        )
    if classes <= {EVENTUALLY_GLOBAL}:
        return _run_batch(conn, queue)
    if classes == {LINEARIZABLE} and (revisions or _all_planned(conn, queue)):
        return _run_linear(conn, queue, revisions)
    if len(queue) > 1:
        raise Unsupported(
            f"a MULTI of {len(queue)} commands on {next(iter(classes))} keys: consensus and "
            "sessions take one command at a time; send them without MULTI (redis-py: "
            "pipeline(transaction=False)), or one ROOST.TURN"
        )
    return _run_one(conn, *queue[0])


def _classes(conn: Connection, queue: Queue) -> set[str]:
    classes: set[str] = set()
    for command_, args in queue:
        if command_.session:
            classes.add(SESSION_LOCAL)
        for position in command_.positions(len(args)):
            classes.add(conn.policy(args[position]).consistency)
    return classes


def _run_batch(conn: Connection, queue: Queue) -> bytes:
    replies: list[bytes] = []
    with conn.node.keys.batch():
        for command_, args in queue:
            reply = conn.run_refusing(command_, args)
            assert isinstance(reply, bytes), f"{command_.name} awaits; it must be solo"
            replies.append(reply)
    return encode.array(replies)


def _all_planned(conn: Connection, queue: Queue) -> bool:
    """True if every command with keys is on linearizable registers and counters."""
    return all(
        conn.policy(args[position]).type in ("register", "counter")
        for command_, args in queue
        for position in command_.positions(len(args))
    )


async def _run_linear(conn: Connection, queue: Queue, revisions: dict[bytes, int]) -> bytes:
    """The steps of all commands as one transaction of consensus."""
    plans: list[linear.Plan | None] = []
    steps: list[Step] = []
    for command_, args in queue:
        planned = linear.plan(conn, args) if command_.positions(len(args)) else None
        plans.append(planned)
        steps += planned.steps if planned is not None else []
    replies = await linear.transact(conn, steps, revisions)
    if replies is None:
        return encode.null_array(conn.resp3)
    answers: list[bytes] = []
    at = 0
    for (command_, args), planned in zip(queue, plans, strict=True):
        if planned is None:
            reply = conn.run_refusing(command_, args)
            assert isinstance(reply, bytes), f"{command_.name} awaits; it must be solo"
            answers.append(reply)
            continue
        answers.append(planned.answer(replies[at : at + len(planned.steps)]))
        at += len(planned.steps)
    return encode.array(answers)


def _run_one(conn: Connection, command_: Command, args: list[bytes]) -> Reply:
    reply = conn.run_refusing(command_, args)
    return encode.array([reply]) if isinstance(reply, bytes) else _exec_later(conn, reply)


async def _exec_later(conn: Connection, reply: Any) -> bytes:
    return encode.array([await conn.settled(reply)])
