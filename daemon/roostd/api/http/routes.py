"""The table of routes: what serves them, and what /openapi.json says of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response

from roostd.api.http.request import Call

Handler = Callable[[Call], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter beside the path's own."""

    name: str
    place: str
    description: str
    type: str = "string"


@dataclass(frozen=True, slots=True)
class HttpRoute:
    """One method of one path. `answers` maps a status to (type, description)."""

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
    "Idempotency-Key", "header", "a retry with the same key applies once and gets the first answer"
)


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
