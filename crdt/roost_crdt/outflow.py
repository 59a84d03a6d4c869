"""The sending half of a replica: pushing, catching up from the log, announcing, snapshots out."""

from __future__ import annotations

from collections.abc import Sequence

from . import frames as f
from .errors import PeerError
from .logformat import record_span
from .neighbourhood import Neighbourhood
from .peer import Peer, SnapshotOut
from .record import Record, RowOp, coalesce, decode_record, encode_record

AGAIN_MAX = 64
"""Origins that a peer may have sent once more at a time."""
COALESCE_MIN = 32
"""Fewer records than this are sent as they are; so many tell whether joining them pays."""


def _repeats(raws: Sequence[bytes]) -> bool:
    """Whether these records write each row twice or more, on average."""
    ops = [op for raw in raws for op in decode_record(raw, body_bytes_max=len(raw)).ops]
    return 2 * len({(op.row_key, op.type) for op in ops}) <= len(ops)


class Outflow:
    """Sends each peer what it lacks, within its window."""

    def __init__(self, near: Neighbourhood) -> None:
        self._near = near

    def forward(self, raw: bytes, record: Record, source: Peer | None) -> None:
        """A record that was just taken or committed, to all peers but the one it came from."""
        for peer in self._near.peers.values():
            if peer is not source:
                self._offer(peer, raw, record.actor, record.hlc)

    def _offer(self, peer: Peer, raw: bytes, origin: int, hlc: int) -> None:
        if peer.cursor.get(origin, 0) >= hlc:
            return
        if not self._near.eager(peer, origin):
            peer.announce.add(origin)
        elif peer.snapshot_out is not None or origin in peer.catch_up:
            peer.waiting[origin] = peer.waiting.get(origin, 0) + 1
            peer.announce.add(origin)
        elif not peer.room(len(raw)):
            peer.catch_up[origin] = None
            peer.waiting[origin] = peer.waiting.get(origin, 0) + 1
            peer.announce.add(origin)
        else:
            self._push(peer, raw)
            peer.cursor[origin] = hlc

    def _push(self, peer: Peer, raw: bytes) -> None:
        size = len(raw) + f.RECORD_OVERHEAD_BYTES
        assert len(raw) <= self._near.limits.body_bytes_max, "a record fits one frame"
        if peer.batch and peer.batch_bytes + size > self._near.limits.frame_bytes:
            self._close_batch(peer)
        peer.batch.append(raw)
        peer.batch_bytes += size

    def _close_batch(self, peer: Peer) -> None:
        if peer.batch:
            batch, peer.batch, peer.batch_bytes = peer.batch, [], 0
            self._near.emit(peer, f.Records(batch))

    def serve(self) -> None:
        """Close what is open and ask the log for what the windows have room for."""
        near = self._near
        for peer in near.peers.values():
            self._close_batch(peer)
            half = near.limits.window_bytes // 2
            if peer.window_bytes > half:
                continue
            size_max = min(near.limits.frame_bytes, max(1, half))
            out = peer.snapshot_out
            if out is not None:
                if near.lacking():
                    out.begin()
                elif not out.scanning:
                    out.scanning = True
                    near.effects.scans.append((peer.node, out.after, size_max))
            elif peer.reading is None:
                self._read_next(peer, size_max)

    def _read_next(self, peer: Peer, size_max: int) -> None:
        while peer.catch_up:
            origin = next(iter(peer.catch_up))
            after = peer.cursor.get(origin, 0)
            if self._near.vv.get(origin, 0) > after:
                peer.reading = (origin, after)
                self._near.effects.reads.append((peer.node, origin, after, size_max))
                return
            del peer.catch_up[origin]
            peer.waiting.pop(origin, None)
        for origin, after in peer.again.items():
            peer.reading = (origin, after)
            self._near.effects.reads.append((peer.node, origin, after, size_max))
            return

    def wanted(self, peer: Peer, origin: int, after: int, again: bool = False) -> None:
        """The peer asks for an origin: it holds it up to `after`, whatever was sent before; or it
        wants what it may hold `again`."""
        if again:
            if len(peer.again) < AGAIN_MAX:
                peer.again[origin] = after
            return
        _check_choices(peer, origin)
        peer.choice[origin] = True
        peer.cursor[origin] = after
        if self._near.vv.get(origin, 0) > after:
            peer.catch_up[origin] = None

    def pruned(self, peer: Peer, origin: int) -> None:
        _check_choices(peer, origin)
        peer.choice[origin] = False
        peer.catch_up.pop(origin, None)
        peer.waiting.pop(origin, None)

    def records_read(self, peer: Peer, origin: int, raws: Sequence[bytes] | None) -> None:
        if peer.reading is None or peer.reading[0] != origin:
            return
        after, peer.reading = peer.reading[1], None
        if peer.again.get(origin) == after and origin not in peer.catch_up:
            self._once_more(peer, origin, raws or ())
            return
        if peer.cursor.get(origin, 0) != after or origin not in peer.catch_up:
            return
        if raws is not None:
            # After a reseed the log still has records that were given up.
            held = self._near.vv.get(origin, 0)
            raws = [raw for raw in raws if record_span(raw)[1] <= held]
        spans = [record_span(raw) for raw in raws or ()]
        if raws is None or (spans and spans[0][2] > after):
            del peer.catch_up[origin]
            self._near.emit(peer, f.SnapshotOffer(origin))
            return
        if not spans:
            del peer.catch_up[origin]
            peer.announce.add(origin)  # the log is behind: the peer will ask again
            return
        for raw in self._coalesced(raws or ()):
            self._push(peer, raw)
        peer.cursor[origin] = spans[-1][1]
        if peer.cursor[origin] >= self._near.vv.get(origin, 0):
            del peer.catch_up[origin]
            peer.waiting.pop(origin, None)
        else:
            peer.waiting[origin] = max(0, peer.waiting.get(origin, 0) - len(spans))
            peer.catch_up.move_to_end(origin)

    def _once_more(self, peer: Peer, origin: int, raws: Sequence[bytes]) -> None:
        """What the log holds no more is not had."""
        held = self._near.vv.get(origin, 0)
        raws = [raw for raw in raws if record_span(raw)[1] <= held]
        if not raws:
            if peer.again.pop(origin) < held:
                self._near.emit(peer, f.SnapshotOffer(origin))
            return
        for raw in raws:
            self._push(peer, raw)
        peer.again[origin] = record_span(raws[-1])[1]

    def _coalesced(self, raws: Sequence[bytes]) -> Sequence[bytes]:
        """One record in place of contiguous ones that write the same rows again and again."""
        if len(raws) < COALESCE_MIN or not _repeats(raws[:COALESCE_MIN]):
            return raws
        records = [decode_record(raw, body_bytes_max=len(raw)) for raw in raws]
        joined = encode_record(coalesce(records))
        smaller = 2 * len(joined) <= sum(map(len, raws))
        return [joined] if smaller and len(joined) <= self._near.limits.frame_bytes else raws

    def snapshot_wanted(self, peer: Peer, snapshot_id: int) -> None:
        peer.snapshot_out = SnapshotOut(snapshot_id, dict(self._near.vv))

    def rows_scanned(self, peer: Peer, after: bytes, rows: Sequence[RowOp]) -> None:
        out = peer.snapshot_out
        if out is None or not out.scanning or out.after != after:
            return
        out.scanning = False
        if self._near.lacking():
            out.begin()
            return
        if rows:
            assert rows[-1].row_key > out.after, "scans go on after the last key"
            out.after = rows[-1].row_key
            ops = [(row.row_key, row.type, row.body) for row in rows]
            self._near.emit(peer, f.SnapshotRows(out.id, ops, self._near.shown_vv()))
            return
        peer.snapshot_out = None
        self._near.emit(peer, f.SnapshotEnd(out.id, out.vv, dict(self._near.gc_floor)))
        for origin, hlc in out.vv.items():
            peer.cursor[origin] = max(hlc, peer.cursor.get(origin, 0))
        peer.announce.update(self._near.vv)

    def announce(self, peer: Peer, now_ms: int) -> None:
        """IHAVE of what changed and the peer cannot know from what it was sent."""
        if not peer.announce or peer.window_bytes >= self._near.limits.window_bytes:
            return
        heads = {
            origin: self._near.vv[origin]
            for origin in peer.announce
            if origin in self._near.vv
            and (self._near.vv[origin] > peer.cursor.get(origin, 0) or origin in peer.catch_up)
        }
        peer.announce.clear()
        peer.announced_ms = now_ms
        if heads:
            self._near.emit(peer, f.IHave(heads))

    def announce_all(self, peer: Peer) -> None:
        """IHAVE of all that the peer has not shown to hold: something was lost on the way."""
        heads = {o: hlc for o, hlc in self._near.vv.items() if hlc > peer.held.get(o, 0)}
        if heads:
            self._near.emit(peer, f.IHave(heads))


def _check_choices(peer: Peer, origin: int) -> None:
    """PeerError where a peer wants and prunes more actors than a version vector may have."""
    if len(peer.choice) >= f.ORIGINS_MAX and origin not in peer.choice:
        raise PeerError(f"{peer.node} wants or prunes more than {f.ORIGINS_MAX} actors")
