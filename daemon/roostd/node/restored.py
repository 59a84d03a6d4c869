"""What a node does once about being restored from a backup, before it serves.

- It remembers which neighbours have said what became of the sessions (roostd.sessions.recall).
- Embedded consensus that is hosted in the store went back in time with it: its history gets a new
  id, so that every node that has seen the old one notices (roostd.consensus.witness).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import msgspec

from roost_crdt.linear.hosted import HISTORY_BYTES
from roost_crdt.logformat import KIND_CONSENSUS, KIND_META
from roostd.consensus.base import seal, unseal
from roostd.store import RESTORED, Store

log = logging.getLogger("roostd.node.restored")

_HISTORY = b"meta"


class Restored:
    """The mark of a restore in a store, until every configured neighbour was heard out."""

    def __init__(
        self, store: Store, neighbours: Sequence[str], random_bytes: Callable[[int], bytes]
    ) -> None:
        self._store = store
        self._neighbours = neighbours
        raw = store.get(KIND_META, RESTORED)
        if raw is None:
            return
        log.warning("this store was restored from a backup; it is another store, another actor")
        self._renew_history(random_bytes)
        self.heard("")

    def waiting(self) -> list[str]:
        """Neighbours that have not been heard out; none where nothing was restored."""
        raw = self._store.get(KIND_META, RESTORED)
        if raw is None:
            return []
        heard = msgspec.msgpack.decode(raw, type=list[str])
        return [name for name in self._neighbours if name not in heard]

    def heard(self, peer: str) -> None:
        """A neighbour has told all; the mark goes with the last one. Durable with the group."""
        raw = self._store.get(KIND_META, RESTORED)
        heard = [] if raw is None else msgspec.msgpack.decode(raw, type=list[str])
        heard = sorted({*heard, peer})
        left = set(self._neighbours) - set(heard)
        self._store.put(KIND_META, {RESTORED: msgspec.msgpack.encode(heard) if left else None})

    def _renew_history(self, random_bytes: Callable[[int], bytes]) -> None:
        raw = self._store.get(KIND_META, RESTORED)
        stored = self._store.get(KIND_CONSENSUS, _HISTORY)
        if raw is None or msgspec.msgpack.decode(raw) or stored is None:
            return  # not hosted here, or an earlier start has done it
        body = random_bytes(HISTORY_BYTES) + unseal(_HISTORY, stored)[HISTORY_BYTES:]
        self._store.put(KIND_CONSENSUS, {_HISTORY: seal(_HISTORY, body)})
