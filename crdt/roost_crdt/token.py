"""The claims of a routing token: where a session lives and what its bearer has seen.

A token routes and proves what was seen; it grants nothing by itself. Its claims come from whoever
holds a key of the cluster, so everything about them is checked: JSON libraries take the last of
two equal names, `1e30` for an integer and `true` for 1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from roost_crdt.errors import BadToken
from roost_crdt.limits import DEFAULT_LIMITS

PATH_EPOCHS_MAX = 4
EPOCH_MAX = (1 << 19) - 1
TURN_MAX = (1 << 32) - 1
TIME_S_MAX = (1 << 40) - 1
NAME_BYTES_MAX = 128
_DIGITS_MAX = 16
_REQUIRED = frozenset(
    ["sid", "home", "standby", "epoch", "turn", "path", "aud", "iss", "iat", "exp"]
)

PathEpoch = tuple[int, str, int, int]
"""`(n, node, start, last)`: that epoch committed the turns after `start` up to `last`."""


class Claims(NamedTuple):
    """What a token says. `epoch` is `(n, home)`; `path` has the newest epochs, oldest first."""

    sid: str
    home: str
    standby: str | None
    epoch: tuple[int, str]
    turn: int
    path: tuple[PathEpoch, ...]
    aud: str
    iss: str
    iat: int
    exp: int


def claims_to_json(claims: Claims) -> bytes:
    """The payload of a token; `epoch` is its number alone, since its node is `home`."""
    assert claims.epoch[1] == claims.home, f"{claims.home} is not home under {claims.epoch}"
    assert len(claims.path) <= PATH_EPOCHS_MAX, "a token names the newest epochs only"
    body = claims._asdict()
    body["epoch"] = claims.epoch[0]
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()


def claims_from_json(payload: bytes) -> Claims:
    """Raises BadToken, which names the class of the fault and nothing of the content."""
    body = read_json_object(payload)
    missing = _REQUIRED - body.keys()
    if missing:
        raise bad_token("claims", f"claim {min(missing)} is missing")
    home = _name(body, "home")
    epoch = (_number(body["epoch"], "epoch", 1, EPOCH_MAX), home)
    turn = _number(body["turn"], "turn", 0, TURN_MAX)
    iat = _number(body["iat"], "iat", 0, TIME_S_MAX)
    return Claims(
        sid=_name(body, "sid", DEFAULT_LIMITS.sid_bytes_max),
        home=home,
        standby=None if body["standby"] is None else _name(body, "standby"),
        epoch=epoch,
        turn=turn,
        path=_path(body["path"], epoch, turn),
        aud=_name(body, "aud"),
        iss=_name(body, "iss"),
        iat=iat,
        exp=_number(body["exp"], "exp", iat, TIME_S_MAX),
    )


def lacks(claims: Claims, lineage: Mapping[tuple[int, str], int]) -> int:
    """How many turns that the bearer has seen a copy lacks.

    Counted by lineage (`{epoch: last turn held}`): in a split both homes commit a "turn 10".
    """
    return sum(
        max(0, last - max(start, lineage.get((n, node), start)))
        for n, node, start, last in claims.path
    )


def read_json_object(raw: bytes) -> dict[str, Any]:
    """A small JSON object without repeated names, fractions or huge numbers. Raises BadToken."""
    if len(raw) > DEFAULT_LIMITS.token_bytes_max:
        raise bad_token("size", f"over {DEFAULT_LIMITS.token_bytes_max} bytes")
    try:
        body = json.loads(
            raw.decode(),
            object_pairs_hook=_unrepeated,
            parse_int=_integer,
            parse_float=_refuse_number,
            parse_constant=_refuse_number,
        )
    except (ValueError, RecursionError) as error:
        raise bad_token("shape", "not JSON") from error
    if type(body) is not dict:
        raise bad_token("shape", "not an object")
    return body


def bad_token(reason: str, what: str) -> BadToken:
    """A refusal by class (`details["reason"]`): size, shape, algorithm, key, signature, claims,
    audience, issuer, time.
    """
    return BadToken(
        f"the token is refused ({reason}): {what}; open the session again", reason=reason
    )


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    body = dict(pairs)
    if len(body) != len(pairs):
        raise bad_token("claims", "a name is given twice")
    return body


def _integer(digits: str) -> int:
    if len(digits) > _DIGITS_MAX:
        raise bad_token("claims", "a number is out of range")
    return int(digits)


def _refuse_number(_: str) -> Any:
    raise bad_token("claims", "a number is not an integer")


def _number(value: object, name: str, low: int, high: int) -> int:
    if type(value) is not int:  # a bool is an int to isinstance
        raise bad_token("claims", f"claim {name} is not an integer")
    if not low <= value <= high:
        raise bad_token("claims", f"claim {name} is out of range")
    return value


def _name(body: Mapping[str, Any], name: str, bytes_max: int = NAME_BYTES_MAX) -> str:
    return _text(body[name], name, bytes_max)


def _text(value: object, name: str, bytes_max: int = NAME_BYTES_MAX) -> str:
    if type(value) is not str or not value or len(value) > bytes_max or not value.isprintable():
        raise bad_token("claims", f"claim {name} is not a name")
    return value


def _path(value: object, epoch: tuple[int, str], turn: int) -> tuple[PathEpoch, ...]:
    if type(value) is not list or len(value) > PATH_EPOCHS_MAX:
        raise bad_token("claims", "claim path is not a short list")
    path: list[PathEpoch] = []
    for step in value:
        if type(step) is not list or len(step) != 4:
            raise bad_token("claims", "claim path has a step that is none")
        n = _number(step[0], "path", 1, EPOCH_MAX)
        node = _text(step[1], "path")
        start = _number(step[2], "path", path[-1][3] if path else 0, TURN_MAX)
        last = _number(step[3], "path", start + 1, TURN_MAX)
        if (n, node) > epoch or (path and (n, node) <= path[-1][:2]):
            raise bad_token("claims", "claim path is out of order")
        path.append((n, node, start, last))
    if path and turn < path[-1][3]:
        raise bad_token("claims", "claims turn and path disagree")
    return tuple(path)
