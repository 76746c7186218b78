"""The protocol between nodes, searched through completely (see team_model.py)."""

from __future__ import annotations

import dataclasses

import pytest

from tests.handoff.model import SAVE, STOP, Violation, explore
from tests.handoff.team_model import Model, Rules

Lengths = tuple[tuple[int, ...], ...]


@pytest.mark.parametrize(
    ("lengths", "orders", "in_flight"),
    [
        (((1,), (2,)), (SAVE,), 9),
        (((2,), (2,)), (STOP,), 1),
        (((1,), (1,)), (SAVE, STOP), 1),
        (((1,), (3,)), (SAVE,), 1),
        (((1, 2), (1,)), (SAVE,), 1),
        (((1,), (1,), (1,)), (SAVE,), 1),
    ],
)
def test_the_protocol_is_sound(lengths: Lengths, orders: tuple[str, ...], in_flight: int) -> None:
    """Whatever is delayed: where one rank acts those of all nodes act, nothing withdrawn is acted on, all come to an
    end; with ranks that leave early, orders that come late, and states that were true long ago."""
    assert explore(Model(lengths, orders, Rules(in_flight=in_flight))) > 10_000


@pytest.mark.parametrize(
    ("rule", "lengths", "orders"),
    [
        ("all_accept", ((1,), (2,)), (SAVE,)),
        ("one_at_a_time", ((1,), (2,)), (SAVE, STOP)),
        ("last_look", ((1,), (1,)), (SAVE,)),
    ],
)
def test_no_rule_can_be_left_out(rule: str, lengths: Lengths, orders: tuple[str, ...]) -> None:
    """The search finds the rank that misses an order without any one rule: it is able to fail, and tells the way."""
    rules = dataclasses.replace(Rules(in_flight=1), **{rule: False})
    with pytest.raises(Violation, match="where another one acts") as found:
        explore(Model(lengths, orders, rules))
    assert len(str(found.value).splitlines()) > 10
