"""Calls between nodes, relayed over neighbours where there is no direct link.

They are apart from the gossip connections: a call that was sent into a cut path may be lost or may
be carried out late, long after its caller has given up.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from roost_crdt.errors import RoostError, Unavailable, UnknownOutcome

from .loop import Future, Lost
from .node import Node

Handler = Callable[[str, Any], Coroutine[Any, Any, Any]]
HOPS_MAX = 4
RETRY_MS = 400.0
RETRIES_MAX = 8


class Rpc:
    """Calls of one node's life."""

    def __init__(self, node: Node, peer: Callable[[str], Rpc | None]) -> None:
        self.node = node
        self.handlers: dict[str, Handler] = {}
        self._peer = peer

    async def call(self, to: str, method: str, args: Any, *, deadline_ms: float) -> Any:
        """Unavailable: not sent. UnknownOutcome: sent, and no answer came. Or the remote error."""
        world = self.node.world
        if to not in self.node.replica.peers and not self.node.replica.routes(to):
            raise Unavailable(f"no route to {to}")
        future: Future[Any] = Future()
        self._pass_on([self.node.name], to, method, args, future)
        late = UnknownOutcome(f"{to} did not answer within {deadline_ms:.0f} ms")
        world.loop.after(deadline_ms, self.node.life, future.fail, late)
        return await future

    def _pass_on(self, path: list[str], to: str, method: str, args: Any, future: Any) -> None:
        routes = [via for via in self.node.replica.routes(to) if via not in path]
        if len(path) <= HOPS_MAX and routes:
            self._send(routes[0], lambda rpc: rpc.arrived(path, to, method, args, future))

    def arrived(self, path: list[str], to: str, method: str, args: Any, future: Any) -> None:
        """A request on its way, or at its end."""
        name = self.node.name
        if name != to:
            self._pass_on([*path, name], to, method, args, future)
            return
        loop, life = self.node.world.loop, self.node.life
        outcome = loop.spawn(self.handlers[method](path[0], args), life)
        outcome.then(lambda: self._answer(path, outcome, future))

    def _answer(self, path: list[str], outcome: Future[Any], future: Future[Any]) -> None:
        if self.node.life is None:
            return
        try:
            value, error = outcome.result(), None
        except Lost:
            return
        except RoostError as refusal:
            value, error = None, refusal
        self._send_back(path, lambda: future.set(value) if error is None else future.fail(error))

    def _send_back(self, path: list[str], done: Callable[[], None]) -> None:
        if len(path) == 1:
            self._send(path[0], lambda rpc: done())
        else:
            self._send(path[-1], lambda rpc: rpc._send_back(path[:-1], done))

    def _send(self, to: str, then: Callable[[Rpc], None], retries: int = 0) -> None:
        world, name = self.node.world, self.node.name
        if world.network.blocked(name, to):
            if retries < RETRIES_MAX and world.random.random() < 0.8:
                world.loop.after(RETRY_MS, self.node.life, self._send, to, then, retries + 1)
            return

        def arrive() -> None:
            rpc = self._peer(to)
            if rpc is not None and rpc.node.life is not None:
                world.loop.after(0, rpc.node.life, then, rpc)

        world.loop.after(world.network.delay_ms(name, to), None, arrive)
