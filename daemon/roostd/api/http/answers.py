"""Answers: JSON bodies, and the headers in which routers and clients look first."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import msgspec
from starlette.responses import Response

from roostd.api.http.request import Call
from roostd.api.neighbours import public_url

_encode = msgspec.json.Encoder().encode


def answer(result: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer, which no cache may keep."""
    known = {"cache-control": "no-store"}
    return Response(_encode(result), status, known | (headers or {}), "application/json")


def session_answer(
    call: Call, result: dict[str, Any], status: int = 200, *, hide: tuple[str, ...] = ()
) -> Response:
    """A session's answer with its headers; members in `hide` are shown there alone."""
    headers: dict[str, str] = {}
    if token := result.get("token"):
        headers["roost-token"] = token
    for member, header in (
        ("stale_turns", "roost-stale-turns"),
        ("served_by", "roost-served-by"),
        ("lag_ms", "roost-lag-ms"),
    ):
        if (value := result.get(member)) is not None:
            headers[header] = str(value)
    if home := result.get("home"):
        url = public_url(call.node, home)
        name = quote(home, safe="-._~:@/")
        headers["roost-home"] = f'{name};url="{quote(url, safe=_URL_SAFE)}"' if url else name
    shown = {name: value for name, value in result.items() if name not in hide}
    return answer(shown, status, headers)


_URL_SAFE = "-._~:/?#[]@!$&'()*+,;=%"
