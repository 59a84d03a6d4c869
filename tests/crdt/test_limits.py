"""Bounds: all positive, and those that depend on each other fit."""

from __future__ import annotations

import dataclasses

import pytest

from roost_crdt.limits import DEFAULT_LIMITS, Limits


def test_every_bound_is_a_positive_number() -> None:
    bounds = dataclasses.asdict(DEFAULT_LIMITS)
    assert all(type(value) is int and value > 0 for value in bounds.values())


def test_bounds_that_depend_on_each_other() -> None:
    limits = DEFAULT_LIMITS
    assert limits.value_bytes_max <= limits.body_bytes_max
    assert limits.frame_bytes <= limits.window_bytes
    assert limits.frame_bytes <= limits.body_bytes_max
    assert limits.suspect_missed < limits.down_missed
    assert limits.reconnect_min_ms < limits.reconnect_max_ms
    assert limits.key_bytes_max < 511 - limits.field_bytes_max, "an LMDB key has 511 bytes"


def test_bounds_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Limits().key_bytes_max = 1  # type: ignore[misc]
