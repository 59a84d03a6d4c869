"""What clients of sessions did and were told, and what is wrong as soon as it is told.

An answer binds its node: it is void only if that node's disk lied or went back to an older copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from roost_crdt.entries import Epoch, TurnRef
from roost_crdt.token import claims_from_json

from .answers import Answer, Request

if TYPE_CHECKING:
    from .talkers import Talker


@dataclass(slots=True, eq=False)
class Turn:
    """A turn that a client asked for."""

    turn_id: str
    message: bytes
    put: tuple[tuple[str, bytes | None], ...] = ()
    refs: dict[tuple[str, TurnRef], float] = field(default_factory=dict)
    """(session, place) -> when it was answered, while the answer binds."""
    told_by: dict[tuple[str, TurnRef], str] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Finish:
    """A finished call that was answered."""

    sid: str
    call: str
    result: bytes
    node: str
    at_ms: float


@dataclass(slots=True, eq=False)
class Fork:
    """A fork that was answered: what the new session began with."""

    sid: str
    epoch: Epoch
    path: tuple[TurnRef, ...]
    finished: frozenset[str]
    node: str
    at_ms: float


@dataclass(slots=True, eq=False)
class Covered:
    """A summary that was answered."""

    sid: str
    ref: TurnRef
    node: str
    at_ms: float


class Talks:
    """What all clients of sessions did."""

    def __init__(self) -> None:
        self.turns: dict[str, Turn] = {}
        self.finishes: list[Finish] = []
        self.forks: list[Fork] = []
        self.covered: list[Covered] = []
        self.children: dict[str, None] = {}
        """Sessions that are forks, or may have been made as one."""
        self.results: dict[str, set[bytes]] = {}
        """Every result that was offered for a call: two homes that finish it keep one of them."""
        self.begun: dict[tuple[str, str], set[Epoch]] = {}
        """(session, call) -> epochs under which a client was told that it is the first."""
        self.asked: dict[tuple[str, str], int] = {}
        """(session, call) -> how many may have begun it and were not told: what was forwarded may
        have been carried out twice."""
        self.receipts: dict[tuple[str, str], float] = {}
        """(session, node) -> when the node said that it has erased the session."""
        self.erased: dict[str, tuple[str, float]] = {}
        """Session -> (node, when) of an erasure that was answered, while that binds."""
        self.after: dict[str, str] = {}
        """Session that was erased -> the one that its clients opened instead."""
        self.standbys: dict[tuple[str, Epoch], str | None] = {}
        """The standby that each epoch was told to have."""
        self.sids: dict[str, None] = {}
        self.opened: dict[str, bytes] = {}
        """The first token of each session; who talks to it later was given it."""
        self.opener: dict[str, Talker] = {}
        self.problems: list[str] = []
        self.voided: list[tuple[str, float, float]] = []
        self.reads = 0

    def binds(self, node: str, promised_ms: float) -> bool:
        """Whether an answer that arrives now was not made void on its way."""
        return not any(
            node == other and since_ms <= promised_ms <= until_ms
            for other, since_ms, until_ms in self.voided
        )

    def void(self, node: str, since_ms: float, now_ms: float) -> None:
        """What this node promised since then it cannot keep."""
        self.voided.append((node, since_ms, now_ms))
        for turn in self.turns.values():
            for at in [p for p, ms in turn.refs.items() if turn.told_by[p] == node]:
                if turn.refs[at] >= since_ms:
                    del turn.refs[at]
        self.finishes = [f for f in self.finishes if f.node != node or f.at_ms < since_ms]
        self.forks = [f for f in self.forks if f.node != node or f.at_ms < since_ms]
        self.covered = [c for c in self.covered if c.node != node or c.at_ms < since_ms]
        for key in [k for k, ms in self.receipts.items() if k[1] == node and ms >= since_ms]:
            del self.receipts[key]
        for sid in [s for s, (by, ms) in self.erased.items() if by == node and ms >= since_ms]:
            del self.erased[sid]

    # --- what is told

    def told(self, answer: Answer, request: Request) -> None:
        """Note what any answer says; I10: who has erased a session serves it no more."""
        self.sids[answer.sid] = None
        self._check_standby(answer)
        erased_ms = self.receipts.get((answer.sid, answer.node))
        if erased_ms is not None and answer.promised_ms > erased_ms:
            self.problems.append(
                f"I10: {answer.node} erased {answer.sid} and answered a {request.kind} of it "
                f"{answer.promised_ms - erased_ms:.0f} ms later"
            )
        for receipt in answer.receipts:
            if not receipt.pending and self.binds(receipt.node, receipt.at_ms):
                self.receipts[answer.sid, receipt.node] = receipt.at_ms
        if request.kind == "erase" and self.binds(answer.node, answer.promised_ms):
            self.erased[answer.sid] = (answer.node, answer.promised_ms)

    def _check_standby(self, answer: Answer) -> None:
        """I9: each change of home or standby is an epoch, so each epoch has one of either."""
        claims = claims_from_json(answer.token)
        named = self.standbys.setdefault((answer.sid, claims.epoch), claims.standby)
        if named != claims.standby and not self.voided:
            self.problems.append(
                f"I9: epoch {claims.epoch} of {answer.sid} has {named} for its standby and "
                f"{claims.standby}"
            )

    def told_turn(self, turn: Turn, answer: Answer) -> None:
        # What was told before is told again: by whom it was committed does not matter.
        assert answer.ref is not None
        if self.binds(answer.node, answer.promised_ms):
            turn.refs[answer.sid, answer.ref] = answer.promised_ms
            turn.told_by[answer.sid, answer.ref] = answer.node

    def told_summary(self, answer: Answer) -> None:
        assert answer.ref is not None
        if self.binds(answer.node, answer.promised_ms):
            self.covered.append(Covered(answer.sid, answer.ref, answer.node, answer.promised_ms))

    def told_fork(self, answer: Answer) -> None:
        if self.binds(answer.node, answer.promised_ms):
            self.forks.append(
                Fork(
                    answer.sid,
                    answer.epoch,
                    answer.path,
                    answer.finished,
                    answer.node,
                    answer.promised_ms,
                )
            )

    def told_call(self, answer: Answer, call: str) -> None:
        """I7: what reads as begun was begun under the epoch in force, else it is in doubt."""
        key = (answer.sid, call)
        if answer.fresh:
            self.begun.setdefault(key, set()).add(answer.epoch)
            return
        known = self.asked.get(key) or answer.epoch in self.begun.get(key, ())
        if answer.status == "begun" and not known:
            self.problems.append(
                f"I7: {call} of {answer.sid} reads as begun at {answer.node} under {answer.epoch}, "
                "under which nobody began it"
            )
        binds = self.binds(answer.node, answer.promised_ms)
        if answer.status == "finished" and answer.result is not None and binds:
            self.finishes.append(
                Finish(answer.sid, call, answer.result, answer.node, answer.promised_ms)
            )

    def check_read(self, answer: Answer, request: Request, seen: Mapping[TurnRef, float]) -> None:
        """I8: what the token's bearer has seen is there, or counted as lacking."""
        assert request.token is not None
        self.reads += 1
        claims = claims_from_json(request.token)
        path = {(n, node): (start, last) for n, node, start, last in claims.path}
        lacking = [
            ref
            for ref in seen
            if ref[:2] in path
            and path[ref[:2]][0] < ref[2] <= path[ref[:2]][1]
            and ref not in answer.held
        ]
        if len(lacking) > answer.stale:
            self.problems.append(
                f"I8: {answer.node} serves {request.sid} as {answer.stale} turns stale, "
                f"{len(lacking)} are lacking: {lacking[:3]}"
            )
