"""Frames of sessions taken in, kind by kind: the answer, and what is held afterwards."""

from __future__ import annotations

import msgspec
from session_network import Network, held_by_both

from roost_crdt.home import (
    Ack,
    Deposed,
    Erase,
    Frame,
    Merge,
    Offer,
    Update,
    Want,
    Whole,
    decode_frame,
    encode_frame,
)

SID = "s1"


def frames_after(network: Network, frame: Frame) -> list[Frame]:
    """What us answers to a frame of eu."""
    us = network["us"]
    us.stream.take_frames()
    us.stream.on_frame("eu", encode_frame(frame))
    return [decode_frame(answer) for _, answer in us.stream.take_frames()]


def updates_of(network: Network, *texts: str) -> list[Update]:
    """The steps that eu writes, taken from the wire."""
    eu = network["eu"]
    eu.stream.take_frames()
    for text in texts:
        eu.write(SID, text)
    eu.rows.flush()
    frames = [decode_frame(frame) for _, frame in eu.stream.take_frames()]
    return [frame for frame in frames if isinstance(frame, Update)]


def test_a_step_that_does_not_fit_is_asked_for_once_and_arrives_whole() -> None:
    network = held_by_both(SID)
    _, third, fourth = updates_of(network, "two", "three", "four")
    epoch = network["us"].live(SID).meta.epoch
    assert frames_after(network, third) == [Want(SID, epoch)]
    assert frames_after(network, fourth) == [], "one answer mends both"
    assert network["us"].turns(SID) == ["one"]
    network["eu"].stream.on_frame("us", encode_frame(Want(SID, epoch)))
    network["eu"].flush()
    network.deliver_all()
    assert network["us"].turns(SID) == ["one", "two", "three", "four"]
    assert network["eu"].live(SID).meta.acked_n == network["eu"].live(SID).meta.n


def test_a_step_that_is_held_already_is_acknowledged_again() -> None:
    network = held_by_both(SID)
    (second,) = updates_of(network, "two")
    (first_answer,) = frames_after(network, second)
    assert frames_after(network, second) == [first_answer]
    assert isinstance(first_answer, Ack)
    assert network["us"].turns(SID) == ["one", "two"]


def test_a_step_of_a_former_home_is_answered_with_the_epoch_in_force() -> None:
    network = held_by_both(SID)
    (stale,) = updates_of(network, "only at eu")
    network.cut("eu", "us")
    network.pass_time(2_000)
    assert network.take_over("us", SID)
    us = network["us"]
    answers = frames_after(network, stale)
    assert answers[0] == Deposed(SID, us.live(SID).meta.epoch, "eu")
    assert us.turns(SID) == ["one"]
    network.settle()
    assert sorted(us.turns(SID)) == ["one", "only at eu"]


def test_an_erasure_drops_every_row_and_outranks_every_frame() -> None:
    network = held_by_both(SID)
    (update,) = updates_of(network, "two")
    whole = network["eu"].live(SID).whole()
    us = network["us"]
    assert frames_after(network, Erase(SID, 77)) == [Erase(SID, 77, heard=True)]
    meta = us.shelf.meta(SID)
    assert meta is not None
    assert (meta.erased_ms, meta.held) == (77, False)
    assert us.shelf.live(SID) is None
    assert len(us.rows.written) == 1, "nothing is left but that it was erased"
    higher = msgspec.structs.replace(whole, epoch=(99, "eu"))
    for frame in (update, whole, higher, Deposed(SID, (99, "us"), None)):
        assert frames_after(network, frame) == [Erase(SID, 77)]
    assert frames_after(network, Erase(SID, 99)) == [Erase(SID, 77, heard=True)]
    assert frames_after(network, Erase(SID, 77, heard=True)) == [], "an answer is not answered"
    assert us.shelf.meta(SID) == meta, "the first erasure stands"


def test_what_is_not_held_is_not_sent() -> None:
    network = held_by_both(SID)
    assert frames_after(network, Want("unknown", (1, "us"))) == []
    assert frames_after(network, Merge("unknown", (1, "us"), b"")) == []
    assert frames_after(network, Ack("unknown", (1, "us"), 1, b"")) == []
    assert network["us"].shelf.meta("unknown") is None


def deposed_with_a_turn() -> Network:
    """us was home with a turn of its own when it hears of a higher epoch of eu."""
    network = held_by_both(SID)
    network.cut("eu", "us")
    network.pass_time(2_000)
    assert network.take_over("us", SID)
    network["us"].commit(SID, "only at us")
    network["us"].shelf.learn(SID, (5, "eu"), "us")
    assert network["us"].live(SID).meta.unmerged
    return network


def test_what_a_former_home_holds_alone_is_not_replaced_before_it_is_merged() -> None:
    network = deposed_with_a_turn()
    us, eu = network["us"], network["eu"]
    whole = msgspec.structs.replace(eu.live(SID).whole(), epoch=(6, "eu"), standby="us")
    (merge,) = frames_after(network, whole)
    assert isinstance(merge, Merge)
    assert merge.epoch == (6, "eu")
    assert us.live(SID).meta.epoch == (6, "eu")
    assert us.turns(SID) == ["one", "only at us"]
    offer = Offer(SID, (6, "eu"), "us", 9, b"c" * 16, network.now_ms)
    update = Update(SID, (6, "eu"), "us", 9, b"c" * 16, b"", {}, {}, 1, network.now_ms)
    for frame in (offer, update, whole):
        assert frames_after(network, frame) == [], "neither taken nor asked for"
    assert us.live(SID).meta.unmerged
    eu.shelf.learn(SID, (6, "eu"), "us")
    eu.stream.on_frame("us", encode_frame(merge))
    assert sorted(eu.turns(SID)) == ["one", "only at us"]


def test_an_offer_of_what_is_held_names_the_standby_in_force() -> None:
    network = held_by_both(SID)
    us = network["us"]
    meta = us.live(SID).meta
    for standby in ("us", "ap", "us"):
        offer = Offer(SID, meta.epoch, standby, meta.n, meta.chain, network.now_ms)
        (answer,) = frames_after(network, offer)
        assert answer == Ack(SID, meta.epoch, meta.n, meta.chain)
        assert us.live(SID).meta.standby == standby


def eu_hears(network: Network, peer: str, frame: Frame) -> list[Frame]:
    eu = network["eu"]
    eu.stream.take_frames()
    eu.stream.on_frame(peer, encode_frame(frame))
    return [decode_frame(answer) for _, answer in eu.stream.take_frames()]


def test_only_the_standby_under_the_epoch_in_force_acknowledges() -> None:
    network = held_by_both(SID)
    network.cut("eu", "us")
    eu = network["eu"]
    eu.commit(SID, "two")
    meta = eu.live(SID).meta
    assert meta.acked_n < meta.n
    ack = Ack(SID, meta.epoch, meta.n, meta.chain)
    for peer, frame in (
        ("ap", ack),
        ("us", msgspec.structs.replace(ack, epoch=(meta.epoch[0] + 1, "us"))),
        ("us", msgspec.structs.replace(ack, epoch=(meta.epoch[0], "a"))),
    ):
        assert eu_hears(network, peer, frame) == []
        assert eu.live(SID).meta == meta
    assert eu_hears(network, "us", ack) == []
    assert eu.live(SID).meta.acked_n == meta.n
    us = network["us"]
    us.stream.on_frame("eu", encode_frame(ack))
    assert us.live(SID).meta.acked_n == 0, "a standby is nobody's home"


def test_a_standby_of_another_chain_is_sent_the_whole() -> None:
    network = held_by_both(SID)
    meta = network["eu"].live(SID).meta
    other = Ack(SID, meta.epoch, meta.n, b"another chain   ")
    assert eu_hears(network, "us", other) == [network["eu"].live(SID).whole()]
    further = Ack(SID, meta.epoch, meta.n + 3, meta.chain)
    assert eu_hears(network, "us", further) == [network["eu"].live(SID).whole()]


def test_whoever_waits_for_a_step_is_called_when_it_is_held_and_not_before() -> None:
    network = held_by_both(SID)
    network.cut("eu", "us")
    eu = network["eu"]
    chains = {}
    for text in ("two", "three"):
        eu.commit(SID, text)
        chains[eu.live(SID).meta.n] = eu.live(SID).meta.chain
    called: list[int] = []
    live = eu.live(SID)
    for n in sorted(chains):
        eu.stream.when_held(live, n, lambda n=n: called.append(n))  # type: ignore[misc]
    first, second = sorted(chains)
    eu_hears(network, "us", Ack(SID, live.meta.epoch, first, chains[first]))
    assert called == [first]
    eu_hears(network, "us", Ack(SID, live.meta.epoch, second, chains[second]))
    assert called == [first, second]
    eu.stream.when_held(live, second, lambda: called.append(0))
    assert called[-1] == 0, "at once"


def test_a_new_standby_is_named_once_it_holds_every_step() -> None:
    network = Network(("eu", "us"))
    network.cut("eu", "us")
    eu = network["eu"]
    eu.stream.begin(SID)
    eu.commit(SID, "one")
    network.heal("eu", "us")
    sent = [decode_frame(frame) for frame in network.ways["eu", "us"]]
    (whole,) = [frame for frame in sent if isinstance(frame, Whole)]
    behind = eu.live(SID).meta
    eu.write(SID, "two")
    assert eu.live(SID).meta.standby is None
    assert eu_hears(network, "us", Ack(SID, behind.epoch, behind.n, behind.chain)) == []
    assert eu.live(SID).meta.standby is None, "it lacks a turn"
    now = eu.live(SID).meta
    (offer,) = eu_hears(network, "us", Ack(SID, now.epoch, now.n, now.chain))
    assert isinstance(offer, Offer)
    assert (offer.epoch, offer.standby) == ((behind.epoch[0] + 1, "eu"), "us")
    assert (whole.n, whole.standby) == (behind.n, None)


def test_a_home_begins_again_with_what_is_left_be_it_nothing() -> None:
    """It lost the session and had no standby; a former home held it before its first turn."""
    network = Network(("eu", "us"))
    us = network["us"]
    us.shelf.remember_stub(SID, (3, "us"), None)
    frames_after(network, Merge(SID, (3, "us"), b"\0\0", b"c" * 16))
    meta = us.live(SID).meta
    assert meta.held
    assert meta.home == "us"
    assert meta.epoch > (3, "us"), "clear of what it may have written"
    assert us.turns(SID) == []
    us.rows.flush()
    network.crash("us")
    network.start("us")
    assert us.live(SID).meta.epoch == meta.epoch, "it is stored"
