"""Reading configuration files, and refusing secrets that are not kept."""

from __future__ import annotations

import stat
from pathlib import Path

from roost_crdt.errors import ConfigError

__all__ = ["read_text", "refuse_readable_secret"]


def read_text(path: Path, hint: str = "") -> str:
    """The text of a configuration file, or a ConfigError that says why there is none."""
    try:
        return path.read_text("utf-8")
    except OSError as error:
        why = f"cannot be read: {error.strerror}" + (f"; {hint}" if hint else "")
        raise ConfigError(why, file=str(path)) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"is not UTF-8 at byte {error.start}", file=str(path)) from None


def refuse_readable_secret(path: Path) -> None:
    """Raise ConfigError if `path` cannot be read here, or can be read by everybody."""
    try:
        with path.open("rb"):
            mode = path.stat().st_mode
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=str(path)) from None
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise ConfigError(
            f"is a secret that everybody on this machine can read (mode {stat.S_IMODE(mode):04o}); "
            f"chmod 600 {path}",
            file=str(path),
        )
