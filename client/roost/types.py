"""What the SDK answers with: frozen values, alike for the blocking and the asyncio face."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

__all__ = [
    "Ack",
    "Change",
    "Hello",
    "Reading",
    "ServedBy",
    "Source",
    "Spent",
    "Turn",
    "Turns",
]

Source = Literal["mmap", "node", "consensus"]
ServedBy = Literal["home", "replica", "forwarded", "takeover"]


class Reading(msgspec.Struct, frozen=True):
    """One value as it was read.

    `value` is a str for UTF-8 strings, bytes for other strings, else the parsed JSON value
    (an int for counters and rates, a list for sets, a dict for maps); None if the key does
    not exist. `lag_ms` is the age of the last moment at which the node was known to hold all
    that its neighbours had reported (0 where linearizable). `node_up` is False when the value
    was read from the index of a daemon that does not answer: it may then miss what was
    acknowledged last, and `lag_ms` goes on growing.
    """

    value: Any
    lag_ms: int
    source: Source
    node_up: bool = True


class Ack(msgspec.Struct, frozen=True):
    """A write that was accepted: on disk here, or in consensus (then `seq` is 0).

    `value` is the new count after `incr`, and whether there was something to delete after
    `delete`; None otherwise.
    """

    seq: int
    durable: bool
    value: Any = None


class Change(msgspec.Struct, frozen=True):
    """One change of a watched key: its value afterwards, None if it is gone.

    `stamp` is `(hlc, actor)` of the newest write in the value, None where the node does not
    tell it.
    """

    key: str
    value: Any
    stamp: tuple[int, int] | None


class Spent(msgspec.Struct, frozen=True):
    """`remaining_local`: what this node may still spend without asking consensus."""

    remaining_local: int
    granted: int = 0


class Turns(msgspec.Struct, frozen=True):
    """The conversation along its active path; `stale_turns` is how many turns it lacks."""

    messages: list[dict[str, Any]]
    turn: int
    stale_turns: int
    served_by: ServedBy
    lag_ms: int = 0


class Turn(msgspec.Struct, frozen=True):
    """A committed turn. `protected` is False until a standby holds the session.

    `contested`: home was away for a while, and its standby could not say who is home now.
    """

    token: str
    number: int
    stale_turns: int
    protected: bool
    served_by: ServedBy = "home"
    turn_id: str = ""
    contested: bool = False


class Hello(msgspec.Struct, frozen=True):
    """What a daemon tells about itself to a local reader of its index."""

    node: str = ""
    region: str = ""
    cluster: str = ""
    data: str = ""
    store_id: bytes = b""
    pid_ns: int = 0
    seq: int = 0
    applied_seq: int = 0
    lag_ms: int = 0
    prefix: bytes | None = None
