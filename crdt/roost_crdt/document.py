"""One session's document: the only module that touches pycrdt.

Two root maps of byte strings: `e` holds write-once entries, `f` holds fields that later epochs
overwrite. Their meaning is `roost_crdt.fold`'s; here is what keeps foreign code out of trouble:

- Every update is read (`roost_crdt.yupdate`) before pycrdt sees it. Whatever a session document
  cannot hold, is not complete (Yjs would keep it invisibly and drop it on re-encoding) or deletes
  a write-once entry is refused, and nothing has changed.
- What pycrdt throws all the same, PanicException included (a BaseException), becomes CorruptData
  and the document is dropped: `broken` is set, and its owner loads it again from stored updates.
- A client id belongs to one actor, one session and one epoch number. The number is on top, so
  that Yjs's own rule (the higher client id wins among concurrent writes) is "the higher epoch
  wins"; where two homes have the same number, `Changes.repairs` names what Yjs got wrong.
- An observer that is not removed keeps a whole document alive for ever (measured: 1.4 MB each),
  hence `close` and `__del__`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, cast

import pycrdt

from roost_crdt.entries import check_entry, check_field, field_rank
from roost_crdt.errors import CorruptData, TooLarge
from roost_crdt.limits import DEFAULT_LIMITS, Limits
from roost_crdt.yguard import Guard
from roost_crdt.yplaces import EntryRuns, FieldIndex, Runs, covers, runs_by_client
from roost_crdt.ystructs import read_structs
from roost_crdt.yupdate import (
    ENTRIES,
    FIELDS,
    Contents,
    Item,
    Overwrite,
    Range,
    read_state_vector,
    read_update,
)

EPOCH_BITS = 19
HASH_BITS = 34
_MERGE_MAX = 64
"""pycrdt merges in quadratic time (10,000 updates: 0.5 s), so larger numbers merge in steps."""


def client_id(epoch_n: int, actor: int, sid: str) -> int:
    """The Yjs client id of `actor` writing session `sid` under an epoch's number; 53 bits."""
    assert 0 < epoch_n < 1 << EPOCH_BITS, f"epoch {epoch_n} does not fit a client id"
    digest = hashlib.blake2b(actor.to_bytes(8, "big") + sid.encode(), digest_size=8).digest()
    return epoch_n << HASH_BITS | int.from_bytes(digest, "big") >> (64 - HASH_BITS)


class Changes(NamedTuple):
    """What an update added: new entries, and fields with another value than before.

    `repairs` are fields that concurrent homes of one epoch number wrote (or wrote again, as such a
    repair) and that Yjs resolved by client id instead of by `field_rank`. Home writes them again
    (`write({}, repairs)`) in the step that takes the update in, so that every document and every
    fold agree. `collisions` are keys that two writers wrote differently: they share an identity.
    """

    entries: dict[str, bytes]
    fields: dict[str, bytes]
    repairs: dict[str, bytes]
    collisions: tuple[str, ...]


class OwnClientMoved(CorruptData):
    """An update from outside holds what was written under the document's own client id and is not
    held: a store was cloned, or rolled back to before it wrote that."""


class Document:
    """A session document under one client id. Not for use by several threads at once."""

    def __init__(self, client_id: int, limits: Limits = DEFAULT_LIMITS) -> None:
        self.client_id = client_id
        self.size_bytes = 0
        """About the size of `encode()`, never below it by more than a few bytes an update."""
        self.broken = False
        self._limits = limits
        self._size_exact = True
        self._clocks: dict[int, int] = {}
        self._entry_keys: set[str] = set()
        self._entry_runs = EntryRuns()
        self._field_index = FieldIndex()
        self._written: list[bytes] = []
        self._subscription: pycrdt.Subscription | None = None
        self._guard = Guard(self)
        with self._guard:
            self._doc: pycrdt.Doc[pycrdt.Map[bytes]] = pycrdt.Doc(client_id=client_id)
            self._entries = self._doc.get(ENTRIES, type=pycrdt.Map)
            self._fields = self._doc.get(FIELDS, type=pycrdt.Map)

    @classmethod
    def load(
        cls, client_id: int, updates: Iterable[bytes], limits: Limits = DEFAULT_LIMITS
    ) -> Document:
        """From stored updates, oldest first. Raises CorruptData."""
        document = cls(client_id, limits)
        for update in updates:
            document.apply(update)
        return document

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the document's memory; it cannot be used any more."""
        subscription, self._subscription = getattr(self, "_subscription", None), None
        if subscription is not None:
            with Guard(None):
                self._doc.unobserve(subscription)

    # --- writing --------------------------------------------------------------------------------
    def write(
        self, entries: Mapping[str, bytes], fields: Mapping[str, bytes], *, bounded: bool = True
    ) -> bytes:
        """Add entries and put fields as one update; empty bytes if both are empty.

        An entry that exists already must not be written again. Raises TooLarge before anything
        changes (a summary or a fork makes room); not `bounded` (repairs) it never does. There is
        no way back: who cannot store the update must load the document again.
        """
        self._check_usable()
        assert self._entry_keys.isdisjoint(entries), "an entry is written once"
        if bounded:
            self._make_room([*entries.items(), *fields.items()])
        if not entries and not fields:
            return b""
        start = self._clocks.get(self.client_id, 0)
        pairs = [*((self._entries, k, v) for k, v in entries.items())]
        pairs += [(self._fields, k, v) for k, v in fields.items()]
        with self._guard:
            if len(pairs) <= self._limits.batch_ops_max:
                update = self._transact(pairs)
            else:
                before = self._doc.get_state()
                for at in range(0, len(pairs), self._limits.batch_ops_max):
                    self._transact(pairs[at : at + self._limits.batch_ops_max])
                update = self._doc.get_update(before)
        self._clocks[self.client_id] = start + len(pairs)
        self._entry_keys.update(entries)
        self._entry_runs.add(self.client_id, start, start + len(entries))
        for clock, key in enumerate(fields, start + len(entries)):
            self._field_index.note(key, (self.client_id, clock))
        self._grow(len(update))
        return update

    def _transact(self, pairs: Sequence[tuple[pycrdt.Map[bytes], str, bytes]]) -> bytes:
        if self._subscription is None:
            written = self._written  # not self: the observer must not keep this object alive
            self._subscription = self._doc.observe(lambda event: written.append(event.update))
        self._written.clear()
        with self._doc.transaction():
            for root, key, value in pairs:
                root[key] = value
        (update,) = self._written
        self._written.clear()
        return update

    # --- taking updates in ----------------------------------------------------------------------

    def apply(self, update: bytes, *, outside: bool = False) -> Changes:
        """Take in an update of any size; what it holds already changes nothing.

        `outside`: from another node, which may not write under this document's own client id
        (OwnClientMoved, a CorruptData). Raises CorruptData for garbage, foreign shapes, gaps and
        deleted entries; the document is unchanged then, unless it is `broken`.
        """
        self._check_usable()
        contents, ends = self._read(update)
        if outside and ends.get(self.client_id, 0) > self._clocks.get(self.client_id, 0):
            raise OwnClientMoved(
                f"another node wrote under client id {self.client_id} of this document: "
                "a store was cloned or rolled back"
            )
        if all(end <= self._clocks.get(client, 0) for client, end in ends.items()):
            return Changes({}, {}, {}, ())
        fresh = [
            item
            for item in contents.entries
            if item.value is not None and item.clock >= self._clocks.get(item.client, 0)
        ]
        named, unresolved = self._field_index.resolve(contents)
        self._check_roots(contents, unresolved)
        self._check_leaves(contents, fresh)
        deletes = runs_by_client(contents.deletes)
        if deletes:
            self._check_deletes(fresh, named, deletes, all_named=not unresolved)
        if self._clocks and self._doubtful(contents, deletes):
            self._try_on_copy(update, fresh, ends)
        watched = {key for key, _ in named} | self._field_index.keys_in(deletes)
        if unresolved:
            watched.update(self._field_keys())
        before = {key: self._field(key) for key in watched}
        with self._guard:
            self._doc.apply_update(update)
            self._written.clear()
            held = read_state_vector(self._doc.get_state())
        if held != {**self._clocks, **ends}:
            self.drop()
            raise CorruptData("an update did not take effect as a whole")
        collisions = self._take_entries(contents, fresh, deletes)
        new = [(key, item) for key, item in named if item.last >= self._clocks.get(item.client, 0)]
        self._field_index.take(new, deletes, complete=not unresolved)
        self._clocks = held
        self._grow(len(update))
        if unresolved:
            watched.update(self._field_keys())
        fields, repairs = self._resolve_fields(watched, before, named, deletes)
        entries = {item.key: cast(bytes, item.value) for item in fresh}
        for key in collisions:
            entries[key] = self._entry(key)
        return Changes(entries, fields, repairs, collisions)

    def _read(self, update: bytes) -> tuple[Contents, dict[int, int]]:
        """The contents of an update that is complete, and where it ends for each client."""
        if len(update) > self._limits.session_bytes_max:
            raise CorruptData(
                f"an update of {len(update)} bytes is over the bound of a session "
                f"({self._limits.session_bytes_max})"
            )
        contents = read_update(update)
        clocks = self._clocks
        ends: dict[int, int] = {}
        for client, start, end in contents.ranges:
            held = clocks.get(client, 0)
            if start > held:
                raise CorruptData(
                    f"a gap: client {client} wrote {start - held} steps that are not held here"
                )
            ends[client] = max(held, end)
        for overwrite in contents.overwrites:
            client, clock = overwrite.origin
            own = client == overwrite.client
            if clock >= (overwrite.clock if own else ends.get(client, clocks.get(client, 0))):
                raise CorruptData(f"a gap: an update builds on {client}:{clock}, not held here")
        for client, _, end in contents.deletes:
            if end > ends.get(client, clocks.get(client, 0)):
                raise CorruptData(f"a gap: an update deletes {client}:{end - 1}, not held here")
        return contents, ends

    def _check_roots(self, contents: Contents, unresolved: Iterable[tuple[int, int]]) -> None:
        """An overwrite whose key is unknown here must at least not be one of an entry."""
        if not unresolved:
            return
        fresh = {(item.client, item.last) for item in contents.entries}
        for origin in unresolved:
            if origin in fresh or self._entry_runs.holds(*origin):
                raise CorruptData("an update overwrites a write-once entry")

    def _check_leaves(self, contents: Contents, fresh: Sequence[Item]) -> None:
        for item in fresh:
            assert item.value is not None
            check_entry(item.key, item.value)
        _check_field_leaves(contents)

    def _check_deletes(
        self,
        fresh: Iterable[Item],
        named: Iterable[tuple[str, Item | Overwrite]],
        deletes: Runs,
        *,
        all_named: bool,
    ) -> None:
        """What an update deletes it must have replaced."""
        dead = {i.key for i in fresh if _is_dead(i, deletes)}
        if dead - self._entry_keys - {i.key for i in fresh if not _is_dead(i, deletes)}:
            raise CorruptData("an update deletes a write-once entry")
        put = {key for key, item in named if not _is_dead(item, deletes)}
        if all_named and self._field_index.lost_keys(deletes) - put:
            raise CorruptData("an update deletes a field")

    def _doubtful(self, contents: Contents, deletes: Runs) -> bool:
        """Whether only trying can tell what the update does: see `_try_on_copy`."""
        return any(self._entry_runs.touches(run) for runs in deletes.values() for run in runs) or (
            any(
                o.origin[0] != o.client and o.origin[1] >= self._clocks.get(o.origin[0], 0)
                for o in contents.overwrites
            )
        )

    def _try_on_copy(self, update: bytes, fresh: Sequence[Item], ends: Mapping[int, int]) -> None:
        """Refuse what deletes an entry for good, or waits for itself in a circle.

        A deleted entry is right only as the loser of two writers of one key, which leaves a value.
        """
        with Guard(None):
            copy: pycrdt.Doc[pycrdt.Map[bytes]] = pycrdt.Doc(client_id=0)
            entries = copy.get(ENTRIES, type=pycrdt.Map)
            copy.apply_update(self._doc.get_update())
            copy.apply_update(update)
            held = read_state_vector(copy.get_state())
            left = set(entries.keys())
        if held != {**self._clocks, **ends}:
            raise CorruptData("an update builds on itself in a circle")
        if not left.issuperset(self._entry_keys):
            raise CorruptData("an update deletes a write-once entry")

    def _take_entries(
        self, contents: Contents, fresh: Sequence[Item], deletes: Runs
    ) -> tuple[str, ...]:
        """Note what entries came; the keys of those that two writers wrote."""
        self._entry_runs.add_items(contents.entries, self._clocks)
        keys = {item.key for item in fresh}
        if not deletes and len(keys) == len(fresh) and self._entry_keys.isdisjoint(keys):
            self._entry_keys |= keys
            return ()
        collisions = []
        for item in fresh:
            if _is_dead(item, deletes) or item.key in self._entry_keys:
                collisions.append(item.key)
            self._entry_keys.add(item.key)
        return tuple(collisions)

    def _resolve_fields(
        self,
        watched: Iterable[str],
        before: Mapping[str, bytes | None],
        named: Iterable[tuple[str, Item | Overwrite]],
        deletes: Runs,
    ) -> tuple[dict[str, bytes], dict[str, bytes]]:
        """Fields that changed, and those that Yjs resolved against the order of epochs."""
        offered: dict[str, list[bytes]] = {}
        for key, item in named:
            if not _is_dead(item, deletes):
                offered.setdefault(key, []).append(cast(bytes, item.value))
        fields: dict[str, bytes] = {}
        repairs: dict[str, bytes] = {}
        for key in watched:
            after, previous = self._field(key), before.get(key)
            if after is None:
                self.drop()
                raise CorruptData("an update deletes a field; the document is loaded again")
            best = max([*offered.get(key, ()), previous or after, after], key=field_rank)
            if field_rank(best) > field_rank(after):
                repairs[key] = after = best
            if after != previous:
                fields[key] = after
        return fields, repairs

    # --- reading --------------------------------------------------------------------------------

    def encode(self) -> bytes:
        """The whole document as one update."""
        self._check_usable()
        with self._guard:
            update = self._doc.get_update()
        self.size_bytes = len(update)
        self._size_exact = True
        return update

    def state_vector(self) -> bytes:
        """What is held, for `diff` of another copy of this document."""
        self._check_usable()
        with self._guard:
            return self._doc.get_state()

    def diff(self, state_vector: bytes) -> bytes:
        """What a copy at `state_vector` lacks. Raises CorruptData if it is none."""
        self._check_usable()
        read_state_vector(state_vector)
        with self._guard:
            return self._doc.get_update(state_vector)

    def holds(self, key: str) -> bool:
        """Whether there is an entry of this name."""
        return key in self._entry_keys

    def entries(self) -> dict[str, bytes]:
        """All write-once entries."""
        self._check_usable()
        with self._guard:
            return {key: bytes(value) for key, value in self._entries.items()}

    def fields(self) -> dict[str, bytes]:
        """The value in force of each field."""
        self._check_usable()
        with self._guard:
            return {key: bytes(value) for key, value in self._fields.items()}

    # --- inside ---------------------------------------------------------------------------------

    def drop(self) -> None:
        """Give the document up: what it holds cannot be trusted any more."""
        self.close()
        self.broken = True

    def _check_usable(self) -> None:
        if self.broken:
            raise CorruptData("this document was dropped after a fault; load it again")

    def _make_room(self, added: Sequence[tuple[str, bytes]]) -> None:
        """Raises TooLarge. The estimate is made exact before it refuses anything."""
        bound, most = self._limits.session_bytes_max, self._limits.session_writes_max
        added_bytes = sum(len(key) + len(value) for key, value in added)
        if self.size_bytes + added_bytes > bound and not self._size_exact:
            self.encode()
        if self.size_bytes + added_bytes > bound:
            raise TooLarge(
                f"a session of {self.size_bytes} bytes cannot take {added_bytes} more "
                f"(bound {bound}); trim it with a summary or fork it"
            )
        if sum(self._clocks.values()) + len(added) > most:
            raise TooLarge(f"a session has at most {most} turns, calls and fields written; fork it")

    def _grow(self, update_bytes: int) -> None:
        self.size_bytes, self._size_exact = self.size_bytes + update_bytes, False

    def _entry(self, key: str) -> bytes:
        with self._guard:
            return bytes(self._entries[key])

    def _field(self, key: str) -> bytes | None:
        with self._guard:
            value = self._fields.get(key)
        return None if value is None else bytes(value)

    def _field_keys(self) -> list[str]:
        with self._guard:
            return list(self._fields.keys())


def merge(updates: Sequence[bytes]) -> bytes:
    """One update that does what all of them do. Raises CorruptData."""
    level = list(updates)
    with Guard(None):
        while len(level) > 1:
            level = [
                pycrdt.merge_updates(*level[at : at + _MERGE_MAX])
                for at in range(0, len(level), _MERGE_MAX)
            ]
    return level[0] if level else b"\0\0"


def written(updates: Sequence[bytes]) -> dict[int, list[Range]]:
    """The clocks that are written in any of these updates. Raises CorruptData."""
    merged = merge(updates)
    with Guard(None):
        state = pycrdt.get_state(merged)
        beyond = pycrdt.get_update(merged, state)
    from_start = [Range(client, 0, end) for client, end in read_state_vector(state).items()]
    return runs_by_client([*from_start, *read_structs(beyond).ranges])


class Rehearsal(NamedTuple):
    """What an update would do to a document. State vectors: client -> clocks held. `news`: the
    update without structs that are held already; `known`: an update of all that is deleted."""

    before: dict[int, int]
    after: dict[int, int]
    news: bytes
    known: bytes


def rehearse(held: bytes, update: bytes) -> Rehearsal:
    """Apply an update to a scratch copy of any document. Raises CorruptData. The caller has bounded
    how deep both are nested: too deep overflows the stack."""
    with Guard(None):
        scratch: pycrdt.Doc[pycrdt.Map[bytes]] = pycrdt.Doc(client_id=0)
        scratch.apply_update(held)
        before = scratch.get_state()
        scratch.apply_update(update)
        after = scratch.get_state()
        news, known = (pycrdt.get_update(one, before) for one in (update, held))
    return Rehearsal(read_state_vector(before), read_state_vector(after), news, known)


def check_update(update: bytes, limits: Limits = DEFAULT_LIMITS) -> dict[str, bytes]:
    """The entries that an update adds, read and checked without a document.

    For a standby, which stores updates and loads them at its first read: whether one is complete
    shows only then, but nothing that a session document cannot hold is ever stored. Raises
    CorruptData.
    """
    if len(update) > limits.session_bytes_max:
        raise CorruptData(f"an update of {len(update)} bytes is over the bound of a session")
    contents = read_update(update)
    _check_field_leaves(contents)
    entries = {item.key: item.value for item in contents.entries if item.value is not None}
    for key, leaf in entries.items():
        check_entry(key, leaf)
    return entries


def _check_field_leaves(contents: Contents) -> None:
    for field in contents.fields:
        check_field(field.key, field.value)
    for overwrite in contents.overwrites:
        check_field(None, overwrite.value)


def _is_dead(item: Item | Overwrite, deletes: Runs) -> bool:
    """Whether an update that brings an item also says that it was replaced."""
    return item.value is None or covers(deletes.get(item.client, ()), item.clock)
