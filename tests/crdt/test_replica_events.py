"""Events one by one: what a replica answers to a frame, a shell that is late, and a reseed."""

from __future__ import annotations

import msgspec
import pytest

from roost_crdt import digest
from roost_crdt import frames as f
from roost_crdt.errors import PeerError
from roost_crdt.peer import Mode
from roost_crdt.record import RowOp
from roost_crdt.replica import Replica
from roost_crdt.rows import encode_row, register
from roost_crdt.rows.layout import TYPE_REGISTER, VALUE, row_key

NOW_MS = 1_790_000_000_000


def alone(vv: dict[int, int] | None = None, *, floor: dict[int, int] | None = None) -> Replica:
    return Replica(
        node="me",
        region="r",
        cluster="test",
        store_id=bytes(16),
        actor=1,
        vv={1: 50} if vv is None else vv,
        gc_floor=floor,
    )


def greeting(node: str = "x", actor: int = 9, **changes: object) -> f.Greeting:
    plain = f.Greeting(versions=(1,), cluster="test", node=node, actor=actor, vv={actor: 5})
    return msgspec.structs.replace(plain, **changes)


def hear(replica: Replica, frame: f.Frame, node: str = "x") -> None:
    replica.receive(node, f.encode_frame(frame), NOW_MS)


def frames_of(replica: Replica) -> list[f.Frame]:
    return [f.decode_frame(data) for _, data in replica.take_effects().frames]


def op(key: bytes, hlc: int = 7) -> RowOp:
    body = encode_row(TYPE_REGISTER, VALUE, register.put({}, b"v", (hlc, 9))[VALUE])
    return RowOp(row_key(key, VALUE), TYPE_REGISTER, body)


# -- links that are gone, or were never there


def test_what_a_shell_says_of_a_link_that_is_gone_changes_nothing() -> None:
    replica = alone()
    replica.link_down("nobody", NOW_MS)
    replica.link_up("x", greeting(), NOW_MS)
    replica.take_effects()
    replica.link_down("x", NOW_MS)
    replica.take_effects()
    replica.taken("x", 100)
    replica.heard("x", NOW_MS)
    replica.records_read("x", 1, [b"never decoded"], NOW_MS)
    replica.rows_scanned("x", b"", [op(b"k")], NOW_MS)
    replica.sums_read("x", {}, [0] * digest.BUCKETS, NOW_MS)
    replica.bucket_scanned("x", b"", [op(b"k")], NOW_MS)
    effects = replica.take_effects()
    assert not effects.frames
    assert not effects.writes
    assert replica.vv == {1: 50}


def test_a_new_actor_is_greeted_anew_by_everybody() -> None:
    replica = alone()
    replica.link_up("x", greeting(), NOW_MS)
    replica.link_up("y", greeting("y", 8), NOW_MS)
    replica.take_effects()
    replica.new_actor(2)
    why = "this node has taken a new actor"
    assert sorted(replica.take_effects().cuts) == [("x", why), ("y", why)]
    assert f.decode_greeting(replica.greeting()).actor == 2


def test_the_lag_behind_one_neighbour_counts_what_it_reported_alone() -> None:
    replica = alone()
    replica.link_up("x", greeting(), NOW_MS)
    replica.link_up("y", greeting("y", 8, vv={}), NOW_MS)
    hear(replica, f.IHave({9: 70}))
    assert replica.peer_lag_ms("x", NOW_MS + 300) == 300
    assert replica.peer_lag_ms("y", NOW_MS + 300) == 0
    assert replica.lag_ms(NOW_MS + 300) == 300


def test_an_error_of_the_neighbour_cuts_the_link_and_says_its_words() -> None:
    replica = alone()
    replica.link_up("x", greeting(), NOW_MS)
    replica.take_effects()
    hear(replica, f.Error("PEER", "your records are odd"))
    effects = replica.take_effects()
    assert effects.cuts == [("x", "refused by the neighbour: PEER: your records are odd")]
    assert not effects.rollbacks


def test_a_neighbour_that_found_this_actor_elsewhere_makes_it_take_a_new_one() -> None:
    replica = alone()
    replica.link_up("x", greeting(), NOW_MS)
    replica.take_effects()
    hear(replica, f.Error(f.SHARED_ACTOR, "me and another both write as 0x1"))
    assert replica.take_effects().rollbacks == [("x", 1, 50)]


# -- sums of buckets, and rows by bucket


def test_sums_are_answered_with_own_ones_and_wanted_buckets_with_their_rows() -> None:
    replica = alone()
    replica.link_up("x", greeting(), NOW_MS)
    frames_of(replica)
    hear(replica, f.BucketSums({9: 5}, bytes(16 * digest.BUCKETS), True))
    assert replica.take_effects().sums == ["x"]
    sums = [at + 1 for at in range(digest.BUCKETS)]
    replica.sums_read("x", {1: 50}, sums, NOW_MS)
    (mine,) = frames_of(replica)
    packed = b"".join(amount.to_bytes(16, "big") for amount in sums)
    assert mine == f.BucketSums({1: 50}, packed, False)
    keys = [b"k%d" % at for at in range(5)]
    wanted = digest.bucket_of(keys[2])
    hear(replica, f.BucketWant(3, [wanted]))
    assert [scan[:2] for scan in replica.take_effects().bucket_scans] == [("x", b"")]
    rows = [op(key) for key in keys]
    replica.bucket_scanned("x", b"", rows, NOW_MS)
    (sent,) = frames_of(replica)
    assert sent == f.BucketRows(3, [tuple(rows[2])], True, dict(replica.vv))
    replica.bucket_scanned("x", rows[-1].row_key, [], NOW_MS)
    assert frames_of(replica) == [f.BucketRows(3, [], False)], "the scan has reached its end"


def test_rows_of_buckets_that_nobody_asked_for_are_not_taken() -> None:
    replica = alone()
    replica.link_up("x", greeting(), NOW_MS)
    hear(replica, f.BucketRows(1, [tuple(op(b"k"))], False))
    assert not replica.take_effects().rows
    assert not replica.takes_rows


# -- reseed


def test_while_a_node_gives_its_rows_up_nobody_is_linked() -> None:
    replica = alone()
    replica.link_up("x", greeting(), NOW_MS)
    replica.chain = (50, b"c")
    replica.take_effects()
    replica.give_up()
    assert replica.take_effects().cuts == [("x", "Reseed: this node gives up its rows")]
    replica.link_down("x", NOW_MS)
    with pytest.raises(PeerError, match="me is giving up its rows; try again"):
        replica.link_up("x", greeting(), NOW_MS)
    assert replica.mode("x") is Mode.RESEED
    replica.reseeded(2, {9: 5})
    assert (replica.actor, dict(replica.vv), replica.chain) == (2, {}, None)
    assert not replica.reseeds
    with pytest.raises(PeerError, match="me takes rows that y is behind"):
        replica.link_up("y", greeting("y", 8, vv={9: 4}), NOW_MS)
    replica.link_up("x", greeting(gc_floor={9: 5}), NOW_MS)
    assert replica.takes_rows, "nothing is collected before they are here"


def test_rows_that_were_to_be_taken_before_a_restart_still_are() -> None:
    replica = alone()
    assert not replica.takes_rows
    replica.rejoin({1: 50})
    assert not replica.takes_rows, "they are here"
    replica.rejoin({1: 50, 9: 5})
    assert replica.takes_rows


def test_a_neighbour_that_takes_a_snapshot_holds_up_collection() -> None:
    replica = alone()
    replica.link_up("x", greeting(), NOW_MS)
    assert not replica.gives_rows
    hear(replica, f.SnapshotWant(1))
    assert replica.gives_rows
    replica.link_down("x", NOW_MS)
    assert not replica.gives_rows


def test_a_node_is_known_by_its_actor_from_its_greeting_on() -> None:
    replica = alone()
    replica.link_up("x", greeting(), NOW_MS)
    assert replica.nodes == {1: "me", 9: "x"}
    replica.link_down("x", NOW_MS)
    assert replica.nodes == {1: "me", 9: "x"}, "its records may still come from others"


def test_histories_of_which_there_are_two_are_told_and_asked_for() -> None:
    replica = alone({1: 50, 4: 30})
    replica.forked({4: 20}, {9: (3, 5)})
    assert f.decode_greeting(replica.greeting()).crossed == {9: (3, 5)}
    replica.link_up("x", greeting(vv={4: 25}), NOW_MS)
    assert f.Want(4, 20, again=True) in frames_of(replica), "though 30 are held here"


def test_who_has_lost_rows_sends_no_snapshot_until_it_has_them_again() -> None:
    replica = alone()
    lost = {7}
    replica.lacking(lambda: frozenset(lost))
    replica.link_up("x", greeting(), NOW_MS)
    hear(replica, f.SnapshotWant(1))
    assert replica.take_effects().scans == []
    assert replica.gives_rows
    lost.clear()
    assert [(node, after) for node, after, _ in replica.take_effects().scans] == [("x", b"")]
    replica.rows_scanned("x", b"", [op(b"k")], NOW_MS)
    assert frames_of(replica) == [f.SnapshotRows(1, [tuple(op(b"k"))], dict(replica.vv))]
    replica.rows_scanned("x", op(b"k").row_key, [], NOW_MS)
    assert [type(frame) for frame in frames_of(replica)] == [f.SnapshotEnd]


def test_of_many_refused_neighbours_only_some_are_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(f, "LINKS_MAX", 2)
    replica = alone(floor={9: 8})
    for at in range(4):
        with pytest.raises(PeerError, match=f"Reseed: n{at} is behind"):
            replica.link_up(f"n{at}", greeting(f"n{at}", 20 + at, vv={9: 5}), NOW_MS)
    assert sorted(replica.reseeds) == ["n0", "n1"]
    assert replica.mode("n3") is Mode.PROBE
