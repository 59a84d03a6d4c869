"""The client library of roost: the state next to an LLM server, read at memory speed.

    import roost

    client = roost.connect()
    session = client.open()
    session.commit([{"role": "user", "content": "hello"}])
    print(session.turns().messages)

`roost.aio` has the same names as coroutines.
"""

from roost import aio
from roost.client import Call, Client, Reservation, Session, connect
from roost.types import Ack, Change, Reading, Spent, Turn, Turns
from roost.watch import Watch
from roost_crdt.errors import (
    BadRequest,
    BadToken,
    Busy,
    CallConflict,
    CrossClass,
    Exhausted,
    Full,
    NoAuth,
    NoPerm,
    NoPolicy,
    NoSession,
    RoostError,
    SessionUnavailable,
    TooLarge,
    TurnConflict,
    Unavailable,
    UnknownOutcome,
    Unsupported,
    WrongType,
)

__all__ = [
    "Ack",
    "BadRequest",
    "BadToken",
    "Busy",
    "Call",
    "CallConflict",
    "Change",
    "Client",
    "CrossClass",
    "Exhausted",
    "Full",
    "NoAuth",
    "NoPerm",
    "NoPolicy",
    "NoSession",
    "Reading",
    "Reservation",
    "RoostError",
    "Session",
    "SessionUnavailable",
    "Spent",
    "TooLarge",
    "Turn",
    "TurnConflict",
    "Turns",
    "Unavailable",
    "UnknownOutcome",
    "Unsupported",
    "Watch",
    "WrongType",
    "aio",
    "connect",
]
