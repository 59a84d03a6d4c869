"""Compare-and-swap with retry, step by step: every message is delivered by hand, or is lost."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_kit import LOST, Rows, Site, Task, hosted

from roost_crdt.errors import BadRequest, Busy, Unavailable, UnknownOutcome
from roost_crdt.linear.cells import INT64_MAX, Command, Delete, Get, Incr, Put, Reply
from roost_crdt.linear.swaps import ATTEMPTS_MAX, KNOWN_MAX
from roost_sim.linear import step_of
from roost_sim.linearizability import NEVER, Operation, is_linearizable

HITS = b"hits:a"
FLAG = b"flags:a"


def sites(n: int) -> list[Site]:
    host = hosted(Rows())
    return [Site(host) for _ in range(n)]


def test_a_write_reads_and_swaps_and_the_next_one_swaps_at_once() -> None:
    [one] = sites(1)
    first = one.begin(Incr(HITS, 2))
    first.deliver()
    assert first.at is not None
    first.deliver()
    assert first.value == [Reply(True, 2)]
    second = one.begin(Incr(HITS, 3))
    second.deliver()
    assert second.value == [Reply(True, 5)], "one message: the last revision was known"


def test_who_loses_the_race_goes_on_from_what_the_answer_shows() -> None:
    one, two = sites(2)
    slow = one.begin(Incr(HITS, 1))
    slow.deliver()
    two.begin(Incr(HITS, 10)).run()
    assert slow.run() == [Reply(True, 11)]
    assert two.begin(Get(HITS)).run() == [Reply(True, 11)]


def test_an_answer_that_changed_nothing_is_read_anew() -> None:
    one, two = sites(2)
    assert one.begin(Put(FLAG, b"a", nx=True)).run() == [Reply(True)]
    two.begin(Delete(FLAG)).run()
    assert one.begin(Put(FLAG, b"b", nx=True)).run() == [Reply(True)], "not what was seen last"


def test_a_retry_gets_the_first_answer_on_any_node() -> None:
    one, two = sites(2)
    lost = one.begin(Incr(HITS, 5), request=b"r")
    lost.deliver()
    assert lost.at is not None
    assert lost.at.work is not None
    lost.at.work()
    lost.fail(LOST)
    assert isinstance(lost.error, UnknownOutcome)
    assert lost.error.details["request_id"] == "r"
    two.begin(Incr(HITS, 100)).run()
    for site in (one, two):
        assert site.begin(Incr(HITS, 5), request=b"r").run() == [Reply(True, 5)]
    assert one.begin(Get(HITS)).run() == [Reply(True, 105)]
    with pytest.raises(BadRequest, match="used for another request"):
        one.begin(Incr(HITS, 6), request=b"r").run()


def test_a_lost_answer_leaves_nothing_known() -> None:
    [one] = sites(1)
    one.begin(Incr(HITS, 1)).run()
    lost = one.begin(Incr(HITS, 1))
    lost.fail(LOST)
    assert isinstance(lost.error, UnknownOutcome)
    assert lost.error.details["request_id"] is None
    again = one.begin(Incr(HITS, 1))
    again.deliver()
    assert again.at is not None, "the key is read first"
    assert again.run() == [Reply(True, 2)]


def test_silence_before_anything_was_sent_changed_nothing() -> None:
    [one] = sites(1)
    task = one.begin(Incr(HITS, 1))
    one.clock_s += 2.0
    task.deliver()
    assert isinstance(task.error, Unavailable)
    one.clock_s = 0.0
    assert one.begin(Get(HITS)).run() == [Reply(False, None)]


def test_who_loses_every_race_is_told_busy() -> None:
    one, two = sites(2)
    task = one.begin(Incr(HITS, 1))
    task.deliver()
    for _ in range(ATTEMPTS_MAX):
        two.begin(Incr(HITS, 1)).run()
        task.deliver()
        task.deliver()
    assert isinstance(task.error, Busy)
    assert two.begin(Get(HITS)).run() == [Reply(True, ATTEMPTS_MAX)]


def test_a_due_expiry_is_true_for_all_before_it_is_answered() -> None:
    one, two = sites(2)
    one.begin(Put(FLAG, b"v", expires_ms=one.now_ms + 10)).run()
    one.now_ms += 10
    assert two.begin(Get(FLAG)).run() == [Reply(True, b"v")]
    assert one.begin(Get(FLAG)).run() == [Reply(False, None)]
    assert two.begin(Get(FLAG)).run() == [Reply(False, None)], "whatever its own clock says"


def test_what_is_refused_is_refused_by_what_is_there_now() -> None:
    one, two = sites(2)
    one.begin(Put(HITS, INT64_MAX)).run()
    with pytest.raises(BadRequest, match="overflows"):
        one.begin(Incr(HITS, 1)).run()
    two.begin(Put(HITS, 4)).run()
    assert one.begin(Incr(HITS, 1)).run() == [Reply(True, 5)], "not by what was seen last"


def test_a_retry_gets_the_first_answer_where_it_would_now_be_refused() -> None:
    one, two = sites(2)
    one.begin(Put(HITS, INT64_MAX - 1)).run()
    assert one.begin(Incr(HITS, 1), request=b"r").run() == [Reply(True, INT64_MAX)]
    assert two.begin(Incr(HITS, 1), request=b"r").run() == [Reply(True, INT64_MAX)]
    with pytest.raises(BadRequest, match="overflows"):
        two.begin(Incr(HITS, 1), request=b"other").run()


def test_a_watched_key_that_has_changed_stops_the_transaction() -> None:
    one, two = sites(2)
    assert one.begin(Put(FLAG, b"v"), watched={HITS: 0}).run() == [Reply(True)]
    two.begin(Incr(HITS, 1)).run()
    for request in (None, b"r"):
        assert one.begin(Put(FLAG, b"w"), watched={HITS: 0}, request=request).run() is None
    assert two.begin(Get(FLAG)).run() == [Reply(True, b"v")]


def test_whether_a_watched_key_has_changed_is_not_judged_by_what_was_seen_last() -> None:
    one, two = sites(2)
    one.begin(Incr(HITS, 1)).run()
    two.begin(Incr(HITS, 1)).run()
    now = one.host.revision()
    assert one.begin(Incr(HITS, 1), watched={HITS: now}).run() == [Reply(True, 3)]


def test_a_retry_gets_the_first_answer_although_its_own_write_changed_what_it_watched() -> None:
    one, two = sites(2)
    made = [Reply(True, 1)]
    assert one.begin(Incr(HITS, 1), watched={HITS: 0}, request=b"r").run() == made
    assert two.begin(Incr(HITS, 1), watched={HITS: 0}, request=b"r").run() == made
    assert two.begin(Get(HITS)).run() == made


def test_a_retry_whose_first_answer_does_not_come_is_unknown_still() -> None:
    one, two = sites(2)
    one.begin(Incr(HITS, 1), watched={HITS: 0}, request=b"r").run()
    again = two.begin(Incr(HITS, 1), watched={HITS: 0}, request=b"r")
    again.deliver()
    assert again.at is not None, "the key has changed: was it this?"
    again.fail(LOST)
    assert isinstance(again.error, UnknownOutcome)
    assert again.error.details["request_id"] == "r"


def test_who_was_overtaken_until_his_time_was_over_is_told_busy() -> None:
    one, two = sites(2)
    task = one.begin(Incr(HITS, 1))
    task.deliver()
    two.begin(Incr(HITS, 1)).run()
    task.deliver()
    one.clock_s += 2.0
    task.deliver()
    assert isinstance(task.error, Busy)
    assert "1 attempts were overtaken; nothing was changed" in task.error.message
    assert two.begin(Get(HITS)).run() == [Reply(True, 1)]


def test_what_is_known_of_many_keys_is_bounded() -> None:
    [one] = sites(1)
    keys = [b"hits:%d" % n for n in range(KNOWN_MAX + 1)]
    for key in keys:
        one.begin(Incr(key, 1)).run()

    def at_once(key: bytes) -> bool:
        task = one.begin(Incr(key, 1))
        task.deliver()
        return task.at is None

    assert not at_once(keys[0]), "the one that was not used for longest is read again"
    assert at_once(keys[1])
    assert at_once(keys[-1])


def test_several_keys_change_together() -> None:
    one, two = sites(2)
    task = one.begin(Incr(HITS, 1), Put(FLAG, b"v"))
    task.deliver()
    two.begin(Incr(HITS, 1)).run()
    assert task.run() == [Reply(True, 2), Reply(True)]


class Clients:
    """Three nodes; what is under way is delivered in whatever order, lost, or done and lost."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.sites = sites(3)
        self.history: list[Operation] = []
        self.clock = 0
        self.open: list[tuple[int, int, Command, bytes | None, int, Task]] = []
        """Node, when it was called, what, its request id, the attempt, and where it stands."""

    def begin(self, number: int) -> None:
        random = self.random
        busy = {node for node, *_ in self.open}
        free = [node for node in range(3) if node not in busy]
        if not free:
            return
        command = random.choice([Get(HITS), Incr(HITS, 1 + number), Delete(HITS)])
        named = random.random() < 0.5 and not isinstance(command, Get)
        node, request = random.choice(free), b"r%d" % number if named else None
        task = self.sites[node].begin(command, request=request)
        self.open.append((node, self.clock, command, request, 0, task))

    def step(self) -> None:
        self.clock += 1
        at = self.random.randrange(len(self.open))
        node, called, command, request, attempt, task = self.open.pop(at)
        message, luck = task.at, self.random.random()
        assert message is not None
        if luck < 0.1 and message.work is not None:
            task.fail(LOST)
        elif luck < 0.25 and message.work is not None:
            message.work()
            task.fail(LOST)
        else:
            task.deliver()
        if task.at is not None:
            self.open.append((node, called, command, request, attempt, task))
        elif task.error is None:
            self._note(called, self.clock, command, task.value[0])
        elif request is not None and attempt < 3:
            again = self.sites[node].begin(command, request=request)
            self.open.append((node, called, command, request, attempt + 1, again))
        elif not isinstance(command, Get):
            self._note(called, NEVER, command, None)

    def read_at_the_end(self) -> None:
        self.clock += 1
        [reply] = self.sites[0].begin(Get(HITS)).run()
        self._note(self.clock, self.clock + 1, Get(HITS), reply)

    def _note(self, called: float, returned: float, command: Command, answer: Any) -> None:
        step: Callable[[Any], tuple[Any, Any]] = step_of(command)
        self.history.append(Operation(called, returned, step, answer, type(command).__name__))


@settings(max_examples=200)
@given(st.integers(0, 2**32))
def test_every_history_has_an_order(seed: int) -> None:
    clients = Clients(Random(seed))
    for number in range(12):
        clients.begin(number)
        while clients.open and clients.random.random() < 0.7:
            clients.step()
    while clients.open:
        clients.step()
    clients.read_at_the_end()
    assert is_linearizable(clients.history)
