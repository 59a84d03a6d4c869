"""The policy file that is shipped."""

from __future__ import annotations

from roost_crdt.default_policies import DEFAULT_POLICIES
from roost_crdt.policy import POLICY_FIELDS, PolicyTable


def test_the_seven_kinds_of_state_and_their_consistency() -> None:
    table = PolicyTable.parse(DEFAULT_POLICIES, "policies.toml")
    assert {name: (p.consistency, p.type) for name, p in table.policies.items()} == {
        "conversation_buffer": ("session-local", "conversation"),
        "tool_call_ledger": ("session-local", "ledger"),
        "kv_cache_index": ("session-local", "map"),
        "rate_limits": ("eventually-global", "rate"),
        "model_router_weights": ("eventually-global", "register"),
        "usage_quota": ("linearizable", "quota"),
        "billing": ("linearizable", "meter"),
    }
    assert table.warnings == ()


def test_the_file_documents_each_field() -> None:
    head = DEFAULT_POLICIES.split("\n\n", 1)[0]
    documented = {
        line[2:18].replace(",", " ").split()[0] for line in head.splitlines() if line[2:3].strip()
    }
    documented |= {"period"} if "limit, period" in head else set()
    assert set(POLICY_FIELDS) <= documented
