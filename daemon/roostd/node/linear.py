"""Linearizable registers and counters: compare-and-swap on consensus.

A write reads its keys, computes what they should be, and sends both as one transaction that
compares the revisions read. Who loses tries again from what the answer showed, after a pause with
jitter, a bounded number of times and within the deadline. Writers of one key on this node take
turns, so that only other nodes are raced against, and the last revision seen is tried first: a
busy counter costs one round trip an increment. An answer that changed nothing always comes from a
fresh read. A request id is stored with the effect: a retry, on any node, gets the first answer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

from roost_crdt.errors import (
    BadRequest,
    Busy,
    RoostError,
    TooLarge,
    Unavailable,
    UnknownOutcome,
    Unsupported,
    WrongType,
)
from roost_crdt.limits import DEFAULT_LIMITS, Limits
from roost_crdt.policy import LINEARIZABLE, Policy, PolicyTable
from roost_crdt.rows.layout import check_key
from roostd.consensus.base import COMPARES_MAX, SCAN_MAX, Compare, Consensus, Item, Txn
from roostd.consensus.request_ids import check_request_id
from roostd.node.cells import (
    INT64_MAX,
    INT64_MIN,
    Cell,
    Command,
    Delete,
    Expire,
    Get,
    Incr,
    Leaf,
    Put,
    Reply,
    counter_of,
    decode_cell,
    encode_cell,
    step,
)
from roostd.node.work import Work, revision_of, stored_key

__all__ = ["Linear"]

ATTEMPTS_MAX = 256
PAUSE_S_MAX = 0.002
"""Short: of those who race one always wins, and who pauses for long keeps losing."""
KNOWN_MAX = 1_024
KNOWN_BYTES_MAX = 4_096
"""Larger values are read again rather than held."""
NEVER = (1 << 63) - 1
"""A revision that no key has."""


class _Run(NamedTuple):
    """What commands make of the items that were read."""

    puts: dict[bytes, bytes | None]
    replies: list[Reply]


class _Turn:
    """The lock of one key, and how many want it."""

    __slots__ = ("lock", "wanted")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.wanted = 0


class Linear:
    """Registers and counters whose policy is linearizable.

    Every method takes the key first. It raises BadRequest, NoPolicy, Unsupported (the key has
    another consistency), WrongType, TooLarge, Busy (lost every race), Unavailable (consensus out
    of reach, nothing changed) or UnknownOutcome (with the request id to retry with).
    Counters are int64; where the policy says `float` they are in units of 1e-9, in and out.
    """

    def __init__(
        self,
        consensus: Consensus,
        *,
        policies: Callable[[], PolicyTable],
        now_ms: Callable[[], int],
        random: Callable[[], float],
        deadline_ms: int,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._consensus = consensus
        self._policies = policies
        self._now_ms = now_ms
        self._random = random
        self._deadline_ms = deadline_ms
        self._limits = limits
        self._turns: dict[bytes, _Turn] = {}
        self._known: OrderedDict[bytes, Item | None] = OrderedDict()

    # --- reads --------------------------------------------------------------------------------

    async def get(self, key: bytes) -> Leaf | int | None:
        """The value, or None. A due expiry is made true in consensus before the answer."""
        return (await self._one(Get(key), None)).value

    async def read(self, keys: Sequence[bytes]) -> list[Leaf | int | None]:
        """The values of several keys in one snapshot."""
        replies = await self.transact([Get(key) for key in keys])
        assert replies is not None
        return [reply.value for reply in replies]

    async def expires_ms(self, key: bytes) -> int | None:
        """When the key expires: None if there is no such key, 0 if never."""
        await self._one(Get(key), None)
        [item] = await self._consensus.get([stored_key(key)], deadline_ms=self._deadline_ms)
        cell = self._live(item, self._policy(key), key)
        return None if cell is None else cell.expires_ms

    async def scan(self, prefix: bytes, after: bytes, limit: int) -> list[bytes]:
        """Up to `limit` live keys of a prefix behind `after`, in order.

        NoPolicy or WrongType if consensus holds a key that no policy claims any more.
        """
        found: list[bytes] = []
        last = stored_key(after) if after else b""
        while len(found) < limit:
            asked = limit - len(found)
            page = await self._consensus.scan(
                stored_key(prefix), asked, after=last, deadline_ms=self._deadline_ms
            )
            for stored, item in page:
                key = stored[2:]
                policy = self._policies().find(key)
                if self._live(item, policy, key) is not None:
                    found.append(key)
            if not page:
                break
            last = page[-1][0]
        return found

    async def revisions(self, keys: Sequence[bytes]) -> dict[bytes, int]:
        """What WATCH remembers; 0 where there is no such key."""
        for key in keys:
            self._policy(key)
        items = await self._consensus.get(
            [stored_key(key) for key in keys], deadline_ms=self._deadline_ms
        )
        return {key: revision_of(item) for key, item in zip(keys, items, strict=True)}

    # --- writes -------------------------------------------------------------------------------

    async def put(
        self,
        key: bytes,
        leaf: Leaf | int,
        *,
        nx: bool = False,
        xx: bool = False,
        expires_ms: int | None = None,
        keep_ttl: bool = False,
        request_id: str | bytes | None = None,
    ) -> bool:
        """Set a register, or a counter to the number that the leaf names.

        False if `nx` (only if absent) or `xx` (only if present) kept it from being set.
        `expires_ms` is wall-clock: None = by the policy's ttl, 0 = never.
        """
        command = Put(key, leaf, nx, xx, expires_ms, keep_ttl)
        return (await self._one(command, request_id)).done

    async def swap(
        self,
        key: bytes,
        leaf: Leaf | int,
        *,
        nx: bool = False,
        xx: bool = False,
        expires_ms: int | None = None,
        keep_ttl: bool = False,
        request_id: str | bytes | None = None,
    ) -> Reply:
        """`put` that also gives what was there before (SET ... GET)."""
        command = Put(key, leaf, nx, xx, expires_ms, keep_ttl, previous=True)
        return await self._one(command, request_id)

    async def assign(
        self, key: bytes, value: int, *, request_id: str | bytes | None = None
    ) -> None:
        """Set a counter."""
        await self._one(Put(key, value), request_id)

    async def incr(self, key: bytes, by: int, *, request_id: str | bytes | None = None) -> int:
        """Add to a counter, which begins at 0. BadRequest if it would leave 64 bits."""
        value = (await self._one(Incr(key, by), request_id)).value
        assert isinstance(value, int)
        return value

    async def delete(self, key: bytes, *, request_id: str | bytes | None = None) -> bool:
        """False if there was no such key."""
        return (await self._one(Delete(key), request_id)).done

    async def take(self, key: bytes, *, request_id: str | bytes | None = None) -> Reply:
        """Delete and give what was there (GETDEL)."""
        return await self._one(Delete(key, previous=True), request_id)

    async def expire(
        self, key: bytes, expires_ms: int, *, request_id: str | bytes | None = None
    ) -> bool:
        """Set the wall-clock expiry (0 = never); False if there is no such key."""
        return (await self._one(Expire(key, expires_ms), request_id)).done

    async def _one(self, command: Command, request_id: str | bytes | None) -> Reply:
        replies = await self.transact([command], request_id=request_id)
        assert replies is not None
        return replies[0]

    async def transact(
        self,
        commands: Sequence[Command],
        *,
        watched: Mapping[bytes, int] | None = None,
        request_id: str | bytes | None = None,
    ) -> list[Reply] | None:
        """All commands as one atomic step (MULTI), or none of them.

        None if a watched key no longer has the revision that `revisions` gave.
        """
        reads = all(isinstance(command, Get) for command in commands) and not watched
        request = None if reads else check_request_id(request_id, self._limits)
        policies = {command.key: self._policy(command.key) for command in commands}
        checked = [self._checked(command, policies[command.key]) for command in commands]
        watched = dict(watched or {})
        keys = [*policies, *(key for key in watched if key not in policies)]
        for key in watched:
            policies.setdefault(key, self._policy(key))
        keys_max = SCAN_MAX if reads else COMPARES_MAX
        if len(keys) > keys_max:
            raise BadRequest(f"one transaction covers {len(keys)} keys; at most {keys_max} may")
        if not keys:
            return []
        work = Work(checked, keys, policies, watched, request)
        ends = asyncio.get_running_loop().time() + self._deadline_ms / 1000
        async with self._turns_of(keys, ends):
            return await self._attempts(work, ends)

    # --- checks -------------------------------------------------------------------------------

    def _policy(self, key: bytes) -> Policy:
        check_key(key)
        policy = self._policies().find(key)
        shown = key.decode(errors="backslashreplace")
        if policy.consistency != LINEARIZABLE:
            raise Unsupported(f"{shown} is {policy.consistency} by policy {policy.name}")
        if policy.type not in ("register", "counter"):
            use = "spend or reserve it" if policy.type == "quota" else "add to it"
            raise WrongType(f"{shown} is a {policy.type} by policy {policy.name}: {use}")
        return policy

    def _checked(self, command: Command, policy: Policy) -> Command:
        shown = command.key.decode(errors="backslashreplace")
        if isinstance(command, Incr):
            if policy.type != "counter":
                raise WrongType(
                    f"{shown} is a register by policy {policy.name}: only a counter is added to"
                )
            if isinstance(command.by, bool) or not INT64_MIN <= command.by <= INT64_MAX:
                raise BadRequest(f"{shown}: an increment is a whole number of 64 bits")
        if not isinstance(command, Put):
            return command
        if command.nx and command.xx:
            raise BadRequest(f"{shown}: NX and XX exclude each other")
        if policy.type == "counter":
            return command._replace(value=counter_of(command.value, policy))
        if isinstance(command.value, int):
            raise WrongType(f"{shown} is a register by policy {policy.name}, not a counter")
        size = len(command.value if isinstance(command.value, bytes) else command.value.encode())
        if size > self._limits.value_bytes_max:
            raise TooLarge(
                f"{shown}: a value of {size} bytes; at most {self._limits.value_bytes_max} may be"
            )
        return command

    def _live(self, item: Item | None, policy: Policy, key: bytes) -> Cell | None:
        cell = None if item is None else decode_cell(item.value, policy, key)
        return None if cell is None or 0 < cell.expires_ms <= self._now_ms() else cell

    # --- compare-and-swap ---------------------------------------------------------------------

    async def _attempts(self, work: Work, ends: float) -> list[Reply] | None:
        items = self._recall(work)
        fresh = False
        for _ in range(ATTEMPTS_MAX):
            if items is None:
                items = await self._consensus.get(work.stored, deadline_ms=self._left(ends, work))
                fresh = True
            if not work.unchanged(items):
                return await self._first_answer(work, ends)
            try:
                run = self._run(work, items)
            except RoostError:
                first = await self._first_answer(work, ends) if fresh else None
                if first is not None:
                    return first
                if fresh:
                    raise
                items = None
                continue
            if not run.puts and work.request is None:
                if fresh:
                    return run.replies
                items = None
                continue
            if work.reads:
                await self._bury(work, run, items, ends)
                items = None
                continue
            replies, items = await self._send(work, run, items, ends)
            if replies is not None:
                return replies
            fresh = True
            work.overtaken += 1
            await asyncio.sleep(self._random() * PAUSE_S_MAX)
        raise self._overtaken(work)

    def _run(self, work: Work, items: Sequence[Item | None]) -> _Run:
        now_ms = self._now_ms()
        cells: dict[bytes, Cell | None] = {}
        written: set[bytes] = set()
        for key, item in zip(work.keys, items, strict=True):
            cells[key] = None
            if item is not None and not work.blind:
                cells[key] = self._live(item, work.policies[key], key)
                if cells[key] is None:
                    written.add(key)
        replies: list[Reply] = []
        for command in work.commands:
            key = command.key
            made = step(command, cells[key], work.policies[key], now_ms)
            cells[key] = made.cell
            replies.append(made.reply)
            if made.wrote:
                written.add(key)
        puts: dict[bytes, bytes | None] = {}
        for key in sorted(written):
            cell = cells[key]
            puts[key] = None if cell is None else encode_cell(cell)
        return _Run(puts, replies)

    async def _send(
        self, work: Work, run: _Run, items: Sequence[Item | None], ends: float
    ) -> tuple[list[Reply] | None, list[Item | None] | None]:
        compares = () if work.blind else tuple(map(Compare, work.stored, map(revision_of, items)))
        puts = tuple((stored_key(key), value) for key, value in run.puts.items())
        try:
            outcome = await self._consensus.txn(
                Txn(compares, puts),
                request_id=work.request_key,
                result=b"" if work.request is None else work.answer(run.replies),
                deadline_ms=self._left(ends, work),
            )
        except UnknownOutcome as error:
            self._forget(work)
            raise self._unknown(error, work) from None
        except (RoostError, asyncio.CancelledError):
            self._forget(work)
            raise
        if not outcome.ok:
            self._forget(work)
            return None, list(outcome.items)
        if outcome.duplicate:
            self._forget(work)
            return work.read_answer(outcome.result), None
        self._remember(work, run, items, outcome.revision)
        return run.replies, None

    async def _bury(self, work: Work, run: _Run, items: Sequence[Item | None], ends: float) -> None:
        """Make expiries that a read found due true for everybody, before it is answered."""
        due = [
            (Compare(stored_key(key), item.revision), (stored_key(key), None))
            for key, item in zip(work.keys, items, strict=True)
            if key in run.puts and item is not None
        ][:COMPARES_MAX]
        compares, puts = zip(*due, strict=True)
        self._forget(work)
        with contextlib.suppress(UnknownOutcome):  # the read that follows shows what happened
            await self._consensus.txn(Txn(compares, puts), deadline_ms=self._left(ends, work))

    async def _first_answer(self, work: Work, ends: float) -> list[Reply] | None:
        """What an earlier try with this request id was answered, if there was one."""
        if work.request is None:
            return None
        impossible = Txn((Compare(work.stored[0], NEVER),), ())
        try:
            outcome = await self._consensus.txn(
                impossible, request_id=work.request_key, deadline_ms=self._left(ends, work)
            )
        except UnknownOutcome as error:
            raise self._unknown(error, work) from None
        return work.read_answer(outcome.result) if outcome.duplicate else None

    def _left(self, ends: float, work: Work) -> int:
        left_ms = int((ends - asyncio.get_running_loop().time()) * 1000)
        if left_ms <= 0 and work.overtaken:
            raise self._overtaken(work)
        if left_ms <= 0:
            raise Unavailable(
                f"{work.shown}: consensus took longer than {self._deadline_ms} ms; nothing was "
                "changed"
            )
        return left_ms

    @staticmethod
    def _overtaken(work: Work) -> Busy:
        return Busy(
            f"{work.shown} is written by too many at once: {work.overtaken} attempts were "
            "overtaken; nothing was changed",
            retry_after_ms=100,
        )

    def _unknown(self, error: UnknownOutcome, work: Work) -> UnknownOutcome:
        if work.request is None:
            advice = "no request id was given: read the key to see"
        else:
            advice = "retry with the same request id"
        return UnknownOutcome(
            f"{work.shown} may have been written ({error.message}); {advice}",
            request_id=None if work.request is None else work.request.decode(errors="replace"),
        )

    # --- what is known here -------------------------------------------------------------------

    def _recall(self, work: Work) -> list[Item | None] | None:
        if work.blind:
            return [None for _ in work.keys]
        if work.reads or work.watched or any(key not in self._known for key in work.keys):
            return None
        return [self._known[key] for key in work.keys]

    def _remember(self, work: Work, run: _Run, items: Sequence[Item | None], revision: int) -> None:
        for key, item in zip(work.keys, items, strict=True):
            known = item
            if key in run.puts:
                value = run.puts[key]
                known = None if value is None else Item(value, revision)
            self._known.pop(key, None)
            if (known is None or len(known.value) <= KNOWN_BYTES_MAX) and revision:
                self._known[key] = known
        while len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)

    def _forget(self, work: Work) -> None:
        for key in work.keys:
            self._known.pop(key, None)

    @asynccontextmanager
    async def _turns_of(self, keys: Sequence[bytes], ends: float) -> AsyncIterator[None]:
        """Writers of one key on this node go one after the other, in the order of the keys."""
        turns = [self._turns.setdefault(key, _Turn()) for key in sorted(keys)]
        for turn in turns:
            turn.wanted += 1
        try:
            async with AsyncExitStack() as stack:
                try:
                    async with asyncio.timeout_at(ends):
                        for turn in turns:
                            await stack.enter_async_context(turn.lock)
                except TimeoutError:
                    raise Unavailable(
                        f"{keys[0].decode(errors='backslashreplace')}: those before it on this "
                        f"node took the {self._deadline_ms} ms; nothing was changed"
                    ) from None
                yield
        finally:
            for key, turn in zip(sorted(keys), turns, strict=True):
                turn.wanted -= 1
                if not turn.wanted:
                    self._turns.pop(key, None)
