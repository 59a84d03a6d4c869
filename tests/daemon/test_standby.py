"""Answers that wait for a second disk, against neighbours that hold, lag, fail or are silent."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from virtual_time import virtual

from roost_crdt.errors import BadRequest, Unavailable, UnknownOutcome
from roost_crdt.home import Candidate
from roostd.node.standby import HOLD, Due, Standbys, settle

ACTOR = 7


class Neighbours:
    """`holds`: node -> hlc that it says it holds; None: it never answers; absent: it fails."""

    def __init__(self, *candidates: Candidate, holds: dict[str, int | None]) -> None:
        self.up = list(candidates)
        self.holds = holds
        self.asked: list[tuple[str, int]] = []

    def candidates(self) -> list[Candidate]:
        return self.up

    async def call(self, node: str, method: str, args: dict[str, Any], *, deadline_ms: int) -> Any:
        assert method == HOLD
        assert args["actor"] == ACTOR
        self.asked.append((node, args["hlc"]))
        if node not in self.holds:
            raise Unavailable(f"{node} is not connected")
        held = self.holds[node]
        await asyncio.sleep(0.005 if held is not None else deadline_ms / 1000)
        if held is None:
            raise UnknownOutcome(f"{node} gave no answer")
        return held


EU2 = Candidate("eu-2", "eu", 1.0)
US = Candidate("us-1", "us", 80.0)
AP = Candidate("ap-1", "ap", 180.0)


def standbys(neighbours: Neighbours, wait_ms: int = 400) -> Standbys:
    async def durable() -> None:
        return

    return Standbys(
        neighbours, region="eu", vv=lambda: {ACTOR: 50}, durable=durable, wait_ms=wait_ms
    )


def due(hlc: int) -> Due:
    return Due(ACTOR, hlc, b"k:1")


@virtual
async def test_the_nearest_neighbour_of_another_region_is_asked_once_for_many() -> None:
    neighbours = Neighbours(AP, EU2, US, holds={"us-1": 20, "ap-1": 20, "eu-2": 20})
    asking = standbys(neighbours)
    asking.check(b"k:1")
    async with asyncio.timeout(2):
        await asyncio.gather(*(asking.held(due(hlc)) for hlc in range(1, 21)))
    assert neighbours.asked == [("us-1", 20)]


@virtual
async def test_writes_that_come_meanwhile_are_asked_for_too() -> None:
    neighbours = Neighbours(US, holds={"us-1": 10})
    asking = standbys(neighbours)
    first = asyncio.create_task(asking.held(due(10)))
    await asyncio.sleep(0.001)
    neighbours.holds["us-1"] = 11
    await asyncio.wait_for(asyncio.gather(first, asking.held(due(11))), 2)
    assert neighbours.asked[-1] == ("us-1", 11)


@pytest.mark.parametrize("silent", [{}, {"us-1": None}, {"us-1": 4}])
def test_another_one_is_asked_where_the_nearest_does_not_say(
    silent: dict[str, int | None],
) -> None:
    neighbours = Neighbours(AP, US, holds={"ap-1": 5, **silent})

    @virtual
    async def run() -> None:
        await asyncio.wait_for(standbys(neighbours).held(due(5)), 2)

    run()
    assert [node for node, _ in neighbours.asked] == ["us-1", "ap-1"]


@virtual
async def test_nobody_to_ask_is_said_before_the_write() -> None:
    asking = standbys(Neighbours(EU2, holds={"eu-2": 99}))
    with pytest.raises(Unavailable, match=r"k:1 .*nothing was written") as caught:
        asking.check(b"k:1")
    assert caught.value.retry_after_ms


@virtual
async def test_no_answer_in_time_is_an_unknown_outcome() -> None:
    neighbours = Neighbours(US, holds={"us-1": 4})
    asking = standbys(neighbours, wait_ms=150)
    with pytest.raises(UnknownOutcome, match=r"k:1 is on disk here.*us-1.*150 ms"):
        await asking.held(due(5))
    neighbours.holds["us-1"] = 6
    await asyncio.wait_for(asking.held(due(6)), 2)  # asks again
    await asking.stop()


@virtual
async def test_only_the_replies_without_a_second_disk_are_replaced() -> None:
    neighbours = Neighbours(US, holds={"us-1": 6})
    asking = standbys(neighbours, wait_ms=150)
    replies = [b"read", b"first", b"second"]
    await settle(
        asking, replies, [(1, due(6)), (2, due(9))], lambda error: str(error)[:12].encode()
    )
    assert replies == [b"read", b"first", b"the write of"]
    await asking.stop()


@virtual
async def test_it_answers_neighbours_when_their_write_has_arrived_and_is_durable() -> None:
    vv = {ACTOR: 10}
    synced: list[int] = []

    async def durable() -> None:
        synced.append(vv[ACTOR])

    answering = Standbys(Neighbours(holds={}), region="us", vv=lambda: vv, durable=durable)
    assert await answering.hold("eu-1", {"actor": ACTOR, "hlc": 9}) == 10
    later = asyncio.create_task(answering.hold("eu-1", {"actor": ACTOR, "hlc": 12}))
    await asyncio.sleep(0)
    vv[ACTOR] = 11
    answering.flushed()
    await asyncio.sleep(0)
    assert not later.done()
    vv[ACTOR] = 13
    answering.flushed()
    assert await asyncio.wait_for(later, 1) == 13
    assert synced == [10, 13]
    with pytest.raises(BadRequest):
        await answering.hold("eu-1", {"actor": "x"})
