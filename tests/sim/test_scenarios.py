"""Golden scenarios: each file of tests/scenarios holds its commands and the trace they give."""

from __future__ import annotations

from pathlib import Path

import pytest

from roost_sim.scenario import WrongScenario, play

SCENARIOS = sorted((Path(__file__).parents[1] / "scenarios").glob("*.txt"))


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_a_scenario_gives_its_trace(path: Path, request: pytest.FixtureRequest) -> None:
    text = path.read_text()
    played = play(text)
    if request.config.getoption("--rewrite-scenarios"):
        path.write_text(played)
    else:
        assert played == text, "read the difference; pytest --rewrite-scenarios accepts it"


def test_what_is_expected_is_checked() -> None:
    with pytest.raises(WrongScenario, match="line 3: expect eu a 2: a is 1 at eu"):
        play("nodes eu\nput eu a 1\nexpect eu a 2\n")
    with pytest.raises(WrongScenario, match="line 1: dance: no such command"):
        play("dance\n")
    with pytest.raises(WrongScenario, match="line 1: crash eu"):
        play("crash eu\n")
