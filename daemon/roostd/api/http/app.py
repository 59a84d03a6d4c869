"""The ASGI application: routes, and around each what is alike for all of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from roost_crdt.errors import CorruptData, RoostError
from roostd.api import refusals
from roostd.api.http import keys, node, sessions, watch
from roostd.api.http.problems import document, problem
from roostd.api.http.request import Call, check_place, climbing, climbs
from roostd.api.http.routes import TABLE, HttpRoute
from roostd.api.metrics import FaceMetrics
from roostd.api.operations import Operations
from roostd.node import Node
from roostd.store import StoreFailed

log = logging.getLogger(__name__)

SERVED = (keys, node, sessions, watch)
"""Modules whose import registers their routes."""


def application(node: Node, operations: Operations, metrics: FaceMetrics) -> Starlette:
    """The HTTP face of a node."""
    by_path: dict[str, list[HttpRoute]] = {}
    for route in TABLE.routes:
        by_path.setdefault(route.path, []).append(route)
    routes = [
        Route(
            path,
            _by_method(
                {route.method: _endpoint(route, node, operations, metrics) for route in same_path}
            ),
            methods=[route.method for route in same_path],
        )
        for path, same_path in by_path.items()
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={HTTPException: _refuse_http, Exception: _failed},
    )
    app.router.redirect_slashes = False
    app.state.streams = watch.Streams()
    return app


Endpoint = Callable[[Request], Awaitable[Response]]


def _by_method(endpoints: dict[str, Endpoint]) -> Endpoint:
    """One route a path, so that Allow names all of its methods."""

    async def endpoint(request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        return await endpoints[method](request)

    return endpoint


def _endpoint(
    route: HttpRoute, node: Node, operations: Operations, metrics: FaceMetrics
) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        started = time.monotonic()
        try:
            check_place(request, node)
            response = await route.handler(Call(request, node, operations))
            if node.pending:
                await node.durable()
        except RoostError as error:
            metrics.count_error(error.code)
            response = problem(error)
        except StoreFailed:
            lost = refusals.disk_failed()
            metrics.count_error(lost.code)
            response = problem(lost)
        except CorruptData as error:
            log.error("damaged data: %s", error)  # noqa: TRY400 - the cause is in the text
            unavailable = refusals.damaged(error)
            metrics.count_error(unavailable.code)
            response = problem(unavailable)
        seconds = time.monotonic() - started
        metrics.count_request(request.method, route.path, response.status_code, seconds)
        return response

    return endpoint


async def _refuse_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        refused = document(
            405, "BADREQUEST", f"{request.method} is not for {request.url.path}; use {allowed}"
        )
        refused.headers["allow"] = allowed
        return refused
    if error.status_code == 404:
        if climbs(request):
            return problem(climbing())
        return document(404, "BADREQUEST", f"there is no {request.url.path}; see /docs")
    return document(error.status_code, "BADREQUEST", str(error.detail))


async def _failed(request: Request, error: Exception) -> Response:
    del error  # starlette raises it again, and the server logs it
    return document(500, "ERR", f"{request.method} {request.url.path} failed; see the log")
