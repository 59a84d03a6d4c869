"""A linearizability checker for histories of one key, after Wing and Gong, with memory (Lowe).

An operation has an interval from its call to its return, and a step that says what it would have
answered in a given state. A history is linearizable if the operations can be put into one order
that respects the intervals (one that returned before another was called comes before it) and in
which each answer is the one that was given. An operation whose outcome is unknown may take effect
at any time after its call, or never.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["NEVER", "OPERATIONS_MAX", "Operation", "Undecided", "is_linearizable"]

NEVER = math.inf
"""The return of an operation whose outcome is not known."""
OPERATIONS_MAX = 200
STATES_MAX = 200_000

State = Hashable
Step = Callable[[Any], tuple[Any, Any]]


@dataclass(frozen=True)
class Operation:
    """`step(state) -> (new state, answer)`. Returned NEVER: unknown, `answer` is not looked at."""

    called: float
    returned: float
    step: Step
    answer: Any = None
    name: str = ""


class Undecided(Exception):
    """Too many ways to look at; split the history, or let fewer outcomes be unknown."""


def is_linearizable(history: Sequence[Operation], initial: State = None) -> bool:
    """Whether some order explains every answer. At most 200 operations; Undecided, rarely."""
    assert len(history) <= OPERATIONS_MAX, "split the history by key"
    # Those that are known come last, and so are tried first: the unknown wait until needed.
    operations = sorted(history, key=lambda operation: (-operation.returned, operation.called))
    everything = (1 << len(operations)) - 1
    unknown = sum(1 << n for n, operation in enumerate(operations) if operation.returned == NEVER)
    seen: set[tuple[int, State]] = set()
    stack: list[tuple[int, State]] = [(0, initial)]
    while stack:
        done, state = stack.pop()
        if done | unknown == everything:
            return True
        if (done, state) in seen:
            continue
        if len(seen) >= STATES_MAX:
            raise Undecided(f"{len(history)} operations, {unknown.bit_count()} of them unknown")
        seen.add((done, state))
        for n in _next(operations, done):
            operation = operations[n]
            after, answer = operation.step(state)
            # What is unknown and would change nothing here may as well never happen.
            useful = after != state if operation.returned == NEVER else answer == operation.answer
            if useful:
                stack.append((done | 1 << n, after))
    return False


def _next(operations: Sequence[Operation], done: int) -> list[int]:
    """Those that may come next: called before any other that is left has returned."""
    first_return = min(
        operation.returned for n, operation in enumerate(operations) if not done >> n & 1
    )
    return [
        n
        for n, operation in enumerate(operations)
        if not done >> n & 1 and operation.called <= first_return
    ]
