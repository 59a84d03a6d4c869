"""Errors as callers see them; the tree itself is checked in tests/test_house.py."""

from __future__ import annotations

import pytest

from roost_crdt.errors import (
    BadRequest,
    ConfigError,
    Exhausted,
    PeerError,
    RoostError,
    TurnConflict,
    error_from_code,
)


def test_details_travel_with_the_error() -> None:
    error = TurnConflict("behind", retry_after_ms=20, turn=7)
    assert (str(error), error.message, error.retry_after_ms) == ("behind", "behind", 20)
    assert (error.code, error.status, error.details) == ("TURNCONFLICT", 409, {"turn": 7})
    assert BadRequest("x").retry_after_ms is None


def test_an_error_is_rebuilt_from_its_code() -> None:
    error = error_from_code("EXHAUSTED", "nothing left", retry_after_ms=5, period_ends=9)
    assert isinstance(error, Exhausted)
    assert (error.retry_after_ms, error.details) == (5, {"period_ends": 9})
    newer = error_from_code("FROM_A_NEWER_NODE", "text")
    assert type(newer) is RoostError
    assert (newer.code, newer.status) == ("ERR", 500)


@pytest.mark.parametrize(
    ("file", "line", "text"),
    [("r.toml", 3, "r.toml:3: bad"), ("r.toml", 0, "r.toml: bad"), ("", 0, "bad")],
)
def test_a_configuration_fault_begins_with_its_place(file: str, line: int, text: str) -> None:
    error = ConfigError("bad", file=file, line=line)
    assert str(error) == text
    assert (error.message, error.file, error.line) == ("bad", file, line)


def test_a_neighbours_fault_says_what_an_error_frame_says_of_it() -> None:
    assert (str(PeerError("odd")), PeerError("odd").code) == ("odd", "PEER")
    assert PeerError("two write as one", "ACTOR").code == "ACTOR"
    assert not isinstance(PeerError("odd"), RoostError), "no client is told of it"
