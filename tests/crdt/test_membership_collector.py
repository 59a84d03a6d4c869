"""Collection at one node: pages, whom it waits for, and what puts it off."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from membership_kit import NOW, Cluster, incr, open_store, put

from roost_crdt import values
from roost_crdt.collection import Stage
from roost_crdt.errors import CorruptData, Full
from roost_crdt.frames import Greeting
from roost_crdt.limits import Limits
from roost_crdt.members import Roster
from roost_crdt.membership import collector
from roost_crdt.membership.collector import (
    Collector,
    keep_floor,
    keep_rows_vv,
    load_floor,
    load_rows_vv,
)
from roost_crdt.replica import Replica
from roost_crdt.rows import counter, register
from roost_crdt.rows.layout import TYPE_COUNTER, TYPE_REGISTER, row_key
from roost_sim.run import LIMITS
from roost_sim.store import Store


def collecting(
    store: Store,
    *,
    roster: Roster | None = None,
    neighbours: Iterable[str] = (),
    now_ms: Callable[[], int] = lambda: NOW + 3_600_000,
    limits: Limits = LIMITS,
    told: list[str] | None = None,
) -> Collector:
    replica = Replica(
        node="me",
        region="",
        cluster="c",
        store_id=store.store_id,
        actor=store.actor,
        vv=store.vv,
        limits=limits,
    )
    return Collector(
        "me",
        roster=Roster() if roster is None else roster,
        store=store,
        replica=replica,
        committed=lambda record: None,
        flush=store.flush,
        now_ms=now_ms,
        neighbours=lambda: neighbours,
        limits=limits,
        tell=([] if told is None else told).append,
    )


def delete(store: Store, key: bytes) -> None:
    stamp = store.stamp(NOW)
    delta = register.delete(store.key_rows(key).rows, stamp)
    store.commit(stamp, [(key, TYPE_REGISTER, delta)])


def dead(*keys: bytes) -> Store:
    store = open_store()
    for key in keys:
        put(store, key, b"v")
        delete(store, key)
    store.flush()
    return store


def run(work: Collector, ticks: int = 20) -> None:
    for _ in range(ticks):
        work.tick()
        work._flush()


def test_the_floor_is_kept_once_and_found_again() -> None:
    store = open_store()
    assert load_floor(store) == {}
    keep_floor(store, {1: 2})
    seq = store.seq
    keep_floor(store, {1: 2})
    assert (load_floor(store), store.seq) == ({1: 2}, seq)


def test_what_rows_may_show_is_kept_once_and_found_again() -> None:
    store = open_store()
    keep_rows_vv(store, {})
    assert (load_rows_vv(store), store.seq) == ({}, 0)
    keep_rows_vv(store, {1: 2})
    seq = store.seq
    keep_rows_vv(store, {1: 2})
    assert (load_rows_vv(store), load_floor(store), store.seq) == ({1: 2}, {}, seq)


def test_it_waits_for_the_records_of_rows_that_came_before_them() -> None:
    store = dead(b"x")
    clock = count(NOW + 3_600_000, 50)
    work = collecting(store, now_ms=lambda: next(clock))
    hlc = store.vv[store.actor]
    work._replica.rows_vv[store.actor] = hlc + 1
    run(work, 60)
    assert store.keys
    assert not load_floor(store)
    put(store, b"y", b"v")
    assert store.vv[store.actor] > hlc
    run(work, 60)
    assert list(store.keys) == [b"y"]


def test_a_round_drops_what_is_dead_and_says_first_what_it_covers() -> None:
    store = dead(b"x")
    put(store, b"y", b"v")
    store.flush()
    floor: list[dict[int, int]] = []
    drop, store.drop_rows = store.drop_rows, lambda *a: floor.append(load_floor(store)) or drop(*a)  # type: ignore[func-returns-value,method-assign,assignment]
    work = collecting(store)
    run(work)
    assert (work.dropped, sorted(store.keys)) == (1, [b"y"])
    assert floor == [dict(work._replica.gc_floor)] == [store.vv]


def test_scan_and_drops_go_by_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "_PAGE_BYTES", 40)
    monkeypatch.setattr(collector, "_DROP_KEYS", 2)
    keys = [b"k%d" % at for at in range(7)]
    store = dead(*keys)
    work = collecting(store)
    ticks = 0
    while store.keys:
        work.tick()
        store.flush()
        ticks += 1
        assert ticks < 50
    assert ticks > 7
    assert work.dropped == 7


def test_a_round_takes_no_more_than_its_bound_and_the_next_goes_on() -> None:
    store = dead(*[b"k%d" % at for at in range(5)])
    work = collecting(store, limits=replace(LIMITS, gc_rows_max=2))
    work.tick()
    assert work.collection.count == 2
    run(work, 40)
    assert not store.keys


def test_it_waits_for_a_neighbour_that_it_never_met() -> None:
    """Such a one may hold what is older than what is deleted here."""
    store, roster = dead(b"x"), Roster()
    names = ["other"]
    work = collecting(store, roster=roster, neighbours=names)
    run(work)
    assert store.keys
    names.clear()
    run(work)
    assert not store.keys


def test_a_key_deleted_before_a_configured_neighbour_first_came_stays_deleted() -> None:
    cluster = Cluster("a", "c")
    cluster.add("b")
    cluster.put("b", b"k", b"older")
    cluster.cut(("a", "b"))
    cluster.neighbours("a", "b")
    cluster.wait(20)
    cluster.put("a", b"k", b"newer")
    cluster.put("a", b"k", None)
    cluster.until(lambda: cluster.entered("a") == cluster.entered("c") == {"a", "c"})
    cluster.wait(5_000)
    cluster.heal()
    cluster.until(lambda: cluster.same() and cluster["b"].replica.peers)
    assert cluster.shown("a", b"k") is cluster.shown("b", b"k") is None
    cluster.until(lambda: not cluster["a"].rows(b"k") and not cluster["b"].rows(b"k"))


@pytest.mark.parametrize("name", ["takes_rows", "gives_rows"])
def test_it_waits_while_rows_are_under_way(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = dead(b"x")
    work = collecting(store)
    with monkeypatch.context() as patch:
        patch.setattr(Replica, name, property(lambda self: True))
        run(work)
        assert store.keys
    run(work)
    assert not store.keys


def test_it_waits_for_who_has_just_come_and_is_not_entered_yet() -> None:
    store = dead(b"x")
    work = collecting(store)
    greeting = Greeting(versions=(1,), cluster="c", node="new", actor=9, store_id=bytes(16))
    work._replica.link_up("new", greeting, NOW)
    run(work)
    assert store.keys
    work._replica.link_down("new", NOW)
    run(work)
    assert not store.keys


def test_a_damaged_key_is_left_alone() -> None:
    store = dead(b"bad", b"good")
    read = store.key_rows

    def key_rows(key: bytes) -> Any:
        if key == b"bad":
            raise CorruptData("damaged")
        return read(key)

    store.key_rows = key_rows  # type: ignore[method-assign]
    run(collecting(store))
    assert list(store.keys) == [b"bad"]


@pytest.mark.parametrize("refuses", ["put", "drop_rows"])
def test_a_refused_write_puts_it_off(refuses: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store, told = dead(b"x"), list[str]()
    clock = count(NOW + 3_600_000, 50)
    work = collecting(store, told=told, now_ms=lambda: next(clock))

    def full(*_: object) -> None:
        raise Full("no room")

    with monkeypatch.context() as patch:
        patch.setattr(store, refuses, full)
        run(work)
        assert store.keys
        assert "collection goes on later: no room" in told
    run(work, 40)
    assert not store.keys


def test_what_an_expiry_hides_is_ended_by_the_node_that_set_it() -> None:
    store = open_store()
    incr(store, b"c", 5)
    stamp = store.stamp(NOW)
    delta = counter.expire(store.key_rows(b"c").rows, stamp, NOW + 10)
    store.commit(stamp, [(b"c", TYPE_COUNTER, delta)])
    store.flush()
    early = collecting(store, now_ms=lambda: NOW + 20)
    run(early)
    assert values.counter_value(store.key_rows(b"c").rows, NOW) == 5, "a clock may still show it"
    clock = count(NOW + 3_600_000, 50)
    run(collecting(store, now_ms=lambda: next(clock)), 60)
    assert b"c" not in store.keys


def test_a_row_that_changed_meanwhile_stays() -> None:
    store = dead(b"x")
    work = collecting(store)
    while work.collection.stage is not Stage.DROP:
        work.tick()
        store.flush()
    put(store, b"x", b"again")
    store.flush()
    run(work)
    assert row_key(b"x", b"\x02") in {op.row_key for op in store.scan_rows(b"", 1 << 20)}
    assert work.dropped == 0


def test_it_waits_for_whom_a_member_has_still_to_meet() -> None:
    """Behind ap there is one whom nobody here has heard of, and who wrote before the deletion."""
    cluster = Cluster("us", "ap", "sa", lines=False)
    cluster.cut(("us", "ap"))
    cluster.neighbours("us", "ap")
    cluster.neighbours("ap", "sa")
    cluster.put("us", b"k", b"old")
    cluster.wait(50)
    cluster.put("sa", b"k", b"newer")
    cluster.put("sa", b"k", None)
    cluster.wait(8_000)
    assert cluster.entered("sa") == {"ap", "sa"}, "nobody here has ever heard of us"
    assert cluster["sa"].membership.collector.dropped == 0
    cluster.heal()
    cluster.until(cluster.same)
    assert [cluster.shown(name, b"k") for name in ("us", "ap", "sa")] == [None, None, None]
    cluster.until(lambda: cluster["sa"].membership.collector.dropped)
