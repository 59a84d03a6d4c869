"""Sessions of one node: pinned to a home, copied to a standby, served wherever the user is."""

from roostd.sessions.context import Context, session_ttl_ms
from roostd.sessions.service import Sessions
from roostd.sessions.types import (
    CallReply,
    Committed,
    Erased,
    Neighbours,
    Opened,
    SessionView,
    TurnsRead,
)

__all__ = [
    "CallReply",
    "Committed",
    "Context",
    "Erased",
    "Neighbours",
    "Opened",
    "SessionView",
    "Sessions",
    "TurnsRead",
    "session_ttl_ms",
]
