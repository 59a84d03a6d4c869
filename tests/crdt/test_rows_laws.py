"""Merging obeys its laws for every type, and the law checks catch types that do not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import strategies as st

from roost_crdt.testing import (
    ROW_LATTICES,
    START_MS,
    TYPES,
    History,
    Lattice,
    LawBroken,
    Step,
    check_deltas,
    check_laws,
    law_test,
    row_states,
    run,
)


@pytest.mark.parametrize("name", TYPES)
def test_rows_obey_the_laws(name: str) -> None:
    law_test(ROW_LATTICES[name], row_states(name), max_examples=300)()


def _lattice(
    join: Callable[[frozenset[int], frozenset[int]], frozenset[int]],
) -> Lattice[frozenset[int]]:
    return Lattice(frozenset, join, lambda state: repr(sorted(state)).encode())


def test_a_foreign_type_passes() -> None:
    law_test(_lattice(frozenset.union), st.frozensets(st.integers()), max_examples=20)()


@pytest.mark.parametrize(
    "join",
    [
        pytest.param(lambda a, b: b or a, id="last one wins"),
        pytest.param(lambda a, b: a ^ b, id="adds twice"),
        pytest.param(lambda a, b: (a | b) - {max(a | b, default=0)}, id="loses one"),
        pytest.param(lambda a, b: a | b | {sum(a | b)}, id="grouping matters"),
    ],
)
def test_a_wrong_join_is_caught(
    join: Callable[[frozenset[int], frozenset[int]], frozenset[int]],
) -> None:
    with pytest.raises(LawBroken):
        law_test(_lattice(join), st.frozensets(st.integers(1, 5)), max_examples=100)()


def test_a_join_that_changes_its_argument_is_caught() -> None:
    def join(a: list[int], b: list[int]) -> list[int]:
        a.extend(item for item in b if item not in a)
        a.sort()
        return list(a)

    lattice = Lattice(list, join, lambda state: bytes(state))
    with pytest.raises(LawBroken, match="changes its arguments"):
        check_laws(lattice, [1], [2], [2])


def test_a_value_that_hides_in_equal_bytes_is_caught() -> None:
    lattice = Lattice(list, lambda a, b: [*a, *b], lambda state: b"", value=len)
    with pytest.raises(LawBroken, match="equal bytes, other value"):
        check_laws(lattice, [1], [2], [3])


def test_lossy_decoding_is_caught() -> None:
    lattice = Lattice(
        frozenset,
        frozenset.union,
        lambda state: bytes(sorted(state)),
        lambda raw: frozenset(raw[:1]),
    )
    with pytest.raises(LawBroken, match="decodes what it encodes"):
        check_laws(lattice, frozenset({1}), frozenset({2}), frozenset())


def test_deltas_that_leave_something_out_are_caught() -> None:
    lattice = _lattice(frozenset.union)
    states = [frozenset[int](), frozenset({1}), frozenset({1, 2})]
    check_deltas(lattice, states, [frozenset({1}), frozenset({2})])
    with pytest.raises(LawBroken, match="a delta is the difference"):
        check_deltas(lattice, states, [frozenset({1}), frozenset({1})])


def test_a_history_plays_through_records() -> None:
    steps = (
        Step(0, 5, "write", (("add", 3), ("add", -1))),
        Step(1, 5, "write", (("add", 0),)),
        Step(1, 0, "pull", (0, 0)),
        Step(1, 0, "pull", (0, 0)),
        Step(0, 0, "write", (("add", 0),)),
    )
    first, second = run(History("counter", (0, 10), steps))
    assert len(first.records) == 1, "one record for a batch, none for nothing"
    assert (first.value(START_MS), second.value(START_MS)) == ((True, 2), (True, 2))
    assert second.vv == {1: first.vv[1], 2: ((START_MS + 20) << 16)}
    assert not second.take(first.records[0])
