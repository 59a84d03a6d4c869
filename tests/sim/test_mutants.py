"""Each rule that is taken out is caught by its seed, which is clean with the rule in place."""

from __future__ import annotations

import pytest
from sim.mutants import MUTANTS, SEEDS, UNCAUGHT, applied, first_seed

from roost_sim.explore import run_seed


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", sorted(SEEDS))
def test_a_mutant_is_caught(name: str) -> None:
    """By its seed; by another one where the core has changed since, and with it every run."""
    with applied(name):
        if not run_seed(SEEDS[name]).problems:
            _, other, _ = first_seed(name, 300)
            assert other is not None, f"without the rule nothing is found: {name}"


@pytest.mark.parametrize("seed", sorted(set(SEEDS.values())))
def test_the_seed_is_clean_with_every_rule(seed: int) -> None:
    assert not run_seed(seed).problems


def test_every_seed_has_its_mutant() -> None:
    assert SEEDS.keys() == MUTANTS.keys()
    assert SEEDS.keys().isdisjoint(UNCAUGHT)
