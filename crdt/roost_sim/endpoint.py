"""The linearizable endpoint: `roost_crdt.linear.hosted` in a store that dies and comes back.

It stands apart from the cluster, on a disk of its own and with random numbers of its own, so that
a run goes on as it would without it. What it is asked is lost on the way, late, or carried out
twice, and so are its answers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from random import Random
from typing import TypeVar

from roost_crdt import logformat
from roost_crdt.errors import RoostError, Unavailable, UnknownOutcome
from roost_crdt.limits import Limits
from roost_crdt.linear.hosted import Hosted, unknown
from roost_crdt.linear.transactions import Item, Outcome, Table, Txn

from .disk import Disk
from .hosting import Surroundings
from .loop import START_MS, Crashed, Future, Life
from .node import Node
from .store import Store, StoreFailed

NAME = "consensus"
TURN_MS = 0.4
RETRY_PAUSE_MS = 20.0
LIMITS = Limits()

T = TypeVar("T")


class Endpoint:
    """The host, alive or not, and the way to it."""

    def __init__(self, world: Surroundings, seed: int) -> None:
        self.random = Random(seed ^ 0x11EA)
        self.unreachable: dict[str, float] = {}
        """Node -> until when nothing of it gets here."""
        self.healed = False
        self.life: Life | None = None
        self._world = world
        self._disk = Disk()
        self._steps_to_crash = 0
        self._waiting: list[Callable[[], None]] = []

    # --- life

    def start(self) -> None:
        """Open the store, and the history in it. CorruptData if it does not check out."""
        if self.life is not None:
            return
        try:
            self._store = Store(
                self._disk,
                now_ms=START_MS + int(self._world.loop.now_ms),
                random_bytes=self.random.randbytes,
                step=self._step,
            )
        except OSError:
            self._world.loop.after(200.0, None, self.start)
            return
        self.life = Life(NAME)
        self._waiting = []
        table = self.table()
        self._hosted = Hosted(table, LIMITS)
        if self._hosted.founded(self.random.randbytes):
            self._store.flush()
        self._hosted.open()
        self._world.loop.after(self.random.uniform(50.0, 150.0), self.life, self._apply)

    def table(self) -> Table:
        """The kind of the store that holds all of it."""
        kind = logformat.KIND_CONSENSUS
        return Table(
            get=partial(self._store.get, kind),
            scan=partial(self._store.scan, kind),
            put=partial(self._store.put, kind),
            durable=self.durable,
        )

    def crashed(self) -> None:
        """The process is gone; another one begins soon."""
        if self.life is None:
            return
        self._steps_to_crash = 0
        life, self.life = self.life, None
        life.end()
        self._waiting = []
        self._world.loop.after(self.random.uniform(20.0, 400.0), None, self.start)

    def hurt(self, nodes: Sequence[str]) -> None:
        """One fault of this endpoint, or of the way to it."""
        kind = self.random.choice(("kill", "power", "crash", "sync fails", "pause", "cut", "cut"))
        self._count(f"host: {kind}")
        if kind == "cut":
            until_ms = self._world.loop.now_ms + self.random.uniform(100.0, 2_000.0)
            self.unreachable[self.random.choice(nodes)] = until_ms
        elif self.life is None:
            return
        elif kind == "crash":
            self._steps_to_crash = self.random.randint(1, 6)
        elif kind == "sync fails":
            self._disk.failing = True
        elif kind == "pause":
            pause_ms = self.random.choice((100.0, 700.0, 2_000.0))
            self.life.paused_until_ms = self._world.loop.now_ms + pause_ms
        else:
            self.crashed()
            if kind == "power":
                self._disk.lose_power(self.random)
                self._disk.boot_id = self.random.randbytes(8)

    def heal(self) -> None:
        """The way to it is whole, and so is its disk."""
        self.healed, self._steps_to_crash, self._disk.failing = True, 0, False
        self.unreachable.clear()
        if self.life is not None:
            self.life.paused_until_ms = 0.0
        self.start()

    def stop(self) -> None:
        """The run is over."""
        life, self.life = self.life, None
        if life is not None:
            life.end()

    def _step(self, _: str) -> None:
        if self._steps_to_crash:
            self._steps_to_crash -= 1
            if not self._steps_to_crash:
                raise Crashed(NAME)

    def _apply(self) -> None:
        self._store.apply()
        self._world.loop.after(self.random.uniform(50.0, 150.0), self.life, self._apply)

    def _count(self, what: str) -> None:
        self._world.trace.count("linear", what)

    # --- what it is asked

    async def durable(self) -> None:
        """Once all that was put so far is durable."""
        if not self._store.dirty:
            return
        done: Future[None] = Future()
        self._waiting.append(partial(done.set, None))
        if len(self._waiting) == 1:
            delay_ms = TURN_MS * self.random.random()
            self._world.loop.after(delay_ms, self.life, self._flush)
        await done

    def _flush(self) -> None:
        try:
            self._store.flush()
        except StoreFailed as error:
            raise Crashed(NAME) from error
        waiting, self._waiting = self._waiting, []
        for callback in waiting:
            callback()

    async def items(self, keys: Sequence[bytes]) -> list[Item | None]:
        """The keys as they are, once that is durable."""
        found = self._hosted.items(keys)
        await self.durable()
        return found

    async def execute(self, txn: Txn, request_id: bytes | None, result: bytes) -> Outcome:
        """A transaction, answered once it is durable."""
        outcome = self._hosted.execute(txn, request_id, result)
        await self.durable()
        return outcome

    # --- the way to it

    def ask(
        self, node: Node, work: Callable[[], Awaitable[T]], *, within_ms: float, twice: bool
    ) -> Future[T]:
        """UnknownOutcome: it may be carried out yet. `twice`: a copy may arrive as well."""
        loop, random = self._world.loop, self.random
        answer: Future[T] = Future()

        def arrive() -> None:
            if self.life is None or self._cut(node.name):
                return
            outcome = loop.spawn(_started(work), self.life)
            outcome.then(lambda: self._answer(node, outcome, answer))

        def again() -> None:
            if self.life is not None:
                loop.spawn(_started(work), self.life)

        if not self._lost():
            loop.after(self._delay_ms(), None, arrive)
        if twice and not self.healed and random.random() < 0.1:
            loop.after(random.uniform(20.0, 4_000.0), None, again)
        late = UnknownOutcome(f"consensus did not answer {node.name} within {within_ms:.0f} ms")
        loop.after(within_ms, node.life, answer.fail, late)
        return answer

    def _answer(self, node: Node, outcome: Future[T], answer: Future[T]) -> None:
        if self.life is None or self._lost() or self._cut(node.name):
            return
        try:
            value, error = outcome.result(), None
        except RoostError as refusal:
            value, error = None, refusal
        loop, life, delay_ms = self._world.loop, node.life, self._delay_ms()
        if error is not None:
            loop.after(delay_ms, life, answer.fail, error)
        else:
            loop.after(delay_ms, life, answer.set, value)

    def _cut(self, name: str) -> bool:
        return self.unreachable.get(name, 0.0) > self._world.loop.now_ms

    def _lost(self) -> bool:
        return not self.healed and self.random.random() < 0.05

    def _delay_ms(self) -> float:
        slow = not self.healed and self.random.random() < 0.06
        return self.random.uniform(200.0, 3_000.0) if slow else self.random.uniform(1.0, 40.0)


async def _started(work: Callable[[], Awaitable[T]]) -> T:
    return await work()


class Way:
    """What one life of a node asks the endpoint through, as the daemon's remote does.

    Lost answers are asked for again within the deadline, of a transaction only with a request id.
    """

    def __init__(self, endpoint: Endpoint, node: Node) -> None:
        self._endpoint = endpoint
        self._node = node

    async def get(self, keys: Sequence[bytes], *, deadline_ms: int) -> list[Item | None]:
        def work() -> Awaitable[list[Item | None]]:
            return self._endpoint.items(keys)

        try:
            return await self._repeat(work, deadline_ms, repeat=True, twice=False)
        except UnknownOutcome as error:
            raise Unavailable(error.message) from None

    async def txn(
        self, txn: Txn, *, request_id: bytes | None = None, result: bytes = b"", deadline_ms: int
    ) -> Outcome:
        def work() -> Awaitable[Outcome]:
            return self._endpoint.execute(txn, request_id, result)

        named = request_id is not None
        # Without a name a copy is a second write: where nothing is compared, or a key that has
        # to be absent was deleted meanwhile. No connection carries a frame twice.
        try:
            return await self._repeat(work, deadline_ms, repeat=named, twice=named)
        except UnknownOutcome as error:
            raise unknown(error.message, request_id) from None

    async def _repeat(
        self, work: Callable[[], Awaitable[T]], deadline_ms: int, *, repeat: bool, twice: bool
    ) -> T:
        loop = self._node.world.loop
        ends_ms = loop.now_ms + deadline_ms
        while True:
            left_ms = ends_ms - loop.now_ms
            within_ms = max(left_ms / 2, min(50.0, left_ms)) if repeat else left_ms
            try:
                return await self._endpoint.ask(self._node, work, within_ms=within_ms, twice=twice)
            except UnknownOutcome:
                if not repeat or ends_ms - loop.now_ms <= RETRY_PAUSE_MS:
                    raise
            self._node.world.trace.count("linear", "asked again")
            await loop.sleep(RETRY_PAUSE_MS, self._node.life)
