"""Rows against an oracle that keeps the whole history, over partial and disordered deliveries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pycrdt
import pytest
from crdt.oracle import ORACLES, Oracle
from hypothesis import given, settings
from hypothesis import strategies as st

from roost_crdt.digest import contribution
from roost_crdt.record import decode_record, decode_rows
from roost_crdt.rows import Rows
from roost_crdt.testing import (
    ROW_LATTICES,
    TYPES,
    History,
    Replica,
    Step,
    arrangements,
    check_arrangement,
    histories,
    run,
)

EXAMPLES = 400


def _shown(type_name: str, replica: Replica, now_ms: int) -> Any:
    exists, value = replica.value(now_ms)
    if type_name == "doc" and value is not None:
        shown = pycrdt.Doc()
        array = shown.get("a", type=pycrdt.Array)
        shown.apply_update(value)
        return exists, {int(item.partition(".")[0]) for item in array}
    return exists, set(value) if type_name == "set" else value


def _play(history: History) -> tuple[list[Replica], list[Oracle]]:
    """Play a history with rows and with the oracle, comparing after every step."""
    name = history.type_name
    oracles = [ORACLES[name](actor + 1) for actor in range(len(history.skews_ms))]

    def compare(step: Step, replicas: list[Replica], local_ms: int) -> None:
        oracle = oracles[step.replica]
        if step.action == "write":
            oracle.write(list(step.args), local_ms)
        else:
            oracle.pull(oracles[step.args[0]], step.args[1] + 1)
        expected = oracle.exists(local_ms), oracle.value(local_ms)
        assert _shown(name, replicas[step.replica], local_ms) == expected

    return run(history, compare), oracles


def _heal(replicas: list[Replica], oracles: list[Oracle]) -> None:
    for here, replica in enumerate(replicas):
        for there, source in enumerate(replicas):
            for origin in range(1, len(replicas) + 1):
                replica.pull(source, origin)
                oracles[here].pull(oracles[there], origin)


def _deltas(replica: Replica) -> list[Rows]:
    return [
        {decoded.part: decoded.row for decoded in decode_rows(decode_record(raw).ops)}
        for raw in replica.records
    ]


def _check(history: History, data: st.DataObject) -> None:
    name = history.type_name
    replicas, oracles = _play(history)
    _heal(replicas, oracles)
    _heal(replicas, oracles)
    lattice = ROW_LATTICES[name]
    now_ms = data.draw(st.integers(0, 400)) + 1_700_000_000_000
    first = replicas[0]
    for replica, oracle in zip(replicas, oracles, strict=True):
        lattice.same("converged", replica.rows, first.rows)
        assert _shown(name, replica, now_ms) == (oracle.exists(now_ms), oracle.value(now_ms))
        assert contribution(first.type_code, b"k", replica.rows) == contribution(
            first.type_code, b"k", first.rows
        )
    deltas = _deltas(first)
    check_arrangement(lattice, deltas, data.draw(arrangements(len(deltas))))
    lattice.same("deltas equal the state", lattice.join_all(deltas), first.rows)


def _oracle_test(name: str) -> Callable[[], None]:
    @settings(max_examples=EXAMPLES, deadline=None)
    @given(histories(name), st.data())
    def check(history: History, data: st.DataObject) -> None:
        _check(history, data)

    return check


@pytest.mark.parametrize("name", TYPES)
def test_rows_show_what_the_oracle_shows(name: str) -> None:
    _oracle_test(name)()
