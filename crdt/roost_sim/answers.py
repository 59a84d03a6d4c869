"""What clients ask of sessions, what they are told, and small parts of the service."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from roost_crdt import logformat
from roost_crdt.entries import TurnRef
from roost_crdt.home import Meta, decode_frame
from roost_crdt.sessions.copy import SessionCopy

from .loop import Future
from .node import Node


@dataclass(slots=True, frozen=True)
class Request:
    """What a client asks of a session."""

    kind: str
    sid: str
    token: bytes | None = None
    turn_id: str = ""
    message: bytes = b""
    on_conflict: str = "append"
    call: str = ""
    status: str = ""
    result: bytes | None = None


@dataclass(slots=True)
class Answer:
    """What the client is told; `held` is what the copy that answered held, for the checker."""

    token: bytes
    home: str
    turn: int
    stale: int = 0
    served_by: str = "home"
    node: str = ""
    ref: TurnRef | None = None
    messages: list[bytes] = field(default_factory=list)
    held: frozenset[TurnRef] = frozenset()
    status: str = ""
    result: bytes | None = None
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
