"""Sessions over three healthy regions: read, continued and moved from anywhere."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from roostd.demo.regions import Regions

from .speaker import Refused, Speaker, speaking

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAMES = ("eu", "us", "ap")
CALM = "[session]\ntakeover_after_ms = 30000\n"
"""A busy machine is not taken for a lost region."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def speaker() -> AsyncIterator[Speaker]:
    async with speaking(Regions(NAMES, settings=CALM), patient=True) as speaker:
        yield speaker


def region_of(node: str) -> str:
    return node.partition("-")[0]


async def begun(speaker: Speaker, sid: str, turns: int = 1) -> tuple[str, str, str, str | None]:
    """A session of eu: (home, standby, third) as regions, and the newest token."""
    opened = await speaker.open("eu", sid)
    assert opened.status == 201
    token = opened.token
    for n in range(turns):
        token = (await speaker.commit("eu", sid, f"{sid} {n + 1}", token)).token
    standby = region_of(opened["standby"])
    (third,) = set(NAMES) - {"eu", standby}
    return "eu", standby, third, token


async def test_a_standby_serves_reads_without_asking(speaker: Speaker) -> None:
    _, standby, _, token = await begun(speaker, "replica", 3)

    async def replicated() -> bool:
        return (await speaker.turns(standby, "replica", token))["served_by"] == "replica"

    await speaker.until(replicated, "the standby never had the turns")
    read = await speaker.turns(standby, "replica", token)
    assert read["stale_turns"] == 0
    assert [m["content"] for m in read["messages"]] == ["replica 1", "replica 2", "replica 3"]
    assert read.headers["roost-served-by"] == "replica"
    assert read.headers["roost-home"].startswith("eu-1")


async def test_a_forwarded_read_leaves_a_copy(speaker: Speaker) -> None:
    _, _, third, token = await begun(speaker, "copy", 2)
    first = await speaker.turns(third, "copy", token)
    assert first["served_by"] == "forwarded"
    second = await speaker.turns(third, "copy", first.token)
    assert second["served_by"] == "replica"
    assert second["messages"] == first["messages"]
    # What the bearer has seen since is not served from a copy that lacks it.
    newer = await speaker.commit("eu", "copy", "copy 3", token)
    read = await speaker.turns(third, "copy", newer.token)
    assert read["served_by"] == "forwarded"
    assert len(read["messages"]) == 3


async def test_a_forwarded_turn_is_read_here(speaker: Speaker) -> None:
    _, _, third, token = await begun(speaker, "away")
    for n in range(2):
        done = await speaker.commit(third, "away", f"far {n}", token)
        assert done["served_by"] == "forwarded"
        assert done["stale_turns"] == 0
        token = done.token
        read = await speaker.turns(third, "away", token)
        assert read["served_by"] == "replica"
        assert read["messages"][-1]["content"] == f"far {n}"
        token = read.token


async def test_a_session_follows_its_user(speaker: Speaker) -> None:
    _, _, third, token = await begun(speaker, "follow")
    for n in range(3):
        done = await speaker.commit(third, "follow", f"far {n}", token)
        token = done.token

    async def moved() -> bool:
        return bool((await speaker.show(third, "follow"))["home"] == f"{third}-1")

    await speaker.until(moved, "the session did not follow its user")
    done = await speaker.commit(third, "follow", "near", token)
    assert (done["served_by"], done["stale_turns"]) == ("home", 0)
    assert await speaker.one_home("follow") == third
    # A token of the home before is renewed with a round trip, nothing stale.
    old = await speaker.turns("eu", "follow", token)
    assert old["stale_turns"] == 0
    assert len(old["messages"]) >= 4


async def test_turns_that_conflict(speaker: Speaker) -> None:
    _, _, third, old = await begun(speaker, "conflict")
    newer = await speaker.commit("eu", "conflict", "second", old)
    for region in ("eu", third):
        with pytest.raises(Refused, match="TURNCONFLICT") as refused:
            await speaker.commit(region, "conflict", f"late {region}", old)
        assert refused.value.status == 409
        assert refused.value.body["turn"] == 2
    with pytest.raises(Refused, match="TURNCONFLICT"):
        await speaker.commit("eu", "conflict", "late", newer.token, base=1)
    appended = await speaker.commit(third, "conflict", "appended", old, on_conflict="append")
    assert appended["turn"] == 3
    forked = await speaker.commit(third, "conflict", "forked", old, on_conflict="fork")
    assert forked["turn"] == 2
    sid = claims(forked.token)["sid"]
    assert sid != "conflict"
    assert await speaker.texts(third, sid, forked.token) == ["conflict 1", "forked"]
    again = await speaker.commit(third, "conflict", "forked", old, on_conflict="fork")
    assert (claims(again.token)["sid"], again["turn"]) == (sid, 2)
    assert len(await speaker.texts("eu", "conflict")) == 3


async def test_a_repeated_turn_is_committed_once(speaker: Speaker) -> None:
    _, standby, third, token = await begun(speaker, "repeat")
    first = await speaker.commit("eu", "repeat", "again", token)
    for region in ("eu", standby, third):
        answers = await asyncio.gather(
            *(speaker.commit(region, "repeat", "again", token) for _ in range(3))
        )
        assert {answer["turn"] for answer in answers} == {first["turn"]} == {2}
    assert await speaker.texts("eu", "repeat") == ["repeat 1", "again"]


async def test_a_fork_goes_its_own_way(speaker: Speaker) -> None:
    _, _, third, token = await begun(speaker, "forks", 3)
    answer = await speaker.ask(third, "POST", "/v1/sessions/forks/fork", {"at": 2}, token)
    sid = answer["sid"]
    await speaker.commit("us", sid, "other", answer.token)
    assert await speaker.texts("ap", sid) == ["forks 1", "forks 2", "other"]
    assert await speaker.texts("ap", "forks") == ["forks 1", "forks 2", "forks 3"]


async def test_an_erased_session_is_gone_everywhere(speaker: Speaker) -> None:
    _, _, third, token = await begun(speaker, "erase", 2)
    read = await speaker.turns(third, "erase", token)
    done = await speaker.ask(third, "DELETE", "/v1/sessions/erase", token=read.token)
    receipts = {receipt["node"]: receipt for receipt in done["receipts"]}
    assert receipts.keys() == {f"{name}-1" for name in NAMES}
    assert all(receipt["erased_ms"] > 0 for receipt in receipts.values())
    assert sum(receipt["held"] for receipt in receipts.values()) == 2
    for region in NAMES:
        for shown in (token, None):
            with pytest.raises(Refused, match="NOSESSION"):
                await speaker.turns(region, "erase", shown)
        with pytest.raises(Refused, match="NOSESSION"):
            await speaker.commit(region, "erase", "more", token)
        with pytest.raises(Refused, match="NOSESSION"):
            await speaker.open(region, "erase")


async def test_two_first_contacts_become_one_session(speaker: Speaker) -> None:
    for round_ in range(4):
        sid = f"contact-{round_}"
        opened = await asyncio.gather(*(speaker.open(name, sid) for name in ("eu", "us")))
        texts = [f"{sid} from {name}" for name in ("eu", "us")]
        await asyncio.gather(
            *(
                speaker.commit(name, sid, text, answer.token, on_conflict="append")
                for name, text, answer in zip(("eu", "us"), texts, opened, strict=True)
            )
        )
        home = await speaker.one_home(sid)

        async def both(home: str = home, sid: str = sid, texts: list[str] = texts) -> bool:
            return sorted(await speaker.held(home, sid)) == texts

        await speaker.until(both, "a turn of a first contact is lost or doubled")


async def test_tokens_that_are_not_good(speaker: Speaker) -> None:
    _, _, third, token = await begun(speaker, "tokens")
    assert token is not None
    head, payload, signature = token.split(".")
    other = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    other["epoch"] += 5
    forged = base64.urlsafe_b64encode(json.dumps(other).encode()).decode().rstrip("=")
    unknown = base64.urlsafe_b64encode(b'{"alg":"EdDSA","kid":"nobody"}').decode().rstrip("=")
    none = base64.urlsafe_b64encode(b'{"alg":"none"}').decode().rstrip("=")
    other_end = "AAAA" if signature[-4:-1] != "AAA" else "BBBA"
    bad = [
        f"{head}.{forged}.{signature}",
        f"{head}.{payload}.{signature[:-4]}{other_end}",
        f"{unknown}.{payload}.{signature}",
        f"{none}.{payload}.",
        "nonsense",
    ]
    for region in ("eu", third):
        for value in bad:
            with pytest.raises(Refused, match="BADTOKEN") as refused:
                await speaker.turns(region, "tokens", value)
            assert refused.value.status == 401
    with pytest.raises(Refused, match="BADREQUEST"):
        await speaker.turns("eu", "other-sid", token)
    assert await speaker.texts(third, "tokens") == ["tokens 1"]  # no token: located
    with pytest.raises(Refused, match="NOSESSION") as gone:
        await speaker.turns(third, "never-opened")
    assert gone.value.status == 404


async def test_what_is_too_large_is_refused_and_changes_nothing(speaker: Speaker) -> None:
    _, _, third, token = await begun(speaker, "large")
    for region in ("eu", third):
        with pytest.raises((Refused, httpx.NetworkError, httpx.RemoteProtocolError)) as refused:
            await speaker.commit(region, "large", "x" * (17 << 20), token)
        if isinstance(refused.value, Refused):
            assert refused.value.status == 413
        with pytest.raises(Refused, match="TOOLARGE"):
            await speaker.commit(region, "large", "x" * (9 << 20), token, turn_id="large")
    big = await speaker.commit(third, "large", "y" * (7 << 20), token, turn_id="fits")
    assert big["turn"] == 2
    assert len((await speaker.texts(third, "large", big.token))[1]) == 7 << 20
    await speaker.linked()


async def test_a_tool_call_steps_once_from_anywhere(speaker: Speaker) -> None:
    _, _, third, token = await begun(speaker, "calls")
    assert (await speaker.call(third, "calls", "c1", "begun", token))["status"] == "fresh"
    assert (await speaker.call("eu", "calls", "c1", "begun", token))["status"] == "begun"
    done = await speaker.call(third, "calls", "c1", "finished", token, result={"n": 1.50})
    assert done["status"] == "finished"
    seen = await speaker.call("eu", "calls", "c1", "begun", token)
    assert (seen["status"], seen["result"]) == ("finished", {"n": 1.5})
    with pytest.raises(Refused, match="CALLCONFLICT"):
        await speaker.call("eu", "calls", "c1", "begun", token, args={"q": 2})


def claims(token: str | None) -> dict[str, object]:
    assert token is not None
    payload = token.split(".")[1]
    found: dict[str, object] = json.loads(
        base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
    )
    return found
