"""The fence's protocol, searched through completely (see model.py)."""

from __future__ import annotations

import dataclasses

import pytest

from tests.handoff.model import SAVE, STOP, Model, Rules, Violation, explore


@pytest.mark.parametrize(
    ("lengths", "orders"),
    [
        ((3,), (SAVE, STOP)),
        ((3, 3), (SAVE, STOP)),
        ((1, 3), (SAVE, SAVE)),
        ((2, 2, 2), (STOP,)),
        ((1, 1, 2), (SAVE,)),
    ],
)
def test_the_protocol_is_sound(lengths: tuple[int, ...], orders: tuple[str, ...]) -> None:
    """In every interleaving: what one rank does at a step all do, nothing withdrawn is done, all come to an end."""
    assert explore(Model(lengths, orders, Rules())) > 100


@pytest.mark.parametrize(
    ("rule", "value", "problem"),
    [
        ("barrier", False, "is past 2, where another one acts"),
        ("left_ranks_count", False, "is past 2, where another one acts"),
        ("one_at_a_time", False, "is past 2, where another one acts"),
        ("obeyed_before_shut", False, "where another one acts"),
        ("patience", True, "is past 2, where another one acts"),
    ],
)
def test_no_rule_can_be_left_out(rule: str, value: bool, problem: str) -> None:
    """The search finds what goes wrong without any one rule of the protocol: it is able to fail."""
    rules = dataclasses.replace(Rules(), **{rule: value})
    with pytest.raises(Violation, match=problem) as found:
        explore(Model((2, 2), (SAVE, STOP), rules))
    assert len(str(found.value).splitlines()) > 10  # the way there is told
