"""After a restore: asking the neighbours what became of the sessions since the backup.

A restored store shows sessions as they were. Since then some were erased, which outranks
everything; others went on, and their standbys hold turns that this node acknowledged and no longer
has. So before it serves any session, the node hears every configured neighbour out:

- what was erased there is erased here;
- a higher epoch deposes this node, as ever;
- where this node is home, the neighbour's copy is merged in under an epoch of its own, for the
  neighbour would take a home's shorter document in place of its own;
- where the neighbour is home, its document is asked for.

Until then nothing is offered to standbys, and requests are refused as UNAVAILABLE.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Protocol

import msgspec

from roost_crdt.errors import CorruptData, PeerError, RoostError, Unavailable
from roost_crdt.home import Epoch, Want, Whole, decode_frame, encode_frame
from roost_crdt.sessions.stream import Stream
from roostd.sessions.context import Context
from roostd.sessions.delivery import Delivery

log = logging.getLogger(__name__)

RECALL = "session.recall"
COPY = "session.recall_copy"
PAGE = 500
DEADLINE_MS = 5_000
PAUSE_S = 0.25


class Restored(Protocol):
    """Which neighbours a restored node has not heard out yet; kept in its store."""

    def waiting(self) -> list[str]: ...

    def heard(self, peer: str) -> None: ...


class _Head(msgspec.Struct, array_like=True):
    """What a neighbour knows of one session."""

    sid: str
    epoch: Epoch
    standby: str | None
    n: int
    chain: bytes
    erased_ms: int
    held: bool


class Recall:
    """One node's questions after a restore; without one there is nothing to wait for."""

    def __init__(
        self, context: Context, stream: Stream, delivery: Delivery, restored: Restored | None
    ) -> None:
        self._context = context
        self._stream = stream
        self._delivery = delivery
        self._restored = restored
        self.waiting: set[str] = set(restored.waiting()) if restored is not None else set()
        """Neighbours that have not been heard out."""
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._newcomers: set[str] = set()
        """Neighbours whose links came up meanwhile: the sweep that was due goes to them."""

    def check(self) -> None:
        """Raises Unavailable while neighbours have not been heard out."""
        if self.waiting:
            names = ", ".join(sorted(self.waiting))
            raise Unavailable(
                f"this node was restored from a backup and has not heard from {names} yet which "
                "sessions were erased or went on; try again, ask another node, or take a neighbour "
                "that is gone for good out of roost.toml",
                retry_after_ms=500,
            )

    def on_link_up(self, peer: str) -> None:
        """A neighbour can be asked."""
        self._newcomers.add(peer)
        if peer in self.waiting and peer not in self._asking:
            task = asyncio.create_task(self._ask(peer), name=f"recall from {peer}")
            self._asking[peer] = task
            task.add_done_callback(lambda _: self._asking.pop(peer, None))

    async def _ask(self, peer: str) -> None:
        while True:
            try:
                erased, merged = await self._hear(peer)
                break
            except (RoostError, PeerError, CorruptData) as error:
                log.warning("restored: %s could not be heard out yet: %s", peer, error)
                await asyncio.sleep(PAUSE_S)
        assert self._restored is not None, "only a restored node asks"
        self._restored.heard(peer)
        await self._context.durable()
        self.waiting.discard(peer)
        log.info(
            "restored: heard from %s; %d sessions erased, %d went on there", peer, erased, merged
        )
        if not self.waiting:
            log.info("restored: sessions are served from now on")
            for newcomer in self._newcomers:
                self._delivery.sweep(newcomer)

    async def _hear(self, peer: str) -> tuple[int, int]:
        """Go through all heads of a neighbour; how many were erased, and merged or asked for."""
        erased = merged = 0
        after: str | None = ""
        while after is not None:
            raw = await self._context.neighbours.call(
                peer, RECALL, {"after": after}, deadline_ms=DEADLINE_MS
            )
            try:
                heads = msgspec.convert(raw, list[_Head], strict=False)
            except msgspec.ValidationError as error:
                raise PeerError(f"{peer} answered {RECALL} with another shape: {error}") from error
            for head in heads:
                if head.erased_ms:
                    erased += self._stream.erase_here(head.sid, head.erased_ms)
                elif head.held:
                    merged += await self._take(peer, head)
            await self._context.durable()
            after = heads[-1].sid if len(heads) >= PAGE else None
        return erased, merged

    async def _take(self, peer: str, head: _Head) -> bool:
        """Take in what a neighbour's copy has and this node may lack; whether there was any."""
        context, shelf = self._context, self._context.shelf
        meta = shelf.meta(head.sid)
        if meta is not None and (meta.erased_ms or meta.epoch > head.epoch):
            return False
        same = meta is not None and meta.held and (meta.n, meta.chain) == (head.n, head.chain)
        home = head.epoch[1]
        if meta is None or head.epoch > meta.epoch:
            meta = shelf.learn(head.sid, head.epoch, head.standby)
        if same or (home != context.node and home != peer):
            return False
        if home == peer:
            if head.standby == context.node:
                context.neighbours.send(peer, encode_frame(Want(head.sid, head.epoch)))
            return not meta.held
        return await self._merge(peer, head)

    async def _merge(self, peer: str, head: _Head) -> bool:
        """This node is home: its copy and the neighbour's become one, under a new epoch."""
        context, shelf = self._context, self._context.shelf
        raw = await context.neighbours.call(peer, COPY, {"sid": head.sid}, deadline_ms=DEADLINE_MS)
        frame = decode_frame(raw) if isinstance(raw, bytes) else None
        if not isinstance(frame, Whole) or frame.sid != head.sid:
            return False
        live = shelf.live(head.sid)
        if live is None:
            epoch = (max(frame.epoch, head.epoch)[0] + 1, context.node)
            return self._stream.adopt(msgspec.structs.replace(frame, epoch=epoch, standby=peer))
        with live.pinned():
            async with context.lock(live):
                live.enter_epoch(context.node, live.meta.standby, context.now_ms())
                live.merge(frame.document, context.now_ms())
        return True

    # --- the neighbour's side ---

    async def remote_recall(self, peer: str, args: dict[str, Any]) -> Any:
        """A page of what this node knows of all sessions, in order of their ids."""
        shelf = self._context.shelf
        heads = []
        for stored in shelf.table.heads(str(args.get("after", "")), PAGE):
            meta = shelf.meta(stored.sid) or stored
            fields = (meta.sid, list(meta.epoch), meta.standby, meta.n, meta.chain)
            heads.append([*fields, meta.erased_ms, meta.held])
        return heads

    async def remote_copy(self, peer: str, args: dict[str, Any]) -> Any:
        """The whole document of a session that is held here, as a frame."""
        live = self._context.shelf.live(str(args.get("sid", "")))
        return None if live is None else encode_frame(live.whole())

    async def stop(self) -> None:
        """End the questions; the next start goes on with them."""
        asking = list(self._asking.values())
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
