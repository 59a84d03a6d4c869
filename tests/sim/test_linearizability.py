"""The checker itself: histories that must pass, and histories that must fail."""

from __future__ import annotations

from itertools import permutations
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from roost_sim.linearizability import NEVER, Operation, is_linearizable


def read(called: float, returned: float, answer: Any) -> Operation:
    return Operation(called, returned, lambda state: (state, state), answer, "read")


def write(called: float, returned: float, value: Any) -> Operation:
    return Operation(called, returned, lambda _: (value, True), True, f"write {value}")


def cas(called: float, returned: float, old: Any, new: Any, answer: bool) -> Operation:
    return Operation(
        called,
        returned,
        lambda state: (new, True) if state == old else (state, False),
        answer,
        f"cas {old} {new}",
    )


def incr(called: float, returned: float, answer: int | None = None) -> Operation:
    return Operation(called, returned, lambda state: (state + 1, state + 1), answer, "incr")


def test_an_empty_history_is_linearizable() -> None:
    assert is_linearizable([])


def test_a_read_after_a_write_sees_it() -> None:
    assert is_linearizable([write(0, 1, "a"), read(2, 3, "a")])


def test_a_stale_read_fails() -> None:
    assert not is_linearizable([write(0, 1, "a"), read(2, 3, None)])


def test_a_read_beside_a_write_may_see_either() -> None:
    for answer in (None, "a"):
        assert is_linearizable([write(0, 10, "a"), read(2, 3, answer)])


def test_a_value_that_was_seen_cannot_be_unseen() -> None:
    assert not is_linearizable([write(0, 10, "a"), read(1, 2, "a"), read(3, 4, None)])
    assert is_linearizable([write(0, 10, "a"), read(1, 2, None), read(3, 4, "a")])


def test_a_value_out_of_nowhere_fails() -> None:
    assert not is_linearizable([read(0, 1, "b"), write(2, 3, "b")])


def test_two_winners_of_one_swap_fail() -> None:
    assert not is_linearizable([cas(0, 9, None, "a", True), cas(0, 9, None, "b", True)])
    assert is_linearizable([cas(0, 9, None, "a", True), cas(0, 9, None, "b", False)])


def test_a_lost_increment_fails() -> None:
    assert not is_linearizable([incr(0, 9, 1), incr(0, 9, 1)], 0)
    assert is_linearizable([incr(0, 9, 2), incr(0, 9, 1)], 0)


def test_an_unknown_write_may_take_effect_late_or_never() -> None:
    unknown = write(0, NEVER, "a")
    assert is_linearizable([unknown, read(2, 3, None), read(4, 5, "a")])
    assert is_linearizable([unknown, read(2, 3, None), read(4, 5, None)])
    assert not is_linearizable([unknown, read(2, 3, "a"), read(4, 5, None)])


def test_an_unknown_increment_applies_at_most_once() -> None:
    assert is_linearizable([incr(0, NEVER), incr(2, 3, 2)], 0)
    assert not is_linearizable([incr(0, NEVER), incr(2, 3, 3)], 0)


def test_an_unknown_write_cannot_take_effect_before_its_call() -> None:
    assert not is_linearizable([read(0, 1, "a"), write(2, NEVER, "a")])


@given(
    st.lists(
        st.tuples(st.integers(0, 12), st.integers(1, 6), st.sampled_from("rwi"), st.integers(0, 2)),
        max_size=5,
    )
)
def test_it_agrees_with_trying_every_order(plan: list[tuple[int, int, str, int]]) -> None:
    history = []
    for called, length, kind, value in plan:
        if kind == "r":
            history.append(read(called, called + length, value))
        elif kind == "w":
            history.append(write(called, called + length, value))
        else:
            history.append(incr(called, called + length, value))
    assert is_linearizable(history, 0) == any(map(_explains, permutations(history)))


def _explains(order: tuple[Operation, ...]) -> bool:
    state = 0
    for n, operation in enumerate(order):
        if any(later.returned < operation.called for later in order[n:]):
            return False
        state, answer = operation.step(state)
        if answer != operation.answer:
            return False
    return True
