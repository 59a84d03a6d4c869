"""Keys of `type = "doc"` on both faces: a Yjs client's updates in, one update out."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pycrdt
import pytest
import pytest_asyncio
from api_node import Served, served
from crdt.yjs_updates import text_of, updates_of

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with served(tmp_path_factory.mktemp("documents")) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(node: Served) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=node.url, timeout=60) as client:
        yield client


async def _patch(http: httpx.AsyncClient, key: str, update: bytes) -> httpx.Response:
    return await http.patch(f"/v1/keys/{key}", json={"update": b64encode(update).decode()})


async def _get(http: httpx.AsyncClient, key: str) -> bytes:
    value: dict[str, Any] = (await http.get(f"/v1/keys/{key}")).json()["value"]
    assert list(value) == ["base64"]
    return b64decode(value["base64"])


def _insert(yjs: pycrdt.Doc[pycrdt.Text], at: int, text: str) -> None:
    yjs.get("t", type=pycrdt.Text).insert(at, text)


async def test_two_clients_edit_one_document(node: Served, http: httpx.AsyncClient) -> None:
    one = pycrdt.Doc[pycrdt.Text]()
    made = updates_of(one)
    _insert(one, 0, "hello ")
    answer = await _patch(http, "doc:pad", made[0])
    assert answer.status_code == 200, answer.text
    assert answer.json()["durable"] is True
    two = pycrdt.Doc[pycrdt.Text]()
    two.apply_update(await _get(http, "doc:pad"))
    replies = updates_of(two)
    _insert(two, 6, "world")
    _insert(one, 0, "> ")
    assert (await _patch(http, "doc:pad", replies[0])).status_code == 200
    assert (await _patch(http, "doc:pad", one.get_update())).status_code == 200, "a whole state"
    whole = await _get(http, "doc:pad")
    assert text_of(whole) == "> hello world"
    client = await node.client()
    assert await client.do("GET", "doc:pad") == whole
    assert await client.do("EXISTS", "doc:pad") == 1
    assert await client.do("TYPE", "doc:pad") == b"string"
    body = b'{"update":"%s"}' % b64encode(whole)
    assert (await client.do("ROOST.UPDATE", "doc:pad", body))[0] == b"seq"
    assert await client.do("DEL", "doc:pad") == 1
    assert await client.do("GET", "doc:pad") is None
    assert (await http.get("/v1/keys/doc:pad")).json()["value"] is None


async def test_what_a_document_cannot_take_is_said(node: Served, http: httpx.AsyncClient) -> None:
    yjs = pycrdt.Doc[pycrdt.Text]()
    made = updates_of(yjs)
    _insert(yjs, 0, "a")
    _insert(yjs, 1, "b")
    gap = await _patch(http, "doc:errors", made[1])
    assert (gap.status_code, gap.json()["code"]) == (503, "UNAVAILABLE")
    assert "whole state" in gap.json()["detail"]
    for key, body, status, code in (
        ("doc:errors", {"update": b64encode(b"garbage").decode()}, 400, "BADREQUEST"),
        ("doc:errors", {"update": "no base 64"}, 400, "BADREQUEST"),
        ("doc:errors", {"update": "AAA=", "incr": 1}, 400, "BADREQUEST"),
        ("doc:errors", {"update": b64encode(b"x" * (513 << 10)).decode()}, 413, "TOOLARGE"),
        ("doc:errors", {"incr": 1}, 422, "UNSUPPORTED"),
        ("doc:errors", {"put": {"f": 1}}, 422, "UNSUPPORTED"),
        ("map:m", {"update": "AAA="}, 422, "UNSUPPORTED"),
        ("lock:l", {"update": "AAA="}, 422, "UNSUPPORTED"),
    ):
        answer = await http.patch(f"/v1/keys/{key}", json=body)
        assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    put = await http.put("/v1/keys/doc:errors", json={"value": "text"})
    assert (put.status_code, put.json()["code"]) == (422, "UNSUPPORTED")
    assert (await http.get("/v1/keys/doc:errors")).json()["value"] is None
    client = await node.client()
    for command in (
        ("SET", "doc:errors", "v"),
        ("INCR", "doc:errors"),
        ("SADD", "doc:errors", "e"),
    ):
        assert "WRONGTYPE" in str(await client.do(*command)), command


async def test_a_document_ends_with_its_ttl(node: Served, http: httpx.AsyncClient) -> None:
    yjs = pycrdt.Doc[pycrdt.Text]()
    _insert(yjs, 0, "short")
    await _patch(http, "shortdoc:x", yjs.get_update())
    client = await node.client()
    assert 3_590 <= await client.do("TTL", "shortdoc:x") <= 3_600
    assert await client.do("PEXPIRE", "shortdoc:x", "1") == 1
    with_end = await client.do("GET", "shortdoc:x")
    assert with_end is None or text_of(with_end) == "short"
