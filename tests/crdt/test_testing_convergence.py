"""Toy types of an outsider: the one of docs/TESTING.md passes, and broken ones are refused."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from roost_crdt.testing import Event, Lattice, LawBroken, Operations, convergence_test, law_test

DOCS = Path(__file__).resolve().parent.parent.parent / "docs" / "TESTING.md"
Stamp = tuple[int, int]
SWITCH = st.sampled_from(["enable", "disable"])


def run_as_outsider(place: Path, source: str) -> subprocess.CompletedProcess[str]:
    """A directory with nothing but one test file, and only what is installed."""
    (place / "test_toy.py").write_text(source)
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["--hypothesis-seed=0", "test_toy.py"]
    return subprocess.run(
        command, cwd=place, capture_output=True, text=True, timeout=280, check=False
    )


def example() -> str:
    (source,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    return str(source)


def test_the_example_of_the_docs_passes(tmp_path: Path) -> None:
    done = run_as_outsider(tmp_path, example())
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


def test_the_example_with_one_fault_is_refused(tmp_path: Path) -> None:
    """A disable that takes away what it has not seen: the laws hold, the promise does not."""
    faulty = example().replace(
        "value=lambda flag: bool(flag.enabled - flag.seen_by_a_disable)",
        "value=lambda flag: max(flag[0], default=(0, 0)) > max(flag[1], default=(0, 0))",
    )
    assert faulty != example()
    done = run_as_outsider(tmp_path, faulty)
    assert done.returncode == 1
    assert "1 failed, 1 passed" in done.stdout
    assert "LawBroken: value: shows False, expected True after [Event(" in done.stdout


def wins(history: Sequence[Event[str]]) -> bool:
    """An enable stands unless some disable has seen it."""
    seen = [event.seen for event in history if event.operation == "disable"]
    on = [event.stamp for event in history if event.operation == "enable"]
    return any(not any(stamp in other for other in seen) for stamp in on)


def newest(history: Sequence[Event[str]]) -> str:
    return history[-1].operation if history else ""


def total(history: Sequence[Event[int]]) -> int:
    return sum(event.operation for event in history)


Count = dict[int, int]
"""By actor; each writes its own number only."""


def _counter(value: Callable[[Count], int] | None = None) -> Lattice[Count]:
    return Lattice(
        dict,
        lambda a, b: {actor: max(a.get(actor, 0), b.get(actor, 0)) for actor in {**a, **b}},
        lambda state: repr(sorted(state.items())).encode(),
        value=value or (lambda state: sum(state.values())),
    )


def _add(state: Count, by: int, stamp: Stamp) -> Count:
    return {stamp[1]: state.get(stamp[1], 0) + by}


def _add_in_place(state: Count, by: int, stamp: Stamp) -> Count:
    state[stamp[1]] = state.get(stamp[1], 0) + by
    return state


COUNTS = st.integers(1, 3)
REGISTER: Lattice[tuple[Stamp, str]] = Lattice(
    lambda: ((0, 0), ""), max, lambda state: repr(state).encode(), value=lambda state: state[1]
)


def _put(state: Any, operation: str, stamp: Stamp) -> Any:
    return (stamp, operation)


@pytest.mark.parametrize(
    ("lattice", "operations"),
    [
        pytest.param(_counter(), Operations(COUNTS, _add, total), id="counter"),
        pytest.param(REGISTER, Operations(st.text("ab"), _put, newest), id="register"),
        pytest.param(REGISTER, Operations(st.text("ab"), _put), id="nothing promised"),
    ],
)
def test_a_right_type_passes(lattice: Any, operations: Any) -> None:
    convergence_test(lattice, operations, max_examples=40)()


def _flags(value: Callable[[Any], bool]) -> Lattice[tuple[int, int]]:
    """Newest enable, newest disable: by time alone."""
    return Lattice(
        lambda: (0, 0),
        lambda a, b: (max(a[0], b[0]), max(a[1], b[1])),
        lambda state: repr(state).encode(),
        value=value,
    )


def _switch(state: Any, operation: str, stamp: Stamp) -> tuple[int, int]:
    return (stamp[0], 0) if operation == "enable" else (0, stamp[0])


def _first_stays(a: tuple[Stamp, str], b: tuple[Stamp, str]) -> tuple[Stamp, str]:
    """The later write, of two at one time whichever came first."""
    return b if b[0][0] > a[0][0] else a


BROKEN: dict[str, tuple[Lattice[Any], Operations[Any, Any], str]] = {
    "remove wins": (
        _flags(lambda state: state[0] > state[1]),
        Operations(SWITCH, _switch, wins),
        "value: shows False, expected True",
    ),
    "a tie goes to who came first": (
        Lattice(REGISTER.empty, _first_stays, REGISTER.encode),
        Operations(st.text("ab"), _put),
        "all have seen all|commutative",
    ),
    "a delta counts instead of saying how much": (
        Lattice(int, int.__add__, lambda state: b"%d" % state, value=int),
        Operations(COUNTS, lambda state, by, stamp: by, total),
        "value: shows|idempotent",
    ),
    "a delta of the wrong actor": (
        _counter(),
        Operations(COUNTS, lambda state, by, stamp: {0: state.get(0, 0) + by}, total),
        "value: shows",
    ),
    "a constant": (_counter(lambda state: 0), Operations(COUNTS, _add, total), "value: shows 0"),
    "writes into its argument": (
        _counter(),
        Operations(COUNTS, _add_in_place, total),
        "apply changes its argument",
    ),
    "the value hides in equal bytes": (
        Lattice(
            tuple,
            lambda a, b: tuple(dict.fromkeys([*a, *b])),
            lambda state: repr(sorted(state)).encode(),
            value=lambda state: state[-1:],
        ),
        Operations(COUNTS, lambda state, by, stamp: (stamp,)),
        "equal bytes, other value",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_type_is_refused(name: str) -> None:
    lattice, operations, why = BROKEN[name]
    with pytest.raises(LawBroken, match=why):
        convergence_test(lattice, operations, steps_max=8)()


def test_what_is_expected_needs_a_value() -> None:
    lattice = Lattice(int, max, lambda state: b"%d" % state)
    with pytest.raises(AssertionError, match="of `value`"):
        convergence_test(lattice, Operations(COUNTS, lambda state, by, stamp: by, total))


def test_a_broken_law_shows_what_it_was_broken_with() -> None:
    lattice = Lattice(REGISTER.empty, _first_stays, REGISTER.encode)
    states = st.tuples(st.just((1, 0)), st.sampled_from("ab"))
    with pytest.raises(LawBroken, match=r"commutative: .* of \(\(1, 0\), '[ab]'\), "):
        law_test(lattice, states)()
