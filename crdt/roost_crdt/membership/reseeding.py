"""Reseed at this node, a step each tick; every step is durable before the next one begins.

    export   writes that the neighbour lacks are copied into META (`reseed/NUMBER`)
    wipe     marker in META; every replicated row is dropped, a new actor taken, the vector emptied
    join     links come back; a neighbour's rows and records arrive as at a new node
    write    each page of the export is written again, and the marker says so in one group; then
             pages and marker go

A node that was merely removed, and is behind nothing that was collected, keeps its rows: in place
of the wipe its vector is cut to what the neighbour holds, it joins as an actor that a member has
reported to know of, and writes what it exported as its rows are then.

A crash before the marker leaves everything as it was; after it the start goes on where it stopped.
Sessions, spends and the outbox are of other kinds and stay. Own writes are refused meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain

import msgspec

from roost_crdt.errors import CorruptData, RoostError
from roost_crdt.hlc import Stamp, hlc_ms
from roost_crdt.logformat import KIND_META
from roost_crdt.members import Roster, covers, is_behind, join, rewritten_delta, rewritten_key
from roost_crdt.record import Record
from roost_crdt.replica import Replica
from roost_crdt.reseed import Lacking, rewrite
from roost_crdt.rows import Delta, Rows, decode_row, row_hlc
from roost_crdt.rows.layout import HEAD, RESERVED, TYPE_REGISTER

from .collector import GC_FLOOR, keep_rows_vv
from .export import Export, Exported, bases_of
from .storage import MemberStore

ACTORS = b"actors"
ACTORS_MAX = 1_000
MARKER = b"reseed"
PAGES = b"reseed/"
_ALL = 1 << 64
_PATIENCE_TICKS = 120
"""How long a report is waited for while a neighbour is linked (half a minute in the daemon)."""
_SCAN_BYTES = 256 << 10


class Marker(msgspec.Struct, array_like=True, frozen=True):
    """What the start has to know to go on."""

    stage: str
    peer: str
    vv: dict[int, int]
    """What the neighbour held: joined again once this is covered."""
    actors: tuple[int, ...]
    """Whose writes it lacked, the own actors, all given up, among them; the last wrote newest."""
    floor: dict[int, int] = {}
    """What it had collected: nobody who is behind that may be joined."""
    written: bytes = b""
    """The last page that was written again. All stay until the end: what is written may have to be
    given up once more before anybody has it."""
    tails: dict[int, int] = {}
    """Up to where of those actors this node held all when it exported."""
    keeps: bool = False
    """Its rows stay: it was removed, but nothing is collected that they could bring back."""


_decode_actors = msgspec.msgpack.Decoder(tuple[int, ...]).decode
_decode_marker = msgspec.msgpack.Decoder(Marker).decode
_decode_page = msgspec.msgpack.Decoder(list[Exported]).decode
_encode = msgspec.msgpack.Encoder().encode


def own_actors(store: MemberStore) -> tuple[int, ...]:
    """Actors that this store is known to have written as."""
    raw = store.get(KIND_META, ACTORS)
    return () if raw is None else _decode_actors(raw)


def remember(store: MemberStore, actor: int) -> None:
    """Rows of `actor` are this store's own from here on. Raises Full, Busy."""
    actors = own_actors(store)
    if actor not in actors:
        store.put(KIND_META, {ACTORS: _encode((*actors, actor)[-ACTORS_MAX:])})


class Reseeding:
    """One reseed after another, if it must be."""

    def __init__(
        self,
        node: str,
        *,
        store: MemberStore,
        replica: Replica,
        roster: Roster,
        committed: Callable[[Record], None],
        flush: Callable[[], None],
        now_ms: Callable[[], int],
        emptied: Callable[[int], None],
        random_bytes: Callable[[int], bytes],
        tell: Callable[[str], None],
    ) -> None:
        """`emptied` is told the new actor once nothing replicated is held any more."""
        self._node = node
        self._store = store
        self._replica = replica
        self._roster = roster
        self._committed = committed
        self._flush = flush
        self._now_ms = now_ms
        self._emptied = emptied
        self._random_bytes = random_bytes
        self._tell = tell
        self._trigger: tuple[str, dict[int, int], dict[int, int], bool] | None = None
        self._waited = 0
        self._raised: dict[int, int] = {}
        self._remember()
        raw = store.get(KIND_META, MARKER)
        self._marker = None if raw is None else _decode_marker(raw)
        if self._marker is not None and self._marker.stage == "wipe":
            replica.give_up()
        elif self._marker is not None and self._marker.keeps:
            replica.rewrites = True
        elif self._marker is not None:
            replica.rejoin(self._marker.floor)

    @property
    def stage(self) -> str:
        """ "": nothing is under way."""
        if self._trigger is not None:
            return "export"
        return "" if self._marker is None else self._marker.stage

    @property
    def keeps(self) -> bool:
        """Whether this node's rows stay."""
        return self._marker is not None and self._marker.keeps

    @property
    def reports(self) -> bool:
        """Whether this node may report as a member meanwhile: all that it has yet to write is
        joined with what it reports to hold."""
        return self.keeps and self.stage == "join" and bool(self._replica.peers)

    @property
    def waits_for(self) -> str:
        """The neighbour whose rows take the place of those given up; "" if none do."""
        if self._marker is not None:
            return self._marker.peer
        return "" if self._trigger is None else self._trigger[0]

    def trigger(self, peer: str, vv: Mapping[int, int], floor: Mapping[int, int]) -> None:
        """This node is behind `floor`, which `peer` has collected (or was removed); `vv` is what
        the peer holds."""
        if self.stage in ("export", "wipe"):
            return
        keeps = self._may_keep(floor)
        what = "goes on as another actor" if keeps else "gives up its rows and takes those"
        self._tell(f"this node {what} {'because' if keeps else ''} of {peer}".replace("  ", " "))
        self._replica.give_up()
        if self._marker is None or self._marker.keeps:
            self._trigger = peer, dict(vv), dict(floor), keeps
        else:  # once more, before it had joined again; the export is as it was
            actor, marker = self._store.actor, self._marker
            tails = {**marker.tails, actor: self._store.vv.get(actor, 0)}
            actors = (*marker.actors, actor)
            self._mark(Marker("wipe", peer, dict(vv), actors, dict(floor), tails=tails))

    def _may_keep(self, floor: Mapping[int, int]) -> bool:
        """Whether these rows can bring nothing back (and have no stamps to be got rid of)."""
        vv, newest = self._store.vv, max(self._store.vv.values(), default=0)
        due_ms = self._now_ms() + self._replica.limits.clock_offset_max_ms
        whole = bool(newest) and not self._replica.takes_rows and not self._gives_up
        return whole and hlc_ms(newest) <= due_ms and not is_behind(vv, floor)

    @property
    def _gives_up(self) -> bool:
        return self._marker is not None and not self._marker.keeps

    def _remember(self) -> None:
        """Keep the actors that this store wrote as: who never met anybody is in no roster."""
        try:
            remember(self._store, self._store.actor)
        except RoostError as error:
            self._tell(f"the actor is kept later: {error}")

    def tick(self) -> None:
        """The next step. A refused write is tried again."""
        self._remember()
        try:
            if self.stage in ("export", "wipe"):
                if not self._replica.peers:
                    self._give_up()
            elif self._marker is not None:
                self._join(self._marker)
        except RoostError as error:
            self._tell(f"reseed goes on later: {error}")

    def _give_up(self) -> None:
        self._flush()
        if self._trigger is not None:
            self._export(*self._trigger)
        elif self._marker is not None and self._marker.keeps:
            self._renew(self._marker)
        else:
            assert self._marker is not None, "something is to be given up"
            self._wipe(self._marker)

    def _mark(self, marker: Marker | None) -> None:
        self._store.put(KIND_META, {MARKER: None if marker is None else _encode(marker)})
        self._marker = marker

    # -- export

    def _export(self, peer: str, vv: dict[int, int], floor: dict[int, int], keeps: bool) -> None:
        before, mine = self._marker, self._roster.nodes.get(self._node)
        known = (*own_actors(self._store), *(() if mine is None else (*mine.retired, mine.actor)))
        # Of what others wrote this node may be the only holder, now or once they reseed too.
        tails = {actor: hlc for actor, hlc in self._store.vv.items() if hlc > vv.get(actor, 0)}
        if before is not None:
            known = (*before.actors, *known)
        each = dict.fromkeys(a for a in (*known, *tails) if a != self._store.actor)
        actors = (*each, self._store.actor)
        export = Export(self._store, Lacking(frozenset(actors), vv, (0, 0)))
        for actor in actors:
            export.touch(actor)
        pages = dict(self._store.scan(KIND_META, PAGES, b"", 1 << 20))
        if before is None:
            for name in pages:  # of an export that was not finished
                self._store.put(KIND_META, {name: None})
        else:  # once more, before it had joined again: these rows are here still
            tails = join((before.tails, tails))
            for one in chain.from_iterable(map(_decode_page, pages.values())):
                export.touched.setdefault(one.key, set()).update(part for part, _ in one.rows)
        first = 0 if before is None or not pages else int(max(pages)[len(PAGES) :]) + 1
        for number, page in enumerate(export.pages(), first):
            self._store.put(KIND_META, {PAGES + b"%08d" % number: _encode(page)})
            self._flush()
        if before is not None:
            for name in pages:
                self._store.put(KIND_META, {name: None})
        keeps = keeps and export.logged
        actors = (*sorted(export.writers.difference(actors)), *actors)
        self._mark(Marker("wipe", peer, vv, actors, floor, tails=tails, keeps=keeps))
        self._trigger = None
        self._flush()
        self._tell(f"exported {len(export.touched)} keys of writes that {peer} lacks")

    # -- keep

    def _renew(self, marker: Marker) -> None:
        """What the neighbour lacks leaves the vector, not the rows: records of an actor that was
        removed must not be passed on as they are. What the rows show stays known: whoever takes
        them meanwhile must not collect by a deletion that is in no vector."""
        if self._store.actor in marker.actors:
            self._store.renew_actor(self._random_bytes)
        keep_rows_vv(self._store, join((self._replica.rows_vv, self._store.vv)))
        upto = join((marker.vv, self._replica.gc_floor))
        held = {actor: min(hlc, upto.get(actor, 0)) for actor, hlc in self._store.vv.items()}
        vv = {actor: hlc for actor, hlc in held.items() if hlc}
        self._store.drop_rows([], vv=vv)
        self._mark(msgspec.structs.replace(marker, stage="join"))
        self._flush()
        self._replica.rewrites = True
        self._replica.reseeded(self._store.actor, {}, vv)
        self._emptied(self._store.actor)
        self._tell(f"rows are kept; this node joins again as actor {self._store.actor:016x}")

    def _wait(self) -> None:
        """No member may ever report that it knows of this actor: one that has still to meet a
        neighbour reports nothing. Then the rows are given up after all."""
        self._waited += bool(self._replica.peers)
        if self._waited >= _PATIENCE_TICKS:
            peer = self._replica.peers[min(self._replica.peers)]
            self._waited = 0
            self._tell(f"this node gives up its rows and takes those of {peer.node}: no report")
            self._trigger = peer.node, dict(peer.held), dict(peer.greeting.gc_floor), False
            self._replica.give_up()

    def _entered(self) -> bool:
        """Whether nothing can be collected any more before this node's rows are looked at: a
        member has reported that it knows of this actor, and all that it held then is here."""
        actor, vv = self._store.actor, self._store.vv
        others = (m for m in self._roster.members.values() if m.node != self._node)
        return any(member.vv.get(actor) and covers(vv, member.vv) for member in others)

    # -- wipe

    def _wipe(self, marker: Marker) -> None:
        page = self._store.scan_rows(b"", _SCAN_BYTES)
        if page:
            self._store.drop_rows([op.row_key for op in page])
            return
        if self._store.actor in marker.actors:
            self._store.renew_actor(self._random_bytes)
        self._store.drop_rows([], vv={})
        self._store.put(KIND_META, {GC_FLOOR: None})
        self._mark(msgspec.structs.replace(marker, stage="join"))
        self._flush()
        self._replica.reseeded(self._store.actor, marker.floor)
        self._emptied(self._store.actor)
        self._tell(f"rows are given up; this node joins again as actor {self._store.actor:016x}")

    # -- join and write

    def _join(self, marker: Marker) -> None:
        if self._replica.takes_rows:
            return
        if marker.keeps:
            if not self._entered():
                self._wait()
                return
        elif not covers(self._store.vv, marker.vv) and not self._is_gone(marker):
            return
        pages = self._store.scan(KIND_META, PAGES, marker.written, 1)
        stamp = self._store.stamp(self._now_ms())
        if not pages:
            if ops := list(self._rewritten(marker, stamp)):
                self._committed(self._store.commit(stamp, ops))
            for name, _ in self._store.scan(KIND_META, PAGES, b"", 1 << 20):
                self._store.put(KIND_META, {name: None})
            self._mark(None)
            self._replica.rewrites = False
            self._tell("this node has joined again")
            return
        name, raw = pages[0]
        lacking = self._lacking(marker, stamp)
        again = self._kept if marker.keeps else self._again
        ops = list(chain.from_iterable(again(one, lacking) for one in _decode_page(raw)))
        if any(_newest(*op[1:]) > stamp[0] for op in ops):
            return  # the clock was set back and a restart forgot what it had seen
        if ops:
            self._committed(self._store.commit(stamp, ops))
        self._mark(msgspec.structs.replace(marker, written=name))

    def _lacking(self, marker: Marker, stamp: Stamp) -> Lacking:
        """What is still lacking where the rows were taken from: some of it may have come there by
        another way meanwhile, or was written again by others."""
        come = self._raised = self._come(marker)
        actors = frozenset(a for a in marker.actors if marker.tails.get(a, _ALL) > come.get(a, 0))
        vv = join((marker.vv, come))
        floors = (marker.floor, self._replica.gc_floor)
        collected = max((hlc for floor in floors for hlc in floor.values()), default=0)
        return Lacking(actors, vv, stamp, collected=collected)

    def _come(self, marker: Marker) -> dict[int, int]:
        """Up to where writes that the neighbour lacked are known to have come."""
        known = join((self._roster.rewritten, self._store.vv))
        actors = known.keys() & set(marker.actors)
        return {a: known[a] for a in actors if known[a] > marker.vv.get(a, 0)}

    def _rewritten(self, marker: Marker, stamp: Stamp) -> Iterator[tuple[bytes, int, Delta]]:
        """Say so, for all who hold the same writes and reseed later: what was written again may
        have been removed and collected by then. Only what is here from its beginning: what the
        neighbour held, and had to give up itself, is still to be written again by that one."""
        told, vv = self._roster.rewritten, self._store.vv
        for actor, hlc in sorted(marker.tails.items()):
            begin = marker.vv.get(actor, 0)
            if hlc > begin <= max(vv.get(actor, 0), told.get(actor, 0)):
                key = rewritten_key(actor)
                if delta := rewritten_delta(self._store.key_rows(key).rows, hlc, stamp):
                    yield key, TYPE_REGISTER, delta

    def _is_gone(self, marker: Marker) -> bool:
        """Whether the neighbour for whom the rows were given up no longer holds what it held then
        (it had to give up its own, or left), and all that is left to be had is here."""
        peers = self._replica.peers
        peer = peers.get(marker.peer)
        if peer is None:
            lost = marker.peer not in self._roster.members
        else:
            lost = not covers(peer.held, marker.vv)
        vv = self._store.vv
        return lost and bool(peers) and all(covers(vv, other.held) for other in peers.values())

    def _kept(self, one: Exported, lacking: Lacking) -> Iterator[tuple[bytes, int, Delta]]:
        """The rows as they are now, by a record that others can take; with the head, which may
        hide them, and may be collected by now where they go."""
        held, parts = self._rows(one), dict.fromkeys((HEAD, *(part for part, _ in one.rows)))
        delta = {part: held[part] for part in parts if held and part in held}
        if delta:
            yield one.key, one.type, delta

    def _again(self, one: Exported, lacking: Lacking) -> Iterator[tuple[bytes, int, Delta]]:
        held = self._rows(one)
        if held is None:
            return
        rows = {part: decode_row(one.type, part, body) for part, body in one.rows}
        if one.key.startswith(RESERVED):  # registers that nobody deletes
            lacking = Lacking({row[1] for row in rows.values()}, {}, lacking.stamp)
        else:
            bases = bases_of(self._store, one, lacking, self._raised)
            lacking = lacking._replace(bases=bases)
        delta = rewrite(one.type, held, rows, lacking)
        if delta:
            yield one.key, one.type, delta

    def _rows(self, one: Exported) -> Rows | None:
        """What is held of a key now; None if that cannot be written to."""
        try:
            held = self._store.key_rows(one.key)
        except CorruptData as error:
            self._tell(f"writes to {one.key!r} cannot be written again: {error}")
            return None
        if held.type not in (0, one.type):
            self._tell(f"writes to {one.key!r} are of another type than its rows now")
            return None
        return held.rows


def _newest(type_code: int, delta: Delta) -> int:
    return max(row_hlc(type_code, part, row) for part, row in delta.items())
