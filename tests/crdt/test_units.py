"""Durations and sizes, and what is said about wrong ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost_crdt.units import DURATION_UNITS, SIZE_UNITS, duration_ms, size_bytes


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("500ms", 500),
        ("60s", 60_000),
        ("24h", 86_400_000),
        ("1.5h", 5_400_000),
        (" 7 d ", 604_800_000),
    ],
)
def test_durations(text: str, ms: int) -> None:
    assert duration_ms(text) == ms


@pytest.mark.parametrize(
    ("text", "size"),
    [("512B", 512), ("8GiB", 8 << 30), ("64MiB", 64 << 20), ("1.5KiB", 1536), ("2 TiB", 2 << 40)],
)
def test_sizes(text: str, size: int) -> None:
    assert size_bytes(text) == size


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("24hours", 'unit "hours", which is no duration; use one of ms, s, m, h, d'),
        ("24", "has no unit"),
        (24, "24 has no unit; write a duration as a string"),
        (1.5, "has no unit"),
        (True, "a duration is a string"),
        (None, "a duration is a string"),
        ("h", "is not a duration"),
        ("-1h", "is not a duration"),
        ("1e3s", "is not a duration"),
        ("0s", "out of range"),
        ("9999999d", "out of range"),
        ("8GiB", 'unit "GiB"'),
        ("٣s", "is not a duration"),
    ],
)
def test_a_wrong_duration_says_why(text: object, said: str) -> None:
    with pytest.raises(ValueError, match=r"[a-z]") as caught:
        duration_ms(text)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("8GB", 'unit "GB", which is no size; use one of B, KiB, MiB, GiB, TiB'),
        ("8gib", 'unit "gib"'),
        ("8", "has no unit"),
        (8, "8 has no unit"),
        ("0B", "out of range"),
        ("9999999TiB", "out of range"),
    ],
)
def test_a_wrong_size_says_why(text: object, said: str) -> None:
    with pytest.raises(ValueError, match=r"[a-z]") as caught:
        size_bytes(text)
    assert said in str(caught.value)


@given(st.integers(1, 3_000), st.sampled_from(sorted(DURATION_UNITS)))
def test_whole_durations_are_exact(number: int, unit: str) -> None:
    assert duration_ms(f"{number}{unit}") == number * DURATION_UNITS[unit]


@given(st.integers(1, 1_000), st.sampled_from(sorted(SIZE_UNITS)))
def test_whole_sizes_are_exact(number: int, unit: str) -> None:
    assert size_bytes(f"{number}{unit}") == number * SIZE_UNITS[unit]
