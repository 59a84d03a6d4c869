"""Connection commands: HELLO, AUTH, PING, ECHO, SELECT, CLIENT, QUIT, RESET."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from roost_crdt.errors import NoAuth
from roostd.api.caller import Caller
from roostd.api.numbers import NotANumber, parse_int
from roostd.api.resp import encode
from roostd.api.resp.connection import Connection
from roostd.api.resp.table import NO_KEYS, Reply, RespError, command, syntax_error, wrong_arity
from roostd.api.resp.versions import REDIS_VERSION, VERSION

_GROUP = "connection"
_NAME_TEXT = "ERR Client names cannot contain spaces, newlines or special characters."


@command("PING", -1, "read", NO_KEYS, _GROUP, "Answers PONG, or the argument.")
def ping(conn: Connection, args: list[bytes]) -> Reply:
    if len(args) > 2:
        raise wrong_arity("ping")
    if not conn.resp3 and (conn.subscriptions or conn.patterns):
        return encode.bulks((b"pong", args[1] if len(args) == 2 else b""))
    return encode.bulk(args[1]) if len(args) == 2 else encode.PONG


@command("ECHO", 2, "read", NO_KEYS, _GROUP, "Answers its argument.")
def echo(conn: Connection, args: list[bytes]) -> Reply:
    return encode.bulk(args[1])


@command("QUIT", -1, "", NO_KEYS, _GROUP, "Closes the connection.")
def quit_(conn: Connection, args: list[bytes]) -> Reply:
    conn.closing = True
    return encode.OK


@command("RESET", 1, "", NO_KEYS, _GROUP, "Returns the connection to its first state.")
def reset(conn: Connection, args: list[bytes]) -> Reply:
    conn.reset()
    return b"+RESET\r\n"


@command("AUTH", -2, "", NO_KEYS, _GROUP, "AUTH [name] secret.", solo=True)
def auth(conn: Connection, args: list[bytes]) -> Reply:
    if len(args) > 3:
        raise syntax_error()
    if not conn.node.credentials.required and len(args) == 2:
        raise RespError(
            "ERR AUTH <password> called without any password configured for the default user. "
            "Are you sure your configuration is correct?"
        )
    _authenticate(conn, args[1] if len(args) == 3 else None, args[-1])
    return encode.OK


def _authenticate(conn: Connection, name: bytes | None, secret: bytes) -> None:
    try:
        text = None if name is None else name.decode("utf-8", "replace")
        conn.log_in(conn.operations.log_in(text, secret), (text, secret))
    except NoAuth:
        raise RespError("WRONGPASS invalid username-password pair or user is disabled.") from None
    conn.db = 0


@command(
    "HELLO", -1, "", NO_KEYS, _GROUP, "HELLO [2|3 [AUTH name secret] [SETNAME name]].", solo=True
)
def hello(conn: Connection, args: list[bytes]) -> Reply:
    resp3 = conn.resp3
    if len(args) > 1:
        try:
            version = parse_int(args[1])
        except NotANumber:
            raise RespError("ERR Protocol version is not an integer or out of range") from None
        if version not in (2, 3):
            raise RespError("NOPROTO unsupported protocol version")
        resp3 = version == 3
    at, name, login = 2, None, None
    while at < len(args):
        option = args[at].upper()
        if option == b"AUTH" and at + 2 < len(args):
            login = (args[at + 1], args[at + 2])
            at += 3
        elif option == b"SETNAME" and at + 1 < len(args):
            name = args[at + 1]
            _check_name(name)
            at += 2
        else:
            shown = args[at].decode("utf-8", "backslashreplace")
            raise RespError(f"ERR Syntax error in HELLO option '{shown}'")
    if login is not None:
        _authenticate(conn, *login)
    if conn.caller is None:
        raise RespError(
            "NOAUTH HELLO must be called with the client already authenticated, otherwise the "
            "HELLO <proto> AUTH <user> <pass> option can be used to authenticate the client and "
            "select the RESP protocol version at the same time"
        )
    if name is not None:
        conn.name = name
    conn.resp3 = resp3
    answer: dict[str, Any] = {
        "server": "redis",
        "version": REDIS_VERSION,
        "proto": 3 if resp3 else 2,
        "id": conn.id,
        "mode": "standalone",
        "role": "master",
        "modules": [],
        "roost_version": VERSION,
    }
    return encode.encode(answer, resp3)


@command(
    "SELECT", 2, "read", NO_KEYS, _GROUP, "Chooses the key prefix of a [resp.db] number.", solo=True
)
def select(conn: Connection, args: list[bytes]) -> Reply:
    try:
        number = parse_int(args[1])
    except NotANumber:
        raise RespError("ERR value is not an integer or out of range") from None
    prefixes: dict[int, str] = conn.node.config.resp_db
    if number != 0 and number not in prefixes:
        raise RespError("ERR DB index is out of range; numbers other than 0 are in [resp.db]")
    assert conn.caller is not None
    conn.db = number
    conn.caller = Caller(conn.caller.principal, prefixes.get(number, "").encode())
    return encode.OK


# --- CLIENT ---------------------------------------------------------------------------------------


@command("CLIENT", -2, "read", NO_KEYS, _GROUP, "About this connection and the others.")
def client(conn: Connection, args: list[bytes]) -> Reply:
    name = args[1].upper()
    handler = _CLIENT.get(name)
    if handler is None:
        shown = args[1].decode("utf-8", "backslashreplace")
        raise RespError(f"ERR unknown subcommand '{shown[:128]}'. Try CLIENT HELP.")
    return handler(conn, args)


def _arity(args: list[bytes], count: int) -> None:
    if len(args) != count:
        raise wrong_arity(f"client|{args[1].decode('utf-8', 'backslashreplace').lower()}")


def _check_name(name: bytes) -> None:
    if any(char < 0x21 or char > 0x7E for char in name):
        raise RespError(_NAME_TEXT)


def _id(conn: Connection, args: list[bytes]) -> bytes:
    _arity(args, 2)
    return encode.integer(conn.id)


def _set_name(conn: Connection, args: list[bytes]) -> bytes:
    _arity(args, 3)
    _check_name(args[2])
    conn.name = args[2]
    return encode.OK


def _get_name(conn: Connection, args: list[bytes]) -> bytes:
    _arity(args, 2)
    return encode.bulk_or_null(conn.name or None, conn.resp3)


def _set_info(conn: Connection, args: list[bytes]) -> bytes:
    _arity(args, 4)
    option, value = args[2].upper(), args[3]
    if option not in (b"LIB-NAME", b"LIB-VER"):
        shown = args[2].decode("utf-8", "backslashreplace")
        raise RespError(f"ERR Unrecognized option '{shown}'")
    if any(char < 0x21 or char > 0x7E for char in value):
        raise RespError(
            f"ERR {option.decode().lower()} cannot contain spaces, newlines or special characters."
        )
    if option == b"LIB-NAME":
        conn.library = value
    else:
        conn.library_version = value
    return encode.OK


def _no_evict(conn: Connection, args: list[bytes]) -> bytes:
    _arity(args, 3)
    if args[2].upper() not in (b"ON", b"OFF"):
        raise syntax_error()
    return encode.OK


def _reply(conn: Connection, args: list[bytes]) -> bytes:
    _arity(args, 3)
    mode = args[2].upper()
    if mode == b"ON":
        conn.hush(False)
        return encode.OK
    if mode == b"OFF":
        conn.hush(True)
    elif mode == b"SKIP":
        conn.hush(False, skip=2)  # this one and the next
    else:
        raise syntax_error()
    return b""


def _info(conn: Connection, args: list[bytes]) -> bytes:
    _arity(args, 2)
    return _verbatim(conn, _line(conn))


def _list(conn: Connection, args: list[bytes]) -> bytes:
    wanted = list(conn.server.connections.values())
    if len(args) >= 4 and args[2].upper() == b"ID":
        ids = {parse_int(arg) for arg in args[3:]}
        wanted = [other for other in wanted if other.id in ids]
    elif len(args) == 4 and args[2].upper() == b"TYPE":
        kind = args[3].lower()
        if kind not in (b"normal", b"pubsub", b"master", b"replica"):
            raise RespError(f"ERR Unknown client type '{kind.decode('utf-8', 'replace')}'")
        wanted = [other for other in wanted if _kind(other) == kind]
    elif len(args) != 2:
        raise syntax_error()
    if conn.caller is not None and conn.caller.principal.rights != "admin":
        wanted = [other for other in wanted if other.caller and _same(other.caller, conn.caller)]
    return _verbatim(conn, "".join(_line(other) + "\n" for other in wanted))


def _same(one: Caller, other: Caller) -> bool:
    return one.name == other.name


def _kind(conn: Connection) -> bytes:
    return b"pubsub" if conn.subscriptions or conn.patterns else b"normal"


def _line(conn: Connection) -> str:
    now_s = time.monotonic()
    return (
        f"id={conn.id} addr={conn.peer} name={conn.name.decode()} "
        f"age={int(now_s - conn.since)} idle={int(now_s - conn.last_active)} "
        f"flags={'P' if _kind(conn) == b'pubsub' else 'N'} db={conn.db} "
        f"sub={len(conn.subscriptions)} psub={len(conn.patterns)} "
        f"multi={-1 if conn.queue is None else len(conn.queue)} "
        f"cmd={conn.last_command.lower() or 'NULL'} "
        f"user={conn.caller.name if conn.caller else ''} resp={3 if conn.resp3 else 2} "
        f"lib-name={conn.library.decode()} lib-ver={conn.library_version.decode()}"
    )


def _verbatim(conn: Connection, text: str) -> bytes:
    raw = text.encode()
    if conn.resp3:
        return b"=%d\r\ntxt:%b\r\n" % (len(raw) + 4, raw)
    return encode.bulk(raw)


def _help(conn: Connection, args: list[bytes]) -> bytes:
    return encode.bulks(b"CLIENT " + name for name in _CLIENT)


_CLIENT: dict[bytes, Callable[[Connection, list[bytes]], bytes]] = {
    b"ID": _id,
    b"INFO": _info,
    b"LIST": _list,
    b"SETNAME": _set_name,
    b"GETNAME": _get_name,
    b"SETINFO": _set_info,
    b"NO-EVICT": _no_evict,
    b"NO-TOUCH": _no_evict,
    b"REPLY": _reply,
    b"HELP": _help,
}
