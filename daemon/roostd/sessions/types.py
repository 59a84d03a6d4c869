"""Requests and answers of sessions, as the faces and the other nodes see them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal, Protocol

import msgspec

from roost_crdt.home import Candidate

ServedBy = Literal["home", "replica", "forwarded", "takeover"]
OnConflict = Literal["reject", "append", "fork"]
NEVER_MS = 1 << 40
"""Silence of a node that was never heard: no neighbour, or not since the start."""


class Open(msgspec.Struct, tag="open", kw_only=True):
    """Open a session: with neither token nor sid a new one."""

    token: str | None = None
    sid: str | None = None


class Turns(msgspec.Struct, tag="turns", kw_only=True):
    """Read the newest `last` turns (None = all)."""

    token: str | None = None
    sid: str | None = None
    last: int | None = None


class Commit(msgspec.Struct, tag="commit", kw_only=True):
    """Commit one turn. `messages` are raw JSON texts; `put` is policy -> field -> raw JSON."""

    messages: list[bytes]
    turn_id: str
    token: str | None = None
    sid: str | None = None
    base: int | None = None
    put: dict[str, dict[str, bytes | None]] = {}
    on_conflict: OnConflict = "reject"


class CallStep(msgspec.Struct, tag="call", kw_only=True):
    """One step of a tool call in the session's ledger; `args` and `result` are raw JSON."""

    call: str
    status: Literal["begun", "finished", "failed"]
    token: str | None = None
    sid: str | None = None
    tool: str | None = None
    args: bytes | None = None
    result: bytes | None = None
    retry: bool = False


class Show(msgspec.Struct, tag="show", kw_only=True):
    """Everything that a session holds beside its messages."""

    token: str | None = None
    sid: str | None = None


class Fork(msgspec.Struct, tag="fork", kw_only=True):
    """A new session with this one's turns up to `at` (None = all)."""

    new_sid: str
    token: str | None = None
    sid: str | None = None
    at: int | None = None


class EraseRequest(msgspec.Struct, tag="erase", kw_only=True):
    """Drop the session everywhere, for ever."""

    token: str | None = None
    sid: str | None = None


Request = Open | Turns | Commit | CallStep | Show | Fork | EraseRequest


class Opened(msgspec.Struct):
    sid: str
    token: str
    home: str
    standby: str | None
    epoch: int
    turn: int
    created: bool = False
    served_by: ServedBy = "home"


class TurnsRead(msgspec.Struct):
    messages: list[bytes]
    turn: int
    stale_turns: int
    token: str
    home: str
    served_by: ServedBy = "home"
    lag_ms: int = 0


class Committed(msgspec.Struct):
    sid: str
    token: str
    turn: int
    stale_turns: int
    protected: bool
    home: str
    served_by: ServedBy = "home"
    contested: bool = False
    """True: home could not ask its standby whether it is still home (after a pause or a start)."""


class CallReply(msgspec.Struct):
    status: str
    token: str
    result: bytes | None = None
    served_by: ServedBy = "home"
    stale_turns: int = 0
    home: str = ""


class Branch(msgspec.Struct):
    """Turns of a former home that are not on the active path."""

    epoch: int
    turn: int
    messages: list[bytes]


class SessionView(msgspec.Struct):
    sid: str
    home: str
    standby: str | None
    epoch: int
    turn: int
    protected: bool
    stale_turns: int
    token: str
    fields: dict[str, dict[str, bytes]]
    calls: dict[str, dict[str, Any]]
    reconciled: list[Branch]
    served_by: ServedBy = "home"
    lag_ms: int = 0


class Erased(msgspec.Struct):
    receipts: list[dict[str, Any]]
    served_by: ServedBy = "home"


Answer = Opened | TurnsRead | Committed | CallReply | SessionView | Erased

ANSWERS: dict[type[Any], type[Any]] = {
    Open: Opened,
    Turns: TurnsRead,
    Commit: Committed,
    CallStep: CallReply,
    Show: SessionView,
    Fork: Opened,
    EraseRequest: Erased,
}


class Neighbours(Protocol):
    """What sessions need of the links."""

    def candidates(self) -> list[Candidate]:
        """Neighbours whose link is up."""
        ...

    def beyond(self) -> Collection[str]:
        """Nodes that are no neighbours and are reached by way of one."""
        ...

    def silent_ms(self, node: str) -> int:
        """Milliseconds since the last byte from `node`; NEVER_MS if it was never heard."""
        ...

    def send(self, node: str, payload: bytes) -> bool:
        """Queue a session frame; False if the link is down or its window is full."""
        ...

    async def call(self, node: str, method: str, args: dict[str, Any], *, deadline_ms: int) -> Any:
        """A remote call; raises Unavailable (not sent) or UnknownOutcome (no answer)."""
        ...
