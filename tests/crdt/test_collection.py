"""Collection: what is dropped never comes back, whatever is still in flight.

A small model: nodes that write, pass on each other's records in any order that respects origins,
report, and collect with no grace at all, so that only the rule itself protects them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roost_crdt import document
from roost_crdt.collection import Collection, Stage, dead_rows, end_life, head_actor
from roost_crdt.members import (
    Member,
    Roster,
    VersionVector,
    covers,
    join,
    member_delta,
    member_key,
    removal_delta,
    removal_key,
)
from roost_crdt.rows import Delta, Rows, counter, doc, join_delta, rate, register
from roost_crdt.rows import map as map_rows
from roost_crdt.rows import set as set_rows
from roost_crdt.rows.layout import (
    HEAD,
    RESERVED,
    TYPE_COUNTER,
    TYPE_DOC,
    TYPE_MAP,
    TYPE_RATE,
    TYPE_REGISTER,
    TYPE_SET,
    VALUE,
)
from roost_crdt.testing.edits import edit

NOW_MS = 1_000
KEYS = (b"k", b"l")


class WithoutJoin(Collection):
    """The rule as one would first write it: everybody holds the tombstone, so it may go."""

    def holds_join(self, vv: object) -> bool:
        return True


class WithoutReports(Collection):
    """Drops what it holds itself."""

    def _reports(self) -> list[Member]:
        return []


class WithoutRowsVv(Collection):
    """Takes for granted that the own vector covers whatever rows show."""

    def begin(self, vv: VersionVector, rows_vv: VersionVector) -> bool:
        return super().begin(vv, {})


@dataclass
class Node:
    name: str
    actor: int
    collection: Collection
    roster: Roster
    rows: dict[bytes, Rows] = field(default_factory=dict)
    vv: dict[int, int] = field(default_factory=dict)
    rows_vv: dict[int, int] = field(default_factory=dict)
    """What repairs came from."""
    clock: int = 0
    wrote: int = 0
    floor: dict[int, int] = field(default_factory=dict)
    dropped: int = 0


class Model:
    repairs = 0.005
    """How many of the steps are repairs."""

    def __init__(self, seed: int, rule: type[Collection], names: str = "abc") -> None:
        self.random = Random(seed)
        self.log: dict[int, list[tuple[int, bytes, Delta]]] = {}
        self.newest: dict[bytes, tuple[tuple[int, int], bytes | str | None]] = {}
        self.nodes: list[Node] = []
        for at, name in enumerate(names):
            roster = Roster()
            self.nodes.append(Node(name, at + 1, rule(name, roster, 100), roster))
        for node in self.nodes:
            self.report(node)
        self.settle()

    def write(self, node: Node, key: bytes, delta: Delta, hlc: int) -> None:
        self.log.setdefault(node.actor, []).append((hlc, key, delta))
        self.take(node, node.actor, hlc, key, delta)
        if not key.startswith(b"\x01m"):
            node.wrote = hlc

    def take(self, node: Node, actor: int, hlc: int, key: bytes, delta: Delta) -> None:
        held = node.rows.setdefault(key, {})
        held.update(join_delta(TYPE_REGISTER, held, delta))
        node.vv[actor] = hlc
        node.clock = max(node.clock, hlc)
        if key.startswith(RESERVED):
            node.roster.load(key, held)

    def tick(self, node: Node) -> int:
        return node.clock + self.random.choice((1, 1, 1, 7))

    def client(self, node: Node) -> None:
        key = self.random.choice(KEYS)
        hlc = self.tick(node)
        stamp = (hlc, node.actor)
        held = node.rows.get(key, {})
        if self.random.random() < 0.5:
            value = b"%d" % hlc
            delta = register.put(held, value, stamp)
        else:
            value = None
            delta = register.delete(held, stamp)
        if delta:
            self.write(node, key, delta, hlc)
            self.newest[key] = max(self.newest.get(key, ((0, 0), None)), (stamp, value))

    def report(self, node: Node) -> None:
        mine = node.roster.nodes.get(node.name)
        told = mine is not None and mine.actor == node.actor
        if mine is not None and told and covers(mine.vv, node.roster.content(node.vv)):
            return
        hlc = self.tick(node)
        member = Member(node.name, node.actor, (), dict(node.vv), node.wrote)
        key = member_key(node.name)
        self.write(node, key, member_delta(node.rows.get(key, {}), member, (hlc, node.actor)), hlc)

    def renew(self, node: Node) -> None:
        """A new actor: its report no longer follows what the old one wrote."""
        node.actor = max(self.log) + 1
        node.wrote = 0
        self.report(node)

    def repair(self, source: Node, target: Node) -> None:
        """Rows before their records: reports too may overtake what they speak of."""
        target.rows_vv = join((target.rows_vv, source.rows_vv, source.vv))
        for key, rows in source.rows.items():
            held = target.rows.setdefault(key, {})
            held.update(join_delta(TYPE_REGISTER, held, rows))
            target.clock = max(target.clock, source.clock)
            if key.startswith(RESERVED):
                target.roster.load(key, held)

    def deliver(self, source: Node, target: Node, actor: int) -> bool:
        for hlc, key, delta in self.log.get(actor, ()):
            if hlc > target.vv.get(actor, 0):
                if hlc > source.vv.get(actor, 0):
                    return False
                self.take(target, actor, hlc, key, delta)
                return True
        return False

    def collect(self, node: Node) -> None:
        work = node.collection
        if work.stage is Stage.SCAN:
            for key, rows in node.rows.items():
                work.found(key, dead_rows(TYPE_REGISTER, key, rows, NOW_MS, 0))
            work.begin(node.vv, node.rows_vv)
        elif work.step(node.vv) is Stage.DROP:
            node.floor = work.floor(node.floor)
            for key in list(work.candidates):
                rows = node.rows[key]
                for part in work.drop(key, dead_rows(TYPE_REGISTER, key, rows, NOW_MS, 0)):
                    del rows[part]
                    node.dropped += 1
            work.end()

    def settle(self) -> None:
        while any(
            self.deliver(a, b, actor)
            for a in self.nodes
            for b in self.nodes
            for actor in list(self.log)
        ):
            pass

    def run(self, steps: int) -> None:
        slow: set[tuple[str, int]] = set()
        for at in range(steps):
            node, other = self.random.sample(self.nodes, 2)
            if at % 80 == 0:
                slow = {(node.name, other.actor)}
            event = self.random.random()
            if event < 0.03:
                self.client(node)
            elif event < 0.15:
                self.report(node)
            elif event < 0.35:
                self.collect(node)
            elif event < 0.35 + self.repairs:
                self.repair(node, other)
            elif event < 0.365 + self.repairs:
                self.renew(node)
            else:
                lacks = [a for a, hlc in node.vv.items() if hlc > other.vv.get(a, 0)]
                lacks = [a for a in lacks if (other.name, a) not in slow]
                if lacks:
                    self.deliver(node, other, self.random.choice(lacks))

    def wrong(self) -> list[str]:
        """What does not show the newest write, once everything has arrived."""
        self.settle()
        return [
            f"{node.name} {key!r}: {shown!r}, not {value!r}"
            for node in self.nodes
            for key, (_, value) in self.newest.items()
            if (shown := register.value(node.rows.get(key, {}), 0)) != value
        ]


def outcome(
    seed: int, rule: type[Collection], repairs: float = Model.repairs
) -> tuple[list[str], int]:
    model = Model(seed, rule)
    model.repairs = repairs
    model.run(400)
    return model.wrong(), sum(node.dropped for node in model.nodes)


@given(st.integers(0, 1 << 32))
@settings(max_examples=150, deadline=None)
def test_what_was_deleted_stays_deleted_and_what_was_written_stays(seed: int) -> None:
    wrong, _ = outcome(seed, Collection)
    assert not wrong


def test_the_rule_does_collect() -> None:
    assert sum(outcome(seed, Collection)[1] for seed in range(30)) > 20


@pytest.mark.parametrize(
    ("rule", "seed"), [(WithoutJoin, 522), (WithoutJoin, 747), (WithoutReports, 16)]
)
def test_each_wait_is_needed(rule: type[Collection], seed: int) -> None:
    """An older put that is still in flight enters as new where a wait is left out."""
    assert outcome(seed, rule)[0]
    assert not outcome(seed, Collection)[0]


def test_a_deletion_that_came_before_its_record_is_no_tombstone_of_the_round() -> None:
    """With many repairs, 1 of 20,000 runs ends wrong where a round begins before that record."""
    assert outcome(9870, WithoutRowsVv, 0.03)[0]
    assert not outcome(9870, Collection, 0.03)[0]


def test_a_round_ends_after_quiet_with_nothing_left() -> None:
    model = Model(1, Collection)
    model.run(300)
    for _ in range(12):
        model.settle()
        for node in model.nodes:
            model.report(node)
            model.collect(node)
    reports = sum(map(len, model.log.values()))
    for _ in range(12):
        model.settle()
        for node in model.nodes:
            model.report(node)
            model.collect(node)
    assert sum(map(len, model.log.values())) == reports, "reports do not chase each other"
    for node in model.nodes:
        assert not any(dead_rows(TYPE_REGISTER, k, r, NOW_MS, 0) for k, r in node.rows.items())
        assert node.floor


def roster_of(**members: tuple[int, dict[int, int]]) -> Roster:
    roster = Roster()
    for name, (actor, vv) in members.items():
        rows = member_delta({}, Member(name, actor, (), vv, 0), (1, actor))
        assert roster.load(member_key(name), rows)
    return roster


def enter(roster: Roster, name: str, actor: int, vv: dict[int, int], hlc: int) -> None:
    rows = member_delta({}, Member(name, actor, (), vv, 0), (hlc, actor))
    assert roster.load(member_key(name), rows)


def begun(roster: Roster, vv: dict[int, int]) -> Collection:
    work = Collection("a", roster, 10)
    assert work.found(b"k", {VALUE: b"hash"})
    work.begin(vv, {})
    return work


def test_a_round_waits_for_reports_then_for_their_join() -> None:
    roster = roster_of(a=(11, {}), b=(12, {11: 50}))
    work = begun(roster, {11: 60, 12: 70})
    assert work.step({11: 60, 12: 70}) is Stage.REPORTS
    assert work.waits_for() == ["b"]
    enter(roster, "b", 12, {11: 60, 12: 75}, 80)
    assert work.step({11: 60, 12: 74}) is Stage.JOIN
    assert work.waits_for() == []
    assert work.step({11: 60, 12: 75}) is Stage.DROP
    assert work.floor({11: 10, 13: 5}) == {11: 60, 12: 70, 13: 5}


def test_whoever_enters_before_the_end_is_waited_for() -> None:
    roster = roster_of(a=(11, {}), b=(12, {11: 60, 12: 75}))
    work = begun(roster, {11: 60, 12: 70})
    assert work.step({11: 60, 12: 70}) is Stage.JOIN
    enter(roster, "c", 13, {}, 74)
    assert work.step({11: 60, 12: 75}) is Stage.REPORTS
    assert work.waits_for() == ["c"]
    enter(roster, "c", 13, {11: 60, 12: 70, 13: 9}, 80)
    assert work.step({11: 60, 12: 75}) is Stage.JOIN
    assert work.step({11: 60, 12: 75, 13: 9}) is Stage.DROP


def test_a_removal_raises_what_has_to_be_reported() -> None:
    """Until a member knows of it, it goes on taking what the removed node had in flight."""
    roster = roster_of(a=(11, {}), b=(12, {11: 60}), c=(13, {}))
    work = begun(roster, {11: 60})
    assert work.step({11: 60}) is Stage.REPORTS
    assert roster.load(removal_key(13), removal_delta({}, "c", (90, 11)))
    assert work.step({11: 90}) is Stage.REPORTS
    assert work.vv0 == {11: 90}
    assert work.waits_for() == ["b"]
    enter(roster, "b", 12, {11: 90}, 95)
    assert work.step({11: 90}) is Stage.DROP


def test_a_round_with_nothing_to_drop_is_over_at_once() -> None:
    work = Collection("a", roster_of(a=(11, {})), 10)
    assert work.found(b"k", {})
    work.begin({11: 60}, {})
    assert work.step({11: 60}) is Stage.SCAN


def test_a_round_begins_once_the_records_of_all_rows_are_here() -> None:
    roster = roster_of(a=(11, {}), b=(12, {11: 60, 13: 5}))
    work = Collection("a", roster, 10)
    assert work.found(b"k", {VALUE: b"hash"})
    assert not work.begin({11: 60, 12: 70}, {12: 71})
    assert (work.stage, work.candidates, work.count) == (Stage.SCAN, {}, 0)
    assert work.found(b"k", {VALUE: b"hash"})
    assert work.begin({11: 60, 12: 71}, {12: 71})
    assert (work.stage, work.vv0) == (Stage.REPORTS, {11: 60, 12: 71})


def test_records_that_nobody_can_send_any_more_are_not_waited_for() -> None:
    roster = roster_of(a=(11, {}), b=(12, {11: 60, 13: 5}))
    assert roster.load(removal_key(13), removal_delta({}, "c", (60, 11)))
    work = Collection("a", roster, 10)
    assert work.found(b"k", {VALUE: b"hash"})
    assert not work.begin({11: 60, 13: 4}, {13: 9}), "b has one more"
    assert work.found(b"k", {VALUE: b"hash"})
    assert work.begin({11: 60, 13: 5}, {13: 9})


def test_a_lone_node_collects_and_a_bound_stops_the_scan() -> None:
    work = Collection("a", roster_of(a=(11, {})), 2)
    assert work.found(b"k", {VALUE: b"1"})
    assert not work.found(b"l", {VALUE: b"2"})
    work.begin({11: 60}, {})
    assert work.step({11: 60}) is Stage.DROP
    assert work.drop(b"k", {VALUE: b"1"}) == [VALUE]
    assert work.drop(b"l", {VALUE: b"changed"}) == []
    work.end()
    assert (work.stage, work.candidates, work.count) == (Stage.SCAN, {}, 0)


def test_only_old_dead_rows_are_found() -> None:
    ms = 1 << 16
    dead = register.delete(register.put({}, b"v", (5 * ms, 1)), (10 * ms, 1))
    assert dead_rows(TYPE_REGISTER, b"k", dead, 100, 91) == {}
    assert set(dead_rows(TYPE_REGISTER, b"k", dead, 100, 90)) == {VALUE}
    assert dead_rows(TYPE_REGISTER, RESERVED + b"m", dead, 100, 0) == {}
    live = register.put({}, b"v", (5 * ms, 1))
    assert dead_rows(TYPE_REGISTER, b"k", live, 100, 0) == {}
    windows = rate.add({}, 3, (50 * ms, 1), 50, 10)
    assert set(dead_rows(TYPE_RATE, b"k", windows, 100, 1_000)) == set(windows)


def test_a_head_stays_as_long_as_a_row_that_it_hides() -> None:
    ms = 1 << 16
    rows = counter.add({}, 3, (5 * ms, 1), 0)
    rows |= counter.add(rows, 4, (90 * ms, 2), 0)
    rows |= counter.expire(rows, (6 * ms, 1), 95)
    found = dead_rows(TYPE_COUNTER, b"k", rows, 100, 50)
    assert found == {}, "hidden is not dead"
    end = end_life(TYPE_COUNTER, rows, {}, (120 * ms, 1), 100)
    assert len(end) == 3
    assert end[HEAD] == (120 * ms, 1, 0), "the next life has no expiry"
    assert end_life(TYPE_COUNTER, {**rows, **end}, {}, (121 * ms, 1), 100) == {}
    assert end_life(TYPE_COUNTER, rows, {}, (120 * ms, 1), 90) == {}
    assert head_actor(rows) == 1
    rows |= end
    assert HEAD not in dead_rows(TYPE_COUNTER, b"k", rows, 100, 50), "it hides a younger row"
    every = dead_rows(TYPE_COUNTER, b"k", rows, 200, 50)
    assert set(every) == set(rows)
    work = Collection("a", roster_of(a=(11, {})), 10)
    work.found(b"k", {part: seen for part, seen in every.items() if part != max(rows)})
    work.begin({11: 60}, {})
    work.step({11: 60})
    assert HEAD not in work.drop(b"k", every)


def test_the_end_of_a_set_and_a_map_takes_away_what_it_observes_only() -> None:
    ms = 1 << 16
    elements = set_rows.add({}, [b"e"], (5 * ms, 1), 0)
    elements |= set_rows.expire(elements, (6 * ms, 1), 50)
    end = end_life(TYPE_SET, elements, {1: 6 * ms}, (70 * ms, 1), 60)
    later = set_rows.add(elements, [b"f"], (69 * ms, 2), 40)
    both = {**elements, **join_delta(TYPE_SET, elements, later)}
    both |= join_delta(TYPE_SET, both, end)
    assert set_rows.members(both, 60) == [b"f"]
    assert end_life(TYPE_SET, {**elements, **end}, {1: 6 * ms}, (71 * ms, 1), 60) == {}
    fields = map_rows.put({}, {b"f": b"1"}, (5 * ms, 1), 0)
    fields |= map_rows.expire(fields, (6 * ms, 1), 50)
    cleared = end_life(TYPE_MAP, fields, {}, (70 * ms, 1), 60)
    assert map_rows.fields({**fields, **cleared}, 0) == {}
    assert end_life(TYPE_MAP, {**fields, **cleared}, {}, (71 * ms, 1), 60) == {}
    assert end_life(TYPE_REGISTER, register.put({}, b"v", (1, 1), 5), {}, (9, 1), 60) == {}


def test_a_head_that_would_hide_the_next_life_goes_after_the_end_is_written() -> None:
    """Whoever drops it earlier begins a life that is hidden where the head is still held."""
    ms = 1 << 16
    elements = set_rows.add({}, [b"e"], (5 * ms, 1), 0)
    elements |= set_rows.expire(elements, (6 * ms, 1), 50)
    elements |= set_rows.delete(elements, {1: 6 * ms}, (7 * ms, 1))
    count = counter.add({}, 3, (5 * ms, 1), 0)
    count |= counter.expire(count, (6 * ms, 1), 50)
    count |= counter.delete(count, (7 * ms, 1), 40)
    fields = map_rows.put({}, {b"f": b"1"}, (5 * ms, 1), 0)
    fields |= map_rows.expire(fields, (6 * ms, 1), 50)
    fields |= map_rows.remove(fields, [b"f"], (7 * ms, 1))
    for type_code, rows in ((TYPE_SET, elements), (TYPE_COUNTER, count), (TYPE_MAP, fields)):
        assert rows[HEAD][-1] == 50
        assert HEAD not in dead_rows(type_code, b"k", rows, 100, 0)
        assert end_life(type_code, rows, {1: 7 * ms}, (70 * ms, 1), 40) == {}
        ended = {**rows, **end_life(type_code, rows, {1: 7 * ms}, (70 * ms, 1), 60)}
        assert ended[HEAD][-1] == 0
        assert set(dead_rows(type_code, b"k", ended, 100, 0)) == set(rows)


def test_the_end_of_a_document_spares_an_edit_that_it_did_not_see() -> None:
    ms = 1 << 16
    rows = doc.put({}, edit((5, 0)), (5 * ms, 1), 0, yjs=document, vv={})
    rows |= doc.expire(rows, (6 * ms, 1), 50)
    unseen = doc.put(rows, edit((6, 0), (5, 0)), (40 * ms, 2), 40, yjs=document, vv={1: 6 * ms})
    end = end_life(TYPE_DOC, rows, {1: 6 * ms}, (70 * ms, 1), 60)
    assert not doc.exists({**rows, **end}, 0)
    assert end[HEAD][-1] == 0, "the next life has no expiry"
    both = {**rows, **join_delta(TYPE_DOC, rows, unseen)}
    both |= join_delta(TYPE_DOC, both, end)
    assert doc.exists(both, 60)
    assert document.rehearse(document.merge(doc.updates(both, 60)), b"\0\0").before == {5: 1, 6: 1}


def test_a_map_field_goes_by_its_own_age() -> None:
    ms = 1 << 16
    rows = map_rows.put({}, {b"f": b"1", b"g": b"2"}, (5 * ms, 1), 0)
    rows |= map_rows.remove(rows, [b"f"], (10 * ms, 1))
    assert list(dead_rows(TYPE_MAP, b"k", rows, 100, 0)) == [b"\x08f"]
    assert join(()) == {}
