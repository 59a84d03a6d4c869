"""Errors as RFC 9457 problem documents."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.responses import Response

from roost_crdt.errors import RoostError

TYPE_BASE = "https://roost.invalid/errors/"
"""Problem types are names, not places: `.invalid` never resolves."""
RESERVED = frozenset(("type", "title", "status", "detail", "code", "retry_after_ms"))
_TITLES = {
    "BADREQUEST": "The request is malformed",
    "NOAUTH": "Who are you?",
    "NOPERM": "Not allowed",
    "BADTOKEN": "The session token is not good",
    "NOPOLICY": "No policy claims the key",
    "NOSESSION": "No such session",
    "WRONGTYPE": "The key holds another type",
    "UNSUPPORTED": "The key's consistency cannot give it",
    "TURNCONFLICT": "The turn is behind",
    "CALLCONFLICT": "The call's key was used for another call",
    "CROSSCLASS": "Keys of different consistency",
    "EXHAUSTED": "The quota is exhausted",
    "TOOLARGE": "Too large",
    "BUSY": "Overloaded",
    "UNAVAILABLE": "Out of reach",
    "SESSIONUNAVAILABLE": "The session's home and standby are lost",
    "UNKNOWNOUTCOME": "It may have been applied",
    "FULL": "The store is full",
}
_RETRY_MS = {"BUSY": 1_000, "UNAVAILABLE": 1_000, "SESSIONUNAVAILABLE": 1_000, "FULL": 5_000}


def problem(error: RoostError) -> Response:
    """The document of a refusal; its `details` are extra members."""
    retry_after_ms = error.retry_after_ms
    if retry_after_ms is None:
        retry_after_ms = _RETRY_MS.get(error.code)
    extra = {name: value for name, value in error.details.items() if name not in RESERVED}
    return document(error.status, error.code, error.message, retry_after_ms, extra)


def document(
    status: int,
    code: str,
    detail: str,
    retry_after_ms: int | None = None,
    extra: dict[str, Any] | None = None,
) -> Response:
    """A problem document."""
    body: dict[str, Any] = {
        "type": TYPE_BASE + code.lower(),
        "title": _TITLES.get(code) or HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
    }
    headers: dict[str, str] = {"cache-control": "no-store"}
    if retry_after_ms is not None:
        body["retry_after_ms"] = retry_after_ms
        headers["retry-after"] = str(max(1, math.ceil(retry_after_ms / 1_000)))
    if status == 401:
        headers["www-authenticate"] = 'Bearer realm="roost"'
    content = msgspec.json.encode({**body, **(extra or {})}, enc_hook=str)
    return Response(content, status, headers, "application/problem+json")
