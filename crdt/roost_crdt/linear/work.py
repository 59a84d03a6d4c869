"""Commands over linearizable keys on their way to consensus, and the answer kept for a retry."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

from roost_crdt.errors import BadRequest, UnknownOutcome
from roost_crdt.linear.cells import Command, Expire, Get, Put, Reply
from roost_crdt.linear.transactions import Item
from roost_crdt.policy import Policy

__all__ = ["Work", "revision_of", "stored_key"]

_ANSWER_VERSION = 1


class Work:
    """Commands on their way to consensus."""

    def __init__(
        self,
        commands: list[Command],
        keys: list[bytes],
        policies: dict[bytes, Policy],
        watched: dict[bytes, int],
        request: bytes | None,
    ) -> None:
        self.commands = commands
        self.keys = keys
        self.policies = policies
        self.watched = watched
        self.request = request
        self.stored = [stored_key(key) for key in keys]
        first = commands[0] if len(commands) == 1 and not watched else None
        self.blind = isinstance(first, Put) and first.blind
        self.reads = all(isinstance(command, Get) for command in commands) and not watched
        """Nothing is written but expiries that are due."""
        self.overtaken = 0
        """Attempts that another writer was faster than."""
        self.shown = keys[0].decode(errors="backslashreplace")

    @property
    def request_key(self) -> bytes | None:
        """The id as consensus stores it: ids of other keys are other ids."""
        return None if self.request is None else self.stored[0] + b"\0" + self.request

    def unchanged(self, items: Sequence[Item | None]) -> bool:
        """Whether each watched key still has its revision."""
        return all(
            self.watched.get(key, revision_of(item)) == revision_of(item)
            for key, item in zip(self.keys, items, strict=True)
        )

    def fingerprint(self) -> bytes:
        """Of what is asked for; without expiries, which move with the clock of each try."""
        asked = [
            command._replace(expires_ms=0) if isinstance(command, Put | Expire) else command
            for command in self.commands
        ]
        return hashlib.blake2b(repr(asked).encode(), digest_size=8).digest()

    def answer(self, replies: list[Reply]) -> bytes:
        """What is stored under the request id."""
        return msgspec.msgpack.encode([_ANSWER_VERSION, self.fingerprint(), replies])

    def read_answer(self, raw: bytes) -> list[Reply]:
        """The replies that the first try got; BadRequest if it asked for something else."""
        try:
            body: Any = msgspec.msgpack.decode(raw)
            _, fingerprint, replies = body
            answers = [Reply(done, value) for done, value in replies]
        except (msgspec.DecodeError, TypeError, ValueError, RecursionError):
            raise UnknownOutcome(f"{self.shown}: the first answer cannot be read") from None
        if fingerprint != self.fingerprint():
            raise BadRequest(f"{self.shown}: this request id was used for another request")
        return answers


def stored_key(key: bytes) -> bytes:
    """Where consensus keeps a register or counter."""
    return b"k/" + key


def revision_of(item: Item | None) -> int:
    return 0 if item is None else item.revision
