"""What every neighbour is known to hold durably."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest

from roostd import wire
from roostd.node.retention import LOOK_MS, Retention


def retention(
    links: list[str],
    *,
    live: Mapping[str, dict[int, int]] | None = None,
    reported: Mapping[str, dict[int, int]] | None = None,
    told: list[Any] | None = None,
) -> Retention:
    peers = {node: SimpleNamespace(held=held) for node, held in (live or {}).items()}
    members = {node: SimpleNamespace(vv=vv) for node, vv in (reported or {}).items()}
    gossip = SimpleNamespace(
        links=lambda: [SimpleNamespace(peer=peer) for peer in links],
        replica=SimpleNamespace(peers=peers),
    )
    store = SimpleNamespace(neighbours_hold=(told if told is not None else []).append)
    return Retention(
        cast("Any", store), cast("Any", gossip), cast("Any", SimpleNamespace(members=members))
    )


def test_without_neighbours_nothing_is_said() -> None:
    assert retention([]).held() is None


def test_the_least_that_any_of_them_holds() -> None:
    live = {"us": {1: 10, 2: 20}, "ap": {1: 8, 2: 30, 3: 5}}
    assert retention(["us", "ap"], live=live).held() == {1: 8, 2: 20}
    assert retention(["us"], live=live).held() == {1: 10, 2: 20}


def test_one_that_is_away_holds_what_it_reported() -> None:
    live, reported = {"us": {1: 10}}, {"us": {1: 12, 2: 1}, "ap": {1: 7}}
    assert retention(["us", "ap"], live=live, reported=reported).held() == {1: 7, 2: 0}


@pytest.mark.parametrize("live", [{}, {"us": {1: 10}}])
def test_one_that_never_came_holds_nothing(live: dict[str, dict[int, int]]) -> None:
    held = retention(["ap", "us"], live=live).held()
    assert held is not None
    assert not any(held.values())


def test_it_looks_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    looking = retention(["us"], live={"us": {1: 3}}, told=told)
    now = [100_000]
    monkeypatch.setattr(wire, "boot_ms", lambda: now[0])
    for _ in range(3):
        looking.tick()
    assert told == [{1: 3}]
    now[0] += LOOK_MS
    looking.tick()
    assert told == [{1: 3}] * 2
