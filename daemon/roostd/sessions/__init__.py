"""Sessions of one node: pinned to a home, copied to a standby, served wherever the user is."""

from roostd.sessions.context import Context
from roostd.sessions.service import Sessions
from roostd.sessions.table import SessionTable
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
    "SessionTable",
    "SessionView",
    "Sessions",
    "TurnsRead",
]
