"""The laws of merging, checked on any type."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

S = TypeVar("S")

LAW_SETTINGS = settings(
    deadline=None,
    phases=[phase for phase in Phase if phase is not Phase.explain],
    report_multiple_bugs=False,
)
"""One error, a LawBroken and no group of several: the first law that breaks breaks others too."""


class LawBroken(AssertionError):
    """A merge function breaks a law; the message names the law and shows the states."""


@dataclass(frozen=True)
class Lattice(Generic[S]):
    """A type whose states are merged.

    `join` must not change its arguments. `encode` gives canonical bytes: equal states, equal
    bytes. `decode` and `value` (what a user sees) are optional.
    """

    empty: Callable[[], S]
    join: Callable[[S, S], S]
    encode: Callable[[S], bytes]
    decode: Callable[[bytes], S] | None = None
    value: Callable[[S], Any] | None = None

    def join_all(self, states: Sequence[S]) -> S:
        joined = self.empty()
        for state in states:
            joined = self.join(joined, state)
        return joined

    def same(self, law: str, a: S, b: S) -> None:
        """Raise LawBroken unless both states have the same bytes and the same value."""
        if self.encode(a) != self.encode(b):
            raise LawBroken(f"{law}: {a!r} != {b!r}")
        if self.value is not None and self.value(a) != self.value(b):
            raise LawBroken(f"{law}: equal bytes, other value: {a!r} != {b!r}")


def check_laws(lattice: Lattice[S], a: S, b: S, c: S) -> None:
    """Raise LawBroken unless join is a least upper bound on these states."""
    before = [lattice.encode(state) for state in (a, b, c)]
    shown = f"{a!r}, {b!r}, {c!r}"
    try:
        _check_join(lattice, a, b, c)
    except LawBroken as broken:
        raise LawBroken(f"{broken} of {shown}") from None
    if [lattice.encode(state) for state in (a, b, c)] != before:
        raise LawBroken(f"join changes its arguments: {shown}")


def _check_join(lattice: Lattice[S], a: S, b: S, c: S) -> None:
    join, same = lattice.join, lattice.same
    ab = join(a, b)
    same("idempotent", join(a, a), a)
    same("commutative", ab, join(b, a))
    same("associative", join(ab, c), join(a, join(b, c)))
    same("absorbs what it holds", join(ab, a), ab)
    same("empty adds nothing", join(a, lattice.empty()), a)
    same("empty takes all", join(lattice.empty(), a), a)
    if lattice.decode is not None:
        same("decodes what it encodes", lattice.decode(lattice.encode(ab)), ab)


def check_deltas(lattice: Lattice[S], states: Sequence[S], deltas: Sequence[S]) -> None:
    """Raise LawBroken unless each delta leads from one of a replica's states to the next.

    `states` has one more entry than `deltas`. All deltas together must equal the last state.
    """
    assert len(states) == len(deltas) + 1
    for before, delta, after in zip(states, deltas, states[1:], strict=False):
        lattice.same("a delta is the difference", lattice.join(before, delta), after)
    together = lattice.join(states[0], lattice.join_all(deltas))
    lattice.same("deltas equal full states", together, states[-1])


def arrangements(count: int, *, extra_max: int = 4) -> SearchStrategy[list[list[int]]]:
    """Batches of indexes below `count`: every one at least once, in any order, some again."""
    if not count:
        return st.just([])
    again = st.lists(st.integers(0, count - 1), max_size=extra_max)

    def shuffled(extra: list[int]) -> SearchStrategy[list[int]]:
        return st.permutations([*range(count), *extra])

    def cut(order: list[int]) -> SearchStrategy[list[list[int]]]:
        marks = st.lists(st.booleans(), min_size=len(order), max_size=len(order))
        return marks.map(lambda ends: _batches(order, ends))

    return again.flatmap(shuffled).flatmap(cut)


def _batches(order: list[int], ends: list[bool]) -> list[list[int]]:
    batches: list[list[int]] = [[]]
    for index, end in zip(order, ends, strict=True):
        batches[-1].append(index)
        if end:
            batches.append([])
    return [batch for batch in batches if batch]


def check_arrangement(
    lattice: Lattice[S], states: Sequence[S], arrangement: Sequence[Sequence[int]]
) -> None:
    """Raise LawBroken unless this order, duplication and batching gives the same state."""
    batches = [lattice.join_all([states[index] for index in batch]) for batch in arrangement]
    lattice.same("any arrangement", lattice.join_all(batches), lattice.join_all(states))


def law_test(
    lattice: Lattice[S], states: SearchStrategy[S], *, max_examples: int = 200
) -> Callable[[], None]:
    """A test function that checks all laws on drawn states."""

    @settings(LAW_SETTINGS, max_examples=max_examples)
    @given(st.data())
    def test_laws(data: st.DataObject) -> None:
        drawn = data.draw(st.lists(states, min_size=3, max_size=6))
        check_laws(lattice, *drawn[:3])
        check_arrangement(lattice, drawn, data.draw(arrangements(len(drawn))))

    return test_laws
