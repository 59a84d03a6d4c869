"""Histories of a session that several nodes are home of, played with real documents.

Homes take over without knowing of each other, go on, and hear of each other later, in any order.
What a session means is a function of the set of its entries: `SESSION_LATTICE` has the plain view
rows as states, and the fold of both sides' rows as their join.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from roost_crdt.document import Document, client_id
from roost_crdt.fold import Epoch, Fold, call_entry, summary_entry, turn_entry
from roost_crdt.rows.wire import encode
from roost_crdt.testing.laws import Lattice

SID: Final = "s-1"
NODES: Final = ("ap", "eu", "us")
POLICY: Final = "kv"

Views = dict[bytes, bytes]
"""View rows: `e` and an entry's key, or `f` and a field's, to its leaf."""


class SessionStep(NamedTuple):
    """Something that a home does.

    `action` and its `args`: "turn" (turn_id or None), "call" (call, attempt, status), "summary"
    (), "field" (name, value or None), "takeover" (), "pull" (the home whose document is taken).
    """

    home: int
    action: str
    args: tuple[Any, ...]


SessionHistory = tuple[SessionStep, ...]


def session_histories(*, steps_max: int = 25) -> SearchStrategy[SessionHistory]:
    """What three homes of one session do. Each begins with an epoch of its own."""
    just, tuples = st.just, st.tuples
    who = st.integers(0, len(NODES) - 1)
    status = st.sampled_from(["begun", "failed", "finished", "finished"])
    call = tuples(just("call"), tuples(st.sampled_from("ccd"), st.integers(1, 2), status))
    value = st.none() | st.integers(0, 9)
    actions = st.one_of(
        tuples(just("turn"), tuples(st.sampled_from([None, "x", "y"]))),
        tuples(just("turn"), tuples(just(None))),
        call,
        call,
        tuples(just("summary"), just(())),
        tuples(just("field"), tuples(st.sampled_from("ab"), value)),
        tuples(just("takeover"), just(())),
        tuples(just("pull"), tuples(who)),
        tuples(just("pull"), tuples(who)),
    )
    step = tuples(who, actions).map(lambda drawn: SessionStep(drawn[0], *drawn[1]))
    return st.lists(step, max_size=steps_max).map(tuple)


def picture(fold: Fold) -> Any:
    """All that a reader can see of a session."""
    return (
        fold.turn,
        fold.path(),
        fold.messages(),
        fold.branches(),
        dict(fold.lineage()),
        fold.path_epochs(4),
        fold.calls,
        fold.fields(),
    )


def _joined(a: Views, b: Views) -> Views:
    fold = Fold.from_views([*a.items(), *b.items()])
    return fold.view_rows(fold.raw_entries(), fold.raw_fields())


SESSION_LATTICE: Final[Lattice[Views]] = Lattice(
    dict,
    _joined,
    lambda rows: encode(sorted(rows.items())),
    None,
    lambda rows: picture(Fold.from_views(rows.items())),
)
"""A session's view rows."""


class Home:
    """One node's copy of the session: its document, what is folded from it, and its epoch."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.node = NODES[at]
        self.epoch: Epoch = (1, self.node)
        self.known: Epoch = self.epoch
        """The highest epoch heard of."""
        self.fold = Fold()
        self.updates: list[bytes] = []
        """Those that this node made."""
        self.steps: list[Views] = []
        """What each of them brought."""
        self.document = self._load()

    def _load(self, *held: bytes) -> Document:
        return Document.load(client_id(self.epoch[0], 7 + self.at, SID), held)

    @property
    def views(self) -> Views:
        return self.fold.view_rows(self.fold.raw_entries(), self.fold.raw_fields())

    def do(self, action: str, args: Sequence[Any], number: int, homes: Sequence[Home]) -> bool:
        """Carry out a step, the `number`th of all; False if a home in its place would not."""
        if action == "pull":
            return self.pull(homes[args[0]])
        if action == "takeover":
            self.epoch = self.known = (self.known[0] + 1, self.node)
            self.document = self._load(self.document.encode())
            return True
        if self.known > self.epoch:
            return False  # deposed: it forwards
        entries, fields = self._written(action, args, number)
        entries = {key: leaf for key, leaf in entries.items() if key not in self._held()}
        if entries or fields:
            self._write(entries, fields)
        return bool(entries or fields)

    def pull(self, source: Home) -> bool:
        """Take in another home's document; write again what Yjs has resolved against epochs."""
        self.known = max(self.known, source.known)
        changes = self.document.apply(source.document.encode())
        self._fold_in(changes.entries, changes.fields)
        if changes.repairs:
            self._write({}, changes.repairs)
        return True

    def _held(self) -> dict[str, bytes]:
        return self.document.entries()

    def _written(
        self, action: str, args: Sequence[Any], number: int
    ) -> tuple[dict[str, bytes], dict[str, bytes]]:
        parent = self.fold.turn
        if action == "turn":
            entry = turn_entry(
                self.epoch,
                1 if parent is None else parent[2] + 1,
                parent=parent,
                turn_id=args[0],
                messages=[b'"%d"' % number],
                at_ms=number,
            )
        elif action == "call":
            call, attempt, status = args
            result = None if status == "begun" else b"%d" % number
            entry = call_entry(
                call, attempt, status, self.epoch, tool="t", args=b"{}", result=result, at_ms=number
            )
        elif action == "summary":
            if parent is None:
                return {}, {}
            entry = summary_entry(self.epoch, number, covers=parent, message=b'"s%d"' % number)
        else:
            name, value = args
            raw = None if value is None else b"%d" % value
            # A clock that stands still: the order of writes does not depend on it.
            return {}, dict([self.fold.put_field(POLICY, name, self.epoch, raw, 0)])
        return dict([entry]), {}

    def _write(self, entries: dict[str, bytes], fields: dict[str, bytes]) -> None:
        self.updates.append(self.document.write(entries, fields, bounded=False))
        self.steps.append(self.fold.view_rows(entries, fields))
        self._fold_in(entries, fields)

    def _fold_in(self, entries: dict[str, bytes], fields: dict[str, bytes]) -> None:
        for key, leaf in entries.items():
            self.fold.add(key, leaf)
        for key, leaf in fields.items():
            self.fold.add_field(key, leaf)


def run_session(
    history: SessionHistory,
    observe: Callable[[int, SessionStep, bool, Home], None] | None = None,
) -> list[Home]:
    """Play a history. `observe` sees each step's number, whether it was carried out, its home."""
    homes = [Home(at) for at in range(len(NODES))]
    for number, step in enumerate(history):
        done = homes[step.home].do(step.action, step.args, number, homes)
        if observe is not None:
            observe(number, step, done, homes[step.home])
    return homes
