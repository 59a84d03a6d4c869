"""/openapi.json out of the route table and the bodies' types."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import msgspec

from roost_crdt.errors import RoostError
from roostd.api import bodies
from roostd.api.http.routes import PATH_BOUNDS, TABLE, HttpRoute
from roostd.api.resp.versions import VERSION

_PARAMETER = re.compile(r"\{(\w+)(:path)?\}")
_HEADERS = {
    "Roost-Token": ("string", "the session's fresh token"),
    "Roost-Stale-Turns": ("integer", "turns that the answer lacks"),
    "Roost-Served-By": ("string", "home, replica, forwarded or takeover"),
    "Roost-Lag-Ms": ("integer", "age of the copy in milliseconds"),
    "Roost-Home": ("string", "id of the session's home, and its public URL as `url`"),
}
_CODES: dict[str, type[RoostError]] = {cls.code: cls for cls in RoostError.__subclasses__()}


@cache
def text() -> bytes:
    """The document as JSON."""
    return msgspec.json.encode(document())


def document() -> dict[str, Any]:
    """An OpenAPI 3.1 document."""
    wanted: list[Any] = [bodies.Problem]
    for route in TABLE.routes:
        for types, _ in route.answers.values():
            wanted += types if isinstance(types, tuple) else (types,)
        if route.body is not None:
            wanted.append(route.body)
    unique = list(dict.fromkeys(wanted))
    found, components = msgspec.json.schema_components(
        unique, ref_template="#/components/schemas/{name}"
    )
    schemas = dict(zip(unique, found, strict=True))
    paths: dict[str, Any] = {}
    for route in TABLE.routes:
        path = _PARAMETER.sub(r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "roost",
            "version": VERSION,
            "summary": "The state next to an LLM server",
            "description": "Errors are RFC 9457 problem documents with a `code`.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [
            {"name": "sessions", "description": "Conversations, tool calls and fields."},
            {"name": "keys", "description": "Keys of any consistency; their policy decides."},
            {"name": "quotas", "description": "Amounts that are never overspent."},
            {"name": "node", "description": "The node itself."},
        ],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: HttpRoute, schemas: dict[Any, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.handler.__name__,
        "summary": route.summary,
        "tags": [route.tag],
        "parameters": _parameters(route),
        "responses": _responses(route, schemas),
        "security": [{"bearer": []}, {}] if route.secured else [],
    }
    if route.body is not None:
        operation["requestBody"] = {
            "required": route.body_required,
            "content": {"application/json": {"schema": schemas[route.body]}},
        }
    return operation


def _parameters(route: HttpRoute) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", **PATH_BOUNDS[name]},
        }
        for name, _ in _PARAMETER.findall(route.path)
    ]
    found.extend(
        {
            "name": parameter.name,
            "in": parameter.place,
            "description": parameter.description,
            "required": False,
            "schema": {"type": parameter.type, **parameter.bounds},
        }
        for parameter in route.parameters
    )
    return found


def _responses(route: HttpRoute, schemas: dict[Any, Any]) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status, (types, description) in sorted(route.answers.items()):
        several = isinstance(types, tuple)
        schema = {"anyOf": [schemas[type_] for type_ in types]} if several else schemas[types]
        response: dict[str, Any] = {
            "description": description,
            "content": {route.media_type: {"schema": schema}},
        }
        if route.headers:
            response["headers"] = {
                name: {"description": _HEADERS[name][1], "schema": {"type": _HEADERS[name][0]}}
                for name in route.headers
            }
        responses[str(status)] = response
    by_status: dict[int, list[str]] = {}
    secured = ("NOAUTH", "NOPERM") if route.secured else ()
    for code in (*route.errors, *secured):
        by_status.setdefault(_CODES[code].status, []).append(code)
    problem = {"application/problem+json": {"schema": schemas[bodies.Problem]}}
    for status, codes in sorted(by_status.items()):
        responses[str(status)] = {"description": ", ".join(codes), "content": problem}
    responses["default"] = {"description": "Any other problem.", "content": problem}
    return responses
