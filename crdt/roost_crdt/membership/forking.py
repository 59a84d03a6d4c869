"""Two histories of one actor: what this node wrote after it had gone back in time, made good.

A store that was rolled back and wrote on wrote a second history under its actor before a neighbour
could tell. From then on it writes as a new actor, and:

    part   what it wrote since the two histories parted is noted in META (`fork/ACTOR`)
    pull   whoever shows more of that actor than the point of parting is asked for its records
           from there on (`Replica.forked`)
    make   rows of the other history are written again under the new actor, so that all nodes hold
    good   both, and with them what a join of the two loses (`roost_crdt.forks`)

What is counted again stands in rows of an actor of its own, so doing all this twice changes
nothing. The other history is known by its records: where logs no longer hold them only the joined
rows are had, and what both counted into one row is counted once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import msgspec

from roost_crdt.errors import CorruptData, RoostError
from roost_crdt.forks import again_part, counts, dot_of, is_lost, lost_count, matters
from roost_crdt.frames import CROSSED_MAX
from roost_crdt.hlc import Stamp
from roost_crdt.logformat import KIND_META
from roost_crdt.record import Record, decode_record
from roost_crdt.replica import Replica
from roost_crdt.rows import Delta, decode_row, encode_row, join_delta, kept_row
from roost_crdt.rows import set as set_rows
from roost_crdt.rows.layout import (
    HEAD,
    RESERVED,
    TAG_WINDOW,
    TYPE_SET,
    Part,
    Row,
    Rows,
    StampReused,
    birth_of,
    row_key,
    split_row_key,
)

from .reseeding import remember
from .storage import MemberStore

FORKS = b"fork/"
DONE = b"forked/"
"""ACTOR -> the hlc up to which the other history is made good."""
CROSSED = b"cross/"
"""ACTOR -> hlcs that were held when a record of it passed over them."""
CROSSED_EACH = 4
FORKS_MAX = 8
"""Given up actors with two histories that are kept in mind; the oldest goes first."""
PENDING_MAX = 2_000
"""Records of another history that wait for the next tick."""
_READ_BYTES = 1 << 20
_PAGE_BYTES = 128 << 10
_BACK_MAX = 10_000
"""Records looked at for what a row was when the histories parted."""


class Noted(msgspec.Struct, array_like=True, frozen=True):
    """A row as this node's own history left it; `base` None: it was not there at the parting."""

    name: bytes
    type: int
    mine: bytes
    base: bytes | None


class Theirs(NamedTuple):
    """A row as records of the other history left it."""

    type: int
    row: Row
    hlc: int


class Fork(msgspec.Struct, array_like=True):
    """An actor with two histories."""

    actor: int
    again: int
    """The actor of rows that hold what joins lose."""
    since: int
    """The last hlc that both histories have."""
    hlcs: frozenset[int]
    """Of the records that this node wrote since."""
    rows: list[Noted]


_decode_hlcs = msgspec.msgpack.Decoder(tuple[int, ...]).decode
_decode_fork = msgspec.msgpack.Decoder(Fork).decode
_encode = msgspec.msgpack.Encoder().encode


def _name(prefix: bytes, actor: int) -> bytes:
    return prefix + b"%016x" % actor


class Forking:
    """What is known of own actors that have two histories."""

    def __init__(
        self,
        store: MemberStore,
        replica: Replica,
        committed: Callable[[Record], None],
        now_ms: Callable[[], int],
        random_bytes: Callable[[int], bytes],
        tell: Callable[[str], None],
    ) -> None:
        self._store = store
        self._replica = replica
        self._committed = committed
        self._now_ms = now_ms
        self._random_bytes = random_bytes
        self._tell = tell
        kept = store.scan(KIND_META, FORKS, b"", FORKS_MAX + 1)
        self._forks = {fork.actor: fork for fork in (_decode_fork(raw) for _, raw in kept)}
        self._done = {
            actor: int.from_bytes(store.get(KIND_META, _name(DONE, actor)) or b"", "big")
            for actor in self._forks
        }
        self._crossed: OrderedDict[int, tuple[int, ...]] = OrderedDict(
            (int(name[len(CROSSED) :], 16), _decode_hlcs(raw))
            for name, raw in store.scan(KIND_META, CROSSED, b"", CROSSED_MAX)
        )
        self._pending: list[Record] = []
        self.writing = False
        """What is committed at the moment was written before."""
        self._ask()

    def _ask(self) -> None:
        """Of whoever links from now on."""
        self._replica.forked(self._done, self._crossed)

    def _keep(self, actor: int, done: int, fork: Fork | None = None) -> None:
        items: dict[bytes, bytes | None] = {_name(DONE, actor): done.to_bytes(8, "big")}
        if fork is not None:
            items[_name(FORKS, actor)] = _encode(fork)
            self._forks[actor] = fork
        self._store.put(KIND_META, items)
        self._done[actor] = done
        self._ask()

    def _forget_oldest(self) -> None:
        oldest = min(self._forks, key=lambda known: self._forks[known].since)
        self._store.put(KIND_META, dict.fromkeys((_name(FORKS, oldest), _name(DONE, oldest))))
        del self._forks[oldest], self._done[oldest]

    def cross(self, actor: int, hlc: int) -> None:
        """A record of `actor` passed over `hlc`, up to which it was held: perhaps another history,
        as that actor's node will know."""
        hlcs = self._crossed.get(actor, ())
        if hlc in hlcs:
            return
        items: dict[bytes, bytes | None] = {}
        if actor not in self._crossed and len(self._crossed) >= CROSSED_MAX:
            items[_name(CROSSED, self._crossed.popitem(last=False)[0])] = None
        self._crossed[actor] = (*hlcs, hlc)[-CROSSED_EACH:]
        items[_name(CROSSED, actor)] = _encode(self._crossed[actor])
        self._store.put(KIND_META, items)
        self._ask()

    # -- part

    def part(self, hlc: int) -> None:
        """A neighbour knows another history of the own actor at `hlc`, over which the records of
        this one pass. To be called before the actor is given up."""
        store = self._store
        actor = store.actor
        if hlc >= store.vv.get(actor, 0):
            return
        mine: dict[bytes, tuple[int, bytes]] = {}
        hlcs: set[int] = set()
        since, after = 0, hlc
        while after < store.vv.get(actor, 0):
            raws = store.records_after(actor, after, _READ_BYTES)
            if not raws:
                self._tell(f"actor {actor:016x} has two histories; the log is too short to tell")
                return
            for raw in raws:
                record = decode_record(raw, body_bytes_max=len(raw))
                since = since or record.prev_hlc
                after = record.hlc
                hlcs.add(after)
                for name, type_code, body in record.ops:
                    if matters(type_code, split_row_key(name)[1], actor):
                        mine[name] = type_code, body
        bases = self._bases(actor, since, mine)
        rows = [
            Noted(name, type_code, body, bases.get(name))
            for name, (type_code, body) in mine.items()
            if name in bases or self._born(name, type_code, actor) > since
        ]
        again = int.from_bytes(self._random_bytes(8), "big") or 1
        remember(store, again)
        while len(self._forks) >= FORKS_MAX:
            self._forget_oldest()
        self._keep(actor, since, Fork(actor, again, since, frozenset(hlcs), rows))
        self._tell(
            f"actor {actor:016x} has two histories from {since} on: {len(hlcs)} records of this "
            "node's are joined with what neighbours hold of the other"
        )

    def _born(self, name: bytes, type_code: int, actor: int) -> int:
        """When the row of a count began; of sets always since."""
        part = split_row_key(name)[1]
        if not counts(type_code, part, actor) or part[0] == TAG_WINDOW:
            return 1 << 64
        return birth_of(part)

    def _bases(self, actor: int, since: int, wanted: Iterable[bytes]) -> dict[bytes, bytes]:
        """Rows of the own actor's counts as they were at `since`, as far as the log tells."""
        names = {name for name in wanted if counts(0, split_row_key(name)[1], actor)}
        found: dict[bytes, bytes] = {}
        hlc = since
        for _ in range(_BACK_MAX):
            raws = self._store.records_after(actor, hlc - 1, 1) if hlc and names else None
            record = decode_record(raws[0], body_bytes_max=len(raws[0])) if raws else None
            if record is None or record.hlc != hlc:
                break
            for op in record.ops:
                if op.row_key in names:
                    names.discard(op.row_key)
                    found[op.row_key] = op.body
            hlc = record.prev_hlc
        return found

    # -- make good

    def take(self, record: Record) -> None:
        """A record came that some other node holds of an actor with two histories."""
        fork = self._forks.get(record.actor)
        if fork is None or record.hlc in fork.hlcs or record.hlc <= self._done[fork.actor]:
            return
        if len(self._pending) < PENDING_MAX:
            self._pending.append(record)

    @property
    def parted(self) -> bool:
        """Whether an own actor is known to have two histories."""
        return bool(self._forks)

    @property
    def pending(self) -> bool:
        """Whether records of another history came that are still to be written again."""
        return bool(self._pending)

    def tick(self) -> None:
        """Write again what came; a refused write is tried again."""
        if not self._pending:
            return
        self.writing = True
        try:
            for fork in list(self._forks.values()):
                records = [record for record in self._pending if record.actor == fork.actor]
                if records:
                    self._make_good(fork, records)
        except RoostError as error:
            self._tell(f"another history is written again later: {error}")
            return
        finally:
            self.writing = False
        self._pending.clear()

    def _make_good(self, fork: Fork, records: list[Record]) -> None:
        theirs: dict[bytes, Theirs] = {}
        for record in records:
            for op in record.ops:
                part = split_row_key(op.row_key)[1]
                row = decode_row(op.type, part, op.body)
                known = theirs.get(op.row_key)
                if known is not None and known.type == op.type:
                    row = kept_row(op.type, part, known.row, row)
                theirs[op.row_key] = Theirs(op.type, row, record.hlc)
        stamp = self._store.stamp(self._now_ms())
        for page in _pages(self._again(fork, theirs, stamp)):
            self._committed(self._store.commit(stamp, page))
            stamp = self._store.stamp(self._now_ms())
        self._keep(fork.actor, max(self._done[fork.actor], *(record.hlc for record in records)))

    def _again(
        self, fork: Fork, theirs: dict[bytes, Theirs], stamp: Stamp
    ) -> Iterable[tuple[bytes, int, Delta]]:
        by_key: dict[bytes, dict[Part, Theirs]] = {}
        for name, row in theirs.items():
            key, part = split_row_key(name)
            if not key.startswith(RESERVED):
                by_key.setdefault(key, {})[part] = row
        noted = {row.name: row for row in fork.rows}
        floor = self._replica.gc_floor.get(fork.actor, 0)
        for key, found in by_key.items():
            try:
                held = self._store.key_rows(key)
            except CorruptData as error:
                self._tell(f"another history of {key!r} is not taken: {error}")
                continue
            type_code = held.type or next(iter(found.values())).type
            # What is not here may have been collected: then it is not to come back.
            rows = {
                part: row.row
                for part, row in found.items()
                if row.type == type_code and (part in held.rows or row.hlc > floor)
            }
            delta = _join(type_code, held.rows, rows)
            after = {**held.rows, **delta}
            mine = {
                part: decode_row(type_code, part, noted[name].mine)
                for part in (*rows, *after, HEAD)
                if (name := row_key(key, part)) in noted
            }
            if type_code == TYPE_SET:
                delta.update(self._adds(fork, rows, mine, after, stamp))
            for part in rows:
                if part in mine and counts(type_code, part, fork.actor):
                    raw = noted[row_key(key, part)].base
                    base = None if raw is None else decode_row(type_code, part, raw)
                    lost = lost_count(part, mine[part], rows[part], base)
                    if lost is not None:
                        new = {again_part(part, fork.again): lost}
                        delta.update(_join(type_code, held.rows, new))
            yield key, type_code, delta

    def _adds(self, fork: Fork, theirs: Rows, mine: Rows, after: Rows, stamp: Stamp) -> Delta:
        """Elements that one history added and the other took away without having seen them."""
        delta: Delta = {}
        cleared = set_rows.cleared_of(after)
        for part in dict.fromkeys((*theirs, *mine)):
            row = after.get(part)
            if part == HEAD or row is None or set_rows.is_present(row, cleared):
                continue
            own = dot_of(fork.actor, mine.get(part), mine.get(HEAD))
            other = dot_of(fork.actor, theirs.get(part), theirs.get(HEAD))
            if is_lost(own, other, fork.since):
                hlc, actor = stamp
                dots = {dot[0]: dot for dot in row[1]}
                dots[actor] = (actor, hlc, dots[actor][2] if actor in dots else 0)
                delta[part] = (row[0], tuple(sorted(dots.values())))
        return delta


def _pages(ops: Iterable[tuple[bytes, int, Delta]]) -> Iterator[list[tuple[bytes, int, Delta]]]:
    """Operations for one record each."""
    page: list[tuple[bytes, int, Delta]] = []
    size = 0
    for key, type_code, delta in ops:
        for part, row in delta.items():
            page.append((key, type_code, {part: row}))
            size += len(key) + len(part) + len(encode_row(type_code, part, row))
            if size >= _PAGE_BYTES:
                yield page
                page, size = [], 0
    if page:
        yield page


def _join(type_code: int, held: Rows, rows: Rows) -> Delta:
    try:
        return join_delta(type_code, held, rows)
    except StampReused as reused:
        kept: Delta = reused.kept
        return kept
