"""/v1/keys, /v1/quotas, /v1/reservations."""

from __future__ import annotations

from starlette.responses import Response

from roost_crdt import values
from roostd.api import bodies
from roostd.api.http.answers import answer
from roostd.api.http.request import Call
from roostd.api.http.routes import IDEMPOTENCY, LIMIT, TABLE, Parameter
from roostd.api.operations import Result
from roostd.api.operations_quotas import new_id

_KEYS = "/v1/keys/"
_QUOTAS = "/v1/quotas/"
_READ_ERRORS = ("BADREQUEST", "NOPOLICY", "UNSUPPORTED", "UNAVAILABLE")
_WRITE_ERRORS = (*_READ_ERRORS, "WRONGTYPE", "TOOLARGE", "UNKNOWNOUTCOME", "FULL")


@TABLE.add(
    "GET",
    "/v1/keys",
    "List eventually-global keys",
    "keys",
    parameters=(
        Parameter("prefix", "query", "only keys that begin with it"),
        Parameter("after", "query", "the last key of the page before"),
        LIMIT,
    ),
    answers={200: (bodies.KeyList, "A page in order; `next` is null on the last one.")},
)
async def list_keys(call: Call) -> Response:
    limit = call.query_number("limit", 100, 1) or 100
    limit = min(limit, call.node.limits.page_keys_max)
    prefix, after = call.query_bytes("prefix"), call.query_bytes("after")
    found = call.operations.list_keys(call.caller, prefix, after, limit)
    names = [values.json_of(key) for key in found]
    return answer({"keys": names, "next": names[-1] if len(names) == limit else None})


@TABLE.add(
    "GET",
    "/v1/keys/{key:path}",
    "Read a key of any consistency",
    "keys",
    answers={200: (bodies.KeyReading, "Its value; null if there is no such key.")},
    headers=("Roost-Lag-Ms",),
    errors=_READ_ERRORS,
)
async def read_key(call: Call) -> Response:
    found = await call.operations.get(call.caller, call.path_bytes(_KEYS))
    del found["stamp"]  # ROOST.GET and watches tell it
    return answer(found, headers={"roost-lag-ms": str(found["lag_ms"])})


@TABLE.add(
    "PUT",
    "/v1/keys/{key:path}",
    "Set a key",
    "keys",
    body=bodies.PutValue,
    parameters=(IDEMPOTENCY,),
    answers={200: (bodies.KeyWritten, "It is durable.")},
    errors=_WRITE_ERRORS,
)
async def put_key(call: Call) -> Response:
    caller, request_id = call.caller, call.request_id
    body = await call.body(bodies.PutValue)
    key = call.path_bytes(_KEYS)
    done = await call.operations.put(caller, key, bytes(body.value), body.ttl_ms, request_id)
    return answer(done)


@TABLE.add(
    "PATCH",
    "/v1/keys/{key:path}",
    "Increment a counter, put and drop fields and elements, or edit a document",
    "keys",
    body=bodies.PatchValue,
    parameters=(IDEMPOTENCY,),
    answers={200: (bodies.KeyWritten, "It is durable; `value` is the new count.")},
    errors=_WRITE_ERRORS,
)
async def patch_key(call: Call) -> Response:
    caller, request_id = call.caller, call.request_id
    body = await call.body(bodies.PatchValue)
    return answer(await call.operations.patch(caller, call.path_bytes(_KEYS), body, request_id))


@TABLE.add(
    "DELETE",
    "/v1/keys/{key:path}",
    "Delete a key",
    "keys",
    parameters=(IDEMPOTENCY,),
    answers={200: (bodies.KeyWritten, "`value` says whether there was one.")},
    errors=_WRITE_ERRORS,
)
async def delete_key(call: Call) -> Response:
    key = call.path_bytes(_KEYS)
    return answer(await call.operations.delete(call.caller, key, call.request_id))


# --- quotas ---------------------------------------------------------------------------------------


@TABLE.add(
    "POST",
    "/v1/quotas/{key:path}/spend",
    "Spend of a quota, or add to a meter",
    "quotas",
    body=bodies.Spend,
    parameters=(IDEMPOTENCY,),
    answers={200: ((bodies.Spent, bodies.MeterView), "It is spent, once.")},
    errors=(*_WRITE_ERRORS, "EXHAUSTED"),
)
async def spend(call: Call) -> Response:
    caller, request_id = call.caller, call.request_id or new_id()
    body = await call.body(bodies.Spend)
    key = call.path_bytes(_QUOTAS, "/spend")
    return answer(await call.operations.quotas.spend(caller, key, body.n, request_id))


@TABLE.add(
    "POST",
    "/v1/quotas/{key:path}/reservations",
    "Set an amount aside until its use is known",
    "quotas",
    body=bodies.Reserve,
    parameters=(IDEMPOTENCY,),
    answers={201: (bodies.Reservation, "Settle or release it by its id.")},
    errors=(*_WRITE_ERRORS, "EXHAUSTED"),
)
async def reserve(call: Call) -> Response:
    caller, request_id = call.caller, call.request_id or new_id()
    body = await call.body(bodies.Reserve)
    key = call.path_bytes(_QUOTAS, "/reservations")
    done = await call.operations.quotas.reserve(caller, key, body.n, request_id, body.ttl_ms)
    return answer(done, 201)


@TABLE.add(
    "GET",
    "/v1/quotas/{key:path}",
    "A quota's limit and what remains",
    "quotas",
    answers={
        200: (
            (bodies.QuotaView, bodies.MeterView),
            "As consensus and this node's grant have it; or a meter.",
        )
    },
    errors=_READ_ERRORS,
)
async def show_quota(call: Call) -> Response:
    return answer(await call.operations.quotas.show(call.caller, call.path_bytes(_QUOTAS)))


@TABLE.add(
    "PUT",
    "/v1/quotas/{key:path}",
    "Set a quota's limit",
    "quotas",
    body=bodies.SetLimit,
    answers={200: (bodies.QuotaView, "The quota under its new limit.")},
    errors=_WRITE_ERRORS,
)
async def set_limit(call: Call) -> Response:
    caller = call.caller
    body = await call.body(bodies.SetLimit)
    return answer(
        await call.operations.quotas.set_limit(caller, call.path_bytes(_QUOTAS), body.limit)
    )


@TABLE.add(
    "POST",
    "/v1/reservations/{id}/settle",
    "Settle a reservation",
    "quotas",
    body=bodies.Settle,
    answers={200: (dict[str, int | str], "What was used is spent, the rest is given back.")},
    errors=_WRITE_ERRORS,
)
async def settle(call: Call) -> Response:
    caller = call.caller
    body = await call.body(bodies.Settle)
    return answer(await call.operations.quotas.settle(caller, call.path_text("id"), body.used))


@TABLE.add(
    "POST",
    "/v1/reservations/{id}/release",
    "Give a whole reservation back",
    "quotas",
    answers={200: (dict[str, int | str], "Nothing of it is spent.")},
    errors=_WRITE_ERRORS,
)
async def release(call: Call) -> Response:
    done: Result = await call.operations.quotas.release(call.caller, call.path_text("id"))
    return answer(done)
