"""Files with secrets, written so that nobody else can read them; signing keys and their names."""

from __future__ import annotations

import os
import secrets
from datetime import UTC, datetime
from pathlib import Path

from roostd.keyring import generate

__all__ = ["new_signing_key", "write_new"]


def write_new(path: Path, content: str | bytes, mode: int = 0o644) -> None:
    """Create `path` with `content`, on disk when this returns; FileExistsError if it is there."""
    raw = content.encode() if isinstance(content, str) else content
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())


def new_signing_key(keys: Path) -> str:
    """Write a new Ed25519 key to `keys` (mode 0600) and return its kid.

    Kids begin with the moment of their making, so that they sort in the order of their age.
    """
    moment = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    kid = f"{moment}-{secrets.token_hex(4)}"
    generate(keys, kid)
    return kid
