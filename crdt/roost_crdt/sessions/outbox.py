"""What one node has to say about sessions: frames for its neighbours, and what waits for answers.

Frames leave only what is durable: they are queued with the step and taken after the flush. A frame
that cannot be sent is dropped, not kept: what is not acknowledged is said again when a link comes
up and at intervals, so that nothing here grows with a lost neighbour.
"""

from __future__ import annotations

from typing import Protocol

from roost_crdt.home import (
    Ack,
    Candidate,
    Deposed,
    Epoch,
    Frame,
    Merge,
    Offer,
    Want,
    encode_frame,
)
from roost_crdt.sessions.copy import SessionCopy
from roost_crdt.sessions.shelf import Shelf

NOTED_MAX = 100_000
"""Sessions of which one kind of answer is awaited."""
WANT_AGAIN_MS = 1_000


class Links(Protocol):
    """What the stream needs of the links."""

    def candidates(self) -> list[Candidate]:
        """Neighbours whose link is up."""
        ...

    def silent_ms(self, node: str) -> int:
        """Milliseconds since the last byte from `node`; very large if it was never heard."""
        ...


class Outbox:
    """Frames that wait for the flush, and since when which answer is awaited."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._frames: list[tuple[str, Frame]] = []
        self.unacked: dict[str, int] = {}
        """Sessions of ours that their standby has not acknowledged whole -> when last offered."""
        self.candidates: dict[str, str] = {}
        """Sessions that are getting another standby -> the node that is being sent the copy."""
        self.unmerged: dict[str, int] = {}
        """Sessions whose turns a new home has not acknowledged -> when they were last sent."""
        self.wanted: dict[str, int] = {}
        """Sessions whose whole document was asked for -> when."""

    def send(self, node: str, frame: Frame) -> None:
        """Queue a frame behind the step that it speaks of."""
        self._frames.append((node, frame))

    def take(self) -> list[tuple[str, bytes]]:
        """(node, frame) in order, for sending now that everything they say is durable."""
        frames, self._frames = self._frames, []
        return [(node, encode_frame(frame)) for node, frame in frames]

    def forget(self, sid: str) -> None:
        """Nothing is awaited for this session any more."""
        for noted in (self.unacked, self.candidates, self.unmerged, self.wanted):
            noted.pop(sid, None)

    def note_unacked(self, live: SessionCopy) -> None:
        if live.meta.sid in self.unacked or len(self.unacked) < NOTED_MAX:
            self.unacked[live.meta.sid] = self._shelf.steady_ms()

    def offer(self, live: SessionCopy) -> None:
        """Tell the standby where this copy is; it acknowledges or wants the rest."""
        meta = live.meta
        self.note_unacked(live)
        if meta.standby is None:
            return
        offer = Offer(meta.sid, meta.epoch, meta.standby, meta.n, meta.chain, meta.used_ms)
        self.send(meta.standby, offer)

    def want(self, peer: str, sid: str, epoch: Epoch) -> None:
        """Ask for the whole document, once for all the updates of a burst that do not fit."""
        now_ms = self._shelf.steady_ms()
        if now_ms - self.wanted.get(sid, -WANT_AGAIN_MS) < WANT_AGAIN_MS:
            return
        if len(self.wanted) >= NOTED_MAX:
            self.wanted.clear()
        self.wanted[sid] = now_ms
        self.send(peer, Want(sid, epoch))

    def acknowledge(self, peer: str, live: SessionCopy) -> None:
        meta = live.meta
        self.send(peer, Ack(meta.sid, meta.epoch, meta.n, meta.chain))

    def depose(self, peer: str, sid: str) -> None:
        meta = self._shelf.meta(sid)
        assert meta is not None, "a higher epoch is known of it"
        self.send(peer, Deposed(sid, meta.epoch, meta.standby))
        live = self._shelf.live(sid)
        if live is not None and meta.home == self._shelf.node:
            self.offer(live)

    def send_unmerged(self, sid: str) -> None:
        live = self._shelf.live(sid)
        if live is not None and live.meta.unmerged and live.meta.home != self._shelf.node:
            if sid in self.unmerged or len(self.unmerged) < NOTED_MAX:
                self.unmerged[sid] = self._shelf.steady_ms()
            frame = Merge(sid, live.meta.epoch, live.document.encode(), live.meta.chain)
            self.send(live.meta.home, frame)
