"""Rules without a seed of their own: the test of their module that fails without each of them.

As a plugin of pytest (`-p sim.caught`) it takes the rule out around its test. Where the rule is a
shell's, the daemon's is taken out here, and the simulator's in `mutants.py`.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack
from typing import Any

import pytest
from sim.mutants import ALL, Patch, patched

from roostd.node.accounts import Accounts
from roostd.node.quotas import Quotas


async def _at_once() -> None:
    return None


def _answers_at_once(self: Any, *arguments: Any, **more: Any) -> None:
    _quotas(self, *arguments, **more)
    self._durable = _at_once


_quotas = Quotas.__init__


def _one_actor_for_ever(self: Any, *arguments: Any, **more: Any) -> None:
    _accounts(self, *arguments, **more)
    self._actor = lambda: 1


_accounts = Accounts.__init__


IN_THE_DAEMON: dict[str, tuple[Patch, ...]] = {
    "what another actor was granted is spent": ((Accounts, "__init__", _one_actor_for_ever),),
    "a spend is answered before it is durable": ((Quotas, "__init__", _answers_at_once),),
}

TESTS: dict[str, str] = {
    "who has still to meet a neighbour reports what it holds": "crdt/test_membership_collector.py::"
    "test_it_waits_for_whom_a_member_has_still_to_meet",
    "a new actor goes on in the old epoch": "crdt/test_sessions_shelf.py::"
    "test_a_home_enters_a_new_epoch_before_another_actor_writes",
    "a new actor takes the next epoch": "crdt/test_sessions_copy.py::"
    "test_another_actor_never_writes_under_the_epoch_of_the_one_before",
    "a turn id of an earlier home is not looked up": "crdt/test_fold.py::"
    "test_a_turn_id_is_found_whichever_home_wrote_it",
    "a call begun under an earlier epoch is no doubt": "crdt/test_fold.py::"
    "test_begun_under_an_earlier_epoch_is_in_doubt_until_it_is_begun_again",
    "the newest step of a call stands": "crdt/test_fold.py::"
    "test_two_results_are_settled_by_the_earliest_epoch",
    "fields of two homes with one number are left to Yjs": "crdt/test_sessions_copy.py::"
    "test_a_field_of_two_homes_of_one_number_is_written_again_for_all",
    "a lost tail is not left": "crdt/test_sessions_stream.py::"
    "test_home_sees_in_what_its_standby_shows_that_it_has_lost_a_tail",
    "merged turns are given up before the standby has them": "crdt/test_sessions_intake.py::"
    "test_a_former_home_keeps_its_turns_until_the_new_ones_standby_has_them",
    "a home that lost everything takes nothing from a former one": "crdt/test_sessions_intake.py::"
    "test_a_home_that_lost_everything_begins_again_with_what_a_former_home_holds",
    "a home that lost everything does not ask its standby": "crdt/test_sessions_intake.py::"
    "test_a_home_that_holds_nothing_asks_its_standby_to_take_over",
    "what a standby acknowledged it is trusted to have": "crdt/test_sessions_intake.py::"
    "test_a_standby_that_went_back_in_time_is_offered_the_session_when_its_link_comes_up",
    "nobody behind a neighbour hears of an epoch": "crdt/test_sessions_intake.py::"
    "test_two_homes_meet_though_neither_they_nor_their_standbys_are_neighbours",
    "all is swept again where a frame had no room": "crdt/test_sessions_stream_upkeep.py::"
    "test_a_repeated_sweep_says_epochs_alone_and_counts_for_no_other",
    "a turn counts as the copy that a new standby lacks": "crdt/test_sessions_stream_upkeep.py::"
    "test_a_busy_session_gets_its_standby_though_the_first_copy_was_lost",
    "a node that is drained takes sessions in": "crdt/test_sessions_stream_upkeep.py::"
    "test_who_is_drained_takes_no_session_in_and_not_soon_after",
    "an erasure is not passed on": "crdt/test_sessions_intake.py::"
    "test_an_erasure_is_passed_on_by_whoever_hears_of_it",
    "an erasure is told once": "crdt/test_sessions_intake.py::"
    "test_an_erasure_that_got_lost_is_told_again_until_it_is_answered",
    "a handover outranks an erasure": "crdt/test_sessions_stream.py::"
    "test_a_session_that_was_erased_during_its_handover_stays_erased",
    "a grant that may be returned already is spent": "crdt/test_grants.py::"
    "test_what_is_returned_cannot_be_spent_from_the_moment_of_sending",
    "what another actor was granted is spent": "daemon/test_quotas_faults.py::"
    "test_a_new_actors_old_grant_counts_as_spent_until_the_window_ends",
    "a spend is answered before it is durable": "daemon/test_quotas.py::"
    "test_a_spend_is_durable_before_it_is_answered",
}


def rule_of(node_id: str) -> str | None:
    """The rule that is to be taken out around a test."""
    for name, test in TESTS.items():
        if node_id.removeprefix("tests/").partition("[")[0] == test:
            return name
    return None


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, None, None]:
    name = rule_of(item.nodeid)
    with ExitStack() as stack:
        if name is not None:
            stack.enter_context(patched(IN_THE_DAEMON.get(name) or ALL[name]))
        yield
