"""The end of a connection whose client is still sending: it is read on, so that it sees why.

A socket that is closed with unread bytes is reset, and a reset takes back replies that the client
has not read yet: the error that says what it did wrong would be lost.
"""

from __future__ import annotations

import asyncio

DRAIN_S = 2.0
DRAIN_BYTES_MAX = 64 * 1024 * 1024


class Draining(asyncio.Protocol):
    """Takes a connection over from `before`, sends the end of the stream, and reads to theirs."""

    def __init__(self, transport: asyncio.Transport, before: asyncio.Protocol) -> None:
        self._transport = transport
        self._before = before
        self._left = DRAIN_BYTES_MAX
        transport.set_protocol(self)
        transport.write_eof()
        if not transport.is_reading():
            transport.resume_reading()
        self._end = asyncio.get_running_loop().call_later(DRAIN_S, transport.close)

    def data_received(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left < 0:
            self._transport.close()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        """What is left to send is bounded by what `before` had written."""

    def resume_writing(self) -> None:
        pass

    def connection_lost(self, exc: Exception | None) -> None:
        self._end.cancel()
        self._before.connection_lost(exc)
