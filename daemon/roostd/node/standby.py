"""Durability "standby" of eventually-global keys: on a neighbour's disk too before the answer.

A write under such a policy is refused beforehand while no neighbour of another region is up. Else
it is committed here as any other, and its answer waits until the nearest of them says that it
holds this node's records up to that write, durably. Any number of waiting writes share a call.
Nothing is taken back if none says so in time: the write is durable here and on its way, so its
outcome is unknown, and the answer says which half is known.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from roost_crdt.errors import BadRequest, Busy, RoostError, Unavailable, UnknownOutcome
from roost_crdt.home import Candidate
from roostd.gossip import Gossip
from roostd.node.groups import Groups
from roostd.node.neighbours import Links
from roostd.rpc import Rpc
from roostd.store import Store

log = logging.getLogger(__name__)

HOLD = "standby.hold"
WAIT_MS = 1_500
"""How long an answer waits; below the deadline of the SDK, so that its caller gets the reason."""
PAUSE_S = 0.05
CALLS_MAX = 8
"""Calls under way; writes that come meanwhile share the next one."""
WAITING_MAX = 100_000


class Due(NamedTuple):
    """A write that waits: the record's actor and hlc, and a key in it."""

    actor: int
    hlc: int
    key: bytes


class Neighbours(Protocol):
    """How to reach neighbours; node.neighbours.Links in a daemon."""

    def candidates(self) -> list[Candidate]: ...

    async def call(
        self, node: str, method: str, args: dict[str, Any], *, deadline_ms: int
    ) -> Any: ...


class Standbys:
    """Asks neighbours what they hold, and answers them the same. One event loop's thread."""

    def __init__(
        self,
        neighbours: Neighbours,
        *,
        region: str,
        vv: Callable[[], Mapping[int, int]],
        durable: Callable[[], Awaitable[None]],
        wait_ms: int = WAIT_MS,
    ) -> None:
        self._neighbours = neighbours
        self._region = region
        self._vv = vv
        self._durable = durable
        self._wait_ms = wait_ms
        self._waiting: dict[asyncio.Future[None], Due] = {}
        self._asked: Due | None = None
        """The newest write that a call under way asks about."""
        self._calls: set[asyncio.Task[None]] = set()
        self._scheduled = False
        self._arrivals: dict[asyncio.Future[None], tuple[int, int]] = {}

    @classmethod
    def between(cls, gossip: Gossip, rpc: Rpc, groups: Groups, store: Store) -> Standbys:
        """Those of a daemon, which answers its neighbours as well."""
        region = gossip.replica.region
        links = Links(gossip, rpc)
        made = cls(links, region=region, vv=lambda: store.vv, durable=groups.durable)
        rpc.register(HOLD, made.hold)
        groups.after_each(made.flushed)
        return made

    async def stop(self) -> None:
        """Writes that wait end as unknown."""
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)

    # -- this node's writes

    def check(self, key: bytes) -> None:
        """Before a write: Unavailable if nobody could hold it, Busy if too many wait."""
        if len(self._waiting) >= WAITING_MAX:
            raise Busy(f"{len(self._waiting)} writes wait for a standby", retry_after_ms=100)
        if not self._fit():
            raise Unavailable(
                f"{_shown(key)} needs a standby's disk too (durability of its policy) and no "
                "neighbour in another region is up; nothing was written, try again",
                retry_after_ms=1_000,
            )

    async def held(self, due: Due) -> None:
        """Return when a neighbour of another region has the write on its disk.

        Raises UnknownOutcome if none has said so in time.
        """
        future = asyncio.get_running_loop().create_future()
        self._waiting[future] = due
        self._schedule()
        try:
            async with asyncio.timeout(self._wait_ms / 1000):
                await future
        except TimeoutError:
            asked = ", ".join(sorted(c.node for c in self._fit())) or "none is up"
            raise UnknownOutcome(
                f"the write of {_shown(due.key)} is on disk here, and no standby (neighbours in "
                f"other regions: {asked}) has said in {self._wait_ms} ms that it is on its disk "
                "too; it is sent on as soon as it can be: read the key before you repeat it"
            ) from None
        finally:
            self._waiting.pop(future, None)

    def _fit(self) -> list[Candidate]:
        """Who may be asked, the nearest first."""
        fit = [c for c in self._neighbours.candidates() if c.region != self._region]
        return sorted(fit, key=lambda c: (c.rtt_ms, c.node))

    def _schedule(self) -> None:
        """One call for all writes of a turn of the loop."""
        if not self._scheduled and len(self._calls) < CALLS_MAX:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._ask)

    def _ask(self) -> None:
        self._scheduled = False
        newest = max(self._waiting.values(), default=None, key=lambda due: due.hlc)
        if newest is None or newest == self._asked:
            return
        self._asked = newest
        task = asyncio.create_task(self._confirm(newest), name="standby")
        self._calls.add(task)
        task.add_done_callback(self._asked_once)

    def _asked_once(self, task: asyncio.Task[None]) -> None:
        self._calls.discard(task)
        if self._waiting and not task.cancelled():
            self._schedule()

    async def _confirm(self, due: Due) -> None:
        """Ask neighbours, the nearest first, until one holds the write or its time is over."""
        loop = asyncio.get_running_loop()
        due_s = loop.time() + self._wait_ms / 1000
        silent: set[str] = set()
        while (left_ms := int((due_s - loop.time()) * 1000)) > 0:
            fit = [c.node for c in self._fit() if c.node not in silent]
            if not fit:
                silent.clear()
                await asyncio.sleep(min(PAUSE_S, left_ms / 1000))
                continue
            # A neighbour that does not answer leaves time to ask the next one.
            share_ms = left_ms if len(fit) == 1 else left_ms // 2 + 1
            args = {"actor": due.actor, "hlc": due.hlc}
            try:
                held = await self._neighbours.call(fit[0], HOLD, args, deadline_ms=share_ms)
            except RoostError as error:
                log.debug("%s does not say what it holds: %s", fit[0], error)
                silent.add(fit[0])
                continue
            self._release(due.actor, int(held))
            if held >= due.hlc:
                return
            silent.add(fit[0])
        if self._asked == due:
            self._asked = None

    def _release(self, actor: int, hlc: int) -> None:
        for future, due in self._waiting.items():
            if due.actor == actor and due.hlc <= hlc and not future.done():
                future.set_result(None)

    # -- neighbours' writes

    async def hold(self, origin: str, args: dict[str, Any]) -> int:
        """A neighbour's HOLD: up to where an actor is durable here, once that is `hlc` or more."""
        actor, hlc = args.get("actor"), args.get("hlc")
        if not isinstance(actor, int) or not isinstance(hlc, int):
            raise BadRequest(f"{HOLD} of {origin} needs actor and hlc")
        while self._vv().get(actor, 0) < hlc:
            if len(self._arrivals) >= WAITING_MAX:
                raise Busy(f"{len(self._arrivals)} calls wait for records", retry_after_ms=100)
            future = asyncio.get_running_loop().create_future()
            self._arrivals[future] = (actor, hlc)
            try:
                await future
            finally:
                self._arrivals.pop(future, None)
        held = self._vv()[actor]
        await self._durable()
        return held

    def flushed(self) -> None:
        """After each group: what has arrived is durable."""
        if self._arrivals:
            vv = self._vv()
            for future, (actor, hlc) in self._arrivals.items():
                if vv.get(actor, 0) >= hlc and not future.done():
                    future.set_result(None)


async def settle(
    standbys: Standbys,
    replies: list[bytes],
    due: Sequence[tuple[int, Due]],
    refusal: Callable[[Exception], bytes],
) -> None:
    """Wait for (index of a reply, its write); a reply whose write no standby holds is replaced."""
    results = await asyncio.gather(
        *(standbys.held(write) for _, write in due), return_exceptions=True
    )
    for (at, _), result in zip(due, results, strict=True):
        if isinstance(result, RoostError):
            replies[at] = refusal(result)
        elif result is not None:
            raise result


def _shown(key: bytes) -> str:
    return key.decode("utf-8", "backslashreplace")
