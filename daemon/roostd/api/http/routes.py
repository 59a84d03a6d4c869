"""The table of routes: what serves them, and what /openapi.json says of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response

from roost_crdt.limits import DEFAULT_LIMITS
from roostd.api.bodies import SID_PATTERN
from roostd.api.http.request import Call

Handler = Callable[[Call], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter beside the path's own."""

    name: str
    place: str
    description: str
    type: str = "string"
    bounds: Mapping[str, Any] = field(default_factory=dict)
    """More of its JSON schema."""


@dataclass(frozen=True, slots=True)
class HttpRoute:
    """One method of one path.

    `answers` maps a status to (type, description); a tuple of types is any of them.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    tag: str
    answers: dict[int, tuple[Any, str]]
    body: Any = None
    body_required: bool = True
    parameters: tuple[Parameter, ...] = ()
    errors: tuple[str, ...] = ()
    media_type: str = "application/json"
    headers: tuple[str, ...] = ()
    secured: bool = True


TOKEN = Parameter("Roost-Token", "header", "the session's token; it proves what its bearer saw")
IDEMPOTENCY = Parameter(
    "Idempotency-Key",
    "header",
    "a retry with the same key applies once and gets the first answer",
    bounds={
        "minLength": 1,
        "maxLength": DEFAULT_LIMITS.request_id_bytes_max,
        "pattern": "^[ -~]+$",
    },
)
LIMIT = Parameter("limit", "query", "at most this many", "integer", {"minimum": 1})
PATH_BOUNDS: Mapping[str, Mapping[str, Any]] = {
    "key": {"minLength": 1, "description": "a key; its bytes, percent-encoded"},
    "sid": {"minLength": 1, "maxLength": 120, "pattern": SID_PATTERN},
    "call": {"minLength": 1, "maxLength": DEFAULT_LIMITS.request_id_bytes_max},
    "id": {"minLength": 1, "description": "as the reservation's answer named it"},
}
"""Schemas of the paths' own parameters."""


@dataclass(slots=True)
class RouteTable:
    """Routes in order; the first that matches a path serves it."""

    routes: list[HttpRoute] = field(default_factory=list)

    def add(
        self, method: str, path: str, summary: str, tag: str, **known: Any
    ) -> Callable[[Handler], Handler]:
        """Registers a handler."""

        def register(handler: Handler) -> Handler:
            self.routes.append(HttpRoute(method, path, handler, summary, tag, **known))
            return handler

        return register


TABLE = RouteTable()
