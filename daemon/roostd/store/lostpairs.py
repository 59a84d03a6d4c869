"""Lost pairs: those of sessions, spends and the like whose checksum fails, from the log again.

The log holds pairs as they were put, and the newest one that it holds of a key is the one that the
index lost. A pair that it does not hold stays refused by name (`gone`), until whoever it belongs to
puts another one in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from roost_crdt import logformat
from roost_crdt.logformat import Entry
from roostd.log import Log
from roostd.sealing import META_OWN, DamagedPair
from roostd.store.replay import LogReader, decode_items
from roostd.store.state import KEY_VALUE_KINDS, State
from roostd.store.sums import BUCKET_PREFIX, HOUR_PREFIX

_META = logformat.KIND_META

Pair = tuple[int, bytes]
"""Kind and key."""
Put = Callable[[int, Mapping[bytes, bytes | None]], object]


class LostPairs:
    """What was met, looked for and put again. Called by the node's thread."""

    def __init__(self, log: Log, state: State) -> None:
        self.gone: dict[Pair, None] = {}
        """Damaged, and not in the log."""
        self.mended = self.forgotten = 0
        self._log = log
        self._state = state
        self._sought: set[Pair] = set()
        self._found: dict[Pair, bytes | None] = {}
        self._reader = LogReader(log)

    @property
    def seeking(self) -> bool:
        return bool(self._sought or self._state.damaged_pairs.keys() - self.gone.keys())

    def scrubbed(self, damaged: Iterable[Pair]) -> None:
        """A scrub that came to its end has found these, and no others."""
        found = dict.fromkeys(damaged)
        self.gone = {pair: None for pair in self.gone if pair in found}
        self._state.damaged_pairs.update(found)

    def step(self, put: Put) -> bool:
        """Look on a little; whether there is more to do. Raises what `put` does."""
        if not self._sought and not self._begin():
            return False
        if not self._reader.over:
            self._reader.step(self._take)
            if self._reader.problem:  # the newest may be in what cannot be read
                self._found.clear()
        if self._reader.over:
            self._end(put)
        return bool(self._sought)

    def _begin(self) -> bool:
        met, self._state.damaged_pairs = self._state.damaged_pairs, {}
        self._sought = {pair for pair in met if pair not in self.gone and not _own(pair)}
        self.gone.update((pair, None) for pair in met if _own(pair))
        self._found.clear()
        self._reader = LogReader(self._log)
        return bool(self._sought)

    def _take(self, entry: Entry) -> None:
        if entry.kind not in KEY_VALUE_KINDS:
            return
        if not any(kind == entry.kind and key in entry.raw for kind, key in self._sought):
            return
        for key, value in decode_items(entry.raw):
            pair = (entry.kind, key)
            if pair in self._sought:
                self._found[pair] = value

    def _end(self, put: Put) -> None:
        again: dict[int, dict[bytes, bytes | None]] = {}
        damaged = [pair for pair in self._sought if self._is_damaged(pair)]
        for kind, key in damaged:
            if (kind, key) in self._found:
                again.setdefault(kind, {})[key] = self._found[kind, key]
        for kind, items in again.items():
            put(kind, items)
            self.mended += len(items)
        self.gone.update((pair, None) for pair in damaged if pair not in self._found)
        self._sought.clear()

    def _is_damaged(self, pair: Pair) -> bool:
        """Whether nothing else was put there meanwhile."""
        kind, key = pair
        if key in self._state.overlay[kind]:
            return False
        try:
            self._state.index.get(kind, key)
        except DamagedPair:
            return True
        return False

    def look(self) -> None:
        """Look whether something else was put in the place of one that is gone: another one at
        each call."""
        pair = next(iter(self.gone), None)
        if pair is not None:
            del self.gone[pair]
            if self._is_damaged(pair):
                self.gone[pair] = None


def _own(pair: Pair) -> bool:
    """Whether a pair is the store's own: not in the log, and written again by what applies it."""
    kind, key = pair
    return kind == _META and (key in META_OWN or key.startswith((BUCKET_PREFIX, HOUR_PREFIX)))
