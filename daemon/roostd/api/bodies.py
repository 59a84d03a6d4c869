"""Bodies of requests and answers: what HTTP and the ROOST.* commands take and give.

The OpenAPI document is made of these. Request bodies refuse fields that they do not know.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw, Struct

Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Positive = Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]
TtlMs = Annotated[int, Meta(ge=1, le=1 << 47, description="milliseconds from now")]
Turn = Annotated[int, Meta(ge=0)]
SID_PATTERN = r"""^[!$&-.0-9;<=>@A-Z\[\]^-~]+$"""
"""Printable ASCII without space or any of / : ? # % " \\."""
Sid = Annotated[
    str,
    Meta(min_length=1, max_length=120, extra_json_schema={"pattern": SID_PATTERN}),
]
Id = Annotated[str, Meta(min_length=1, max_length=128)]
ServedBy = Literal["home", "replica", "forwarded", "takeover"]


class Request(Struct, forbid_unknown_fields=True, kw_only=True):
    """A request body; an unknown field is refused."""


class OpenSession(Request):
    """Open a session: a new one, or a known sid for a fresh token."""

    sid: Sid | None = None


class CommitTurn(Request):
    """Commit one turn: messages and fields together, all or nothing."""

    messages: Annotated[
        list[Raw], Meta(description="JSON objects; unknown fields and number literals are kept")
    ]
    turn_id: Annotated[Id | None, Meta(description="a repeated id gets the first answer")] = None
    base: Annotated[Turn | None, Meta(description="the turn that this one follows")] = None
    put: Annotated[
        dict[str, dict[str, Raw]], Meta(description="policy -> field -> value, null removes")
    ] = {}
    on_conflict: Literal["reject", "append", "fork"] = "reject"


class CallStep(Request):
    """One step of a tool call."""

    status: Literal["begun", "finished", "failed"]
    tool: Annotated[str, Meta(max_length=255)] | None = None
    args: Raw = msgspec.field(default_factory=Raw)
    result: Raw = msgspec.field(default_factory=Raw)
    retry: Annotated[bool, Meta(description="after in_doubt or failed: open the next attempt")] = (
        False
    )


class NamedCallStep(CallStep, kw_only=True):
    """ROOST.CALL's body: the call's key is a member."""

    call: Id


class ForkSession(Request):
    """Fork at a turn (the current one if it is left out)."""

    at: Turn | None = None


class MoveSession(Request):
    node: Annotated[str, Meta(min_length=1, max_length=120)]


class PutValue(Request):
    """A JSON string is its bytes; any other value is kept as JSON."""

    value: Raw
    ttl_ms: TtlMs | None = None


class PatchValue(Request):
    """`incr` for counters and rates (an object of fields for a counting map), `put` and `drop`
    for maps and sets, or `update` for documents."""

    incr: Raw = msgspec.field(default_factory=Raw)
    put: Raw = msgspec.field(default_factory=Raw)
    drop: Raw = msgspec.field(default_factory=Raw)
    update: Annotated[
        bytes | None,
        Meta(
            description="a Yjs update (format v1) in base64; GET shows a document as "
            '{"base64": ...}, one update that holds all of it'
        ),
    ] = None


class Spend(Request):
    n: Positive


class Reserve(Request):
    n: Positive
    ttl_ms: TtlMs


class Settle(Request):
    used: Count


class SetLimit(Request):
    limit: Count


# --- answers --------------------------------------------------------------------------------------


class SessionOpened(Struct):
    sid: str
    token: str
    home: str
    standby: str | None
    epoch: int
    turn: int


class TurnsRead(Struct):
    messages: list[dict[str, Any]]
    turn: int
    stale_turns: int
    served_by: ServedBy
    lag_ms: int


class TurnCommitted(Struct):
    token: str
    turn: int
    stale_turns: int
    protected: bool
    served_by: ServedBy
    contested: bool | msgspec.UnsetType = msgspec.UNSET
    """Home was away for a while, and its standby could not say who is home now."""


class CallAnswer(Struct):
    status: Literal["fresh", "begun", "in_doubt", "finished", "failed"]
    result: Any | msgspec.UnsetType = msgspec.UNSET


class Branch(Struct):
    epoch: int
    turn: int
    messages: list[dict[str, Any]]


class SessionView(Struct):
    sid: str
    home: str
    standby: str | None
    epoch: int
    turn: int
    protected: bool
    stale_turns: int
    served_by: ServedBy
    lag_ms: int
    fields: dict[str, dict[str, Any]]
    calls: dict[str, dict[str, Any]]
    reconciled: list[Branch]


class SessionList(Struct):
    sessions: list[dict[str, Any]]
    next: str | None


class Receipts(Struct):
    receipts: list[dict[str, Any]]


class Base64(Struct):
    """Bytes that are not UTF-8."""

    base64: str


class KeyReading(Struct):
    key: str | Base64
    value: Any
    consistency: Literal["session-local", "eventually-global", "linearizable"]
    lag_ms: int
    source: Literal["node", "consensus"]


class KeyWritten(Struct):
    key: str | Base64
    seq: int
    durable: bool
    value: Any | msgspec.UnsetType = msgspec.UNSET


class KeyList(Struct):
    keys: list[str | Base64]
    next: str | Base64 | None


class Spent(Struct):
    remaining_local: int
    granted: int


class Reservation(Struct):
    id: str


class QuotaView(Struct):
    limit: int
    remaining: int
    granted_here: int
    period_ends: Annotated[int | None, Meta(description="unix time in milliseconds")]


class MeterView(Struct):
    """A meter: what consensus has, and what this node has still to send."""

    committed: int
    pending: int


class Problem(Struct):
    """An RFC 9457 problem document."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    retry_after_ms: int | msgspec.UnsetType = msgspec.UNSET
