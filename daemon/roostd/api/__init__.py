"""The faces of a node: RESP and HTTP over the same operations."""

from __future__ import annotations

from roostd.api.http.server import HttpServer
from roostd.api.metrics import FaceMetrics
from roostd.api.operations import Operations
from roostd.api.resp.server import RespServer
from roostd.node import Node

__all__ = ["Faces", "serve"]


class Faces:
    """Both faces. `addresses` lists where they listen once started."""

    def __init__(self, node: Node) -> None:
        self.metrics = FaceMetrics()
        operations = Operations(node)
        self.resp = RespServer(node, operations, self.metrics)
        self.http = HttpServer(node, operations, self.metrics)
        self._registry = node.metrics

    async def start(self) -> None:
        """Listen on every configured address; raises OSError naming one that is taken."""
        self._registry.register(self.metrics)
        await self.resp.start()
        try:
            await self.http.start()
        except BaseException:
            await self.resp.stop()
            raise

    async def stop(self) -> None:
        """Stop listening, answer what runs, close."""
        await self.http.stop()
        await self.resp.stop()
        self._registry.unregister(self.metrics)

    @property
    def addresses(self) -> list[str]:
        return [*self.resp.addresses, *self.http.addresses]


def serve(node: Node) -> Faces:
    """The faces of `node`, to be started in the loop that runs it."""
    return Faces(node)
