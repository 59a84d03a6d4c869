"""HTTP on a real node: sessions, quotas, what the node says of itself, and watching."""

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
    async with served(tmp_path_factory.mktemp("http2")) as running:
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
        "roost_store_suspect_buckets 0.0",
        "roost_store_mended_buckets 0.0",
        "roost_store_damaged_pairs 0.0",
        "roost_store_damaged 0.0",
        "roost_store_erasing ",
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
        asyncio.timeout(60),
        http.stream("GET", "/v1/watch", params={"prefix": "str:w:"}) as answer,
    ):
        assert answer.headers["content-type"].startswith("text/event-stream")
        stream = events(answer.aiter_lines())
        assert await anext(stream) == ("ready", {})
        await http.put("/v1/keys/str:other", json={"value": 1})
        await http.put("/v1/keys/str:w:1", json={"value": {"a": 1}})
        name, change = await anext(stream)
        first = change.pop("stamp")
        assert (name, change) == ("change", {"key": "str:w:1", "value": {"a": 1}})
        await http.delete("/v1/keys/str:w:1")
        name, change = await anext(stream)
        later = change.pop("stamp")
        assert (name, change) == ("change", {"key": "str:w:1", "value": None})
        assert later[0] > first[0]
        assert later[1] == first[1] == node.node.store.actor
    async with asyncio.timeout(60):
        while node.node._watchers._watchers:
            await asyncio.sleep(0.01)


async def test_watching_what_has_no_changes_is_refused(http: httpx.AsyncClient) -> None:
    for prefix in ("lock:", "quota:a", "conversation_buffer:"):
        answer = await http.get("/v1/watch", params={"prefix": prefix})
        problem(answer, 422, "UNSUPPORTED")
