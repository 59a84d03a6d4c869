"""The command table: every module of a family registers its handlers here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from roostd.api.resp.connection import Connection

Reply = bytes | Awaitable[bytes]
"""The encoded reply, or what will give it; a connection runs nothing else meanwhile."""
Handler = Callable[["Connection", list[bytes]], Reply]

NO_KEYS: Final = (0, 0, 0)
ONE_KEY: Final = (1, 1, 1)
ALL_KEYS: Final = (1, -1, 1)


class RespError(Exception):
    """An error reply in the very words of Redis, code first."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command. `arity` counts the name; negative is a minimum, as in Redis.

    `right` is what each key needs ("read", "write" or "admin"; "" = none, also before AUTH),
    `keys` is (first, last, step) of the key arguments, last counted from the end if negative.
    `solo` commands cannot be queued in a MULTI; `session` ones act on a session by its token.
    """

    name: str
    handler: Handler
    arity: int
    right: str
    keys: tuple[int, int, int]
    group: str
    summary: str
    solo: bool = False
    session: bool = False

    def positions(self, count: int) -> Iterable[int]:
        """Indices of the keys among `count` arguments."""
        first, last, step = self.keys
        if not first:
            return ()
        return range(first, (last if last >= 0 else count + last) + 1, step)

    def fits(self, count: int) -> bool:
        return count == self.arity if self.arity >= 0 else count >= -self.arity


COMMANDS: dict[bytes, Command] = {}
"""By upper-case name."""


def command(
    name: str,
    arity: int,
    right: str,
    keys: tuple[int, int, int],
    group: str,
    summary: str,
    *,
    solo: bool = False,
    session: bool = False,
) -> Callable[[Handler], Handler]:
    """Registers a handler under `name`; several names may share one."""

    def register(handler: Handler) -> Handler:
        found = Command(name, handler, arity, right, keys, group, summary, solo, session)
        assert name.upper().encode() not in COMMANDS, f"{name} is registered twice"
        COMMANDS[name.upper().encode()] = found
        return handler

    return register


_LUA = "no Lua runs here: use MULTI/EXEC, INCR, SADD or the ROOST.* commands"
_SORTED = "there are no sorted sets: use SADD, HSET or a policy of type rate"
_STREAMS = "there are no streams: use a session (ROOST.TURN) or PSUBSCRIBE __keyspace@0__:*"
_BLOCKING = "nothing blocks here: use PSUBSCRIBE __keyspace@0__:* to wait for a change"
_RENAME = "a key's name decides its policy: write the new key and DEL the old one"
_BITS = "there are no bit fields: use SET with the whole value"
_READ_MODIFY = "concurrent regions would lose it: SET the whole value"
_PERSISTENCE = "every acknowledged write is on disk already: see roost backup"
_CLUSTER = "every node holds every eventually-global key: see ROOST.STATUS and roost status"

REFUSED: dict[str, str] = {
    "EVAL": _LUA,
    "EVALSHA": _LUA,
    "EVAL_RO": _LUA,
    "EVALSHA_RO": _LUA,
    "SCRIPT": _LUA,
    "FUNCTION": _LUA,
    "FCALL": _LUA,
    "FCALL_RO": _LUA,
    "RENAME": _RENAME,
    "RENAMENX": _RENAME,
    "COPY": _RENAME,
    "MOVE": _RENAME,
    "SWAPDB": _RENAME,
    "SETBIT": _BITS,
    "GETBIT": _BITS,
    "BITCOUNT": _BITS,
    "BITPOS": _BITS,
    "BITOP": _BITS,
    "BITFIELD": _BITS,
    "BITFIELD_RO": _BITS,
    "APPEND": _READ_MODIFY,
    "SETRANGE": _READ_MODIFY,
    "SPOP": "a random element that two regions pop would be popped twice: use SREM",
    "SAVE": _PERSISTENCE,
    "BGSAVE": _PERSISTENCE,
    "BGREWRITEAOF": _PERSISTENCE,
    "LASTSAVE": _PERSISTENCE,
    "CLUSTER": _CLUSTER,
    "REPLICAOF": _CLUSTER,
    "SLAVEOF": _CLUSTER,
    "FLUSHALL": "it would empty every region: delete keys by SCAN and DEL",
    "FLUSHDB": "it would empty every region: delete keys by SCAN and DEL",
    "PUBLISH": "only changes of keys are published: SET a key and PSUBSCRIBE __keyspace@0__:*",
    "PFADD": "there is no HyperLogLog: use SADD and SCARD",
    "PFCOUNT": "there is no HyperLogLog: use SADD and SCARD",
    "PFMERGE": "there is no HyperLogLog: use SADD and SCARD",
    "SHUTDOWN": "stop roostd by SIGTERM, or drain it by ROOST.DRAIN",
    "SORT": "sort in the client",
    "OBJECT": "see roost policy KEY",
    "DUMP": "see roost backup",
    "RESTORE": "see roost restore",
    "MONITOR": "see /metrics and PSUBSCRIBE __keyspace@0__:*",
    "ACL": "credentials are in credentials.toml",
}
_FAMILIES = (
    ("BZ", _SORTED),
    ("BL", _BLOCKING),
    ("BR", _BLOCKING),
    ("GEO", "there are no geo indexes: use HSET"),
    ("Z", _SORTED),
    ("X", _STREAMS),
)


def unknown_command(args: list[bytes]) -> RespError:
    """Redis' words for a command that is not there; for a refused family what to use instead."""
    name = args[0].decode("utf-8", "backslashreplace")
    upper = name.upper()
    hint = REFUSED.get(upper)
    if hint is None and upper.isalpha():
        hint = next((text for start, text in _FAMILIES if upper.startswith(start)), None)
    if hint is not None:
        return RespError(f"ERR unknown command '{name[:128]}': {hint}")
    shown = ""
    for arg in args[1:]:
        if len(shown) >= 128:
            break
        shown += f"'{arg[: 128 - len(shown)].decode('utf-8', 'backslashreplace')}' "
    return RespError(f"ERR unknown command '{name[:128]}', with args beginning with: {shown}")


def wrong_arity(name: str) -> RespError:
    return RespError(f"ERR wrong number of arguments for '{name.lower()}' command")


def syntax_error() -> RespError:
    return RespError("ERR syntax error")


def wrong_type() -> RespError:
    return RespError("WRONGTYPE Operation against a key holding the wrong kind of value")
