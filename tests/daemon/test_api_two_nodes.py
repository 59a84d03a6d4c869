"""The faces of two linked nodes: what one is told shows at the other, and who is home."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from api_node import Served, served
from ports import free_port

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[tuple[Served, Served]]:
    place = tmp_path_factory.mktemp("pair")
    ports = {"eu-1": free_port(), "us-1": free_port()}

    def neighbour(name: str) -> str:
        return f'[[neighbour]]\nid = "{name}"\nurl = "ws://127.0.0.1:{ports[name]}"\n'

    async with (
        served(place / "eu", extra=neighbour("us-1"), gossip=ports["eu-1"]) as eu,
        served(place / "us", extra=neighbour("eu-1"), name="us-1", gossip=ports["us-1"]) as us,
    ):
        async with asyncio.timeout(60):
            while not all(
                link["state"] == "up"
                for node in (eu, us)
                for link in node.node.cluster()["links"] or [{"state": "none"}]
            ):
                await asyncio.sleep(0.05)
        yield eu, us


async def until(check: Any, wanted: Any) -> None:
    async with asyncio.timeout(60):
        while (found := await check()) != wanted:
            await asyncio.sleep(0.02)
    assert found == wanted


async def test_wait_counts_neighbours_that_hold_it(pair: tuple[Served, Served]) -> None:
    eu, us = await pair[0].client(), await pair[1].client()
    await eu.do("SET", "str:wait", "1")
    assert await eu.do("WAIT", 1, 5_000) == 1
    assert await us.do("GET", "str:wait") == b"1"
    assert await eu.do("WAIT", 2, 50) == 1


async def test_counters_add_up(pair: tuple[Served, Served]) -> None:
    eu, us = await pair[0].client(), await pair[1].client()
    await asyncio.gather(eu.do("INCRBY", "cnt:sum", 5), us.do("INCRBY", "cnt:sum", 7))
    await until(lambda: eu.do("GET", "cnt:sum"), b"12")
    await until(lambda: us.do("GET", "cnt:sum"), b"12")


async def test_changes_of_a_neighbour_are_told(pair: tuple[Served, Served]) -> None:
    eu, us = await pair[0].client(), await pair[1].client(resp3=True)
    await us.do("PSUBSCRIBE", "__keyspace@0__:str:told:*")
    async with (
        httpx.AsyncClient(base_url=pair[1].url, timeout=60) as http,
        http.stream("GET", "/v1/watch", params={"prefix": "str:told:"}) as answer,
    ):
        lines = answer.aiter_lines()
        while await anext(lines) != "event: ready":
            pass
        await eu.do("SET", "str:told:1", "x")
        pushed = await us.reply()
        assert pushed[-2:] == [b"__keyspace@0__:str:told:1", b"set"]
        async with asyncio.timeout(60):
            while (line := await anext(lines)) != "event: change":
                pass
            line = await anext(lines)
        told = json.loads(line.removeprefix("data: "))
        assert told.pop("stamp")[1] == pair[0].node.store.actor
        assert told == {"key": "str:told:1", "value": "x"}


async def test_a_session_follows_its_token_to_the_other_node(
    pair: tuple[Served, Served],
) -> None:
    async with (
        httpx.AsyncClient(base_url=pair[0].url, timeout=60) as eu,
        httpx.AsyncClient(base_url=pair[1].url, timeout=60) as us,
    ):
        opened = (await eu.post("/v1/sessions", json={"sid": "moved"})).json()
        turns = "/v1/sessions/moved/turns"
        first = await eu.post(
            turns, json={"messages": [{"a": 1}]}, headers={"roost-token": opened["token"]}
        )
        token = {"roost-token": first.headers["roost-token"]}
        read = await us.get(turns, headers=token)
        assert read.json()["messages"] == [{"a": 1}]
        assert read.json()["stale_turns"] == 0
        assert read.headers["roost-served-by"] in ("replica", "forwarded")
        assert read.headers["roost-home"] == 'eu-1;url="https://eu.example"'
        second = await us.post(turns, json={"messages": [{"a": 2}]}, headers=token)
        assert second.status_code == 200, second.text
        assert second.json()["turn"] == 2
        moved = await eu.post("/v1/sessions/moved/move", json={"node": "us-1"})
        assert moved.status_code == 200, moved.text
        home = await eu.get("/v1/sessions/moved", headers={"roost-token": second.json()["token"]})
        assert home.json()["home"] == "us-1"
        assert home.json()["stale_turns"] == 0


async def test_a_lost_session_names_itself(pair: tuple[Served, Served]) -> None:
    async with httpx.AsyncClient(base_url=pair[1].url, timeout=60) as us:
        answer = await us.get("/v1/sessions/nobody/turns")
        assert answer.status_code == 404
        assert answer.json()["code"] == "NOSESSION"
