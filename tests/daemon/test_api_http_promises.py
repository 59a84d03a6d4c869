"""What HTTP promises beside its answers' bodies: headers, methods, the OpenAPI document."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from api_node import Served, served

import roost
from roostd.store.suspects import ALL

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with served(tmp_path_factory.mktemp("promises")) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(node: Served) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=node.url, timeout=60) as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def described(http: httpx.AsyncClient) -> dict[str, Any]:
    document: dict[str, Any] = (await http.get("/openapi.json")).json()
    return document


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/keys/str:a", {"GET", "HEAD", "PUT", "PATCH", "DELETE"}),
        ("/v1/sessions/s/turns", {"GET", "HEAD", "POST"}),
        ("/v1/sessions/s/calls/c", {"PUT"}),
        ("/livez", {"GET", "HEAD"}),
    ],
)
async def test_a_wrong_method_names_the_right_ones(
    http: httpx.AsyncClient, path: str, allowed: set[str]
) -> None:
    refused = await http.request("TRACE", path)
    assert refused.status_code == 405
    assert set(refused.headers["allow"].split(", ")) == allowed
    assert refused.json()["code"] == "BADREQUEST"


async def test_every_session_answer_names_home_and_lag(http: httpx.AsyncClient) -> None:
    opened = await http.post("/v1/sessions", json={})
    path = f"/v1/sessions/{opened.json()['sid']}"
    message = {"role": "user", "content": "hi"}
    answers = [
        await http.post(f"{path}/turns", json={"messages": [message]}),
        await http.get(f"{path}/turns"),
        await http.get(path),
        await http.put(f"{path}/calls/c", json={"status": "begun", "tool": "t", "args": {}}),
        await http.put(f"{path}/calls/c", json={"status": "begun", "tool": "t", "args": {}}),
        await http.put(f"{path}/calls/c", json={"status": "finished", "result": 1}),
    ]
    for answer in answers:
        assert answer.status_code == 200, answer.text
        assert answer.headers["roost-home"] == 'eu-1;url="https://eu.example"'
        assert answer.headers["roost-lag-ms"] == "0"
        assert answer.headers["roost-stale-turns"] == "0"
        assert answer.headers["roost-served-by"] == "home"
        assert answer.headers["roost-token"].count(".") == 2
    assert answers[3].json() == {"status": "fresh"}
    assert answers[5].json() == {"status": "finished", "result": 1}


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:7668", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:7668", 200),
        ("roost", 200),
        ("eu.example", 200),
        ("rebound.attacker.example", 403),
        ("[", 403),
    ],
)
async def test_a_rebound_name_is_not_ours(http: httpx.AsyncClient, host: str, status: int) -> None:
    answer = await http.get("/v1/keys", headers={"host": host})
    assert answer.status_code == status, answer.text
    if status == 403:
        assert answer.json()["code"] == "NOPERM"
        assert "[node] public" in answer.json()["detail"]


@pytest.mark.parametrize("origin", ["http://[", "null", "", "https://", "http://evil.example"])
async def test_foreign_origins(http: httpx.AsyncClient, origin: str) -> None:
    answer = await http.get("/v1/keys", headers={"origin": origin})
    assert answer.status_code == 403, answer.text


async def test_a_linearizable_key_expires_by_its_policy(
    http: httpx.AsyncClient, node: Served
) -> None:
    client = await node.client()
    assert (await http.put("/v1/keys/lease:a", json={"value": "x"})).status_code == 200
    assert 3_590_000 < await client.do("PTTL", "lease:a") <= 3_600_000
    assert (await http.put("/v1/keys/lease:a", json={"value": 1, "ttl_ms": 50})).status_code == 200
    assert await client.do("PTTL", "lease:a") <= 50


async def test_reservations_of_no_node(http: httpx.AsyncClient) -> None:
    for name in ("zz", "no-node.zz", "eu-1.0000000000000000", "x.0"):
        answer = await http.post(f"/v1/reservations/{name}/settle", json={"used": 1})
        assert (answer.status_code, answer.json()["code"]) == (400, "BADREQUEST")
        assert "no open reservation" in answer.json()["detail"]
    elsewhere = await http.post("/v1/reservations/us-9.0123456789abcdef/release")
    assert (elsewhere.status_code, elsewhere.json()["code"]) == (503, "UNAVAILABLE")


# --- the description ------------------------------------------------------------------------------


def fits(schema: dict[str, Any], value: Any, schemas: dict[str, Any]) -> bool:
    """Whether a value is as the (small) part of JSON schema says that the document uses."""
    if "$ref" in schema:
        return fits(schemas[schema["$ref"].rpartition("/")[2]], value, schemas)
    if "anyOf" in schema:
        return any(fits(part, value, schemas) for part in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    match schema.get("type"):
        case None:
            return True
        case "object":
            known = schema.get("properties", {})
            extra = schema.get("additionalProperties", {})
            return (
                isinstance(value, dict)
                and all(name in value for name in schema.get("required", ()))
                and all(
                    fits(known.get(name, extra if isinstance(extra, dict) else {}), part, schemas)
                    for name, part in value.items()
                )
            )
        case "array":
            return isinstance(value, list) and all(
                fits(schema.get("items", {}), part, schemas) for part in value
            )
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "string":
            pattern = schema.get("pattern", "")
            return isinstance(value, str) and re.search(pattern, value) is not None
        case kind:
            known_types: dict[str, type] = {"boolean": bool, "null": type(None)}
            return isinstance(value, known_types[kind])


async def test_answers_are_as_described(
    http: httpx.AsyncClient, node: Served, described: dict[str, Any]
) -> None:
    client = await node.client()
    await client.do("SET", b"str:\xff", "v")
    await http.put("/v1/keys/str:a", json={"value": {"x": [1]}})
    sid = (await http.post("/v1/sessions", json={})).json()["sid"]
    held = {"n": 2, "ttl_ms": 60_000}
    reserved = (await http.post("/v1/quotas/quota:d/reservations", json=held)).json()["id"]
    session, message = f"/v1/sessions/{sid}", {"role": "user", "content": "hi"}
    begun = {"status": "begun", "tool": "t"}
    asked: list[tuple[str, str, str, Any]] = [
        ("get", "/v1/keys", "/v1/keys?prefix=str:&limit=1", None),
        ("get", "/v1/keys", "/v1/keys?prefix=str:&after=str:a", None),
        ("get", "/v1/keys/{key}", "/v1/keys/str:%FF", None),
        ("get", "/v1/keys/{key}", "/v1/keys/bill:d", None),
        ("put", "/v1/keys/{key}", "/v1/keys/str:%FF", {"value": 1}),
        ("patch", "/v1/keys/{key}", "/v1/keys/cnt:d", {"incr": 1}),
        ("delete", "/v1/keys/{key}", "/v1/keys/str:d", None),
        ("post", "/v1/quotas/{key}/spend", "/v1/quotas/quota:d/spend", {"n": 1}),
        ("post", "/v1/quotas/{key}/spend", "/v1/quotas/bill:d/spend", {"n": 1}),
        ("get", "/v1/quotas/{key}", "/v1/quotas/quota:d", None),
        ("get", "/v1/quotas/{key}", "/v1/quotas/bill:d", None),
        ("put", "/v1/quotas/{key}", "/v1/quotas/quota:d2", {"limit": 5}),
        (
            "post",
            "/v1/reservations/{id}/settle",
            f"/v1/reservations/{reserved}/settle",
            {"used": 1},
        ),
        ("post", "/v1/sessions", "/v1/sessions", {"sid": sid}),
        ("post", "/v1/sessions/{sid}/turns", f"{session}/turns", {"messages": [message]}),
        ("get", "/v1/sessions/{sid}/turns", f"{session}/turns?last=1", None),
        ("put", "/v1/sessions/{sid}/calls/{call}", f"{session}/calls/c", begun),
        ("get", "/v1/sessions/{sid}", session, None),
        ("post", "/v1/sessions/{sid}/fork", f"{session}/fork", {}),
        ("get", "/v1/sessions", "/v1/sessions", None),
        ("delete", "/v1/sessions/{sid}", session, None),
        ("get", "/v1/policies", "/v1/policies", None),
        ("get", "/v1/cluster", "/v1/cluster", None),
    ]
    schemas = described["components"]["schemas"]
    for method, path, url, body in asked:
        answer = await http.request(method, url, json=body)
        assert answer.status_code in (200, 201), (url, answer.text)
        said = described["paths"][path][method]["responses"][str(answer.status_code)]
        schema = said["content"]["application/json"]["schema"]
        assert fits(schema, answer.json(), schemas), (url, answer.text)
        for header in said.get("headers", {}):
            assert header in answer.headers, (url, header)


async def test_a_refused_parameter_is_outside_of_what_is_described(
    http: httpx.AsyncClient, described: dict[str, Any]
) -> None:
    limit = described["paths"]["/v1/keys"]["get"]["parameters"][2]["schema"]
    assert limit == {"type": "integer", "minimum": 1}
    [sid, _, last] = described["paths"]["/v1/sessions/{sid}/turns"]["get"]["parameters"]
    assert last["schema"]["minimum"] == 0
    for name in ("s1", "a.b-c_d~!$&'()*+,;=@[]{}|^`<>"):
        assert re.search(sid["schema"]["pattern"], name)
        assert (await http.post("/v1/sessions", json={"sid": name})).status_code == 201
    for name in ("a b", "a/b", "a:b", "a?b", "a#b", "a%b", 'a"b', "a\\b", "é", "a\n"):
        assert not re.search(sid["schema"]["pattern"], name) or name.endswith("\n")
        assert (await http.post("/v1/sessions", json={"sid": name})).status_code == 400


async def test_damage_is_unavailable_on_every_face(node: Served, http: httpx.AsyncClient) -> None:
    assert (await http.get("/v1/keys/cnt:lost")).json()["value"] is None

    def read() -> None:
        with roost.connect(f"unix://{node.unix}", mmap=False) as client:
            client.get("cnt:lost")

    suspects = node.node.store.suspects
    suspects.buckets = ALL
    try:
        answer = await http.get("/v1/keys/cnt:lost")
        with pytest.raises(roost.Unavailable, match="stored data is damaged: rows were lost"):
            await asyncio.to_thread(read)
    finally:
        suspects.buckets = frozenset()
    assert answer.status_code == 503
    assert answer.json()["code"] == "UNAVAILABLE"
    assert "stored data is damaged: rows were lost" in answer.json()["detail"]
