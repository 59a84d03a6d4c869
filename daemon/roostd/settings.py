"""The settings of roost.toml, one `Setting` each: kind, default, meaning.

From this table come the check for unknown keys, the environment variables, the defaults and
the comments that `roost init` writes. The converters raise ValueError with a text that says
what is wrong with the value; `config` adds the place.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from roost_crdt.units import size_bytes

__all__ = ["SECTIONS", "SETTINGS", "Address", "Setting", "env_name", "is_loopback"]

UNIX_PATH_BYTES_MAX: Final = 107
NEIGHBOURS_MAX: Final = 300
RESP_DB_MAX: Final = 15

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class Address(NamedTuple):
    """Where a face listens. Port 0 lets the system choose one."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def is_loopback(host: str) -> bool:
    """Whether nothing but this machine can reach `host`; a name other than localhost is not."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Setting(NamedTuple):
    """One value of roost.toml.

    `convert(value, base)` gives the value used, or raises ValueError; `base` is the directory
    of the file. `example` is what `roost init` writes, in TOML, where there is no default.
    """

    section: str
    key: str
    convert: Callable[[Any, Path], Any]
    default: Any
    doc: str
    example: str = ""
    required: bool = False


def _text(value: Any, _base: Path) -> str:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ValueError(f"{value!r} is not a text")
    return value


def name_of_node(value: Any, _base: Path = Path()) -> str:
    """A node, region or cluster name; it also has to fit a DNS name in a certificate."""
    if isinstance(value, str) and _ID.fullmatch(value):
        return value
    raise ValueError(
        f"{value!r} is not a name; it begins with a letter or digit and has at most 63 of "
        "letters, digits, . _ -"
    )


def _optional_text(value: Any, base: Path) -> str | None:
    return None if value == "" else _text(value, base)


def _path(value: Any, base: Path) -> Path:
    return base / Path(_text(value, base)).expanduser()


def _optional_path(value: Any, base: Path) -> Path | None:
    return None if value == "" else _path(value, base)


def _unix(value: Any, base: Path) -> Path | None:
    if value == "":
        return None
    path = _path(value, base)
    if len(str(path).encode()) > UNIX_PATH_BYTES_MAX:
        raise ValueError(f"{path} is longer than the {UNIX_PATH_BYTES_MAX} bytes of a socket path")
    return path


def _address(value: Any, _base: Path) -> Address | None:
    if value == "":
        return None
    if not isinstance(value, str):
        raise ValueError(f'{value!r} is not an address such as "127.0.0.1:7667"')
    host, colon, port = value.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    bare_ipv6 = ":" in host and not value.startswith("[")
    if not colon or not host or bare_ipv6 or not port.isascii() or not port.isdigit():
        raise ValueError(f'"{value}" is not an address such as "127.0.0.1:7667" or "[::1]:7667"')
    if int(port) > 65535:
        raise ValueError(f'"{value}": a port is at most 65535')
    return Address(host, int(port))


def _public(value: Any, base: Path) -> str | None:
    if value == "":
        return None
    parts = urlsplit(_text(value, base))
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f'"{value}" is not a URL such as "https://eu.example"')
    return str(value).rstrip("/")


def neighbour_url(value: Any, base: Path = Path()) -> str:
    """A websocket URL with a host and a port."""
    try:
        parts = urlsplit(_text(value, base))
        port = parts.port
    except ValueError:
        raise ValueError(f"{value!r} is not a URL such as wss://us-1.example:7669") from None
    if parts.scheme not in ("ws", "wss") or not parts.hostname or parts.username is not None:
        raise ValueError(f'"{value}" is not a URL such as wss://us-1.example:7669')
    if port is None:
        raise ValueError(f'"{value}" has no port; the gossip port is usually 7669')
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(f'"{value}" has a path; a neighbour is only host and port')
    return str(value).rstrip("/")


def _flag(value: Any, _base: Path) -> bool:
    if isinstance(value, bool):
        return value
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise ValueError(f"{value!r} is neither true nor false")


def _whole(low: int, high: int) -> Callable[[Any, Path], int]:
    def convert(value: Any, _base: Path) -> int:
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,12}", value, re.ASCII):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{value!r} is not a whole number (the unit is in the key's name)")
        if not low <= value <= high:
            raise ValueError(f"{value} is out of range; {low} to {high}")
        return value

    return convert


def _size(low: int) -> Callable[[Any, Path], int]:
    def convert(value: Any, _base: Path) -> int:
        size = size_bytes(value)
        if size < low:
            raise ValueError(f'"{value}" is less than the {low} bytes that are needed')
        return size

    return convert


def _choice(*choices: str) -> Callable[[Any, Path], str]:
    def convert(value: Any, _base: Path) -> str:
        if value in choices:
            return str(value)
        listed = " or ".join(f'"{choice}"' for choice in choices)
        raise ValueError(f"cannot be {value!r}; use {listed}")

    return convert


def _endpoints(value: Any, base: Path) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list) or len(value) > 32:
        raise ValueError(f'{value!r} is not a list such as ["https://etcd:2379"]')
    return tuple(_text(item, base).rstrip("/") for item in value)


SETTINGS: Final = (
    Setting(
        "node",
        "id",
        name_of_node,
        None,
        "This node's name, once in the cluster; also the SAN DNS name of its certificate.",
        required=True,
    ),
    Setting(
        "node",
        "region",
        name_of_node,
        None,
        "Its failure domain: a session's standby is chosen in another region.",
        required=True,
    ),
    Setting("node", "data", _path, "/var/lib/roost", "Directory of the log and the index."),
    Setting(
        "node",
        "cluster",
        name_of_node,
        "default",
        "The same on all nodes; neighbours of another cluster are refused, and tokens are "
        "valid within it.",
    ),
    Setting(
        "node",
        "public",
        _public,
        "",
        "Where clients reach this node's HTTP from outside, told in the Roost-Home header.",
        '"https://eu.example"',
    ),
    Setting(
        "listen",
        "unix",
        _unix,
        "/run/roost/roost.sock",
        'RESP for the SDK and local clients; "" turns a listener off.',
    ),
    Setting(
        "listen",
        "resp",
        _address,
        "127.0.0.1:7667",
        "RESP over TCP, for any Redis client. Beyond loopback it needs [access] credentials.",
    ),
    Setting(
        "listen",
        "http",
        _address,
        "127.0.0.1:7668",
        "HTTP with JSON. Beyond loopback it needs [access] credentials.",
    ),
    Setting(
        "listen",
        "gossip",
        _address,
        "127.0.0.1:7669",
        "Where neighbours connect. Beyond loopback it needs cert, key and ca of [gossip].",
    ),
    Setting(
        "gossip",
        "cert",
        _optional_path,
        "",
        "Mutual TLS between nodes: this node's certificate; its SAN DNS name is node.id.",
        '"node.pem"',
    ),
    Setting(
        "gossip",
        "key",
        _optional_path,
        "",
        "The certificate's private key; not readable by others.",
        '"node.key"',
    ),
    Setting(
        "gossip",
        "ca",
        _optional_path,
        "",
        "The authority that signed all nodes' certificates.",
        '"ca.pem"',
    ),
    Setting(
        "gossip",
        "insecure",
        _flag,
        False,
        "true allows plain ws:// to neighbours on loopback: for trying out, never beyond.",
    ),
    Setting(
        "token",
        "keys",
        _path,
        "keys/",
        "Ed25519 keys: the newest <kid>.pem signs, a <kid>.pub only verifies.",
    ),
    Setting(
        "token",
        "ttl_s",
        _whole(10, 2_592_000),
        3600,
        "How long a routing token lives, in seconds; each turn returns a fresh one.",
    ),
    Setting(
        "session",
        "takeover_after_ms",
        _whole(100, 600_000),
        1000,
        "Silence from home after which its standby takes over. Lower: faster, more takeovers.",
    ),
    Setting(
        "session",
        "follow_after_turns",
        _whole(0, 1_000_000),
        3,
        "Turns in a row from one other node after which home moves there; 0 = never.",
    ),
    Setting(
        "consensus",
        "backend",
        _choice("etcd", "embedded", "none"),
        "none",
        'Where linearizable keys live: "etcd", "embedded" (one node hosts them; for development) '
        'or "none" (those keys answer UNAVAILABLE).',
    ),
    Setting(
        "consensus",
        "endpoints",
        _endpoints,
        [],
        'etcd: its URLs. embedded: none = hosted here, or ["roost://NODE"], a neighbour.',
        '["https://etcd:2379"]',
    ),
    Setting("consensus", "ca", _optional_path, "", "Authority of etcd's certificates.", '"ca.pem"'),
    Setting(
        "consensus",
        "cert",
        _optional_path,
        "",
        "This node's client certificate for etcd.",
        '"etcd.pem"',
    ),
    Setting("consensus", "key", _optional_path, "", "Its private key.", '"etcd.key"'),
    Setting("consensus", "user", _optional_text, "", "User for etcd's authentication.", '"roost"'),
    Setting(
        "consensus",
        "password_file",
        _optional_path,
        "",
        "File with that user's password on its first line; not readable by others.",
        '"etcd.password"',
    ),
    Setting(
        "consensus",
        "deadline_ms",
        _whole(10, 600_000),
        2000,
        "After this long without an answer a linearizable operation is UNAVAILABLE.",
    ),
    Setting(
        "store",
        "size_max",
        _size(1 << 20),
        "8GiB",
        "Bound of the index on disk; at it writes answer FULL and reads go on. It costs nothing "
        "until it is used.",
    ),
    Setting(
        "store",
        "log_retention",
        _size(1 << 16),
        "1GiB",
        "How much applied log is kept for neighbours that were away; beyond it they are sent "
        "a snapshot. Segments are the smaller of 64 MiB and size_max / 16.",
    ),
    Setting(
        "limits",
        "value_max",
        _size(1),
        "8MiB",
        "A value, a field, all messages of a turn; over it TOOLARGE.",
    ),
    Setting(
        "limits",
        "body_max",
        _size(1024),
        "16MiB",
        "A whole request or frame; at least value_max.",
    ),
    Setting(
        "access",
        "credentials",
        _optional_path,
        "",
        "Who may connect: name, secret hash, key patterns, rights. Without it every local "
        "client is admin.",
        '"credentials.toml"',
    ),
    Setting(
        "access",
        "policies",
        _optional_path,
        "",
        "What each key promises. Without it policies.toml beside this file, else the default.",
        '"policies.toml"',
    ),
)

SECTIONS: Final = tuple(dict.fromkeys(setting.section for setting in SETTINGS))


def env_name(section: str, key: str) -> str:
    """The environment variable that gives a value: node.id -> ROOST_NODE_ID."""
    return f"ROOST_{section}_{key}".upper()
