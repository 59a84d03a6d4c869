"""Whole runs: seeds that once failed, replay to the letter, faults that are reached."""

from __future__ import annotations

import subprocess
import sys

import pytest
from sim.seeds import FOUND

from roost_sim.explore import Tally, run_seed


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
        timeout=60,
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
