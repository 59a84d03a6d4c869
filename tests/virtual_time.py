"""An event loop whose time is a number: a test of minutes takes milliseconds, always the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


class VirtualLoop(asyncio.SelectorEventLoop):
    """Jumps to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0
        select = self._selector.select  # type: ignore[attr-defined]

        def jump(timeout: float | None = None) -> Any:
            ready = select(0)
            if not ready and timeout is not None and timeout > 0:
                self._now_s += timeout
            assert ready or timeout is not None, "everybody waits and nobody will wake them"
            return ready

        self._selector.select = jump  # type: ignore[attr-defined]

    def time(self) -> float:
        return self._now_s

    def end(self) -> None:
        """Cancel what still runs, and close."""
        pending = asyncio.all_tasks(self)
        for task in pending:
            task.cancel()
        if pending:
            self.run_until_complete(asyncio.wait(pending))
        self.close()

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return self.run_until_complete(work)


def run_virtual(work: Coroutine[Any, Any, _T]) -> _T:
    """Run one coroutine in virtual time."""
    loop = VirtualLoop()
    try:
        return loop.run(work)
    finally:
        loop.end()


def virtual(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """The test, in virtual time."""

    def run() -> None:
        run_virtual(test())

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    return run
