"""A user-space delay proxy: every byte between two regions waits half a round trip.

Run as a process of its own, so that the delays do not share a loop with what is measured:
`python -m roostd.demo.proxy '[[port, target_port, one_way_ms, "eu", "us"], ...]'`. Commands come
on standard input, a line each, and are answered by the same line:

    cut NODE [OTHER]    nothing passes to or from NODE (between the two) any more; what was under
                        way is lost
    heal NODE [OTHER]   those connections are closed, new ones pass again

It ends when its standard input does, so that it never outlives the demo.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import deque

QUEUE_BYTES_MAX = 16 * 1024 * 1024
CHUNK_BYTES = 65_536


class Pipe:
    """One direction of one connection: bytes come out `delay_s` after they went in."""

    def __init__(
        self,
        link: Link,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._link = link
        self._reader = reader
        self._writer = writer
        self._queue: deque[tuple[float, bytes]] = deque()
        self._held_bytes = 0
        self._changed = asyncio.Event()
        self._room = asyncio.Event()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._take())
            group.create_task(self._give())

    async def _take(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                data = await self._reader.read(CHUNK_BYTES)
            except ConnectionError:
                data = b""
            self._queue.append((loop.time() + self._link.delay_s, data))
            self._held_bytes += len(data)
            self._changed.set()
            if not data:
                return
            if self._held_bytes > QUEUE_BYTES_MAX:
                self._room.clear()
                await self._room.wait()

    async def _give(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while not self._queue:
                self._changed.clear()
                await self._changed.wait()
            due, data = self._queue.popleft()
            self._held_bytes -= len(data)
            if self._held_bytes <= QUEUE_BYTES_MAX:
                self._room.set()
            wait_s = due - loop.time()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            if not data:
                if not self._link.cut:
                    self._writer.close()
                return
            if self._link.cut:
                continue  # lost on the way; a cut link does not even say so
            try:
                self._writer.write(data)
                await self._writer.drain()
            except ConnectionError:
                return


class Link:
    """A listening port that leads to one node's gossip port, with a delay."""

    def __init__(self, port: int, target: int, one_way_ms: float, ends: frozenset[str]) -> None:
        self.port = port
        self.target = target
        self.delay_s = one_way_ms / 1000
        self.ends = ends
        self.cut = False
        self._open: set[asyncio.StreamWriter] = set()
        self._healed = asyncio.Event()

    async def serve(self) -> None:
        await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    def set_cut(self, cut: bool) -> None:
        """Silence the link, or close its connections and let new ones pass."""
        self.cut = cut
        if cut:
            self._healed.clear()
        else:
            self._healed.set()
            for writer in self._open:
                writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        try:
            if self.cut:
                await self._healed.wait()
                return
            target_reader, other = await asyncio.open_connection("127.0.0.1", self.target)
            ends.append(other)
            self._open.update(ends)
            async with asyncio.TaskGroup() as group:
                group.create_task(Pipe(self, reader, other).run())
                group.create_task(Pipe(self, target_reader, writer).run())
        except OSError:
            pass  # the node is down; the dialler sees a closed connection
        finally:
            self._open.difference_update(ends)
            for end in ends:
                end.transport.abort()


async def main(spec: str) -> None:
    """Serve the links of `spec` until standard input ends."""
    links = [
        Link(int(port), int(target), float(delay_ms), frozenset((str(a), str(b))))
        for port, target, delay_ms, a, b in json.loads(spec)
    ]
    for link in links:
        await link.serve()
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    print("ready", flush=True)
    while line := (await commands.readline()).decode().strip():
        verb, *nodes = line.split()
        for link in links:
            if link.ends.issuperset(nodes):
                link.set_cut(verb == "cut")
        print(line, flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
