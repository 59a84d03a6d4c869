"""Virtual time: one heap of events, coroutines that wait on it, and owners that can die.

Every event belongs to a `Life` (one run of one node's process) or to nobody. A dead life's events
never happen; a paused life's happen when it goes on. An event that raises `Crashed` kills the life
that it names and nothing else. Ties are broken by order of scheduling, so a run is a function of
its seed.
"""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

T = TypeVar("T")

START_MS = 1_790_000_000_000
"""What the clocks show when a run begins."""


class Lost(Exception):
    """The node that was asked died before it answered: the outcome is unknown."""


class Crashed(Exception):
    """Raised between two effects of a node whose time has come."""

    def __init__(self, node: str) -> None:
        super().__init__(node)
        self.node = node


@dataclass(slots=True, eq=False)
class Life:
    """One run of a node's process."""

    node: str
    alive: bool = True
    paused_until_ms: float = 0.0
    tasks: dict[Task, None] = field(default_factory=dict)

    def end(self) -> None:
        """Nothing of this life happens any more."""
        self.alive = False
        for task in list(self.tasks):
            task.drop()
        self.tasks.clear()


class Future(Generic[T]):
    """A value to come; awaited by tasks."""

    __slots__ = ("_callbacks", "_error", "_value", "done")

    def __init__(self) -> None:
        self.done = False
        self._value: T | None = None
        self._error: Exception | None = None
        self._callbacks: list[Callable[[], None]] = []

    def set(self, value: T) -> None:
        if not self.done:
            self.done, self._value = True, value
            self._call()

    def fail(self, error: Exception) -> None:
        if not self.done:
            self.done, self._error = True, error
            self._call()

    def _call(self) -> None:
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def then(self, callback: Callable[[], None]) -> None:
        if self.done:
            callback()
        else:
            self._callbacks.append(callback)

    def result(self) -> T:
        assert self.done
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]

    def __await__(self) -> Generator[Future[T], None, T]:
        if not self.done:
            yield self
        return self.result()


class Task:
    """A coroutine that belongs to a life (or to nobody)."""

    __slots__ = ("_coroutine", "_loop", "life", "outcome")

    def __init__(self, loop: Loop, coroutine: Coroutine[Any, Any, Any], life: Life | None) -> None:
        self._loop = loop
        self._coroutine = coroutine
        self.life = life
        self.outcome: Future[Any] = Future()
        if life is not None:
            life.tasks[self] = None

    def step(self) -> None:
        if self.life is not None and not self.life.alive:
            return
        try:
            waited: Future[Any] = self._coroutine.send(None)
        except StopIteration as stop:
            self._end()
            self.outcome.set(stop.value)
        except Crashed:
            raise
        except Exception as error:  # noqa: BLE001 - handed to whoever waits, as asyncio does
            self._end()
            self.outcome.fail(error)
        else:
            waited.then(lambda: self._loop.after(0, self.life, self.step))

    def drop(self) -> None:
        """The life has ended: whoever waits for the outcome learns that it is lost."""
        # The one that is running now cannot be closed: it ends by the exception under way.
        with contextlib.suppress(RuntimeError, ValueError):
            self._coroutine.close()
        self.outcome.fail(Lost())

    def _end(self) -> None:
        if self.life is not None:
            self.life.tasks.pop(self, None)


class Loop:
    """The events of one run, in order of virtual time."""

    def __init__(self, on_crash: Callable[[str], None]) -> None:
        self.now_ms = 0.0
        self.events = 0
        self._heap: list[tuple[float, int, Life | None, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self._on_crash = on_crash

    def at(self, when_ms: float, life: Life | None, call: Callable[..., None], *args: Any) -> None:
        self._count += 1
        when_ms = max(when_ms, self.now_ms)
        heapq.heappush(self._heap, (when_ms, self._count, life, call, args))

    def after(
        self, delay_ms: float, life: Life | None, call: Callable[..., None], *args: Any
    ) -> None:
        self.at(self.now_ms + delay_ms, life, call, *args)

    def sleep(self, delay_ms: float, life: Life | None) -> Future[None]:
        future: Future[None] = Future()
        self.after(delay_ms, life, future.set, None)
        return future

    def spawn(self, coroutine: Coroutine[Any, Any, Any], life: Life | None) -> Future[Any]:
        """Run a coroutine from now on; its outcome."""
        task = Task(self, coroutine, life)
        self.after(0, life, task.step)
        return task.outcome

    def run_until(self, end_ms: float) -> None:
        heap = self._heap
        while heap and heap[0][0] <= end_ms:
            when_ms, count, life, call, args = heapq.heappop(heap)
            if life is not None:
                if not life.alive:
                    continue
                if life.paused_until_ms > when_ms:
                    heapq.heappush(heap, (life.paused_until_ms, count, life, call, args))
                    continue
            self.now_ms = when_ms
            self.events += 1
            try:
                call(*args)
            except Crashed as crash:
                self._on_crash(crash.node)
        self.now_ms = end_ms
