"""Reading configuration files, and refusing secrets that are not kept."""

from __future__ import annotations

import stat
from pathlib import Path

from roost_crdt.errors import ConfigError

__all__ = ["read_text", "secret_fault"]


def read_text(path: Path, hint: str = "") -> str:
    """The text of a configuration file, or a ConfigError that says why there is none."""
    try:
        return path.read_text("utf-8")
    except OSError as error:
        why = f"cannot be read: {error.strerror}" + (f"; {hint}" if hint else "")
        raise ConfigError(why, file=str(path)) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"is not UTF-8 at byte {error.start}", file=str(path)) from None


def secret_fault(path: Path) -> str | None:
    """What is wrong with a file that holds a secret: unreadable here, or open to everybody."""
    try:
        with path.open("rb"):
            mode = path.stat().st_mode
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        return (
            f"{path} is a secret that everybody on this machine can read "
            f"(mode {stat.S_IMODE(mode):04o}); chmod 600 {path}"
        )
    return None
