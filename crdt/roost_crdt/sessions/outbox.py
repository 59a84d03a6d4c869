"""What one node has to say about sessions: frames for its neighbours, and what waits for answers.

Frames leave only what is durable: they are queued with the step and taken after the flush. A frame
that cannot be sent is dropped, not kept: what is not acknowledged is said again when a link comes
up and at intervals, so that nothing here grows with a lost neighbour.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple, Protocol

from roost_crdt.home import (
    Ack,
    Candidate,
    Deposed,
    Epoch,
    Erase,
    Frame,
    Merge,
    Merged,
    Offer,
    Want,
    encode_frame,
)
from roost_crdt.sessions.copy import SessionCopy
from roost_crdt.sessions.shelf import Shelf

NOTED_MAX = 100_000
"""Sessions of which one kind of answer is awaited."""
WANT_AGAIN_MS = 1_000
ERASE_AGAIN_MS = 1_000
ERASE_TIMES = 10
"""How often a neighbour whose link stays up is told of an erasure that it does not answer."""
MERGE_AGAIN_MS = 2_000
MERGE_WAITS_MAX = 8
"""A former home waits at most this many times `MERGE_AGAIN_MS` before it sends its turns again."""


class Links(Protocol):
    """What the stream needs of the links."""

    def candidates(self) -> list[Candidate]:
        """Neighbours whose link is up."""
        ...

    def beyond(self) -> Collection[str]:
        """Nodes that are no neighbours and are reached by way of one."""
        ...

    def silent_ms(self, node: str) -> int:
        """Milliseconds since the last byte from `node`; very large if it was never heard."""
        ...


class Said(NamedTuple):
    """When something was last said that is not answered yet, and how often."""

    at_ms: int
    times: int


class Copying(NamedTuple):
    """The node that is to be the next standby, and when it was last sent the copy."""

    node: str
    at_ms: int


class Outbox:
    """Frames that wait for the flush, and since when which answer is awaited."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._frames: list[tuple[str, Frame]] = []
        self.unacked: dict[str, int] = {}
        """Sessions of ours that their standby has not acknowledged whole -> when last offered."""
        self.candidates: dict[str, Copying] = {}
        """Sessions that are getting another standby. Each of them is in `unacked` too."""
        self.unmerged: dict[str, Said] = {}
        """Sessions whose turns a new home has not acknowledged -> when they were last sent."""
        self.wanted: dict[str, int] = {}
        """Sessions whose whole document was asked for -> when."""
        self.owed: dict[str, dict[str, tuple[int, bytes]]] = {}
        """Sessions of ours -> former homes whose turns are merged and not at the standby yet: the
        step that has them, and the chain that is to be acknowledged."""
        self.erasures: dict[tuple[str, str], Said] = {}
        """(session, neighbour) that has not said yet that it heard of the erasure; oldest first."""

    def send(self, node: str, frame: Frame) -> None:
        """Queue a frame behind the step that it speaks of."""
        self._frames.append((node, frame))

    def take(self) -> list[tuple[str, bytes]]:
        """(node, frame) in order, for sending now that everything they say is durable."""
        frames, self._frames = self._frames, []
        return [(node, encode_frame(frame)) for node, frame in frames]

    def forget(self, sid: str) -> None:
        """Nothing is awaited for this session any more."""
        for noted in (self.unacked, self.candidates, self.unmerged, self.wanted, self.owed):
            noted.pop(sid, None)

    def let_go(self, sid: str) -> None:
        """Home of this session is elsewhere: nothing is due to a standby of ours."""
        for noted in (self.unacked, self.candidates, self.owed):
            noted.pop(sid, None)

    def candidate(self, sid: str) -> str | None:
        """The node that is being sent the copy of a session of ours, to become its standby."""
        copying = self.candidates.get(sid)
        return None if copying is None else copying.node

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

    def send_unmerged(self, sid: str, *, again: bool = False) -> None:
        """Send what a new home must merge. `again`: it was not acknowledged in time."""
        live = self._shelf.live(sid)
        if live is not None and live.meta.unmerged and live.meta.home != self._shelf.node:
            if sid in self.unmerged or len(self.unmerged) < NOTED_MAX:
                times = self.unmerged[sid].times + 1 if again and sid in self.unmerged else 1
                self.unmerged[sid] = Said(self._shelf.steady_ms(), times)
            frame = Merge(sid, live.meta.epoch, live.document.encode(), live.meta.chain)
            self.send(live.meta.home, frame)

    def due_to_merge(self, now_ms: int) -> list[str]:
        """Sessions whose turns are to be sent again."""
        return [
            sid
            for sid, (sent_ms, times) in self.unmerged.items()
            if now_ms - sent_ms > MERGE_AGAIN_MS * min(times, MERGE_WAITS_MAX)
        ]

    def owe(self, peer: str, live: SessionCopy, chain: bytes) -> None:
        """A former home's turns are merged: say so once this home's standby holds them too.

        Before that they must not be given up by the one node that may outlive this one. What has
        no room to be noted is asked for again by the former home.
        """
        if live.meta.sid in self.owed or len(self.owed) < NOTED_MAX:
            self.owed.setdefault(live.meta.sid, {})[peer] = (live.meta.n, chain)
        self.pay(live)

    def pay(self, live: SessionCopy) -> None:
        """Acknowledge what was merged and is at the standby by now, or has nowhere else to go."""
        meta = live.meta
        waiting = self.owed.get(meta.sid, {})
        for peer, (n, chain) in list(waiting.items()):
            others = meta.standby not in (None, peer) and self.candidate(meta.sid) != peer
            if meta.acked_n >= n or not others:
                del waiting[peer]
                self.send(peer, Merged(meta.sid, meta.epoch, chain))
        if not waiting:
            self.owed.pop(meta.sid, None)

    # --- erasures ---

    def erase(self, node: str, sid: str, at_ms: int) -> None:
        """Tell a neighbour that a session was erased, until it answers."""
        self._say_erased(node, sid, at_ms, 1)

    def _say_erased(self, node: str, sid: str, at_ms: int, times: int) -> None:
        if self.erasures.pop((sid, node), None) is not None or len(self.erasures) < NOTED_MAX:
            self.erasures[sid, node] = Said(self._shelf.steady_ms(), times)
        self.send(node, Erase(sid, at_ms))

    def erase_again(self, up: Collection[str]) -> None:
        """Say again what was not answered. A link that comes up begins anew."""
        now_ms = self._shelf.steady_ms()
        while self.erasures:
            (sid, node), (said_ms, times) = next(iter(self.erasures.items()))
            if now_ms - said_ms < ERASE_AGAIN_MS:
                return
            meta = self._shelf.meta(sid)
            if node not in up or times >= ERASE_TIMES or meta is None or not meta.erased_ms:
                del self.erasures[sid, node]
            else:
                self._say_erased(node, sid, meta.erased_ms, times + 1)
