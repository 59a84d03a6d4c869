"""Property tests for merge functions, for this package's rows and for anybody's types.

Laws. Describe a type as a `Lattice` and hand it to `law_test`, which makes a test function
(hypothesis) out of it:

    GSET = Lattice(empty=frozenset, join=frozenset.union, encode=lambda s: repr(sorted(s)).encode())
    test_gset_laws = law_test(GSET, st.frozensets(st.integers()))

It checks that the join is idempotent, commutative and associative, that joined states come out
with the same bytes and the same value in any order, duplication and batching, and that what is
decoded is what was encoded. `check_deltas` checks besides that joining deltas gives the states
that they came from.

Operations. `convergence_test` plays what several replicas do to a type, and compares what they
show with what you expect of the history alone (docs/TESTING.md has an example):

    ADDS = Operations(st.integers(), lambda s, n, stamp: frozenset({n}),
                      expected=lambda history: {event.operation for event in history})
    test_gset_converges = convergence_test(GSET, ADDS)     # GSET with value=set

Rows. `histories(type_name)` draws what several replicas of one key do: operations,
records of one or more of them, deliveries by origin, clocks that differ. `run` plays one
with real rows, through encoded records. `session_histories` and `run_session` are the same for a
session with several homes, with real documents. Needs hypothesis (the extra `test`).
"""

from __future__ import annotations

from roost_crdt.testing.convergence import Event, Operations, convergence_test
from roost_crdt.testing.histories import History, Replica, Step, histories, run
from roost_crdt.testing.laws import (
    Lattice,
    LawBroken,
    arrangements,
    check_arrangement,
    check_deltas,
    check_laws,
    law_test,
)
from roost_crdt.testing.sessions import (
    SESSION_LATTICE,
    Home,
    SessionHistory,
    SessionStep,
    picture,
    run_session,
    session_histories,
)
from roost_crdt.testing.states import ROW_LATTICES, START_MS, TYPES, WINDOW_MS, leaves, row_states

__all__ = [
    "ROW_LATTICES",
    "SESSION_LATTICE",
    "START_MS",
    "TYPES",
    "WINDOW_MS",
    "Event",
    "History",
    "Home",
    "Lattice",
    "LawBroken",
    "Operations",
    "Replica",
    "SessionHistory",
    "SessionStep",
    "Step",
    "arrangements",
    "check_arrangement",
    "check_deltas",
    "check_laws",
    "convergence_test",
    "histories",
    "law_test",
    "leaves",
    "picture",
    "row_states",
    "run",
    "run_session",
    "session_histories",
]
