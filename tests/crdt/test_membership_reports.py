"""Reports, entries and removals: what a node adds to the roster, and when."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from membership_kit import NOW, Cluster, open_store, put

from roost_crdt.errors import BadRequest, Full
from roost_crdt.frames import Greeting
from roost_crdt.limits import Limits
from roost_crdt.logformat import KIND_META
from roost_crdt.members import Member, covers
from roost_crdt.membership import reports
from roost_crdt.membership.reports import Members
from roost_crdt.membership.reseeding import ACTORS
from roost_crdt.replica import Replica
from roost_sim.run import LIMITS
from roost_sim.store import Store


class Clock:
    def __init__(self) -> None:
        self.ms = NOW

    def __call__(self) -> int:
        return self.ms


def members(
    store: Store,
    clock: Clock,
    *,
    limits: Limits = LIMITS,
    told: list[str] | None = None,
    neighbours: tuple[str, ...] = (),
) -> tuple[Members, list[str]]:
    cuts: list[str] = []
    replica = Replica(
        node="me", region="", cluster="c", store_id=store.store_id, actor=store.actor, vv=store.vv
    )
    made = Members(
        "me",
        store=store,
        replica=replica,
        committed=lambda record: None,
        now_ms=clock,
        boot_ms=clock,
        neighbours=lambda: neighbours,
        limits=limits,
        cut=lambda node, why: cuts.append(f"{node}: {why}"),
        tell=([] if told is None else told).append,
    )
    return made, cuts


def tick(made: Members, clock: Clock, ms: int = 1_000) -> None:
    clock.ms += ms
    made.tick()
    made._store.flush()  # type: ignore[attr-defined]


def test_a_report_is_written_when_there_is_something_to_tell() -> None:
    store, clock = open_store(), Clock()
    made, _ = members(store, clock)
    tick(made, clock)
    first = made.roster.nodes["me"]
    tick(made, clock)
    assert made.roster.nodes["me"] == first, "its own report is no news"
    put(store, b"k", b"v")
    tick(made, clock)
    assert covers(made.roster.nodes["me"].vv, first.vv)
    assert made.roster.nodes["me"].stamp > first.stamp
    tick(made, clock, 999)
    tick(made, clock, LIMITS.report_idle_ms)
    assert made.roster.nodes["me"].told_ms >= clock.ms - 1, "a sign of life"


def test_who_has_still_to_meet_a_neighbour_says_so_by_holding_nothing() -> None:
    store, clock = open_store(), Clock()
    made, _ = members(store, clock, neighbours=("eu", "us"))
    put(store, b"k", b"v")
    wrote = store.vv[store.actor]
    for name in ("eu", "us"):
        tick(made, clock)
        report = made.roster.nodes["me"]
        assert (report.vv, report.wrote) == ({}, wrote)
        tick(made, clock)
        assert made.roster.nodes["me"] == report, "that is no news"
        made.roster.nodes[name] = Member(name, 7, (), {}, 0)
    tick(made, clock)
    assert made.roster.nodes["me"].vv[store.actor] >= wrote
    made._neighbours = lambda: ("eu", "us", "new")  # type: ignore[attr-defined]
    tick(made, clock)
    assert made.roster.nodes["me"].vv == {}, "what it said before holds no longer"


def test_not_more_often_than_each_report_ms() -> None:
    store, clock = open_store(), Clock()
    made, _ = members(store, clock, limits=replace(LIMITS, report_ms=10_000))
    tick(made, clock)
    first = made.roster.nodes["me"]
    put(store, b"k", b"v")
    tick(made, clock, 5_000)
    assert made.roster.nodes["me"] == first
    clock.ms -= 100_000
    tick(made, clock, 0)
    assert made.roster.nodes["me"] != first, "a clock set back must not silence it"


def test_a_new_actor_retires_the_old_one() -> None:
    store, clock = open_store(), Clock()
    made, _ = members(store, clock)
    tick(made, clock)
    before = store.actor
    store.renew_actor(lambda count: b"\x07" * count)
    tick(made, clock)
    assert made.roster.nodes["me"].retired == (before,)
    assert made.roster.nodes["me"].actor == store.actor


def test_whoever_is_met_is_entered_once_and_again_under_a_new_actor() -> None:
    store, clock = open_store(), Clock()
    made, _ = members(store, clock)
    for actor, retired in ((9, ()), (9, ()), (8, (9,)), (9, (9,))):
        greeting = Greeting(versions=(1,), cluster="c", node="x", actor=actor)
        made._replica.link_up("x", greeting, clock.ms)
        tick(made, clock)
        entry = made.roster.nodes["x"]
        assert (entry.actor, entry.retired) == (8 if retired else 9, retired)
        made._replica.link_down("x", clock.ms)


def test_removal_is_told_to_who_is_linked_and_only_members_can_go() -> None:
    store, clock = open_store(), Clock()
    made, cuts = members(store, clock)
    with pytest.raises(BadRequest, match="'x' is no member; members are none"):
        made.remove("x")
    made._replica.link_up("x", Greeting(versions=(1,), cluster="c", node="x", actor=9), clock.ms)
    tick(made, clock)
    with pytest.raises(BadRequest, match="me is this node"):
        made.remove("me")
    assert made.remove("x") == 9
    assert made._replica.removed == {9}
    assert cuts == ["x: x was removed from the members"]
    assert [entry["node"] for entry in made.listed()] == ["me"]


def test_the_silent_are_removed_once_everybody_had_time_to_report() -> None:
    store, clock, told = open_store(), Clock(), list[str]()
    limits = replace(LIMITS, member_silent_ms=10_000)
    made, _ = members(store, clock, limits=limits, told=told)
    made._write_member(Member("gone", 9, (), {}, 0))
    tick(made, clock, 20_000)
    assert set(made.roster.members) == {"me", "gone"}
    tick(made, clock, reports.OBSERVED_MS)
    assert set(made.roster.members) == {"me"}
    assert told == ["gone has been silent for 3620000 ms: removed"]


def test_a_refused_write_is_made_later(monkeypatch: pytest.MonkeyPatch) -> None:
    store, clock, told = open_store(), Clock(), list[str]()
    made, _ = members(store, clock, told=told)

    def full(*_: object) -> None:
        raise Full("no room")

    with monkeypatch.context() as patch:
        patch.setattr(store, "commit", full)
        tick(made, clock)
    assert told == ["the roster is written later: no room"]
    assert [entry["reported_ms"] for entry in made.listed()] == [None]
    tick(made, clock)
    assert [entry["reported_ms"] for entry in made.listed()] == [0]


def test_the_roster_is_read_from_the_store_by_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "_SCAN_BYTES", 1)
    store, clock = open_store(), Clock()
    put(store, b"plain", b"v")
    made, _ = members(store, clock)
    for at in range(3):
        made._write_member(Member(f"x{at}", at + 5, (), {}, 0))
    store.flush()
    again, _ = members(store, clock)
    assert again.roster.nodes == made.roster.nodes
    again.changed([b"plain"])
    put(store, b"\x01mx9", b"no entry")
    again.changed([b"\x01mx9"])
    assert "x9" not in again.roster.nodes


def test_reports_do_not_chase_each_other() -> None:
    cluster = Cluster("a", "b", "c", limits=replace(LIMITS, report_idle_ms=1 << 30))
    cluster.until(lambda: all(len(cluster.entered(name)) == 3 for name in "abc"))
    cluster.wait(5_000)
    written = sum(cluster["a"].store.vv.values())
    cluster.wait(10_000)
    assert sum(cluster["a"].store.vv.values()) == written


def test_who_wrote_is_entered_also_after_its_link_has_ended() -> None:
    """Nobody else may ever have met it, and collection has to wait for it everywhere."""
    store, clock = open_store(), Clock()
    made, _ = members(store, clock)
    for node, actor in (("x", 77), ("idle", 78)):
        greeting = Greeting(versions=(1,), cluster="c", node=node, actor=actor, vv={})
        made._replica.link_up(node, greeting, NOW)
        made._replica.link_down(node, NOW)
    store.accept_rows((), {77: 5})
    tick(made, clock)
    assert made.roster.nodes["x"].actor == 77
    assert "idle" not in made.roster.nodes, "it has written nothing that anybody holds"
    made._replica.nodes.update({76: "x"})  # type: ignore[attr-defined]
    store.accept_rows((), {76: 5})
    tick(made, clock, 2_000)
    assert made.roster.nodes["x"].actor == 77, "of its former actors it tells itself"


def test_all_actors_of_the_store_are_named() -> None:
    store, clock = open_store(), Clock()
    store.put(KIND_META, {ACTORS: msgspec.msgpack.encode((5, 6, store.actor))})
    made, _ = members(store, clock)
    tick(made, clock)
    assert made.roster.nodes["me"].retired == (5, 6)
