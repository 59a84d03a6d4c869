"""Sessions of real daemons, in one region and in two."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

import pytest

import roost
from roost import aio
from roostd.demo.regions import Regions

from .conftest import PATIENT_S


def test_a_conversation(client: Any) -> None:
    session = client.open()
    assert (session.turn, session.epoch, session.home) == (0, 1, "eu-1")
    first = [{"role": "user", "content": "né", "z": 1, "a": {"deep": [1.5, None]}}]
    turn = session.commit(first, put={"kv_cache_index": {"gpu": "n3", "blocks": [1, 2]}})
    assert (turn.number, turn.stale_turns, turn.served_by) == (1, 0, "home")
    assert turn.token == session.token
    session.commit([{"role": "assistant", "content": "b"}])
    turns = session.turns()
    assert turns.messages == [*first, {"role": "assistant", "content": "b"}]
    assert list(turns.messages[0]) == ["role", "content", "z", "a"]
    assert (turns.turn, turns.stale_turns, turns.served_by) == (2, 0, "home")
    assert session.turns(last=1).messages == [{"role": "assistant", "content": "b"}]
    assert session.turns(last=0).messages == []
    assert session.field("kv_cache_index", "gpu") == "n3"
    assert session.field("kv_cache_index", "blocks") == [1, 2]
    assert session.field("kv_cache_index", "none") is None
    session.commit([], put={"kv_cache_index": {"gpu": None}})
    assert session.field("kv_cache_index", "gpu") is None
    again = client.open(session.token)
    assert (again.sid, again.turn) == (session.sid, 3)
    assert client.open(sid=session.sid).turn == 3
    fork = session.fork(at=1)
    assert fork.sid != session.sid
    assert fork.turns().messages == first
    receipts = session.erase()
    assert receipts[0]["node"] == "eu-1"
    with pytest.raises(roost.NoSession):
        again.turns()
    assert fork.turns().turn == 1


def test_a_turn_behind_conflicts_unless_told_otherwise(client: Any) -> None:
    session = client.open(sid=uuid.uuid4().hex)
    other = client.open(session.token)
    session.commit([{"role": "user", "content": "1"}], turn_id="t1")
    with pytest.raises(roost.TurnConflict) as caught:
        other.commit([{"role": "user", "content": "2"}])
    assert caught.value.details["turn"] == 1
    with pytest.raises(roost.TurnConflict):
        session.commit([], base=0)
    turn = other.commit([{"role": "user", "content": "2"}], on_conflict="append")
    assert turn.number == 2
    assert session.commit([{"role": "user", "content": "1"}], turn_id="t1").number == 1
    assert [m["content"] for m in session.turns().messages] == ["1", "2"]


def test_a_ledger(client: Any) -> None:
    session = client.open()
    session.commit([{"role": "user", "content": "pay"}])
    call = session.call("pay", {"to": "bob", "cents": 5})
    assert call.status == "fresh"
    assert session.call("pay", {"cents": 5, "to": "bob"}).status == "in_doubt"
    call.finish({"receipt": 9})
    seen = client.open(session.token).call("pay", {"to": "bob", "cents": 5})
    assert (seen.status, seen.result) == ("finished", {"receipt": 9})
    with pytest.raises(roost.CallConflict):
        session.call("pay", {"to": "eve"}, key=call.key)
    failed = session.call("fetch", {"url": "x"}, key="mine")
    failed.fail(ValueError("no route"))
    seen = session.call("fetch", {"url": "x"}, key="mine")
    assert (seen.status, seen.result) == ("failed", "ValueError: no route")
    seen.retry()
    assert seen.status == "fresh"
    seen.finish([1])
    assert session.call("fetch", {"url": "x"}, key="mine").result == [1]
    session.commit([{"role": "assistant", "content": "paid"}])
    assert session.call("pay", {"to": "bob", "cents": 5}).status == "fresh"  # another turn


async def test_a_session_is_read_and_continued_from_another_region() -> None:
    regions = Regions(("eu", "us"), settings="[session]\ntakeover_after_ms = 3000\n")
    try:
        await regions.start()
        async with (
            aio.connect(regions["eu"].url, deadline_ms=20_000) as here,
            aio.connect(regions["us"].url, deadline_ms=20_000) as there,
        ):
            until = time.monotonic() + PATIENT_S
            session = await here.open()
            turn = await session.commit([{"role": "user", "content": "1"}])
            while not turn.protected:
                assert time.monotonic() < until
                await asyncio.sleep(0.1)
                turn = await session.commit([])
            assert session.home == "eu-1"
            followed = await there.open(session.token)
            turns = await followed.turns()
            assert turns.messages == [{"role": "user", "content": "1"}]
            assert turns.stale_turns == 0
            assert turns.served_by in ("replica", "forwarded")
            turn = await followed.commit([{"role": "user", "content": "2"}])
            assert (turn.served_by, turn.stale_turns) == ("forwarded", 0)
            assert followed.home == "eu-1"
            await regions.kill("eu")
            while True:
                try:
                    after = await followed.turns()
                    turn = await followed.commit([{"role": "user", "content": "3"}])
                    break
                except (roost.Unavailable, roost.SessionUnavailable, roost.UnknownOutcome):
                    assert time.monotonic() < until + PATIENT_S
                    await asyncio.sleep(0.2)
            assert followed.home == "us-1"
            assert followed.epoch > session.epoch
            assert len(after.messages) + after.stale_turns == 2
            contents = [message["content"] for message in (await followed.turns()).messages]
            assert contents == ["1", "2", "3"]
    finally:
        await regions.close()
