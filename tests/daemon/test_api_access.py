"""Who may do what, on both faces of a node with credentials."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import hiredis
import httpx
import pytest
import pytest_asyncio
from api_node import CREDENTIALS, Client, Served, served

from roostd.credentials import Credentials

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with served(tmp_path_factory.mktemp("access"), credentials=CREDENTIALS) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(node: Served) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=node.url, timeout=60) as client:
        yield client


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


async def logged_in(node: Served, *login: str) -> Client:
    client = await node.client()
    assert await client.do("AUTH", *login) == b"OK"
    return client


def refusal(reply: Any) -> str:
    assert isinstance(reply, hiredis.ReplyError), reply
    return str(reply)


async def test_nothing_without_a_secret(node: Served) -> None:
    client = await node.client()
    for args in (("GET", "str:a"), ("PING",), ("ROOST.STATUS",), ("INFO",), ("MULTI",)):
        assert refusal(await client.do(*args)) == "NOAUTH Authentication required."
    assert refusal(await client.do("HELLO", 3)).startswith("NOAUTH HELLO must be called with")
    wrong = "WRONGPASS invalid username-password pair or user is disabled."
    assert refusal(await client.do("AUTH", "nonsense")) == wrong
    assert refusal(await client.do("AUTH", "root", "reader-secret")) == wrong
    answer = await (await node.client()).raw(b"*1\r\n$20000\r\n")
    assert answer == b"-ERR Protocol error: unauthenticated bulk length\r\n"


async def test_ways_to_log_in(node: Served) -> None:
    for args in (
        ("AUTH", "root-secret"),
        ("AUTH", "root", "root-secret"),
        ("HELLO", "3", "AUTH", "default", "root-secret", "SETNAME", "me"),
    ):
        client = await node.client()
        assert not isinstance(await client.do(*args), hiredis.ReplyError)
        assert await client.do("SET", "str:login", "1") == b"OK"
        await client.do("RESET")
        assert refusal(await client.do("GET", "str:login")).startswith("NOAUTH")


async def test_a_pipeline_may_begin_with_auth(node: Served) -> None:
    client = await node.client()
    replies = await client.pipeline(
        ("AUTH", "root-secret"), ("SET", "str:pipe", "x" * 20_000), ("STRLEN", "str:pipe")
    )
    assert replies == [b"OK", b"OK", 20_000]


async def test_rights_and_keys(node: Served) -> None:
    reader = await logged_in(node, "reader-secret")
    assert await reader.do("GET", "str:a") is None
    denied = "NOPERM No permissions to access a key"
    assert refusal(await reader.do("SET", "str:a", "1")) == denied
    assert refusal(await reader.do("GET", "set:a")) == denied
    assert refusal(await reader.do("MGET", "str:a", "set:a")) == denied
    assert refusal(await reader.do("ROOST.GET", "set:a")).startswith("NOPERM")
    assert refusal(await reader.do("ROOST.SET", "str:a", "1")).startswith("NOPERM")
    assert refusal(await reader.do("ROOST.TURNS", "sid")).startswith("NOPERM")
    assert refusal(await reader.do("ROOST.OPEN", "sid")).startswith("NOPERM")
    assert refusal(await reader.do("ROOST.DRAIN")).startswith("NOPERM")
    assert refusal(await reader.do("ROOST.MOVE", "a", "b")).startswith("NOPERM")
    assert refusal(await reader.do("ROOST.QUOTA", "SET", "quota:a", 5)).startswith("NOPERM")
    assert refusal(await reader.do("SUBSCRIBE", "__keyspace@0__:set:a")).startswith("NOPERM")
    root = await logged_in(node, "root-secret")
    await root.do("SADD", "set:seen", "x")
    await root.do("SET", "str:seen", "x")
    assert b"set:seen" not in await reader.do("KEYS", "*")
    assert b"str:seen" in await reader.do("KEYS", "*")
    _, page = await reader.do("SCAN", 0, "COUNT", 1_000)
    assert all(key.startswith((b"str:", b"cnt:")) for key in page)
    assert await reader.do("DBSIZE") < await root.do("DBSIZE")


async def test_sessions_need_a_right_to_their_keys(node: Served) -> None:
    writer = await logged_in(node, "writer-secret")
    opened = await writer.do("ROOST.OPEN", "mine")
    token = opened[3]
    turn = await writer.do("ROOST.TURN", token, '{"messages":[{"a":1}]}')
    assert not isinstance(turn, hiredis.ReplyError)
    put = '{"messages":[],"put":{"kv_cache_index":{"a":1}},"on_conflict":"append"}'
    assert refusal(await writer.do("ROOST.TURN", "mine", put)).startswith("NOPERM")
    call = '{"call":"c","status":"begun","tool":"t","args":{}}'
    assert refusal(await writer.do("ROOST.CALL", "mine", call)).startswith("NOPERM")


async def test_a_prefix_is_put_before_each_key(node: Served) -> None:
    client = await logged_in(node, "litellm-secret")
    assert await client.do("SET", "a", "1") == b"OK"
    assert await client.do("MSET", "b", "2", "c", "3") == b"OK"
    assert sorted(await client.do("KEYS", "*")) == [b"a", b"b", b"c"]
    assert await client.do("ROOST.KEYS", "*", "a", 10) == [b"b", b"c"]
    await client.do("SUBSCRIBE", "__keyspace@0__:a")
    root = await logged_in(node, "root-secret")
    assert await root.do("GET", "litellm:a") == b"1"
    await root.do("SET", "litellm:a", "2")
    assert await client.reply() == [b"message", b"__keyspace@0__:a", b"set"]


async def test_http_says_401_and_403(http: httpx.AsyncClient) -> None:
    answer = await http.get("/v1/keys/str:a")
    assert answer.status_code == 401
    assert answer.json()["code"] == "NOAUTH"
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert (await http.get("/v1/keys/str:a", headers=bearer("nonsense"))).status_code == 401
    basic = await http.get("/v1/keys/str:a", headers={"authorization": "Basic eDp5"})
    assert basic.status_code == 401
    assert (await http.get("/v1/keys/str:a", headers=bearer("reader-secret"))).status_code == 200
    denied = await http.put("/v1/keys/str:a", json={"value": 1}, headers=bearer("reader-secret"))
    assert denied.status_code == 403
    assert denied.json()["code"] == "NOPERM"
    limit = await http.put("/v1/quotas/quota:a", json={"limit": 1}, headers=bearer("writer-secret"))
    assert limit.status_code == 403
    for path in ("/livez", "/readyz", "/openapi.json", "/docs", "/"):
        assert (await http.get(path)).status_code == 200
    for path in ("/metrics", "/v1/cluster", "/v1/policies", "/v1/watch", "/v1/sessions"):
        assert (await http.get(path)).status_code == 401, path


async def test_http_prefix(http: httpx.AsyncClient) -> None:
    headers = bearer("litellm-secret")
    put = await http.put("/v1/keys/h", json={"value": "x"}, headers=headers)
    assert put.json()["key"] == "h"
    assert "h" in (await http.get("/v1/keys", headers=headers)).json()["keys"]
    whole = await http.get("/v1/keys/litellm:h", headers=bearer("root-secret"))
    assert whole.json()["value"] == "x"


async def test_a_body_is_not_read_before_the_caller_is_known(http: httpx.AsyncClient) -> None:
    answer = await http.put("/v1/keys/str:a", content=b"{", headers=bearer("nonsense"))
    assert answer.status_code == 401


async def test_revoked_credentials_end_their_connections(node: Served) -> None:
    client, root = await logged_in(node, "reader-secret"), await logged_in(node, "root-secret")
    before = node.node.credentials
    kept = Credentials.parse(CREDENTIALS.replace("reader-secret", "x").split("[reader]")[0], "f")
    node.node.credentials = kept
    try:
        node.faces.resp.drop_unknown()
        with pytest.raises((EOFError, ConnectionError)):
            await client.do("PING")
        assert await root.do("PING") == b"PONG"
    finally:
        node.node.credentials = before
