"""Orders for the ranks of several nodes, with hand-made members; tests/handoff/team_model.py searches the protocol."""

from __future__ import annotations

from typing import Any

import pytest

from autoresume.handoff.fence import Order
from autoresume.node.team import Member, Team

Sent = dict[int, list[dict[str, Any]]]


def make(*states: dict[str, Any]) -> tuple[Team, Sent]:
    """A team whose members have told these states, and what is sent to each."""
    sent: Sent = {number: [] for number in range(len(states))}
    members = {number: Member(number, sent[number].append, state=state) for number, state in enumerate(states)}
    return Team(members), sent


def state(most: int, left: bool = False, settled: bool = True, **more: Any) -> dict[str, Any]:
    return {"ready": True, "most": most, "left": left, "settled": settled, **more}


def answer(team: Team, number: int, target: int, accepted: bool = True, left: bool = False) -> None:
    team.answer(number, {"target": target, "accepted": accepted, "left": left})


def kinds(sent: Sent) -> list[list[str]]:
    return [[message["kind"] for message in messages] for messages in sent.values()]


def test_an_order_is_offered_ahead_of_all_and_confirmed_when_all_accept() -> None:
    """The furthest rank of any node counts; nothing is confirmed before the last answer."""
    team, sent = make(state(7), state(12), state(9))
    team.propose(2, Order.STOP)
    assert [messages[0]["target"] for messages in sent.values()] == [14, 14, 14]
    answer(team, 1, 14)
    answer(team, 0, 14)
    assert team.answered() == (False, None)
    answer(team, 2, 14)
    assert team.answered() == (True, 14)
    assert kinds(sent) == [["offer", "confirm"]] * 3
    assert team.answered() == (False, None)


def test_one_refusal_withdraws_it_on_all() -> None:
    """Also on those that hold their ranks at that step already."""
    team, sent = make(state(7), state(8))
    team.propose(1, Order.SAVE)
    answer(team, 0, 9)
    answer(team, 1, 9, accepted=False)
    assert team.answered() == (True, None)
    assert kinds(sent) == [["offer", "withdraw"]] * 2


def test_where_all_have_left_nobody_comes_to_an_order() -> None:
    """It is withdrawn; with one that still trains it holds, and those that have left obey it where they stand."""
    team, sent = make(state(7, left=True), state(7, left=True))
    team.propose(1, Order.SAVE)
    answer(team, 0, 8, left=True)
    answer(team, 1, 8, left=True)
    assert team.answered() == (True, None)
    team.propose(1, Order.SAVE)
    answer(team, 0, 8, left=True)
    answer(team, 1, 8, left=False)
    assert team.answered() == (True, 8)
    assert kinds(sent) == [["offer", "withdraw", "offer", "confirm"]] * 2


def test_an_answer_to_another_offer_counts_for_nothing() -> None:
    """It was given to an offer that is over."""
    team, _ = make(state(7))
    answer(team, 0, 8)
    team.propose(2, Order.SAVE)
    answer(team, 0, 8, accepted=False)
    assert team.answered() == (False, None)
    answer(team, 0, 9)
    assert team.answered() == (True, 9)


@pytest.mark.parametrize("had_answered", [True, False])
def test_a_node_that_is_lost_makes_the_offer_void(had_answered: bool) -> None:
    """Its ranks may hold that step or have passed it: nobody acts there."""
    team, sent = make(state(7), state(7))
    team.propose(1, Order.SAVE)
    answer(team, 0, 8)
    if had_answered:
        answer(team, 1, 8)
    team.lose(1)
    assert team.answered() == (True, None)
    assert kinds(sent)[0] == ["offer", "withdraw"]
    team.lose(1)  # once more changes nothing
    assert team.answered() == (False, None)


def test_the_fences_are_shut_once_when_all_have_left_and_obeyed() -> None:
    """Not while one trains, owes obedience, or is asked; nor before its first word."""
    team, sent = make(state(7, left=True), state(7))
    team.shut_if_all_left()
    team.members[1].state = state(7, left=True, settled=False)
    team.shut_if_all_left()
    team.members[1].state = {}
    team.shut_if_all_left()
    team.members[1].state = state(7, left=True)
    team.propose(1, Order.SAVE)
    team.shut_if_all_left()
    assert kinds(sent) == [["offer"]] * 2
    answer(team, 0, 8, accepted=False)
    answer(team, 1, 8)
    team.answered()
    team.shut_if_all_left()
    team.shut_if_all_left()
    assert kinds(sent) == [["offer", "withdraw", "shut"]] * 2


def test_new_ranks_begin_with_nothing_of_the_old_ones() -> None:
    """No offer, no answer, no state, no greeting; and the fences may be shut again."""
    team, sent = make(state(7, left=True), state(7, left=True))
    team.shut_if_all_left()
    team.propose(1, Order.SAVE)
    for member in team.members.values():
        member.greeted, member.report, member.over = {}, {}, True
    team.renew()
    answer(team, 0, 8)
    answer(team, 1, 8)
    assert team.answered() == (False, None)
    assert (team.most, team.every("ready"), team.busy, team.cost_seconds) == (-1, False, False, None)
    assert all((m.greeted, m.report, m.over) == (None, None, False) for m in team.members.values())
    for member in team.members.values():
        member.state = state(3, left=True)
    team.shut_if_all_left()
    assert kinds(sent)[0][-1] == "shut"


def test_what_holds_for_all() -> None:
    """The furthest step, the dearest save, and whether anybody persists."""
    team, _ = make(state(3, cost=2.0), state(5, cost=None), state(4, cost=7.5, busy=True))
    assert (team.most, team.cost_seconds, team.busy, team.every("ready")) == (5, 7.5, True, True)
    assert Team({}).every("ready") is False
