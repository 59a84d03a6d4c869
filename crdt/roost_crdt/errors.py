"""Every error that roost raises on purpose.

RoostError                 what a caller is told; has code, HTTP status, retry_after_ms
+-- BadRequest             malformed command, body, number or key
+-- NoAuth, NoPerm         who the caller is; what it may do
+-- BadToken               forged, wrong audience, unknown key id
+-- NoPolicy               no policy claims the key
+-- NoSession              no node knows the session
+-- WrongType              the key holds another type
+-- Unsupported            the key's consistency cannot give it
+-- TurnConflict           token or base behind the current turn
+-- CallConflict           same call key, other tool or arguments
+-- CrossClass             one transaction over keys of different consistency
+-- Exhausted              a quota has nothing left in this period
+-- TooLarge               over a bound of Limits or of the configuration
+-- Busy                   overload, try again
+-- Unavailable            consensus or home out of reach within the deadline
+-- SessionUnavailable     home and standby are both lost
+-- UnknownOutcome         may have been applied; carries the request id to retry with
+-- Full                   disk or size bound reached; reads go on
PeerError                  a neighbour broke the protocol; local state is unchanged
CorruptData                stored or received bytes do not check out; nothing was changed
ActorReused                one stamp with two bodies: two writers share an actor
ConfigError                a configuration file cannot be used; has file and line
"""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = [
    "ActorReused",
    "BadRequest",
    "BadToken",
    "Busy",
    "CallConflict",
    "ConfigError",
    "CorruptData",
    "CrossClass",
    "Exhausted",
    "Full",
    "NoAuth",
    "NoPerm",
    "NoPolicy",
    "NoSession",
    "PeerError",
    "RoostError",
    "SessionUnavailable",
    "TooLarge",
    "TurnConflict",
    "Unavailable",
    "UnknownOutcome",
    "Unsupported",
    "WrongType",
    "error_from_code",
]


class RoostError(Exception):
    """An answer that a caller gets instead of a result.

    `details` are extra members for faces that can carry them (an HTTP problem document,
    the SDK): for example the current turn of a TurnConflict.
    """

    code: ClassVar[str] = "ERR"
    status: ClassVar[int] = 500

    def __init__(self, message: str, *, retry_after_ms: int | None = None, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_ms = retry_after_ms
        self.details: dict[str, Any] = details


class BadRequest(RoostError):
    code, status = "BADREQUEST", 400


class NoAuth(RoostError):
    code, status = "NOAUTH", 401


class NoPerm(RoostError):
    code, status = "NOPERM", 403


class BadToken(RoostError):
    code, status = "BADTOKEN", 401


class NoPolicy(RoostError):
    code, status = "NOPOLICY", 404


class NoSession(RoostError):
    code, status = "NOSESSION", 404


class WrongType(RoostError):
    code, status = "WRONGTYPE", 409


class Unsupported(RoostError):
    code, status = "UNSUPPORTED", 422


class TurnConflict(RoostError):
    code, status = "TURNCONFLICT", 409


class CallConflict(RoostError):
    code, status = "CALLCONFLICT", 409


class CrossClass(RoostError):
    code, status = "CROSSCLASS", 409


class Exhausted(RoostError):
    code, status = "EXHAUSTED", 429


class TooLarge(RoostError):
    code, status = "TOOLARGE", 413


class Busy(RoostError):
    code, status = "BUSY", 503


class Unavailable(RoostError):
    code, status = "UNAVAILABLE", 503


class SessionUnavailable(RoostError):
    code, status = "SESSIONUNAVAILABLE", 503


class UnknownOutcome(RoostError):
    code, status = "UNKNOWNOUTCOME", 504


class Full(RoostError):
    code, status = "FULL", 507


class PeerError(Exception):
    """A neighbour broke the protocol; local state is unchanged and the link is cut.

    `code` is what an ERROR frame says of it: PEER, or ACTOR if it writes as another node does.
    """

    def __init__(self, text: str, code: str = "PEER") -> None:
        super().__init__(text)
        self.code = code


class CorruptData(Exception):
    """Bytes from disk or network fail their checksum or shape; nothing was changed."""


class ActorReused(Exception):
    """One stamp came with two bodies: two writers share one actor (a clone or a rollback)."""


class ConfigError(Exception):
    """A configuration file cannot be used.

    `str()` gives `file:line: what is wrong; what to do`.
    """

    def __init__(self, message: str, *, file: str = "", line: int = 0) -> None:
        self.message = message
        self.file = file
        self.line = line
        place = f"{file}:{line}: " if line else f"{file}: " if file else ""
        super().__init__(place + message)


_BY_CODE: dict[str, type[RoostError]] = {cls.code: cls for cls in RoostError.__subclasses__()}


def error_from_code(
    code: str, message: str, *, retry_after_ms: int | None = None, **details: Any
) -> RoostError:
    """The error that `code` names, rebuilt on another face or node (RoostError if unknown)."""
    return _BY_CODE.get(code, RoostError)(message, retry_after_ms=retry_after_ms, **details)
