"""The receiving half of a replica: what is taken, what is lacking, whom to ask for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from . import frames as f
from .errors import CorruptData, PeerError
from .hlc import hlc_ms
from .members import covers, is_behind, join, outdated
from .neighbourhood import NO_WAKE_MS, Neighbourhood
from .outflow import Outflow
from .peer import Peer, SnapshotIn
from .record import Record, RowOp, decode_record
from .rows import decode_row, row_hlc
from .rows.layout import split_row_key

DOC_BYTES_MAX = 2 << 20
"""Rows of documents in one record: what a node writes of one, or of a page that it writes again."""
REFUSED_PAUSE_MS = 2_000
"""How long nothing is taken after the store refused a write."""
SNAPSHOT_STALL_MS = 5_000
WANT_DEFER_MS = 5_000
"""An asked peer that is busy delivering other origins is given this long before another is."""


@dataclass(slots=True)
class Lack:
    """An origin that some peer has shown to hold further than this node does."""

    since_ms: int
    asked: str = ""
    asked_ms: int = 0


def _row_hlc(op: RowOp) -> int:
    """The highest stamp in a row; CorruptData if it is not a row."""
    part = split_row_key(op.row_key)[1]
    return row_hlc(op.type, part, decode_row(op.type, part, op.body))


class Inflow:
    """Takes records that extend the version vector; asks for those that do not come."""

    def __init__(self, near: Neighbourhood, outflow: Outflow) -> None:
        self._near = near
        self._outflow = outflow
        self._first: dict[int, str] = {}
        """The peer that brought the newest record of an origin."""
        self._lack: dict[int, Lack] = {}
        self._snapshots = 0
        self._complete_ms = 0
        self._paused_until_ms = 0

    def lag_ms(self, now_ms: int) -> int:
        """Now minus the last moment at which this node held all that its neighbours reported."""
        return max(0, now_ms - self._complete_ms) if self._lack else 0

    def peer_lag_ms(self, peer: Peer, now_ms: int) -> int:
        return max(0, now_ms - peer.complete_ms) if self._behind(peer) else 0

    def _behind(self, peer: Peer) -> bool:
        vv = self._near.vv
        return any(peer.held.get(origin, 0) > vv.get(origin, 0) for origin in self._lack)

    # -- links

    def check_joining(self, node: str, greeting: f.Greeting) -> None:
        """PeerError: while rows of some neighbours are taken, nobody behind them is linked."""
        near = self._near
        if is_behind(greeting.vv, near.joins):
            raise PeerError(f"Reseed: {near.node} takes rows that {node} is behind; try again")
        if near.joins or not any(near.vv.values()):
            for other in near.peers.values():
                if is_behind(other.held, greeting.gc_floor):
                    raise PeerError(
                        f"Reseed: {near.node} takes the rows of {other.node}, who is behind what "
                        f"{node} has collected; try again"
                    )

    def outdated(self, greeting: f.Greeting, removed: frozenset[int]) -> tuple[bool, str]:
        """Whether this node has to reseed, or else that neighbour; why, "" if neither has to."""
        near, node = self._near, greeting.node
        theirs = outdated(greeting.actor, removed, greeting.vv, near.gc_floor)
        mine = outdated(near.actor, frozenset(greeting.removed), near.vv, greeting.gc_floor)
        if not mine and not theirs:
            return False, ""
        reseeds = bool(mine) and not (theirs and self._stays(greeting, removed))
        behind, ahead, why = (near.node, node, mine) if reseeds else (node, near.node, theirs)
        held, floor = (near.vv, greeting.gc_floor) if reseeds else (greeting.vv, near.gc_floor)
        what = f"takes {ahead}'s rows and writes its own again"
        if not is_behind(held, floor):
            what = "joins again as another actor"
        return reseeds, f"Reseed: {behind} {why.format(ahead)}; it {what}"

    def _stays(self, greeting: f.Greeting, removed: frozenset[int]) -> bool:
        """Of two that are outdated for each other, whether this one keeps what it holds.

        Who is behind gives way to who was merely removed. Where two parts of a cluster have both
        collected, whoever is between them would take the rows of the one, be behind the other,
        and so on for ever, were it not for an order of what was collected, whoever has it.
        """
        near = self._near
        ours, theirs = near.gc_floor, greeting.gc_floor
        behind, ahead = is_behind(near.vv, theirs), is_behind(greeting.vv, ours)
        if behind != ahead:
            return ahead
        if not behind:
            return near.node < greeting.node
        here, there = max(ours.values()), max(theirs.values())
        return here > there if here != there else near.node < greeting.node

    def link_up(self, peer: Peer, now_ms: int) -> None:
        near, floor = self._near, peer.greeting.gc_floor
        if near.joins or (not any(near.vv.values()) and any(floor.values())):
            near.joins = join((near.joins, floor))
            if not self._asked_snapshot():
                self._ask_snapshot(peer, now_ms)
        for origin, hlc in peer.greeting.vv.items():
            self.shown(peer, origin, hlc, now_ms)
            if origin in self._lack:
                self._want(peer, origin, now_ms)
        if not near.joins:
            self._pull(peer)

    def _pull(self, peer: Peer) -> None:
        """Ask for the other history of own actors that have two."""
        for origin, after in self._near.parted.items():
            if peer.held.get(origin, 0) > after:
                peer.pulls[origin] = peer.held[origin]
                self._near.emit(peer, f.Want(origin, after, again=True))

    def link_down(self, peer: Peer) -> None:
        for origin in [o for o, first in self._first.items() if first == peer.node]:
            del self._first[origin]
        for origin in list(self._lack):
            self._settle(origin)
        near = self._near
        if not near.peers and not near.rejoins and not any(near.vv.values()):
            near.joins = {}  # nothing came that counts: whoever is linked next will do

    def refused(self, origin: int, held_hlc: int, now_ms: int) -> None:
        self._near.retreat(origin, held_hlc)
        self._paused_until_ms = now_ms + REFUSED_PAUSE_MS
        for peer in self._near.peers.values():
            peer.snapshot_in = None
            if peer.held.get(origin, 0) > held_hlc and origin != self._near.actor:
                self._lack.setdefault(origin, Lack(now_ms))

    # -- what is lacking

    def announced(self, peer: Peer, heads: Mapping[int, int], now_ms: int) -> None:
        if len(peer.held.keys() | heads.keys()) > f.ORIGINS_MAX:
            raise PeerError(f"{peer.node} announces more than {f.ORIGINS_MAX} actors")
        for origin, hlc in heads.items():
            self.shown(peer, origin, hlc, now_ms)

    def shown(self, peer: Peer, origin: int, hlc: int, now_ms: int) -> None:
        """The peer holds `origin` up to `hlc`."""
        if origin == self._near.actor:
            self._check_own(peer, hlc)
        elif hlc > self._near.vv.get(origin, 0):
            if not self._behind(peer):
                peer.complete_ms = now_ms
            if not self._lack:
                self._complete_ms = now_ms
            self._lack.setdefault(origin, Lack(now_ms))
        peer.holds(origin, hlc)

    def _check_own(self, peer: Peer, hlc: int) -> None:
        if hlc > self._near.vv.get(self._near.actor, 0):
            rollback = (peer.node, self._near.actor, hlc)
            if rollback not in self._near.effects.rollbacks:
                self._near.effects.rollbacks.append(rollback)
            self._near.effects.cuts.append((peer.node, f"Rollback: it knows {hlc} of this actor"))

    def _settle(self, origin: int) -> None:
        """Forget a lack that is filled, or that nobody up can fill."""
        have = self._near.vv.get(origin, 0)
        if all(peer.held.get(origin, 0) <= have for peer in self._near.peers.values()):
            self._lack.pop(origin, None)

    def _progress(self, peer: Peer, origin: int, now_ms: int) -> None:
        peer.progress_ms = now_ms
        lack = self._lack.get(origin)
        if lack is not None:
            lack.since_ms = now_ms
            self._settle(origin)

    def _want(self, peer: Peer, origin: int, now_ms: int) -> None:
        """Ask, unless that waits for the clock, a snapshot, or an answer already asked for."""
        lack = self._lack[origin]
        asked = self._near.peers.get(lack.asked)
        if asked is not None and now_ms < lack.asked_ms + asked.want_after_ms():
            return
        if origin in peer.skew or now_ms < self._paused_until_ms or self._taking_snapshot():
            return
        lack.asked, lack.asked_ms = peer.node, now_ms
        peer.pruned.pop(origin, None)
        self._near.emit(peer, f.Want(origin, self._near.vv.get(origin, 0)))

    def _direct_ms(self, origin: int) -> float:
        """How long its own node, if that is a neighbour, may take longer than a detour."""
        peer = self._near.peers.get(self._near.nodes.get(origin, ""))
        return 0.0 if peer is None else peer.one_way_ms() + self._near.limits.want_slack_ms

    def _due_ms(self, origin: int, lack: Lack) -> int:
        """When to ask (another) peer for an origin; NO_WAKE_MS if nobody can be asked."""
        near = self._near
        have = near.vv.get(origin, 0)
        waits = [
            peer.want_after_ms()
            for peer in near.peers.values()
            if peer.held.get(origin, 0) > have and origin not in peer.skew
        ]
        if not waits:
            return NO_WAKE_MS
        asked = near.peers.get(lack.asked)
        if asked is None:
            wait_ms = max(min(waits), self._direct_ms(origin))
            return max(int(lack.since_ms + wait_ms), self._paused_until_ms)
        wait_ms = asked.want_after_ms()
        first_ms = max(lack.since_ms, lack.asked_ms)
        busy_ms = min(max(first_ms, asked.progress_ms), first_ms + WANT_DEFER_MS)
        return max(int(busy_ms + wait_ms), self._paused_until_ms)

    def _ask_next(self, origin: int, lack: Lack, now_ms: int) -> None:
        """The peer after the one asked last, the quickest first."""
        have = self._near.vv.get(origin, 0)
        holders = sorted(
            (
                peer
                for peer in self._near.peers.values()
                if peer.held.get(origin, 0) > have and origin not in peer.skew
            ),
            key=lambda peer: (peer.want_after_ms(), peer.node),
        )
        nodes = [peer.node for peer in holders]
        turn = nodes.index(lack.asked) + 1 if lack.asked in nodes else 0
        lack.asked = ""
        self._want(holders[turn % len(holders)], origin, now_ms)

    # -- records

    def records(self, peer: Peer, raws: Sequence[bytes], now_ms: int) -> None:
        """PeerError before anything is taken if one of them cannot be."""
        bytes_max = self._near.limits.body_bytes_max
        try:
            doc_max = min(bytes_max, DOC_BYTES_MAX)
            records = [
                decode_record(raw, body_bytes_max=bytes_max, doc_bytes_max=doc_max) for raw in raws
            ]
        except CorruptData as error:
            raise PeerError(f"{peer.node} sent a record that cannot be read: {error}") from error
        if any(record.actor == self._near.actor for record in records):
            raise PeerError(f"{peer.node} sent a record of this node's own actor")
        duplicated: set[int] = set()
        for raw, record in zip(raws, records, strict=True):
            pulled_to = peer.pulls.get(record.actor)
            if pulled_to is not None and record.hlc >= pulled_to:
                del peer.pulls[record.actor]
            if record.hlc <= self._near.vv.get(record.actor, 0):
                peer.holds(record.actor, record.hlc)
                if record.actor in self._near.parted:
                    self._near.effects.writes.append((raw, record))
                    continue
                peer.duplicates += 1
                duplicated.add(record.actor)
            else:
                self._record(peer, raw, record, now_ms)
        for origin in sorted(duplicated):
            self._prune(peer, origin, now_ms)

    def _prune(self, peer: Peer, origin: int, now_ms: int) -> None:
        """One of two peers that bring the same: the later one, but never the origin itself.

        What is still under way from one just pruned is no reason to prune the other too.
        """
        first = self._near.peers.get(self._first.get(origin, ""))
        if first is None or first is peer:
            return
        late, kept = (first, peer) if peer.greeting.actor == origin else (peer, first)
        if now_ms < kept.pruned.get(origin, -NO_WAKE_MS) + kept.want_after_ms():
            return
        late.pruned[origin] = now_ms
        self._near.emit(late, f.Prune(origin))

    def _record(self, peer: Peer, raw: bytes, record: Record, now_ms: int) -> None:
        near, origin = self._near, record.actor
        ahead_ms = hlc_ms(record.hlc) - (now_ms + near.wall_ahead_ms)
        if ahead_ms > near.limits.clock_offset_max_ms:
            if origin not in peer.skew:
                near.emit(peer, f.Prune(origin))
            peer.skew.setdefault(origin, hlc_ms(record.hlc) - near.limits.clock_offset_max_ms)
            self.shown(peer, origin, record.hlc, now_ms)
        elif record.prev_hlc > near.vv.get(origin, 0):
            self.shown(peer, origin, record.hlc, now_ms)
            self._want(peer, origin, now_ms)
        elif now_ms < self._paused_until_ms or record.hlc <= near.joins.get(origin, 0):
            # The latter may be older than what was collected where the rows come from.
            self.shown(peer, origin, record.hlc, now_ms)
        else:
            near.advance(origin, record.hlc)
            near.effects.writes.append((raw, record))
            peer.received += 1
            peer.holds(origin, record.hlc)
            self._first[origin] = peer.node
            self._progress(peer, origin, now_ms)
            self._outflow.forward(raw, record, peer)

    # -- snapshots

    def _asked_snapshot(self) -> bool:
        takings = (peer.snapshot_in for peer in self._near.peers.values())
        return any(taking is not None and not taking.waits for taking in takings)

    def _taking_snapshot(self) -> bool:
        return bool(self._near.joins) or self._asked_snapshot()

    def offered(self, peer: Peer, origin: int, now_ms: int) -> None:
        taking = peer.snapshot_in
        peer.pulls.pop(origin, None)
        if taking is not None and taking.waits:
            again_ms = taking.asked_ms + SNAPSHOT_STALL_MS
            peer.skew.setdefault(origin, again_ms + self._near.wall_ahead_ms)
        elif origin in self._lack and not self._taking_snapshot():
            self._ask_snapshot(peer, now_ms)

    def _ask_snapshot(self, peer: Peer, now_ms: int) -> None:
        self._snapshots += 1
        peer.snapshot_in = SnapshotIn(self._snapshots, now_ms)
        self._near.emit(peer, f.SnapshotWant(self._snapshots))

    def rows(self, peer: Peer, frame: f.SnapshotRows, now_ms: int) -> None:
        if peer.snapshot_in is None or peer.snapshot_in.id != frame.id:
            return
        try:
            ops = tuple(RowOp(*row) for row in frame.rows)
            hlc = max((_row_hlc(op) for op in ops), default=0)
        except CorruptData as error:
            raise PeerError(f"{peer.node} sent a row that cannot be read: {error}") from error
        due_ms = hlc_ms(hlc) - self._near.limits.clock_offset_max_ms
        if due_ms > now_ms + self._near.wall_ahead_ms:
            self._delay_snapshot(peer, due_ms)
            return
        peer.snapshot_in.asked_ms = peer.progress_ms = now_ms
        if ops:
            self._near.took_rows(frame.vv)
            self._near.effects.rows.append((ops, {}))

    def _delay_snapshot(self, peer: Peer, due_ms: int) -> None:
        """Rows from the future: the rest is ignored, and the scan asked for again in time.

        Until then what it was to bring is asked of others, and not of this peer.
        """
        self._snapshots += 1
        again_ms = due_ms - self._near.wall_ahead_ms
        peer.snapshot_in = SnapshotIn(self._snapshots, again_ms - SNAPSHOT_STALL_MS, waits=True)
        peer.skew.setdefault(peer.greeting.actor, due_ms)
        for origin in self._lack:
            if peer.held.get(origin, 0) > self._near.vv.get(origin, 0):
                peer.skew.setdefault(origin, due_ms)

    def rows_end(self, peer: Peer, frame: f.SnapshotEnd, now_ms: int) -> None:
        """The rows taken since the snapshot was asked for cover its vector."""
        near, snapshot_id, vv = self._near, frame.id, frame.vv
        if peer.snapshot_in is None or peer.snapshot_in.id != snapshot_id:
            return
        due_ms = hlc_ms(max(vv.values(), default=0)) - near.limits.clock_offset_max_ms
        if due_ms > now_ms + near.wall_ahead_ms:
            self._delay_snapshot(peer, due_ms)
            return
        near.gc_floor = join((near.gc_floor, peer.greeting.gc_floor, frame.gc_floor))
        peer.snapshot_in = None
        covered: dict[int, int] = {}
        for origin, hlc in vv.items():
            self.shown(peer, origin, hlc, now_ms)
            if origin != near.actor and hlc > near.vv.get(origin, 0):
                near.advance(origin, hlc)
                covered[origin] = hlc
                self._progress(peer, origin, now_ms)
                for other in near.peers.values():
                    if other is not peer:
                        other.announce.add(origin)
        near.effects.rows.append(((), covered))
        if covers(near.vv, near.joins):
            near.joins, near.rejoins = {}, False
            for other in near.peers.values():
                self._pull(other)

    # -- time

    def tick(self, now_ms: int) -> None:
        """Ask again for what waited for the clock, and for what is overdue."""
        near = self._near
        wall_ms = now_ms + near.wall_ahead_ms
        for peer in near.peers.values():
            taking = peer.snapshot_in
            if taking is not None and now_ms >= taking.asked_ms + SNAPSHOT_STALL_MS:
                self._ask_snapshot(peer, now_ms)
            for origin in [o for o, due_ms in peer.skew.items() if wall_ms >= due_ms]:
                del peer.skew[origin]
                if origin in self._lack:
                    self._lack[origin].asked = ""
                    self._want(peer, origin, now_ms)
        if near.joins and not self._asked_snapshot():
            free = [node for node, peer in near.peers.items() if peer.snapshot_in is None]
            if free and now_ms >= self._paused_until_ms:
                self._ask_snapshot(near.peers[min(free)], now_ms)
        elif not self._taking_snapshot():
            for origin, lack in self._lack.items():
                if self._due_ms(origin, lack) <= now_ms:
                    self._ask_next(origin, lack, now_ms)

    def wake_ms(self) -> int:
        """When `tick` has something to do."""
        near = self._near
        dues = [
            due_ms - near.wall_ahead_ms
            for peer in near.peers.values()
            for due_ms in peer.skew.values()
        ]
        dues += [
            peer.snapshot_in.asked_ms + SNAPSHOT_STALL_MS
            for peer in near.peers.values()
            if peer.snapshot_in is not None
        ]
        if not self._taking_snapshot():
            dues += [self._due_ms(origin, lack) for origin, lack in self._lack.items()]
        return min(dues, default=NO_WAKE_MS)
