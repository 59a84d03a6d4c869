"""Sessions while regions are cut off, stopped, killed and drained (I1, I8, I9, I10)."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from roostd.demo.regions import Regions

from .speaker import Refused, Speaker, speaking

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAMES = ("eu", "us", "ap")
TAKEOVER_S = 0.3
SETTINGS = f"[session]\ntakeover_after_ms = {int(TAKEOVER_S * 1000)}\n"
LOST = (Refused, httpx.HTTPError)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def speaker() -> AsyncIterator[Speaker]:
    async with speaking(Regions(NAMES, settings=SETTINGS)) as speaker:
        yield speaker


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def healthy(speaker: Speaker) -> AsyncIterator[None]:
    """Whatever a test did (or failed to undo), the next one finds three linked regions."""
    yield
    for name in NAMES:
        await speaker.regions.heal(name)
        process = speaker.regions[name].process
        assert process is not None
        if process.returncode is not None:
            await speaker.regions.launch(name)
    await speaker.linked()


def region_of(node: str) -> str:
    return node.partition("-")[0]


class Talk:
    """One session from its first turn: where it lives, and what was acknowledged."""

    def __init__(self, speaker: Speaker, sid: str) -> None:
        self.speaker = speaker
        self.sid = sid
        self.acknowledged: list[str] = []
        self.token: str | None = None
        self.home = self.standby = self.third = ""

    async def begin(self, turns: int = 2) -> None:
        """At eu, with every turn at its standby."""
        opened = await self.speaker.open("eu", self.sid)
        self.token = opened.token
        self.home, self.standby = "eu", region_of(opened["standby"])
        (self.third,) = set(NAMES) - {self.home, self.standby}
        for n in range(turns):
            await self.say("eu", f"{self.sid} {n + 1}")
        await self.speaker.until(self.protected, "the standby does not hold the session")

    async def protected(self) -> bool:
        read = await self.speaker.turns(self.standby, self.sid, self.token)
        return bool(read["served_by"] == "replica" and read["stale_turns"] == 0)

    async def say(self, region: str, text: str, **more: object) -> dict[str, object]:
        done = await self.speaker.commit(region, self.sid, text, self.token, **more)
        self.token = done.token
        self.acknowledged.append(text)
        return done.body

    async def check(self) -> str:
        """One home, named alike by all; every acknowledged turn in it, once (I9)."""
        home = await self.speaker.one_home(self.sid)

        async def all_there() -> bool:
            held = await self.speaker.held(home, self.sid)
            return set(self.acknowledged) <= set(held) and len(held) == len(set(held))

        await self.speaker.until(all_there, f"not each once: {self.acknowledged}")
        return home


async def test_both_sides_of_a_partition_commit(speaker: Speaker) -> None:
    regions, talk = speaker.regions, Talk(speaker, "split")
    await talk.begin(9)
    await regions.cut("eu")
    ours = await speaker.commit("eu", "split", "ten at eu", talk.token)
    assert ours["turn"] == 10
    talk.acknowledged.append("ten at eu")
    theirs = await speaker.commit(talk.standby, "split", "ten at the standby", talk.token)
    assert (theirs["turn"], theirs["served_by"]) == (10, "takeover")
    talk.acknowledged.append("ten at the standby")
    # Bare numbers would call turn 10 fresh: this bearer saw another turn 10.
    read = await speaker.turns(talk.standby, "split", ours.token)
    assert (read["turn"], read["stale_turns"]) == (10, 1)
    assert read.headers["roost-stale-turns"] == "1"
    assert (await speaker.turns(talk.standby, "split", theirs.token))["stale_turns"] == 0
    await regions.heal("eu")
    await speaker.linked()
    assert await talk.check() == talk.standby
    for region in NAMES:
        for token in (ours.token, theirs.token):
            read = await speaker.turns(region, "split", token)
            assert read["stale_turns"] == 0
    shown = await speaker.show("ap", "split")
    assert [m["content"] for b in shown["reconciled"] for m in b["messages"]] == ["ten at eu"]
    assert shown["epoch"] >= 2  # one more for another standby, where the cut lasted 3 s


async def test_a_turn_retried_across_a_takeover_is_committed_once(speaker: Speaker) -> None:
    regions, chance = speaker.regions, random.Random(5)
    for round_ in range(3):
        talk = Talk(speaker, f"retry-{round_}")
        await talk.begin()
        asked = asyncio.create_task(
            speaker.commit("eu", talk.sid, "the turn", talk.token, on_conflict="append")
        )
        await asyncio.sleep(chance.uniform(0.0, 0.06))
        await regions.kill("eu")
        first = None
        with contextlib.suppress(*LOST):
            first = await asked
        again = await speaker.commit(talk.standby, talk.sid, "the turn", talk.token)
        assert again["served_by"] == "takeover"
        once_more = await speaker.commit(talk.third, talk.sid, "the turn", talk.token)
        assert again["turn"] == once_more["turn"] == 3
        if first is not None:
            assert first["turn"] == 3
        talk.acknowledged.append("the turn")
        texts = await speaker.texts(talk.standby, talk.sid)
        assert texts == talk.acknowledged
        await regions.launch("eu")
        await speaker.linked()
        await talk.check()
        assert (await speaker.texts("eu", talk.sid)).count("the turn") == 1


async def test_a_turn_retried_beside_its_first_try_is_shown_once(speaker: Speaker) -> None:
    regions, talk = speaker.regions, Talk(speaker, "twice")
    await talk.begin()
    await regions.cut("eu")
    done = await speaker.commit("eu", "twice", "the turn", talk.token)
    assert done["turn"] == 3  # the answer is lost on its way to the client, who asks elsewhere
    done = await talk.say(talk.standby, "the turn")
    assert (done["turn"], done["served_by"]) == (3, "takeover")
    await talk.say(talk.standby, "and on")
    await regions.heal("eu")
    await speaker.linked()
    assert await talk.check() == talk.standby
    for region in NAMES:
        assert await speaker.texts(region, "twice") == talk.acknowledged
        assert (await speaker.show(region, "twice"))["reconciled"] == []


async def test_a_home_that_stands_still_is_deposed_once(speaker: Speaker) -> None:
    regions, talk = speaker.regions, Talk(speaker, "stopped")
    await talk.begin()
    process = regions["eu"].process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    late = asyncio.create_task(speaker.commit("eu", "stopped", "asked before", talk.token))
    stopped = time.monotonic()
    try:
        done = await speaker.commit(talk.third, "stopped", "meanwhile", talk.token)
        assert (done["served_by"], done["turn"]) == ("takeover", 3)
        talk.token = done.token
        talk.acknowledged.append("meanwhile")
        while time.monotonic() < stopped + 9.5:
            await talk.say(talk.third, f"on {len(talk.acknowledged)}")
            await asyncio.sleep(0.5)
    finally:
        process.send_signal(signal.SIGCONT)
    with contextlib.suppress(*LOST):
        await late
        talk.acknowledged.append("asked before")
    read = await speaker.turns("eu", "stopped", talk.token)
    assert read["stale_turns"] == 0
    await talk.check()
    assert (await speaker.show("us", "stopped"))["epoch"] >= 2


async def test_a_home_that_returns_asks_before_it_commits(speaker: Speaker) -> None:
    regions = speaker.regions
    for round_ in range(4):
        talk = Talk(speaker, f"returns-{round_}")
        await talk.begin()
        old = talk.token
        await regions.kill("eu")
        done = await talk.say(talk.standby, "taken over")
        assert done["served_by"] == "takeover"
        await regions.launch("eu")
        # At once, with a token of its own time: it must not commit under its old epoch, unless
        # its standby could not answer in time, as where nothing gets its share of the processor.
        try:
            late = await speaker.commit("eu", talk.sid, "late", old)
        except Refused as refused:
            if refused.code == "TURNCONFLICT":
                break
            raise
        assert late["contested"]
        talk.acknowledged.append("late")
        await talk.check()
    else:
        pytest.fail("home never asked its standby")
    done = await talk.say("eu", "appended", on_conflict="append")
    assert (done["turn"], done["served_by"]) == (4, "forwarded")
    await speaker.linked()
    assert await talk.check() == talk.standby
    assert (await speaker.show("eu", talk.sid))["reconciled"] == []


async def test_a_home_that_cannot_ask_says_so(speaker: Speaker) -> None:
    regions, talk = speaker.regions, Talk(speaker, "contested")
    await talk.begin()
    assert "contested" not in await talk.say("eu", "asked")
    await asyncio.gather(regions.kill("eu"), regions.kill(talk.standby))
    await regions.launch("eu")
    began = time.monotonic()
    assert (await talk.say("eu", "alone"))["contested"] is True
    assert (await talk.say("eu", "and on"))["contested"] is True
    assert time.monotonic() - began < 4, "it asks who cannot answer at each turn"
    await regions.launch(talk.standby)
    await speaker.linked()

    async def confirmed() -> bool:
        return "contested" not in await talk.say("eu", f"again {len(talk.acknowledged)}")

    await speaker.until(confirmed, "the standby never said who is home")
    assert await talk.check() == "eu"


async def test_a_call_in_doubt_after_a_takeover(speaker: Speaker) -> None:
    regions, talk = speaker.regions, Talk(speaker, "doubt")
    await talk.begin()
    await speaker.call("eu", "doubt", "begun", "begun", talk.token)
    await speaker.call("eu", "doubt", "done", "begun", talk.token)
    await speaker.call("eu", "doubt", "done", "finished", talk.token, result=7)
    await talk.say("eu", "after the calls")
    await speaker.until(talk.protected, "the standby lacks the calls")
    await asyncio.sleep(0.3)
    await regions.kill("eu")
    try:
        seen = await speaker.call(talk.standby, "doubt", "begun", "begun", talk.token)
        assert seen["status"] == "in_doubt"
        seen = await speaker.call(talk.standby, "doubt", "done", "begun", talk.token)
        assert (seen["status"], seen["result"]) == ("finished", 7)
        again = await speaker.call(talk.third, "doubt", "begun", "begun", talk.token, retry=True)
        assert again["status"] == "fresh"
        await speaker.call(talk.third, "doubt", "begun", "finished", talk.token, result="once")
    finally:
        await regions.launch("eu")
        await speaker.linked()
    home = await talk.check()
    for region in {"eu", home}:
        calls = (await speaker.show(region, "doubt"))["calls"]
        assert calls["begun"]["status"] == calls["done"]["status"] == "finished"
        assert calls["begun"]["attempt"] == 2


async def test_what_was_erased_does_not_come_back(speaker: Speaker) -> None:
    regions, talk = speaker.regions, Talk(speaker, "erased")
    await talk.begin()
    await regions.kill("eu")
    await talk.say(talk.standby, "taken over")
    done = await speaker.ask(talk.third, "DELETE", "/v1/sessions/erased", token=talk.token)
    receipts = {receipt["node"]: receipt for receipt in done["receipts"]}
    assert "pending" in receipts["eu-1"], receipts
    await regions.launch("eu")
    with pytest.raises(Refused, match="NOSESSION"):
        await speaker.turns("eu", "erased", talk.token)
    await speaker.linked()
    for region in NAMES:
        with pytest.raises(Refused, match="NOSESSION"):
            await speaker.turns(region, "erased", talk.token)
        with pytest.raises(Refused, match="NOSESSION"):
            await speaker.open(region, "erased")

    async def forgotten() -> bool:
        listed = (await speaker.ask("eu", "GET", "/v1/sessions?after=erasec&limit=1"))["sessions"]
        return bool(listed[0]["role"] == "erased")

    await speaker.until(forgotten, "eu did not hear of the erasure")


async def test_a_standby_that_is_gone_is_replaced(speaker: Speaker) -> None:
    regions, talk = speaker.regions, Talk(speaker, "replaced")
    await talk.begin()
    await regions.kill(talk.standby)
    await talk.say("eu", "alone")
    await asyncio.sleep(1)
    assert (await talk.say("eu", "unprotected"))["protected"] is False

    async def another() -> bool:
        shown = await speaker.show("eu", "replaced")
        return bool(shown["standby"] == f"{talk.third}-1" and shown["protected"])

    await speaker.until(another, "no other standby", timeout_s=10 * TAKEOVER_S + 3)
    await talk.say("eu", "protected again")
    await regions.kill("eu")
    done = await talk.say(talk.third, "the new standby took over")
    assert (done["served_by"], done["turn"]) == ("takeover", 6)
    await regions.launch("eu")
    await regions.launch(talk.standby)
    await speaker.linked()
    assert await talk.check() == talk.third


async def test_both_lost_is_said_and_heals(speaker: Speaker) -> None:
    regions, talk = speaker.regions, Talk(speaker, "both")
    await talk.begin()
    await asyncio.gather(regions.kill("eu"), regions.kill(talk.standby))
    try:
        for token in (talk.token, None):
            with pytest.raises(Refused) as refused:
                await speaker.turns(talk.third, "both", talk.token)
            assert (refused.value.code, refused.value.status) == ("SESSIONUNAVAILABLE", 503)
            with pytest.raises(Refused) as refused:
                await speaker.commit(talk.third, "both", "more", talk.token)
            assert refused.value.code == "SESSIONUNAVAILABLE"
            assert refused.value.body["retry_after_ms"] > 0
            del token
    finally:
        await asyncio.gather(regions.launch("eu"), regions.launch(talk.standby))
    await speaker.until(lambda: says(talk, "back"), "the session did not come back")
    await speaker.linked()
    await talk.check()


async def says(talk: Talk, text: str) -> bool:
    await talk.say(talk.third, text)
    return True


async def test_a_region_is_drained_without_a_stale_turn(speaker: Speaker) -> None:
    regions = speaker.regions
    talks = [Talk(speaker, f"drain-{n}") for n in range(6)]
    await asyncio.gather(*(talk.begin() for talk in talks))
    process = regions["eu"].process
    assert process is not None
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 10) == 0
    assert time.monotonic() - began < 8
    for talk in talks:
        read = await speaker.turns(talk.standby, talk.sid, talk.token)
        assert (read["stale_turns"], read["turn"]) == (0, 2)
        done = await talk.say(talk.standby, "after the drain")
        assert (done["served_by"], done["stale_turns"]) == ("home", 0), "it was taken over"
    await regions.launch("eu")
    await speaker.linked()
    for talk in talks:
        assert await talk.check() == talk.standby
