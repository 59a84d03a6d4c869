"""A node that went back in time unnoticed and wrote on: nothing of either history is lost."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest
from membership_kit import NOW, Cluster, count, open_store, put, value
from membership_kit import incr as incr_store

from roost_crdt import values
from roost_crdt.errors import CorruptData, Full
from roost_crdt.logformat import KIND_META
from roost_crdt.members import Member, member_delta, member_key
from roost_crdt.membership import forking
from roost_crdt.record import decode_record
from roost_crdt.rows import counter, encode_row, rate, register
from roost_crdt.rows import map as map_rows
from roost_crdt.rows import set as set_rows
from roost_crdt.rows.layout import (
    TYPE_COUNTER,
    TYPE_MAP,
    TYPE_RATE,
    TYPE_REGISTER,
    TYPE_SET,
    VALUE,
    Delta,
    Rows,
    actor_of,
)
from roost_sim.disk import Disk
from roost_sim.node import Node
from roost_sim.store import Store

HOUR_MS = 3_600_000


def write(node: Node, key: bytes, type_code: int, delta: Callable[..., Delta]) -> None:
    """`delta` is called with rows, stamp and time."""
    stamp, now_ms = node.store.stamp(node.wall_ms()), node.wall_ms()
    made = delta(node.rows(key), stamp, now_ms)
    if made:
        node.write(key, type_code, made, stamp)


def incr(node: Node, by: int, key: bytes = b"c") -> None:
    write(node, key, TYPE_COUNTER, lambda rows, stamp, now: counter.add(rows, by, stamp, now))


def reset(node: Node, key: bytes = b"c") -> None:
    write(node, key, TYPE_COUNTER, lambda rows, stamp, now: counter.delete(rows, stamp, now))


def add(node: Node, element: bytes) -> None:
    write(node, b"s", TYPE_SET, lambda rows, stamp, now: set_rows.add(rows, [element], stamp, now))


def remove(node: Node, element: bytes) -> None:
    write(node, b"s", TYPE_SET, lambda rows, stamp, now: set_rows.remove(rows, [element], now))


def clear(node: Node) -> None:
    vv = dict(node.store.vv)
    write(node, b"s", TYPE_SET, lambda rows, stamp, now: set_rows.delete(rows, vv, stamp))


def field(node: Node, by: int) -> None:
    write(node, b"m", TYPE_MAP, lambda rows, stamp, now: map_rows.add(rows, b"f", by, stamp, now))


def hit(node: Node, by: int) -> None:
    write(node, b"h", TYPE_RATE, lambda rows, stamp, now: rate.add(rows, by, stamp, now, HOUR_MS))


class Rollback:
    """eu - us - ap; eu goes back to an old copy that looks untouched, and writes on alone."""

    def __init__(self) -> None:
        self.cluster = Cluster("eu", "us", "ap")
        self.meet()
        self.eu = self.cluster["eu"]

    def meet(self) -> None:
        self.cluster.until(self.cluster.same)
        self.cluster.wait(300)

    def go_back(self, theirs: Callable[[Node], None]) -> None:
        """What `theirs` does is known to the others, and eu has forgotten it."""
        self.cluster.until(self.cluster.same)
        self.eu.flush()
        self.eu.store.apply()
        image, actor = self.eu.disk.image(), self.eu.store.actor
        theirs(self.eu)
        self.meet()
        self.cluster.cut(("eu", "us"))
        self.eu.crash()
        self.eu.disk.restore(image)
        self.eu.excused_rollbacks += 1
        self.cluster.wait(2_000)
        self.cluster.run.start("eu")
        assert self.eu.store.actor == actor, "nothing tells it that it went back"

    def heal(self) -> None:
        before = self.eu.store.actor
        self.eu.flush()
        self.cluster.heal()
        self.cluster.until(lambda: self.eu.links.linked("us") and self.eu.store.actor != before)
        self.meet()
        self.cluster.wait(1_000)
        self.meet()

    def shown(self, read: Callable[[Rows, int], object], key: bytes) -> set[str]:
        nodes = self.cluster.run.nodes.values()
        return {str(read(node.rows(key), node.wall_ms())) for node in nodes}

    @property
    def count(self) -> set[str]:
        return self.shown(values.counter_value, b"c")

    @property
    def members(self) -> set[str]:
        return self.shown(values.set_members, b"s")


@pytest.mark.parametrize("mine", [4, 1])
def test_what_both_histories_counted_is_counted_once_each(mine: int) -> None:
    run = Rollback()
    incr(run.eu, 100)
    run.go_back(lambda eu: incr(eu, 2))
    incr(run.eu, mine)
    run.heal()
    assert run.count == {str(102 + mine)}


def test_so_are_fields_of_a_map_and_rates() -> None:
    run = Rollback()
    field(run.eu, 100)
    hit(run.eu, 100)

    def theirs(eu: Node) -> None:
        field(eu, 2)
        hit(eu, 2)

    run.go_back(theirs)
    field(run.eu, 4)
    hit(run.eu, 4)
    run.heal()
    assert run.shown(lambda rows, now: values.map_field(rows, b"f", now), b"m") == {"106"}
    assert run.shown(lambda rows, now: values.rate_estimate(rows, now, HOUR_MS), b"h") == {"106"}


def test_a_row_that_only_one_history_has() -> None:
    run = Rollback()
    run.go_back(lambda eu: incr(eu, 2))
    incr(run.eu, 4, b"d")
    run.heal()
    assert run.count == {"2"}
    assert run.shown(values.counter_value, b"d") == {"4"}


@pytest.mark.parametrize(
    ("theirs", "mine", "left"),
    [((2, "reset"), (4,), "4"), ((2,), (4, "reset"), "2"), ((2, "reset"), (4, "reset"), "None")],
)
def test_a_reset_takes_what_its_own_history_had(
    theirs: tuple[object, ...], mine: tuple[object, ...], left: str
) -> None:
    def play(eu: Node, steps: tuple[object, ...]) -> None:
        for step in steps:
            reset(eu) if step == "reset" else incr(eu, step)  # type: ignore[arg-type]

    run = Rollback()
    incr(run.eu, 100)
    run.go_back(lambda eu: play(eu, theirs))
    play(run.eu, mine)
    run.heal()
    assert run.count == {left}


def test_what_one_history_added_the_other_cannot_have_removed() -> None:
    run = Rollback()

    def theirs(eu: Node) -> None:
        for element in (b"ant", b"bee", b"cat"):
            add(eu, element)
        remove(eu, b"cat")

    run.go_back(theirs)
    for element in (b"ant", b"cat", b"dog"):
        add(run.eu, element)
    remove(run.eu, b"ant")
    run.heal()
    assert run.members == {str([b"ant", b"bee", b"cat", b"dog"])}


def test_nor_cleared() -> None:
    run = Rollback()
    run.go_back(lambda eu: add(eu, b"ant"))
    add(run.eu, b"bee")
    clear(run.eu)
    add(run.eu, b"cat")
    run.heal()
    assert run.members == {str([b"ant", b"cat"])}


def test_a_restart_goes_on_and_does_nothing_twice() -> None:
    run = Rollback()
    incr(run.eu, 100)
    run.go_back(lambda eu: incr(eu, 2))
    incr(run.eu, 4)
    run.heal()
    for name in ("us", "eu"):
        run.cluster[name].crash()
        run.cluster.run.start(name)
        run.meet()
    assert run.count == {"106"}
    incr(run.eu, 1_000)
    run.meet()
    assert run.count == {"1106"}


def test_twice_back_in_time() -> None:
    run = Rollback()
    incr(run.eu, 100)
    run.go_back(lambda eu: incr(eu, 2))
    incr(run.eu, 4)
    run.heal()
    run.go_back(lambda eu: incr(eu, 8))
    incr(run.eu, 16)
    run.heal()
    assert run.count == {"130"}


def test_forks_have_a_bound_and_survive_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forking, "FORKS_MAX", 2)
    run = Rollback()
    for _ in range(3):
        run.go_back(lambda eu: incr(eu, 1))
        incr(run.eu, 1)
        run.heal()
    kept = run.eu.store.scan(KIND_META, forking.FORKS)
    assert len(kept) == len(run.eu.store.scan(KIND_META, forking.DONE)) == 2
    assert run.count == {"6"}


class Alone:
    """A store that went back in time, and what it had written before that; no neighbours."""

    def __init__(
        self,
        theirs: Callable[[Store], None],
        mine: Callable[[Store], None],
        last: Callable[[Store], None] = lambda store: None,
    ) -> None:
        """`last` is what both histories have after 100 of the counter."""
        store = open_store()
        incr_store(store, b"c", 100)
        last(store)
        store.flush()
        image, self.actor, self.since = store.disk.image(), store.actor, store.vv[store.actor]
        theirs(store)
        store.flush()
        raws = store.records_after(self.actor, self.since, 1 << 20)
        self.theirs = [decode_record(raw, body_bytes_max=len(raw)) for raw in raws or ()]
        disk = Disk()
        disk.restore(image)
        self.store = open_store(disk)
        assert self.store.actor == self.actor
        self.store.clock.observe(store.vv[self.actor] + 10)
        mine(self.store)
        self.store.flush()
        self.told: list[str] = []
        self.replica = SimpleNamespace(forked=lambda parted, crossed: None, gc_floor={})
        self.forking = self.open()
        self.forking.part(self.theirs[-1].hlc)
        self.store.renew_actor(Random(3).randbytes)

    def open(self) -> forking.Forking:
        return forking.Forking(
            store=self.store,
            replica=cast(Any, self.replica),
            committed=lambda record: None,
            now_ms=lambda: NOW,
            random_bytes=Random(2).randbytes,
            tell=self.told.append,
        )

    def take(self) -> None:
        for record in self.theirs:
            self.forking.take(record)
        self.forking.tick()


def counting(by: int) -> Callable[[Store], None]:
    return lambda store: incr_store(store, b"c", by)


def test_what_was_written_again_is_known_after_a_restart() -> None:
    alone = Alone(counting(2), counting(4))
    alone.take()
    assert count(alone.store, b"c") == 106
    wrote = alone.store.vv[alone.store.actor]
    alone.forking = alone.open()
    alone.take()
    assert not alone.forking.pending
    assert alone.store.vv[alone.store.actor] == wrote, "it was made good before"


def test_a_refused_write_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = Alone(counting(2), counting(4))
    with monkeypatch.context() as patch:
        patch.setattr(Store, "commit", refuse)
        alone.take()
    assert alone.told[-1] == "another history is written again later: no room"
    assert alone.forking.pending
    alone.forking.tick()
    assert count(alone.store, b"c") == 106
    assert not alone.forking.writing


def refuse(*_: object, **__: object) -> None:
    raise Full("no room")


def test_rows_that_cannot_be_read_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = Alone(counting(2), counting(4))

    def damaged(store: Store, key: bytes) -> None:
        raise CorruptData(f"{key!r} is damaged")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "key_rows", damaged)
        alone.take()
    assert "another history of b'c' is not taken: b'c' is damaged" in alone.told
    assert count(alone.store, b"c") == 104


def test_much_is_written_in_several_records(monkeypatch: pytest.MonkeyPatch) -> None:
    def theirs(store: Store) -> None:
        for at in range(5):
            put(store, b"k%d" % at, b"v")

    monkeypatch.setattr(forking, "_PAGE_BYTES", 1)
    alone = Alone(theirs, counting(4))
    alone.take()
    alone.store.flush()
    records = alone.store.records_after(alone.store.actor, 0, 1 << 20)
    assert records is not None
    assert len(records) == 5
    assert [value(alone.store, b"k%d" % at) for at in range(5)] == [b"v"] * 5


@pytest.mark.parametrize(("looked_at", "counted"), [(2, 106), (1, 104)])
def test_a_base_that_lies_too_far_back_leaves_the_join_as_it_is(
    monkeypatch: pytest.MonkeyPatch, looked_at: int, counted: int
) -> None:
    """Without it nobody can tell what both histories added; nothing is counted twice."""
    monkeypatch.setattr(forking, "_BACK_MAX", looked_at)
    alone = Alone(counting(2), counting(4), lambda store: put(store, b"k", b"v"))
    alone.take()
    assert count(alone.store, b"c") == counted


def test_a_history_that_only_took_away_adds_nothing_again() -> None:
    def theirs(store: Store) -> None:
        stamp = store.stamp(NOW)
        delta = counter.delete(store.key_rows(b"c").rows, stamp, NOW)
        store.commit(stamp, [(b"c", TYPE_COUNTER, delta)])

    alone = Alone(theirs, counting(4))
    assert alone.forking.parted
    alone.take()
    assert count(alone.store, b"c") == 4
    (fork,) = alone.forking._forks.values()
    assert not [part for part in alone.store.key_rows(b"c").rows if actor_of(part) == fork.again]


def test_reports_of_the_other_history_are_not_written_again() -> None:
    """Members tell of themselves; what it said of itself is out of date."""
    key = member_key("me")

    def theirs(store: Store) -> None:
        counting(2)(store)
        stamp = store.stamp(NOW)
        delta = member_delta({}, Member("me", store.actor, (), {}, 0), stamp)
        store.commit(stamp, [(key, TYPE_REGISTER, delta)])

    alone = Alone(theirs, counting(4))
    alone.take()
    assert count(alone.store, b"c") == 106
    assert not alone.store.key_rows(key).rows


def test_who_never_went_back_has_nothing_to_make_good() -> None:
    alone = Alone(counting(2), counting(4))
    other = open_store(seed=7)
    alone.store = other
    idle = alone.open()
    assert not idle.parted
    for record in alone.theirs:
        idle.take(record)
    idle.tick()
    assert not idle.pending
    assert not other.keys


def test_what_waits_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    def theirs(store: Store) -> None:
        incr_store(store, b"c", 2)
        incr_store(store, b"c", 8)

    monkeypatch.setattr(forking, "PENDING_MAX", 1)
    alone = Alone(theirs, counting(4))
    alone.take()
    assert count(alone.store, b"c") == 106
    alone.take()
    assert count(alone.store, b"c") == 114, "what did not fit comes when it is asked for again"


def test_one_stamp_with_two_bodies() -> None:
    """Two writers in one millisecond: all nodes keep the same of the two."""
    stamps: list[tuple[int, int]] = []

    def write_at(store: Store, name: bytes, stamp: tuple[int, int]) -> None:
        store.commit(stamp, [(b"k", TYPE_REGISTER, register.put({}, name, stamp))])

    def theirs(store: Store) -> None:
        for name in (b"a", b"b"):
            stamps.append(store.stamp(NOW + 5))
            write_at(store, name, stamps[-1])

    def mine(store: Store) -> None:
        write_at(store, b"z", store.stamp(NOW + 60_000))

    alone = Alone(theirs, mine)
    held = alone.store.key_rows(b"k")
    held.rows = register.put({}, b"c", stamps[1])
    alone.forking.take(alone.theirs[1])
    again = alone.theirs[1]._replace(hlc=alone.theirs[1].hlc + 1)
    (op,) = again.ops
    other = encode_row(TYPE_REGISTER, VALUE, register.put({}, b"d", stamps[1])[VALUE])
    alone.forking.take(again._replace(ops=(op._replace(body=other),)))
    alone.forking.tick()
    assert value(alone.store, b"k") == b"d"


def test_crossings_have_a_bound_and_survive_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forking, "CROSSED_MAX", 2)
    monkeypatch.setattr(forking, "CROSSED_EACH", 2)
    alone = Alone(counting(2), counting(4))
    for actor, hlc in ((5, 1), (5, 1), (6, 2), (6, 3), (6, 4), (7, 5)):
        alone.forking.cross(actor, hlc)
    assert alone.open()._crossed == alone.forking._crossed == {6: (3, 4), 7: (5,)}


def test_a_member_that_is_no_neighbour_reports_another_history() -> None:
    """eu forgets what ap still holds; us, between them, has lost it as well."""
    run = Rollback()
    run.go_back(lambda eu: incr(eu, 2))
    actor = run.eu.store.actor
    found = run.eu.store.vv[actor] + 1
    incr(run.eu, 4)
    run.eu.flush()
    ap = run.cluster["ap"].membership.members.roster.nodes["ap"]
    nodes = run.eu.membership.members.roster.nodes
    nodes["ap"] = ap._replace(vv={**ap.vv, actor: found})
    run.eu.membership._agreed = True
    run.eu.membership.tick()
    assert run.eu.store.actor != actor
    assert run.eu.rollbacks == 1


def test_a_log_that_is_too_short_is_said() -> None:
    told: list[str] = []
    run = Rollback()
    kept = forking.Forking(
        store=open_store(),
        replica=run.eu.replica,
        committed=lambda record: None,
        now_ms=run.eu.wall_ms,
        random_bytes=Random(1).randbytes,
        tell=told.append,
    )
    store = kept._store
    put(store, b"k", b"1")
    hlc = store.vv[store.actor]
    put(store, b"k", b"2")
    store.flush()
    kept.part(store.vv[store.actor])
    assert not told, "nothing was written since"
    store._log._records.clear()  # type: ignore[attr-defined]
    kept.part(hlc)
    assert "the log is too short" in told[0]
