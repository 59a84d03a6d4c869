"""Whole runs: seeds that once failed, replay to the letter, faults that are reached."""

from __future__ import annotations

import subprocess
import sys

import pytest
from sim.seeds import FOUND

from roost_sim import copies, run
from roost_sim.explore import Tally, run_seed
from roost_sim.history import History
from roost_sim.scenario import Scenario


@pytest.mark.parametrize("seed", sorted(FOUND))
def test_what_was_found_stays_fixed(seed: int) -> None:
    verdict = run_seed(seed)
    assert not verdict.problems, FOUND[seed]


def test_a_seed_replays_to_the_letter() -> None:
    first, second = run_seed(5, keep_trace=True), run_seed(5, keep_trace=True)
    assert first.lines == second.lines
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint != run_seed(6).fingerprint


def test_the_trace_does_not_change_the_run() -> None:
    assert run_seed(7).fingerprint == run_seed(7, keep_trace=True).fingerprint


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_a_seed_is_the_same_in_every_process(hash_seed: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "roost_sim", "5"],
        env={"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr
    assert run_seed(5).fingerprint in done.stdout.splitlines()[-1]


def test_the_report_says_what_was_reached() -> None:
    tally = Tally()
    for seed in range(1, 9):
        tally.add(run_seed(seed))
    report = tally.report()
    assert "8 seeds, 8 clean" in report
    for reached in ("Heartbeat", "Records", "kill", "Stream", "before flush"):
        assert reached in report


def test_linearizable_keys_leave_the_rest_of_a_run_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_them = run_seed(12)
    assert with_them.reached["linear:operation in a history"] > 50
    assert "linear:undecided" not in with_them.reached
    monkeypatch.setattr(run, "LINEAR_EVERY", 1 << 60)
    without = run_seed(12)
    assert without.fingerprint == with_them.fingerprint
    assert not any(what.startswith("linear:") for what in without.reached)


@pytest.mark.parametrize("topology", ["line", "star", "ring", "mesh"])
def test_a_record_arrives_about_once(topology: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "WARM_MS", 2_000.0)
    monkeypatch.setattr(copies, "MEASURED_MS", 3_000.0)
    taken, arrived = copies.copies(topology, 1)
    assert taken > 500
    assert arrived <= taken * (1.05 if topology == "ring" else 1.002)


def test_a_row_that_is_lost_is_fetched_and_nothing_else_is() -> None:
    scenario = Scenario()
    scenario.play("nodes eu us\nlink eu us 5\nput eu k v\nput eu l w\nsettle\n")
    eu, us = (scenario._run.nodes[name] for name in ("eu", "us"))
    us.store.lose([b"k\0\x02"])
    us.excused_rollbacks += 1
    assert us.store.digest() != eu.store.digest()
    scenario.play("settle\nexpect us k v\n")
    assert (eu.repaired, us.repaired) == (1, 1)


def test_a_history_knows_what_has_expired() -> None:
    history = History()
    op = history.begin("eu", b"x", "put", 0.0)
    op.value, op.stamp, op.expires_ms = b"v", (1, 1), 50
    history.happened(op)
    op.certify("eu", 1.0)
    assert history.check_latest(b"x", b"", b"v", 49) == ""
    assert history.check_latest(b"x", b"", None, 50) == ""
    assert "x is b'v'" in history.check_latest(b"x", b"", b"v", 50)
    assert history.check_latest(b"x", b"", None, 49)
    assert history.expired(b"x", b"v", 49) is None
    assert history.expired(b"x", b"v", 50) == op.number
    add = history.begin("eu", b"y", "add", 0.0)
    add.bit, add.stamp = 1, (1, 1)
    history.happened(add)
    add.certify("eu", 1.0)
    end = history.begin("eu", b"y", "expire", 0.0)
    end.expires_ms, end.stamp = 50, (2, 1)
    history.happened(end)
    assert history.check_counter(b"y", 0, 50) == ""
    assert "lacks op" in history.check_counter(b"y", 0, 49)
