"""A removed node that is behind nothing goes on as another actor, with its rows."""

from __future__ import annotations

from random import Random

import pytest
from crdt.test_membership_reseeding import BEHIND, behind, reseeding, to_the_end
from membership_kit import NOW, Cluster, count, incr, open_store, put, value

from roost_crdt.collection import Collection
from roost_crdt.frames import Greeting
from roost_crdt.hlc import Hlc, hlc_from_ms
from roost_crdt.limits import DEFAULT_LIMITS
from roost_crdt.logformat import KIND_META
from roost_crdt.members import Member, Roster
from roost_crdt.membership.collector import load_rows_vv
from roost_crdt.membership.reseeding import MARKER, PAGES, Reseeding
from roost_crdt.record import Record, RowOp, decode_record, encode_record
from roost_crdt.rows import Rows, encode_row, register
from roost_crdt.rows import map as map_rows
from roost_crdt.rows.layout import TYPE_MAP, TYPE_REGISTER, VALUE, row_key
from roost_sim.store import Store


def report(roster: Roster, vv: dict[int, int]) -> None:
    roster.nodes["peer"] = Member("peer", 55, (), vv, 0)


def join_again(work: Reseeding, mine: Store, roster: Roster, steps_max: int = 60) -> None:
    """A neighbour that has nothing new tells that it knows of the actor."""
    while work.stage:
        if work.stage == "join":
            report(roster, {mine.actor: 1})
            if mine.actor not in mine.vv:
                put(mine, b"report", b"")
        work.tick()
        mine.flush()
        steps_max -= 1
        assert steps_max


def test_rows_stay_and_what_the_neighbour_lacks_is_written_by_the_new_actor() -> None:
    mine, peer = behind()
    before, roster = mine.actor, Roster()
    held = {key: dict(mine.key_rows(key).rows) for key in (b"k", b"n")}
    work = reseeding(mine, roster=roster)
    work.trigger("peer", peer.vv, {})
    while work.stage != "join":
        work.tick()
    assert mine.actor != before
    assert mine.vv == {before: peer.vv[before]}, "records of the old actor are not passed on"
    join_again(work, mine, roster)
    assert {key: mine.key_rows(key).rows for key in held} == held
    for raw in mine.records_after(mine.actor, 0, 1 << 20) or ():
        assert peer.accept(raw, decode_record(raw, body_bytes_max=len(raw)))
    assert (value(peer, b"k"), count(peer, b"n")) == (b"unsent", 7)
    assert mine.scan(KIND_META, PAGES) == []
    assert mine.get(KIND_META, MARKER) is None


def test_it_waits_until_nothing_can_be_collected_without_it() -> None:
    """A round that knows nothing of the new actor may be about to drop what its rows lack."""
    mine, peer = behind()
    roster = Roster()
    work = reseeding(mine, roster=roster)
    work.trigger("peer", peer.vv, {})
    while work.stage != "join":
        work.tick()
    put(mine, b"report", b"")
    for told in ({}, {peer.actor: 9}, {mine.actor: 1, 77: 5}):
        report(roster, told)
        for _ in range(3):
            work.tick()
        assert work.stage == "join", told
    mine.accept_rows((), {77: 5})
    join_again(work, mine, roster)
    assert count(mine, b"n") == 7


def test_it_does_not_wait_for_ever_for_a_member_that_reports_nothing() -> None:
    mine, peer = behind()
    work = reseeding(mine)
    work.trigger("peer", peer.vv, {})
    while work.stage != "join":
        work.tick()
    for _ in range(200):
        work.tick()
    assert work.keeps, "nobody is linked: nobody could have reported"
    greeting = Greeting(versions=(1,), cluster="c", node="peer", actor=9, vv=dict(peer.vv))
    work._replica.link_up("peer", greeting, NOW)
    while work.stage == "join":
        work.tick()
    assert work.stage == "export"
    work._replica.link_down("peer", NOW)
    while work.stage != "join":
        work.tick()
    to_the_end(work, mine, peer)
    assert (value(mine, b"k"), count(mine, b"n")) == (b"unsent", 7)
    assert value(mine, b"p") == b"theirs"


@pytest.mark.parametrize("crash_after", range(9))
def test_a_crash_after_any_step_is_gone_on_from(crash_after: int) -> None:
    mine, peer = behind()
    roster = Roster()
    work = reseeding(mine, roster=roster)
    work.trigger("peer", peer.vv, {})
    before, steps = mine.actor, 0
    while mine.actor == before or work.stage:
        if not work.stage:
            work.trigger("peer", peer.vv, {})
        if work.stage == "join":
            assert work._replica.rewrites, "no digest of rows that the vector does not cover"
            report(roster, {mine.actor: 1})
            if mine.actor not in mine.vv:
                put(mine, b"report", b"")
        work.tick()
        mine.flush()
        steps += 1
        if steps == crash_after:
            mine = open_store(mine.disk)
            work = reseeding(mine, roster=roster)
        assert steps < 40
    assert (value(mine, b"k"), count(mine, b"n")) == (b"unsent", 7)
    assert not work._replica.rewrites
    sent = [
        op.row_key.partition(b"\0")[0]
        for raw in mine.records_after(mine.actor, 0, 1 << 20) or ()
        for op in decode_record(raw, body_bytes_max=len(raw)).ops
    ]
    assert {b"k", b"n"} <= set(sent)


def joining(mine: Store, peer: Store, roster: Roster) -> Reseeding:
    work = reseeding(mine, roster=roster)
    work.trigger("peer", peer.vv, {})
    while work.stage != "join":
        work.tick()
    assert work.keeps
    return work


@pytest.mark.parametrize("crash_before", ["wipe", "join", ""])
def test_what_the_rows_show_is_known_after_a_crash(crash_before: str) -> None:
    """Whoever takes them meanwhile (a snapshot, a repair) must not begin a round by a deletion
    that no vector covers: an edit that has not seen it may still come."""
    mine, peer = behind()
    hlc = mine.clock.last + 1
    gone = register.delete(mine.key_rows(b"k").rows, (hlc, 77))
    ops = (
        RowOp(row_key(b"k", VALUE), TYPE_REGISTER, encode_row(TYPE_REGISTER, VALUE, gone[VALUE])),
    )
    record = Record(77, hlc, 0, ops)
    assert mine.accept(encode_record(record), record)
    mine.flush()
    work = reseeding(mine)
    work.trigger("peer", peer.vv, {})
    while work.stage != "join":
        if work.stage == crash_before:
            mine = open_store(mine.disk)
            work = restarted(mine)
            crash_before = ""
        work.tick()
        mine.flush()
    if crash_before == "join":
        mine = open_store(mine.disk)
        work = restarted(mine)
    assert value(mine, b"k") is None
    assert 77 not in mine.vv, "its record may still come from elsewhere"
    shown = work._replica._near.shown_vv()
    assert shown[77] == hlc
    assert not Collection("taker", Roster(), 10).begin(mine.vv, shown)
    assert Collection("taker", Roster(), 10).begin({**mine.vv, **shown}, shown)


def restarted(store: Store) -> Reseeding:
    work = reseeding(store)
    work._replica.rows_vv.update(load_rows_vv(store))
    return work


def test_an_actor_that_was_taken_before_a_crash_is_not_taken_twice() -> None:
    mine, peer = behind()
    roster = Roster()
    work = reseeding(mine, roster=roster)
    work.trigger("peer", peer.vv, {})
    while work.stage != "wipe":
        work.tick()
    mine.renew_actor(Random(5).randbytes)
    new = mine.actor
    mine.flush()
    mine = open_store(mine.disk)
    join_again(reseeding(mine, roster=roster), mine, roster)
    assert mine.actor == new
    assert (value(mine, b"k"), count(mine, b"n")) == (b"unsent", 7)


def test_what_has_gone_before_it_could_be_sent_is_not_sent() -> None:
    """Somebody knew of it by another way, deleted it, and all have collected that."""
    mine, peer = behind()
    roster = Roster()
    work = joining(mine, peer, roster)
    mine.drop_rows([row_key(b"k", part) for part in mine.key_rows(b"k").rows])
    join_again(work, mine, roster)
    assert value(mine, b"k") is None
    for raw in mine.records_after(mine.actor, 0, 1 << 20) or ():
        assert peer.accept(raw, decode_record(raw, body_bytes_max=len(raw)))
    assert (value(peer, b"k"), count(peer, b"n")) == (b"old", 7)


def test_no_record_is_stamped_below_its_rows_where_the_clock_was_set_back() -> None:
    """Nobody would take it; it waits until the clock has come so far again."""
    mine, peer = behind()
    ahead = hlc_from_ms(NOW + DEFAULT_LIMITS.clock_offset_max_ms // 2)
    mine.clock.observe(ahead)
    put(mine, b"k", b"ahead")
    mine.flush()
    roster = Roster()
    work = joining(mine, peer, roster)
    mine.clock = Hlc()
    report(roster, {mine.actor: 1})
    put(mine, b"report", b"")
    for _ in range(3):
        work.tick()
    assert mine.vv[mine.actor] < ahead
    assert work.stage == "join"
    mine.clock.observe(ahead + 9)
    join_again(work, mine, roster)
    raws = mine.records_after(mine.actor, 0, 1 << 20) or ()
    for raw in raws:
        assert peer.accept(raw, decode_record(raw, body_bytes_max=len(raw)))
    assert value(peer, b"k") == b"ahead"


@pytest.mark.parametrize("why", ["behind", "stamps ahead", "no log", "rows are taken"])
def test_rows_are_given_up_where_they_may_bring_something_back(why: str) -> None:
    mine, peer = behind()
    if why == "stamps ahead":
        mine.clock.observe(hlc_from_ms(NOW + 90 * 86_400_000))
        incr(mine, b"n", 1)
        mine.flush()
    if why == "no log":
        mine.records_after = lambda *_: None  # type: ignore[method-assign]
    work = reseeding(mine)
    if why == "rows are taken":
        work._replica._near.joins = {5: 1}
    work.trigger("peer", peer.vv, BEHIND if why == "behind" else {})
    while work.stage != "join":
        work.tick()
    assert not work.keeps
    assert mine.scan_rows(b"", 1 << 20) == []
    to_the_end(work, mine, peer)
    assert value(mine, b"k") == b"unsent"


@pytest.mark.parametrize("floor", [{}, BEHIND])
def test_removed_once_more_before_it_has_joined_nothing_is_lost(floor: dict[int, int]) -> None:
    """Or behind what yet another neighbour has collected."""
    mine, peer = behind()
    roster = Roster()
    work = reseeding(mine, roster=roster)
    work.trigger("peer", peer.vv, {})
    while work.stage != "join":
        work.tick()
    put(mine, b"late", b"v")
    work.trigger("other", peer.vv, floor)
    assert work.stage == "export"
    while work.stage != "join":
        work.tick()
    if floor:
        to_the_end(work, mine, peer)
    else:
        join_again(work, mine, roster)
    assert (value(mine, b"k"), count(mine, b"n")) == (b"unsent", 7)
    assert value(mine, b"late") == b"v"
    assert mine.scan(KIND_META, PAGES) == []


def ready(*names: str) -> Cluster:
    cluster = Cluster(*names)
    cluster.until(lambda: all(cluster.entered(name) == set(names) for name in names))
    return cluster


def test_what_another_lost_to_damage_is_fetched_from_one_that_was_removed() -> None:
    cluster = ready("a", "b")
    cluster.put("a", b"k", b"v")
    cluster.until(lambda: cluster.same() and cluster.shown("b", b"k") == b"v")
    cluster.cut(("a", "b"))
    cluster.wait(2_000)
    cluster["a"].store.lose([row_key(b"k", part) for part in cluster["a"].rows(b"k")])
    cluster["a"].membership.remove("b")
    cluster.put("b", b"own", b"unsent")
    before = cluster["b"].store.actor
    cluster.heal()
    cluster.until(lambda: cluster["b"].store.actor != before)
    cluster.until(lambda: not cluster["b"].membership.reseeding.stage)
    cluster.until(lambda: cluster.shown("a", b"k") == b"v", within_ms=120_000)
    assert cluster.shown("a", b"own") == b"unsent"


def test_two_that_removed_each_other_join_again_with_all_that_they_held() -> None:
    cluster = ready("a", "b")
    cluster.cut(("a", "b"))
    cluster.wait(2_000)
    for one, other in ("ab", "ba"):
        cluster[one].membership.remove(other)
        cluster.put(one, b"of " + one.encode(), b"v")
    cluster.heal()
    cluster.until(
        lambda: (
            cluster.same()
            and cluster.entered("a") == cluster.entered("b") == {"a", "b"}
            and not any(cluster[name].membership.reseeding.stage for name in "ab")
        ),
        within_ms=30_000,
    )
    for name in "ab":
        assert cluster.shown(name, b"of a") == cluster.shown(name, b"of b") == b"v"


def test_a_new_actor_is_reported_at_once() -> None:
    cluster = ready("a", "b")
    cluster.wait(5_000)
    b = cluster["b"]
    b.store.renew_actor(Random(5).randbytes)
    b.replica.new_actor(b.store.actor)
    b.wake()
    told_ms = cluster["a"].membership.members.roster.nodes["a"].told_ms
    roster = cluster["a"].membership.members.roster
    cluster.until(lambda: b.store.actor in roster.nodes["a"].vv, within_ms=4_000)
    assert roster.nodes["a"].told_ms > told_ms


def test_the_head_that_hides_a_field_goes_with_it() -> None:
    """Where the field goes, the clear may have been collected by now."""
    mine, roster = open_store(), Roster()
    rows: Rows = {}
    for write in ("put", "clear"):
        stamp = mine.stamp(NOW)
        delta = (
            map_rows.put(rows, {b"f": b"v"}, stamp, NOW)
            if write == "put"
            else map_rows.delete(rows, stamp)
        )
        rows = {**rows, **delta}
        mine.commit(stamp, [(b"m", TYPE_MAP, delta)])
    mine.flush()
    work = reseeding(mine, roster=roster)
    work.trigger("peer", {}, {})
    join_again(work, mine, roster)
    (sent,) = (
        {op.row_key for op in record.ops}
        for raw in mine.records_after(mine.actor, 0, 1 << 20) or ()
        if (record := decode_record(raw, body_bytes_max=len(raw))).ops[0].row_key[:1] == b"m"
    )
    assert sent == {row_key(b"m", part) for part in rows}
