"""A linearizable endpoint in memory, and coroutines whose every message is delivered by hand."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from typing import Any

from roost_crdt.errors import UnknownOutcome
from roost_crdt.limits import Limits
from roost_crdt.linear.cells import Command
from roost_crdt.linear.hosted import Hosted
from roost_crdt.linear.swaps import Swaps
from roost_crdt.linear.transactions import Item, Outcome, Table, Txn
from roost_crdt.linear.work import Work
from roost_sim.linear import POLICIES


class Rows:
    """A table in memory that counts its batches."""

    def __init__(self) -> None:
        self.held: dict[bytes, bytes] = {}
        self.batches: list[dict[bytes, bytes | None]] = []

    def put(self, items: Mapping[bytes, bytes | None]) -> None:
        self.batches.append(dict(items))
        for key, value in items.items():
            if value is None:
                self.held.pop(key, None)
            else:
                self.held[key] = value

    def scan(self, prefix: bytes, after: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        keys = sorted(key for key in self.held if key.startswith(prefix) and key > after)
        return [(key, self.held[key]) for key in keys[:limit]]

    async def durable(self) -> None:
        return None

    def table(self) -> Table:
        return Table(get=self.held.get, scan=self.scan, put=self.put, durable=self.durable)


def hosted(rows: Rows, **of: int) -> Hosted:
    made = Hosted(rows.table(), Limits(**of))
    made.founded(lambda n: bytes(range(n)))
    made.open()
    return made


class Message:
    """Asked of the endpoint, or a pause: whoever awaits it stands still until it is resolved."""

    def __init__(self, work: Callable[[], Any] | None) -> None:
        self.work = work

    def __await__(self) -> Generator[Message, Any, Any]:
        return (yield self)


class Task:
    """A coroutine that stands at a message, or has ended."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine
        self.at: Message | None = None
        self.value: Any = None
        self.error: Exception | None = None
        self._go(lambda: coroutine.send(None))

    def _go(self, step: Callable[[], Message]) -> None:
        self.at = None
        try:
            self.at = step()
        except StopIteration as stop:
            self.value = stop.value
        except Exception as error:  # noqa: BLE001 - whoever looks at the task finds it
            self.error = error

    def deliver(self) -> None:
        """The message arrives, and so does its answer."""
        assert self.at is not None
        try:
            value = self.at.work() if self.at.work is not None else None
        except Exception as error:  # noqa: BLE001 - the endpoint's refusals are answers too
            self.fail(error)
        else:
            self._go(lambda: self._coroutine.send(value))

    def fail(self, error: Exception) -> None:
        """The message has this for an answer."""
        self._go(lambda: self._coroutine.throw(error))

    def run(self) -> Any:
        """To its end, with everything delivered."""
        while self.at is not None:
            self.deliver()
        if self.error is not None:
            raise self.error
        return self.value


class Site:
    """One node's way to the endpoint."""

    def __init__(self, host: Hosted, *, deadline_ms: int = 1_000) -> None:
        self.host = host
        self.clock_s = 0.0
        self.now_ms = 1_000_000
        self.deadline_ms = deadline_ms
        self.swaps = Swaps(
            self,
            now_ms=lambda: self.now_ms,
            clock_s=lambda: self.clock_s,
            pause=self._pause,
            deadline_ms=deadline_ms,
        )

    def _pause(self) -> Awaitable[None]:
        return Message(None)

    async def get(self, keys: Sequence[bytes], *, deadline_ms: int) -> list[Item | None]:
        found: list[Item | None] = await Message(lambda: self.host.items(keys))
        return found

    async def txn(
        self, txn: Txn, *, request_id: bytes | None = None, result: bytes = b"", deadline_ms: int
    ) -> Outcome:
        outcome: Outcome = await Message(lambda: self.host.execute(txn, request_id, result))
        return outcome

    def begin(
        self,
        *commands: Command,
        watched: dict[bytes, int] | None = None,
        request: bytes | None = None,
    ) -> Task:
        """Up to the first message. `watched`: the revisions that keys must still have."""
        watched = watched or {}
        keys = list(dict.fromkeys([*(command.key for command in commands), *watched]))
        policies = {key: POLICIES.find(key) for key in keys}
        work = Work(list(commands), keys, policies, watched, request)
        return Task(self.swaps.attempts(work, self.clock_s + self.deadline_ms / 1000))


LOST = UnknownOutcome("no answer")
