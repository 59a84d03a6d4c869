"""Stored pairs that were lost to damage and are not in the log: what stands in for them.

A session that is in memory is stored again; its plain view is made anew from its document; else it
is given up where the neighbour that is its home or standby has all of it, and fetched from there.
Of quotas memory knows what was spent. What nothing stands in for stays refused by name.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from roost_crdt.document import Document, client_id
from roost_crdt.errors import CorruptData
from roost_crdt.logformat import KIND_SESSION, KIND_SPEND
from roost_crdt.sessions.shelf import Shelf
from roost_crdt.sessions.stream import Stream
from roost_crdt.sessions.table import prefix_of, view_items
from roostd.node.spendrows import lost_with
from roostd.sessions.forward import LOCATE
from roostd.store import Store

__all__ = ["LostRows", "forget"]

Rows = Mapping[bytes, bytes | None]
Spends = Callable[[bytes], Rows | None]
Call = Callable[[str, str, dict[str, Any], int], Awaitable[Any]]
ASK_MS = 2_000
_WHERE_MEMBERS = 6
"""Of the answer to LOCATE of a node whose copy has nothing that is not merged."""


def forget(kind: int, key: bytes) -> tuple[bytes, ...] | None:
    """At a start, when memory knows nothing: what goes with a lost pair; None: it stays."""
    return lost_with(key) if kind == KIND_SPEND else None


class LostRows:
    """Puts something in the place of lost pairs, one at a time."""

    def __init__(
        self, store: Store, shelf: Shelf, stream: Stream, call: Call, spends: Spends
    ) -> None:
        """`call`: of a node's method, with arguments and a deadline in ms. `spends`: what memory
        knows of a row of kind SPEND."""
        self._store = store
        self._shelf = shelf
        self._stream = stream
        self._call = call
        self._spends = spends

    async def replace(self, kind: int, key: bytes) -> bool:
        """Whether anything was put in the place of a pair. Raises Full, Busy, Unavailable."""
        if kind == KIND_SPEND:
            rows = self._spends(key)
            if rows is not None:
                self._store.put(kind, rows)
            return rows is not None
        if kind != KIND_SESSION:
            return False
        try:
            sid = key.split(b"\0")[1].decode()
        except (IndexError, UnicodeDecodeError):
            return False  # its name is damaged: the session's rows do not fit one another
        try:
            if self._keep(sid, key):
                return True
            standby_at = await self._standby_at(sid)
            stored = self._store.names(KIND_SESSION, prefix_of(sid))
            return self._stream.give_up(sid, stored, standby_at)
        except CorruptData:
            return False

    def _keep(self, sid: str, key: bytes) -> bool:
        """Put what can be told here in a pair's place."""
        prefix = prefix_of(sid)
        if key[len(prefix) : len(prefix) + 1] in (b"e", b"f"):
            try:
                return self._remake_view(sid, key)
            except CorruptData:
                pass  # the document is damaged too
        live = self._shelf.lives.get(sid)
        return live is not None and live.store_again(self._store.names(KIND_SESSION, prefix))

    async def _standby_at(self, sid: str) -> tuple[int, bytes] | None:
        """What the standby of a session whose home is here says that it holds: n and chain."""
        meta = self._shelf.table.head(sid)
        if meta is None or meta.home != self._shelf.node or meta.standby is None:
            return None
        found = await self._call(meta.standby, LOCATE, {"sid": sid}, ASK_MS)
        if not isinstance(found, list) or len(found) != _WHERE_MEMBERS or found[2]:
            return None
        return int(found[4]), bytes(found[5])

    def _remake_view(self, sid: str, key: bytes) -> bool:
        """A part of the plain view, from the document."""
        live = self._shelf.lives.get(sid)
        if live is not None:
            document = live.document
            view = view_items(sid, document.entries(), document.fields())
        else:
            table = self._shelf.table
            meta = table.head(sid)
            if meta is None or not meta.held:
                return False
            number = client_id(meta.epoch[0], meta.actor, sid)
            document = Document.load(number, table.document(sid), self._shelf.limits)
            try:
                view = view_items(sid, document.entries(), document.fields())
            finally:
                document.close()
        self._store.put(KIND_SESSION, {key: None, **view})
        return True
