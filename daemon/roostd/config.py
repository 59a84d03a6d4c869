"""roost.toml: what a node is told, checked before anything starts.

A value comes from its environment variable (`ROOST_<SECTION>_<KEY>`), else from the file, else
from its default (`settings`). One that cannot be used is a ConfigError with file and line, and
so is one that would be unsafe: a face beyond loopback without credentials, gossip beyond
loopback without TLS, a secret that everybody on the machine can read. Relative paths are
relative to the file.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from roost_crdt.errors import ConfigError
from roost_crdt.limits import DEFAULT_LIMITS, Limits
from roost_crdt.policy import DEFAULT_POLICIES, PolicyTable
from roost_crdt.tomlsource import Path as TomlPath
from roost_crdt.tomlsource import TomlSource, nearest
from roostd.configchecks import Checks
from roostd.configfiles import read_text
from roostd.credentials import Credentials
from roostd.settings import (
    NEIGHBOURS_MAX,
    RESP_DB_MAX,
    SECTIONS,
    SETTINGS,
    Address,
    Setting,
    env_name,
    name_of_node,
    neighbour_url,
)

__all__ = [
    "Access",
    "Address",
    "Config",
    "Consensus",
    "Gossip",
    "Listen",
    "Neighbour",
    "Node",
    "Session",
    "Sizes",
    "Store",
    "Token",
    "load",
    "load_credentials",
    "load_policies",
]


class Node(msgspec.Struct, frozen=True):
    id: str
    region: str
    data: Path
    cluster: str
    public: str | None


class Listen(msgspec.Struct, frozen=True):
    """None = that face is off."""

    unix: Path | None
    resp: Address | None
    http: Address | None
    gossip: Address | None


class Neighbour(msgspec.Struct, frozen=True):
    id: str
    url: str


class Gossip(msgspec.Struct, frozen=True):
    cert: Path | None
    key: Path | None
    ca: Path | None
    insecure: bool

    @property
    def tls(self) -> bool:
        """Whether links are mutual TLS; cert, key and ca are then all set."""
        return self.cert is not None


class Token(msgspec.Struct, frozen=True):
    keys: Path
    ttl_s: int


class Session(msgspec.Struct, frozen=True):
    takeover_after_ms: int
    follow_after_turns: int


class Consensus(msgspec.Struct, frozen=True):
    backend: str
    endpoints: tuple[str, ...]
    ca: Path | None
    cert: Path | None
    key: Path | None
    user: str | None
    password_file: Path | None
    deadline_ms: int


class Store(msgspec.Struct, frozen=True):
    """In bytes."""

    size_max: int
    log_retention: int


class Sizes(msgspec.Struct, frozen=True):
    """In bytes; [limits] of the file."""

    value_max: int
    body_max: int


class Access(msgspec.Struct, frozen=True):
    credentials: Path | None
    policies: Path | None


class Config(msgspec.Struct, frozen=True):
    """A whole roost.toml. `resp_db` maps SELECT numbers to key prefixes."""

    file: Path | None
    node: Node
    listen: Listen
    neighbours: tuple[Neighbour, ...]
    gossip: Gossip
    token: Token
    session: Session
    consensus: Consensus
    store: Store
    limits: Sizes
    access: Access
    resp_db: dict[int, str]
    warnings: tuple[str, ...] = ()

    def core_limits(self, base: Limits = DEFAULT_LIMITS) -> Limits:
        """`base` with the bounds of this file."""
        return replace(
            base, value_bytes_max=self.limits.value_max, body_bytes_max=self.limits.body_max
        )


_STRUCTS: dict[str, type[msgspec.Struct]] = {
    "node": Node,
    "listen": Listen,
    "gossip": Gossip,
    "token": Token,
    "session": Session,
    "consensus": Consensus,
    "store": Store,
    "limits": Sizes,
    "access": Access,
}
_TABLES = (*SECTIONS, "neighbour", "resp")
# Kubernetes sets ROOST_GOSSIP_SERVICE_HOST and the like for a Service named roost-gossip.
_SERVICE_LINK = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_[0-9]+_(TCP|UDP)\w*)?)$")


def load(path: Path | None, environ: Mapping[str, str]) -> Config:
    """Read and check a configuration, its policies and its credentials.

    `path` None means that every value comes from the environment. Raises ConfigError; nothing
    is created or changed.
    """
    text = "" if path is None else read_text(path, "`roost init DIR` writes a complete one")
    loader = _Loader(TomlSource(text, str(path or "")), path, environ)
    config = loader.config()
    policies = load_policies(config)
    load_credentials(config)
    return msgspec.structs.replace(config, warnings=(*loader.warnings, *policies.warnings))


def load_policies(config: Config) -> PolicyTable:
    """The policies of a configuration, read anew; ConfigError as `PolicyTable.parse`."""
    if config.access.policies is None:
        return PolicyTable.parse(DEFAULT_POLICIES, "default policies")
    return PolicyTable.parse(read_text(config.access.policies), str(config.access.policies))


def load_credentials(config: Config) -> Credentials:
    """The credentials of a configuration, read anew; empty where none are configured."""
    path = config.access.credentials
    if path is None:
        return Credentials.empty()
    text = read_text(path)
    if path.stat().st_mode & stat.S_IWOTH:
        raise ConfigError(f"can be written by everybody; chmod o-w {path}", file=str(path))
    return Credentials.parse(text, str(path))


class _Loader:
    """Turns one TOML source and the environment into a Config."""

    def __init__(self, source: TomlSource, path: Path | None, environ: Mapping[str, str]) -> None:
        self.source = source
        self.path = path
        self.environ = environ
        self.base = (Path.cwd() if path is None else path.absolute().parent).resolve()
        self.warnings: list[str] = []

    def config(self) -> Config:
        self.refuse_unknown()
        sections = {section: self.section(section) for section in SECTIONS}
        if not self.is_given("store", "log_retention"):
            store = sections["store"]
            kept = min(store.log_retention, store.size_max)
            sections["store"] = msgspec.structs.replace(store, log_retention=kept)
        if sections["access"].policies is None and self.path is not None:
            beside = self.base / "policies.toml"
            if beside.exists():
                sections["access"] = msgspec.structs.replace(sections["access"], policies=beside)
        config = Config(
            file=self.path,
            neighbours=self.neighbours(),
            resp_db=self.resp_db(),
            **sections,
        )
        Checks(config, self.source, self.refuse, self.warnings).run()
        return config

    def refuse_unknown(self) -> None:
        for table, value in self.source.data.items():
            if table not in _TABLES:
                raise self.source.unknown_key((table,), _TABLES)
            if table == "neighbour":
                continue
            if not isinstance(value, dict):
                raise self.source.error((table,), f'"{table}" is a table; write it as [{table}]')
            known = [setting.key for setting in SETTINGS if setting.section == table] or ["db"]
            for key in value:
                if key not in known:
                    raise self.source.unknown_key((table, key), known)
        names = {env_name(setting.section, setting.key) for setting in SETTINGS}
        names |= {"ROOST_NEIGHBOUR", "ROOST_RESP_DB"}
        prefixes = tuple(f"ROOST_{section.upper()}_" for section in SECTIONS)
        for name in self.environ:
            if name.startswith(prefixes) and name not in names and not _SERVICE_LINK.search(name):
                raise ConfigError(
                    f"no setting has this name{nearest_name(name, names)}",
                    file=f"environment variable {name}",
                )

    def is_given(self, section: str, key: str) -> bool:
        return env_name(section, key) in self.environ or key in self.source.data.get(section, {})

    def section(self, section: str) -> Any:
        values = {
            setting.key: self.value(setting) for setting in SETTINGS if setting.section == section
        }
        return _STRUCTS[section](**values)

    def value(self, setting: Setting) -> Any:
        path = (setting.section, setting.key)
        given = self.environ.get(env_name(*path))
        if given is None:
            given = self.source.data.get(setting.section, {}).get(setting.key)
        if given is None:
            if setting.required:
                self.refuse(path, f"[{setting.section}] lacks {setting.key}: {setting.doc}")
            given = setting.default
        try:
            return setting.convert(given, self.base)
        except ValueError as error:
            self.refuse(path, f"{setting.key}: {error}")

    def refuse(self, path: TomlPath, message: str) -> NoReturn:
        """Raise a ConfigError at the place where the value of `path` came from."""
        name = self.variable(path)
        if name in self.environ:
            raise ConfigError(message, file=f"environment variable {name}")
        raise self.source.error(path, message)

    @staticmethod
    def variable(path: TomlPath) -> str:
        if path[0] == "neighbour":
            return "ROOST_NEIGHBOUR"
        return env_name(str(path[0]), str(path[1])) if len(path) > 1 else ""

    def pairs(self, name: str) -> list[tuple[str, str]]:
        """The `a=b,c=d` of an environment variable."""
        pairs = [part.partition("=") for part in self.environ[name].split(",") if part.strip()]
        for left, equals, _ in pairs:
            if not equals:
                raise ConfigError(
                    f'"{left}" is not of the form NAME=VALUE', file=f"environment variable {name}"
                )
        return [(left.strip(), right.strip()) for left, _, right in pairs]

    def neighbours(self) -> tuple[Neighbour, ...]:
        if "ROOST_NEIGHBOUR" in self.environ:
            tables: Any = [{"id": i, "url": url} for i, url in self.pairs("ROOST_NEIGHBOUR")]
        else:
            tables = self.source.data.get("neighbour", [])
        if not isinstance(tables, list):
            raise self.source.error(("neighbour",), "write each neighbour as [[neighbour]]")
        if len(tables) > NEIGHBOURS_MAX:
            self.refuse(("neighbour",), f"more than {NEIGHBOURS_MAX} neighbours")
        return tuple(self.neighbour(index, table) for index, table in enumerate(tables))

    def neighbour(self, index: int, table: Any) -> Neighbour:
        if not isinstance(table, dict):
            raise self.source.error(("neighbour",), "write each neighbour as [[neighbour]]")
        for key in table:
            if key not in ("id", "url"):
                raise self.source.unknown_key(("neighbour", index, key), ("id", "url"))
        values: dict[str, str] = {}
        for key, convert in (("id", name_of_node), ("url", neighbour_url)):
            if key not in table:
                self.refuse(("neighbour", index), f"this neighbour lacks {key}")
            try:
                values[key] = convert(table[key])
            except ValueError as error:
                self.refuse(("neighbour", index, key), f"{key}: {error}")
        return Neighbour(**values)

    def resp_db(self) -> dict[int, str]:
        if "ROOST_RESP_DB" in self.environ:
            table: Any = dict(self.pairs("ROOST_RESP_DB"))
        else:
            table = self.source.data.get("resp", {}).get("db", {})
        if not isinstance(table, dict):
            raise self.source.error(
                ("resp", "db"), 'write [resp.db] and lines such as 3 = "litellm:"'
            )
        prefixes: dict[int, str] = {}
        for number, prefix in table.items():
            path = ("resp", "db", number)
            if not re.fullmatch(r"[0-9]{1,2}", number) or not 1 <= int(number) <= RESP_DB_MAX:
                self.refuse(path, f'"{number}" is not a database number from 1 to {RESP_DB_MAX}')
            if not isinstance(prefix, str) or not prefix or "\0" in prefix or len(prefix) > 64:
                self.refuse(path, 'a prefix is a text of 1 to 64 characters such as "litellm:"')
            prefixes[int(number)] = prefix
        return prefixes


def nearest_name(name: str, names: set[str]) -> str:
    """As `nearest`, for environment variables: upper case, and not all of them listed."""
    found = nearest(name, {known.lower() for known in names})
    return found.upper().replace("DID YOU MEAN", "did you mean") if "did" in found else ""
