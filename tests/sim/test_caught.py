"""Each rule without a seed is kept by a test of its module: without the rule that test fails."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from sim.caught import IN_THE_DAEMON, TESTS
from sim.mutants import ALL, UNCAUGHT

TESTS_DIR = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def outcomes() -> dict[str, set[str]]:
    """What became of each named test, in one process in which it runs without its rule."""
    options = [
        "-p",
        "sim.caught",
        "-p",
        "no:cacheprovider",
        "-q",
        "-rA",
        "--tb=no",
        "--hypothesis-seed=0",
    ]
    tests = [f"tests/{test}" for test in TESTS.values()]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--show-capture=no", *tests],
        cwd=TESTS_DIR.parent,
        env={"PYTHONPATH": str(TESTS_DIR), "PATH": "/usr/bin:/bin", "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    found: dict[str, set[str]] = {}
    for outcome, test in re.findall(r"^(PASSED|FAILED|ERROR) tests/([^\s\[]+)", done.stdout, re.M):
        found.setdefault(test, set()).add(outcome)
    assert found, done.stdout + done.stderr
    return found


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", sorted(TESTS))
def test_without_the_rule_its_test_fails(name: str, outcomes: dict[str, set[str]]) -> None:
    assert "FAILED" in outcomes[TESTS[name]], f"{TESTS[name]} passes without the rule"


def test_every_rule_without_a_seed_has_its_test() -> None:
    assert UNCAUGHT.keys() <= TESTS.keys() <= ALL.keys()
    assert IN_THE_DAEMON.keys() <= TESTS.keys()
    assert len(set(TESTS.values())) == len(TESTS), "one rule at a time"
