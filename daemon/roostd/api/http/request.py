"""What a request says: its caller, its path and query as bytes, its body within bounds."""

from __future__ import annotations

import asyncio
import ipaddress
from typing import TypeVar
from urllib.parse import parse_qsl, unquote_to_bytes, urlsplit

from starlette.requests import ClientDisconnect, Request

from roost_crdt.errors import BadRequest, NoAuth, NoPerm, TooLarge, Unavailable
from roostd.api import jsontext
from roostd.api.caller import Caller
from roostd.api.operations import Operations
from roostd.node import Node

T = TypeVar("T")

BODY_S = 60.0
"""A body must have come within this time."""
QUERY_FIELDS_MAX = 32


class Call:
    """One request as handlers see it."""

    def __init__(self, request: Request, node: Node, operations: Operations) -> None:
        self.request = request
        self.node = node
        self.operations = operations
        self._query: dict[str, str] | None = None
        self._caller: Caller | None = None

    @property
    def caller(self) -> Caller:
        """Raises NoAuth."""
        if self._caller is None:
            self._caller = self._authenticate()
        return self._caller

    def _authenticate(self) -> Caller:
        header = self.request.headers.get("authorization")
        if header is None:
            anonymous = self.operations.anonymous()
            if anonymous is None:
                raise NoAuth("say who you are: Authorization: Bearer SECRET")
            return anonymous
        scheme, _, secret = header.partition(" ")
        if scheme.lower() != "bearer" or not secret.strip():
            raise NoAuth("this Authorization is not understood; send: Bearer SECRET")
        return self.operations.log_in(None, secret.strip().encode())

    @property
    def token(self) -> str | None:
        """The session's token, if one was sent."""
        return self.request.headers.get("roost-token") or None

    @property
    def request_id(self) -> str | None:
        """Idempotency-Key; BadRequest if it is empty, too long or not printable."""
        key = self.request.headers.get("idempotency-key")
        if key is None:
            return None
        longest = self.node.limits.request_id_bytes_max
        if not key or len(key) > longest or not key.isascii() or not key.isprintable():
            raise BadRequest(
                f"Idempotency-Key must be 1 to {longest} printable ASCII characters",
                field="Idempotency-Key",
            )
        return key

    def path_bytes(self, before: str, after: str = "") -> bytes:
        """The part of the path between two literals, unquoted to bytes."""
        raw: bytes = self.request.scope["raw_path"].partition(b"?")[0]
        if not raw.startswith(before.encode()) or not raw.endswith(after.encode()):
            raise BadRequest(f"write {before} in the path without % escapes", field="path")
        return unquote_to_bytes(raw[len(before) : len(raw) - len(after)])

    def path_text(self, name: str) -> str:
        """A path parameter that must be proper text."""
        value = str(self.request.path_params[name])
        if not value or "�" in value or not value.isprintable():
            raise BadRequest(f"{name} in the path must be printable UTF-8", field=name)
        return value

    def query(self, name: str) -> str | None:
        """A query parameter; bytes that are not UTF-8 are surrogate escapes."""
        if self._query is None:
            raw = self.request.scope["query_string"].decode("latin-1")
            try:
                pairs = parse_qsl(
                    raw,
                    keep_blank_values=True,
                    errors="surrogateescape",
                    max_num_fields=QUERY_FIELDS_MAX,
                )
            except ValueError:
                raise BadRequest("too many query parameters", field="query") from None
            self._query = dict(pairs)
            if len(self._query) != len(pairs):
                raise BadRequest("a query parameter is given twice", field="query")
        return self._query.get(name)

    def query_bytes(self, name: str) -> bytes:
        return (self.query(name) or "").encode("utf-8", "surrogateescape")

    def query_number(self, name: str, otherwise: int | None, least: int = 0) -> int | None:
        """A query parameter that must be a whole number."""
        text = self.query(name)
        if text is None:
            return otherwise
        if not text.isascii() or not text.isdigit() or len(text) > 18 or int(text) < least:
            raise BadRequest(f"{name} must be a whole number of at least {least}", field=name)
        return int(text)

    async def body_bytes(self) -> bytes:
        """The body; TooLarge before more than the bound is read."""
        bound = self.node.limits.body_bytes_max
        announced = self.request.headers.get("content-length", "0")
        if announced.isdigit() and int(announced) > bound:
            raise _too_large(bound)
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(BODY_S):
                async for part in self.request.stream():
                    size += len(part)
                    if size > bound:
                        raise _too_large(bound)
                    parts.append(part)
        except TimeoutError:
            raise Unavailable(f"the body did not come within {BODY_S:.0f} s") from None
        except ClientDisconnect:
            raise BadRequest("the client went away before its body was whole") from None
        return b"".join(parts)

    async def body(self, type_: type[T], *, optional: bool = False) -> T:
        """The body as `type_`; BadRequest naming the field."""
        raw = await self.body_bytes()
        if not raw.strip():
            if not optional:
                raise BadRequest("the request needs a JSON body", field="body")
            raw = b"{}"
        return await jsontext.decode(raw, type_, self.node.limits.nesting_max)


def _too_large(bound: int) -> TooLarge:
    return TooLarge(f"the body is over limits.body_max ({bound} bytes)", limit=bound)


def climbs(request: Request) -> bool:
    """True if the path has segments that other servers would resolve away."""
    return any(part in ("..", ".") for part in request.scope["path"].split("/"))


def climbing() -> BadRequest:
    return BadRequest("the path has '.' or '..' segments", field="path")


def check_place(request: Request, node: Node) -> None:
    """Refuse what a browser was lured into, and paths that climb.

    A foreign Origin is NoPerm, whatever the method. Without credentials the Host must be a name
    of this node as well, so that a name rebound to loopback does not pass for our own (a page
    sends no Origin with a GET to what it takes for its own host).
    """
    if request.scope["http_version"] not in ("1.0", "1.1"):
        raise BadRequest("speak HTTP/1.1 to this port")
    if climbs(request):
        raise climbing()
    origin = request.headers.get("origin")
    host = request.headers.get("host", "")
    public = urlsplit(node.config.node.public or "").netloc
    if origin is not None:
        theirs = _netloc(origin)
        if not theirs or theirs not in (host, public):
            raise NoPerm(f"a page of {origin} may not use this node", origin=origin)
    if not node.credentials.required and host != public and not _is_local(host):
        raise NoPerm(
            f"without credentials this node answers to local names, not to Host {host[:100]}; "
            "say so in [node] public, or set [access] credentials",
            host=host[:100],
        )


def _netloc(url: str) -> str:
    try:
        return urlsplit(url).netloc
    except ValueError:
        return ""


def _is_local(netloc: str) -> bool:
    try:
        host = urlsplit(f"//{netloc}").hostname or ""
    except ValueError:
        return False
    if "." not in host.rstrip(".") or host.endswith(".localhost"):
        return True  # no stranger's name is without a dot
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
