"""What a session's document means: conversation, tool calls and fields, folded from its entries.

Entries are written once, so concurrent homes never overwrite each other, and the fold is a pure
function of the set of entries: order, repetition and batching do not matter.

- The active path runs from the highest (n, node, turn) along `parent`. Turns beside it (a stale
  home had not replicated them) are branches: kept, never lost, shown as reconciled.
- A summary names the turn that it covers: reading the path stops there.
- A call's status: any finished one (the earliest epoch's), else that of the latest attempt, failed
  over begun. `begun` under an earlier epoch reads as `in_doubt`: no merge can undo an effect.
- A field has the value of the highest (n, node, at_ms).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from roost_crdt.entries import (
    CallLeaf,
    CallPlace,
    Epoch,
    FieldRank,
    Status,
    Step,
    Summary,
    TurnEntry,
    TurnRef,
    call_entry,
    check_entry,
    check_field,
    encode_leaf,
    field_entry,
    field_rank,
    field_value,
    read_place,
    read_step,
    read_summary,
    read_turn,
    summary_entry,
    summary_leaf,
    turn_entry,
    turn_leaf,
)
from roost_crdt.errors import CorruptData
from roost_crdt.limits import DEFAULT_LIMITS, Limits

__all__ = [
    "Branch",
    "CallState",
    "Epoch",
    "Fold",
    "Status",
    "Step",
    "Summary",
    "TurnEntry",
    "TurnRef",
    "call_entry",
    "check_entry",
    "check_field",
    "field_entry",
    "summary_entry",
    "turn_entry",
]


class CallState(NamedTuple):
    """Where a tool call is. `epoch` is the one under which the step shown was written.

    `tool` and `args` are those of its first step; `result` is raw JSON where there is one.
    """

    status: Step
    tool: str
    args: bytes
    result: bytes | None
    attempt: int
    epoch: Epoch


class Branch(NamedTuple):
    """Turns that are not on the active path, oldest first; `epoch` and `turn` are the last's."""

    epoch: Epoch
    turn: int
    entries: list[TurnEntry]

    @property
    def messages(self) -> list[bytes]:
        return [message for entry in self.entries for message in entry.messages]


# --- the fold -----------------------------------------------------------------------------------


class Fold:
    """The readable state of one session."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self.collisions = 0
        """Entries that came with two bodies: two writers share an identity (clone, rollback)."""
        self.calls: dict[str, CallState] = {}
        self._limits = limits
        self._turns: dict[TurnRef, TurnEntry] = {}
        self._lineage: dict[Epoch, int] = {}
        self._by_turn_id: dict[str, TurnRef] = {}
        self._summaries: dict[str, Summary] = {}
        self._covering: dict[TurnRef, str] = {}
        """Turn -> the key of the summary that stands for it."""
        self._raw_steps: dict[str, bytes] = {}
        self._steps: dict[str, list[tuple[CallPlace, CallLeaf]]] = {}
        self._raw_fields: dict[str, bytes] = {}
        self._field_ranks: dict[str, FieldRank] = {}
        self._head: TurnRef | None = None
        self._path: list[TurnRef] = []
        self._path_set: set[TurnRef] = set()
        self._path_ready = True

    # --- taking entries in ----------------------------------------------------------------------

    def add(self, key: str, leaf: bytes) -> None:
        """Take in an entry; any order, any number of times. Raises CorruptData."""
        kind = key[:2]
        if kind == "t/":
            self._add_turn(key, leaf)
        elif kind == "c/":
            self._add_step(key, leaf)
        elif kind == "s/":
            self._add_summary(key, leaf)
        else:
            raise CorruptData(f"entry {key[:40]!r} is of no known kind")

    def add_field(self, key: str, leaf: bytes) -> None:
        """Take in a value of a field; any order, any number of times. Raises CorruptData."""
        rank = field_rank(leaf, key)
        held = self._field_ranks.get(key)
        if held is None or rank > held:
            self._field_ranks[key] = rank
            self._raw_fields[key] = leaf

    def put_field(
        self, policy: str, field: str, epoch: Epoch, value: bytes | None, now_ms: int
    ) -> tuple[str, bytes]:
        """`field_entry` with a time above that of the value in force under the same epoch."""
        held = self._field_ranks.get(f"{policy}\0{field}")
        if held is not None and held[:2] == epoch:
            now_ms = max(now_ms, held[2] + 1)
        return field_entry(policy, field, epoch, value, now_ms)

    def _add_turn(self, key: str, leaf: bytes) -> None:
        entry = read_turn(key, leaf)
        ref = entry.ref
        held = self._turns.get(ref)
        if held is not None:
            if held == entry:
                return
            self.collisions += 1
            if turn_leaf(held) > turn_leaf(entry):
                return
        self._turns[ref] = entry
        epoch = ref[:2]
        if ref[2] > self._lineage.get(epoch, 0):
            self._lineage[epoch] = ref[2]
        if entry.turn_id is not None:
            known = self._by_turn_id.get(entry.turn_id)
            if known is None or ref > known:
                self._by_turn_id[entry.turn_id] = ref
        self._extend_path(entry, ref, known=held is not None)

    def _extend_path(self, entry: TurnEntry, ref: TurnRef, *, known: bool) -> None:
        if self._head is None or ref > self._head:
            if self._path_ready and entry.parent == self._head:
                self._path.append(ref)
                self._path_set.add(ref)
            else:
                self._path_ready = False
            self._head = ref
        elif known or (self._path_ready and self._turns[self._path[0]].parent == ref):
            self._path_ready = False

    def _add_step(self, key: str, leaf: bytes) -> None:
        held = self._raw_steps.get(key)
        if held == leaf:
            return
        place, body = read_step(key, leaf)
        if held is not None:
            self.collisions += 1
            if held > leaf:
                return
        self._raw_steps[key] = leaf
        steps = self._steps.setdefault(place.call, [])
        steps[:] = [step for step in steps if step[0] != place]
        steps.append((place, body))
        self.calls[place.call] = _call_state(steps)

    def _add_summary(self, key: str, leaf: bytes) -> None:
        summary = read_summary(key, leaf)
        held = self._summaries.get(key)
        if held is not None:
            if held == summary:
                return
            self.collisions += 1
            if summary_leaf(held) > summary_leaf(summary):
                return
            self._uncover(held.covers, key)
        self._summaries[key] = summary
        self._cover(summary.covers, key)

    def _cover(self, turn: TurnRef, key: str) -> None:
        """Of several summaries of a turn the one of the highest place stands for it."""
        standing = self._covering.get(turn)
        if standing is None or read_place(key) > read_place(standing):
            self._covering[turn] = key

    def _uncover(self, turn: TurnRef, key: str) -> None:
        """The summary of that key covers another turn: whatever else covers this one stands."""
        del self._summaries[key]
        del self._covering[turn]
        for other, summary in self._summaries.items():
            if summary.covers == turn:
                self._cover(turn, other)

    # --- conversation ---------------------------------------------------------------------------

    @property
    def turn(self) -> TurnRef | None:
        """The current turn; None before the first."""
        return self._head

    def path(self, last: int | None = None) -> list[TurnEntry]:
        """The newest `last` turns (None = all) of the active path, oldest first, untrimmed."""
        refs = self._active()
        if last is not None:
            refs = refs[max(0, len(refs) - last) :]
        return [self._turns[ref] for ref in refs]

    def messages(self, last: int | None = None) -> list[bytes]:
        """Raw JSON messages of the newest `last` turns (None = all), oldest first.

        Where they reach a turn that a summary covers, the summary stands for it and all before.
        """
        refs = self._active()
        start = 0 if last is None else max(0, len(refs) - last)
        messages: list[bytes] = []
        if self._covering:
            for at in range(len(refs) - 1, start - 1, -1):
                covering = self._covering.get(refs[at])
                if covering is not None:
                    messages.append(self._summaries[covering].message)
                    start = at + 1
                    break
        for ref in refs[start:]:
            messages.extend(self._turns[ref].messages)
        return messages

    def branches(self) -> list[Branch]:
        """Turns beside the active path, each in exactly one branch; in order of their last turn."""
        self._active()
        if len(self._path_set) == len(self._turns):
            return []
        branches: list[Branch] = []
        taken: set[TurnRef] = set()
        for tip in sorted(self._turns.keys() - self._path_set, reverse=True):
            entries: list[TurnEntry] = []
            ref: TurnRef | None = tip
            while ref in self._turns and ref not in taken and ref not in self._path_set:
                taken.add(ref)
                entries.append(self._turns[ref])
                ref = entries[-1].parent
            if entries:
                entries.reverse()
                branches.append(Branch(tip[:2], tip[2], entries))
        branches.reverse()
        return branches

    def on_path(self, ref: TurnRef) -> bool:
        """Whether a turn is on the active path."""
        self._active()
        return ref in self._path_set

    def lineage(self) -> Mapping[Epoch, int]:
        """The last turn held of each epoch, branches included."""
        return self._lineage

    def path_epochs(self, newest: int) -> tuple[tuple[int, str, int, int], ...]:
        """The newest epochs of the active path, oldest first.

        Each is `(n, node, start, last)`: it committed the turns after `start` up to `last`.
        """
        refs = self._active()
        found: list[tuple[int, str, int, int]] = []
        at = len(refs)
        while at and len(found) < newest:
            n, node, last = refs[at - 1]
            at = self._run_start(refs, at - 1)
            found.append((n, node, refs[at][2] - 1, last))
        found.reverse()
        return tuple(found)

    @staticmethod
    def _run_start(refs: list[TurnRef], end: int) -> int:
        """The place of the first turn of the epoch that `refs[end]` is of (epochs only rise)."""
        epoch = refs[end][:2]
        low, high = 0, end
        while low < high:
            middle = (low + high) // 2
            if refs[middle][:2] < epoch:
                low = middle + 1
            else:
                high = middle
        return low

    def find_turn_id(self, turn_id: str) -> TurnEntry | None:
        """The turn that was committed under an id; at least the last 256 turns are known.

        The newest one, if two homes committed it without knowing of each other.
        """
        ref = self._by_turn_id.get(turn_id)
        if ref is None or self._head is None:
            return None
        if ref[2] <= self._head[2] - self._limits.turn_ids_kept:
            return None
        return self._turns[ref]

    def _active(self) -> list[TurnRef]:
        if not self._path_ready:
            path: list[TurnRef] = []
            ref = self._head
            while ref is not None:
                entry = self._turns.get(ref)
                if entry is None:
                    break  # a part of the view only: what is held is shown
                path.append(ref)
                ref = entry.parent
            path.reverse()
            self._path, self._path_set, self._path_ready = path, set(path), True
        return self._path

    # --- ledger and fields ----------------------------------------------------------------------

    def status(self, call: str, epoch: Epoch) -> Status | None:
        """Where a call is for the home of `epoch`; None if it was never begun."""
        state = self.calls.get(call)
        if state is None:
            return None
        if state.status == "begun" and state.epoch < epoch:
            return "in_doubt"
        return state.status

    def fields(self) -> dict[str, dict[str, bytes]]:
        """Policy to field to raw JSON; removed fields are not there."""
        found: dict[str, dict[str, bytes]] = {}
        for key, leaf in self._raw_fields.items():
            value = field_value(leaf)
            if value is not None:
                policy, _, field = key.partition("\0")
                found.setdefault(policy, {})[field] = value
        return found

    def field(self, policy: str, field: str) -> bytes | None:
        """The raw JSON of one field; None if it has no value."""
        leaf = self._raw_fields.get(f"{policy}\0{field}")
        return None if leaf is None else field_value(leaf)

    # --- the stored view ------------------------------------------------------------------------

    def raw_fields(self) -> dict[str, bytes]:
        """The leaf in force of each field, removed ones included."""
        return dict(self._raw_fields)

    def raw_entries(self) -> dict[str, bytes]:
        """Every entry that counts, as key and leaf; also summaries of turns that are not here."""
        summaries = {key: summary_leaf(summary) for key, summary in self._summaries.items()}
        return self.entries_of(self._turns.keys()) | summaries

    def entries_of(self, turns: Collection[TurnRef]) -> dict[str, bytes]:
        """The entries of some turns and their summaries, and the whole ledger: what a fork takes.

        The ledger belongs to the session, not to a branch: its side effects did happen.
        """
        entries: dict[str, bytes] = {}
        for ref in turns:
            entry = self._turns.get(ref)
            if entry is not None:
                entries[f"t/{entry.n}.{entry.node}.{entry.turn}"] = turn_leaf(entry)
        for turn, key in self._covering.items():
            if turn in turns:
                entries[key] = summary_leaf(self._summaries[key])
        entries.update(self._raw_steps)
        return entries

    def view_rows(
        self, entries: Mapping[str, bytes], fields: Mapping[str, bytes]
    ) -> dict[bytes, bytes]:
        """Rows under which a step is kept for readers without pycrdt: `e` + key, `f` + key."""
        rows = {b"e" + key.encode(): leaf for key, leaf in entries.items()}
        rows.update({b"f" + key.encode(): leaf for key, leaf in fields.items()})
        return rows

    @classmethod
    def from_views(
        cls, items: Iterable[tuple[bytes, bytes]], limits: Limits = DEFAULT_LIMITS
    ) -> Fold:
        """The fold of stored view rows, in any order. Raises CorruptData."""
        fold = cls(limits)
        for row, leaf in items:
            try:
                key = row[1:].decode()
            except UnicodeDecodeError as error:
                raise CorruptData(f"view row {row[:40]!r} is not UTF-8") from error
            if row[:1] == b"e":
                fold.add(key, leaf)
            elif row[:1] == b"f":
                fold.add_field(key, leaf)
            else:
                raise CorruptData(f"view row {row[:40]!r} is of no known kind")
        return fold


def _call_state(steps: Iterable[tuple[CallPlace, CallLeaf]]) -> CallState:
    """The fold of one call's steps (there is at least one)."""
    ordered = sorted(steps, key=_step_order)
    first = ordered[0][1]
    finished = [step for step in ordered if step[0].status == "finished"]
    if finished:
        place, body = finished[0]
    else:
        attempt = max(place.attempt for place, _ in ordered)
        latest = [step for step in ordered if step[0].attempt == attempt]
        failed = [step for step in latest if step[0].status == "failed"]
        # A call that two homes began is in doubt only if the newer of them has lost its place.
        place, body = failed[0] if failed else latest[-1]
    return CallState(place.status, first.tool, first.args, body.result, place.attempt, place.epoch)


def _step_order(step: tuple[CallPlace, CallLeaf]) -> tuple[Epoch, int, int, bytes]:
    """By epoch and time; ties by attempt and body, so that every node sees one order."""
    place, body = step
    return place.epoch, body.at_ms, place.attempt, encode_leaf(body)
