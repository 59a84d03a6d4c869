"""The receiving half of a replica alone, with links to neighbours that hold nothing."""

from __future__ import annotations

from collections.abc import Iterable

from roost_crdt import frames as f
from roost_crdt.hlc import hlc_from_ms
from roost_crdt.inflow import Inflow
from roost_crdt.limits import DEFAULT_LIMITS
from roost_crdt.neighbourhood import Effects, Neighbourhood
from roost_crdt.outflow import Outflow
from roost_crdt.peer import Peer
from roost_crdt.record import Record, encode_record
from roost_crdt.rows import encode_row, register
from roost_crdt.rows.layout import TYPE_REGISTER, row_key

OWN, FAR, FARTHER = 1, 50, 51
NOW_MS = 1_790_000_000_000
WANT_MS = 160
"""Two round trips of an unmeasured link, and the slack."""
AHEAD_MS = DEFAULT_LIMITS.clock_offset_max_ms


def raw(origin: int, hlc: int, prev_hlc: int | None = None) -> bytes:
    return encode_record(Record(origin, hlc, hlc - 1 if prev_hlc is None else prev_hlc, ()))


def row(hlc: int = 1, key: bytes = b"k") -> tuple[bytes, int, bytes]:
    ((part, body),) = register.put({}, b"v", (hlc, FAR)).items()
    return row_key(key, part), TYPE_REGISTER, encode_row(TYPE_REGISTER, part, body)


def ahead(by_ms: int) -> int:
    """An hlc so far ahead of the receiver's start."""
    return hlc_from_ms(NOW_MS + by_ms)


class Receiver:
    """An inflow that holds what `vv` says, with links to the neighbours `a` (2), `b` (3), ..."""

    def __init__(self, neighbours: str = "ab", vv: dict[int, int] | None = None) -> None:
        self.near = Neighbourhood("me", OWN, {OWN: 7} if vv is None else vv)
        self.out = Outflow(self.near)
        self.inflow = Inflow(self.near, self.out)
        self.now_ms = NOW_MS
        for node in neighbours:
            self.link(node)
        self.take()

    def link(
        self, node: str, vv: dict[int, int] | None = None, *, floor: dict[int, int] | None = None
    ) -> Peer:
        actor = 2 + ord(node) - ord("a")
        greeting = f.Greeting(
            versions=(1,), cluster="c", node=node, actor=actor, vv=vv or {}, gc_floor=floor or {}
        )
        peer = Peer(node, greeting, self.near.limits, up_ms=self.now_ms, heard_ms=self.now_ms)
        self.near.peers[node] = peer
        self.inflow.link_up(peer, self.now_ms)
        return peer

    def unlink(self, node: str) -> None:
        self.inflow.link_down(self.near.peers.pop(node))

    def __getitem__(self, node: str) -> Peer:
        return self.near.peers[node]

    def take(self) -> Effects:
        self.out.serve()
        effects, self.near.effects = self.near.effects, Effects()
        return effects

    def sent(self) -> list[tuple[str, f.Frame]]:
        """What is sent to whom; an IHAVE or LINKS is the sending half's."""
        return [(node, f.decode_frame(data)) for node, data in self.take().frames]

    def records(self, node: str, *raws: bytes) -> None:
        self.inflow.records(self[node], raws, self.now_ms)

    def shown(self, node: str, origin: int, hlc: int) -> None:
        self.inflow.announced(self[node], {origin: hlc}, self.now_ms)

    def wait(self, pause_ms: float) -> list[tuple[str, f.Frame]]:
        """What is sent by a tick after so long."""
        self.now_ms += int(pause_ms)
        self.inflow.tick(self.now_ms)
        return self.sent()

    def snapshot_from(self, node: str) -> int:
        """Ask for a snapshot because the log of `node` does not reach back; its id."""
        self.shown(node, FAR, 9)
        self.inflow.offered(self[node], FAR, self.now_ms)
        ((to, frame),) = self.sent()
        assert to == node
        assert isinstance(frame, f.SnapshotWant)
        return frame.id

    def rows(
        self,
        node: str,
        snapshot_id: int,
        rows: Iterable[tuple[bytes, int, bytes]],
        vv: dict[int, int] | None = None,
    ) -> None:
        frame = f.SnapshotRows(snapshot_id, list(rows), vv or {})
        self.inflow.rows(self[node], frame, self.now_ms)

    def rows_end(self, node: str, snapshot_id: int, vv: dict[int, int]) -> None:
        self.inflow.rows_end(self[node], f.SnapshotEnd(snapshot_id, vv), self.now_ms)
