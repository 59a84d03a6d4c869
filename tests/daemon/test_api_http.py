"""The HTTP face of a real node: every route, headers, and requests that are wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from api_node import Served, served

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with served(tmp_path_factory.mktemp("http")) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(node: Served) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=node.url, timeout=60) as client:
        yield client


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["code"] == code
    assert body["status"] == status
    assert body["type"]
    assert body["title"]
    assert body["detail"]
    return body


# --- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('"hi"', '"hi"'),
        ('{"b": 1.50, "a": [1, 2]}', '{"b":1.50,"a":[1,2]}'),
        ("12345678901234567890", "12345678901234567890"),
        ("1e400", "1e400"),
        ("null", "null"),
        ("false", "false"),
        ('"\\u00e9"', '"é"'),
    ],
)
async def test_values_keep_their_text(http: httpx.AsyncClient, text: str, shown: str) -> None:
    put = await http.put("/v1/keys/str:v", content=f'{{"value": {text}}}')
    assert put.status_code == 200
    assert put.json()["durable"] is True
    assert put.json()["seq"] > 0
    got = await http.get("/v1/keys/str:v")
    assert f'"value":{shown},' in got.text
    assert got.headers["roost-lag-ms"] == "0"


async def test_a_reading(http: httpx.AsyncClient, node: Served) -> None:
    client = await node.client()
    await client.do("SET", "str:r", b"\xff\x00")
    assert (await http.get("/v1/keys/str:r")).json() == {
        "key": "str:r",
        "value": {"base64": "/wA="},
        "consistency": "eventually-global",
        "lag_ms": 0,
        "source": "node",
    }
    gone = await http.delete("/v1/keys/str:r")
    assert gone.json()["value"] is True
    assert (await http.delete("/v1/keys/str:r")).json()["value"] is False
    assert (await http.get("/v1/keys/str:r")).json()["value"] is None


async def test_ttl(http: httpx.AsyncClient, node: Served) -> None:
    await http.put("/v1/keys/str:t", json={"value": 1, "ttl_ms": 60_000})
    await http.put("/v1/keys/set:t", json={"value": ["a"], "ttl_ms": 60_000})
    await http.put("/v1/keys/lock:t", json={"value": "x", "ttl_ms": 60_000})
    client = await node.client()
    for key in ("str:t", "set:t", "lock:t"):
        assert 50_000 < await client.do("PTTL", key) <= 60_000


async def test_keys_of_each_type(http: httpx.AsyncClient) -> None:
    async def value(key: str) -> Any:
        return (await http.get(f"/v1/keys/{key}")).json()["value"]

    assert (await http.patch("/v1/keys/cnt:h", json={"incr": 5})).json()["value"] == 5
    assert (await http.put("/v1/keys/cnt:h", json={"value": 2})).status_code == 200
    assert (await http.patch("/v1/keys/cnt:h", json={"incr": -1.0})).json()["value"] == 1
    assert await value("cnt:h") == 1
    assert (await http.patch("/v1/keys/flt:h", json={"incr": 0.1})).json()["value"] == 0.1
    assert (await http.patch("/v1/keys/flt:h", json={"incr": 0.2})).text.endswith('"value":0.3}')
    assert (await http.patch("/v1/keys/rate:h", json={"incr": 2})).status_code == 200
    await http.put("/v1/keys/set:h", json={"value": ["a", "b", 1, {"x": None}]})
    await http.patch("/v1/keys/set:h", json={"put": ["c"], "drop": ["b", {"x": None}]})
    assert sorted(map(str, await value("set:h"))) == ["1", "a", "c"]
    await http.put("/v1/keys/map:h", json={"value": {"a": 1, "b": "x", "c": [2]}})
    await http.patch("/v1/keys/map:h", json={"put": {"d": None}, "drop": ["b"]})
    assert await value("map:h") == {"a": 1, "c": [2], "d": None}
    await http.put("/v1/keys/map:h", json={"value": {"z": 1}})
    assert await value("map:h") == {"z": 1}
    done = await http.patch("/v1/keys/cmap:h", json={"incr": {"a": 1, "b": 2}})
    assert done.json()["value"] == {"a": 1, "b": 2}
    assert await value("cmap:h") == {"a": 1, "b": 2}
    assert (await http.put("/v1/keys/lcnt:h", json={"value": 5})).status_code == 200
    assert (await http.get("/v1/keys/lcnt:h")).json() == {
        "key": "lcnt:h",
        "value": 5,
        "consistency": "linearizable",
        "lag_ms": 0,
        "source": "consensus",
    }
    assert (await http.put("/v1/keys/lock:h", json={"value": {"a": 1}})).status_code == 200
    assert await value("lock:h") == {"a": 1}
    assert (await http.delete("/v1/keys/lock:h")).json()["value"] is True
    assert (await http.patch("/v1/keys/bill:h", json={"incr": 3})).status_code == 200
    assert sum((await value("bill:h")).values()) == 3
    assert set(await value("quota:h")) >= {"limit", "remaining", "granted_here", "period_ends"}


async def test_odd_keys_in_paths(http: httpx.AsyncClient, node: Served) -> None:
    client = await node.client()
    for path, key in (
        ("str%3Ax%2Fy", b"str:x/y"),
        ("str:a%20b%3Fc", b"str:a b?c"),
        ("str:%FF", b"str:\xff"),
        ("str:%E2%82%AC", "str:€".encode()),
        ("str:a/b/c", b"str:a/b/c"),
    ):
        put = await http.put(f"/v1/keys/{path}", json={"value": path})
        assert put.status_code == 200, path
        assert await client.do("GET", key) == path.encode()
    problem(await http.get("/v1/keys/str:%00"), 400, "BADREQUEST")
    problem(await http.get("/v1/keys/str:" + "x" * 300), 400, "BADREQUEST")


async def test_listing(http: httpx.AsyncClient) -> None:
    for i in range(5):
        await http.put(f"/v1/keys/str:list:{i}", json={"value": i})
    first = (await http.get("/v1/keys", params={"prefix": "str:list:", "limit": 3})).json()
    assert first == {"keys": [f"str:list:{i}" for i in range(3)], "next": "str:list:2"}
    rest = await http.get("/v1/keys", params={"prefix": "str:list:", "after": first["next"]})
    assert rest.json() == {"keys": ["str:list:3", "str:list:4"], "next": None}
    for query in ("limit=0", "limit=x", "limit=-1", "limit=1&limit=2"):
        assert "field" in problem(await http.get(f"/v1/keys?{query}"), 400, "BADREQUEST")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code", "part"),
    [
        ("PUT", "/v1/keys/rate:x", {"value": 1}, 422, "UNSUPPORTED", "incremented"),
        ("PUT", "/v1/keys/quota:x", {"value": 1}, 422, "UNSUPPORTED", "spend"),
        ("PUT", "/v1/keys/conversation_buffer:x", {"value": 1}, 422, "UNSUPPORTED", "turns"),
        ("DELETE", "/v1/keys/conversation_buffer:x", None, 422, "UNSUPPORTED", "ROOST.ERASE"),
        ("PUT", "/v1/keys/cnt:x", {"value": "x"}, 400, "BADREQUEST", "value"),
        ("PUT", "/v1/keys/cnt:x", {"value": 1.5}, 422, "UNSUPPORTED", "float = true"),
        ("PUT", "/v1/keys/set:x", {"value": {"a": 1}}, 400, "BADREQUEST", "list"),
        ("PUT", "/v1/keys/map:x", {"value": []}, 400, "BADREQUEST", "object"),
        ("PUT", "/v1/keys/map:x", {"value": {"f" * 300: 1}}, 400, "BADREQUEST", "255"),
        ("PATCH", "/v1/keys/str:x", {"incr": 1}, 422, "UNSUPPORTED", "counter"),
        ("PATCH", "/v1/keys/str:x", {"put": {"a": 1}}, 422, "UNSUPPORTED", "sets and maps"),
        ("PATCH", "/v1/keys/map:x", {"incr": {"a": 1}}, 422, "UNSUPPORTED", "counter"),
        ("PATCH", "/v1/keys/cmap:x", {"put": {"a": 1}}, 422, "UNSUPPORTED", "HINCRBY"),
        ("PATCH", "/v1/keys/cnt:x", {"incr": 1 << 70}, 400, "BADREQUEST", "range"),
        ("PATCH", "/v1/keys/cnt:x", {}, 400, "BADREQUEST", "incr"),
        ("PATCH", "/v1/keys/cnt:x", {"incr": 1, "put": []}, 400, "BADREQUEST", "either"),
        ("PATCH", "/v1/keys/bill:x", {"incr": -1}, 400, "BADREQUEST", "counts up"),
        ("PUT", "/v1/keys/nothing", {"value": 1}, 404, "NOPOLICY", "conversation_buffer"),
        ("POST", "/v1/quotas/str:x/spend", {"n": 1}, 422, "UNSUPPORTED", "quota"),
        ("GET", "/v1/nothing", None, 404, "BADREQUEST", "/docs"),
        ("DELETE", "/livez", None, 405, "BADREQUEST", "DELETE"),
    ],
)
async def test_refusals(
    http: httpx.AsyncClient,
    method: str,
    path: str,
    body: Any,
    status: int,
    code: str,
    part: str,
) -> None:
    answer = await http.request(method, path, json=body)
    assert part in problem(answer, status, code)["detail"]


async def test_a_refused_put_changes_nothing(http: httpx.AsyncClient) -> None:
    await http.put("/v1/keys/map:keep", json={"value": {"a": 1}})
    await http.put("/v1/keys/map:keep", json={"value": {"b": 1, "f" * 300: 1}})
    assert (await http.get("/v1/keys/map:keep")).json()["value"] == {"a": 1}
    most = (1 << 63) - 1
    await http.patch("/v1/keys/cmap:keep", json={"incr": {"a": most}})
    await http.patch("/v1/keys/cmap:keep", json={"incr": {"b": 1, "a": 1}})
    assert (await http.get("/v1/keys/cmap:keep")).json()["value"] == {"a": most}


# --- bad bodies -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "field"),
    [
        (b'{"value": NaN}', "value"),
        (b'{"value": Infinity}', "value"),
        (b'{"value": 1, "value": 2}', "value"),
        (b'{"value": {"a": {"b": 1, "b": 2}}}', "b"),
        (b'{"value": 1, "tll_ms": 2}', "tll_ms"),
        (b'{"value": 1, "ttl_ms": "2"}', "ttl_ms"),
        (b'{"value": 1, "ttl_ms": 0}', "ttl_ms"),
        (b'{"value": 1, "ttl_ms": 1.5}', "ttl_ms"),
        (b'{"value": 1, "ttl_ms": true}', "ttl_ms"),
        (b'{"value": 1, "ttl_ms": 99999999999999999999999}', "ttl_ms"),
        (b'{"value": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "value"),
        (b'{"value": ' + b'{"a":' * 100 + b"1" + b"}" * 100 + b"}", "a"),
        (b'{"value": "\xff"}', "value"),
        (b'{"ttl_ms": 5}', "value"),
        (b'{"value": 1,}', "value"),
        (b"", "body"),
        (b'{"value": "\\ud800"}', None),
        (b"[]", None),
        (b"null", None),
        (b"{", None),
        (b"[" * 100_000, None),
        (b'{"value": 1} x', None),
    ],
)
async def test_bad_bodies_name_the_field(
    http: httpx.AsyncClient, content: bytes, field: str | None
) -> None:
    body = problem(await http.put("/v1/keys/str:bad", content=content), 400, "BADREQUEST")
    if field is not None:
        assert body["field"] == field, body
    assert (await http.get("/v1/keys/str:bad")).json()["value"] is None


async def test_a_body_over_the_bound_is_not_read(
    http: httpx.AsyncClient, node: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = node.node.limits.body_bytes_max
    reader, writer = await asyncio.open_connection("127.0.0.1", node.http)
    head = f"PUT /v1/keys/str:x HTTP/1.1\r\nHost: x\r\nContent-Length: {bound + 1}\r\n\r\n"
    writer.write(head.encode())
    async with asyncio.timeout(60):
        answer = await reader.read(-1)  # the node closes: nothing more is waited for
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"code":"TOOLARGE"' in answer
    writer.close()

    monkeypatch.setattr("roostd.api.http.server.LINGER_S", 60.0)

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(bound // (1 << 20) + 8):
            yield b" " * (1 << 20)

    problem(await http.put("/v1/keys/str:x", content=endless()), 413, "TOOLARGE")


async def test_values_over_their_bound(http: httpx.AsyncClient, node: Served) -> None:
    big = "x" * (node.node.limits.value_bytes_max + 100)
    problem(await http.put("/v1/keys/str:x", json={"value": big}), 413, "TOOLARGE")
    turn = {"messages": [{"content": big}]}
    problem(await http.post("/v1/sessions/big/turns", json=turn), 413, "TOOLARGE")


@pytest.mark.parametrize(
    "raw",
    [
        (
            b"POST /v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        ),
        b"POST /v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"GET /v1/cluster\r\n\r\nnonsense\r\n\r\n",
        b"*1\r\n$4\r\nPING\r\n",
    ],
)
async def test_framing_faults_close(node: Served, raw: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", node.http)
    writer.write(raw)
    async with asyncio.timeout(60):
        answer = await reader.read(-1)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"code":"BADREQUEST"' in answer
    writer.close()


async def test_foreign_origins_and_climbing_paths(http: httpx.AsyncClient, node: Served) -> None:
    for origin in ("https://evil.example", "null", "http://localhost:1"):
        problem(await http.get("/v1/keys/str:x", headers={"origin": origin}), 403, "NOPERM")
    rebound = {"origin": "http://evil.example", "host": "evil.example"}
    problem(await http.get("/v1/keys/str:x", headers=rebound), 403, "NOPERM")
    for origin in (node.url, "https://eu.example"):
        answer = await http.get("/v1/keys/str:x", headers={"origin": origin})
        assert answer.status_code == 200
    for path in ("/v1/keys/..%2fx", "/v1/sessions/..%2f..%2fetc", "/v1/keys/%2e%2e/x"):
        problem(await http.get(httpx.URL(node.url, raw_path=path.encode())), 400, "BADREQUEST")
