"""Who is home: epochs, chains, the standby's choice, takeover; frames decoded totally."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost_crdt.errors import BadRequest, CorruptData, PeerError
from roost_crdt.home import (
    CHAIN_START,
    EPOCH_MAX,
    Ack,
    Candidate,
    Deposed,
    Erase,
    Follow,
    Frame,
    Merge,
    Merged,
    Meta,
    Offer,
    Update,
    Verdict,
    Want,
    Whole,
    chain_next,
    check_sid,
    choose_standby,
    decode_frame,
    decode_meta,
    encode_frame,
    encode_meta,
    judge_offer,
    judge_update,
    may_take_over,
    succeed,
    told_once,
)

HELD = Meta("s1", (2, "eu"), "us", n=3, chain=b"c" * 16, turn=3)
FRAMES: list[Frame] = [
    Update("s1", (1, "eu"), "us", 1, CHAIN_START, b"u", {"t/1.eu.1": b"x"}, {}, 1, 5),
    Ack("s1", (1, "eu"), 1, CHAIN_START),
    Want("s1", (1, "eu")),
    Whole("s1", (1, "eu"), None, 2, CHAIN_START, b"d", 2, 7),
    Deposed("s1", (2, "us"), "eu"),
    Merge("s1", (2, "us"), b"d"),
    Merged("s1", (2, "us")),
    Erase("s1", 9),
    Offer("s1", (1, "eu"), "us", 2, CHAIN_START, 7),
]


def test_a_head_is_read_as_it_was_written() -> None:
    assert decode_meta(encode_meta(HELD)) == HELD
    assert HELD.home == "eu"


def test_a_head_that_is_none_is_corrupt() -> None:
    with pytest.raises(CorruptData):
        decode_meta(b"\x93\x01")


@pytest.mark.parametrize("frame", FRAMES, ids=lambda f: type(f).__name__)
def test_a_frame_is_read_as_it_was_written(frame: Frame) -> None:
    assert decode_frame(encode_frame(frame)) == frame


def test_only_the_news_of_an_epoch_waits_for_no_answer() -> None:
    """Any other frame is said again until it is answered; who missed this one is noted."""
    assert [type(frame) for frame in FRAMES if told_once(encode_frame(frame))] == [Deposed]


@given(st.binary(max_size=200))
def test_foreign_bytes_are_a_peer_error(raw: bytes) -> None:
    try:
        decode_frame(raw)
    except PeerError:
        return
    assert encode_frame(decode_frame(raw))


@given(st.sampled_from(FRAMES), st.integers(0, 10_000), st.integers(0, 255))
def test_a_mutated_frame_is_read_or_refused(frame: Frame, at: int, byte: int) -> None:
    raw = bytearray(encode_frame(frame))
    raw[at % len(raw)] = byte
    try:
        again = decode_frame(bytes(raw))
    except PeerError:
        return
    check_sid(again.sid, BadRequest)


@pytest.mark.parametrize("n", [0, EPOCH_MAX + 1])
def test_an_epoch_out_of_range_is_refused(n: int) -> None:
    with pytest.raises(PeerError, match="out of range"):
        decode_frame(encode_frame(Want("s1", (n, "eu"))))


def test_an_epoch_without_a_node_is_refused() -> None:
    with pytest.raises(PeerError, match="out of range"):
        decode_frame(encode_frame(Want("s1", (1, ""))))


@pytest.mark.parametrize("sid", ["", "a b", "a/b", "a:b", "a\x7f", "é", "x" * 121, 'a"'])
def test_a_session_id_is_a_plain_word(sid: str) -> None:
    with pytest.raises(BadRequest, match="session id"):
        check_sid(sid, BadRequest)


def test_each_change_of_home_or_standby_adds_one() -> None:
    after = succeed(HELD, "us", "eu")
    assert (after.epoch, after.standby, after.acked_n) == ((3, "us"), "eu", 0)
    assert (after.n, after.chain) == (HELD.n, HELD.chain)
    with pytest.raises(AssertionError):
        succeed(msgspec.structs.replace(HELD, epoch=(EPOCH_MAX, "eu")), "us", None)


@given(st.lists(st.binary(max_size=20), min_size=2, max_size=6), st.data())
def test_a_chain_knows_order_and_content(updates: list[bytes], data: st.DataObject) -> None:
    def chain(items: list[bytes]) -> bytes:
        value = CHAIN_START
        for item in items:
            value = chain_next(value, item)
        return value

    other = data.draw(st.permutations(updates))
    assert (chain(updates) == chain(other)) == (updates == other)
    assert chain(updates) != chain(updates[:-1])


@pytest.mark.parametrize(
    ("mine", "epoch", "n", "prev", "verdict"),
    [
        (None, (1, "eu"), 1, CHAIN_START, Verdict.APPEND),
        (None, (1, "eu"), 2, CHAIN_START, Verdict.WANT),
        (None, (1, "eu"), 1, b"x" * 16, Verdict.WANT),
        (HELD, (2, "eu"), 4, HELD.chain, Verdict.APPEND),
        (HELD, (3, "us"), 4, HELD.chain, Verdict.APPEND),
        (HELD, (2, "eu"), 4, b"x" * 16, Verdict.WANT),
        (HELD, (2, "eu"), 5, HELD.chain, Verdict.WANT),
        (HELD, (2, "eu"), 3, b"x" * 16, Verdict.DUPLICATE),
        (HELD, (3, "us"), 3, b"x" * 16, Verdict.WANT),
        (HELD, (1, "zz"), 4, HELD.chain, Verdict.DEPOSED),
        (HELD, (2, "aa"), 4, HELD.chain, Verdict.DEPOSED),
    ],
)
def test_an_update_extends_the_chain_or_is_asked_for(
    mine: Meta | None, epoch: tuple[int, str], n: int, prev: bytes, verdict: Verdict
) -> None:
    assert judge_update(mine, epoch, n, prev) is verdict


def test_a_stub_takes_a_first_update_unless_it_knows_better() -> None:
    stub = msgspec.structs.replace(HELD, held=False)
    assert judge_update(stub, (3, "us"), 1, CHAIN_START) is Verdict.APPEND
    assert judge_update(stub, (1, "us"), 1, CHAIN_START) is Verdict.DEPOSED


def test_a_deposed_home_takes_nothing_before_its_turns_are_merged() -> None:
    deposed = msgspec.structs.replace(HELD, unmerged=True)
    assert judge_update(deposed, (3, "us"), 4, HELD.chain) is Verdict.WANT


@pytest.mark.parametrize(
    ("mine", "offer", "verdict"),
    [
        (None, Offer("s1", (1, "eu"), "us", 0, CHAIN_START, 0), Verdict.WANT),
        (HELD, Offer("s1", (2, "eu"), "us", 3, HELD.chain, 0), Verdict.DUPLICATE),
        (HELD, Offer("s1", (3, "us"), "eu", 3, HELD.chain, 0), Verdict.DUPLICATE),
        (HELD, Offer("s1", (3, "us"), "eu", 3, b"x" * 16, 0), Verdict.WANT),
        (HELD, Offer("s1", (3, "us"), "eu", 9, HELD.chain, 0), Verdict.WANT),
        (HELD, Offer("s1", (1, "us"), "eu", 9, HELD.chain, 0), Verdict.DEPOSED),
    ],
)
def test_an_offer_is_acknowledged_or_wanted(
    mine: Meta | None, offer: Offer, verdict: Verdict
) -> None:
    assert judge_offer(mine, offer) is verdict


def test_a_stub_wants_what_is_offered_unless_it_knows_better() -> None:
    stub = msgspec.structs.replace(HELD, held=False)
    assert judge_offer(stub, Offer("s1", (2, "eu"), "us", 3, HELD.chain, 0)) is Verdict.WANT
    assert judge_offer(stub, Offer("s1", (1, "us"), "us", 3, HELD.chain, 0)) is Verdict.DEPOSED


def test_only_the_named_standby_takes_over_and_only_on_evidence() -> None:
    def may(mine: Meta | None, node: str, silent_ms: int = 1000, failed: bool = True) -> bool:
        return may_take_over(
            mine, node, home_silent_ms=silent_ms, takeover_after_ms=1000, probe_failed=failed
        )

    assert may(HELD, "us")
    assert not may(HELD, "us", silent_ms=999)
    assert not may(HELD, "us", failed=False)
    assert not may(HELD, "ap")
    assert not may(None, "us")
    assert not may(msgspec.structs.replace(HELD, held=False), "us")
    assert not may(msgspec.structs.replace(HELD, erased_ms=1), "us")
    assert not may(msgspec.structs.replace(HELD, epoch=(2, "us")), "us")


def test_the_standby_is_near_elsewhere_and_allowed() -> None:
    near = Candidate("us-1", "us", 80.0)
    far = Candidate("ap-1", "ap", 180.0)
    same = Candidate("eu-2", "eu", 1.0)
    assert choose_standby("s", "eu", [near, far, same]) == "us-1"
    assert choose_standby("s", "eu", [near, far], ["eu", "ap"]) == "ap-1"
    assert choose_standby("s", "eu", [same]) is None
    assert choose_standby("s", "eu", [near], ["eu"]) is None


def test_sessions_spread_over_equal_neighbours_and_move_only_with_their_own() -> None:
    nodes = [Candidate(f"us-{k}", "us", 80.0) for k in range(3)]
    sids = [f"s{k}" for k in range(300)]
    before = {sid: choose_standby(sid, "eu", nodes) for sid in sids}
    assert all(list(before.values()).count(c.node) > 60 for c in nodes)
    after = {sid: choose_standby(sid, "eu", nodes[:2]) for sid in sids}
    assert all(after[s] == before[s] for s in sids if before[s] != "us-2")


def test_home_follows_a_user_who_stays_elsewhere() -> None:
    follow = Follow()
    for node in ("us", "us", "us"):
        follow = follow.counted(node)
    assert follow.due(3)
    assert not follow.due(4)
    assert not follow.due(0)
    assert not follow.counted("").due(1)
    assert follow.counted("ap") == Follow("ap", 1)
