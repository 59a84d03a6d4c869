"""What one node makes of the frames of sessions: appends, asks, merges, gives way.

A frame that is refused has changed nothing: what turns out to be corrupt has deposed
nobody and leaves no empty copy.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from roost_crdt.document import OwnClientMoved
from roost_crdt.errors import CorruptData
from roost_crdt.home import (
    ACTOR_LEAP,
    Ack,
    Deposed,
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
    decode_frame,
    judge_offer,
    judge_update,
    succeed,
)
from roost_crdt.sessions.copy import SessionCopy
from roost_crdt.sessions.outbox import Outbox
from roost_crdt.sessions.shelf import Shelf


class Intake:
    """Takes frames in; `publish` and `erase` are the stream's."""

    def __init__(
        self,
        shelf: Shelf,
        out: Outbox,
        publish: Callable[[SessionCopy, Update], None],
        erase: Callable[[str, int, str], bool],
    ) -> None:
        self._shelf = shelf
        self._out = out
        self._publish = publish
        self._erase = erase

    def on_frame(self, peer: str, payload: bytes) -> None:
        """One frame from a neighbour. Raises PeerError if it is none; then nothing was changed.

        A session that is damaged, here or there, is told of and left as it is: the link and the
        other sessions on it go on.
        """
        frame = decode_frame(payload)
        meta = self._shelf.meta(frame.sid)
        if meta is not None and meta.erased_ms and not isinstance(frame, Erase):
            self._out.erase(peer, frame.sid, meta.erased_ms)
            return
        try:
            self._handle(peer, frame)
        except CorruptData as error:
            why = CorruptData(f"a {type(frame).__name__} from {peer} is not taken: {error}")
            self._shelf.on_corrupt(frame.sid, why)

    def _handle(self, peer: str, frame: Frame) -> None:
        match frame:
            case Update():
                self._on_update(peer, frame)
            case Ack():
                self._on_ack(peer, frame)
            case Want():
                self._on_want(peer, frame)
            case Whole():
                self._on_whole(peer, frame)
            case Deposed():
                self._on_deposed(peer, frame)
            case Merge():
                self._on_merge(peer, frame)
            case Merged():
                self._on_merged(peer, frame)
            case Offer():
                self._on_offer(peer, frame)
            case _:
                self._on_erase(peer, frame)

    def _on_update(self, peer: str, frame: Update) -> None:
        before = self._shelf.meta(frame.sid)
        verdict = judge_update(self._as_shown(frame), frame.epoch, frame.n, frame.prev_chain)
        if verdict is Verdict.APPEND:
            with self._shelf.arriving(
                Meta(frame.sid, frame.epoch, frame.standby, used_ms=frame.at_ms)
            ) as live:
                live.append(frame)
            self._out.acknowledge(peer, live)
            self._tell_former(before, live.meta)
            return
        meta = self._see_epoch(frame)
        if meta is not None and meta.unmerged:
            return  # what is held here must reach the new home first
        match verdict:
            case Verdict.DUPLICATE:
                held = self._shelf.live(frame.sid)
                assert held is not None, "a duplicate is of something held"
                self._out.acknowledge(peer, held)
            case Verdict.WANT:
                self._out.want(peer, frame.sid, frame.epoch)
            case _:
                assert verdict is Verdict.DEPOSED
                self._out.depose(peer, frame.sid)

    def _on_want(self, peer: str, frame: Want) -> None:
        live, known = self._shelf.live(frame.sid), self._shelf.meta(frame.sid)
        if live is None:
            if known is not None and known.epoch > frame.epoch:
                self._out.depose(peer, frame.sid)
            elif frame.epoch[1] == peer:  # a home that holds nothing, and neither does this node
                self._out.send(peer, Deposed(frame.sid, frame.epoch, None))
            return
        meta, node = live.meta, self._shelf.node
        if meta.home == node:
            self._out.send(peer, live.whole())
        elif (meta.home, meta.standby, meta.epoch) == (peer, node, frame.epoch):
            if self._shelf.expired(meta):
                return
            # Home itself says that it holds nothing: no other evidence is needed.
            live.enter_epoch(node, peer, self._shelf.now_ms())
            live.confirmed = self._shelf.generation
            self._out.offer(live)
        elif (meta.home, meta.standby, meta.epoch) == (peer, None, frame.epoch):
            # The home that all was merged at has lost it since, and nobody stands by.
            live.set_meta(msgspec.structs.replace(meta, unmerged=True))
            self._out.send_unmerged(frame.sid)

    def _on_whole(self, peer: str, frame: Whole) -> None:
        before = self._shelf.meta(frame.sid)
        meta = self._as_shown(frame)
        if meta is not None and meta.epoch > frame.epoch:
            self._out.depose(peer, frame.sid)
            return
        if meta is not None and meta.unmerged:
            self._see_epoch(frame)
            return
        held = self._shelf.live(frame.sid)
        if held is not None and held.holds_beyond(frame.document):
            held.set_meta(
                msgspec.structs.replace(
                    held.meta, epoch=frame.epoch, standby=frame.standby, acked_n=0, unmerged=True
                )
            )
            self._out.send_unmerged(frame.sid)
            self._tell_former(before, held.meta)
            return
        with self._shelf.arriving(Meta(frame.sid, frame.epoch, frame.standby)) as live:
            live.replace(frame)
        self._out.wanted.pop(frame.sid, None)
        self._out.acknowledge(peer, live)
        self._tell_former(before, live.meta)

    def _on_offer(self, peer: str, frame: Offer) -> None:
        meta = self._see_epoch(frame)
        if meta is not None and meta.unmerged:
            return
        match judge_offer(meta, frame):
            case Verdict.DEPOSED:
                self._out.depose(peer, frame.sid)
            case Verdict.DUPLICATE:
                live = self._shelf.live(frame.sid)
                assert live is not None, "a duplicate is of something held"
                if (live.meta.epoch, live.meta.standby) != (frame.epoch, frame.standby):
                    live.set_meta(
                        msgspec.structs.replace(live.meta, epoch=frame.epoch, standby=frame.standby)
                    )
                self._out.acknowledge(peer, live)
            case _:
                self._out.want(peer, frame.sid, frame.epoch)

    def _on_ack(self, peer: str, frame: Ack) -> None:
        live = self._shelf.live(frame.sid)
        if live is None or live.meta.home != self._shelf.node:
            return
        meta = live.meta
        if frame.epoch > meta.epoch:
            return  # a Deposed with its standby follows
        if self._out.candidate(frame.sid) == peer:
            if (frame.n, frame.chain) == (meta.n, meta.chain):
                del self._out.candidates[frame.sid]
                live.enter_epoch(self._shelf.node, peer, self._shelf.now_ms())
                live.confirmed = self._shelf.generation
                self._out.offer(live)
            return
        if peer != meta.standby or frame.epoch != meta.epoch:
            return
        if frame.n > meta.n or (frame.n == meta.n and frame.chain != meta.chain):
            # Its copy is of another chain: of its own home's, or from before a tail was lost here.
            self._out.send(peer, live.whole())
            return
        live.confirmed = self._shelf.generation
        if frame.n > meta.acked_n:
            live.touch_memory(msgspec.structs.replace(meta, acked_n=min(frame.n, meta.n)))
        self._out.pay(live)
        if frame.n >= meta.n:
            self._out.let_go(frame.sid)  # a standby that is back needs no other in its place
        waiters, live.waiters = live.waiters, []
        for n, callback in waiters:
            live.when_held(n, callback)

    def _on_merge(self, peer: str, frame: Merge) -> None:
        live = self._shelf.live(frame.sid)
        if live is None or live.meta.home != self._shelf.node:
            meta = self._shelf.meta(frame.sid)
            if meta is None:
                return
            if not meta.held and meta.home == self._shelf.node and meta.standby is None:
                self._begin_again(peer, frame, meta)
                return
            self._out.depose(peer, frame.sid)
            self._ask_standby(meta)
            return
        now_ms = self._shelf.now_ms()
        try:
            update = live.merge(frame.document, now_ms)
        except OwnClientMoved:
            live.leave_lost_tail(now_ms)
            self._out.offer(live)
            update = live.merge(frame.document, now_ms)
        if update is not None:
            self._publish(live, update)
        self._out.owe(peer, live, frame.chain)

    def _begin_again(self, peer: str, frame: Merge, meta: Meta) -> None:
        """Home lost the session and had no standby: what a former home still holds is all there is.

        In an epoch clear of those in which it may have written what nobody holds any more.
        """
        shelf = self._shelf
        fresh = Meta(frame.sid, meta.epoch, None, used_ms=shelf.now_ms(), actor=shelf.actor)
        with shelf.arriving(succeed(fresh, shelf.node, None, ACTOR_LEAP)) as live:
            if live.merge(frame.document, shelf.now_ms()) is None:
                live.set_meta(live.meta)
        live.confirmed = shelf.generation
        self._out.offer(live)
        self._out.owe(peer, live, frame.chain)

    def _on_erase(self, peer: str, frame: Erase) -> None:
        """Whoever hears of an erasure passes it on, and answers whom it heard it from."""
        self._erase(frame.sid, frame.at_ms, peer)
        self._out.erasures.pop((frame.sid, peer), None)
        if not frame.heard:
            meta = self._shelf.meta(frame.sid)
            assert meta is not None, "a stub is left of what was erased"
            self._out.send(peer, Erase(frame.sid, meta.erased_ms, heard=True))

    def _on_merged(self, peer: str, frame: Merged) -> None:
        live = self._shelf.live(frame.sid)
        if live is None or not live.meta.unmerged or live.meta.home != peer:
            return
        if frame.chain != live.meta.chain:
            return  # of an earlier time as former home: turns were committed here since
        live.set_meta(msgspec.structs.replace(live.meta, unmerged=False))
        self._out.unmerged.pop(frame.sid, None)
        self._out.wanted.pop(frame.sid, None)  # an earlier answer was refused: it lacked the merge
        self._out.want(peer, frame.sid, live.meta.epoch)

    def _on_deposed(self, peer: str, frame: Deposed) -> None:
        """Somebody says which epoch is in force; whoever knows a higher one says so."""
        before = self._shelf.meta(frame.sid)
        if before is None and frame.epoch[1] != self._shelf.node:
            return
        if before is not None and before.epoch > frame.epoch:
            self._out.depose(peer, frame.sid)
            return
        if before is not None and _standby_lost_it(before, peer, frame):
            self._shelf.remember_stub(frame.sid, frame.epoch, None)
            return
        after = self._shelf.learn(frame.sid, frame.epoch, frame.standby)
        self._tell_former(before, after)
        self._ask_standby(after, peer)

    def _ask_standby(self, meta: Meta, heard_from: str | None = None) -> None:
        """Named home and holding nothing (its store is new, or from before the session), a node
        asks its standby to take over; without one, who told it for what that one holds."""
        node = self._shelf.node
        asked = heard_from if meta.standby is None else meta.standby
        if meta.held or meta.erased_ms or meta.home != node or asked in (None, node):
            return
        assert asked is not None
        self._out.want(asked, meta.sid, meta.epoch)

    def _tell_former(self, before: Meta | None, after: Meta) -> None:
        """A home or standby that the new home may not know of (two first contacts) learns of it."""
        if before is None or before.epoch >= after.epoch:
            return
        for node in (before.home, before.standby):
            if node is not None and node not in (self._shelf.node, after.home):
                self._out.send(node, Deposed(after.sid, after.epoch, after.standby))

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
        if meta is None or not meta.held or frame.epoch <= meta.epoch:
            return meta
        after = self._shelf.learn(frame.sid, frame.epoch, frame.standby)
        self._tell_former(meta, after)
        return after


def _standby_lost_it(mine: Meta, peer: str, frame: Deposed) -> bool:
    """Whether the standby itself says that it holds as little of a session as its home here.

    Then what a former home still has is all there is.
    """
    asked = not mine.held and not mine.erased_ms and mine.standby == peer
    return asked and mine.epoch == frame.epoch and frame.standby is None
