"""The copy at the standby: updates in order, gaps asked for, former homes merged forward.

Frames leave only what is durable: they are queued with the step and sent by `after_flush`. A frame
that cannot be sent is dropped, not kept: what the standby has not acknowledged is offered again
when its link comes up and at intervals, so that nothing here grows with a lost neighbour.
"""

from __future__ import annotations

import asyncio
import logging

import msgspec

from roost_crdt.errors import CorruptData, PeerError
from roost_crdt.home import (
    Ack,
    Deposed,
    Epoch,
    Erase,
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
)
from roostd.sessions.context import Context
from roostd.sessions.live import LiveSession, check_view
from roostd.sessions.table import head_item

log = logging.getLogger(__name__)

SWEEP_PAGE = 500
STANDBY_GONE_FACTOR = 10
"""A standby is replaced after it was down for this many times `takeover_after_ms`."""
UNACKED_MAX = 100_000
WANT_AGAIN_MS = 1_000
MERGE_AGAIN_MS = 2_000
SWEEP_EVERY_MS = 600_000


class Stream:
    """Sends and receives the frames of roost_crdt.home for one node."""

    def __init__(self, context: Context) -> None:
        self._context = context
        context.on_deposed = self._send_unmerged
        self._outbox: list[tuple[str, Frame]] = []
        self._unacked: dict[str, int] = {}
        """Sessions of ours that their standby has not acknowledged whole -> when last offered."""
        self._candidates: dict[str, str] = {}
        """Sessions that are getting another standby -> the node that is being sent the copy."""
        self._unmerged: dict[str, int] = {}
        """Sessions whose turns a new home has not acknowledged -> when they were last sent."""
        self._wanted: dict[str, int] = {}
        """Sessions whose whole document was asked for -> when."""
        self._sweeping: asyncio.Task[None] | None = None
        self._sweep_again = False
        self._swept_ms = context.now_ms()

    # --- home's side ---

    def publish(self, live: LiveSession, update: Update) -> None:
        """Stream one step to the standby, once it is durable here."""
        if live.meta.standby is not None:
            self._outbox.append((live.meta.standby, update))
        self._note_unacked(live)
        candidate = self._candidates.get(live.meta.sid)
        if candidate is not None:
            self._outbox.append((candidate, update))

    def offer(self, live: LiveSession) -> None:
        """Tell the standby where this copy is; it acknowledges or wants the rest."""
        meta = live.meta
        self._note_unacked(live)
        if meta.standby is None:
            return
        offer = Offer(meta.sid, meta.epoch, meta.standby, meta.n, meta.chain, meta.used_ms)
        self._outbox.append((meta.standby, offer))

    def protected(self, live: LiveSession) -> bool:
        """Whether losing home now costs at most one turn.

        At home: the standby is up and holds every step but at most the newest. Elsewhere the
        copy itself is the evidence.
        """
        meta = live.meta
        if meta.home != self._context.node:
            return True
        up = {c.node for c in self._context.neighbours.candidates()}
        return meta.standby in up and meta.acked_n >= meta.n - 1 and not meta.unmerged

    async def acknowledged(self, live: LiveSession, n: int, wait_ms: int) -> bool:
        """Wait up to `wait_ms` until the standby holds step n; False if it does not."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_ms / 1000
        while live.meta.acked_n < n:
            left_s = deadline - loop.time()
            if left_s <= 0:
                return False
            live.acknowledged.clear()
            try:
                await asyncio.wait_for(live.acknowledged.wait(), left_s)
            except TimeoutError:
                return live.meta.acked_n >= n
        return True

    # --- between flush and socket ---

    def after_flush(self) -> None:
        """Send what became durable."""
        if not self._outbox:
            return
        outbox, self._outbox = self._outbox, []
        for node, frame in outbox:
            self._context.neighbours.send(node, encode_frame(frame))

    # --- frames in ---

    def on_frame(self, peer: str, payload: bytes) -> None:
        """One frame from a neighbour. Raises PeerError; then nothing was changed."""
        frame = decode_frame(payload)
        meta = self._context.meta(frame.sid)
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
                live = self._context.live(frame.sid)
                if live is not None and live.meta.home == self._context.node:
                    self._outbox.append((peer, live.whole()))
            case Whole():
                self._on_whole(peer, frame)
            case Deposed():
                self._context.learn(frame.sid, frame.epoch, frame.standby)
            case Merge():
                self._on_merge(peer, frame)
            case Merged():
                self._on_merged(peer, frame)
            case Offer():
                self._on_offer(peer, frame)
            case Erase():
                self.erase_here(frame.sid, frame.at_ms)

    def _on_update(self, peer: str, frame: Update) -> None:
        meta = self._see_epoch(peer, frame)
        if meta is not None and meta.unmerged:
            return
        match judge_update(meta, frame.epoch, frame.n, frame.prev_chain):
            case Verdict.APPEND:
                check_view(frame)
                live = self._context.live(frame.sid)
                if live is None:
                    live = self._context.new_live(
                        Meta(frame.sid, frame.epoch, frame.standby, used_ms=frame.at_ms)
                    )
                live.append(frame)
                self._acknowledge(peer, live)
            case Verdict.DUPLICATE:
                live = self._context.live(frame.sid)
                assert live is not None, "a duplicate is of something held"
                self._acknowledge(peer, live)
            case Verdict.WANT:
                self._want(peer, frame.sid, frame.epoch)
            case Verdict.DEPOSED:
                self._depose(peer, frame.sid)

    def _on_whole(self, peer: str, frame: Whole) -> None:
        meta = self._see_epoch(peer, frame)
        if meta is not None and (meta.epoch > frame.epoch):
            self._depose(peer, frame.sid)
            return
        if meta is not None and meta.unmerged:
            return  # what is held here must reach the new home first
        live = self._context.live(frame.sid) or self._context.new_live(
            Meta(frame.sid, frame.epoch, frame.standby)
        )
        live.replace(frame)
        self._wanted.pop(frame.sid, None)
        self._acknowledge(peer, live)

    def _on_offer(self, peer: str, frame: Offer) -> None:
        meta = self._see_epoch(peer, frame)
        if meta is not None and meta.unmerged:
            return
        match judge_offer(meta, frame):
            case Verdict.DEPOSED:
                self._depose(peer, frame.sid)
            case Verdict.DUPLICATE:
                live = self._context.live(frame.sid)
                assert live is not None, "a duplicate is of something held"
                if (live.meta.epoch, live.meta.standby) != (frame.epoch, frame.standby):
                    live.set_meta(
                        msgspec.structs.replace(live.meta, epoch=frame.epoch, standby=frame.standby)
                    )
                self._acknowledge(peer, live)
            case _:
                self._want(peer, frame.sid, frame.epoch)

    def _on_ack(self, peer: str, frame: Ack) -> None:
        live = self._context.live(frame.sid)
        if live is None or live.meta.home != self._context.node:
            return
        meta = live.meta
        if frame.epoch > meta.epoch:
            return  # a Deposed with its standby follows
        if self._candidates.get(frame.sid) == peer:
            if (frame.n, frame.chain) == (meta.n, meta.chain):
                del self._candidates[frame.sid]
                live.enter_epoch(self._context.node, peer, self._context.now_ms())
                live.confirmed = self._context.generation
                self.offer(live)
            return
        if peer != meta.standby or frame.epoch != meta.epoch:
            return
        if frame.n == meta.n and frame.chain != meta.chain:
            self._outbox.append((peer, live.whole()))
            return
        live.confirmed = self._context.generation
        if frame.n > meta.acked_n:
            live.touch_memory(msgspec.structs.replace(meta, acked_n=min(frame.n, meta.n)))
        if frame.n >= meta.n:
            self._unacked.pop(frame.sid, None)
        live.acknowledged.set()

    def _on_merge(self, peer: str, frame: Merge) -> None:
        live = self._context.live(frame.sid)
        if live is None or live.meta.home != self._context.node:
            if live is not None or self._context.meta(frame.sid) is not None:
                self._depose(peer, frame.sid)
            return
        update = live.merge(frame.document, self._context.now_ms())
        if update is not None:
            log.info("session %s: turns of former home %s merged forward", frame.sid, peer)
            self.publish(live, update)
        self._outbox.append((peer, Merged(frame.sid, live.meta.epoch)))

    def _on_merged(self, peer: str, frame: Merged) -> None:
        live = self._context.live(frame.sid)
        if live is None or not live.meta.unmerged or live.meta.home != peer:
            return
        live.set_meta(msgspec.structs.replace(live.meta, unmerged=False))
        self._unmerged.pop(frame.sid, None)
        self._want(peer, frame.sid, live.meta.epoch)

    # --- shared steps ---

    def _see_epoch(self, peer: str, frame: Update | Whole | Offer) -> Meta | None:
        """The head in force after a home's frame showed its epoch."""
        meta = self._context.meta(frame.sid)
        if meta is not None and meta.held and frame.epoch > meta.epoch:
            meta = self._context.learn(frame.sid, frame.epoch, frame.standby)
        return meta

    def _want(self, peer: str, sid: str, epoch: Epoch) -> None:
        """Ask for the whole document, once for all the updates of a burst that do not fit."""
        now_ms = self._context.now_ms()
        if now_ms - self._wanted.get(sid, 0) < WANT_AGAIN_MS:
            return
        if len(self._wanted) >= UNACKED_MAX:
            self._wanted.clear()
        self._wanted[sid] = now_ms
        self._outbox.append((peer, Want(sid, epoch)))

    def _acknowledge(self, peer: str, live: LiveSession) -> None:
        meta = live.meta
        self._outbox.append((peer, Ack(meta.sid, meta.epoch, meta.n, meta.chain)))

    def _depose(self, peer: str, sid: str) -> None:
        meta = self._context.meta(sid)
        assert meta is not None, "a higher epoch is known of it"
        self._outbox.append((peer, Deposed(sid, meta.epoch, meta.standby)))
        live = self._context.live(sid)
        if live is not None and meta.home == self._context.node:
            self.offer(live)

    def _send_unmerged(self, sid: str) -> None:
        live = self._context.live(sid)
        if live is not None and live.meta.unmerged and live.meta.home != self._context.node:
            if len(self._unmerged) < UNACKED_MAX:
                self._unmerged[sid] = self._context.now_ms()
            frame = Merge(sid, live.meta.epoch, live.document.encode())
            self._outbox.append((live.meta.home, frame))

    def erase_here(self, sid: str, at_ms: int) -> bool:
        """Drop every row of a session and remember that it was erased; False if it was already."""
        context = self._context
        meta = context.meta(sid)
        if meta is not None and meta.erased_ms:
            return False
        held = meta is not None and meta.held
        gone = msgspec.structs.replace(
            meta or Meta(sid, (1, context.node), None), held=False, erased_ms=at_ms or 1
        )
        context.lives.pop(sid, None)
        context.stubs.pop(sid, None)
        self._unacked.pop(sid, None)
        items = context.table.drop_items(sid)
        items.update(head_item(gone))
        context.table.put(items)
        return held

    def _note_unacked(self, live: LiveSession) -> None:
        if live.meta.sid in self._unacked or len(self._unacked) < UNACKED_MAX:
            self._unacked[live.meta.sid] = self._context.now_ms()

    # --- time ---

    def tick(self) -> None:
        """Offer again what was not acknowledged in time; look for standbys that are gone."""
        now_ms = self._context.now_ms()
        if now_ms - self._swept_ms > SWEEP_EVERY_MS:
            self.sweep()
        for sid, sent_ms in list(self._unmerged.items()):
            meta = self._context.meta(sid)
            if meta is None or not meta.unmerged:
                del self._unmerged[sid]
            elif now_ms - sent_ms > MERGE_AGAIN_MS:
                self._send_unmerged(sid)
        rtts = {c.node: c.rtt_ms for c in self._context.neighbours.candidates()}
        for sid, offered_ms in list(self._unacked.items()):
            live = self._context.live(sid)
            if live is None or live.meta.home != self._context.node:
                del self._unacked[sid]
                continue
            rtt_ms = rtts.get(live.meta.standby or "")
            if rtt_ms is not None:
                if now_ms - offered_ms > 2 * rtt_ms + 500:
                    self.offer(live)
            else:
                self._replace_standby(live)

    def sweep(self) -> None:
        """Look through every session once, in the background: after a start or a link change."""
        self._swept_ms = self._context.now_ms()
        if self._sweeping is not None and not self._sweeping.done():
            self._sweep_again = True
            return
        self._sweeping = asyncio.create_task(self._sweep(), name="session sweep")

    async def _sweep(self) -> None:
        while True:
            self._sweep_again = False
            after = ""
            while True:
                heads = self._context.table.heads(after, SWEEP_PAGE)
                for meta in heads:
                    self._revisit(self._context.meta(meta.sid) or meta)
                await self._context.durable()
                self.after_flush()
                if len(heads) < SWEEP_PAGE:
                    break
                after = heads[-1].sid
                await asyncio.sleep(0.01)
            if not self._sweep_again:
                return

    def _revisit(self, meta: Meta) -> None:
        if meta.erased_ms:
            for candidate in self._context.neighbours.candidates():
                self._outbox.append((candidate.node, Erase(meta.sid, meta.erased_ms)))
            return
        if self._context.expired(meta):
            self._context.forget(meta.sid)
            return
        if not meta.held:
            return
        if meta.unmerged:
            self._send_unmerged(meta.sid)
        elif meta.home == self._context.node:
            live = self._context.live(meta.sid)
            if live is None:
                return
            if meta.acked_n < meta.n or live.confirmed != self._context.generation:
                self.offer(live)
            self._replace_standby(live)

    def _replace_standby(self, live: LiveSession) -> None:
        """Another standby for a session whose own is gone; it is named once it holds the copy."""
        context, meta = self._context, live.meta
        gone_ms = STANDBY_GONE_FACTOR * context.takeover_after_ms
        if meta.standby is not None and context.neighbours.silent_ms(meta.standby) < gone_ms:
            return
        chosen = choose_standby(
            meta.sid, context.region, context.neighbours.candidates(), context.residency()
        )
        if chosen is None or chosen == meta.standby:
            return
        self._candidates[meta.sid] = chosen
        self._note_unacked(live)
        self._outbox.append((chosen, live.whole()))

    async def stop(self) -> None:
        """End the background sweep."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)
