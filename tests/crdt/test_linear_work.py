"""Commands on their way to consensus: what they need to know, and the answer kept for a retry."""

from __future__ import annotations

import msgspec
import pytest

from roost_crdt.errors import BadRequest, UnknownOutcome
from roost_crdt.linear.cells import Command, Delete, Expire, Get, Incr, Put, Reply
from roost_crdt.linear.transactions import Item
from roost_crdt.linear.work import Work, revision_of, stored_key
from roost_sim.linear import POLICIES

FLAG, HITS = b"flags:a", b"hits:a"


def work(
    *commands: Command, watched: dict[bytes, int] | None = None, request: bytes | None = b"r"
) -> Work:
    keys = list(dict.fromkeys([*(command.key for command in commands), *(watched or {})]))
    policies = {key: POLICIES.find(key) for key in keys}
    return Work(list(commands), keys, policies, watched or {}, request)


@pytest.mark.parametrize(
    ("commands", "watched", "blind", "reads"),
    [
        ([Put(FLAG, b"v")], {}, True, False),
        ([Put(FLAG, b"v", expires_ms=5)], {}, True, False),
        ([Put(FLAG, b"v")], {HITS: 1}, False, False),
        ([Put(FLAG, b"v"), Put(HITS, 1)], {}, False, False),
        ([Put(FLAG, b"v", nx=True)], {}, False, False),
        ([Incr(HITS, 1)], {}, False, False),
        ([Get(FLAG), Get(HITS)], {}, False, True),
        ([Get(FLAG)], {HITS: 0}, False, False),
        ([Get(FLAG), Delete(HITS)], {}, False, False),
    ],
)
def test_what_is_blind_and_what_only_reads(
    commands: list[Command], watched: dict[bytes, int], blind: bool, reads: bool
) -> None:
    made = work(*commands, watched=watched)
    assert (made.blind, made.reads) == (blind, reads)


def test_only_watched_keys_have_to_be_as_they_were() -> None:
    made = work(Put(FLAG, b"v"), watched={HITS: 3})
    assert made.keys == [FLAG, HITS]
    assert made.unchanged([Item(b"other", 9), Item(b"n", 3)])
    assert not made.unchanged([None, Item(b"n", 4)])
    assert not made.unchanged([None, None]), "it was deleted"
    assert work(Put(FLAG, b"v"), watched={HITS: 0}).unchanged([None, None])
    assert (revision_of(None), revision_of(Item(b"n", 3))) == (0, 3)


def test_an_answer_is_of_what_was_asked() -> None:
    put = work(Put(FLAG, b"v", expires_ms=5), Expire(HITS, 5))
    later = work(Put(FLAG, b"v", expires_ms=9), Expire(HITS, 9))
    replies = [Reply(True, b"x"), Reply(False), Reply(True, "7"), Reply(True, -7)]
    answer = put.answer(replies)
    assert later.read_answer(answer) == replies, "an expiry moves with the clock"
    for other in (work(Put(FLAG, b"w", expires_ms=5), Expire(HITS, 5)), work(Expire(HITS, 5))):
        with pytest.raises(BadRequest, match="another request"):
            other.read_answer(answer)


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"\xc1",
        *map(msgspec.msgpack.encode, (None, 7, [1, b"f"], [1, b"f", 7], [1, b"f", [7]])),
    ],
)
def test_an_answer_that_cannot_be_read_may_have_been_given(stored: bytes) -> None:
    with pytest.raises(UnknownOutcome, match="flags:a: the first answer cannot be read"):
        work(Put(FLAG, b"v")).read_answer(stored)


def test_one_id_at_two_keys_is_two_ids() -> None:
    flag, hits = work(Put(FLAG, b"v")), work(Incr(HITS, 1))
    assert flag.request_key == stored_key(FLAG) + b"\0r"
    assert flag.request_key != hits.request_key
    assert work(Put(FLAG, b"v"), request=None).request_key is None
