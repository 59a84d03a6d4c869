"""Linearizable registers and counters: compare-and-swap on consensus.

The attempts are `roost_crdt.linear.swaps`. Writers of one key on this node take turns, so that only
other nodes are raced against, and the last revision seen is tried first: a busy counter costs one
round trip an increment.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from roost_crdt.errors import (
    BadRequest,
    TooLarge,
    Unavailable,
    Unsupported,
    WrongType,
)
from roost_crdt.limits import DEFAULT_LIMITS, Limits
from roost_crdt.linear.cells import (
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
    live_cell,
)
from roost_crdt.linear.request_ids import check_request_id
from roost_crdt.linear.swaps import Swaps
from roost_crdt.linear.work import Work, revision_of, stored_key
from roost_crdt.policy import LINEARIZABLE, Policy, PolicyTable
from roost_crdt.rows.layout import check_key
from roostd.consensus.base import COMPARES_MAX, SCAN_MAX, Consensus, Item

__all__ = ["Linear"]

PAUSE_S_MAX = 0.002
"""Short: of those who race one always wins, and who pauses for long keeps losing."""


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
        self._swaps = Swaps(
            consensus,
            now_ms=now_ms,
            clock_s=lambda: asyncio.get_running_loop().time(),
            pause=self._pause,
            deadline_ms=deadline_ms,
        )

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
            return await self._swaps.attempts(work, ends)

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
        return None if item is None else live_cell(item, policy, key, self._now_ms())

    # --- one after the other ------------------------------------------------------------------

    async def _pause(self) -> None:
        await asyncio.sleep(self._random() * PAUSE_S_MAX)

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
