"""credentials.toml: who may connect, and what each may do.

    [router]
    secret_sha256 = "<64 hex digits>"     # or a list of them, while a secret is being changed
    rights = "write"                      # read | write (and read) | admin (everything)
    keys = ["model_router_weights:*"]     # patterns over whole keys; only * is special
    prefix = "litellm:"                   # put before each key of this client

Secrets are compared as SHA-256 hashes, so they have to be long random strings
(`openssl rand -hex 32`), not passwords.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Any, Final

import msgspec

from roost_crdt.errors import ConfigError, NoAuth
from roost_crdt.globs import glob_matches
from roost_crdt.tomlsource import TomlSource

__all__ = ["ANONYMOUS", "RIGHTS", "Credentials", "Principal"]

RIGHTS: Final = ("read", "write", "admin")
"""Each includes those before it."""

PRINCIPALS_MAX: Final = 10_000
_FIELDS: Final = ("secret_sha256", "rights", "keys", "prefix")
_HASH = re.compile(r"[0-9a-fA-F]{64}")


class Principal(msgspec.Struct, frozen=True):
    """Somebody who connected. `keys` are patterns over stored keys (after `prefix`)."""

    name: str
    rights: str
    keys: tuple[str, ...] = ("*",)
    prefix: str = ""

    def may(self, right: str, key: bytes = b"") -> bool:
        """Whether this principal has `right`, and for `key`, unless it is empty."""
        if RIGHTS.index(self.rights) < RIGHTS.index(right):
            return False
        if not key or self.keys == ("*",):
            return True
        return any(glob_matches(tuple(glob.encode().split(b"*")), key) for glob in self.keys)


ANONYMOUS: Final = Principal("anonymous", "admin")
"""Every client of a node without credentials: `config` lets it listen on loopback only."""


class Credentials:
    """The principals of a file. `required`: clients have to prove who they are."""

    __slots__ = ("_by_hash", "_by_name")

    def __init__(self, entries: list[tuple[Principal, tuple[bytes, ...]]]) -> None:
        self._by_name = {principal.name: (principal, hashes) for principal, hashes in entries}
        self._by_hash = {digest: principal for principal, hashes in entries for digest in hashes}

    @property
    def required(self) -> bool:
        return bool(self._by_name)

    @classmethod
    def empty(cls) -> Credentials:
        """No credentials configured: everybody is ANONYMOUS."""
        return cls([])

    @classmethod
    def parse(cls, text: str, file: str) -> Credentials:
        """Read a credentials file; ConfigError names file and line, never a secret."""
        source = TomlSource(text, file)
        if not source.data:
            raise ConfigError("holds no credentials; nobody could connect", file=file)
        if len(source.data) > PRINCIPALS_MAX:
            raise ConfigError(f"more than {PRINCIPALS_MAX} credentials", file=file)
        entries: list[tuple[Principal, tuple[bytes, ...]]] = []
        owners: dict[bytes, str] = {}
        for name in source.data:
            principal, hashes = _read(source, name)
            for digest in hashes:
                if digest in owners:
                    raise source.error(
                        (name, "secret_sha256"),
                        f"[{name}] and [{owners[digest]}] have the same secret",
                    )
                owners[digest] = name
            entries.append((principal, hashes))
        return cls(entries)

    def authenticate(self, name: str | None, secret: str | bytes) -> Principal:
        """The principal with this secret; NoAuth otherwise.

        `name` None, or "default" where nobody has that name (Redis clients send it), looks
        the secret up among all.
        """
        if not self.required:
            return ANONYMOUS
        raw = secret.encode() if isinstance(secret, str) else secret
        digest = hashlib.sha256(raw).digest()
        if name is None or (name == "default" and name not in self._by_name):
            found = self._by_hash.get(digest)
            if found is not None:
                return found
        elif name in self._by_name:
            principal, hashes = self._by_name[name]
            if any(hmac.compare_digest(digest, known) for known in hashes):
                return principal
        raise NoAuth("unknown name or wrong secret; see [access] credentials of this node")


def _read(source: TomlSource, name: str) -> tuple[Principal, tuple[bytes, ...]]:
    table = source.data[name]
    if not isinstance(table, dict):
        raise source.error((name,), f'"{name}" is not a table; write it as [{name}]')
    for key in table:
        if key not in _FIELDS:
            raise source.unknown_key((name, key), _FIELDS)
    rights = table.get("rights")
    if rights not in RIGHTS:
        raise source.error(
            (name, "rights"), f'[{name}] rights are "read", "write" or "admin", not {rights!r}'
        )
    prefix = table.get("prefix", "")
    if not isinstance(prefix, str) or "\0" in prefix or len(prefix) > 64:
        raise source.error((name, "prefix"), 'a prefix is a text such as "litellm:"')
    keys = table.get("keys", [prefix + "*"])
    if not isinstance(keys, list) or not all(isinstance(key, str) and key for key in keys):
        raise source.error((name, "keys"), 'keys is a list such as ["model_router_weights:*"]')
    hashes = _hashes(source, name, table.get("secret_sha256"))
    return Principal(name, rights, tuple(keys), prefix), hashes


def _hashes(source: TomlSource, name: str, value: Any) -> tuple[bytes, ...]:
    given = value if isinstance(value, list) else [value]
    if not given or not all(isinstance(item, str) and _HASH.fullmatch(item) for item in given):
        raise source.error(
            (name, "secret_sha256"),
            f"[{name}] secret_sha256 is 64 hex digits: printf %s SECRET | sha256sum",
        )
    return tuple(bytes.fromhex(item) for item in given)
