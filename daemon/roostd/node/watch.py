"""Watchers: who is told when a key changed, after the change is durable."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from roost_crdt.errors import Busy
from roost_crdt.limits import Limits
from roost_crdt.rows.layout import RESERVED

Callback = Callable[[bytes], None]


class Watchers:
    """Callbacks by key prefix; each gets the changed key and reads its value itself."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._watchers: dict[int, tuple[bytes, Callback]] = {}
        self._next = 0

    def watch(self, prefix: bytes, callback: Callback) -> Callable[[], None]:
        """Call back with each changed key under `prefix`; the result ends it. Raises Busy."""
        if len(self._watchers) >= self._limits.watchers_max:
            raise Busy(
                f"this node has {self._limits.watchers_max} watchers; end one or ask another node",
                retry_after_ms=1_000,
            )
        number = self._next = self._next + 1
        self._watchers[number] = (prefix, callback)

        def unsubscribe() -> None:
            self._watchers.pop(number, None)

        return unsubscribe

    def changed(self, keys: Iterable[bytes]) -> None:
        """Tell everybody whom these keys concern."""
        if not self._watchers:
            return
        watchers = list(self._watchers.values())
        for key in keys:
            if key.startswith(RESERVED):
                continue
            for prefix, callback in watchers:
                if key.startswith(prefix):
                    callback(key)
