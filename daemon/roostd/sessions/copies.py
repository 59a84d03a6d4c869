"""Read-through copies: what a forwarded request left at a node that holds no replica.

A copy is for reading only, is never taken over from, and is bounded. It is checked by lineage
like every copy; a forwarded commit extends it only if the copy has the turn before.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from roost_crdt import fold
from roost_crdt.entries import TurnRef
from roost_crdt.errors import CorruptData, RoostError
from roost_crdt.home import Meta
from roost_crdt.sessions.copy import SessionCopy
from roost_crdt.token import Claims
from roostd.sessions import types
from roostd.sessions.context import Context
from roostd.sessions.types import Answer, Request

COPY_DEADLINE_MS = 5_000
COPY_BYTES_MAX = 4 * 1024 * 1024


class Copies:
    """The bounded cache of copies of one node."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._copies: OrderedDict[str, SessionCopy] = OrderedDict()
        self._bytes = 0

    def get(self, sid: str) -> SessionCopy | None:
        copy = self._copies.get(sid)
        if copy is not None:
            self._copies.move_to_end(sid)
        return copy

    def drop(self, sid: str) -> None:
        copy = self._copies.pop(sid, None)
        if copy is not None:
            self._bytes -= copy.size_bytes

    def export(self, live: SessionCopy) -> dict[str, Any] | None:
        """A copy for another node: its head and its plain view; None if it is too large."""
        if live.size_bytes > COPY_BYTES_MAX:
            return None
        entries, fields = self._context.shelf.table.view(live.meta.sid)
        meta = live.meta
        return {
            "epoch": list(meta.epoch),
            "standby": meta.standby,
            "n": meta.n,
            "used_ms": meta.used_ms,
            "entries": entries,
            "fields": fields,
        }

    async def after_forward(
        self, request: Request, answer: Answer, claims: Claims, node: str
    ) -> None:
        """Keep what a forwarded read or turn makes readable here, where residency allows.

        `claims` are those of the answer's token.
        """
        if not self._context.may_hold(self._context.region):
            return
        if self._context.shelf.live(claims.sid) is not None:
            return
        if isinstance(request, types.Commit) and isinstance(answer, types.Committed):
            await self._extend(request, answer, claims, node)
        elif isinstance(request, (types.Turns, types.Show)):
            await self._fetch(claims.sid, node)

    async def _extend(
        self, request: types.Commit, answer: types.Committed, claims: Claims, node: str
    ) -> None:
        copy = self._copies.get(answer.sid)
        if claims.path and claims.path[-1][3] != answer.turn:
            self.drop(answer.sid)  # another turn was committed since
            return
        follows = copy is not None and copy.fold.turn == _turn_before(claims)
        if copy is None or not follows or not claims.path or request.put:
            await self._fetch(answer.sid, node)
            return
        n, home, _start, _last = claims.path[-1]
        key, leaf = fold.turn_entry(
            (n, home),
            answer.turn,
            parent=copy.fold.turn,
            turn_id=request.turn_id,
            messages=request.messages,
            at_ms=self._context.now_ms(),
        )
        copy.fold.add(key, leaf)

    async def _fetch(self, sid: str, node: str) -> None:
        """Bring a copy here; a failure costs the next read a round trip, nothing else."""
        try:
            raw = await self._context.neighbours.call(
                node, "session.copy", {"sid": sid}, deadline_ms=COPY_DEADLINE_MS
            )
        except RoostError:
            return
        self.drop(sid)
        if raw is None:
            return
        epoch = (int(raw["epoch"][0]), str(raw["epoch"][1]))
        meta = Meta(sid, epoch, raw["standby"], n=int(raw["n"]), used_ms=int(raw["used_ms"]))
        copy = SessionCopy(
            meta, self._context.shelf.table, self._context.shelf.actor, self._context.limits
        )
        try:
            copy.take_view(raw["entries"], raw["fields"])
        except CorruptData:
            return
        self._copies[sid] = copy
        self._bytes += copy.size_bytes
        while self._bytes > self._context.limits.replica_cache_bytes and len(self._copies) > 1:
            self.drop(next(iter(self._copies)))


def _turn_before(claims: Claims) -> TurnRef | None:
    """The turn on which the newest one of a path was built.

    By epoch, not by number: another home's turn of that number is another turn.
    """
    *earlier, (n, home, start, last) = claims.path or ((0, "", 0, 0),)
    if last - 1 > start:
        return (n, home, last - 1)
    return (earlier[-1][0], earlier[-1][1], earlier[-1][3]) if earlier else None
