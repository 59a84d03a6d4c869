"""The sessions of one node: home's steps to the standby, changes of home, what is due with time.

Frames come in through `roost_crdt.sessions.intake`, go out through `roost_crdt.sessions.outbox`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType

import msgspec

from roost_crdt.errors import CorruptData
from roost_crdt.home import (
    Deposed,
    Epoch,
    Follow,
    Meta,
    Update,
    Whole,
    choose_standby,
    may_take_over,
    succeed,
)
from roost_crdt.sessions.copy import SessionCopy
from roost_crdt.sessions.intake import Intake
from roost_crdt.sessions.outbox import Copying, Links, Outbox
from roost_crdt.sessions.shelf import Shelf
from roost_crdt.sessions.table import Items, head_item

SWEEP_PAGE = 500
STANDBY_GONE_FACTOR = 10
"""A standby is replaced after it was down for this many times `takeover_after_ms`."""
COPY_AGAIN_MS = 2_000
DROPPED_MAX = 1_000
COPIES_A_TICK = 32
"""Whole documents that a tick or a page of a sweep sends to new standbys; the rest waits."""
SWEEP_EVERY_MS = 600_000
NOTHING: Mapping[str, bytes] = MappingProxyType({})
DRAINED_MS = 60_000
"""A node that was drained is to be stopped: for so long it takes no session in."""


class Stream:
    """Sends and receives the frames of roost_crdt.home for one node.

    `take_frames` is its one output: call it only when the store's open group is durable.
    """

    def __init__(
        self,
        shelf: Shelf,
        links: Links,
        *,
        takeover_after_ms: int,
        residency: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self._shelf = shelf
        self._links = links
        self._takeover_after_ms = takeover_after_ms
        self._residency = residency
        self._out = Outbox(shelf)
        self._intake = Intake(shelf, self._out, self.publish, self.erase_here)
        shelf.on_deposed = self._out.send_unmerged
        self._started_ms = self._swept_ms = shelf.steady_ms()
        self._gone_ms = STANDBY_GONE_FACTOR * takeover_after_ms
        self._heard: set[str] | None = None
        """Neighbours that were up and are not gone since; None until the first can be gone."""
        self._sweep_due = False
        self._regular = True
        """Whether the sweep that goes on is one of those at intervals."""
        self._far: frozenset[str] = frozenset()
        """Nodes that are reached by way of others."""
        self._far_new: set[str] = set()
        """Those that came into reach since a sweep began."""
        self._far_told: set[str] = set()
        """Those that hear of the sessions at home here in the sweep that goes on."""
        self._copies_left = COPIES_A_TICK
        self._drains = 0
        self._drained_ms = self._started_ms - DRAINED_MS
        self._dropped: dict[str, int] = {}
        """Sessions erased here of which something was held -> that erasure; the newest ones."""

    # --- home's side ---

    def publish(self, live: SessionCopy, update: Update) -> None:
        """Stream one step to the standby, once it is durable here."""
        if live.meta.standby is not None:
            self._out.send(live.meta.standby, update)
        self._out.note_unacked(live)
        candidate = self._out.candidate(live.meta.sid)
        if candidate is not None:
            self._out.send(candidate, update)

    def offer(self, live: SessionCopy) -> None:
        """Tell the standby where this copy is; it acknowledges or wants the rest."""
        self._out.offer(live)

    def protected(self, live: SessionCopy) -> bool:
        """Whether losing home now costs at most one turn.

        At home: the standby is up and holds every turn but at most the newest. Elsewhere the
        copy itself is the evidence.
        """
        meta = live.meta
        if meta.home != self._shelf.node:
            return True
        up = {c.node for c in self._links.candidates()}
        return meta.standby in up and meta.acked_n >= live.turn_n - 1 and not meta.unmerged

    def when_held(self, live: SessionCopy, n: int, callback: Callable[[], None]) -> None:
        """Call back once the standby holds step n; at once if it does."""
        live.when_held(n, callback)

    def choose(self, sid: str) -> str | None:
        """The neighbour that should hold the copy of a session whose home is here."""
        return choose_standby(sid, self._shelf.region, self._links.candidates(), self._residency())

    # --- changes of home ---

    def begin(
        self,
        sid: str,
        epoch_n: int = 1,
        entries: Mapping[str, bytes] = NOTHING,
        fields: Mapping[str, bytes] = NOTHING,
    ) -> SessionCopy:
        """A new session with this node as its home; stored with the open group.

        What a fork begins with goes into the same batch: all of it is there, or (if the store
        refuses it) nothing of the session, in memory neither.
        """
        shelf = self._shelf
        meta = Meta(
            sid,
            (epoch_n, shelf.node),
            self.choose(sid),
            used_ms=shelf.now_ms(),
            actor=shelf.actor,
        )
        live = shelf.new_copy(meta)
        live.confirmed = shelf.generation
        if entries or fields:
            live.write(entries, fields, meta.used_ms)
        else:
            live.set_meta(meta)
        shelf.adopt(live)
        self.offer(live)
        return live

    def take_over(self, sid: str, *, probe_failed: bool) -> bool:
        """Become home, stored with the open group, if the evidence allows it."""
        live = self._shelf.live(sid)
        if live is None or not may_take_over(
            live.meta,
            self._shelf.node,
            home_silent_ms=self._links.silent_ms(live.meta.home),
            takeover_after_ms=self._takeover_after_ms,
            probe_failed=probe_failed,
        ):
            return live is not None and live.meta.home == self._shelf.node
        live.enter_epoch(self._shelf.node, live.meta.home, self._shelf.now_ms())
        live.confirmed = self._shelf.generation
        self.offer(live)
        return True

    def handover(self, live: SessionCopy, node: str) -> Whole:
        """The frame that makes `node` the next home once it has stored it."""
        after = succeed(live.meta, node, self._shelf.node)
        return msgspec.structs.replace(live.whole(), epoch=after.epoch, standby=after.standby)

    def handed_over(self, live: SessionCopy, frame: Whole) -> None:
        """The next home has answered: it is home, this node its standby.

        Meanwhile a higher epoch may have been learnt or, for another standby, entered here; what
        was merged meanwhile the next home lacks; and an erasure outranks all of it.
        """
        live.follow = Follow()
        if live.meta.epoch >= frame.epoch or self._erased(frame.sid):
            return
        lacks = (live.meta.n, live.meta.chain) != (frame.n, frame.chain)
        live.set_meta(
            msgspec.structs.replace(
                live.meta, epoch=frame.epoch, standby=frame.standby, acked_n=0, unmerged=lacks
            )
        )
        self._out.send_unmerged(live.meta.sid)

    def handover_unknown(self, live: SessionCopy, frame: Whole) -> None:
        """No answer: the other side may be home under the frame's epoch; this one outranks it.

        Unless it has said so by itself meanwhile, or yet another is home, or it was erased.
        """
        if live.meta.home != self._shelf.node or self._erased(frame.sid):
            return
        live.set_meta(msgspec.structs.replace(live.meta, epoch=max(live.meta.epoch, frame.epoch)))
        live.enter_epoch(self._shelf.node, frame.epoch[1], self._shelf.now_ms())
        self.offer(live)

    def _erased(self, sid: str) -> bool:
        """A copy in somebody's hands does not show that its session was erased meanwhile."""
        meta = self._shelf.meta(sid)
        return meta is not None and bool(meta.erased_ms)

    @contextmanager
    def draining(self) -> Iterator[None]:
        """Sessions are given away: none is taken in, and none soon after."""
        self._drains += 1
        try:
            yield
        finally:
            self._drains -= 1
            self._drained_ms = self._shelf.steady_ms()

    @property
    def adopts(self) -> bool:
        """Whether this node takes sessions in: two that drain must not swap theirs."""
        return not self._drains and self._shelf.steady_ms() - self._drained_ms >= DRAINED_MS

    def next_home(self, live: SessionCopy, refused: Collection[str]) -> str | None:
        """Whom to hand a session to that leaves this node: its standby, else another neighbour."""
        if live.meta.standby is not None and live.meta.standby not in refused:
            return live.meta.standby
        left = [c for c in self._links.candidates() if c.node not in refused]
        return choose_standby(live.meta.sid, self._shelf.region, left, self._residency())

    def adopt(self, frame: Whole) -> bool:
        """Become home of a session that was handed over; False if its epoch is not newer, this
        copy holds turns of its own that have to be merged first, or this node is drained."""
        if not self.adopts:
            return False
        shelf = self._shelf
        assert frame.epoch[1] == shelf.node, "a session is handed to the home that it names"
        meta = shelf.meta(frame.sid)
        if meta is not None and (meta.epoch >= frame.epoch or meta.erased_ms):
            return False
        if meta is not None and meta.held and (meta.unmerged or meta.home == shelf.node):
            return False
        with shelf.arriving(Meta(frame.sid, frame.epoch, frame.standby)) as live:
            live.replace(frame)
        live.confirmed = shelf.generation
        self.offer(live)
        return True

    def shown_copy(self, live: SessionCopy, epoch: Epoch, n: int, chain: bytes) -> bool:
        """The standby says where its copy is: home notices here that it has lost a tail (its store
        went back in time unnoticed) and leaves the epochs in which it wrote that; whether it did.
        """
        meta = live.meta
        if epoch != meta.epoch or n < meta.n or (n, chain) == (meta.n, meta.chain):
            return False
        live.leave_lost_tail(self._shelf.now_ms())
        self.offer(live)
        return True

    # --- frames ---

    def take_frames(self) -> list[tuple[str, bytes]]:
        """(node, frame) in order, for sending now that everything they say is durable."""
        return self._out.take()

    def on_frame(self, peer: str, payload: bytes) -> None:
        """One frame from a neighbour. Raises PeerError if it is none; nothing was changed then."""
        self._intake.on_frame(peer, payload)

    def erase_here(self, sid: str, at_ms: int, heard_from: str = "") -> bool:
        """Drop every row of a session, remember that it was erased and pass that on to the other
        neighbours until they have answered. Whether this erasure, heard of now or a moment ago
        over another way, found anything here."""
        shelf = self._shelf
        meta = shelf.meta(sid)
        if meta is not None and meta.erased_ms:
            return self._dropped.get(sid) == at_ms
        held = meta is not None and meta.held
        shelf.before_erasure(sid)
        gone = msgspec.structs.replace(
            meta or Meta(sid, (1, shelf.node), None), held=False, erased_ms=at_ms or 1
        )
        shelf.lives.pop(sid, None)
        shelf.stubs.pop(sid, None)
        self._out.forget(sid)
        items = shelf.table.drop_items(sid)
        items.update(head_item(gone))
        shelf.table.put(items)
        shelf.on_erased(sid)
        if held:
            self._dropped[sid] = gone.erased_ms
            if len(self._dropped) > DROPPED_MAX:
                del self._dropped[next(iter(self._dropped))]
        for neighbour in self._links.candidates():
            if neighbour.node != heard_from:
                self._out.erase(neighbour.node, sid, gone.erased_ms)
        return held

    def give_up(
        self, sid: str, stored: Iterable[bytes], standby_at: tuple[int, bytes] | None = None
    ) -> bool:
        """What is stored of a session here, under the keys `stored`, is damaged: drop it, if a
        neighbour in reach has all of it, and ask for that one's. `standby_at`: n and chain of the
        standby's copy, as it has said itself. CorruptData: not even the head can be read."""
        shelf = self._shelf
        live = shelf.lives.get(sid)
        meta = shelf.table.head(sid) if live is None else live.meta
        if meta is None or not meta.held or meta.erased_ms or (live is not None and live.pins):
            return False
        own = meta.home == shelf.node
        other = meta.standby if own else meta.home
        covered = meta.acked_n >= meta.n or standby_at == (meta.n, meta.chain)
        if not covered if own else meta.unmerged:
            return False
        if other is None or other not in {one.node for one in self._links.candidates()}:
            return False
        shelf.lives.pop(sid, None)
        self._out.forget(sid)
        items: Items = dict.fromkeys(stored)
        items.update(head_item(msgspec.structs.replace(meta, held=False)))
        shelf.table.put(items)
        self._out.want(other, sid, meta.epoch)
        return True

    # --- time ---

    def tick(self) -> None:
        """Offer again what was not acknowledged in time; look for standbys that are gone."""
        self._shelf.make_room()
        now_ms = self._shelf.steady_ms()
        for sid in self._out.due_to_merge(now_ms):
            meta = self._shelf.meta(sid)
            if meta is None or not meta.unmerged:
                del self._out.unmerged[sid]
                continue
            with self._contained(sid):
                self._out.send_unmerged(sid, again=True)
        self._copies_left = COPIES_A_TICK
        rtts = {c.node: c.rtt_ms for c in self._links.candidates()}
        self._out.erase_again(rtts.keys())
        self._watch_for_gone(rtts.keys())
        self._watch_for_far()
        # Without anybody who could take an offer no session is looked at, let alone loaded.
        for sid, offered_ms in list(self._out.unacked.items()) if rtts else ():
            with self._contained(sid):
                self._offer_again(sid, now_ms - offered_ms, rtts)

    def _offer_again(self, sid: str, since_ms: int, rtts: Mapping[str, float]) -> None:
        live = self._shelf.live(sid)
        if live is None or live.meta.home != self._shelf.node:
            self._out.let_go(sid)
            return
        rtt_ms = rtts.get(live.meta.standby or "")
        if rtt_ms is None:
            self._replace_standby(live)
        elif since_ms > 2 * rtt_ms + 500:
            self.offer(live)

    @contextmanager
    def _contained(self, sid: str) -> Iterator[None]:
        """One damaged session must not keep the others from what is due."""
        try:
            yield
        except CorruptData as error:
            self._out.forget(sid)
            self._shelf.on_corrupt(sid, error)

    def sweep_page(
        self, after: str, newcomers: Collection[str] = (), *, repeated: bool = False
    ) -> str | None:
        """Look through the next page of sessions; where to go on, None at the end.

        After a start, when the links of `newcomers` came up, and every `SWEEP_EVERY_MS`: what the
        standby lacks is offered, what a new home lacks is sent, what has expired is dropped, and
        newcomers hear which epochs are in force. `repeated`: they have missed some of that, and
        hear of nothing else: what waits for an answer would leave no room for it again.
        """
        self._copies_left = COPIES_A_TICK
        if repeated:
            self._far_told = set()
        elif not after:
            self._sweep_due = False
            self._regular = self._shelf.steady_ms() - self._swept_ms > SWEEP_EVERY_MS
            self._far_told, self._far_new = self._far_new, set()
        heads = self._shelf.table.heads(after, SWEEP_PAGE)
        for meta in heads:
            with self._contained(meta.sid):
                known = self._shelf.meta(meta.sid) or meta
                if not repeated:
                    self._revisit(known, newcomers)
                elif known.held and not known.erased_ms:
                    self._announce(known, newcomers)
        if len(heads) < SWEEP_PAGE:
            if not repeated:
                self._swept_ms = self._shelf.steady_ms()
            return None
        return heads[-1].sid

    @property
    def sweep_due(self) -> bool:
        """Whether the last whole sweep is long ago, or a neighbour has gone since."""
        return self._sweep_due or self._shelf.steady_ms() - self._swept_ms > SWEEP_EVERY_MS

    def _gone(self, node: str) -> bool:
        """Whether a standby is to be replaced: a short cut must not race epochs upwards."""
        since_start_ms = self._shelf.steady_ms() - self._started_ms
        return min(self._links.silent_ms(node), since_start_ms) >= self._gone_ms

    def _watch_for_gone(self, up: Collection[str]) -> None:
        """Sessions whose standby has just gone are found by a sweep, be they idle."""
        if self._heard is None:
            if self._shelf.steady_ms() - self._started_ms < self._gone_ms:
                return
            self._heard, self._sweep_due = set(), True
        gone = {node for node in self._heard.difference(up) if self._gone(node)}
        self._heard -= gone
        self._heard.update(up)
        self._sweep_due = self._sweep_due or bool(gone)

    def _watch_for_far(self) -> None:
        """Who comes into reach behind a neighbour has no link here that would come up."""
        far = frozenset(self._links.beyond())
        self._far_new |= far - self._far
        self._sweep_due = self._sweep_due or bool(far - self._far)
        self._far = far

    def tell_again(self, far: Collection[str]) -> None:
        """Frames to these nodes behind a neighbour were dropped: the next sweep is for them too."""
        self._far_new |= self._far.intersection(far)
        self._sweep_due = self._sweep_due or bool(self._far_new)

    def _revisit(self, meta: Meta, newcomers: Collection[str]) -> None:
        if meta.erased_ms:
            all_near = [c.node for c in self._links.candidates()] if self._regular else []
            for node in newcomers or all_near:
                self._out.erase(node, meta.sid, meta.erased_ms)
            return
        if self._shelf.expired(meta):
            self._shelf.forget(meta.sid)
            return
        assert meta.held, "only what is held or was erased is stored"
        self._announce(meta, newcomers)
        if meta.unmerged:
            self._out.send_unmerged(meta.sid)
        elif meta.home == self._shelf.node:
            live = self._shelf.live(meta.sid)
            assert live is not None, "a held session loads"
            unsure = meta.acked_n < meta.n or live.confirmed != self._shelf.generation
            # A standby whose link comes up may be back in time: what it acknowledged may be lost.
            if unsure or meta.standby in newcomers:
                self.offer(live)
            self._replace_standby(live)

    def _announce(self, meta: Meta, newcomers: Collection[str]) -> None:
        """Say which epoch is in force here; who knows a higher one answers.

        Two homes that know nothing of each other (two first contacts) need not be neighbours, nor
        their standbys: home tells everybody that comes into reach.
        """
        node = self._shelf.node
        partner = meta.standby if meta.home == node else meta.home
        hearers: set[str | None] = {*newcomers} or {partner}
        if node not in (meta.home, meta.standby):
            hearers &= {partner}
        elif meta.home == node:
            hearers |= self._far_told
        for hearer in sorted(hearer for hearer in hearers if hearer not in (None, node)):
            self._out.send(hearer, Deposed(meta.sid, meta.epoch, meta.standby))

    def announce(self, live: SessionCopy) -> None:
        """Tell all in reach of a session that began under a name that others may begin too."""
        near = {c.node for c in self._links.candidates()}
        for hearer in sorted((near | set(self._links.beyond())) - {live.meta.standby}):
            self._out.send(hearer, Deposed(live.meta.sid, live.meta.epoch, live.meta.standby))

    def _replace_standby(self, live: SessionCopy) -> None:
        """Another standby for a session whose own is gone; it is named once it holds the copy."""
        meta = live.meta
        if meta.standby is not None and not self._gone(meta.standby):
            return
        chosen = self.choose(meta.sid)
        if chosen is None or chosen == meta.standby:
            return
        now_ms = self._shelf.steady_ms()
        copying = self._out.candidates.get(meta.sid)
        # Offers and turns do not count: a copy without room would never be sent to a busy session.
        sent = copying is not None and copying.node == chosen
        if copying is not None and sent and now_ms - copying.at_ms < COPY_AGAIN_MS:
            return
        self._out.note_unacked(live)
        if not self._copies_left or meta.sid not in self._out.unacked:
            return  # a later tick or sweep sends it
        self._copies_left -= 1
        self._out.candidates[meta.sid] = Copying(chosen, now_ms)
        self._out.send(chosen, live.whole())
