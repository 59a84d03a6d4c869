"""The copy at the standby: updates in order, gaps asked for, former homes merged forward.

Frames leave only what is durable: they are queued with the step and sent by `after_flush`. A frame
that cannot be sent is dropped, not kept: what the standby has not acknowledged is offered again
when its link comes up and at intervals, so that nothing here grows with a lost neighbour.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from roost_crdt.errors import CorruptData, PeerError
from roost_crdt.home import (
    Ack,
    Candidate,
    Deposed,
    Epoch,
    Erase,
    Follow,
    Frame,
    Merge,
    Merged,
    Meta,
    Offer,
    Update,
    Verdict,
    Want,
    Whole,
    choose_standby,
    decode_frame,
    encode_frame,
    judge_offer,
    judge_update,
    may_take_over,
    succeed,
)
from roost_crdt.sessions.copy import SessionCopy
from roost_crdt.sessions.shelf import Shelf
from roost_crdt.sessions.table import head_item

SWEEP_PAGE = 500
STANDBY_GONE_FACTOR = 10
"""A standby is replaced after it was down for this many times `takeover_after_ms`."""
UNACKED_MAX = 100_000
WANT_AGAIN_MS = 1_000
MERGE_AGAIN_MS = 2_000
SWEEP_EVERY_MS = 600_000


class Links(Protocol):
    """What the stream needs of the links."""

    def candidates(self) -> list[Candidate]:
        """Neighbours whose link is up."""
        ...

    def silent_ms(self, node: str) -> int:
        """Milliseconds since the last byte from `node`; very large if it was never heard."""
        ...


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
        shelf.on_deposed = self._send_unmerged
        self._outbox: list[tuple[str, Frame]] = []
        self._unacked: dict[str, int] = {}
        """Sessions of ours that their standby has not acknowledged whole -> when last offered."""
        self._candidates: dict[str, str] = {}
        """Sessions that are getting another standby -> the node that is being sent the copy."""
        self._unmerged: dict[str, int] = {}
        """Sessions whose turns a new home has not acknowledged -> when they were last sent."""
        self._wanted: dict[str, int] = {}
        """Sessions whose whole document was asked for -> when."""
        self._swept_ms = shelf.now_ms()

    # --- home's side ---

    def publish(self, live: SessionCopy, update: Update) -> None:
        """Stream one step to the standby, once it is durable here."""
        if live.meta.standby is not None:
            self._outbox.append((live.meta.standby, update))
        self._note_unacked(live)
        candidate = self._candidates.get(live.meta.sid)
        if candidate is not None:
            self._outbox.append((candidate, update))

    def offer(self, live: SessionCopy) -> None:
        """Tell the standby where this copy is; it acknowledges or wants the rest."""
        meta = live.meta
        self._note_unacked(live)
        if meta.standby is None:
            return
        offer = Offer(meta.sid, meta.epoch, meta.standby, meta.n, meta.chain, meta.used_ms)
        self._outbox.append((meta.standby, offer))

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
        if live.meta.acked_n >= n:
            callback()
        else:
            live.waiters.append((n, callback))

    def choose(self, sid: str) -> str | None:
        """The neighbour that should hold the copy of a session whose home is here."""
        return choose_standby(sid, self._shelf.region, self._links.candidates(), self._residency())

    # --- changes of home ---

    def begin(self, sid: str, epoch_n: int = 1) -> SessionCopy:
        """A new session with this node as its home; stored with the open group."""
        shelf = self._shelf
        meta = Meta(
            sid,
            (epoch_n, shelf.node),
            self.choose(sid),
            used_ms=shelf.now_ms(),
            actor=shelf.actor,
        )
        live = shelf.new_live(meta)
        live.confirmed = shelf.generation
        live.set_meta(meta)
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
        """The next home has answered: it is home, this node its standby."""
        live.set_meta(
            msgspec.structs.replace(live.meta, epoch=frame.epoch, standby=frame.standby, acked_n=0)
        )
        live.follow = Follow()

    def handover_unknown(self, live: SessionCopy, frame: Whole) -> None:
        """No answer: the other side may be home under the frame's epoch; this one outranks it."""
        live.set_meta(msgspec.structs.replace(live.meta, epoch=frame.epoch))
        live.enter_epoch(self._shelf.node, frame.epoch[1], self._shelf.now_ms())
        self.offer(live)

    def adopt(self, frame: Whole) -> bool:
        """Become home of a session that was handed over; False if its epoch is not newer."""
        shelf = self._shelf
        assert frame.epoch[1] == shelf.node, "a session is handed to the home that it names"
        meta = shelf.meta(frame.sid)
        if meta is not None and (meta.epoch >= frame.epoch or meta.erased_ms):
            return False
        live = shelf.live(frame.sid) or shelf.new_live(Meta(frame.sid, frame.epoch, frame.standby))
        live.replace(frame)
        live.confirmed = shelf.generation
        self.offer(live)
        return True

    # --- out ---

    def take_frames(self) -> list[tuple[str, bytes]]:
        """(node, frame) in order, for sending now that everything they say is durable."""
        outbox, self._outbox = self._outbox, []
        return [(node, encode_frame(frame)) for node, frame in outbox]

    # --- frames in ---

    def on_frame(self, peer: str, payload: bytes) -> None:
        """One frame from a neighbour. Raises PeerError; then nothing was changed."""
        frame = decode_frame(payload)
        meta = self._shelf.meta(frame.sid)
        if meta is not None and meta.erased_ms and not isinstance(frame, Erase):
            self._outbox.append((peer, Erase(frame.sid, meta.erased_ms)))
            return
        try:
            self._handle(peer, frame)
        except CorruptData as error:
            raise PeerError(f"session {frame.sid} from {peer}: {error}") from error

    def _handle(self, peer: str, frame: Frame) -> None:
        match frame:
            case Update():
                self._on_update(peer, frame)
            case Ack():
                self._on_ack(peer, frame)
            case Want():
                live = self._shelf.live(frame.sid)
                if live is not None and live.meta.home == self._shelf.node:
                    self._outbox.append((peer, live.whole()))
            case Whole():
                self._on_whole(peer, frame)
            case Deposed():
                self._shelf.learn(frame.sid, frame.epoch, frame.standby)
            case Merge():
                self._on_merge(peer, frame)
            case Merged():
                self._on_merged(peer, frame)
            case Offer():
                self._on_offer(peer, frame)
            case Erase():
                self.erase_here(frame.sid, frame.at_ms)

    def _on_update(self, peer: str, frame: Update) -> None:
        verdict = judge_update(self._as_shown(frame), frame.epoch, frame.n, frame.prev_chain)
        if verdict is Verdict.APPEND:
            with self._shelf.arriving(
                Meta(frame.sid, frame.epoch, frame.standby, used_ms=frame.at_ms)
            ) as live:
                live.append(frame)
            self._acknowledge(peer, live)
            return
        meta = self._see_epoch(frame)
        if meta is not None and meta.unmerged:
            return  # what is held here must reach the new home first
        match verdict:
            case Verdict.DUPLICATE:
                held = self._shelf.live(frame.sid)
                assert held is not None, "a duplicate is of something held"
                self._acknowledge(peer, held)
            case Verdict.WANT:
                self._want(peer, frame.sid, frame.epoch)
            case Verdict.DEPOSED:
                self._depose(peer, frame.sid)

    def _on_whole(self, peer: str, frame: Whole) -> None:
        meta = self._as_shown(frame)
        if meta is not None and meta.epoch > frame.epoch:
            self._depose(peer, frame.sid)
            return
        if meta is not None and meta.unmerged:
            self._see_epoch(frame)
            return
        with self._shelf.arriving(Meta(frame.sid, frame.epoch, frame.standby)) as live:
            live.replace(frame)
        self._wanted.pop(frame.sid, None)
        self._acknowledge(peer, live)

    def _on_offer(self, peer: str, frame: Offer) -> None:
        meta = self._see_epoch(frame)
        if meta is not None and meta.unmerged:
            return
        match judge_offer(meta, frame):
            case Verdict.DEPOSED:
                self._depose(peer, frame.sid)
            case Verdict.DUPLICATE:
                live = self._shelf.live(frame.sid)
                assert live is not None, "a duplicate is of something held"
                if (live.meta.epoch, live.meta.standby) != (frame.epoch, frame.standby):
                    live.set_meta(
                        msgspec.structs.replace(live.meta, epoch=frame.epoch, standby=frame.standby)
                    )
                self._acknowledge(peer, live)
            case _:
                self._want(peer, frame.sid, frame.epoch)

    def _on_ack(self, peer: str, frame: Ack) -> None:
        live = self._shelf.live(frame.sid)
        if live is None or live.meta.home != self._shelf.node:
            return
        meta = live.meta
        if frame.epoch > meta.epoch:
            return  # a Deposed with its standby follows
        if self._candidates.get(frame.sid) == peer:
            if (frame.n, frame.chain) == (meta.n, meta.chain):
                del self._candidates[frame.sid]
                live.enter_epoch(self._shelf.node, peer, self._shelf.now_ms())
                live.confirmed = self._shelf.generation
                self.offer(live)
            return
        if peer != meta.standby or frame.epoch != meta.epoch:
            return
        if frame.n == meta.n and frame.chain != meta.chain:
            self._outbox.append((peer, live.whole()))
            return
        live.confirmed = self._shelf.generation
        if frame.n > meta.acked_n:
            live.touch_memory(msgspec.structs.replace(meta, acked_n=min(frame.n, meta.n)))
        if frame.n >= meta.n:
            self._unacked.pop(frame.sid, None)
        waiters, live.waiters = live.waiters, []
        for n, callback in waiters:
            self.when_held(live, n, callback)

    def _on_merge(self, peer: str, frame: Merge) -> None:
        live = self._shelf.live(frame.sid)
        if live is None or live.meta.home != self._shelf.node:
            if live is not None or self._shelf.meta(frame.sid) is not None:
                self._depose(peer, frame.sid)
            return
        update = live.merge(frame.document, self._shelf.now_ms())
        if update is not None:
            self.publish(live, update)
        self._outbox.append((peer, Merged(frame.sid, live.meta.epoch)))

    def _on_merged(self, peer: str, frame: Merged) -> None:
        live = self._shelf.live(frame.sid)
        if live is None or not live.meta.unmerged or live.meta.home != peer:
            return
        live.set_meta(msgspec.structs.replace(live.meta, unmerged=False))
        self._unmerged.pop(frame.sid, None)
        self._want(peer, frame.sid, live.meta.epoch)

    # --- shared steps ---

    def _as_shown(self, frame: Update | Whole) -> Meta | None:
        """The head as it will be once the frame's epoch is learnt; nothing is learnt yet.

        What turns out to be corrupt must not have deposed anybody.
        """
        meta = self._shelf.meta(frame.sid)
        if meta is None or not meta.held or frame.epoch <= meta.epoch:
            return meta
        unmerged = meta.unmerged or meta.home == self._shelf.node != frame.epoch[1]
        return msgspec.structs.replace(meta, epoch=frame.epoch, unmerged=unmerged)

    def _see_epoch(self, frame: Update | Whole | Offer) -> Meta | None:
        """The head in force after a home's frame showed its epoch."""
        meta = self._shelf.meta(frame.sid)
        if meta is not None and meta.held and frame.epoch > meta.epoch:
            meta = self._shelf.learn(frame.sid, frame.epoch, frame.standby)
        return meta

    def _want(self, peer: str, sid: str, epoch: Epoch) -> None:
        """Ask for the whole document, once for all the updates of a burst that do not fit."""
        now_ms = self._shelf.now_ms()
        if now_ms - self._wanted.get(sid, 0) < WANT_AGAIN_MS:
            return
        if len(self._wanted) >= UNACKED_MAX:
            self._wanted.clear()
        self._wanted[sid] = now_ms
        self._outbox.append((peer, Want(sid, epoch)))

    def _acknowledge(self, peer: str, live: SessionCopy) -> None:
        meta = live.meta
        self._outbox.append((peer, Ack(meta.sid, meta.epoch, meta.n, meta.chain)))

    def _depose(self, peer: str, sid: str) -> None:
        meta = self._shelf.meta(sid)
        assert meta is not None, "a higher epoch is known of it"
        self._outbox.append((peer, Deposed(sid, meta.epoch, meta.standby)))
        live = self._shelf.live(sid)
        if live is not None and meta.home == self._shelf.node:
            self.offer(live)

    def _send_unmerged(self, sid: str) -> None:
        live = self._shelf.live(sid)
        if live is not None and live.meta.unmerged and live.meta.home != self._shelf.node:
            if len(self._unmerged) < UNACKED_MAX:
                self._unmerged[sid] = self._shelf.now_ms()
            frame = Merge(sid, live.meta.epoch, live.document.encode())
            self._outbox.append((live.meta.home, frame))

    def erase_here(self, sid: str, at_ms: int) -> bool:
        """Drop every row of a session and remember that it was erased; False if it was already."""
        shelf = self._shelf
        meta = shelf.meta(sid)
        if meta is not None and meta.erased_ms:
            return False
        held = meta is not None and meta.held
        gone = msgspec.structs.replace(
            meta or Meta(sid, (1, shelf.node), None), held=False, erased_ms=at_ms or 1
        )
        shelf.lives.pop(sid, None)
        shelf.stubs.pop(sid, None)
        self._unacked.pop(sid, None)
        items = shelf.table.drop_items(sid)
        items.update(head_item(gone))
        shelf.table.put(items)
        return held

    def _note_unacked(self, live: SessionCopy) -> None:
        if live.meta.sid in self._unacked or len(self._unacked) < UNACKED_MAX:
            self._unacked[live.meta.sid] = self._shelf.now_ms()

    # --- time ---

    def tick(self) -> None:
        """Offer again what was not acknowledged in time; look for standbys that are gone."""
        now_ms = self._shelf.now_ms()
        for sid, sent_ms in list(self._unmerged.items()):
            meta = self._shelf.meta(sid)
            if meta is None or not meta.unmerged:
                del self._unmerged[sid]
            elif now_ms - sent_ms > MERGE_AGAIN_MS:
                self._send_unmerged(sid)
        rtts = {c.node: c.rtt_ms for c in self._links.candidates()}
        for sid, offered_ms in list(self._unacked.items()):
            live = self._shelf.live(sid)
            if live is None or live.meta.home != self._shelf.node:
                del self._unacked[sid]
                continue
            rtt_ms = rtts.get(live.meta.standby or "")
            if rtt_ms is not None:
                if now_ms - offered_ms > 2 * rtt_ms + 500:
                    self.offer(live)
            else:
                self._replace_standby(live)

    def sweep_page(self, after: str) -> str | None:
        """Look through the next page of sessions; where to go on, None at the end.

        After a start, when a link came up, and every `SWEEP_EVERY_MS`: what the standby lacks is
        offered, what a new home lacks is sent, what has expired is dropped.
        """
        heads = self._shelf.table.heads(after, SWEEP_PAGE)
        for meta in heads:
            self._revisit(self._shelf.meta(meta.sid) or meta)
        if len(heads) < SWEEP_PAGE:
            self._swept_ms = self._shelf.now_ms()
            return None
        return heads[-1].sid

    @property
    def sweep_due(self) -> bool:
        """Whether the last whole sweep is long ago."""
        return self._shelf.now_ms() - self._swept_ms > SWEEP_EVERY_MS

    def _revisit(self, meta: Meta) -> None:
        if meta.erased_ms:
            for candidate in self._links.candidates():
                self._outbox.append((candidate.node, Erase(meta.sid, meta.erased_ms)))
            return
        if self._shelf.expired(meta):
            self._shelf.forget(meta.sid)
            return
        if not meta.held:
            return
        if meta.unmerged:
            self._send_unmerged(meta.sid)
        elif meta.home == self._shelf.node:
            live = self._shelf.live(meta.sid)
            if live is None:
                return
            if meta.acked_n < meta.n or live.confirmed != self._shelf.generation:
                self.offer(live)
            self._replace_standby(live)

    def _replace_standby(self, live: SessionCopy) -> None:
        """Another standby for a session whose own is gone; it is named once it holds the copy."""
        meta = live.meta
        gone_ms = STANDBY_GONE_FACTOR * self._takeover_after_ms
        if meta.standby is not None and self._links.silent_ms(meta.standby) < gone_ms:
            return
        chosen = self.choose(meta.sid)
        if chosen is None or chosen == meta.standby:
            return
        self._candidates[meta.sid] = chosen
        self._note_unacked(live)
        self._outbox.append((chosen, live.whole()))
