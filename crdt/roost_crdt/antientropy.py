"""Anti-entropy: rows that were lost or damaged here are found by sums and fetched (DESIGN 8).

Equal vectors promise equal rows; a disk may break the promise. Two nodes whose roots differ at
equal vectors (or that saw no equal ones for a while) send each other the sums of their buckets.
A bucket that differs proves nothing yet: rows of a snapshot, or records that only one side has
applied, are on their way. So the join of both vectors is noted, and the difference counts only if
it is still there once both vectors have passed it. Then the full rows of the bucket are fetched
and joined: a live row beats an absent one, whoever lost it. Each side fetches for itself.

What is being fetched when rows are collected here is forgotten: it may be older than that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from . import frames as f
from .digest import BUCKETS, bucket_of
from .errors import CorruptData, PeerError
from .hlc import hlc_ms
from .members import covers, join
from .neighbourhood import Neighbourhood
from .peer import Peer
from .record import RowOp, decode_rows
from .rows import row_hlc

EXCHANGE_MS = 2_000
"""At least so long between two exchanges of sums with a neighbour."""
EXCHANGE_MAX_MS = 600_000
"""A difference that no repair removes is looked at less and less often, down to this."""
UNEQUAL_MS = 60_000
"""Without equal digests for so long, sums are compared at whatever vectors there are."""
WANTED_MAX = 16
SCAN_BYTES = 128 << 10
WANT_MS = 60_000
"""How long an answer may take between two of its frames."""

_SUM_BYTES = 16


@dataclass(slots=True)
class Exchange:
    """What goes on with one neighbour."""

    equal_ms: int
    """When its digest and this node's were last equal at equal vectors."""
    due_ms: int = 0
    pause_ms: int = EXCHANGE_MS
    asks: bool = False
    """Own sums are to be sent, and its asked for."""
    answers: bool = False
    theirs: tuple[Mapping[int, int], bytes] | None = None
    suspects: dict[int, tuple[Mapping[int, int], int]] = field(default_factory=dict)
    """Bucket -> the join noted when it was first seen to differ, and when that was."""
    wanted: int = 0
    """The id of what is being fetched; 0 = nothing."""
    wanted_ms: int = 0
    fetched: int = 0
    """The id of what was fetched last, to its end."""
    serves: tuple[int, frozenset[int]] | None = None
    after: bytes = b""
    scanning: bool = False
    lacked: bool = False
    """Rows were lost here while they were scanned: the scan begins anew once they are back."""
    waits: bool = False


class AntiEntropy:
    """Compares and repairs, with every neighbour by itself."""

    def __init__(self, near: Neighbourhood) -> None:
        self._near = near
        self._exchanges: dict[str, Exchange] = {}
        self._ids = 0
        self.buckets_repaired = 0
        self.rows_fetched = 0

    def link_up(self, peer: Peer, now_ms: int) -> None:
        self._exchanges[peer.node] = Exchange(now_ms, due_ms=now_ms + EXCHANGE_MS)

    def link_down(self, peer: Peer) -> None:
        self._exchanges.pop(peer.node, None)

    @property
    def fetching(self) -> bool:
        return any(exchange.wanted for exchange in self._exchanges.values())

    def forget(self) -> None:
        """Rows were collected here: an answer under way may be older than that."""
        for exchange in self._exchanges.values():
            exchange.wanted = 0
            exchange.suspects.clear()

    def fetch(self, node: str, buckets: Sequence[int], now_ms: int) -> int:
        """Ask a neighbour for all rows of some buckets, whatever their sums are, as rows of them
        were lost here; an id that `fetched` shows at the end. 0: no link, or one is under way."""
        exchange = self._exchanges.get(node)
        if exchange is None or (exchange.wanted and now_ms < exchange.wanted_ms + WANT_MS):
            return 0
        self._ids += 1
        exchange.wanted, exchange.wanted_ms = self._ids, now_ms
        self.buckets_repaired += len(buckets)
        self._near.emit(self._near.peers[node], f.BucketWant(self._ids, list(buckets)))
        return self._ids

    def fetched(self, node: str) -> int:
        """The id of the last fetch from a neighbour that came to its end; 0: none."""
        exchange = self._exchanges.get(node)
        return 0 if exchange is None else exchange.fetched

    def beat(self, peer: Peer, digest: bytes, digest_vv_hash: bytes, now_ms: int) -> None:
        """A heartbeat of the peer; own digest and the hash of its vector beside it."""
        exchange = self._exchanges[peer.node]
        if exchange.wanted and now_ms >= exchange.wanted_ms + WANT_MS:
            exchange.wanted = 0
        if not digest or not peer.digest:
            return
        comparable = peer.digest_vv_hash == digest_vv_hash
        if comparable and peer.digest == digest:
            exchange.equal_ms, exchange.pause_ms = now_ms, EXCHANGE_MS
            exchange.suspects.clear()
            return
        overdue = now_ms >= exchange.equal_ms + UNEQUAL_MS
        if (comparable or overdue or exchange.suspects) and now_ms >= exchange.due_ms:
            exchange.due_ms = now_ms + exchange.pause_ms
            exchange.asks = True
            self._near.effects.sums.append(peer.node)

    def told(self, peer: Peer, frame: f.BucketSums) -> None:
        if len(frame.sums) != BUCKETS * _SUM_BYTES:
            raise PeerError(f"{peer.node} sent {len(frame.sums)} bytes of bucket sums")
        exchange = self._exchanges[peer.node]
        exchange.theirs = frame.vv, frame.sums
        exchange.answers = exchange.answers or frame.answer
        self._near.effects.sums.append(peer.node)

    def sums_read(
        self, peer: Peer, vv: Mapping[int, int], sums: Sequence[int], now_ms: int
    ) -> None:
        """Answer to `Effects.sums`."""
        exchange = self._exchanges[peer.node]
        packed = b"".join(amount.to_bytes(_SUM_BYTES, "big") for amount in sums)
        if (exchange.asks or exchange.answers) and peer.room(len(packed)):
            self._near.emit(peer, f.BucketSums(dict(vv), packed, exchange.asks))
            exchange.asks = exchange.answers = False
        theirs, exchange.theirs = exchange.theirs, None
        if theirs is not None:
            self._compare(peer, exchange, vv, packed, theirs, now_ms)

    def _compare(
        self,
        peer: Peer,
        exchange: Exchange,
        vv: Mapping[int, int],
        sums: bytes,
        theirs: tuple[Mapping[int, int], bytes],
        now_ms: int,
    ) -> None:
        their_vv, their_sums = theirs
        joined = join((vv, their_vv))
        broken: list[int] = []
        for bucket in range(BUCKETS):
            at = bucket * _SUM_BYTES
            if sums[at : at + _SUM_BYTES] == their_sums[at : at + _SUM_BYTES]:
                exchange.suspects.pop(bucket, None)
            elif bucket not in exchange.suspects:
                exchange.suspects[bucket] = joined, now_ms
            else:
                noted, noted_ms = exchange.suspects[bucket]
                again = now_ms >= noted_ms + EXCHANGE_MS // 2
                if again and self.persists(noted, vv, their_vv):
                    broken.append(bucket)
        if broken and not exchange.wanted:
            self._want(peer, exchange, broken[:WANTED_MAX], now_ms)

    def persists(
        self, noted: Mapping[int, int], vv: Mapping[int, int], their_vv: Mapping[int, int]
    ) -> bool:
        """Whether a difference that is still there can no longer be something under way."""
        return covers(vv, noted) and covers(their_vv, noted)

    def _want(self, peer: Peer, exchange: Exchange, buckets: list[int], now_ms: int) -> None:
        self._ids += 1
        exchange.wanted, exchange.wanted_ms = self._ids, now_ms
        exchange.pause_ms = min(2 * exchange.pause_ms, EXCHANGE_MAX_MS)
        for bucket in buckets:
            del exchange.suspects[bucket]
        self.buckets_repaired += len(buckets)
        self._near.emit(peer, f.BucketWant(self._ids, buckets))

    # -- rows

    def wanted(self, peer: Peer, frame: f.BucketWant) -> None:
        if not all(bucket < BUCKETS for bucket in frame.buckets):
            raise PeerError(f"{peer.node} wants buckets that there are not")
        exchange = self._exchanges[peer.node]
        exchange.serves = frame.id, frozenset(frame.buckets)
        exchange.after = b""
        exchange.scanning = exchange.lacked = exchange.waits = False

    def serve(self) -> None:
        """Go on with the scans for those whose windows have room."""
        for node, exchange in self._exchanges.items():
            peer = self._near.peers[node]
            room = peer.window_bytes <= self._near.limits.window_bytes // 2
            if exchange.serves is not None and not exchange.scanning and room:
                if exchange.waits and self._near.lacking() & exchange.serves[1]:
                    continue
                exchange.scanning, exchange.waits = True, False
                self._near.effects.bucket_scans.append((node, exchange.after, SCAN_BYTES))

    def scanned(self, peer: Peer, after: bytes, rows: Sequence[RowOp]) -> None:
        """Answer to `Effects.bucket_scans`: rows of all buckets; none: the scan is at its end."""
        exchange = self._exchanges[peer.node]
        if exchange.serves is None or not exchange.scanning or exchange.after != after:
            return
        exchange.scanning = False
        number, buckets = exchange.serves
        exchange.lacked = exchange.lacked or bool(self._near.lacking() & buckets)
        found = [
            (op.row_key, op.type, op.body)
            for op in rows
            if bucket_of(op.row_key.partition(b"\0")[0]) in buckets
        ]
        if rows:
            exchange.after = rows[-1].row_key
        elif exchange.lacked:
            exchange.after, exchange.lacked, exchange.waits = b"", False, True
            return
        else:
            exchange.serves = None
        if found or not rows:
            shown_vv = self._near.shown_vv() if found else {}
            self._near.emit(peer, f.BucketRows(number, found, bool(rows), shown_vv))

    def rows(self, peer: Peer, frame: f.BucketRows, now_ms: int) -> None:
        exchange = self._exchanges[peer.node]
        if frame.id != exchange.wanted or not frame.id:
            return
        ops = tuple(RowOp(*row) for row in frame.rows)
        bytes_max = self._near.limits.body_bytes_max
        wall_ms = now_ms + self._near.wall_ahead_ms + self._near.limits.clock_offset_max_ms
        try:
            decoded = list(decode_rows(ops, body_bytes_max=bytes_max))
        except CorruptData as error:
            raise PeerError(f"{peer.node} sent a row that cannot be read: {error}") from error
        due = tuple(
            op
            for op, row in zip(ops, decoded, strict=True)
            if hlc_ms(row_hlc(row.type, row.part, row.row)) <= wall_ms
        )
        if due:
            self.rows_fetched += len(due)
            self._near.took_rows(frame.vv)
            self._near.effects.rows.append((due, {}))
        exchange.wanted_ms = now_ms
        if not frame.more:
            exchange.fetched, exchange.wanted = exchange.wanted, 0
