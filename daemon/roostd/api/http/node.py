"""What a node says of itself: policies, cluster, probes, metrics, pages, OpenAPI."""

from __future__ import annotations

from typing import Any

import msgspec
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response

from roostd.api.caller import READ
from roostd.api.http import openapi, pages
from roostd.api.http.answers import answer
from roostd.api.http.problems import document
from roostd.api.http.request import Call
from roostd.api.http.routes import TABLE, Parameter

_ANYTHING = dict[str, Any]


@TABLE.add(
    "GET",
    "/v1/policies",
    "The policies, and why each has its consistency",
    "node",
    parameters=(Parameter("key", "query", "the policy of this key alone"),),
    answers={200: (_ANYTHING, "`policies`, or one policy and the sentence why.")},
    errors=("NOPOLICY",),
)
async def policies(call: Call) -> Response:
    caller = call.caller
    if call.query("key") is not None:
        return answer(call.operations.policy(caller, call.query_bytes("key")))
    return answer({"policies": call.operations.policies()})


@TABLE.add(
    "GET",
    "/v1/cluster",
    "This node, its links, store, consensus and sessions",
    "node",
    answers={200: (_ANYTHING, "Equal digests at equal version vectors are `converged`.")},
)
async def cluster(call: Call) -> Response:
    call.caller.require(READ, b"")
    return answer(msgspec.to_builtins(call.node.cluster()))


@TABLE.add(
    "GET",
    "/livez",
    "Is the process alive?",
    "node",
    answers={200: (dict[str, str], "It is.")},
    secured=False,
)
async def livez(call: Call) -> Response:
    return answer({"status": "ok"})


@TABLE.add(
    "GET",
    "/readyz",
    "Should this node get traffic?",
    "node",
    answers={200: (dict[str, str], "It should.")},
    errors=("UNAVAILABLE",),
    secured=False,
)
async def readyz(call: Call) -> Response:
    ready, why = call.node.ready()
    if not ready:
        return document(503, "UNAVAILABLE", why, 1_000)
    return answer({"status": "ready"})


@TABLE.add(
    "GET",
    "/metrics",
    "Metrics for Prometheus",
    "node",
    answers={200: (str, "Text exposition format.")},
    media_type="text/plain",
)
async def metrics(call: Call) -> Response:
    call.caller.require(READ, b"")
    return Response(generate_latest(call.node.metrics), media_type=CONTENT_TYPE_LATEST)


@TABLE.add(
    "GET",
    "/openapi.json",
    "This description",
    "node",
    answers={200: (_ANYTHING, "OpenAPI 3.1.")},
    secured=False,
)
async def describe(call: Call) -> Response:
    return Response(openapi.text(), media_type="application/json")


@TABLE.add(
    "GET",
    "/docs",
    "This description, to be read",
    "node",
    answers={200: (str, "A page.")},
    media_type="text/html",
    secured=False,
)
async def docs(call: Call) -> Response:
    return pages.docs()


@TABLE.add(
    "GET",
    "/",
    "The node at a glance",
    "node",
    answers={200: (str, "A page.")},
    media_type="text/html",
    secured=False,
)
async def front(call: Call) -> Response:
    return pages.front()
