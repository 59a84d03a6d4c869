"""Anti-entropy: what is lost on one side comes back; what is under way is no damage."""

from __future__ import annotations

import pytest

from roost_crdt import digest
from roost_crdt import frames as f
from roost_crdt.antientropy import (
    EXCHANGE_MS,
    UNEQUAL_MS,
    WANT_MS,
    AntiEntropy,
)
from roost_crdt.errors import PeerError
from roost_crdt.hlc import hlc_from_ms
from roost_crdt.record import RowOp
from roost_crdt.replica import Replica
from roost_crdt.rows import Rows, encode_row, register
from roost_crdt.rows.layout import TYPE_REGISTER, VALUE, row_key

NOW_MS = 1_000_000


class Side:
    """A replica and as much of a store as sums need."""

    def __init__(self, name: str, actor: int) -> None:
        self.name = name
        self.rows: dict[bytes, Rows] = {}
        self.vv: dict[int, int] = {}
        self.taken: list[RowOp] = []
        self.replica = Replica(
            node=name, region="", cluster="c", store_id=b"", actor=actor, vv=self.vv
        )

    def put(self, key: bytes, value: bytes, hlc: int) -> None:
        self.rows[key] = register.put({}, value, (hlc, 1))
        self.vv[1] = max(hlc, self.vv.get(1, 0))

    def sums(self) -> list[int]:
        sums = [0] * digest.BUCKETS
        for key, rows in self.rows.items():
            sums[digest.bucket_of(key)] += digest.contribution(TYPE_REGISTER, key, rows).live
        return sums

    def scan(self, after: bytes) -> list[RowOp]:
        ops = [
            RowOp(row_key(key, VALUE), TYPE_REGISTER, encode_row(TYPE_REGISTER, VALUE, rows[VALUE]))
            for key, rows in sorted(self.rows.items())
        ]
        return [op for op in ops if op.row_key > after][:2]


class Pair:
    def __init__(self) -> None:
        self.a, self.b = Side("a", 1), Side("b", 2)
        self.now_ms = NOW_MS
        for side, other in ((self.a, self.b), (self.b, self.a)):
            greeting = f.decode_greeting(other.replica.greeting())
            side.replica.link_up(other.name, greeting, self.now_ms)
        self.sent: list[object] = []
        self.settle()

    def use(self, rule: type[AntiEntropy]) -> None:
        for side, other in ((self.a, self.b), (self.b, self.a)):
            mine = rule(side.replica._near)
            side.replica.antientropy = mine
            mine.link_up(side.replica.peers[other.name], self.now_ms)

    def _once(self, side: Side, other: Side) -> bool:
        effects = side.replica.take_effects()
        for ops, _ in effects.rows:
            side.taken += ops
            for op in ops:
                key = op.row_key.partition(b"\0")[0]
                side.rows[key] = {VALUE: register.decode(VALUE, op.body)}
        for _, data in effects.frames:
            self.sent.append(f.decode_frame(data))
            side.replica.taken(other.name, len(data))
            other.replica.receive(side.name, data, self.now_ms)
        for peer in effects.sums:
            side.replica.sums_read(peer, side.vv, side.sums(), self.now_ms)
        for peer, after, _ in effects.bucket_scans:
            side.replica.bucket_scanned(peer, after, side.scan(after), self.now_ms)
        return bool(effects.rows or effects.frames or effects.sums or effects.bucket_scans)

    def settle(self) -> None:
        while any([self._once(self.a, self.b), self._once(self.b, self.a)]):
            pass

    def beat(self, ms: int = EXCHANGE_MS) -> None:
        """A heartbeat each way, with digests as the stores are now."""
        self.now_ms += ms
        for side in (self.a, self.b):
            root = digest.root(side.sums(), {}, 0)
            side.replica.digested(bytes.fromhex(root), side.vv)
            side.replica.heard("a" if side is self.b else "b", self.now_ms)
        for side in (self.a, self.b):
            side.replica.tick(self.now_ms)
        self.settle()

    def wants(self) -> list[f.BucketWant]:
        return [frame for frame in self.sent if isinstance(frame, f.BucketWant)]


@pytest.fixture
def pair() -> Pair:
    return Pair()


def filled(pair: Pair) -> None:
    for side in (pair.a, pair.b):
        for at in range(1, 8):
            side.put(b"k%d" % at, b"v", at)


def test_a_lost_row_comes_back_from_the_other_side(pair: Pair) -> None:
    filled(pair)
    pair.beat()
    assert not any(isinstance(frame, f.BucketSums) for frame in pair.sent)
    del pair.b.rows[b"k3"]
    pair.beat()
    assert not pair.wants(), "once is no proof"
    pair.beat()
    assert pair.b.rows == pair.a.rows
    assert [op.row_key for op in pair.b.taken] == [row_key(b"k3", VALUE)]
    assert pair.b.replica.antientropy.buckets_repaired == 1
    assert pair.b.replica.antientropy.rows_fetched == 1
    assert not pair.b.replica.takes_rows
    sent = len(pair.wants())
    pair.beat()
    pair.beat()
    assert len(pair.wants()) == sent


class OneRound(AntiEntropy):
    """Without the rule: a difference counts whenever it is seen again."""

    def persists(self, *vectors: object) -> bool:
        return True


@pytest.mark.parametrize(("rule", "misfires"), [(AntiEntropy, False), (OneRound, True)])
def test_what_is_under_way_is_no_damage(
    pair: Pair, rule: type[AntiEntropy], misfires: bool
) -> None:
    filled(pair)
    pair.use(rule)
    pair.beat()
    pair.a.put(b"k3", b"newer", 20)
    for _ in range(4):
        pair.beat(UNEQUAL_MS)
    assert bool(pair.wants()) is misfires
    if not misfires:
        pair.b.put(b"k3", b"newer", 20)
        pair.beat()
        pair.beat()
        assert not pair.wants()


def test_vectors_that_are_never_equal_do_not_hide_damage(pair: Pair) -> None:
    filled(pair)
    del pair.b.rows[b"k3"]
    for hlc in range(30, 34):
        pair.beat(UNEQUAL_MS)
        pair.a.put(b"busy", b"%d" % hlc, hlc)
        pair.b.put(b"busy", b"%d" % (hlc - 1), hlc - 1)
    assert b"k3" in pair.b.rows


def test_without_a_digest_nothing_is_compared(pair: Pair) -> None:
    """A node that has just started knows no sums yet: that is no difference."""
    filled(pair)
    del pair.b.rows[b"k3"]
    for side in (pair.a, pair.b):
        side.replica.digested(b"", {})
    for _ in range(4):
        pair.now_ms += UNEQUAL_MS
        for side, name in ((pair.a, "b"), (pair.b, "a")):
            side.replica.heard(name, pair.now_ms)
            side.replica.tick(pair.now_ms)
        pair.settle()
    assert any(isinstance(frame, f.Heartbeat) for frame in pair.sent)
    assert not any(isinstance(frame, f.BucketSums) for frame in pair.sent)
    pair.beat()
    pair.beat()
    assert b"k3" in pair.b.rows, "found as soon as there are digests"


def test_sums_are_not_exchanged_with_every_heartbeat(pair: Pair) -> None:
    """64 KiB each: a difference is looked at once in EXCHANGE_MS, however often one beats."""
    filled(pair)
    pair.beat()
    pair.a.rows[b"k3"] = register.put({}, b"other", (3, 1))
    began_ms = pair.now_ms
    while pair.now_ms < began_ms + 10 * EXCHANGE_MS:
        pair.beat(EXCHANGE_MS // 8)
    exchanged = sum(isinstance(frame, f.BucketSums) for frame in pair.sent)
    assert 2 <= exchanged <= 2 * 2 * 10, "each side asks and each answers"


def test_what_arrives_after_a_collection_is_not_taken(pair: Pair) -> None:
    filled(pair)
    peer = pair.b.replica.peers["a"]
    work = pair.b.replica.antientropy
    work._want(peer, work._exchanges["a"], [], pair.now_ms)
    assert pair.b.replica.takes_rows
    op = pair.a.scan(b"")[0]
    rows = f.BucketRows(1, [tuple(op)], True)
    pair.b.replica.gc_floor = {1: 5}
    assert not pair.b.replica.takes_rows
    pair.b.replica.receive("a", f.encode_frame(rows), pair.now_ms)
    assert not pair.b.replica.take_effects().rows


def test_rows_from_the_future_wait_and_broken_ones_are_refused(pair: Pair) -> None:
    work = pair.b.replica.antientropy
    exchange = work._exchanges["a"]
    work._want(pair.b.replica.peers["a"], exchange, [], pair.now_ms)
    pair.b.replica.take_effects()
    hlc = hlc_from_ms(pair.now_ms + 60_000)
    body = encode_row(TYPE_REGISTER, VALUE, register.put({}, b"v", (hlc, 1))[VALUE])
    rows = [(row_key(b"k", VALUE), TYPE_REGISTER, body)]
    frame = f.BucketRows(exchange.wanted, rows, True, {1: 99})
    pair.b.replica.receive("a", f.encode_frame(frame), pair.now_ms)
    assert not pair.b.replica.take_effects().rows
    assert not pair.b.replica.rows_vv
    bad = f.BucketRows(exchange.wanted, [(b"k", TYPE_REGISTER, b"")], True)
    with pytest.raises(PeerError, match="cannot be read"):
        pair.b.replica.receive("a", f.encode_frame(bad), pair.now_ms)


def test_rows_come_with_what_their_giver_held(pair: Pair) -> None:
    """What it held only in rows itself as well: its own vector does not cover those."""
    filled(pair)
    pair.a.replica._near.took_rows({1: 3, 9: 4})
    pair.a.replica._near.advance(1, 7)
    work = pair.b.replica.antientropy
    assert work.fetch("a", [digest.bucket_of(b"k1")], pair.now_ms)
    pair.settle()
    assert pair.b.taken
    assert pair.b.replica.rows_vv == {1: 7, 9: 4}
    assert not pair.b.replica.vv


@pytest.mark.parametrize(
    "frame", [f.BucketSums({}, b"short"), f.BucketWant(1, [digest.BUCKETS])], ids=["sums", "want"]
)
def test_frames_out_of_bounds_are_refused(pair: Pair, frame: f.Frame) -> None:
    with pytest.raises(PeerError):
        pair.a.replica.receive("b", f.encode_frame(frame), pair.now_ms)
    pair.a.replica.link_down("b", pair.now_ms)
    pair.a.replica.sums_read("b", {}, [], pair.now_ms)
    pair.a.replica.bucket_scanned("b", b"", [], pair.now_ms)


def test_an_answer_that_never_comes_is_given_up(pair: Pair) -> None:
    filled(pair)
    work = pair.b.replica.antientropy
    work._want(pair.b.replica.peers["a"], work._exchanges["a"], [], pair.now_ms)
    pair.b.replica.take_effects()
    pair.beat(WANT_MS)
    assert not pair.b.replica.takes_rows


def test_scans_of_another_place_are_ignored(pair: Pair) -> None:
    filled(pair)
    every = f.BucketWant(7, sorted({digest.bucket_of(key) for key in pair.a.rows}))
    pair.a.replica.receive("b", f.encode_frame(every), pair.now_ms)
    effects = pair.a.replica.take_effects()
    assert [scan[:2] for scan in effects.bucket_scans] == [("b", b"")]
    pair.a.replica.bucket_scanned("b", b"elsewhere", pair.a.scan(b""), pair.now_ms)
    assert not pair.a.replica.take_effects().frames
    pair.a.replica.bucket_scanned("b", b"", pair.a.scan(b""), pair.now_ms)
    (sent,) = pair.a.replica.take_effects().frames
    rows = f.decode_frame(sent[1])
    assert isinstance(rows, f.BucketRows)
    assert (rows.id, len(rows.rows), rows.more) == (7, 2, True)


def test_buckets_that_lack_rows_are_fetched_at_once(pair: Pair) -> None:
    """A node that knows what it lost waits for no sums; one fetch at a time."""
    filled(pair)
    work, now_ms = pair.b.replica.antientropy, pair.now_ms
    del pair.b.rows[b"k3"], pair.b.rows[b"k5"]
    buckets = [digest.bucket_of(b"k3"), digest.bucket_of(b"k5")]
    assert work.fetch("nobody", buckets, now_ms) == work.fetched("nobody") == 0
    number = work.fetch("a", buckets, now_ms)
    assert number
    assert work.fetch("a", buckets, now_ms) == 0, "another one is under way"
    assert work.fetched("a") == 0
    assert work.fetch("a", buckets, now_ms + WANT_MS) == number + 1, "the first never came"
    pair.settle()
    assert work.fetched("a") == number + 1
    assert pair.b.rows == pair.a.rows
    assert not pair.b.replica.takes_rows


def test_who_lacks_rows_of_a_bucket_does_not_say_that_it_sent_all(pair: Pair) -> None:
    """What it has goes out; the end waits until it has the rest, wherever that lies."""
    filled(pair)
    lost = {key: pair.a.rows.pop(key) for key in (b"k1", b"k5")}
    lacking = {digest.bucket_of(key) for key in lost}
    pair.a.replica.lacking(lambda: frozenset(lacking))
    pair.b.rows.clear()
    buckets = [digest.bucket_of(b"k%d" % at) for at in range(1, 8)]
    number = pair.b.replica.antientropy.fetch("a", buckets, pair.now_ms)
    pair.settle()
    assert sorted(pair.b.rows) == [b"k2", b"k3", b"k4", b"k6", b"k7"]
    assert pair.b.replica.antientropy.fetched("a") == 0
    pair.a.rows.update(lost)
    pair.settle()
    assert pair.b.replica.antientropy.fetched("a") == 0, "it was never told"
    lacking.clear()
    pair.settle()
    assert pair.b.replica.antientropy.fetched("a") == number
    assert pair.b.rows == pair.a.rows


def test_other_buckets_do_not_wait(pair: Pair) -> None:
    """Two nodes that lack different rows help one another."""
    filled(pair)
    wanted, other = digest.bucket_of(b"k3"), digest.bucket_of(b"k5")
    assert wanted != other
    pair.a.replica.lacking(lambda: frozenset((other,)))
    pair.b.replica.lacking(lambda: frozenset((wanted,)))
    del pair.a.rows[b"k5"], pair.b.rows[b"k3"]
    numbers = [
        side.replica.antientropy.fetch(peer, [bucket], pair.now_ms)
        for side, peer, bucket in ((pair.a, "b", other), (pair.b, "a", wanted))
    ]
    pair.settle()
    assert [pair.a.replica.antientropy.fetched("b"), pair.b.replica.antientropy.fetched("a")] == (
        numbers
    )
    assert sorted(pair.a.rows) == sorted(pair.b.rows) == [b"k%d" % at for at in range(1, 8)]
