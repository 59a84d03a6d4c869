"""Windows, amounts, grant sizes, and the ledger that no lost or late transaction can overspend."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost_crdt.errors import BadRequest, CorruptData
from roost_crdt.grants import (
    AMOUNT_MAX,
    Grant,
    GrantKey,
    Ledger,
    Plan,
    Pool,
    Spends,
    Window,
    check_amount,
    fitting,
    grant_key,
    grant_prefix,
    grant_target,
    pool_key,
    read_grant_key,
    window_at,
)

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
W1, W2 = Window(0, DAY_MS), Window(DAY_MS, 2 * DAY_MS)
amounts = st.integers(0, AMOUNT_MAX)


def ms(*date: int) -> int:
    return int(datetime(*date, tzinfo=UTC).timestamp() * 1000)  # type: ignore[arg-type,misc]


# --- windows --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("period", "now", "starts", "ends"),
    [
        ("day", ms(2026, 3, 1, 23, 59, 59), ms(2026, 3, 1), ms(2026, 3, 2)),
        ("24h", ms(2026, 3, 1, 12), ms(2026, 3, 1), ms(2026, 3, 2)),
        ("1h", ms(2026, 3, 1, 12, 30), ms(2026, 3, 1, 12), ms(2026, 3, 1, 13)),
        ("month", ms(2026, 1, 31, 23), ms(2026, 1, 1), ms(2026, 2, 1)),
        ("month", ms(2024, 2, 29), ms(2024, 2, 1), ms(2024, 3, 1)),
        ("month", ms(2026, 12, 31, 23, 59, 59), ms(2026, 12, 1), ms(2027, 1, 1)),
        ("month", ms(2026, 12, 1), ms(2026, 12, 1), ms(2027, 1, 1)),
    ],
)
def test_windows(period: str, now: int, starts: int, ends: int) -> None:
    assert window_at(period, now) == Window(starts, ends)


@given(st.sampled_from(["day", "month", "24h", "90m", "7d", "250ms"]), st.integers(0, 1 << 43))
def test_windows_tile_the_time(period: str, now_ms: int) -> None:
    window = window_at(period, now_ms)
    assert window.starts_ms <= now_ms < window.ends_ms
    assert window_at(period, window.starts_ms) == window
    assert window_at(period, window.ends_ms - 1) == window
    assert window_at(period, window.ends_ms).starts_ms == window.ends_ms


def test_a_fixed_window_counts_from_the_epoch() -> None:
    assert window_at("7d", ms(2026, 3, 1)).starts_ms % (7 * DAY_MS) == 0


@pytest.mark.parametrize("period", ["", "week", "24", "0h"])
def test_an_unknown_period_is_refused(period: str) -> None:
    with pytest.raises(ValueError, match=r"duration|unit|range"):
        window_at(period, 0)


# --- amounts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("amount", [0, -1, AMOUNT_MAX + 1, 1.5, "3", None, True, [1], "x" * 1000])
def test_what_is_no_amount_is_refused(amount: object) -> None:
    with pytest.raises(BadRequest, match="ttl_ms is a whole number") as refused:
        check_amount(amount, what="ttl_ms")
    assert len(refused.value.message) < 120


@pytest.mark.parametrize(("amount", "least"), [(1, 1), (AMOUNT_MAX, 1), (0, 0)])
def test_amounts(amount: int, least: int) -> None:
    assert check_amount(amount, least=least) == amount


# --- what consensus holds -------------------------------------------------------------------------


@given(amounts, amounts, st.none() | amounts)
def test_a_pool_round_trips(starts_ms: int, granted: int, override: int | None) -> None:
    pool = Pool(Window(starts_ms, starts_ms + 1), granted, override)
    assert Pool.decode(pool.encode()) == pool


@given(st.binary(min_size=1, max_size=16), amounts, amounts, amounts)
def test_a_grant_round_trips(grant_id: bytes, amount: int, spent: int, held: int) -> None:
    grant = Grant(grant_id, amount, spent, held)
    assert Grant.decode(grant.encode()) == grant
    assert grant.unspent == max(0, amount - spent - held)


SHAPES: Sequence[Any] = [
    [],
    [1],
    [2, 0, 1, 0, None],
    [1, 0, 1, 0],
    [1, 0, 1, -1, None],
    [1, 0, 1, 0, "x"],
    [1, 0, 1, True, None],
    [1, 5, 5, 0, None],
    [1, 0, 1.5, 0, None],
    [1, b"", 0, 0, 0],
    [1, "id", 0, 0, 0],
    [1, b"id", 0, -1, 0],
    {"a": 1},
    None,
]


@pytest.mark.parametrize("shape", SHAPES, ids=repr)
def test_foreign_shapes_are_never_taken_for_a_default(shape: Any) -> None:
    raw = msgspec.msgpack.encode(shape)
    for kind in (Pool, Grant):
        with pytest.raises(CorruptData, match="not a quota's"):
            kind.decode(raw)


@given(st.binary(max_size=40))
def test_decoding_is_total(raw: bytes) -> None:
    for kind in (Pool, Grant):
        try:
            decoded = kind.decode(raw)
        except CorruptData:
            continue
        assert kind.decode(decoded.encode()) == decoded


@given(st.binary(min_size=1, max_size=20), amounts, st.text(min_size=1), st.integers(0, 2**64 - 1))
def test_the_key_of_a_grant_round_trips(key: bytes, window: int, node: str, actor: int) -> None:
    quota = key.replace(b"\0", b"x")
    node = node.replace("\0", "x").encode("utf-8", "replace").decode()
    stored = grant_key(quota, window, node, actor)
    assert stored.startswith(grant_prefix(quota, window))
    assert grant_prefix(quota, window).startswith(grant_prefix(quota))
    assert read_grant_key(quota, stored) == GrantKey(window, node, actor)
    assert pool_key(quota) != stored


@pytest.mark.parametrize(
    "tail", [b"", b"12345678", b"12345678node12345678", b"12345678\x0012345678", b"\xff" * 8]
)
def test_what_is_no_key_of_a_grant_is_refused(tail: bytes) -> None:
    with pytest.raises(CorruptData):
        read_grant_key(b"q", b"g/q\0" + tail)
    with pytest.raises(CorruptData):
        read_grant_key(b"other", grant_key(b"q", 1, "n", 1))
    with pytest.raises(CorruptData):
        read_grant_key(b"q", b"g/q\0" + bytes(8) + b"\xff\xfe\0" + bytes(8))


def test_what_remains_of_a_pool() -> None:
    pool = Pool(W1, 30)
    assert pool.remaining(100) == 70
    assert pool._replace(override=40).remaining(100) == 10
    assert pool._replace(override=20).remaining(100) == 0, "never below what is granted"
    assert pool.at(W2) == Pool(W2, 0)
    assert pool.at(W2).at(W1) == Pool(W2, 0), "a window never comes back"
    assert Pool(W1, 3, 7).at(W2) == Pool(W2, 0, 7), "an operator's limit stays"


# --- sizes ----------------------------------------------------------------------------------------


@given(
    st.integers(0, 10**9),
    st.integers(0, 10**9),
    st.integers(1, 100),
    st.floats(0, 1e9),
)
def test_a_grant_is_bounded_three_ways(
    limit: int, remaining: int, nodes: int, recent: float
) -> None:
    target = grant_target(limit=limit, remaining=remaining, nodes=nodes, recent=recent)
    assert 0 <= target <= recent
    assert target * nodes * 50 <= limit, "a lost node strands at most 2% / nodes"
    assert target * nodes * 2 <= remaining


def test_the_size_of_a_grant() -> None:
    sizes = {"limit": 1_000_000, "remaining": 1_000_000, "nodes": 4}
    assert grant_target(**sizes, recent=300.7) == 300
    assert grant_target(**sizes, recent=1e9) == 5_000
    assert grant_target(**sizes | {"remaining": 80}, recent=1e9) == 10


def test_the_rate_is_that_of_the_last_two_seconds() -> None:
    spends = Spends()
    for tick in range(200):
        spends.add(5, tick * 50)
    assert 190 <= spends.now(10_000) <= 210, "100 a second over 2 s"
    assert spends.now(30_000) < 1
    assert spends.now(0) == spends.amount, "a clock that goes back changes nothing"


@given(st.lists(st.integers(1, 20), max_size=10), st.integers(0, 60))
def test_fitting_serves_the_line_in_order(needs: list[int], available: int) -> None:
    total = fitting(needs, available)
    assert total <= available
    left = available
    for need in needs:
        if need <= left:
            left -= need
    assert total == available - left


# --- one ledger -----------------------------------------------------------------------------------


def plan(ledger: Ledger, pool: Pool, grant: Grant | None = None, **of: Any) -> Plan:
    given_ = {"policy_limit": 100, "needs": (), "target": 0, "new_id": b"new"} | of
    return ledger.plan(pool, grant, **given_)


def granted(amount: int, spent: int = 0, pool_granted: int | None = None) -> tuple[Ledger, Pool]:
    """A ledger that has taken `amount`, and its pool."""
    ledger = Ledger(W1)
    taken = plan(ledger, Pool(W1, (pool_granted or amount) - amount), needs=[amount])
    ledger.sending(taken)
    ledger.applied(taken)
    ledger.spend(spent)
    return ledger, taken.pool


def test_the_first_grant() -> None:
    ledger, pool = granted(5)
    assert pool == Pool(W1, 5)
    assert (ledger.amount, ledger.unspent, ledger.grant_id, ledger.open) == (5, 5, b"new", True)


def test_a_fresh_ledger_holds_nothing() -> None:
    ledger = Ledger(W1)
    assert ledger.unspent == 0
    with pytest.raises(AssertionError):
        ledger.spend(1)


def test_a_need_beyond_what_is_left_takes_nothing_and_says_how_much_is_missing() -> None:
    planned = plan(Ledger(W1), Pool(W1, 97), needs=[2, 5, 1])
    assert planned.pool.granted == 100
    assert planned.grant == Grant(b"new", 3, 0, 0)
    assert planned.missing == 5
    nothing = plan(Ledger(W1), Pool(W1, 97), needs=[5])
    assert nothing.pool.granted == 97
    assert nothing.grant is None
    assert nothing.missing == 5


def test_a_refill_adds_to_the_grant_and_keeps_its_id() -> None:
    ledger, pool = granted(5, spent=4)
    refill = plan(ledger, pool, Grant(b"new", 5, 0, 0), needs=[3], new_id=b"other")
    assert refill.grant == Grant(b"new", 7, 4, 0)
    assert refill.pool.granted == 7
    ledger.sending(refill)
    assert ledger.unspent == 1, "not raised before it has succeeded"
    ledger.applied(refill)
    assert ledger.unspent == 3


def test_what_is_returned_cannot_be_spent_from_the_moment_of_sending() -> None:
    ledger, pool = granted(10, spent=3)
    back = plan(ledger, pool, Grant(b"new", 10, 0, 0))
    assert back.pool.granted == 3
    assert back.grant is None, "a grant that is spent whole is closed"
    ledger.sending(back)
    assert ledger.unspent == 0
    assert not ledger.certain
    ledger.applied(back)
    assert not ledger.open


def test_reservations_keep_a_grant_open_when_the_rest_is_returned() -> None:
    ledger, pool = granted(10, spent=3)
    ledger.hold("r", 4)
    assert ledger.unspent == 3
    back = plan(ledger, pool, Grant(b"new", 10, 0, 0))
    assert back.grant == Grant(b"new", 7, 3, 4)
    assert back.pool.granted == 7
    ledger.sending(back)
    ledger.applied(back)
    ledger.settle("r", 1)
    assert (ledger.spent, ledger.unspent) == (4, 3)


def test_nothing_is_sent_where_consensus_already_says_so() -> None:
    ledger, pool = granted(5)
    same = plan(ledger, pool, Grant(b"new", 5, 0, 0), needs=[5])
    assert not same.changes
    ledger.certain = False
    fence = plan(ledger, pool, Grant(b"new", 5, 0, 0), needs=[5])
    assert fence.changes, "a copy of a lost transaction may still arrive"


def test_a_lowered_limit_takes_nothing_away() -> None:
    ledger, pool = granted(50, spent=10)
    lowered = pool._replace(override=20)
    planned = plan(ledger, lowered, Grant(b"new", 50, 0, 0), needs=[40])
    assert planned.missing == 0
    assert planned.pool.granted == 50
    assert plan(ledger, lowered, Grant(b"new", 50, 0, 0), needs=[41]).missing == 41


def test_after_a_restart_the_grant_is_recovered_from_the_ledgers_own_record() -> None:
    _, pool = granted(10)
    ledger = Ledger(W1, b"new", spent=4)
    assert ledger.unspent == 0, "not before consensus was asked"
    back = plan(ledger, pool, Grant(b"new", 10, 2, 0))
    assert back.pool.granted == 4
    assert back.grant is None


def test_a_grant_that_this_ledger_never_spent_of_is_taken_up_whole() -> None:
    ledger = Ledger(W1, b"older", spent=9)
    taken = plan(ledger, Pool(W1, 10), Grant(b"lost answer", 10, 0, 0), needs=[10])
    assert taken.grant == Grant(b"lost answer", 10, 0, 0)
    assert taken.pool.granted == 10
    ledger.sending(taken)
    ledger.applied(taken)
    assert ledger.unspent == 10


def test_a_grant_that_says_more_was_spent_than_we_know_counts_as_spent() -> None:
    for ledger in (Ledger(W1, b"new", spent=2), Ledger(W1)):
        taken = plan(ledger, Pool(W1, 10), Grant(b"new", 10, 3, 0), needs=[1], new_id=b"next")
        assert taken.grant == Grant(b"next", 1, 0, 0)
        assert taken.pool.granted == 11, "what a rolled-back store may have spent stays debited"


def test_a_forfeited_grant_is_not_credited() -> None:
    ledger, pool = granted(10, spent=2)
    ledger.hold("r", 1)
    taken = plan(ledger, pool, None, needs=[1], new_id=b"next")
    assert taken.pool.granted == 11
    ledger.sending(taken)
    ledger.applied(taken)
    assert (ledger.amount, ledger.spent, ledger.held) == (1, 0, {})


def test_a_new_window_begins_with_nothing() -> None:
    ledger, pool = granted(10, spent=2)
    taken = plan(ledger, pool.at(W2), None, needs=[3], new_id=b"next")
    assert taken.pool == Pool(W2, 3)
    ledger.sending(taken)
    assert ledger.unspent == 8, "the old window's grant is untouched until then"
    ledger.applied(taken)
    assert (ledger.window, ledger.unspent) == (W2, 3)
