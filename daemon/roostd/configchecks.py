"""How the values of roost.toml fit together, and whether they are safe."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn, Protocol
from urllib.parse import urlsplit

from roost_crdt.tomlsource import Path as TomlPath
from roost_crdt.tomlsource import TomlSource, nearest
from roostd.configfiles import secret_fault
from roostd.settings import Address, is_loopback

if TYPE_CHECKING:
    from pathlib import Path

    from roostd.config import Config


class Refuse(Protocol):
    """Raises ConfigError at the place where the value of `path` was written."""

    def __call__(self, path: TomlPath, message: str) -> NoReturn: ...


class Checks:
    """What no single value shows: how the values fit together, and whether they are safe."""

    def __init__(
        self, config: Config, source: TomlSource, refuse: Refuse, warnings: list[str]
    ) -> None:
        self.config = config
        self.source = source
        self.refuse = refuse
        self.warnings = warnings

    def run(self) -> None:
        self.neighbours()
        self.tls()
        self.faces()
        self.gossip()
        self.consensus()
        self.sizes()
        self.secrets()

    def neighbours(self) -> None:
        seen: set[str] = set()
        for index, neighbour in enumerate(self.config.neighbours):
            path = ("neighbour", index, "id")
            if neighbour.id == self.config.node.id:
                self.refuse(path, f'neighbour "{neighbour.id}" has the id of this node')
            if neighbour.id in seen:
                self.refuse(path, f'neighbour "{neighbour.id}" is listed twice')
            seen.add(neighbour.id)

    def tls(self) -> None:
        gossip = self.config.gossip
        given = {key: getattr(gossip, key) is not None for key in ("cert", "key", "ca")}
        if any(given.values()) and not all(given.values()):
            there = next(key for key, is_given in given.items() if is_given)
            missing = " and ".join(key for key, is_given in given.items() if not is_given)
            self.refuse(("gossip", there), f"[gossip] has {there} but lacks {missing}")

    def faces(self) -> None:
        listen, access = self.config.listen, self.config.access
        if not (listen.unix or listen.resp or listen.http):
            self.refuse(("listen", "unix"), "no client could connect; set unix, resp or http")
        taken: dict[Address, str] = {}
        for key in ("resp", "http", "gossip"):
            address: Address | None = getattr(listen, key)
            if address is None:
                continue
            if address.port and address in taken:
                self.refuse(("listen", key), f"{address} is already taken by {taken[address]}")
            taken[address] = key
            if key != "gossip" and not is_loopback(address.host) and access.credentials is None:
                self.refuse(
                    ("listen", key),
                    f"{key} listens on {address}, beyond loopback, and anybody could write; "
                    "set [access] credentials, or listen on 127.0.0.1",
                )

    def gossip(self) -> None:
        gossip, address = self.config.gossip, self.config.listen.gossip
        if address is not None and not is_loopback(address.host) and not gossip.tls:
            self.refuse(
                ("listen", "gossip"),
                f"gossip listens on {address}, beyond loopback, without TLS; "
                "set cert, key and ca of [gossip], or listen on 127.0.0.1",
            )
        for index, neighbour in enumerate(self.config.neighbours):
            path = ("neighbour", index, "url")
            url = urlsplit(neighbour.url)
            if url.scheme == "wss":
                if not gossip.tls:
                    self.refuse(path, f"{neighbour.url} is TLS; set cert, key and ca of [gossip]")
            elif not is_loopback(url.hostname or ""):
                self.refuse(
                    path,
                    f"{neighbour.url} is gossip beyond loopback without TLS; use wss:// and set "
                    "cert, key and ca of [gossip]",
                )
            elif not gossip.insecure:
                self.refuse(
                    path,
                    f"{neighbour.url} is not encrypted; use wss://, or set insecure = true in "
                    "[gossip] to allow ws:// on loopback",
                )

    def consensus(self) -> None:
        consensus = self.config.consensus
        path = ("consensus", "endpoints")
        if consensus.backend == "none" and consensus.endpoints:
            self.refuse(path, 'endpoints need a backend; set backend = "etcd" or "embedded"')
        if consensus.backend == "etcd":
            if not consensus.endpoints:
                self.refuse(path, 'the backend etcd needs endpoints = ["https://etcd:2379"]')
            for endpoint in consensus.endpoints:
                self.etcd_endpoint(endpoint)
        if consensus.backend == "embedded":
            if len(consensus.endpoints) > 1:
                self.refuse(path, "the embedded backend is hosted by one node; name only that one")
            for endpoint in consensus.endpoints:
                self.embedded_endpoint(endpoint)
        if (consensus.cert is None) != (consensus.key is None):
            given = "key" if consensus.cert is None else "cert"
            self.refuse(("consensus", given), "[consensus] cert and key come together")
        if (consensus.user is None) != (consensus.password_file is None):
            given = "password_file" if consensus.user is None else "user"
            self.refuse(("consensus", given), "[consensus] user and password_file come together")

    def etcd_endpoint(self, endpoint: str) -> None:
        path = ("consensus", "endpoints")
        try:
            url = urlsplit(endpoint)
            usable = url.scheme in ("http", "https") and bool(url.hostname) and bool(url.port)
        except ValueError:
            url, usable = urlsplit(""), False
        if not usable:
            self.refuse(path, f'"{endpoint}" is not a URL such as "https://etcd:2379"')
        if url.scheme == "http" and not is_loopback(url.hostname or ""):
            self.warnings.append(
                f"{self.source.file}:{self.source.line(path)}: {endpoint} is etcd "
                "beyond loopback without TLS"
            )

    def embedded_endpoint(self, endpoint: str) -> None:
        path = ("consensus", "endpoints")
        if not endpoint.startswith("roost://"):
            self.refuse(path, f'"{endpoint}" is not of the form "roost://NODE"')
        host = endpoint.removeprefix("roost://")
        known = [neighbour.id for neighbour in self.config.neighbours]
        if host != self.config.node.id and host not in known:
            self.refuse(path, f'"{host}" is no neighbour of this node{nearest(host, known)}')

    def sizes(self) -> None:
        limits, store = self.config.limits, self.config.store
        if limits.body_max < limits.value_max:
            self.refuse(("limits", "body_max"), "body_max is less than value_max")
        if store.log_retention > store.size_max:
            self.refuse(("store", "log_retention"), "log_retention is more than size_max")

    def secrets(self) -> None:
        gossip, consensus = self.config.gossip, self.config.consensus
        for path, file in (
            (("gossip", "key"), gossip.key),
            (("consensus", "key"), consensus.key),
            (("consensus", "password_file"), consensus.password_file),
        ):
            if file is not None:
                self.secret(path, file)
        for path, file in (
            (("gossip", "cert"), gossip.cert),
            (("gossip", "ca"), gossip.ca),
            (("consensus", "ca"), consensus.ca),
            (("consensus", "cert"), consensus.cert),
            (("access", "credentials"), self.config.access.credentials),
            (("access", "policies"), self.config.access.policies),
        ):
            if file is not None:
                self.readable(path, file)
        for signing_key in sorted(self.config.token.keys.glob("*.pem")):
            self.secret(("token", "keys"), signing_key)

    def secret(self, path: TomlPath, file: Path) -> None:
        fault = secret_fault(file)
        if fault is not None:
            self.refuse(path, fault)

    def readable(self, path: TomlPath, file: Path) -> None:
        try:
            with file.open("rb"):
                pass
        except OSError as error:
            self.refuse(path, f"{file} cannot be read: {error.strerror}")
