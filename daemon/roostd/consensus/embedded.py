"""Consensus on a single node: for development, the demo and clusters that can bear its loss.

One node hosts everything in its own store (`EmbeddedHost`), the others reach it through the
neighbours' rpc (`EmbeddedRemote`). Execution is serial because a transaction reads, compares and
puts without giving way to another; an answer is given when the write is durable, also to a reader,
since the put is visible before it is. There is no replication: while the host is away nothing
linearizable can be read or written anywhere.
What its table holds and how a transaction is carried out is `roost_crdt.linear.hosted`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import msgspec

from roost_crdt.errors import (
    PeerError,
    RoostError,
    Unavailable,
    UnknownOutcome,
)
from roost_crdt.limits import DEFAULT_LIMITS, Limits
from roost_crdt.linear.hosted import Hosted, unknown
from roostd.consensus import wire
from roostd.consensus.base import (
    SCAN_MAX,
    Compare,
    ConsensusStatus,
    Item,
    Outcome,
    Table,
    Txn,
)
from roostd.consensus.witness import Witness

__all__ = ["EmbeddedHost", "EmbeddedRemote"]

log = logging.getLogger(__name__)

ATTEMPT_MS_MIN = 50
RETRY_PAUSE_MS = 20

_T = TypeVar("_T")
_Reply = TypeVar("_Reply", wire.GetReply, wire.ScanReply, wire.TxnReply)

Handler = Callable[[str, dict[str, Any]], Awaitable[Any]]
Call = Callable[[str, dict[str, Any], int], Awaitable[Any]]


class EmbeddedHost:
    """Consensus in this node's store.

    `table` is the store's kind CONSENSUS. `handlers()` serves the other nodes; register them
    before the first link is up and after `start`.
    """

    def __init__(
        self,
        table: Table,
        *,
        random_bytes: Callable[[int], bytes],
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._table = table
        self._random_bytes = random_bytes
        self._hosted = Hosted(table, limits)
        self._last_error: str | None = None

    async def start(self) -> None:
        """Read or found the history. CorruptData if what is stored does not check out."""
        log.warning(
            "embedded consensus is hosted here: a single node, not replicated; while it is away "
            "no linearizable key can be read or written"
        )
        if self._hosted.founded(self._random_bytes):
            await self._table.durable()
        self._hosted.open()

    async def stop(self) -> None:
        """Nothing is held: what was answered is durable."""

    # --- the interface ------------------------------------------------------------------------

    async def get(self, keys: Sequence[bytes], *, deadline_ms: int) -> list[Item | None]:
        items = self._hosted.items(keys)
        await self._durable(deadline_ms, None)
        return items

    async def scan(
        self, prefix: bytes, limit: int, *, after: bytes = b"", deadline_ms: int
    ) -> list[tuple[bytes, Item]]:
        items = self._hosted.scan(prefix, after, limit)
        await self._durable(deadline_ms, None)
        return items

    async def txn(
        self, txn: Txn, *, request_id: bytes | None = None, result: bytes = b"", deadline_ms: int
    ) -> Outcome:
        outcome = self._hosted.execute(txn, request_id, result)
        await self._durable(deadline_ms, request_id, written=outcome.ok)
        return outcome

    def check(self) -> None:
        """The history is this node's own: a restored one is noticed by the others."""

    def status(self) -> ConsensusStatus:
        last_error = self._hosted.last_error or self._last_error
        return ConsensusStatus("embedded", "up" if self._hosted.history else "down", last_error)

    async def _durable(
        self, deadline_ms: int, request_id: bytes | None, *, written: bool = False
    ) -> None:
        try:
            async with asyncio.timeout(deadline_ms / 1000):
                await self._table.durable()
        except TimeoutError:
            self._last_error = f"the disk took longer than {deadline_ms} ms"
            if written:
                raise unknown(self._last_error, request_id) from None
            raise Unavailable(f"consensus: {self._last_error}; nothing was changed") from None

    # --- the other nodes ------------------------------------------------------------------------

    def handlers(self) -> dict[str, Handler]:
        """rpc methods by name, each `async (peer, args) -> reply`."""
        return {wire.GET: self._serve_get, wire.SCAN: self._serve_scan, wire.TXN: self._serve_txn}

    async def _serve_get(self, _peer: str, args: Mapping[str, Any]) -> Any:
        asked = wire.read_args(args, wire.GetArgs)
        revision = self._hosted.revision()
        items = await self.get(asked.keys, deadline_ms=_deadline(asked.deadline_ms))
        return msgspec.to_builtins(
            wire.GetReply(self._hosted.history, revision, _pairs(items)),
            builtin_types=(bytes,),
        )

    async def _serve_scan(self, _peer: str, args: Mapping[str, Any]) -> Any:
        asked = wire.read_args(args, wire.ScanArgs)
        revision = self._hosted.revision()
        found = await self.scan(
            asked.prefix,
            asked.limit,
            after=asked.after,
            deadline_ms=_deadline(asked.deadline_ms),
        )
        return msgspec.to_builtins(
            wire.ScanReply(
                self._hosted.history,
                revision,
                [(key, item.value, item.revision) for key, item in found],
            ),
            builtin_types=(bytes,),
        )

    async def _serve_txn(self, _peer: str, args: Mapping[str, Any]) -> Any:
        asked = wire.read_args(args, wire.TxnArgs)
        outcome = self._hosted.execute(asked.txn(), asked.request_id, asked.result)
        revision = self._hosted.revision()
        await self._durable(_deadline(asked.deadline_ms), asked.request_id, written=outcome.ok)
        return msgspec.to_builtins(
            wire.TxnReply(
                self._hosted.history,
                revision,
                outcome.ok,
                outcome.duplicate,
                outcome.result,
                _pairs(outcome.items),
                outcome.revision,
            ),
            builtin_types=(bytes,),
        )


class EmbeddedRemote:
    """Consensus hosted by a neighbour.

    `call(method, args, deadline_ms)` raises the host's RoostError again, Unavailable if nothing
    was sent and UnknownOutcome if no answer came. Reads, and transactions with a request id, are
    repeated within the deadline when an answer is lost.
    """

    def __init__(self, call: Call, *, host: str, witness: Witness) -> None:
        self._call = call
        self._host = host
        self._witness = witness
        self._state = "down"
        self._last_error: str | None = None

    async def start(self) -> None:
        self._witness.load()
        log.info("linearizable keys are kept by %s, a single node", self._host)

    async def stop(self) -> None:
        return

    async def get(self, keys: Sequence[bytes], *, deadline_ms: int) -> list[Item | None]:
        args = {"keys": list(keys)}
        reply = await self._ask(wire.GET, args, wire.GetReply, deadline_ms, repeat=True)
        return self._checked(lambda: reply.answer(len(keys)))

    async def scan(
        self, prefix: bytes, limit: int, *, after: bytes = b"", deadline_ms: int
    ) -> list[tuple[bytes, Item]]:
        limit = min(limit, SCAN_MAX)
        args = {"prefix": prefix, "after": after, "limit": limit}
        reply = await self._ask(wire.SCAN, args, wire.ScanReply, deadline_ms, repeat=True)
        return self._checked(lambda: reply.answer(prefix, after, limit))

    async def txn(
        self, txn: Txn, *, request_id: bytes | None = None, result: bytes = b"", deadline_ms: int
    ) -> Outcome:
        args = {
            "compares": [_pair(compare) for compare in txn.compares],
            "puts": [list(put) for put in txn.puts],
            "request_id": request_id,
            "result": result,
        }
        try:
            reply = await self._ask(
                wire.TXN, args, wire.TxnReply, deadline_ms, repeat=request_id is not None
            )
            return self._checked(lambda: reply.answer(len(txn.compares)), unknown=True)
        except UnknownOutcome as error:
            raise UnknownOutcome(error.message, request_id=_shown(request_id)) from None

    def check(self) -> None:
        self._witness.check()

    def status(self) -> ConsensusStatus:
        return ConsensusStatus("embedded", self._state, self._witness.lost or self._last_error)

    async def _ask(
        self,
        method: str,
        args: dict[str, Any],
        kind: type[_Reply],
        deadline_ms: int,
        *,
        repeat: bool,
    ) -> _Reply:
        """One answer; lost ones are asked for again with half of the time left, if `repeat`."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + deadline_ms / 1000
        sent: UnknownOutcome | None = None
        while True:
            left_ms = int((ends - loop.time()) * 1000)
            attempt_ms = min(max(left_ms // 2, ATTEMPT_MS_MIN), left_ms) if repeat else left_ms
            floor = self._witness.floor
            try:
                self._witness.check()
                reply = await self._attempt(method, args, attempt_ms)
                answer = self._checked(partial(wire.read_reply, reply, kind), unknown=True)
            except UnknownOutcome as error:
                sent = error
            except Unavailable as error:
                self._state, self._last_error = "down", error.message
                if sent is None:
                    raise
            else:
                self._believe(method, answer, floor)
                return answer
            left_ms = int((ends - loop.time()) * 1000)
            if not repeat or left_ms <= RETRY_PAUSE_MS:
                text = f"consensus gave no answer within {deadline_ms} ms, last: {sent.message}"
                self._state, self._last_error = "down", text
                raise UnknownOutcome(text) if method == wire.TXN else Unavailable(text)
            await asyncio.sleep(RETRY_PAUSE_MS / 1000)

    async def _attempt(self, method: str, args: dict[str, Any], attempt_ms: int) -> Any:
        try:
            async with asyncio.timeout(attempt_ms / 1000):
                return await self._call(method, {**args, "deadline_ms": attempt_ms}, attempt_ms)
        except TimeoutError:
            raise UnknownOutcome(
                f"{self._host} did not answer {method} within {attempt_ms} ms"
            ) from None

    def _believe(self, method: str, answer: _Reply, floor: int) -> None:
        try:
            self._witness.saw(answer.history, answer.revision, floor)
        except Unavailable as error:
            self._state, self._last_error = "down", error.message
            if method == wire.TXN:
                raise UnknownOutcome(error.message) from None
            raise
        self._state = "up"

    def _checked(self, read: Callable[[], _T], *, unknown: bool = False) -> _T:
        """What `read` makes of an answer; one that breaks the protocol counts as none."""
        try:
            return read()
        except PeerError as error:
            self._last_error = f"{self._host}: {error}"
            kind: type[RoostError] = UnknownOutcome if unknown else Unavailable
            raise kind(f"consensus on {self._host} broke the protocol: {error}") from None


def _deadline(asked_ms: int) -> int:
    return min(max(asked_ms, 1), wire.DEADLINE_MS_MAX)


def _pairs(items: Sequence[Item | None]) -> list[tuple[bytes, int] | None]:
    return [None if item is None else (item.value, item.revision) for item in items]


def _pair(compare: Compare) -> list[Any]:
    return [compare.key, compare.revision]


def _shown(request_id: bytes | None) -> str | None:
    return None if request_id is None else request_id.decode("utf-8", "replace")
