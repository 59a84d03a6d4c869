"""What `Gossip` is made of: its hooks, a link with its queue and writer, a link's status."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from websockets.exceptions import ConnectionClosed

from roost_crdt.frames import Greeting
from roost_crdt.peer import LinkState, Mode
from roost_crdt.record import Record, RowOp

from . import wire
from .wire import Wire

__all__ = ["Events", "Link", "LinkStatus", "StoreHooks"]


@dataclass(frozen=True, slots=True)
class StoreHooks:
    """What replication needs of the store, as plain callables of the loop's thread."""

    accept: Callable[[bytes, Record], bool]
    """Append a neighbour's record verbatim; False if it does not extend the vector."""
    accept_rows: Callable[[Sequence[RowOp], Mapping[int, int]], object]
    """Join snapshot rows; a vector that is not empty says what they cover by now."""
    flush: Callable[[], object]
    vv: Callable[[], Mapping[int, int]]
    records_after: Callable[[int, int, int], Sequence[bytes] | None]
    scan_rows: Callable[[bytes, int], Sequence[RowOp]]
    """Rows after a row key, in key order, with everything flushed so far; empty at the end."""
    keep_floor: Callable[[Mapping[int, int]], object] = lambda floor: None
    """Keep the gc_floor that came with a snapshot, in the group of its last rows."""
    digest: Callable[[], tuple[bytes, Mapping[int, int]] | None] = lambda: None
    """The state's digest and the version vector that it was taken at."""
    sums: Callable[[], tuple[Mapping[int, int], Sequence[int]] | None] = lambda: None
    """The sum of each bucket, and before it the vector that they were taken at."""
    chain: Callable[[], tuple[int, bytes] | None] = lambda: None
    """Own actor's newest durable (hlc, chain)."""


@dataclass(frozen=True, slots=True)
class Events:
    """Whom gossip tells what. None of them may block."""

    link_up: Callable[[str, Greeting], object] = lambda peer, greeting: None
    link_down: Callable[[str], object] = lambda peer: None
    session: Callable[[str, bytes], object] = lambda peer, payload: None
    rollback: Callable[[str, int, int], object] = lambda peer, actor, hlc: None
    """A neighbour knows more of this node's actor than it does: take a new actor."""
    reseed: Callable[[str, Mapping[int, int], Mapping[int, int]], object] = (
        lambda peer, vv, gc_floor: None
    )
    """This node is behind what that neighbour (with that vector and floor) collected, or was
    removed."""
    chain: Callable[[str, int, int, bytes], object] = lambda peer, actor, hlc, chain: None
    """Keep durably: a neighbour's own actor, its hlc and chain, as that node told."""
    head_of: Callable[[str, int], tuple[int, int, bytes] | None] = lambda peer, actor: None
    """What `chain` kept of that actor (0: not known yet), or else of that neighbour."""
    check_greeting: Callable[[Greeting], object] = lambda greeting: None
    """Raise PeerError to refuse a neighbour."""


_SHOWN = (
    *("peer", "region", "state", "mode", "rtt_ms"),
    *("lag_ms", "lag_records", "received", "duplicates"),
)


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """A neighbour, linked or not. Times are ms; `last_heard_ms` is how long ago (None: never)."""

    peer: str
    region: str = ""
    state: str = LinkState.DOWN.value
    mode: str = Mode.PROBE.value
    rtt_ms: float | None = None
    lag_ms: int = 0
    lag_records: int = 0
    received: int = 0
    duplicates: int = 0
    last_error: str = ""
    last_heard_ms: int | None = None
    converged: bool = False
    clock_offset_ms: int | None = None
    warnings: tuple[str, ...] = ()

    def shown(self) -> dict[str, Any]:
        """As `GET /v1/cluster` says it."""
        return {
            **{name: getattr(self, name) for name in _SHOWN},
            "last_error": self.last_error or None,
        }


@dataclass(slots=True)
class Link:
    """A greeted connection, what is queued for it (bounded by the replica's window), its writer."""

    peer: str
    wire: Wire
    dialler: str
    up_ms: int
    taken: Callable[[str, int], object]
    """Told of each frame that the socket took: peer, bytes."""
    greeting: bytes | None = None
    """Sent first; not counted against the window."""
    queue: deque[bytes] = field(default_factory=deque)
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while nothing is queued."""
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    writer: asyncio.Task[None] | None = None
    _filled: asyncio.Event = field(default_factory=asyncio.Event)
    _sending: bool = False
    _buffered_bytes: int = 0
    _progress_ms: int = 0

    def start(self) -> None:
        self.writer = asyncio.create_task(self._write(), name=f"gossip-write-{self.peer}")

    def send(self, data: bytes) -> None:
        self.queue.append(data)
        self.idle.clear()
        self._filled.set()

    def end(self) -> None:
        if self.writer is not None:
            self.writer.cancel()
        self.gone.set()

    async def _write(self) -> None:
        try:
            if self.greeting is not None:
                await self.wire.send(self.greeting)
            while True:
                while self.queue:
                    data = self.queue.popleft()
                    self._sending, self._progress_ms = True, wire.boot_ms()
                    await self.wire.send(data)
                    self._sending = False
                    self.taken(self.peer, len(data))
                self._filled.clear()
                self.idle.set()
                await self._filled.wait()
        except ConnectionClosed:
            self.idle.set()

    def stuck_ms(self, now_ms: int) -> int:
        """For how long a send has moved no byte. Keepalives stand still meanwhile."""
        buffered_bytes = self.wire.transport.get_write_buffer_size()
        if not self._sending or buffered_bytes < self._buffered_bytes:
            self._progress_ms = now_ms
        self._buffered_bytes = buffered_bytes
        return now_ms - self._progress_ms
