"""The HTTP face of a real node: every route, headers, and requests that are wrong."""

from __future__ import annotations

import asyncio
import json
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
    async with httpx.AsyncClient(base_url=node.url, timeout=20) as client:
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


async def test_a_body_over_the_bound_is_not_read(http: httpx.AsyncClient, node: Served) -> None:
    bound = node.node.limits.body_bytes_max
    reader, writer = await asyncio.open_connection("127.0.0.1", node.http)
    head = f"PUT /v1/keys/str:x HTTP/1.1\r\nHost: x\r\nContent-Length: {bound + 1}\r\n\r\n"
    writer.write(head.encode())
    async with asyncio.timeout(5):
        answer = await reader.read(-1)  # the node closes: nothing more is waited for
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"code":"TOOLARGE"' in answer
    writer.close()

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
    async with asyncio.timeout(5):
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


# --- sessions -------------------------------------------------------------------------------------


async def test_a_session_from_open_to_erase(http: httpx.AsyncClient) -> None:
    opened = await http.post("/v1/sessions")
    assert opened.status_code == 201
    assert set(opened.json()) == {"sid", "token", "home", "standby", "epoch", "turn"}
    sid, token = opened.json()["sid"], opened.json()["token"]
    assert opened.headers["roost-token"] == token
    assert opened.headers["roost-home"] == 'eu-1;url="https://eu.example"'
    again = await http.post("/v1/sessions", json={"sid": sid})
    assert again.status_code == 200
    message = '{"z":1,"role":"user","content":"hé","n":1.50,"big":12345678901234567890}'
    body = f'{{"messages":[{message}],"turn_id":"t1","put":{{"kv_cache_index":{{"h":[1]}}}}}}'
    headers = {"roost-token": token}
    turn = await http.post(f"/v1/sessions/{sid}/turns", content=body.encode(), headers=headers)
    assert turn.status_code == 200
    assert set(turn.json()) == {"token", "turn", "stale_turns", "protected", "served_by"}
    assert turn.headers["roost-stale-turns"] == "0"
    assert turn.headers["roost-served-by"] == "home"
    repeated = await http.post(f"/v1/sessions/{sid}/turns", content=body.encode(), headers=headers)
    assert repeated.json()["turn"] == turn.json()["turn"] == 1
    read = await http.get(f"/v1/sessions/{sid}/turns", params={"last": 1})
    assert f'"messages":[{message}]' in read.text
    assert {k: read.json()[k] for k in ("turn", "stale_turns", "served_by")} == {
        "turn": 1,
        "stale_turns": 0,
        "served_by": "home",
    }
    assert "roost-token" in read.headers
    view = (await http.get(f"/v1/sessions/{sid}")).json()
    assert set(view) >= {
        "sid",
        "home",
        "standby",
        "epoch",
        "turn",
        "protected",
        "stale_turns",
        "served_by",
        "fields",
        "calls",
        "reconciled",
    }
    assert view["fields"] == {"kv_cache_index": {"h": [1]}}
    key = (await http.get(f"/v1/keys/conversation_buffer:{sid}")).json()
    assert key["value"][0]["role"] == "user"
    assert key["consistency"] == "session-local"
    forked = await http.post(f"/v1/sessions/{sid}/fork")
    assert forked.status_code == 201
    assert forked.json()["sid"] != sid
    erased = await http.delete(f"/v1/sessions/{sid}")
    assert erased.json()["receipts"]
    problem(await http.get(f"/v1/sessions/{sid}/turns"), 404, "NOSESSION")
    listed = (await http.get("/v1/sessions")).json()
    assert forked.json()["sid"] in json.dumps(listed)


async def test_conflicts_carry_the_current_turn(http: httpx.AsyncClient) -> None:
    await http.post("/v1/sessions", json={"sid": "cf"})
    turns = "/v1/sessions/cf/turns"
    await http.post(turns, json={"messages": [{"a": 1}]})
    stale = {"messages": [{"a": 2}], "base": 0}
    assert problem(await http.post(turns, json=stale), 409, "TURNCONFLICT")["turn"] == 1
    appended = await http.post(turns, json={**stale, "on_conflict": "append"})
    assert appended.json()["turn"] == 2
    header = {"idempotency-key": "once"}
    one = await http.post(turns, json={"messages": [{"a": 3}]}, headers=header)
    two = await http.post(turns, json={"messages": [{"a": 3}]}, headers=header)
    assert one.json()["turn"] == two.json()["turn"] == 3


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"messages": [1]}, "messages[0]"),
        ({"messages": [{}, "x"]}, "messages[1]"),
        ({"messages": {}}, "messages"),
        ({}, "messages"),
        ({"messages": [], "base": -1}, "base"),
        ({"messages": [], "on_conflict": "merge"}, "on_conflict"),
        ({"messages": [], "turn_id": ""}, "turn_id"),
        ({"messages": [], "put": {"kv_cache_index": 1}}, "put[...]"),
        ({"messages": [], "extra": 1}, "extra"),
    ],
)
async def test_bad_turns(http: httpx.AsyncClient, body: Any, field: str) -> None:
    await http.post("/v1/sessions", json={"sid": "bad"})
    answer = await http.post("/v1/sessions/bad/turns", json=body)
    assert problem(answer, 400, "BADREQUEST")["field"] == field
    assert (await http.get("/v1/sessions/bad")).json()["turn"] == 0


async def test_a_turn_writes_only_session_maps(http: httpx.AsyncClient) -> None:
    await http.post("/v1/sessions", json={"sid": "put"})
    for name in ("str", "nothing", "conversation_buffer"):
        body = {"messages": [], "put": {name: {"a": 1}}}
        answer = problem(await http.post("/v1/sessions/put/turns", json=body), 422, "UNSUPPORTED")
        assert "kv_cache_index" in answer["detail"]


async def test_calls(http: httpx.AsyncClient) -> None:
    await http.post("/v1/sessions", json={"sid": "calls"})
    path = "/v1/sessions/calls/calls/c1"
    begun = {"status": "begun", "tool": "t", "args": {"a": 1}}
    once = {"idempotency-key": "k"}
    first = await http.put(path, json=begun, headers=once)
    assert first.json() == {"status": "fresh"}
    assert (await http.put(path, json=begun, headers=once)).json() == {"status": "fresh"}
    assert (await http.put(path, json=begun)).json() == {"status": "begun"}
    other = {**begun, "tool": "u"}
    problem(await http.put(path, json=other), 409, "CALLCONFLICT")
    problem(await http.put(path, json=other, headers=once), 400, "BADREQUEST")
    ended = b'{"status":"finished","tool":"t","args":{"a":1},"result":{"x":1.50}}'
    assert '"result":{"x":1.50}' in (await http.put(path, content=ended)).text
    assert (await http.put(path, json=begun)).json() == {"status": "finished", "result": {"x": 1.5}}
    failed = "/v1/sessions/calls/calls/c2"
    await http.put(failed, json=begun)
    down = await http.put(failed, json={**begun, "status": "failed", "result": "no"})
    assert down.json()["status"] == "failed"
    problem(await http.put(path, json={"status": "begun"}), 400, "BADREQUEST")
    problem(await http.put(path, json={"status": "done", "tool": "t"}), 400, "BADREQUEST")


@pytest.mark.parametrize(
    "token", ["x", "a.b.c", "eyJhbGciOiJub25lIn0.eyJzaWQiOiJ4In0.", "x" * 5_000]
)
async def test_bad_tokens(http: httpx.AsyncClient, token: str) -> None:
    await http.post("/v1/sessions", json={"sid": "tok"})
    answer = await http.get("/v1/sessions/tok/turns", headers={"roost-token": token})
    problem(answer, 401, "BADTOKEN")


async def test_idempotency_keys_are_checked(http: httpx.AsyncClient) -> None:
    for key in ("", "x" * 200, "a\tb"):
        answer = await http.patch(
            "/v1/keys/lcnt:idem", json={"incr": 1}, headers={"idempotency-key": key}
        )
        assert problem(answer, 400, "BADREQUEST")["field"] == "Idempotency-Key"
    for _ in range(3):
        answer = await http.patch(
            "/v1/keys/lcnt:idem", json={"incr": 1}, headers={"idempotency-key": "one"}
        )
        assert answer.json()["value"] == 1


# --- quotas ---------------------------------------------------------------------------------------


async def test_quotas(http: httpx.AsyncClient) -> None:
    spend = "/v1/quotas/quota:q/spend"
    once = {"idempotency-key": "s1"}
    first = await http.post(spend, json={"n": 10}, headers=once)
    assert set(first.json()) == {"remaining_local", "granted"}
    await http.post(spend, json={"n": 10}, headers=once)
    held = await http.post("/v1/quotas/quota:q/reservations", json={"n": 20, "ttl_ms": 60_000})
    assert held.status_code == 201
    place = f"/v1/reservations/{held.json()['id']}"
    assert (await http.post(f"{place}/settle", json={"used": 5})).status_code == 200
    other = await http.post("/v1/quotas/quota:q/reservations", json={"n": 20, "ttl_ms": 60_000})
    released = await http.post(f"/v1/reservations/{other.json()['id']}/release")
    assert released.status_code == 200
    shown = (await http.get("/v1/quotas/quota:q")).json()
    assert shown["limit"] == 100
    exhausted = await http.post(spend, json={"n": 1_000})
    body = problem(exhausted, 429, "EXHAUSTED")
    assert int(exhausted.headers["retry-after"]) >= 1 or "period_ends" in body
    assert (await http.put("/v1/quotas/quota:q", json={"limit": 5_000})).json()["limit"] == 5_000
    assert (await http.post(spend, json={"n": 1_000})).status_code == 200
    for body in ({}, {"n": 0}, {"n": -1}, {"n": 1.5}, {"n": "1"}):
        assert problem(await http.post(spend, json=body), 400, "BADREQUEST")["field"] == "n"
    meter = await http.post("/v1/quotas/bill:q/spend", json={"n": 3})
    assert sum(meter.json().values()) == 3


# --- the node -------------------------------------------------------------------------------------


async def test_cluster_policies_probes(http: httpx.AsyncClient) -> None:
    cluster = (await http.get("/v1/cluster")).json()
    assert set(cluster) >= {
        "node",
        "region",
        "cluster",
        "actor",
        "converged",
        "digest",
        "version_vector",
        "links",
        "members",
        "consensus",
        "store",
        "sessions",
    }
    policies = (await http.get("/v1/policies")).json()["policies"]
    assert {p["name"]: p["consistency"] for p in policies}["lock"] == "linearizable"
    one = (await http.get("/v1/policies", params={"key": "short:x"})).json()
    assert one["ttl_ms"] == 3_600_000
    assert "short:x" in one["explain"]
    problem(await http.get("/v1/policies", params={"key": "nothing"}), 404, "NOPOLICY")
    assert (await http.get("/livez")).status_code == 200
    assert (await http.get("/readyz")).status_code == 200


async def test_metrics(http: httpx.AsyncClient, node: Served) -> None:
    client = await node.client()
    await client.do("GET", "str:metrics")
    await client.do("GET", "nothing")
    text = (await http.get("/metrics")).text
    for line in (
        'roost_resp_commands_total{command="GET"}',
        'roost_resp_refusals_total{command="GET"}',
        'roost_face_errors_total{code="NOPOLICY"}',
        "roost_resp_latency_seconds_bucket",
        'roost_http_requests_total{method="GET",route="/livez",status="200"}',
        "roost_resp_connections ",
        "roost_store_seq",
    ):
        assert line in text, line


async def test_pages_load_nothing_from_elsewhere(http: httpx.AsyncClient) -> None:
    for path in ("/", "/docs"):
        page = await http.get(path)
        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/html")
        assert "http://" not in page.text.replace("http://www.w3.org", "")
        assert "https://" not in page.text
        assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "/v1/sessions/{sid}/turns" in (await http.get("/docs")).text


async def test_openapi(http: httpx.AsyncClient) -> None:
    document = (await http.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    schemas = document["components"]["schemas"]
    operations = [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    ids = [operation["operationId"] for _, _, operation in operations]
    assert len(ids) == len(set(ids))
    for path, _, operation in operations:
        named = {p["name"] for p in operation["parameters"] if p["in"] == "path"}
        assert named == {part[1:-1] for part in path.split("/") if part.startswith("{")}
        assert set(operation["responses"]) & {"200", "201"}

    def references(value: Any) -> list[str]:
        if isinstance(value, dict):
            own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
            return own + [ref for part in value.values() for ref in references(part)]
        if isinstance(value, list):
            return [ref for part in value for ref in references(part)]
        return []

    for reference in references(document):
        assert reference.removeprefix("#/components/schemas/") in schemas
    contract = """
        post /v1/sessions, get /v1/sessions/{sid}, get /v1/sessions/{sid}/turns,
        post /v1/sessions/{sid}/turns, put /v1/sessions/{sid}/calls/{call},
        post /v1/sessions/{sid}/fork, delete /v1/sessions/{sid}, get /v1/keys/{key},
        put /v1/keys/{key}, patch /v1/keys/{key}, delete /v1/keys/{key}, get /v1/keys,
        get /v1/watch, post /v1/quotas/{key}/spend, post /v1/quotas/{key}/reservations,
        post /v1/reservations/{id}/settle, get /v1/quotas/{key}, get /v1/policies,
        get /v1/cluster, get /livez, get /readyz, get /metrics"""
    known = {f"{method} {path}" for path, method, _ in operations}
    assert {line.strip() for line in contract.split(",")} <= known


# --- watch ----------------------------------------------------------------------------------------


async def events(lines: AsyncIterator[str]) -> AsyncIterator[tuple[str, Any]]:
    name = ""
    async for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


async def test_watch(http: httpx.AsyncClient, node: Served) -> None:
    async with (
        asyncio.timeout(10),
        http.stream("GET", "/v1/watch", params={"prefix": "str:w:"}) as answer,
    ):
        assert answer.headers["content-type"].startswith("text/event-stream")
        stream = events(answer.aiter_lines())
        assert await anext(stream) == ("ready", {})
        await http.put("/v1/keys/str:other", json={"value": 1})
        await http.put("/v1/keys/str:w:1", json={"value": {"a": 1}})
        assert await anext(stream) == ("change", {"key": "str:w:1", "value": {"a": 1}})
        await http.delete("/v1/keys/str:w:1")
        assert await anext(stream) == ("change", {"key": "str:w:1", "value": None})
    async with asyncio.timeout(5):
        while node.node._watchers._watchers:
            await asyncio.sleep(0.01)
