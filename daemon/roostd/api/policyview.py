"""A policy as people and programs see it."""

from __future__ import annotations

from typing import Any

from roost_crdt.policy import LINEARIZABLE, SESSION_LOCAL, Policy


def policy_view(policy: Policy) -> dict[str, Any]:
    """One policy with what a user may want to know; what does not apply is left out."""
    view: dict[str, Any] = {
        "name": policy.name,
        "consistency": policy.consistency,
        "type": policy.type,
        "readers": policy.readers,
        "stale_read_cost": policy.stale_read_cost,
        "why": policy.why,
    }
    optional = {
        "ttl_ms": policy.ttl_ms,
        "window_ms": policy.window_ms,
        "limit": policy.limit,
        "period": policy.period,
        "residency": list(policy.residency),
        "match": list(policy.match),
        "warning": policy.warning,
        "float": policy.float_,
    }
    if policy.counter_fields:
        optional["fields"] = "counter"
    if policy.consistency == SESSION_LOCAL:
        optional["on_loss"] = policy.on_loss
    if policy.consistency != LINEARIZABLE:
        optional["durability"] = policy.durability
    return view | {name: value for name, value in optional.items() if value}
