"""Rules of sessions taken out one by one; `mutants.py` applies them and knows how to search."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec

from roost_crdt import document, fold
from roost_crdt.home import Merged, Verdict, judge_update
from roost_crdt.sessions import copy, intake, outbox, shelf, stream
from roost_sim import athome, sessions

Patch = tuple[Any, str, Any]


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _always(*_: Any, **__: Any) -> bool:
    return True


def _no(*_: Any, **__: Any) -> bool:
    return False


async def _at_once(*_: Any, **__: Any) -> None:
    return None


# --- epochs


def _bare_turns(claims: Any, lineage: Any) -> int:
    return max(0, claims.turn - max(lineage.values(), default=0))


def _any_update(mine: Any, epoch: Any, n: int, prev_chain: bytes) -> Verdict:
    verdict = judge_update(mine, epoch, n, prev_chain)
    held = mine is not None and mine.held and not mine.unmerged
    return Verdict.APPEND if verdict is Verdict.WANT and held else verdict


def _any_takeover(mine: Any, node: str, **evidence: Any) -> bool:
    return mine is not None and mine.held and mine.home != node


async def _no_waiting(self: Any, sid: str) -> bool:
    taken: bool = self.stream.take_over(sid, probe_failed=True)
    meta = self.shelf.meta(sid)
    if taken and self.silent_ms(meta.standby) < sessions.TAKEOVER_AFTER_MS:
        self.node.problems.append("I9: took over from a home that it heard")
    return taken


def _forget_own_turns(self: Any, sid: str, epoch: Any, standby: Any) -> Any:
    meta = _learn(self, sid, epoch, standby)
    live = self.lives.get(sid)
    if live is not None and live.meta.unmerged:
        live.set_meta(msgspec.structs.replace(live.meta, unmerged=False))
        return live.meta
    return meta


def _numbers_only(self: Any, sid: str, epoch: Any, standby: Any) -> Any:
    meta = self.meta(sid)
    if meta is not None and meta.held and epoch[0] <= meta.epoch[0]:
        return meta
    return _learn(self, sid, epoch, standby)


def _home_stays(self: Any, sid: str, epoch: Any, standby: Any) -> Any:
    meta = self.meta(sid)
    if meta is not None and meta.held and meta.home == self.node:
        return meta
    return _learn(self, sid, epoch, standby)


_learn = shelf.Shelf.learn


def _adopt_over_own_turns(self: Any, frame: Any) -> bool:
    own = self._shelf
    meta = own.meta(frame.sid)
    if meta is not None and (meta.epoch >= frame.epoch or meta.erased_ms):
        return False
    live = own.live(frame.sid) or own.adopt(
        own.new_copy(stream.Meta(frame.sid, frame.epoch, frame.standby))
    )
    live.replace(frame)
    live.confirmed = own.generation
    self.offer(live)
    return True


def _own_epoch_unmerged(self: Any, home: Any, standby: Any, now_ms: int, leap: int = 1) -> None:
    unmerged = self.meta.unmerged
    _enter_epoch(self, home, standby, now_ms, leap)
    self.set_meta(msgspec.structs.replace(self.meta, unmerged=unmerged))


def _standby_in_the_same_epoch(
    self: Any, home: Any, standby: Any, now_ms: int, leap: int = 1
) -> None:
    same = self.meta.home == home and self.meta.actor == self._actor and leap == 1
    if not same:
        _enter_epoch(self, home, standby, now_ms, leap)
        return
    self.set_meta(msgspec.structs.replace(self.meta, standby=standby, acked_n=0))


_enter_epoch = copy.SessionCopy.enter_epoch


async def _reply_at_once(self: Any, *arguments: Any, **more: Any) -> Any:
    """What is answered is not on the disk yet."""
    durable, self.durable = self.durable, _at_once
    try:
        return await _at_home(self, *arguments, **more)
    finally:
        self.durable = durable


_at_home = athome.AtHome.at_home


# --- what was answered once


def _own_turns_only(self: Any, turn_id: str) -> Any:
    """What an earlier home committed is not recognised."""
    found = _find_turn_id(self, turn_id)
    return found if found is not None and found.ref[:2] == self.turn[:2] else None


_find_turn_id = fold.Fold.find_turn_id


def _begun_is_begun(self: Any, call: str, epoch: Any) -> Any:
    state = self.calls.get(call)
    return None if state is None else state.status


def _latest_step(steps: Any) -> Any:
    """A ledger that believes the newest step, be it `begun` after `finished`."""
    place, body = max(steps, key=lambda step: step[1].at_ms)
    return _call_state(steps)._replace(status=place.status, result=body.result)


_call_state = fold._call_state


def _no_rank(leaf: bytes) -> int:
    return 0


# --- losses


def _merged_at_once(self: Any, peer: str, live: Any, chain: bytes) -> None:
    self.send(peer, Merged(live.meta.sid, live.meta.epoch, chain))


def _trust_the_acknowledged(self: Any, meta: Any, newcomers: Collection[str]) -> None:
    home = meta.home == self._shelf.node and meta.acked_n >= meta.n
    known = [node for node in newcomers if not (home and node == meta.standby)]
    if known or not newcomers:
        _revisit(self, meta, known)


_revisit = stream.Stream._revisit


def _all_again(self: Any, after: str, newcomers: Any = (), *, repeated: bool = False) -> Any:
    return _sweep_page(self, after, newcomers)


_sweep_page = stream.Stream.sweep_page


def _copied_when_offered(self: Any, live: Any) -> None:
    """An offer or a turn counts as the copy that a candidate is to be sent."""
    _note_unacked(self, live)
    copying = self.candidates.get(live.meta.sid)
    if copying is not None:
        self.candidates[live.meta.sid] = copying._replace(at_ms=self._shelf.steady_ms())


_note_unacked = outbox.Outbox.note_unacked


# --- erasure


def _erase_alone(self: Any, sid: str, at_ms: int, heard_from: str = "") -> bool:
    told, self._out.erase = self._out.erase, _nothing
    try:
        return _erase_here(self, sid, at_ms, heard_from)
    finally:
        self._out.erase = told


_erase_here = stream.Stream.erase_here


def _told_once(self: Any, up: Collection[str]) -> None:
    self.erasures.clear()


def _serves_the_erased(self: Any, live: Any) -> None:
    if live.meta.home != self.node.name:
        _still_home(self, live)


_still_home = athome.AtHome.still_home


MUTANTS: dict[str, tuple[Patch, ...]] = {
    "staleness by bare turn numbers": ((athome, "lacks", _bare_turns),),
    "the standby takes updates without their chain": ((intake, "judge_update", _any_update),),
    "takeover on no evidence": (
        (stream, "may_take_over", _any_takeover),
        (sessions.Sessions, "_try_take_over", _no_waiting),
    ),
    "a deposed home forgets its own turns": ((shelf.Shelf, "learn", _forget_own_turns),),
    "epochs are compared by number alone": ((shelf.Shelf, "learn", _numbers_only),),
    "a home that is shown a higher epoch stays home": ((shelf.Shelf, "learn", _home_stays),),
    "a handover overwrites own turns": ((stream.Stream, "adopt", _adopt_over_own_turns),),
    "home again, and still to be merged": ((copy.SessionCopy, "enter_epoch", _own_epoch_unmerged),),
    "a standby is replaced within the epoch": (
        (copy.SessionCopy, "enter_epoch", _standby_in_the_same_epoch),
    ),
    "a turn does not look for its home after a wait": ((athome.AtHome, "still_home", _nothing),),
    "a turn does not look whether it was erased": (
        (athome.AtHome, "still_home", _serves_the_erased),
    ),
    "a reply does not wait for the disk": ((athome.AtHome, "at_home", _reply_at_once),),
    "a new actor goes on in the old epoch": ((shelf.Shelf, "_enter_own_epoch", _nothing),),
    "a new actor takes the next epoch": ((copy, "ACTOR_LEAP", 1),),
    "a turn id of an earlier home is not looked up": (
        (fold.Fold, "find_turn_id", _own_turns_only),
    ),
    "a call begun under an earlier epoch is no doubt": ((fold.Fold, "status", _begun_is_begun),),
    "the newest step of a call stands": ((fold, "_call_state", _latest_step),),
    "fields of two homes with one number are left to Yjs": ((document, "field_rank", _no_rank),),
    "a lost tail is not left": ((copy.SessionCopy, "leave_lost_tail", _nothing),),
    "merged turns are given up before the standby has them": (
        (outbox.Outbox, "owe", _merged_at_once),
    ),
    "a home that lost everything takes nothing from a former one": (
        (intake.Intake, "_begin_again", _nothing),
    ),
    "a home that lost everything does not ask its standby": (
        (intake.Intake, "_ask_standby", _nothing),
        (sessions.Sessions, "_yield_to_standby", _at_once),
    ),
    "what a standby acknowledged it is trusted to have": (
        (stream.Stream, "_revisit", _trust_the_acknowledged),
    ),
    "nobody behind a neighbour hears of an epoch": ((stream.Stream, "_watch_for_far", _nothing),),
    "all is swept again where a frame had no room": (
        (sessions, "told_once", _always),
        (stream.Stream, "sweep_page", _all_again),
    ),
    "a turn counts as the copy that a new standby lacks": (
        (outbox.Outbox, "note_unacked", _copied_when_offered),
    ),
    "a node that is drained takes sessions in": ((stream.Stream, "adopts", True),),
    "an erasure is not passed on": ((stream.Stream, "erase_here", _erase_alone),),
    "an erasure is told once": ((outbox.Outbox, "erase_again", _told_once),),
    "a handover outranks an erasure": ((stream.Stream, "_erased", _no),),
}

SEEDS: dict[str, int] = {
    "staleness by bare turn numbers": 2,
    "the standby takes updates without their chain": 37,
    "takeover on no evidence": 6,
    "a deposed home forgets its own turns": 4,
    "epochs are compared by number alone": 15,
    "a home that is shown a higher epoch stays home": 22,
    "a handover overwrites own turns": 199,
    "home again, and still to be merged": 2,
    "a standby is replaced within the epoch": 22,
    "a turn does not look for its home after a wait": 55,
    "a reply does not wait for the disk": 2,
    "a turn does not look whether it was erased": 146,
    "the newest step of a call stands": 12,
    "a home that lost everything does not ask its standby": 34,
}
