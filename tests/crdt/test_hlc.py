"""The hybrid logical clock: strictly increasing, never below what it saw, near the wall."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from roost_crdt.hlc import Hlc, hlc_from_ms, hlc_ms

MOMENTS = st.integers(0, (1 << 47) - 1)


@given(st.lists(st.tuples(st.booleans(), MOMENTS), max_size=40))
def test_it_only_rises(steps: list[tuple[bool, int]]) -> None:
    clock = Hlc()
    seen = [0]
    for is_tick, moment in steps:
        if is_tick:
            hlc = clock.tick(moment)
            assert hlc > max(seen)
            assert hlc >= hlc_from_ms(moment)
            seen.append(hlc)
        else:
            clock.observe(hlc_from_ms(moment))
            seen.append(hlc_from_ms(moment))
        assert clock.last == max(seen)


@given(MOMENTS)
def test_milliseconds_are_kept(moment: int) -> None:
    assert hlc_ms(hlc_from_ms(moment)) == moment
    assert hlc_ms(hlc_from_ms(moment) + 0xFFFF) == moment


def test_a_full_counter_runs_into_the_next_millisecond() -> None:
    clock = Hlc(hlc_from_ms(5) + 0xFFFF)
    assert clock.tick(5) == hlc_from_ms(6)
    assert clock.tick(5) == hlc_from_ms(6) + 1


def test_a_wall_that_goes_back_changes_nothing() -> None:
    clock = Hlc()
    first = clock.tick(1_000)
    assert clock.tick(10) == first + 1
    clock.observe(3)
    assert clock.last == first + 1
