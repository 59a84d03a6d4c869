"""Home, standby and former home over links that cut and disks that crash: nothing acknowledged is
lost, one home is left, and staleness is counted right.
"""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from session_network import TAKEOVER_AFTER_MS, Handing, Network, Seen

from roost_crdt import fold
from roost_crdt.errors import Full
from roost_crdt.home import ACTOR_LEAP, Whole, decode_frame
from roost_crdt.sessions.stream import COPIES_A_TICK
from roost_crdt.token import lacks

SID = "s1"
NAMES = ("eu", "us", "ap")
names = st.sampled_from(NAMES)


class SessionHistory(RuleBasedStateMachine):
    """Random commits, cuts, takeovers, handovers and crashes that keep what was durable."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Network(NAMES)
        self.acknowledged: set[str] = set()
        self.tokens: list[Seen] = []
        self.count = 0
        self.opened = False
        self.handing: Handing | None = None

    def running(self) -> list[str]:
        return [name for name in NAMES if name not in self.network.down]

    def text(self) -> str:
        self.count += 1
        return f"turn-{self.count}"

    @rule(name=names)
    @precondition(lambda self: len(self.tokens) < 60)
    def open_or_commit(self, name: str) -> None:
        """A turn, if this node believes that it is home; first contacts anywhere at first."""
        node = self.network[name]
        if name in self.network.down:
            return
        if node.shelf.meta(SID) is None and not self.opened:
            node.stream.begin(SID)
            node.flush()
        handing = self.handing is not None and self.handing.node == name
        if node.is_home(SID) and not handing:
            self.opened = True
            text = self.text()
            self.tokens.append(node.commit(SID, text))
            self.acknowledged.add(text)

    @rule(a=names, b=names)
    @precondition(lambda self: not self.opened)
    def two_first_contacts(self, a: str, b: str) -> None:
        for name in {a, b}:
            node = self.network[name]
            if node.shelf.meta(SID) is None and name not in self.network.down:
                node.stream.begin(SID)
                node.flush()
        self.opened = True

    @rule(a=names, b=names)
    def cut(self, a: str, b: str) -> None:
        if a != b:
            self.network.cut(a, b)

    @rule(a=names, b=names)
    def heal(self, a: str, b: str) -> None:
        if a != b:
            self.network.heal(a, b)

    @rule(a=names, b=names, count=st.integers(1, 5))
    def deliver(self, a: str, b: str, count: int) -> None:
        for _ in range(count):
            self.network.deliver(a, b)

    @rule(ms=st.sampled_from([100, 700, TAKEOVER_AFTER_MS + 1, 11 * TAKEOVER_AFTER_MS]))
    def pass_time(self, ms: int) -> None:
        self.network.pass_time(ms)

    @rule(name=names)
    def take_over(self, name: str) -> None:
        if name not in self.network.down:
            self.network.take_over(name, SID)

    @rule(name=names, to=names)
    @precondition(lambda self: self.handing is None)
    def hand_over_begins(self, name: str, to: str) -> None:
        if name not in self.network.down and name != to and self.network[name].is_home(SID):
            self.handing = self.network.hand_over_begins(name, SID, to)

    @rule()
    @precondition(lambda self: self.handing is not None)
    def hand_over_arrives(self) -> None:
        assert self.handing is not None
        if not self.handing.sent:
            self.network.hand_over_arrives(self.handing)

    @rule(answer=st.booleans())
    @precondition(lambda self: self.handing is not None)
    def hand_over_ends(self, answer: bool) -> None:
        assert self.handing is not None
        self.network.hand_over_ends(self.handing, answer=answer)
        self.handing = None

    @rule(name=names)
    def crash(self, name: str) -> None:
        if name not in self.network.down:
            self.network.crash(name)

    @rule(name=names)
    def crash_before_durable(self, name: str) -> None:
        """The turn was written, not durable, and never acknowledged."""
        handing = self.handing is not None and self.handing.node == name
        if name not in self.network.down and self.network[name].is_home(SID) and not handing:
            self.network[name].write(SID, self.text())
            self.network.crash(name)

    @rule(name=names)
    def start(self, name: str) -> None:
        self.network.start(name)

    @rule(name=names, pick=st.integers(0, 1 << 16))
    @precondition(lambda self: bool(self.tokens))
    def show_a_token(self, name: str, pick: int) -> None:
        """A bearer comes to any node: a higher epoch is believed, a higher home is told."""
        seen = self.tokens[pick % len(self.tokens)]
        if name not in self.network.down:
            node = self.network[name]
            node.shelf.learn(SID, seen.claims.epoch, seen.claims.standby)
            node.flush()

    @invariant()
    def staleness_is_counted_right(self) -> None:
        for name in self.running():
            node = self.network[name]
            meta = node.shelf.meta(SID)
            if meta is None or not meta.held:
                continue
            refs, lineage = node.refs(SID), node.live(SID).fold.lineage()
            for seen in self.tokens[-8:]:
                assert lacks(seen.claims, lineage) == len(seen.turns - refs)

    @invariant()
    def no_frame_was_refused(self) -> None:
        assert self.network.broken == []

    def teardown(self) -> None:
        if self.handing is not None:
            self.network.hand_over_ends(self.handing, answer=True)
        self.network.settle()
        heads = self.network.heads(SID)
        if heads:
            (home,) = {meta.home for meta in heads.values()}
            assert self.network[home].is_home(SID), heads
            turns = self.network[home].turns(SID)
            assert sorted(turns) == sorted(set(turns)), "a turn is held twice"
            assert self.acknowledged <= set(turns), self.acknowledged - set(turns)
            assert not any(meta.unmerged for meta in heads.values()), heads
            standby = heads[home].standby
            assert standby is not None
            assert heads[standby].epoch == heads[home].epoch
            assert self.network[standby].turns(SID) == turns
            assert heads[home].acked_n == heads[home].n
        assert self.network.broken == []


TestSessionHistory = SessionHistory.TestCase
TestSessionHistory.settings = settings(stateful_step_count=40)


def replaced(network: Network, home: str, ms: int) -> str | None:
    """The standby after that much time, in steps of a second."""
    for _ in range(ms // 1_000):
        network.pass_time(1_000)
        network.deliver_all()
    return network[home].live(SID).meta.standby


def test_the_standby_of_an_idle_session_is_replaced_once_it_is_gone() -> None:
    network = Network(NAMES)
    network["eu"].stream.begin(SID)
    network["eu"].commit(SID, "one")
    network.settle()
    former = network["eu"].live(SID).meta.standby
    assert former is not None
    network.crash(former)
    assert replaced(network, "eu", 9_000) == former
    other = replaced(network, "eu", 4_000)
    assert other not in (former, None)
    assert network[str(other)].turns(SID) == ["one"]
    assert network["eu"].live(SID).meta.epoch == (2, "eu")


def test_a_restarted_home_gives_its_standby_time_to_come_up() -> None:
    network = Network(NAMES)
    network["eu"].stream.begin(SID)
    network["eu"].commit(SID, "one")
    network.settle()
    standby = network["eu"].live(SID).meta.standby
    assert standby is not None
    network.crash("eu")
    network.cut("eu", standby)
    network.cut_at[frozenset(("eu", standby))] = -1 << 40  # never heard since the start
    network.start("eu")
    assert replaced(network, "eu", 5_000) == standby
    assert replaced(network, "eu", 9_000) != standby


def at_home(*names: str) -> Network:
    """A session of `eu` with one turn, held by its standby."""
    network = Network(names)
    network["eu"].stream.begin(SID)
    network["eu"].commit(SID, "one")
    network.settle()
    return network


def test_what_is_merged_during_a_handover_reaches_the_next_home() -> None:
    network = at_home("eu", "us", "ap")
    standby = network["eu"].live(SID).meta.standby
    assert standby is not None
    (other,) = {"us", "ap"} - {standby}
    network.cut("eu", standby)
    network["eu"].commit(SID, "only at eu")
    network.pass_time(2_000)
    assert network.take_over(standby, SID)
    handing = network.hand_over_begins(standby, SID, other)
    network.heal("eu", standby)
    network.deliver_all()  # eu is deposed and merges into the home that is giving the session away
    network.hand_over_arrives(handing)
    network.hand_over_ends(handing, answer=True)
    assert network[standby].live(SID).meta.unmerged
    network.settle()
    assert network[other].is_home(SID)
    assert sorted(network[other].turns(SID)) == ["one", "only at eu"]


def test_an_epoch_entered_during_a_handover_stays() -> None:
    network = at_home("eu", "us", "ap")
    eu = network["eu"]
    (other,) = {"us", "ap"} - {eu.live(SID).meta.standby}
    handing = network.hand_over_begins("eu", SID, other)
    eu.live(SID).enter_epoch("eu", other, network.now_ms)
    higher = eu.live(SID).meta
    lower = msgspec.structs.replace(handing.frame, epoch=(2, "ap"))
    eu.stream.handed_over(eu.live(SID), lower)
    assert eu.live(SID).meta == higher


def test_a_lost_answer_of_a_handover_is_outranked_only_by_a_home() -> None:
    network = at_home("eu", "us")
    network.hand_over("eu", SID, "us", answer=False)
    assert network["eu"].live(SID).meta.epoch == (3, "eu")
    network.settle()
    assert network["eu"].is_home(SID)
    handing = network.hand_over_begins("eu", SID, "us")
    network.hand_over_arrives(handing)
    network.deliver_all()  # the next home's own offer is faster than the lost answer
    network.hand_over_ends(handing, answer=False)
    network.settle()
    assert network["us"].is_home(SID)
    assert network["us"].live(SID).meta.epoch == (4, "us")


def test_new_standbys_get_their_copies_a_few_at_a_time() -> None:
    network = Network(("eu", "us"))
    network.cut("eu", "us")
    eu = network["eu"]
    for number in range(3 * COPIES_A_TICK):
        eu.stream.begin(f"s{number}")
    eu.flush()
    network.heal("eu", "us")
    sent = []
    for _ in range(4):
        eu.stream.tick()
        eu.rows.flush()
        frames = eu.stream.take_frames()
        sent.append(len([frame for _, frame in frames if isinstance(decode_frame(frame), Whole)]))
    assert sent[-1] == 0, "nothing is sent again before it can be acknowledged"
    assert max(sent) <= COPIES_A_TICK
    network.settle()
    assert all(eu.live(f"s{number}").meta.standby == "us" for number in range(3 * COPIES_A_TICK))


def test_one_damaged_session_does_not_hold_up_the_others() -> None:
    network = at_home("eu", "us")
    eu = network["eu"]
    eu.stream.begin("s2")
    eu.commit("s2", "two")
    for key in [key for key in eu.rows.written if key.startswith(b"s\0s1\0e")]:
        eu.rows.written[key] = b"\xc1"
    eu.flush()
    network.crash("eu")
    network.start("eu")
    network.settle()
    assert {sid for _, sid, _ in network.broken} == {SID}
    assert network["us"].turns("s2") == ["two"]
    assert eu.live("s2").meta.acked_n == eu.live("s2").meta.n


@pytest.mark.parametrize("answer", [True, False])
def test_a_session_that_was_erased_during_its_handover_stays_erased(answer: bool) -> None:
    network = at_home("eu", "us")
    eu = network["eu"]
    handing = network.hand_over_begins("eu", SID, "us")
    network.hand_over_arrives(handing)
    eu.stream.erase_here(SID, network.now_ms)
    erased = eu.shelf.meta(SID)
    network.hand_over_ends(handing, answer=answer)
    assert eu.shelf.meta(SID) == erased
    assert eu.shelf.live(SID) is None
    network.settle()
    assert not network.heads(SID)


def test_home_sees_in_what_its_standby_shows_that_it_has_lost_a_tail() -> None:
    network = at_home("eu", "us")
    eu = network["eu"]
    live, meta = eu.live(SID), eu.live(SID).meta
    for epoch, n, chain in (
        (meta.epoch, meta.n, meta.chain),
        (meta.epoch, 0, b"behind"),
        ((9, "us"), 5, b"of another epoch"),
    ):
        assert not eu.stream.shown_copy(live, epoch, n, chain)
    assert eu.live(SID).meta == meta
    assert eu.stream.shown_copy(live, meta.epoch, meta.n + 1, b"ahead")
    assert eu.live(SID).meta.epoch == (meta.epoch[0] + ACTOR_LEAP, "eu")
    eu.flush()
    network.settle()
    assert network["us"].live(SID).meta.epoch == eu.live(SID).meta.epoch


def test_what_was_dropped_on_its_way_behind_a_neighbour_is_told_again() -> None:
    network = Network(("a", "b", "c"))
    network.cut("a", "c")
    a = network["a"]
    a.stream.begin(SID)
    a.flush()
    network.pass_time(100)
    network.deliver_all()
    a.stream.tell_again({"unknown"})
    assert not a.stream.sweep_due
    a.stream.tell_again({"c"})
    assert a.stream.sweep_due
    a.stream.sweep_page("")
    assert "c" in {node for node, _ in a.stream.take_frames()}
    a.stream.sweep_page("")
    assert "c" not in {node for node, _ in a.stream.take_frames()}, "once"


@pytest.mark.parametrize("forked", [False, True])
def test_a_session_whose_first_step_the_store_refuses_is_not_there(*, forked: bool) -> None:
    home = Network(NAMES)["eu"]
    entry = fold.turn_entry((1, "eu"), 1, parent=None, turn_id="t", messages=[b"{}"], at_ms=1)
    entries = dict([entry]) if forked else {}
    home.rows.refuse = Full("no room")
    with pytest.raises(Full):
        home.stream.begin(SID, 1, entries)
    assert home.shelf.meta(SID) is None
    home.rows.refuse = None
    assert home.stream.begin(SID, 1, entries).head_turn() == len(entries)
    assert home.rows.scan(b"m\0", b"", 2)


def test_what_a_fork_begins_with_reaches_its_standby() -> None:
    network = Network(NAMES)
    home = network["eu"]
    entry = fold.turn_entry((1, "eu"), 1, parent=None, turn_id="t", messages=[b"{}"], at_ms=1)
    live = home.stream.begin(SID, 1, dict([entry]))
    home.flush()
    network.settle()
    standby = network[live.meta.standby or ""].shelf.live(SID)
    assert standby is not None
    assert standby.head_turn() == 1
    assert live.meta.acked_n == live.meta.n


def test_a_handover_that_the_store_refuses_leaves_no_empty_copy() -> None:
    network = Network(NAMES)
    home = network["eu"]
    live = home.stream.begin(SID)
    home.flush()
    other = next(network[name] for name in NAMES if name not in ("eu", live.meta.standby))
    other.rows.refuse = Full("no room")
    with pytest.raises(Full):
        other.stream.adopt(home.stream.handover(live, other.name))
    assert other.shelf.meta(SID) is None
