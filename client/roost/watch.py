"""Changes of keys as they happen: the blocking iterator, and what both faces share."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import hiredis

from roost import requests
from roost.address import Address
from roost.requests import Request
from roost.transport import Connection
from roost.types import Change
from roost.wire import Command, encode
from roost_crdt.errors import RoostError, Unavailable

__all__ = ["Watch", "changed_key", "read_change", "subscription"]

CHANNEL = b"__keyspace@0__:"


def subscription(prefix: str | bytes) -> Command:
    """The command that subscribes to changes of the keys that begin with `prefix`."""
    raw = requests.raw_bytes(prefix, "prefix")
    return ("PSUBSCRIBE", CHANNEL + requests.glob_escaped(raw) + b"*")


def changed_key(push: Any) -> bytes | None:
    """The key in a pushed message; None for other pushes. Raises an error that was pushed."""
    if isinstance(push, RoostError):
        raise push
    if isinstance(push, list) and len(push) == 4 and push[0] == b"pmessage":
        channel = push[2]
        if isinstance(channel, bytes) and channel.startswith(CHANNEL):
            return channel[len(CHANNEL) :]
    return None


def is_subscribed(push: Any) -> bool:
    """True for the confirmation of `subscription`."""
    if isinstance(push, RoostError):
        raise push
    return isinstance(push, list) and len(push) == 3 and push[0] == b"psubscribe"


def read_change(key: bytes) -> Request[Change]:
    """The value of a key that has changed."""
    request = requests.get(key, None)

    def parse(reply: Any) -> Change:
        reading = request.parse(reply)
        return Change(requests.key_text(key), reading.value, requests.stamp_of(reply))

    return Request(request.commands, parse, repeat=True, effect=False)


def interrupted(address: Address, error: BaseException) -> Unavailable:
    """The error of a watch that lost its daemon."""
    return Unavailable(
        f"{address}: the watch was interrupted ({error}); changes may have been missed: "
        "read the keys, then watch again",
        retry_after_ms=requests.RETRY_AFTER_MS,
    )


class Watch:
    """An iterator of Change on a connection of its own; also a context manager."""

    def __init__(
        self,
        address: Address,
        run: Callable[[Request[Change]], Change],
        prefix: str | bytes,
        deadline_ms: int,
        idle_ms: int | None,
    ) -> None:
        self.closed = False
        self._address = address
        self._run = run
        self._idle_ms = None if idle_ms is None else requests.whole(idle_ms, "idle_ms", 1)
        command = subscription(prefix)
        deadline_s = time.monotonic() + deadline_ms / 1000
        try:
            self._connection = Connection(address, deadline_s)
        except (OSError, hiredis.HiredisError) as error:
            raise requests.refused(address, error) from error
        try:
            self._connection.send(encode((command,)), deadline_s)
            while not is_subscribed(self._connection.receive(deadline_s)):
                pass
        except (OSError, hiredis.HiredisError) as error:
            self.close()
            raise interrupted(address, error) from error
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Change:
        idle_s = None if self._idle_ms is None else time.monotonic() + self._idle_ms / 1000
        key: bytes | None = None
        while key is None:
            if self.closed:
                raise StopIteration
            try:
                key = changed_key(self._connection.receive(idle_s))
            except TimeoutError:
                raise StopIteration from None
            except (OSError, hiredis.HiredisError) as error:
                if self.closed:
                    raise StopIteration from None
                self.close()
                raise interrupted(self._address, error) from error
        return self._run(read_change(key))

    def close(self) -> None:
        """End the watch, also from another thread."""
        if not self.closed:
            self.closed = True
            self._connection.shutdown()
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
