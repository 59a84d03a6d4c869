"""What a key operation means, once for both faces: caller, key, arguments -> plain dict.

The key's policy decides where it goes: eventually-global keys to the node's rows, linearizable
ones to consensus, quotas and meters to their grants, session-local ones (read only) to the
session. Members whose value is JSON text already are `msgspec.Raw`.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec

from roost_crdt import values
from roost_crdt.errors import BadRequest, TooLarge, Unsupported
from roost_crdt.hlc import Stamp
from roost_crdt.policy import EVENTUALLY_GLOBAL, LINEARIZABLE, SESSION_LOCAL, Policy
from roost_crdt.rows import Leaf
from roostd.api import numbers
from roostd.api.bodies import PatchValue
from roostd.api.caller import READ, WRITE, Caller
from roostd.api.jsontext import (
    convert,
    is_array,
    is_object,
    raw_leaf,
    raw_list,
    raw_object,
)
from roostd.api.operations_quotas import QuotaOperations, new_id, plain
from roostd.api.operations_sessions import SessionOperations
from roostd.api.policyview import policy_view
from roostd.api.repeats import Repeats
from roostd.credentials import ANONYMOUS
from roostd.node import Node

Result = dict[str, Any]


class Operations:
    """Both faces call this; every method raises RoostError."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.sessions = SessionOperations(node)
        self.quotas = QuotaOperations(node)
        self.repeats = Repeats()
        self._anonymous = Caller(ANONYMOUS)

    # --- callers ------------------------------------------------------------------------------

    def anonymous(self) -> Caller | None:
        """The caller of somebody who has not logged in; None where credentials are required."""
        return None if self.node.credentials.required else self._anonymous

    def log_in(self, name: str | None, secret: bytes) -> Caller:
        """Raises NoAuth."""
        return Caller(self.node.credentials.authenticate(name, secret))

    # --- reads --------------------------------------------------------------------------------

    async def get(self, caller: Caller, key: bytes) -> Result:
        """`{key, value, consistency, lag_ms, source, stamp}`; value null if there is no such key.

        `stamp`: `[hlc, actor]` of the newest write; null where the key's type keeps none.
        """
        stored = caller.key(key)
        policy = self.node.policies.find(stored)
        caller.require(READ, stored)
        lag_ms, source = 0, "node"
        stamp: Stamp | None = None
        if policy.consistency == EVENTUALLY_GLOBAL:
            value = self.value(policy, stored)
            stamp = self.node.keys.stamp(stored)
            lag_ms = self.node.lag_ms()
        elif policy.consistency == LINEARIZABLE:
            value = await self._linear_value(policy, stored)
            source = "consensus"
        else:
            value, lag_ms = await self.sessions.value(policy, stored)
        return {
            "key": values.json_of(key),
            "value": value,
            "consistency": policy.consistency,
            "lag_ms": lag_ms,
            "source": source,
            "stamp": stamp,
        }

    def value(self, policy: Policy, stored: bytes) -> msgspec.Raw | None:
        """The JSON text of an eventually-global key; None if there is no such key."""
        keys = self.node.keys
        kind = policy.type
        if kind == "register":
            leaf = keys.get(stored)
            return None if leaf is None else msgspec.Raw(values.json_text(leaf).encode())
        if kind == "doc":
            update = keys.doc(stored)
            return None if update is None else msgspec.Raw(_base64(update))
        if not keys.exists(stored):
            return None
        if kind == "counter":
            return msgspec.Raw(numbers.count_text(keys.count(stored) or 0, policy.float_))
        if kind == "rate":
            return msgspec.Raw(b"%d" % keys.rate(stored))
        if kind == "set":
            return raw_list(keys.members(stored))
        return raw_object(keys.fields(stored))

    async def _linear_value(self, policy: Policy, stored: bytes) -> Any:
        if policy.type == "quota":
            return await self.node.quotas.show(stored)
        if policy.type == "meter":
            return await self.node.quotas.meter(stored)
        found = await self.node.linear.get(stored)
        if found is None:
            return None
        if isinstance(found, int):
            return msgspec.Raw(numbers.count_text(found, policy.float_))
        return msgspec.Raw(raw_leaf(found).encode())

    def list_keys(self, caller: Caller, prefix: bytes, after: bytes, limit: int) -> list[bytes]:
        """A page of the caller's eventually-global keys in order, as the caller writes them."""
        limit = max(1, min(limit, self.node.limits.page_keys_max))
        prefix = caller.prefix + prefix
        after = caller.prefix + after if after else b""
        found: list[bytes] = []
        while len(found) < limit:
            page = self.node.keys.scan(prefix, after, limit)
            found += [caller.own(key) for key in page if caller.may(READ, key)]
            if len(page) < limit:
                break
            after = page[-1]
        return found[:limit]

    # --- writes -------------------------------------------------------------------------------

    async def put(
        self,
        caller: Caller,
        key: bytes,
        value: bytes,
        ttl_ms: int | None = None,
        request_id: str | None = None,
    ) -> Result:
        """Set a key to a JSON value; `{key, seq, durable}`."""
        stored, policy = self._writable(caller, key)
        if policy.consistency == SESSION_LOCAL:
            raise _session_write(policy)
        if len(value) > self.node.limits.value_bytes_max + 16:
            raise TooLarge(f"a value of {len(value)} bytes is over limits.value_max")
        if policy.consistency == LINEARIZABLE:
            await self._linear_put(policy, stored, value, ttl_ms, request_id)
            return await self._written(key)
        expires_ms = None if ttl_ms is None else self.node.now_ms() + ttl_ms
        keys = self.node.keys
        if policy.type == "register":
            keys.put(stored, values.leaf_of(value), expires_ms=expires_ms)
        elif policy.type == "counter":
            keys.assign(stored, self._amount(policy, value, "value"), expires_ms=expires_ms)
        elif policy.type == "set":
            elements = self._leaves(value, "value")
            with keys.batch():
                keys.delete(stored)
                keys.add(stored, elements)
                if expires_ms is not None:
                    keys.expire(stored, expires_ms)
        elif policy.type == "map":
            fields = self._fields(value, "value")
            self._check_put_fields(policy)
            with keys.batch():
                keys.delete(stored)
                if fields:
                    keys.map_put(stored, fields)
                if expires_ms is not None:
                    keys.expire(stored, expires_ms)
        else:
            raise Unsupported(
                f"policy {policy.name} is a {policy.type}: it cannot be set, only "
                f"{'incremented' if policy.type == 'rate' else 'changed by PATCH {update}'}"
            )
        return await self._written(key)

    async def patch(
        self, caller: Caller, key: bytes, body: PatchValue, request_id: str | None = None
    ) -> Result:
        """Change a part of a key: `incr`, `put` and `drop`, or `update`."""
        incr, put, drop = bytes(body.incr), bytes(body.put), bytes(body.drop)
        if body.update is not None:
            if incr or put or drop:
                raise BadRequest("a PATCH with update has nothing else", field="update")
            return await self._update(caller, key, body.update)
        if incr and (put or drop):
            raise BadRequest("a PATCH has either incr, or put and drop", field="incr")
        if not (incr or put or drop):
            raise BadRequest("a PATCH needs incr, put, drop or update", field="incr")
        if incr:
            return await self.incr(caller, key, incr, request_id)
        stored, policy = self._writable(caller, key)
        if policy.consistency != EVENTUALLY_GLOBAL or policy.type not in ("set", "map"):
            if policy.consistency == SESSION_LOCAL:
                raise _session_write(policy)
            if policy.type == "doc":
                raise Unsupported(
                    f"policy {policy.name} is a doc: it is changed by PATCH {{update}}, a Yjs "
                    "update in base64"
                )
            raise Unsupported(
                f"put and drop are for sets and maps; policy {policy.name} is "
                f"{policy.consistency} ({policy.type})"
            )
        keys = self.node.keys
        dropped = self._leaves(drop, "drop") if drop else []
        if policy.type == "set":
            added = self._leaves(put, "put") if put else []
            self._check_batch(len(added) + len(dropped))
            with keys.batch():
                if dropped:
                    keys.remove(stored, dropped)
                if added:
                    keys.add(stored, added)
            return await self._written(key)
        fields = self._fields(put, "put") if put else {}
        names = [_field_name(leaf) for leaf in dropped]
        self._check_batch(len(fields) + len(names))
        if fields:
            self._check_put_fields(policy)
        with keys.batch():
            if names:
                keys.map_drop(stored, names)
            if fields:
                keys.map_put(stored, fields)
        return await self._written(key)

    async def _update(self, caller: Caller, key: bytes, update: bytes) -> Result:
        stored, policy = self._writable(caller, key)
        if policy.type != "doc":
            raise Unsupported(
                f"update is for documents; policy {policy.name} is a {policy.consistency} "
                f"{policy.type}"
            )
        self.node.keys.doc_put(stored, update, caller.name)
        return await self._written(key)

    async def incr(
        self, caller: Caller, key: bytes, amount: bytes, request_id: str | None = None
    ) -> Result:
        """Add to a counter, rate or meter, or to the fields of a counting map; the new value."""
        stored, policy = self._writable(caller, key)
        keys = self.node.keys
        if policy.type == "meter":
            by = self._amount(policy, amount, "incr")
            if by < 1:
                raise BadRequest("a meter only counts up: incr is at least 1", field="incr")
            meter = await self.node.quotas.meter_add(stored, by, request_id or new_id())
            return await self._written(key, value=plain(meter))
        if policy.type == "map" and is_object(amount):
            return await self._written(key, value=self._incr_fields(policy, stored, amount))
        if policy.type not in ("counter", "rate"):
            raise Unsupported(_no_increment(policy))
        by = self._amount(policy, amount, "incr")
        if policy.consistency == LINEARIZABLE:
            value = await self.node.linear.incr(stored, by, request_id=request_id)
        else:
            value = keys.incr(stored, by)
        text = numbers.count_text(value, policy.float_)
        return await self._written(key, value=msgspec.Raw(text))

    async def delete(self, caller: Caller, key: bytes, request_id: str | None = None) -> Result:
        """Delete a key; `value` says whether there was one."""
        stored, policy = self._writable(caller, key)
        if policy.consistency == SESSION_LOCAL:
            raise Unsupported(
                f"policy {policy.name} is session-local: erase its session "
                "(DELETE /v1/sessions/SID, ROOST.ERASE)"
            )
        if policy.consistency == EVENTUALLY_GLOBAL:
            return await self._written(key, value=self.node.keys.delete(stored))
        if policy.type not in ("register", "counter"):
            raise Unsupported(f"policy {policy.name} is a {policy.type}: it is not deleted")
        found = await self.node.linear.delete(stored, request_id=request_id)
        return await self._written(key, value=found)

    def check_watchable(self, prefix: bytes) -> None:
        """Unsupported if all keys under a stored prefix are of a policy without changes to tell."""
        name, colon, _ = prefix.partition(b":")
        policy = self.node.policies.policies.get(name.decode("utf-8", "replace"))
        if colon and policy is not None and policy.consistency != EVENTUALLY_GLOBAL:
            raise Unsupported(
                f"policy {policy.name} is {policy.consistency}: only changes of eventually-global "
                "keys are told; read it when you need it"
            )

    # --- the node -----------------------------------------------------------------------------

    def policies(self) -> list[Result]:
        """Every policy, for people and programs."""
        return [policy_view(policy) for policy in self.node.policies.policies.values()]

    def policy(self, caller: Caller, key: bytes) -> Result:
        """The policy of a key and the sentence why."""
        stored = caller.key(key)
        found = policy_view(self.node.policies.find(stored))
        return {"key": values.json_of(key), **found, "explain": self.node.policies.explain(stored)}

    # --- inside -------------------------------------------------------------------------------

    def _writable(self, caller: Caller, key: bytes) -> tuple[bytes, Policy]:
        stored = caller.key(key)
        policy = self.node.policies.find(stored)
        caller.require(WRITE, stored)
        return stored, policy

    async def _written(self, key: bytes, **members: Any) -> Result:
        seq = self.node.hello()["seq"]
        due = self.node.keys.take_due()
        if due is not None:
            await self.node.standbys.held(due)
        return {
            "key": values.json_of(key),
            "seq": seq,
            "durable": True,
            **members,
        }

    async def _linear_put(
        self, policy: Policy, stored: bytes, value: bytes, ttl_ms: int | None, id_: str | None
    ) -> None:
        expires_ms = None if ttl_ms is None else self.node.now_ms() + ttl_ms
        if policy.type == "register":
            leaf: Leaf | int = values.leaf_of(value)
        elif policy.type == "counter":
            leaf = self._amount(policy, value, "value")
        else:
            way = "POST /v1/quotas/KEY/spend" if policy.type == "quota" else "PATCH {incr}"
            raise Unsupported(f"policy {policy.name} is a {policy.type}: use {way}")
        await self.node.linear.put(stored, leaf, expires_ms=expires_ms, request_id=id_)

    def _incr_fields(self, policy: Policy, stored: bytes, amount: bytes) -> msgspec.Raw:
        keys = self.node.keys
        amounts = {
            name: self._amount(policy, _text(leaf), "incr")
            for name, leaf in self._fields(amount, "incr").items()
        }
        if policy.counter_fields:
            for name, by in amounts.items():  # all or nothing: refuse before the first write
                now = keys.field(stored, name)
                total = by + (now if isinstance(now, int) else 0)
                if not numbers.INT64_MIN <= total <= numbers.INT64_MAX:
                    raise BadRequest("incr would overflow 64 bits", field="incr")
        with keys.batch():
            counts = {name: keys.map_incr(stored, name, by) for name, by in amounts.items()}
        texts = {
            name: numbers.count_text(count, policy.float_).decode()
            for name, count in counts.items()
        }
        return raw_object(texts)

    def _check_put_fields(self, policy: Policy) -> None:
        if policy.counter_fields:
            raise Unsupported(
                f'policy {policy.name} has fields = "counter": use PATCH {{"incr": {{...}}}} '
                "or HINCRBY"
            )

    def _amount(self, policy: Policy, raw: bytes, field: str) -> int:
        """A JSON number (or its text) in the policy's units."""
        text = raw.strip(b' \t\r\n"')
        try:
            if policy.float_:
                return numbers.parse_scaled(text)
            return numbers.parse_int(text)
        except numbers.NotANumber as error:
            try:
                whole = Decimal(text.decode("ascii"))
            except (ArithmeticError, UnicodeDecodeError):
                raise BadRequest(f"{field}: {error}", field=field) from None
            if not policy.float_ and whole.is_finite() and whole.adjusted() < 19:
                if whole != whole.to_integral_value():
                    raise Unsupported(
                        f"{field} has a fraction; say float = true in policy {policy.name}"
                    ) from None
                if numbers.INT64_MIN <= int(whole) <= numbers.INT64_MAX:
                    return int(whole)
            raise BadRequest(f"{field}: {error}", field=field) from None

    def _leaves(self, raw: bytes, field: str) -> list[Leaf]:
        if not is_array(raw):
            raise BadRequest(f"{field} must be a list", field=field)
        parts = convert(raw, list[msgspec.Raw], field)
        self._check_batch(len(parts))
        return [values.leaf_of(bytes(part)) for part in parts]

    def _fields(self, raw: bytes, field: str) -> dict[bytes, Leaf]:
        if not is_object(raw):
            raise BadRequest(f"{field} must be an object", field=field)
        parts = convert(raw, dict[str, msgspec.Raw], field)
        self._check_batch(len(parts))
        fields = {name.encode(): values.leaf_of(bytes(part)) for name, part in parts.items()}
        longest = self.node.limits.field_bytes_max
        for name in fields:
            if len(name) > longest:
                raise BadRequest(
                    f"a field name of {len(name)} bytes is over {longest}", field=field
                )
        return fields

    def _check_batch(self, count: int) -> None:
        if count > self.node.limits.batch_ops_max:
            raise TooLarge(
                f"{count} elements are over {self.node.limits.batch_ops_max}; send several"
            )


def _base64(data: bytes) -> bytes:
    return msgspec.json.encode({"base64": data})


def _text(leaf: Leaf) -> bytes:
    return leaf if isinstance(leaf, bytes) else leaf.encode()


def _field_name(leaf: Leaf) -> bytes:
    if isinstance(leaf, bytes):
        return leaf
    raise BadRequest("drop of a map is a list of field names (strings)", field="drop")


def _session_write(policy: Policy) -> Unsupported:
    way = "messages" if policy.type == "conversation" else f"put {{{policy.name}: ...}}"
    if policy.type == "ledger":
        return Unsupported(
            f"policy {policy.name} is session-local: record a call by "
            "PUT /v1/sessions/SID/calls/CALL or ROOST.CALL"
        )
    return Unsupported(
        f"policy {policy.name} is session-local: commit a turn with {way} by "
        "POST /v1/sessions/SID/turns or ROOST.TURN"
    )


def _no_increment(policy: Policy) -> str:
    if policy.type == "map":
        return (
            f"policy {policy.name} is a map: incr is an object of fields, where the policy says "
            'fields = "counter"'
        )
    if policy.type == "doc":
        return f"policy {policy.name} is a doc: it is changed by PATCH {{update}}, a Yjs update"
    if policy.type == "quota":
        return f"policy {policy.name} is a quota: spend it (POST /v1/quotas/KEY/spend, ROOST.SPEND)"
    return (
        f"policy {policy.name} is {policy.consistency} ({policy.type}): concurrent increments "
        'would be lost; give the key a policy of type = "counter"'
    )
