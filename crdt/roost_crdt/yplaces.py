"""Where the items of a session document lie: an update names items by place, not by key.

A place is `(client, clock)`. Kept beside the document, so that an update can be judged (does it
delete a write-once entry, which fields does it change) before pycrdt sees it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence

from roost_crdt.yupdate import Contents, Item, Overwrite, Range

Runs = Mapping[int, Sequence[Range]]
"""Runs of clocks by client, in order and without overlaps."""


def runs_by_client(runs: Iterable[Range]) -> dict[int, list[Range]]:
    """Runs by client, in order and without overlaps."""
    found: dict[int, list[Range]] = {}
    for run in sorted(runs):
        mine = found.setdefault(run.client, [])
        if mine and mine[-1].end >= run.start:
            mine[-1] = Range(run.client, mine[-1].start, max(mine[-1].end, run.end))
        else:
            mine.append(run)
    return found


def covers(runs: Sequence[Range], clock: int) -> bool:
    """Whether `clock` lies in one of the runs, which are in order."""
    at = bisect_right(runs, clock, key=_start)
    return at > 0 and clock < runs[at - 1].end


def beyond(runs: Iterable[Range], known: Mapping[int, Sequence[Range]]) -> Iterator[Range]:
    """What of these runs is in none of `known`, as `runs_by_client` gives them."""
    for client, start, end in runs:
        there = known.get(client, ())
        at = bisect_right(there, start, key=_start)
        for run in there[max(at - 1, 0) :]:
            if run.start >= end:
                break
            if start < run.start:
                yield Range(client, start, run.start)
            start = max(start, run.end)
        if start < end:
            yield Range(client, start, end)


def _start(run: Range) -> int:
    return run.start


class FieldIndex:
    """Which field an item belongs to: an overwrite names only the item that it replaces."""

    def __init__(self) -> None:
        self._keys: dict[tuple[int, int], str] = {}
        self._places: dict[str, tuple[int, int]] = {}
        self._complete = True

    def note(self, key: str, place: tuple[int, int]) -> None:
        """`place` holds the newest value of the field."""
        old = self._places.get(key)
        if old is not None:
            self._keys.pop(old, None)
        self._places[key] = place
        self._keys[place] = key

    def resolve(
        self, contents: Contents
    ) -> tuple[list[tuple[str, Item | Overwrite]], dict[tuple[int, int], list[Overwrite]]]:
        """Items of fields with their keys, and overwrites by an origin that is not known here."""
        named: list[tuple[str, Item | Overwrite]] = [(item.key, item) for item in contents.fields]
        waiting: dict[tuple[int, int], list[Overwrite]] = {}
        for overwrite in contents.overwrites:
            waiting.setdefault(overwrite.origin, []).append(overwrite)
        if not waiting:
            return named, waiting
        for origin in waiting.keys() & self._keys.keys():
            named.extend((self._keys[origin], o) for o in waiting.pop(origin))
        clocks: dict[int, list[int]] = {}
        for client, clock in sorted(waiting):
            clocks.setdefault(client, []).append(clock)
        for key, item in named:  # grows while it is walked: each overwrite may be an origin
            mine = clocks.get(item.client)
            if mine is None:
                continue
            # Dead values that Yjs has joined are one item with several places.
            for clock in mine[bisect_left(mine, item.clock) : bisect_right(mine, item.last)]:
                named.extend((key, o) for o in waiting.pop((item.client, clock), ()))
        return named, waiting

    def take(
        self,
        named: Iterable[tuple[str, Item | Overwrite]],
        deletes: Runs,
        *,
        complete: bool = True,
    ) -> None:
        """Forget places that an update deleted and note those that it filled.

        Not `complete`: it filled others too, whose fields are not known.
        """
        self._complete = self._complete and complete
        for place in self._places_in(deletes):
            del self._keys[place]
        for key, item in named:
            if item.value is not None and not covers(deletes.get(item.client, ()), item.clock):
                self._keys[item.client, item.clock] = key
                self._places[key] = (item.client, item.clock)

    def keys_in(self, deletes: Runs) -> set[str]:
        """Fields whose place is among the deleted ones."""
        return {self._keys[place] for place in self._places_in(deletes)}

    def lost_keys(self, deletes: Runs) -> set[str]:
        """Fields that have no place left; none are named where not every place is known."""
        doomed = self.keys_in(deletes) if self._complete else set()
        if doomed:
            doomed -= {
                key
                for place, key in self._keys.items()
                if key in doomed and not covers(deletes.get(place[0], ()), place[1])
            }
        return doomed

    def _places_in(self, deletes: Runs) -> list[tuple[int, int]]:
        clocks = sum(run.end - run.start for runs in deletes.values() for run in runs)
        if clocks > len(self._keys):
            return [p for p in self._keys if covers(deletes.get(p[0], ()), p[1])]
        return [
            (client, clock)
            for client, runs in deletes.items()
            for run in runs
            for clock in range(run.start, run.end)
            if (client, clock) in self._keys
        ]


class EntryRuns:
    """Clocks that write-once entries take, as runs in order."""

    def __init__(self) -> None:
        self._runs: dict[int, list[Range]] = {}

    def add(self, client: int, start: int, end: int) -> None:
        """Clocks of one client come in rising order, as Yjs numbers them."""
        if start == end:
            return
        runs = self._runs.setdefault(client, [])
        if runs and runs[-1].end >= start:
            runs[-1] = Range(client, runs[-1].start, max(end, runs[-1].end))
        else:
            runs.append(Range(client, start, end))

    def add_items(self, items: Iterable[Item], known: Mapping[int, int]) -> None:
        """The places of an update's entries, but for those below the `known` clocks."""
        client = start = end = -1
        for item in items:
            if item.clock == end and item.client == client:
                end = item.last + 1
            elif item.last >= known.get(item.client, 0):
                if client >= 0:
                    self.add(client, start, end)
                client, start, end = item.client, item.clock, item.last + 1
        if client >= 0:
            self.add(client, start, end)

    def holds(self, client: int, clock: int) -> bool:
        return covers(self._runs.get(client, ()), clock)

    def touches(self, run: Range) -> bool:
        runs = self._runs.get(run.client, ())
        at = bisect_right(runs, run.start, key=_start) if runs else 0
        return bool(runs) and (
            (at > 0 and runs[at - 1].end > run.start)
            or (at < len(runs) and runs[at].start < run.end)
        )
