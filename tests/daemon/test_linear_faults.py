"""Linearizable keys over a wire that loses what it can: request ids, deadlines, histories."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from faulty_wire import POLICIES, Hosting
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_client import BASE_MS, DEADLINE_MS, Client, clients
from virtual_time import run_virtual, virtual

from roost_crdt.errors import (
    BadRequest,
    Busy,
    Unavailable,
    UnknownOutcome,
)
from roost_crdt.linear.cells import INT64_MAX, Incr, Reply
from roost_sim.linearizability import NEVER, Operation, is_linearizable
from roostd.consensus.base import Disabled
from roostd.node.linear import Linear


@virtual
async def test_a_request_id_makes_a_retry_apply_once_on_any_node() -> None:
    one, two = await clients(2)
    assert await one.linear.incr(b"hits", 5, request_id="r") == 5
    await two.linear.incr(b"hits", 100)
    assert await one.linear.incr(b"hits", 5, request_id="r") == 5
    assert await two.linear.incr(b"hits", 5, request_id="r") == 5
    assert await one.linear.get(b"hits") == 105
    assert await two.linear.put(b"flags:a", b"1", nx=True, request_id="r"), "another key"
    assert await one.linear.put(b"flags:a", b"1", nx=True, request_id="r"), "the first answer"
    with pytest.raises(BadRequest, match="used for another request"):
        await one.linear.incr(b"hits", 6, request_id="r")


@virtual
async def test_a_retry_is_answered_even_where_it_would_now_be_refused() -> None:
    [one] = await clients()
    await one.linear.assign(b"hits", INT64_MAX - 1)
    assert await one.linear.incr(b"hits", 1, request_id="r") == INT64_MAX
    assert await one.linear.incr(b"hits", 1, request_id="r") == INT64_MAX
    with pytest.raises(BadRequest):
        await one.linear.incr(b"hits", 1, request_id="s")


@virtual
async def test_a_retry_gets_its_answer_although_a_watched_key_has_changed() -> None:
    [one] = await clients()
    watched = await one.linear.revisions([b"hits"])
    for _ in range(2):
        assert await one.linear.transact([Incr(b"hits", 1)], watched=watched, request_id="r") == [
            Reply(True, 1)
        ]


@virtual
async def test_lost_messages_are_hidden_behind_a_request_id() -> None:
    [one] = await clients()
    for n, way in enumerate(("request", "reply", "late")):
        one.wire.script = ["", way]
        assert await one.linear.incr(b"money", 1, request_id=f"r{n}") == n + 1
        await one.wire.deliver()
    assert await one.linear.get(b"money") == 3


@virtual
async def test_without_a_request_id_a_lost_answer_is_unknown_and_says_so() -> None:
    [one] = await clients()
    one.wire.script = ["", "reply"]
    with pytest.raises(UnknownOutcome, match="no request id") as unknown:
        await one.linear.incr(b"hits", 1)
    assert unknown.value.details["request_id"] is None
    assert await one.linear.incr(b"hits", 1) == 2, "it had been applied: nothing stale is used"


@virtual
async def test_silence_is_unavailable_to_reads_and_unknown_to_writes_within_the_deadline() -> None:
    [one] = await clients()
    loop = asyncio.get_running_loop()
    one.wire.chance, one.wire.WAYS = 1.0, ("request",)  # type: ignore[misc]
    began = loop.time()
    with pytest.raises(Unavailable):
        await one.linear.get(b"hits")
    assert loop.time() - began <= DEADLINE_MS / 1000 + 0.1
    one.wire.script = [""]
    with pytest.raises(UnknownOutcome, match="retry with the same request id") as unknown:
        await one.linear.incr(b"hits", 1, request_id="r9")
    assert unknown.value.details["request_id"] == "r9"
    one.wire.WAYS = ("cut",)  # type: ignore[misc]
    with pytest.raises(Unavailable):
        await one.linear.incr(b"hits", 1, request_id="r9")


@virtual
async def test_those_in_line_on_one_node_share_the_deadline() -> None:
    [one] = await clients()
    one.wire.chance, one.wire.WAYS = 1.0, ("request",)  # type: ignore[misc]
    loop = asyncio.get_running_loop()
    began = loop.time()
    answers = await asyncio.gather(
        *(one.linear.incr(b"hits", 1) for _ in range(20)), return_exceptions=True
    )
    assert all(isinstance(answer, Unavailable) for answer in answers)
    assert loop.time() - began <= DEADLINE_MS / 1000 + 0.1
    one.wire.chance = 0
    assert await one.linear.incr(b"hits", 1) == 1, "the line is gone"


@virtual
async def test_who_loses_every_race_is_told_busy() -> None:
    one, two = await clients(2)
    handle = one.wire.hosting.handle

    async def overtaken(method: str, args: dict[str, Any]) -> Any:
        if method == "consensus.txn" and args["compares"]:
            await two.linear.put(b"hits", b"1")
        return await handle(method, args)

    one.wire.hosting = Overtaken(overtaken)  # type: ignore[assignment]
    with pytest.raises(Busy, match="attempts were overtaken"):
        await one.linear.incr(b"hits", 1)
    assert await two.linear.get(b"hits") == 1


class Overtaken:
    def __init__(self, handle: Callable[..., Any]) -> None:
        self.handle = handle


@virtual
async def test_no_consensus_is_unavailable() -> None:
    linear = Linear(
        Disabled(),
        policies=lambda: POLICIES,
        now_ms=lambda: BASE_MS,
        random=random.random,
        deadline_ms=DEADLINE_MS,
    )
    with pytest.raises(Unavailable):
        await linear.get(b"hits")
    with pytest.raises(Unavailable):
        await linear.put(b"flags:a", b"1")


# --- linearizability ------------------------------------------------------------------------------


def _record(history: list[Operation], loop: asyncio.AbstractEventLoop) -> Callable[..., Any]:
    async def perform(name: str, work: Awaitable[Any], step: Any, read: bool = False) -> None:
        called = loop.time()
        try:
            answer = await work
        except UnknownOutcome:
            history.append(Operation(called, NEVER, step, None, name))
        except (Unavailable, Busy):
            return  # nothing was changed
        else:
            history.append(Operation(called, loop.time(), step, answer, name))

    return perform


def _incr(by: int) -> Any:
    return lambda state: ((state or 0) + by, (state or 0) + by)


def _put(value: bytes) -> Any:
    return lambda _: (value, True)


def _put_nx(value: bytes) -> Any:
    return lambda state: (value, True) if state is None else (state, False)


def _get() -> Any:
    return lambda state: (state, state)


def _delete() -> Any:
    return lambda state: (None, state is not None)


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.1, 0.3]), st.booleans())
def test_histories_under_faults_are_linearizable(seed: int, chance: float, ids: bool) -> None:
    histories = run_virtual(_histories(seed, chance, ids))
    for key, history in histories.items():
        assert is_linearizable(history), (key, sorted(history, key=lambda o: o.called))


async def _histories(seed: int, chance: float, ids: bool) -> dict[bytes, list[Operation]]:
    rng = random.Random(seed)
    hosting = Hosting()
    await hosting.start()
    loop = asyncio.get_running_loop()
    histories: dict[bytes, list[Operation]] = {b"flags:a": [], b"hits": []}

    async def run(client: Client, worker: int) -> None:
        for n in range(6):
            await asyncio.sleep(rng.random() * 0.05)
            key = rng.choice([b"flags:a", b"hits"])
            perform = _record(histories[key], loop)
            request = f"{worker}-{n}" if ids else None
            kind = rng.randrange(4)
            linear = client.linear
            if kind == 0:
                await perform("get", linear.get(key), _get())
            elif key == b"hits":
                await perform("incr", linear.incr(key, 1, request_id=request), _incr(1))
            elif kind == 1:
                value = b"%d.%d" % (worker, n)
                await perform("put", linear.put(key, value, request_id=request), _put(value))
            elif kind == 2:
                value = b"nx%d.%d" % (worker, n)
                work = linear.put(key, value, nx=True, request_id=request)
                await perform("nx", work, _put_nx(value))
            else:
                await perform("delete", linear.delete(key, request_id=request), _delete())

    nodes = [Client(hosting, rng.randrange(1 << 30), chance=chance) for _ in range(3)]
    for node in nodes:
        node.wire.delay_s = 0.02

    async def disturb() -> None:
        for _ in range(6):
            await asyncio.sleep(rng.random() * 0.1)
            for node in nodes:
                await node.wire.deliver()
            if rng.random() < 0.3:
                await hosting.crash()

    await asyncio.gather(
        *(run(node, n * 2 + w) for n, node in enumerate(nodes) for w in range(2)), disturb()
    )
    for node in nodes:
        await node.wire.deliver()
        node.wire.chance = 0
    for key, history in histories.items():
        await _record(history, loop)("last", nodes[0].linear.get(key), _get())
    return histories
