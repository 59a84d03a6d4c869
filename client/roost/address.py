"""Where a daemon is reached, read from a URL.

unix:///run/roost/roost.sock            redis://127.0.0.1:7667/3
unix://name:secret@/run/roost.sock?db=3  redis://:secret@eu-1.example:7667
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

from roost_crdt.errors import BadRequest

__all__ = ["DEFAULT_URL", "Address", "parse_url"]

DEFAULT_URL = "unix:///run/roost/roost.sock"
DEFAULT_PORT = 7667
DB_MAX = 65_535


@dataclass(frozen=True, slots=True)
class Address:
    """One endpoint: `path` for a unix socket, else `host` and `port`."""

    path: str = ""
    host: str = ""
    port: int = 0
    username: str = ""
    password: str = ""
    db: int = 0

    def __str__(self) -> str:
        """The endpoint without its secret, for error texts."""
        if self.path:
            return f"unix://{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"redis://{host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """True if the daemon can only be on this machine, so that its files may be too."""
        if self.path or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_url(url: str | None, environ: Mapping[str, str]) -> Address:
    """The endpoint that `url` names, else $ROOST_URL, else /run/roost/roost.sock.

    Raises BadRequest for another scheme, a missing path or host, a bad port or db.
    """
    text = url or environ.get("ROOST_URL") or DEFAULT_URL
    if not isinstance(text, str):
        raise BadRequest(f"a URL is str, not {type(text).__name__}")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise BadRequest(f"{_redacted(text)}: not a URL: {error}") from None
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = set(query) - {"db", "password", "username"}
    if unknown:
        raise BadRequest(
            f"{_redacted(text)}: unknown option {sorted(unknown)[0]!r}; "
            "known are db, username and password"
        )
    username = unquote(parts.username or "") or query.get("username", "")
    password = unquote(parts.password or "") or query.get("password", "")
    if parts.scheme == "unix":
        path = unquote(parts.path)
        if not path.startswith("/") or parts.hostname:
            raise BadRequest(f"{_redacted(text)}: a unix URL is unix:///absolute/path")
        return Address(
            path=path, username=username, password=password, db=_db(text, query.get("db", ""))
        )
    if parts.scheme == "redis":
        if not parts.hostname:
            raise BadRequest(f"{_redacted(text)}: a redis URL is redis://host:port[/db]")
        db = parts.path.strip("/") or query.get("db", "")
        return Address(
            host=parts.hostname,
            port=DEFAULT_PORT if port is None else port,
            username=username,
            password=password,
            db=_db(text, db),
        )
    raise BadRequest(
        f"{_redacted(text)}: the SDK speaks unix:///path and redis://host:port; "
        "over HTTP use any HTTP client"
    )


def _db(url: str, text: str) -> int:
    if not text:
        return 0
    if not (text.isascii() and text.isdigit()) or int(text[:9]) > DB_MAX:
        raise BadRequest(f"{_redacted(url)}: db must be a number from 0 to {DB_MAX}")
    return int(text)


def _redacted(url: str) -> str:
    """`url` as an error may show it: whatever could hold a secret is left out."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return repr(url.split("?")[0][:80])
    return f"{scheme}://{rest.split('?')[0].rpartition('@')[2][:80]}"
