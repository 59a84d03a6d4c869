"""The store's SESSION database, as sessions use it."""

from __future__ import annotations

from collections.abc import Mapping

from roost_crdt.logformat import KIND_SESSION
from roostd.store import Store


class SessionRows:
    """roost_crdt.sessions.table's rows, in the store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def get(self, key: bytes) -> bytes | None:
        return self._store.get(KIND_SESSION, key)

    def scan(self, prefix: bytes, after: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        return self._store.scan(KIND_SESSION, prefix, after, limit)

    def put(self, items: Mapping[bytes, bytes | None]) -> int:
        return self._store.put(KIND_SESSION, items)
