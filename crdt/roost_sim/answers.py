"""What clients ask of sessions, what they are told, and small parts of the service."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from roost_crdt import logformat
from roost_crdt.entries import Epoch, TurnRef
from roost_crdt.home import Meta, decode_frame
from roost_crdt.sessions.copy import SessionCopy

from .loop import Future
from .node import Node


@dataclass(slots=True, frozen=True)
class Request:
    """What a client asks of a session."""

    kind: str
    """open, read, commit, call, summarise, fork or erase"""
    sid: str
    token: bytes | None = None
    turn_id: str = ""
    message: bytes = b""
    on_conflict: str = "append"
    put: tuple[tuple[str, bytes | None], ...] = ()
    """Fields of policy `kv` that the turn writes; None removes one."""
    call: str = ""
    status: str = ""
    result: bytes | None = None
    retry: bool = False
    child: str = ""
    """The session that a fork makes."""
    at: int | None = None


class ForkFirst(Exception):
    """The turn goes onto a new session that branches where the caller stood."""

    def __init__(self, child: str, at: int) -> None:
        super().__init__(child)
        self.child = child
        self.at = at


@dataclass(slots=True, frozen=True)
class Receipt:
    """What one node says of an erasure; `pending` is why it could not be asked."""

    node: str
    at_ms: float
    pending: str = ""


@dataclass(slots=True)
class Answer:
    """What the client is told; `held` is what the copy that answered held, for the checker."""

    token: bytes
    home: str
    turn: int
    sid: str = ""
    epoch: Epoch = (0, "")
    stale: int = 0
    served_by: str = "home"
    node: str = ""
    ref: TurnRef | None = None
    messages: list[bytes] = field(default_factory=list)
    held: frozenset[TurnRef] = frozenset()
    path: tuple[TurnRef, ...] = ()
    """The active path, oldest first."""
    finished: frozenset[str] = frozenset()
    """Calls that the copy which answered holds as finished."""
    status: str = ""
    result: bytes | None = None
    fresh: bool = False
    """The caller is the first to begin the call."""
    receipts: tuple[Receipt, ...] = ()
    protected: bool = False
    promised_ms: float = 0.0
    """When the node that carried it out answered."""


class Lock:
    """First come, first served."""

    def __init__(self) -> None:
        self._queue: list[Future[None]] = []
        self._held = False

    async def __aenter__(self) -> None:
        while self._held:
            turn: Future[None] = Future()
            self._queue.append(turn)
            await turn
        self._held = True

    async def __aexit__(self, *error: object) -> None:
        self._held = False
        if self._queue:
            self._queue.pop(0).set(None)


class SessionRows:
    """The store's SESSION database."""

    def __init__(self, node: Node) -> None:
        self._store = node.store

    def get(self, key: bytes) -> bytes | None:
        return self._store.get(logformat.KIND_SESSION, key)

    def scan(self, prefix: bytes, after: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        return self._store.scan(logformat.KIND_SESSION, prefix, after, limit)

    def put(self, items: Mapping[bytes, bytes | None]) -> int:
        return self._store.put(logformat.KIND_SESSION, items)


def live_home(meta: Meta | None) -> str:
    return "" if meta is None else meta.home


def frame_text(payload: bytes) -> str:
    frame = decode_frame(payload)
    parts = [type(frame).__name__, frame.sid]
    for name in ("epoch", "standby", "n"):
        value = getattr(frame, name, None)
        if value is not None:
            parts.append(f"{name} {value}")
    return f"{' '.join(parts)} ({len(payload)} bytes)"


def refs_of(live: SessionCopy) -> list[TurnRef]:
    """Every turn that a copy holds, on whatever branch."""
    branches = [entry.ref for branch in live.fold.branches() for entry in branch.entries]
    return [*(entry.ref for entry in live.fold.path()), *branches]
