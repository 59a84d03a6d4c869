"""Rules of linearizable keys taken out one by one; seeds in which they are used catch them."""

from __future__ import annotations

from typing import Any

from roost_crdt.errors import Unavailable, UnknownOutcome
from roost_crdt.linear.hosted import Hosted
from roost_crdt.linear.request_ids import RequestIds
from roost_crdt.linear.swaps import Swaps
from roost_crdt.linear.work import Work
from roost_sim.endpoint import Endpoint, Way
from roost_sim.linear import Linear

Patch = tuple[Any, str, Any]


def _id_of_the_attempt(self: Any, number: int, attempt: int) -> bytes:
    return b"r%d.%d" % (number, attempt)


def _no_rows(*_: Any, **__: Any) -> dict[bytes, bytes | None]:
    return {}


async def _at_once(*_: Any, **__: Any) -> None:
    return None


def _any_revision(self: Any, txn: Any, request_id: Any, result: bytes) -> Any:
    return _execute(self, txn._replace(compares=()), request_id, result)


_execute = Hosted.execute


async def _cached(self: Any, work: Work, ends_s: float) -> Any:
    """Reads are answered from what this node saw last."""
    if work.reads and all(key in self._known for key in work.keys):
        return self._run(work, [self._known[key] for key in work.keys]).replies
    return await _attempts(self, work, ends_s)


_attempts = Swaps.attempts


def _unburied(self: Any, work: Work, items: Any) -> Any:
    """What a reader finds due is over for that reader alone."""
    run = _run(self, work, items)
    return run._replace(puts={}) if work.reads else run


_run = Swaps._run


async def _no_change(self: Any, *arguments: Any, **more: Any) -> Any:
    """Who got no answer says that nothing was changed."""
    try:
        return await _txn(self, *arguments, **more)
    except UnknownOutcome as error:
        raise Unavailable(error.message) from None


_txn = Way.txn


async def _always_again(self: Any, work: Any, deadline_ms: int, **_: Any) -> Any:
    return await _repeat(self, work, deadline_ms, repeat=True, twice=False)


_repeat = Way._repeat


MUTANTS: dict[str, tuple[Patch, ...]] = {
    "a retry gets a new request id": ((Linear, "request_id", _id_of_the_attempt),),
    "a request id is not stored with its effect": ((RequestIds, "remember", _no_rows),),
    "a linearizable read is served from a cache": ((Swaps, "attempts", _cached),),
    "a transaction compares no revisions": ((Hosted, "execute", _any_revision),),
    "consensus answers before the disk": ((Endpoint, "durable", _at_once),),
    "an expiry is true for its reader alone": ((Swaps, "_run", _unburied),),
    "no answer is taken for no change": ((Way, "txn", _no_change),),
    "a transaction without a request id is sent again": ((Way, "_repeat", _always_again),),
}

SEEDS: dict[str, int] = {
    "a retry gets a new request id": 4,
    "a request id is not stored with its effect": 8,
    "a linearizable read is served from a cache": 4,
    "a transaction compares no revisions": 8,
    "consensus answers before the disk": 8,
    "an expiry is true for its reader alone": 8,
    "no answer is taken for no change": 4,
    "a transaction without a request id is sent again": 8,
}
