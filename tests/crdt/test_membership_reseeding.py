"""Reseed: a node that was away too long comes back with its own writes and without the dead."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from membership_kit import NOW, Cluster, count, incr, open_store, put, value

from roost_crdt.errors import CorruptData, Full
from roost_crdt.frames import Greeting
from roost_crdt.hlc import Stamp
from roost_crdt.logformat import KIND_META
from roost_crdt.members import (
    Member,
    Roster,
    member_delta,
    member_key,
    removal_delta,
    removal_key,
    rewritten_delta,
    rewritten_key,
)
from roost_crdt.membership import export
from roost_crdt.membership import reseeding as module
from roost_crdt.membership.reseeding import MARKER, PAGES, Marker, Reseeding
from roost_crdt.peer import Mode
from roost_crdt.record import Record
from roost_crdt.replica import Replica
from roost_crdt.rows import register
from roost_crdt.rows.layout import TYPE_COUNTER, TYPE_REGISTER
from roost_sim.store import Store

BEHIND = {5: 1}
"""What the neighbour has collected, and this node never had."""


def reseeding(
    store: Store, *, roster: Roster | None = None, told: list[str] | None = None
) -> Reseeding:
    replica = Replica(
        node="me",
        region="",
        cluster="c",
        store_id=store.store_id,
        actor=store.actor,
        vv=store.vv,
    )
    return Reseeding(
        "me",
        store=store,
        replica=replica,
        roster=Roster() if roster is None else roster,
        committed=lambda record: None,
        flush=store.flush,
        now_ms=lambda: NOW,
        emptied=lambda actor: None,
        random_bytes=Random(store.actor).randbytes,
        tell=([] if told is None else told).append,
    )


def take_all(work: Reseeding, store: Store, peer: Store) -> None:
    """What a snapshot does."""
    store.accept_rows(peer.scan_rows(b"", 1 << 20), {})
    store.accept_rows((), peer.vv)
    store.flush()
    work._replica._near.joins = {}


def behind() -> tuple[Store, Store]:
    """A store that wrote more than its peer holds, and whose own peer has collected."""
    mine, peer = open_store(seed=1), open_store(seed=2)
    put(mine, b"k", b"old")
    incr(mine, b"n", 5)
    mine.flush()
    peer.accept_rows(mine.scan_rows(b"", 1 << 20), {})
    peer.accept_rows((), mine.vv)
    put(mine, b"k", b"unsent")
    incr(mine, b"n", 2)
    mine.flush()
    put(peer, b"p", b"theirs")
    peer.flush()
    return mine, peer


def to_the_end(work: Reseeding, mine: Store, peer: Store, steps_max: int = 60) -> None:
    while work.stage:
        if work.stage == "join" and not mine.vv:
            take_all(work, mine, peer)
        work.tick()
        mine.flush()
        steps_max -= 1
        assert steps_max


def test_nothing_happens_without_a_reason_or_before_the_links_are_cut() -> None:
    mine, peer = behind()
    work = reseeding(mine)
    work.tick()
    assert work.stage == ""
    greeting = Greeting(versions=(1,), cluster="c", node="peer", actor=9, vv={})
    work._replica.link_up("peer", greeting, NOW)
    work.trigger("peer", peer.vv, BEHIND)
    for _ in range(3):
        work.tick()
    assert work.stage == "export"
    assert value(mine, b"k") == b"unsent", "a frame under way may still bring a record"
    work._replica.link_down("peer", NOW)
    to_the_end(work, mine, peer)
    assert value(mine, b"k") == b"unsent"


def test_pages_of_an_export_that_was_not_finished_are_not_written() -> None:
    mine, peer = behind()
    mine.put(KIND_META, {PAGES + b"00000099": b"half a page"})
    work = reseeding(mine)
    work.trigger("peer", peer.vv, BEHIND)
    work.tick()
    assert PAGES + b"00000099" not in dict(mine.scan(KIND_META, PAGES))
    to_the_end(work, mine, peer)
    assert (value(mine, b"k"), count(mine, b"n")) == (b"unsent", 7)


def test_an_actor_that_was_taken_before_a_crash_is_not_taken_twice() -> None:
    mine, peer = behind()
    work = reseeding(mine)
    work.trigger("peer", peer.vv, peer.vv)
    while work.stage != "wipe":
        work.tick()
    old = mine.actor
    mine.renew_actor(Random(5).randbytes)
    new = mine.actor
    mine.flush()
    mine = open_store(mine.disk)
    assert mine.actor == new != old
    to_the_end(reseeding(mine), mine, peer)
    assert mine.actor == new
    assert value(mine, b"k") == b"unsent"


@pytest.mark.parametrize("crash_after", range(9))
def test_a_crash_after_any_step_is_gone_on_from(crash_after: int) -> None:
    mine, peer = behind()
    work = reseeding(mine)
    work.trigger("peer", peer.vv, peer.vv)
    assert work._replica.mode("peer") is Mode.RESEED
    steps = 0
    while True:
        if not work.stage:
            if value(mine, b"p") == b"theirs":
                break
            work.trigger("peer", peer.vv, peer.vv)  # the crash came before anything was given up
        if work.stage == "join" and not mine.vv:
            assert work._replica._near.joins == peer.vv, "who is behind that must not be joined"
            take_all(work, mine, peer)
        work.tick()
        mine.flush()
        steps += 1
        if steps == crash_after:
            mine = open_store(mine.disk)
            work = reseeding(mine)
        assert steps < 40
    assert value(mine, b"k") == b"unsent"
    assert value(mine, b"p") == b"theirs"
    assert count(mine, b"n") == 7
    assert mine.scan(KIND_META, PAGES) == []
    assert mine.get(KIND_META, MARKER) is None


def test_without_the_log_rows_tell_what_they_can(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, peer = behind()
    records_after: Callable[[int, int, int], list[bytes] | None] = lambda *_: None  # noqa: E731
    mine.records_after = records_after  # type: ignore[method-assign]
    monkeypatch.setattr(export, "_SCAN_BYTES", 1)
    monkeypatch.setattr(export, "_PAGE_BYTES", 1)
    work = reseeding(mine)
    work.trigger("peer", peer.vv, BEHIND)
    to_the_end(work, mine, peer)
    assert value(mine, b"k") == b"unsent"
    assert count(mine, b"n") == 7


def test_a_second_trigger_before_it_has_joined_keeps_the_export() -> None:
    mine, peer = behind()
    work = reseeding(mine)
    assert work.waits_for == ""
    work.trigger("peer", peer.vv, BEHIND)
    work.trigger("other", {}, BEHIND)
    assert work.waits_for == "peer"
    while work.stage != "join":
        work.tick()
    assert work.waits_for == "peer"
    mine.accept_rows(peer.scan_rows(b"", 1 << 20), {})
    work.trigger("peer", peer.vv, peer.vv)
    assert work.stage == "wipe"
    to_the_end(work, mine, peer)
    assert value(mine, b"k") == b"unsent"
    assert count(mine, b"n") == 7


def test_a_refused_write_is_made_later(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, peer = behind()
    told: list[str] = []
    work = reseeding(mine, told=told)

    def full(*_: object) -> None:
        raise Full("no room")

    work.trigger("peer", peer.vv, BEHIND)
    with monkeypatch.context() as patch:
        patch.setattr(mine, "put", full)
        work.tick()
    assert told[-1] == "reseed goes on later: no room"
    assert work.stage == "export"
    to_the_end(work, mine, peer)
    assert value(mine, b"k") == b"unsent"


def test_actors_given_up_before_count_as_own() -> None:
    mine, peer = behind()
    before = mine.actor
    mine.renew_actor(Random(5).randbytes)
    put(mine, b"z", b"under the new one")
    mine.flush()
    roster = Roster()
    roster.nodes["me"] = Member("me", before, (77,), {}, 0)
    work = reseeding(mine, roster=roster)
    work.trigger("peer", peer.vv, BEHIND)
    work.tick()
    marker = work._marker
    assert isinstance(marker, Marker)
    assert marker.actors == (77, before, mine.actor)
    to_the_end(work, mine, peer)
    assert value(mine, b"k") == b"unsent"
    assert value(mine, b"z") == b"under the new one"


def test_writes_of_an_actor_that_no_roster_names_are_exported() -> None:
    mine, peer = behind()
    reseeding(mine)
    mine.flush()
    mine.renew_actor(Random(5).randbytes)
    work = reseeding(mine)
    work.tick()
    mine.flush()
    work.trigger("peer", peer.vv, BEHIND)
    to_the_end(work, mine, peer)
    assert value(mine, b"k") == b"unsent"
    assert count(mine, b"n") == 7


def test_an_actor_that_cannot_be_kept_yet_is_kept_later(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, told = open_store(), list[str]()

    def full(*_: object) -> None:
        raise Full("no room")

    with monkeypatch.context() as patch:
        patch.setattr(mine, "put", full)
        work = reseeding(mine, told=told)
    assert told == ["the actor is kept later: no room"]
    work.tick()
    assert mine.get(KIND_META, module.ACTORS) is not None


@pytest.mark.parametrize("linked", [True, False])
def test_what_the_neighbour_held_and_nobody_holds_any_more_is_not_waited_for(linked: bool) -> None:
    """It had to give up its own rows meanwhile, or left for good."""
    mine, peer = behind()
    roster = Roster()
    work = reseeding(mine, roster=roster)
    work.trigger("peer", {**peer.vv, 99: 5}, BEHIND)
    while work.stage != "join":
        work.tick()
    take_all(work, mine, peer)
    work._replica._near.vv.update(mine.vv)
    roster.nodes["peer"] = Member("peer", peer.actor, (), {}, 0)
    work.tick()
    assert work.stage == "join", "it may come back with what it held"
    if not linked:
        del roster.nodes["peer"]
        work.tick()
        assert work.stage == "join", "nobody is there to say"
    name = "peer" if linked else "other"
    greeting = Greeting(
        versions=(1,), cluster="c", node=name, store_id=bytes(16), actor=55, vv={**peer.vv, 7: 1}
    )
    work._replica.link_up(name, greeting, NOW)
    work.tick()
    assert work.stage == "join", "something is still to come"
    mine.accept_rows((), {7: 1})
    to_the_end(work, mine, peer)
    assert value(mine, b"k") == b"unsent"


def test_what_cannot_be_written_again_is_named_and_the_rest_goes_on() -> None:
    mine, peer = behind()
    told: list[str] = []
    work = reseeding(mine, told=told)
    work.trigger("peer", peer.vv, BEHIND)
    while work.stage != "join":
        work.tick()
    take_all(work, mine, peer)
    read = mine.key_rows
    mine.keys[b"n"].type = TYPE_REGISTER
    assert TYPE_COUNTER != TYPE_REGISTER

    def key_rows(key: bytes) -> object:
        if key == b"k":
            raise CorruptData("damaged")
        return read(key)

    mine.key_rows = key_rows  # type: ignore[method-assign,assignment]
    to_the_end(work, mine, peer)
    assert "writes to b'k' cannot be written again: damaged" in told
    assert "writes to b'n' are of another type than its rows now" in told


def test_a_removal_that_only_this_node_knew_of_comes_back_and_its_own_report_does_not() -> None:
    """Rows of the cluster's own keys are registers that nobody deletes: none was collected."""
    mine, peer = behind()
    for key, delta in (
        (removal_key(7), removal_delta({}, "gone", stamp := mine.stamp(NOW))),
        (member_key("x"), member_delta({}, Member("x", 9, (), {}, 0), stamp)),
    ):
        mine.commit(stamp, [(key, TYPE_REGISTER, delta)])
        stamp = mine.stamp(NOW)
    mine.flush()
    held = dict(mine.key_rows(removal_key(7)).rows)
    work = reseeding(mine)
    work.trigger("peer", peer.vv, {5: stamp[0]})
    to_the_end(work, mine, peer)
    assert mine.key_rows(removal_key(7)).rows == held
    assert not mine.key_rows(member_key("x")).rows


def test_who_lacks_nothing_that_the_neighbour_has_writes_nothing() -> None:
    mine, peer = open_store(seed=1), open_store(seed=2)
    put(peer, b"p", b"theirs")
    peer.flush()
    work = reseeding(mine)
    work.trigger("peer", peer.vv, BEHIND)
    to_the_end(work, mine, peer)
    assert value(mine, b"p") == b"theirs"
    assert mine.actor not in mine.vv


def test_what_is_said_to_be_written_again_already_is_not_said_twice() -> None:
    """Another node that held the same has reseeded meanwhile, and held more."""
    mine, peer = behind()
    before, stamp = mine.actor, peer.stamp(NOW)
    upto = mine.vv[before] + 1
    peer.commit(stamp, [(rewritten_key(before), TYPE_REGISTER, rewritten_delta({}, upto, stamp))])
    peer.flush()
    work = reseeding(mine)
    work.trigger("peer", {before: peer.vv[before]}, BEHIND)
    to_the_end(work, mine, peer)
    assert value(mine, b"k") == b"unsent"
    roster = Roster()
    assert roster.load(rewritten_key(before), mine.key_rows(rewritten_key(before)).rows)
    assert roster.rewritten == {before: upto}


def test_what_somebody_wrote_later_is_not_written_over() -> None:
    mine, peer = behind()
    stamp: Stamp = (mine.vv[mine.actor] + (1 << 30), peer.actor)
    delta = register.put(peer.key_rows(b"k").rows, b"later", stamp)
    record: Record = peer.commit(stamp, [(b"k", TYPE_REGISTER, delta)])
    peer.flush()
    assert record.hlc == stamp[0]
    work = reseeding(mine)
    work.trigger("peer", {a: h for a, h in peer.vv.items() if a != peer.actor}, BEHIND)
    to_the_end(work, mine, peer)
    assert value(mine, b"k") == b"later"


def test_one_that_joins_again_takes_nothing_from_who_is_behind_as_well() -> None:
    """c reseeds because of a; b, between others, is behind what a has collected too."""
    cluster = Cluster("a", "c", "b")
    cluster.until(lambda: all(len(cluster.entered(name)) == 3 for name in "abc"))
    cluster.put("a", b"k", b"v")
    cluster.until(cluster.same)
    cluster.cut(("a", "c"))
    cluster.wait(2_000)
    for name in "bc":
        cluster["a"].membership.remove(name)
    cluster.put("a", b"k", None)
    cluster.put("c", b"own", b"unsent")
    cluster.until(lambda: cluster.shown("b", b"own") == b"unsent")
    cluster.until(lambda: not cluster["a"].rows(b"k"))
    cluster.heal()
    wiped: list[str] = []
    for name in "bc":
        trigger = cluster[name].membership.reseeding.trigger

        def triggered(*args: object, name: str = name, trigger: object = trigger) -> None:
            wiped.append(name)
            trigger(*args)  # type: ignore[operator]

        cluster[name].membership.reseeding.trigger = triggered  # type: ignore[method-assign]
    cluster.until(lambda: wiped)
    cluster.until(
        lambda: (
            not any(cluster[name].membership.reseeding.stage for name in "abc")
            and cluster.same()
            and len(cluster.entered("a")) == 3
        ),
        within_ms=30_000,
    )
    assert sorted(wiped) == ["b", "c"], "each gives its rows up once"
    for name in "abc":
        assert cluster.shown(name, b"k") is None
        assert cluster.shown(name, b"own") == b"unsent"
