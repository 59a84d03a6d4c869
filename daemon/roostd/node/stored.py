"""Whether keys of a policy exist, for a reload that would change what they mean."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from roost_crdt.errors import CorruptData, NoPolicy, RoostError
from roost_crdt.policy import Policy, PolicyTable

SCAN_KEYS_MAX = 100_000
PAGE = 1_000

Scan = Callable[[bytes, bytes, int], list[bytes]]


async def policies_with_keys(
    policies: PolicyTable,
    *,
    scan: Scan,
    scan_linear: Callable[[bytes, bytes, int], Awaitable[list[bytes]]],
    has_sessions: Callable[[], bool],
) -> set[str]:
    """Names of the policies that keys exist under; where it cannot be told they count as existing.

    `scan` and `scan_linear` list keys of (prefix, after, limit), here and in consensus.
    """
    found = set()
    for name, policy in policies.policies.items():
        if policy.consistency == "session-local":
            exists = has_sessions()
        elif policy.consistency == "eventually-global":
            try:
                exists = _exists_here(policies, policy, scan)
            except CorruptData:
                exists = True
        else:
            exists = await _exists_in_consensus(policy, scan_linear)
        if exists:
            found.add(name)
    return found


def _exists_here(policies: PolicyTable, policy: Policy, scan: Scan) -> bool:
    name = policy.name.encode()
    if scan(name + b":", b"", 1) or name in scan(name, b"", 1):
        return True
    if not policy.match:
        return False
    after, seen = b"", 0
    while page := scan(b"", after, PAGE):
        seen += len(page)
        after = page[-1]
        for key in page:
            try:
                if policies.find(key).name == policy.name:
                    return True
            except NoPolicy:
                continue  # a key of a policy that only a neighbour has
        if seen >= SCAN_KEYS_MAX:
            return True
    return False


async def _exists_in_consensus(
    policy: Policy, scan_linear: Callable[[bytes, bytes, int], Awaitable[list[bytes]]]
) -> bool:
    if policy.type not in ("register", "counter") or policy.match:
        return True
    try:
        return bool(await scan_linear(policy.name.encode(), b"", 1))
    except RoostError:
        return True
