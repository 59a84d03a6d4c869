"""Who asks, and which keys he may touch."""

from __future__ import annotations

from typing import Any, Final

from roost_crdt.errors import BadRequest, NoPerm
from roost_crdt.limits import DEFAULT_LIMITS

READ: Final = "read"
WRITE: Final = "write"
ADMIN: Final = "admin"

KEY_BYTES_MAX = DEFAULT_LIMITS.key_bytes_max


class Caller:
    """A principal on one connection or request, with the prefix put before each of its keys.

    `free` is True for an admin whose keys are unrestricted and unprefixed: then nothing has to
    be looked at per command.
    """

    __slots__ = ("free", "prefix", "principal")

    def __init__(self, principal: Any, db_prefix: bytes = b"") -> None:
        self.principal = principal
        self.prefix = _bytes(principal.prefix) + db_prefix
        self.free = not self.prefix and principal.rights == ADMIN and "*" in principal.keys

    @property
    def name(self) -> str:
        return str(self.principal.name)

    def key(self, key: bytes) -> bytes:
        """The stored key of a key as the caller writes it."""
        full = self.prefix + key
        if not key or len(full) > KEY_BYTES_MAX or b"\0" in full:
            check_key(full if key else b"")
        return full

    def own(self, stored: bytes) -> bytes:
        """The key as the caller writes it."""
        return stored.removeprefix(self.prefix)

    def may(self, right: str, key: bytes) -> bool:
        """`key` is the stored key."""
        return self.free or bool(self.principal.may(right, key))

    def require(self, right: str, key: bytes) -> None:
        """Raises NoPerm."""
        if not self.may(right, key):
            shown = self.own(key).decode("utf-8", "backslashreplace")
            raise NoPerm(f"{self.name} has no right to {right} the key '{shown}'")

    def require_admin(self) -> None:
        """Raises NoPerm."""
        if self.principal.rights != ADMIN:
            raise NoPerm(f'{self.name} is no admin: this takes rights = "admin" in the credentials')


def check_key(key: bytes) -> None:
    """Raises BadRequest for a key that is empty, too long or has a NUL."""
    if not key:
        raise BadRequest("a key is empty; a key is 'policy' or 'policy:rest'", field="key")
    if len(key) > KEY_BYTES_MAX:
        raise BadRequest(f"a key of {len(key)} bytes is over {KEY_BYTES_MAX}", field="key")
    if b"\0" in key:
        raise BadRequest("a key has a NUL byte", field="key")


def _bytes(prefix: str | bytes | None) -> bytes:
    return prefix.encode() if isinstance(prefix, str) else prefix or b""
