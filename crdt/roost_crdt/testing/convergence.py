"""Replicas of anybody's type that write and exchange in any order, and what they must show.

The laws are checked on states that are drawn one by one; a type whose states depend on who wrote
what (stamps, dots, tombstones) has states that no system ever reaches, and some that break a law
only there. Here states come about by operations: several replicas write, take whole states of
each other or the deltas of one origin in order, some of them again, and at last all from all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any, Generic, NamedTuple, TypeVar

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from roost_crdt.hlc import Stamp
from roost_crdt.testing.laws import (
    LAW_SETTINGS,
    Lattice,
    LawBroken,
    arrangements,
    check_arrangement,
    check_laws,
)

S = TypeVar("S")
O = TypeVar("O")  # noqa: E741


class Event(NamedTuple, Generic[O]):
    """An operation that some replica did, and what it knew then."""

    operation: O
    stamp: Stamp
    """`(time, actor)`: of this operation alone, above every stamp that its replica had seen."""
    seen: frozenset[Stamp]
    """The stamps of the operations that its replica had seen."""


@dataclass(frozen=True)
class Operations(Generic[S, O]):
    """What a replica can do to a type.

    `drawn` draws operations: any values that print well. `apply` gives the delta of one on a
    state, under a stamp that is used once (a whole new state is a delta too); it must not change
    its arguments. `expected`, if given, says from the history alone what `Lattice.value` must
    show: it gets the events that a replica has seen, ordered by stamp. Write it as naively as
    possible, from what users were promised; the laws cannot tell a set in which an add wins from
    one in which a remove wins, nor a counter from a constant.
    """

    drawn: SearchStrategy[O]
    apply: Callable[[S, O, Stamp], S]
    expected: Callable[[Sequence[Event[O]]], Any] | None = None


class _Step(NamedTuple):
    """`action` write: `argument` is an operation; state: a source; deltas: (source, origin)."""

    replica: int
    action: str
    argument: Any


@dataclass
class _Replica(Generic[S, O]):
    state: S
    clock: int = 0
    events: dict[Stamp, Event[O]] = field(default_factory=dict)
    deltas: dict[int, list[tuple[Event[O], S]]] = field(default_factory=dict)
    """By origin, in order: each the delta of one event."""

    def take(self, origin: int, deltas: Sequence[tuple[Event[O], S]]) -> None:
        """Note deltas, from the origin's first on, that were joined."""
        held = self.deltas.setdefault(origin, [])
        for event, delta in deltas[len(held) :]:
            held.append((event, delta))
            self.events[event.stamp] = event
            self.clock = max(self.clock, event.stamp[0])


class _System(Generic[S, O]):
    def __init__(self, lattice: Lattice[S], operations: Operations[S, O], replicas: int) -> None:
        self.lattice, self.operations = lattice, operations
        self.replicas = [_Replica[S, O](lattice.empty()) for _ in range(replicas)]

    def do(self, step: _Step) -> None:
        target = self.replicas[step.replica]
        if step.action == "write":
            self._write(target, step.replica, step.argument)
        elif step.action == "state":
            self.take_state(target, self.replicas[step.argument])
        else:
            source, origin = step.argument
            self._take_deltas(target, self.replicas[source], origin)
        self.check_value(target)

    def _write(self, replica: _Replica[S, O], actor: int, operation: O) -> None:
        replica.clock += 1
        event = Event(operation, (replica.clock, actor), frozenset(replica.events))
        encode = self.lattice.encode
        before = encode(replica.state)
        delta = self.operations.apply(replica.state, operation, event.stamp)
        if encode(replica.state) != before:
            raise LawBroken(f"apply changes its argument: {operation!r} at {replica.state!r}")
        replica.state = self.lattice.join(replica.state, delta)
        replica.events[event.stamp] = event
        replica.deltas.setdefault(actor, []).append((event, delta))

    def take_state(self, target: _Replica[S, O], source: _Replica[S, O]) -> None:
        target.state = self.lattice.join(target.state, source.state)
        for origin, deltas in source.deltas.items():
            target.take(origin, deltas)

    def _take_deltas(self, target: _Replica[S, O], source: _Replica[S, O], origin: int) -> None:
        """All from the first on: a network may deliver twice."""
        offered = source.deltas.get(origin, [])
        for _, delta in offered:
            target.state = self.lattice.join(target.state, delta)
        target.take(origin, offered)

    def check_value(self, replica: _Replica[S, O]) -> None:
        if self.operations.expected is None:
            return
        assert self.lattice.value is not None
        history = [replica.events[stamp] for stamp in sorted(replica.events)]
        shown, due = self.lattice.value(replica.state), self.operations.expected(history)
        if shown != due:
            raise LawBroken(f"value: shows {shown!r}, expected {due!r} after {history!r}")


def convergence_test(
    lattice: Lattice[S],
    operations: Operations[S, O],
    *,
    replicas: int = 3,
    steps_max: int = 25,
    max_examples: int = 200,
) -> Callable[[], None]:
    """A test function that plays histories of several replicas.

    Raises LawBroken where a replica does not show what `expected` says, where replicas that have
    seen the same differ in bytes or value, where all deltas in some order and batching give
    another state than whole states do, and where a law breaks on states that were reached.
    """
    assert operations.expected is None or lattice.value is not None, "expected is of `value`"
    who = st.integers(0, replicas - 1)
    pairs = st.sampled_from([*permutations(range(replicas), 2)])
    write = st.builds(_Step, who, st.just("write"), operations.drawn)
    state = pairs.map(lambda pair: _Step(pair[0], "state", pair[1]))
    deltas = st.tuples(pairs, who).map(lambda at: _Step(at[0][0], "deltas", (at[0][1], at[1])))
    steps = st.lists(st.one_of(write, write, state, deltas), max_size=steps_max)

    @settings(LAW_SETTINGS, max_examples=max_examples)
    @given(st.data())
    def test_convergence(data: st.DataObject) -> None:
        system = _System(lattice, operations, replicas)
        for step in data.draw(steps):
            system.do(step)
        reached = [replica.state for replica in system.replicas]
        check_laws(lattice, reached[0], reached[-1], reached[len(reached) // 2])
        first, *others = system.replicas
        for other in others:
            system.take_state(first, other)
        for other in others:
            system.take_state(other, first)
            lattice.same("all have seen all", first.state, other.state)
        system.check_value(first)
        every = [delta for origin in sorted(first.deltas) for _, delta in first.deltas[origin]]
        lattice.same("deltas equal full states", lattice.join_all(every), first.state)
        check_arrangement(lattice, every, data.draw(arrangements(len(every))))

    return test_convergence
