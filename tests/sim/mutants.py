"""Rules taken out one by one: each mutant must be caught by a seed.

A mutant replaces one function of the core (or of the simulator's shell, where the rule is a
shell's duty) by one without the rule. `SEEDS` names the seed that catches it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from sim import linearmutants, quotamutants, sessionmutants

from roost_crdt import inflow, membership, outflow, peer, replica, rows
from roost_crdt.hlc import Hlc
from roost_crdt.membership import reports
from roost_crdt.record import decode_record
from roost_crdt.rows.layout import TAG_ACTOR, TYPE_COUNTER
from roost_sim import disk, links, log, node, store
from roost_sim.explore import run_seed

Patch = tuple[Any, str, Any]


def _one_winner(type_code: int, part: bytes, a: Any, b: Any) -> Any:
    if type_code != TYPE_COUNTER or part[0] != TAG_ACTOR:
        return _join_row(type_code, part, a, b)
    return max(a, b, key=lambda row: (row[2] + row[3], row[0] + row[1]))


_join_row = rows.join_row


def _no_gaps(raw: bytes, **bounds: Any) -> Any:
    return decode_record(raw, **bounds)._replace(prev_hlc=0)


def _accept_what_changes(self: Any, raw: bytes, record: Any) -> bool:
    before = {op.row_key: op.body for op in self.scan_rows(b"", 1 << 30)}
    if all(before.get(op.row_key) == op.body for op in record.ops):
        return True
    return _accept(self, raw, record)


_accept = store.Store.accept


def _skip_the_future(self: Any, source: Any, raw: bytes, record: Any, now_ms: int) -> None:
    near = self._near
    ahead_ms = (record.hlc >> 16) - (now_ms + near.wall_ahead_ms)
    held = near.vv.get(record.actor, 0)
    if ahead_ms > near.limits.clock_offset_max_ms and record.prev_hlc <= held < record.hlc:
        near.advance(record.actor, record.hlc)
        return
    _record(self, source, raw, record, now_ms)


_record = inflow.Inflow._record


def _send_first(self: Any, effects: Any) -> bool:
    frames, effects.frames = effects.frames, []
    self._send_all(frames)
    return _carry_out(self, effects)


_carry_out = node.Node._carry_out


def _keep_the_actor(self: Any) -> None:
    if self.disk.index.meta:
        self.disk.index.meta[store.CLEAN] = b"1"
    _identify(self)


_identify = store.Store._identify


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _always(*_: Any, **__: Any) -> bool:
    return True


ALL: dict[str, tuple[Patch, ...]] = {
    "a reset takes the whole row, not what it observed": ((rows, "join_row", _one_winner),),
    "a gap in a neighbour's records is accepted": ((inflow, "decode_record", _no_gaps),),
    "the window has no bound": ((peer.Peer, "room", _always),),
    "the version vector moves only if state changed": (
        (store.Store, "accept", _accept_what_changes),
    ),
    "records of the future are skipped": ((inflow.Inflow, "_record", _skip_the_future),),
    "frames leave before the flush": ((node.Node, "_carry_out", _send_first),),
    "the actor is kept after a power cut": ((store.Store, "_identify", _keep_the_actor),),
    "no Rollback at the greeting": (
        (replica.Replica, "_check_greeting", _nothing),
        (inflow.Inflow, "_check_own", _nothing),
        (links, "other_history", _nothing),
        (membership.Membership, "_compare_reports", _nothing),
    ),
    "what was replayed is not synced": ((log.Log, "_make_sure", _nothing),),
    "the clock does not follow what it sees": ((Hlc, "observe", _nothing),),
    "who has still to meet a neighbour reports what it holds": (
        (reports.Members, "_has_met_all", _always),
    ),
    "nothing is announced": (
        (outflow.Outflow, "announce", _nothing),
        (outflow.Outflow, "announce_all", _nothing),
    ),
    "a sync does not order anything": ((disk.Disk, "sync", _nothing),),
    **sessionmutants.MUTANTS,
    **quotamutants.MUTANTS,
    **linearmutants.MUTANTS,
}

_RULES: dict[str, tuple[Patch, ...]] = {
    name: tuple((place, what, getattr(place, what)) for place, what, _ in patches)
    for name, patches in ALL.items()
}

SEEDS: dict[str, int] = {
    "a reset takes the whole row, not what it observed": 4,
    "a gap in a neighbour's records is accepted": 1,
    "the window has no bound": 37,
    "the version vector moves only if state changed": 15,
    "records of the future are skipped": 50,
    "frames leave before the flush": 8,
    "the actor is kept after a power cut": 60,
    "no Rollback at the greeting": 76,
    "what was replayed is not synced": 203,
    "the clock does not follow what it sees": 78,
    "nothing is announced": 64,
    "a sync does not order anything": 4,
    **sessionmutants.SEEDS,
    **quotamutants.SEEDS,
    **linearmutants.SEEDS,
}

MUTANTS = {name: patches for name, patches in ALL.items() if name in SEEDS}
UNCAUGHT = {name: patches for name, patches in ALL.items() if name not in SEEDS}
"""Rules that no seed which was tried needs; `caught.py` names the test that keeps each."""


@contextmanager
def patched(patches: Sequence[Patch]) -> Iterator[None]:
    """Attributes of modules and classes replaced for a while."""
    before = [(place, what, getattr(place, what)) for place, what, _ in patches]
    for place, what, instead in patches:
        setattr(place, what, instead)
    try:
        yield
    finally:
        for place, what, was in before:
            setattr(place, what, was)


def applied(name: str) -> AbstractContextManager[None]:
    """The simulator with one rule taken out."""
    return patched(ALL[name])


def first_seed(name: str, seeds_max: int = 400) -> tuple[str, int | None, str]:
    """The seed known to catch a mutant, or the first that does, and what it says."""
    with applied(name):
        for seed in (*filter(None, (SEEDS.get(name),)), *range(1, seeds_max + 1)):
            problems = run_seed(seed).problems
            if problems and not _fails_anyhow(name, seed):
                return name, seed, problems[0].splitlines()[0]
    return name, None, "no seed catches it"


def _fails_anyhow(name: str, seed: int) -> bool:
    with patched(_RULES[name]):
        return bool(run_seed(seed).problems)


if __name__ == "__main__":
    with ProcessPoolExecutor() as pool:
        for found in pool.map(first_seed, sys.argv[1:] or ALL):
            print('    "{}": {},  # {}'.format(*found), flush=True)
