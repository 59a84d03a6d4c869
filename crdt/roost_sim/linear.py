"""Linearizable registers and counters (I6): clients at all nodes, and histories key by key.

A node's part is `roost_crdt.linear`, the daemon's own code; the endpoint is the same, in a store
that crashes. A client tries again with the same request id, at whatever node; what nobody answered
may have happened at any later time, or not at all. What a node says was not changed, was not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from roost_crdt.errors import Busy, Unavailable, UnknownOutcome
from roost_crdt.linear.cells import Command, Delete, Get, Incr, Put, Reply
from roost_crdt.linear.swaps import Swaps
from roost_crdt.linear.work import Work
from roost_crdt.policy import PolicyTable

from .answers import Lock
from .endpoint import Endpoint, Way
from .hosting import Surroundings
from .linearizability import NEVER, Operation, Undecided, is_linearizable
from .loop import START_MS, Future, Lost
from .node import Node

CLIENTS = 6
DEADLINE_MS = 600
TRIES = 3
OPERATIONS_MAX = 160
UNKNOWN_MAX = 10
"""A history with more is closed, and its clients go on with another key."""

POLICIES = PolicyTable.parse(
    """
[flags]
type = "register"
readers = "cross-session"
stale_read_cost = "incorrect"
[hits]
type = "counter"
readers = "cross-session"
stale_read_cost = "incorrect"
""",
    "simulated",
)


@dataclass(slots=True)
class Account:
    """The history of one key."""

    key: bytes
    operations: list[Operation] = field(default_factory=list)
    begun: int = 0
    unknown: int = 0
    expiries: dict[Any, int] = field(default_factory=dict)
    """Value -> the wall clock from which it is over. Values are put once."""

    @property
    def full(self) -> bool:
        return self.begun >= OPERATIONS_MAX or self.unknown >= UNKNOWN_MAX


class Site:
    """What one life of a node does for its clients, as `roostd.node.linear` does."""

    def __init__(self, node: Node, endpoint: Endpoint, random: Random) -> None:
        loop = node.world.loop
        skew_ms = random.choice((0, 0, 300, -300, 3_000, -3_000))

        def now_ms() -> int:
            return node.wall_ms() + (0 if endpoint.healed else skew_ms)

        def clock_s() -> float:
            return loop.now_ms / 1000

        self._locks: dict[bytes, Lock] = {}
        self._clock_s = clock_s
        self._swaps = Swaps(
            Way(endpoint, node),
            now_ms=now_ms,
            clock_s=clock_s,
            pause=lambda: loop.sleep(2 * random.random(), node.life),
            deadline_ms=DEADLINE_MS,
        )

    async def perform(self, command: Command, request_id: bytes | None) -> Reply:
        """One command, in turn with the others on its key."""
        key = command.key
        work = Work([command], [key], {key: POLICIES.find(key)}, {}, request_id)
        ends_s = self._clock_s() + DEADLINE_MS / 1000
        async with self._locks.setdefault(key, Lock()):
            replies = await self._swaps.attempts(work, ends_s)
        assert replies is not None
        return replies[0]


class Linear:
    """All clients of a run, and what they were told."""

    def __init__(self, world: Surroundings, nodes: Mapping[str, Node], seed: int) -> None:
        self.endpoint = Endpoint(world, seed)
        self.accounts: list[Account] = []
        self._world = world
        self._nodes = nodes
        self._random = Random(seed ^ 0x51DE)
        self._open: dict[bytes, Account] = {}
        self._sites: dict[str, tuple[object, Site]] = {}
        self._requests = 0
        self._clients: list[Future[None]] = []

    def begin(self, busy: Callable[[], bool], pause_ms: float) -> None:
        """The endpoint starts, and the clients."""
        loop = self._world.loop
        self.endpoint.start()
        loop.spawn(self._trouble(busy), None)
        for _ in range(CLIENTS):
            client = self._client(busy, min(pause_ms, 60.0))
            self._clients.append(loop.spawn(client, None))

    async def _trouble(self, busy: Callable[[], bool]) -> None:
        while busy():
            await self._world.loop.sleep(self._random.uniform(400.0, 3_000.0), None)
            if busy():
                self.endpoint.hurt(sorted(self._nodes))

    async def _client(self, busy: Callable[[], bool], pause_ms: float) -> None:
        while busy():
            await self._world.loop.sleep(pause_ms * 2 * self._random.random(), None)
            if not self._alive():
                continue
            kind = self._random.choice((b"flags:a", b"flags:b", b"hits:a"))
            account = self._account(kind)
            command = self._command(account.key)
            named = not isinstance(command, Get) and self._random.random() < 0.6
            await self.perform(account, command, named=named)

    def _account(self, kind: bytes) -> Account:
        account = self._open.get(kind)
        if account is None or account.full:
            account = self._open[kind] = Account(kind + b"%d" % len(self.accounts))
            self.accounts.append(account)
        return account

    def _command(self, key: bytes) -> Command:
        random = self._random
        if random.random() < 0.3:
            return Get(key)
        if random.random() < 0.15:
            return Delete(key, previous=random.random() < 0.5)
        if key.startswith(b"hits"):
            return Incr(key, random.randint(1, 9))
        self._requests += 1
        rule = random.choice(("", "", "nx", "xx"))
        value, previous = b"v%d" % self._requests, random.random() < 0.3
        expires_ms = 0
        if random.random() < 0.2:
            expires_ms = self._now_ms() + random.choice((200, 1_000, 4_000))
        return Put(key, value, rule == "nx", rule == "xx", expires_ms, previous=previous)

    def _now_ms(self) -> int:
        return START_MS + int(self._world.loop.now_ms)

    # --- one operation

    async def perform(self, account: Account, command: Command, *, named: bool) -> None:
        """Tried until answered or given up, and noted in the history."""
        called = self._world.loop.now_ms
        account.begun += 1
        self._requests += 1
        number, doubtful = self._requests, False
        for attempt in range(TRIES):
            request_id = self.request_id(number, attempt) if named else None
            try:
                reply = await self._try(command, request_id)
            except (Unavailable, Busy) as error:
                self._count(type(error).__name__)
                if not doubtful:
                    return  # it says that nothing was changed
            except (UnknownOutcome, Lost) as error:
                self._count(type(error).__name__)
                if isinstance(command, Get):
                    return
                doubtful = True
                if not named:
                    break
            else:
                self._count("answered")
                self._note(account, command, called, self._world.loop.now_ms, reply)
                return
            pause_ms = self._random.choice((1.0, 100.0, 1_500.0))
            await self._world.loop.sleep(pause_ms * self._random.random(), None)
        account.unknown += 1
        self._note(account, command, called, NEVER, None)

    def request_id(self, number: int, attempt: int) -> bytes:
        """Every attempt of one request has the same."""
        return b"r%d" % number

    async def _try(self, command: Command, request_id: bytes | None) -> Reply:
        alive = self._alive()
        if not alive:
            raise Unavailable("no node is up")
        node = self._nodes[self._random.choice(alive)]
        work = self._site(node).perform(command, request_id)
        outcome: Future[Reply] = self._world.loop.spawn(work, node.life)
        return await outcome

    def _alive(self) -> list[str]:
        return [name for name in sorted(self._nodes) if self._nodes[name].life is not None]

    def _site(self, node: Node) -> Site:
        life, site = self._sites.get(node.name, (None, None))
        if site is None or life is not node.life:
            site = Site(node, self.endpoint, self._random)
            self._sites[node.name] = (node.life, site)
        return site

    def _note(
        self, account: Account, command: Command, called: float, returned: float, reply: Any
    ) -> None:
        step, name = step_of(command), type(command).__name__
        account.operations.append(Operation(called, returned, step, reply, name))
        if isinstance(command, Put) and command.expires_ms:
            account.expiries[command.value] = command.expires_ms
            # Whoever finds it due makes it so for all: a write at an unknown time, or never.
            expiry = expiry_of(command.value)
            account.operations.append(Operation(called, NEVER, expiry, None, "expiry"))

    def _count(self, what: str) -> None:
        self._world.trace.count("linear", what)

    # --- the verdict

    def _run_until_done(self, work: Sequence[Future[None]]) -> None:
        loop = self._world.loop
        while not all(each.done for each in work):
            loop.run_until(loop.now_ms + 50.0)

    def finish(self) -> list[str]:
        """After healing: every key is read once more, and every history must have an order."""
        self._run_until_done(self._clients)
        loop = self._world.loop
        reads = [self.perform(each, Get(each.key), named=False) for each in self.accounts]
        self._run_until_done([loop.spawn(read, None) for read in reads])
        self.endpoint.stop()
        problems: list[str] = []
        for account in self.accounts:
            self._count("history")
            self._world.trace.reached["linear:operation in a history"] += len(account.operations)
            try:
                fits = is_linearizable(account.operations)
            except Undecided:
                self._count("undecided")
                continue
            last = account.operations[-1]
            over_ms = account.expiries.get(last.answer.value) if last.name == "Get" else None
            if over_ms is not None and over_ms <= START_MS + last.called:
                problems.append(f"I6: {account.key.decode()} is read after its time")
            if not fits:
                problems.append(f"I6: {account.key.decode()} has no order:\n{_shown(account)}")
        return problems


def expiry_of(value: Any) -> Callable[[Any], tuple[Any, Any]]:
    """The end of what was put."""
    return lambda held: (None if held == value else held, None)


def step_of(command: Command) -> Callable[[Any], tuple[Any, Any]]:
    """The same rules as `cells.step`, without cells: (value before) -> (value after, reply)."""
    if isinstance(command, Get):
        return lambda value: (value, Reply(value is not None, value))
    if isinstance(command, Incr):
        by = command.by
        return lambda value: ((value or 0) + by, Reply(True, (value or 0) + by))
    if isinstance(command, Delete):
        tells = command.previous
        return lambda value: (None, Reply(value is not None, value if tells else None))
    assert isinstance(command, Put)
    put = command

    def step(value: Any) -> tuple[Any, Any]:
        previous = value if put.previous else None
        if (put.nx and value is not None) or (put.xx and value is None):
            return value, Reply(False, previous)
        return put.value, Reply(True, previous)

    return step


def _shown(account: Account) -> str:
    return "\n".join(
        f"    {operation.called:9.1f} to {operation.returned:9.1f} {operation.name}: "
        f"{operation.answer}"
        for operation in sorted(account.operations, key=lambda operation: operation.called)
    )
