"""The blocking face: `connect` and what it returns. Thread-safe; survives a fork."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

from roost import requests
from roost.address import Address, parse_url
from roost.mmap import IndexReader
from roost.requests import Request
from roost.session import (
    CallState,
    OnConflict,
    Opened,
    SessionState,
    error_text,
    open_session,
)
from roost.transport import Transport
from roost.types import Ack, Hello, Reading, Spent, Turn, Turns
from roost.watch import Watch
from roost_crdt.errors import UnknownOutcome

__all__ = ["Call", "Client", "Reservation", "Session", "connect"]

T = TypeVar("T")


def connect(url: str | None = None, *, mmap: bool = True, deadline_ms: int = 2000) -> Client:
    """A client of the daemon at `url`, else at $ROOST_URL, else at /run/roost/roost.sock.

    `unix:///path` or `redis://[name:secret@]host:port[/db]`. With `mmap` reads of
    eventually-global keys come from the daemon's index in shared memory wherever this process
    may open it, and from the socket elsewhere. No call takes longer than `deadline_ms`.
    Raises BadRequest for a URL that is none, Unavailable if nobody answers, NoAuth.
    """
    client = Client(parse_url(url, os.environ), mmap=mmap, deadline_ms=deadline_ms)
    try:
        client.connect()
    except BaseException:
        client.close()
        raise
    return client


class Client:
    """Keys, quotas and sessions of one daemon."""

    def __init__(self, address: Address, *, mmap: bool, deadline_ms: int) -> None:
        self.deadline_ms = requests.whole(deadline_ms, "deadline_ms", 1)
        self._transport = Transport(address)
        self._index = IndexReader(address) if mmap and address.is_local else None
        self._watches: list[Watch] = []

    def connect(self) -> Hello:
        """Greet the daemon unless that is done. Every other call does so by itself."""
        return self._greeted(self._transport.connect(self._by()))

    def close(self) -> None:
        """Drop connections, watches and the mapped index."""
        for watch in self._watches:
            watch.close()
        self._transport.close()
        if self._index is not None:
            self._index.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def node(self) -> str:
        """The id of the node that this client talks to."""
        hello = self._transport.hello
        return hello.node if hello is not None else ""

    def run(self, request: Request[T], deadline_s: float | None = None) -> T:
        """The answer to any request, by `deadline_s` (monotonic) or in the client's deadline."""
        answer = self._transport.run(request, self._by(deadline_s))
        hello = self._transport.hello
        if hello is not None:
            self._greeted(hello)
        return answer

    def _greeted(self, hello: Hello) -> Hello:
        if self._index is not None:
            self._index.greeted(hello)
        return hello

    def _by(self, deadline_s: float | None = None) -> float:
        return time.monotonic() + self.deadline_ms / 1000 if deadline_s is None else deadline_s

    def _acked(self, ack: Ack) -> Ack:
        if self._index is not None:
            self._index.acknowledged(ack.seq)
        return ack

    # --- keys ---------------------------------------------------------------------------------

    def get(self, key: str | bytes, *, max_lag_ms: int | None = None) -> Reading:
        """The value of a key as this node has it (in consensus, where it is linearizable).

        Raises Unavailable if the copy lags more than `max_lag_ms`, or if the node would have
        to be asked and does not answer; NoPolicy; Unsupported.
        """
        index = self._index
        if index is not None:
            reading = index.get(key, max_lag_ms)
            if reading is not None:
                return reading
        return self.run(requests.get(key, max_lag_ms))

    def set(self, key: str | bytes, value: Any, *, ttl_ms: int | None = None) -> Ack:
        """Write a register or assign a counter.

        A str and its UTF-8 bytes are the same string; anything else must be JSON. Without
        `ttl_ms` the policy's ttl holds. UnknownOutcome if the reply was lost.
        """
        return self._acked(self.run(requests.set_value(key, value, ttl_ms)))

    def incr(
        self,
        key: str | bytes,
        by: int | float | Mapping[str, int] = 1,
        *,
        request_id: str | None = None,
    ) -> Ack:
        """Add to a counter or rate; `.value` of the Ack is the new count here.

        A map whose policy says `fields = "counter"` takes `{field: n}`.

        A linearizable counter applies one `request_id` once, so that a lost reply is retried
        by itself; for others it is UnknownOutcome.
        """
        named = uuid.uuid4().hex if request_id is None else request_id
        request = requests.incr(key, by, named)
        deadline_s = self._by()
        try:
            return self._acked(self.run(request, deadline_s))
        except UnknownOutcome as error:
            if isinstance(error.__cause__, TimeoutError) or not self.run(
                requests.applies_once(key), deadline_s
            ):
                raise
            return self._acked(self.run(request, deadline_s))

    def delete(self, key: str | bytes) -> Ack:
        """Delete a key of any type; `.value` of the Ack tells whether there was one."""
        return self._acked(self.run(requests.delete(key)))

    def update(
        self,
        key: str | bytes,
        *,
        put: Mapping[Any, Any] | Iterable[Any] = (),
        drop: Iterable[Any] = (),
    ) -> Ack:
        """Put and drop fields of a map (`put` a mapping) or elements of a set, in one record."""
        return self._acked(self.run(requests.update(key, put, drop)))

    def keys(self, pattern: str | bytes) -> list[str]:
        """The existing keys that match a glob, in order. One request a thousand keys."""
        found: list[str] = []
        after = b""
        while True:
            page = self.run(requests.keys_page(pattern, after))
            found.extend(map(requests.key_text, page))
            if len(page) < requests.PAGE_KEYS:
                return found
            after = page[-1]

    def watch(self, prefix: str | bytes, *, idle_ms: int | None = None) -> Watch:
        """Changes of the keys that begin with `prefix`, from now on, as they come.

        An iterator and a context manager, on a connection of its own. With `idle_ms` it ends
        after that time without a change. Raises Unavailable when the daemon is lost, since
        changes may then have been missed: read again, and watch again.
        """
        self._watches = [watch for watch in self._watches if not watch.closed]
        watch = Watch(self._transport.address, self.run, prefix, self.deadline_ms, idle_ms)
        self._watches.append(watch)
        return watch

    # --- quotas -------------------------------------------------------------------------------

    def spend(self, key: str | bytes, n: int, *, request_id: str) -> Spent:
        """Spend `n` of a quota, once per `request_id`. Raises Exhausted."""
        return self.run(requests.spend(key, n, request_id))

    def reserve(self, key: str | bytes, n: int, *, request_id: str, ttl_ms: int) -> Reservation:
        """Set `n` of a quota aside before its use is known; settle or release it in `ttl_ms`.

        As a context manager it is released unless it was settled. Raises Exhausted.
        """
        return Reservation(self, self.run(requests.reserve(key, n, request_id, ttl_ms)))

    # --- sessions -----------------------------------------------------------------------------

    def open(self, token: str | None = None, *, sid: str | None = None) -> Session:
        """A session: by token, by sid (opened if unknown), or a new one."""
        return Session(self, self.run(open_session(token, sid)))


class Reservation:
    """An amount set aside; `id` settles it from anywhere."""

    def __init__(self, client: Client, reservation_id: str) -> None:
        self.id = reservation_id
        self._client = client
        self._ended = False

    def settle(self, used: int) -> None:
        """Count `used` as spent and give the rest back."""
        self._client.run(requests.settle(self.id, used))
        self._ended = True

    def release(self) -> None:
        """Give all of it back."""
        self._client.run(requests.release(self.id))
        self._ended = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._ended:
            self.release()


class Call(CallState):
    """A tool call: its `status`, its `result` once it has one, and how it ended."""

    def __init__(
        self,
        client: Client,
        session: SessionState,
        tool: str,
        args: Any,
        key: str | None,
        turn_id: str | None,
    ) -> None:
        super().__init__(session, tool, args, key, turn_id)
        self._client = client

    def finish(self, result: Any) -> None:
        """Store the result; later calls under the same key get it."""
        self._client.run(self.end_request("finished", result))

    def fail(self, error: Any) -> None:
        """Store that the call failed; an exception is stored as its text."""
        self._client.run(self.end_request("failed", error_text(error)))

    def retry(self) -> None:
        """Open the next attempt of a failed or doubtful call; `status` is fresh afterwards."""
        self._client.run(self.begin_request(retry=True))


class Session(SessionState):
    """One conversation with its ledger and fields.

    `token` is always the freshest; keep it to open the session elsewhere. `turn` is the number
    of the last turn seen, `home` and `standby` the nodes that hold the session, `epoch` how
    often that has changed.
    """

    def __init__(self, client: Client, opened: Opened) -> None:
        super().__init__(opened)
        self._client = client

    def turns(self, last: int | None = None) -> Turns:
        """The messages of the newest `last` turns (None = all), and how many are missing."""
        return self._client.run(self.turns_request(last))

    def commit(
        self,
        messages: Iterable[Mapping[str, Any]],
        *,
        turn_id: str | None = None,
        base: int | None = None,
        put: Mapping[str, Mapping[str, Any]] | None = None,
        on_conflict: OnConflict = "reject",
    ) -> Turn:
        """Commit one turn: its messages, and fields of the session's map policies.

        Sent again by itself after a lost reply, and applied once. Raises TurnConflict if the
        session has gone on elsewhere (`details["turn"]` is the current turn); after
        UnknownOutcome commit again with `turn_id=error.details["turn_id"]`.
        """
        return self._client.run(self.commit_request(messages, turn_id, base, put, on_conflict))

    def call(
        self, tool: str, args: Any, *, key: str | None = None, turn_id: str | None = None
    ) -> Call:
        """Note that a tool is about to be called, or learn what became of that call.

        `status` is fresh (run the tool, then finish or fail), finished (use `result`), failed,
        or in_doubt (it was begun and nobody knows whether it ran: `retry()` if it may run
        twice). The default key is a hash of tool, arguments and turn. Raises CallConflict.
        """
        call = Call(self._client, self, tool, args, key, turn_id)
        self._client.run(call.begin_request())
        return call

    def field(self, policy: str, name: str) -> Any:
        """A field of a session-local map, None if it is not set."""
        return self._client.run(self.field_request(policy, name))

    def show(self) -> dict[str, Any]:
        """Everything that the session holds beside its messages, as GET /v1/sessions/{sid}."""
        return self._client.run(self.show_request())

    def fork(self, at: int | None = None) -> Session:
        """A new session with this one's turns up to `at` (None = all)."""
        return Session(self._client, self._client.run(self.fork_request(at)))

    def erase(self) -> list[dict[str, Any]]:
        """Drop the session everywhere, for ever; one receipt a holder."""
        return self._client.run(self.erase_request())
