from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost_crdt.wallclock import WallClock, ahead_of_median

DAY_MS = 86_400_000


def clock(wall_ms: int = 1_000_000, boot_ms: int = 100) -> WallClock:
    return WallClock(wall_ms, boot_ms, offset_max_ms=500)


@pytest.mark.parametrize("moved_ms", [-500, -1, 0, 3, 500])
def test_a_small_correction_is_followed_at_once(moved_ms: int) -> None:
    own = clock()
    assert own.read(1_000_010 + moved_ms, 110) == 1_000_010 + moved_ms
    assert own.jumped_ms == 0


@pytest.mark.parametrize("jump_ms", [-3_600_000, -501, 501, 3_600_000, 90 * DAY_MS])
def test_a_jump_is_not_followed_and_time_goes_on(jump_ms: int) -> None:
    own = clock()
    assert own.read(1_000_010 + jump_ms, 110) == 1_000_010
    assert own.jumped_ms == jump_ms
    assert own.read(1_005_000 + jump_ms, 5_100) == 1_005_000


def test_a_clock_that_comes_back_is_followed_again() -> None:
    own = clock()
    own.read(9_000_000, 110)
    assert own.read(1_000_200, 120) == 1_000_200
    assert own.jumped_ms == 0
    assert not own.confirm([], 0)


def test_a_suspend_is_no_jump() -> None:
    own = clock()
    assert own.read(1_000_000 + DAY_MS, 100 + DAY_MS) == 1_000_000 + DAY_MS
    assert own.jumped_ms == 0


@pytest.mark.parametrize(
    ("near", "expected", "followed"),
    [
        ([], 0, True),
        ([], 1, False),
        ([7_000_000], 1, True),
        ([7_000_500], 1, True),
        ([7_000_501], 1, False),
        ([7_000_000], 2, False),
        ([7_000_000, 7_000_400], 2, True),
        ([7_000_000, 999_900], 2, False),
        ([7_000_000, 999_900, 6_999_600], 3, True),
        ([7_000_000], 0, True),
        ([999_900], 0, False),
    ],
)
def test_a_jump_is_followed_once_two_neighbours_show_it(
    near: list[int], expected: int, followed: bool
) -> None:
    """Of one neighbour that one, of none nobody: the clock in force was 999,900 ms ahead."""
    own = clock()
    own.read(7_000_200, 200)
    assert own.confirm(near, expected) is followed
    assert own.read(7_000_300, 300) == (7_000_300 if followed else 1_000_200)
    assert own.jumped_ms == (0 if followed else 6_000_100)


@given(steps=st.lists(st.tuples(st.integers(0, 10_000), st.integers(-(10**9), 10**9)), max_size=30))
def test_without_neighbours_who_confirm_it_never_leaves_even_time_by_more_than_its_steps(
    steps: list[tuple[int, int]],
) -> None:
    own, wall_ms, boot_ms, adopted = clock(), 1_000_000, 100, 0
    for passed_ms, jump_ms in steps:
        wall_ms, boot_ms = wall_ms + passed_ms + jump_ms, boot_ms + passed_ms
        before_ms = own.ahead_ms
        own.read(wall_ms, boot_ms)
        adopted += own.ahead_ms != before_ms
        assert abs(own.ahead_ms - before_ms) <= 500
        assert abs(own.ahead_ms - 999_900) <= 500 * adopted
        assert own.ahead_ms + own.jumped_ms == wall_ms - boot_ms


@pytest.mark.parametrize(
    ("neighbours", "ahead_ms"),
    [([], None), ([40], 60), ([40, 90], 10), ([0, 90, 95], 10), ([-5, 0, 90, 95], 10)],
)
def test_ahead_of_the_median_of_neighbours(neighbours: list[int], ahead_ms: int | None) -> None:
    assert ahead_of_median(100, neighbours) == ahead_ms
