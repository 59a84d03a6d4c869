"""One neighbour as seen by this node's replica: what it holds, what it is sent, how it is doing.

A peer is in one named mode, derived from what is open between the two nodes:

    Probe       what it lacks is read from the log for it; nothing is pushed beyond that
    Stream      records are pushed as they become durable
    Snapshot    rows are scanned for it or taken from it, because a log no longer holds enough
    Reseed      one side is behind what the other has collected; merging would bring back the dead
    ClockSkew   records wait, here or there, until their time has come
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from enum import StrEnum

from .frames import Greeting, Links
from .limits import Limits

ROUTE_HOPS_MAX = 4
HEARTBEATS_KEPT = 16
CLOCKS_KEPT = 8
RTT_GUESS_MS = 50.0


class Mode(StrEnum):
    PROBE = "Probe"
    STREAM = "Stream"
    SNAPSHOT = "Snapshot"
    RESEED = "Reseed"
    CLOCK_SKEW = "ClockSkew"


class LinkState(StrEnum):
    UP = "up"
    SUSPECT = "suspect"
    DOWN = "down"


@dataclass(slots=True)
class SnapshotIn:
    """Rows being taken from a neighbour."""

    id: int
    asked_ms: int
    """When it was asked for, or last brought rows."""
    waits: bool = False
    """Nothing is under way: its rows are from the future, and are asked for in time."""


@dataclass(slots=True)
class SnapshotOut:
    """Rows being sent: `vv` is what this node held, durably, when the scan began."""

    id: int
    vv: dict[int, int]
    after: bytes = b""
    scanning: bool = False

    def begin(self) -> None:
        """From the first row on, once more."""
        self.after, self.scanning = b"", False


@dataclass(slots=True)
class Peer:
    """State of one live link. Only the replica changes it; shells and tests read it."""

    node: str
    greeting: Greeting
    limits: Limits
    up_ms: int
    heard_ms: int
    links: frozenset[str] = frozenset()
    far: dict[str, int] = field(default_factory=dict)
    told_links: Links | None = None
    """The last LINKS sent, so that only changes are."""

    held: dict[int, int] = field(default_factory=dict)
    """What it has shown to hold: greeting, IHAVE, its own records and wants."""
    cursor: dict[int, int] = field(default_factory=dict)
    """Up to where it holds an origin or was sent it on this link."""
    choice: dict[int, bool] = field(default_factory=dict)
    """WANT (True) and PRUNE (False) outrank the default of `eager`."""
    announce: set[int] = field(default_factory=set)
    announced_ms: int = 0
    catch_up: OrderedDict[int, None] = field(default_factory=OrderedDict)
    """Origins that it is sent from the log, in turn."""
    again: dict[int, int] = field(default_factory=dict)
    """Origins whose records it is sent once more, and up to where it was."""
    pulls: dict[int, int] = field(default_factory=dict)
    """Origins whose records it was asked for once more, and up to where it held them."""
    reading: tuple[int, int] | None = None
    """The log read under way for it: origin, after."""
    batch: list[bytes] = field(default_factory=list)
    batch_bytes: int = 0
    window_bytes: int = 0
    """Handed to its socket and not taken by it."""
    waiting: dict[int, int] = field(default_factory=dict)
    """Records accepted here that it was to be sent and was not yet, by origin."""

    pruned: dict[int, int] = field(default_factory=dict)
    """When it was last told that another peer brings an origin, by origin."""
    skew: dict[int, int] = field(default_factory=dict)
    """Origins whose next record from it waits: wall-clock ms at which to ask again."""
    told_ahead_ms: int = 0
    """How far it says this node's records are ahead of its clock."""
    clocks: deque[int] = field(default_factory=lambda: deque(maxlen=CLOCKS_KEPT))
    """Its machine's wall clock minus this node's even clock, at its last heartbeats."""
    snapshot_in: SnapshotIn | None = None
    snapshot_out: SnapshotOut | None = None
    rtt_ms: float | None = None
    heartbeat_id: int = 0
    heartbeat_due_ms: int = 0
    heartbeats: OrderedDict[int, int] = field(default_factory=OrderedDict)
    echo: int = 0
    echo_at_ms: int = 0
    vv_hash: bytes = b""
    digest: bytes = b""
    digest_vv_hash: bytes = b""
    quiet: tuple[bytes, bytes] = (b"", b"")
    """Its and this node's VV hash at the last heartbeat."""
    reported_waiting: int = 0
    complete_ms: int = 0
    """When this node last held all that the peer had reported."""
    progress_ms: int = 0
    received: int = 0
    duplicates: int = 0
    warnings: tuple[str, ...] = ()
    chain: tuple[int, bytes] | None = None
    """Head of its own actor's chain, as it last told."""

    @property
    def mode(self) -> Mode:
        if self.skew or self.told_ahead_ms > 0:
            return Mode.CLOCK_SKEW
        if self.snapshot_in is not None or self.snapshot_out is not None:
            return Mode.SNAPSHOT
        if self.catch_up or self.window_bytes >= self.limits.window_bytes:
            return Mode.PROBE
        return Mode.STREAM

    def state(self, now_ms: int) -> LinkState:
        """Suspect half a heartbeat after a missed one, down after `down_missed` of them."""
        silent_ms = now_ms - self.heard_ms
        beat = self.limits.heartbeat_ms
        if silent_ms >= self.limits.down_missed * beat:
            return LinkState.DOWN
        if silent_ms >= self.limits.suspect_missed * beat + beat // 2:
            return LinkState.SUSPECT
        return LinkState.UP

    def room(self, size: int) -> bool:
        """Whether `size` more bytes fit its window; one frame of any size fits one that is nearly
        empty (heartbeats alone would keep a large one out of a window for ever)."""
        used = self.window_bytes + self.batch_bytes
        window_bytes = self.limits.window_bytes
        return used * 8 <= window_bytes or used + size <= window_bytes

    def holds(self, origin: int, hlc: int) -> None:
        """It has shown to hold `origin` up to `hlc`."""
        if hlc > self.held.get(origin, 0):
            self.held[origin] = hlc
        if hlc > self.cursor.get(origin, 0):
            self.cursor[origin] = hlc

    def one_way_ms(self) -> float:
        """Half a round trip."""
        return (RTT_GUESS_MS if self.rtt_ms is None else self.rtt_ms) / 2

    def want_after_ms(self) -> float:
        """How long an announcement may stay ahead without progress before it is asked for."""
        rtt_ms = RTT_GUESS_MS if self.rtt_ms is None else self.rtt_ms
        return 2 * rtt_ms + self.limits.want_slack_ms

    def heartbeat_answered(self, echo: int, held_ms: int, now_ms: int) -> None:
        """Round trip time: an eighth of each new sample, like TCP's."""
        sent_ms = self.heartbeats.pop(echo, None)
        if sent_ms is None:
            return
        for older in [seen for seen in self.heartbeats if seen < echo]:
            del self.heartbeats[older]
        sample_ms = float(max(0, now_ms - sent_ms - max(0, held_ms)))
        self.rtt_ms = sample_ms if self.rtt_ms is None else self.rtt_ms * 7 / 8 + sample_ms / 8

    @property
    def clock_ahead_ms(self) -> int | None:
        """Its machine's wall clock minus this node's even clock.

        A heartbeat that was long under way shows less, so the most of the last ones is nearest.
        """
        return max(self.clocks, default=None)

    def heartbeat_sent(self, now_ms: int) -> int:
        self.heartbeat_id += 1
        self.heartbeats[self.heartbeat_id] = now_ms
        if len(self.heartbeats) > HEARTBEATS_KEPT:
            self.heartbeats.popitem(last=False)
        self.heartbeat_due_ms = now_ms + self.limits.heartbeat_ms
        return self.heartbeat_id
