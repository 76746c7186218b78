"""The comparison and the causes, on records that are made up: what comes first counts, and noise does not."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from autoresume.drill import causes, compare
from autoresume.drill.compare import Noise
from autoresume.drill.record import Trajectory


def line(step: int, life: int, rank: int = 0, **more: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "kind": "step", "step": step, "life": life, "epoch": (step - 1) // 3, "time": 0.0,
        "indices": [[step * 2 + rank]], "batches": [f"batch {step}"], "rng_forward": {"torch": f"r{step - 1}"},
        "losses": [(1.0 / (step + 1)).hex()], "logged": {"loss": 1.0 / (step + 1), "seconds": step * 0.5},
        "optimizers": [{"name": "opt", "type": "SGD", "gradients": f"g{step}", "options": [{"lr": (0.1).hex()}]}],
        "tracked_optimizers": ["opt"], "workers": 0, "evaluations": 0, "variables": {},
        "objects": {"model": "m", "model/w": f"w{step}"}, "state": {"n": f"n{step}"}, "shown": {"n": str(step)},
        "rng": {"torch": f"r{step}"},
    }  # fmt: skip
    return {**made, **more}


def trajectory(steps: int, lives: tuple[tuple[int, int], ...] = ((0, 99),)) -> Trajectory:
    """One rank; of each life (steps before it, its last step)."""
    found = Trajectory({0: {}}, {0: []})
    for life, (begin, end) in enumerate(lives, start=1):
        whole = line(begin, life)
        found.begins[0].append({**whole, "kind": "begin", "step": begin})
        for step in range(begin + 1, min(end, steps) + 1):
            found.steps[0].setdefault(step, []).append(line(step, life))
    return found


RESUMED = ((0, 5), (3, 99))


def test_the_same_is_the_same() -> None:
    """Also where steps were made twice."""
    assert compare.first(trajectory(8), trajectory(8)) is None
    assert compare.first(trajectory(8), trajectory(8, RESUMED)) is None


@pytest.mark.parametrize(
    ("key", "value", "component", "name"),
    [
        ("indices", [[0]], "samples", ""),
        ("batches", ["other"], "batch", ""),
        ("rng_forward", {"torch": "other"}, "generator", "torch"),
        ("losses", [(9.0).hex()], "loss", ""),
        ("objects", {"model": "m", "model/w": "other"}, "object", "model/w"),
        ("state", {"n": "other"}, "state", "n"),
        ("logged", {"loss": 9.0, "seconds": 0}, "metric", "loss"),
        ("rng", {"torch": "other"}, "generator after", "torch"),
    ],
)
def test_each_component_is_compared(key: str, value: Any, component: str, name: str) -> None:
    """What differs in step 6 of the second life is named; and said to be in it."""
    other = trajectory(8, RESUMED)
    other.steps[0][6][-1][key] = value
    found = compare.first(trajectory(8), other, Noise({("metric", "seconds")}))
    assert found is not None
    assert (found.step, found.component, found.name, found.life) == (6, component, name, 2)
    assert found.words().startswith("step 6, rank 0: ")


def test_what_comes_first_counts() -> None:
    """Of several the one that leads to the others; of two steps the earlier; and steps that were lost count, too."""
    other = trajectory(8, RESUMED)
    other.steps[0][5][0]["losses"] = [(7.0).hex()]  # of the first life; made again later, and right then
    other.steps[0][6][-1]["batches"] = ["other"]
    found = compare.first(trajectory(8), other)
    assert found is not None
    assert (found.step, found.life, found.component) == (5, 1, "loss")
    other = trajectory(8, RESUMED)
    other.steps[0][6][-1] |= {"losses": [(7.0).hex()], "batches": ["other"], "rng": {"torch": "other"}}
    found = compare.first(trajectory(8), other)
    assert found is not None
    assert found.component == "batch"


def test_steps_too_few_or_too_many() -> None:
    """A run that is shorter, or longer, is another one."""
    found = compare.first(trajectory(8), trajectory(6))
    assert found is not None
    assert (found.step, found.component) == (7, "length")
    found = compare.first(trajectory(6), trajectory(8))
    assert found is not None
    assert found.component == "length"


def test_what_was_restored_is_compared() -> None:
    """With what the undisturbed run had at that step, before anything is trained on it."""
    other = trajectory(8, RESUMED)
    other.begins[0][1]["objects"] = {"model": "m", "model/w": "torn"}
    found = compare.first(trajectory(8), other)
    assert found is not None
    assert (found.step, found.at_restore, found.name) == (3, True, "model/w")
    assert causes.likely(trajectory(8), other, found, Noise()).name == "incomplete state"


def test_an_optimizer_that_steps_more_often() -> None:
    """With the same gradients and options in the steps that both make."""
    other = trajectory(8, RESUMED)
    other.steps[0][6][-1]["optimizers"] *= 2
    found = compare.first(trajectory(8), other)
    assert found is not None
    assert (found.step, found.name, found.a, found.b) == (6, "the number of optimizer steps", "1", "2")


def test_noise_is_what_differs_undisturbed() -> None:
    """A metric that is a time, and variables that are."""
    one, two = trajectory(4), trajectory(4)
    two.steps[0][2][0]["logged"]["seconds"] = 77.0
    two.steps[0][2][0]["variables"] = {"main: t0": ["value", "x", "77.0"]}
    one.steps[0][2][0]["variables"] = {"main: t0": ["value", "y", "76.0"]}
    noise = compare.noise(one, two)
    assert noise == Noise({("metric", "seconds")}, {"main: t0"})
    assert compare.first(one, two, noise) is None
    assert compare.first(one, two) is not None


def test_the_same_data_by_other_ranks() -> None:
    """Each epoch saw the same samples, in whatever steps; one that is left out, or comes twice, is named."""
    other = trajectory(6)
    for step in (1, 4):  # the first two steps of each epoch in one
        other.steps[0][step][0]["indices"] = [[step * 2, step * 2 + 2]]
        del other.steps[0][step + 1]
    assert compare.same_data(trajectory(6), other) is None
    missing, twice = copy.deepcopy(other), copy.deepcopy(other)
    missing.steps[0][4][0]["indices"] = [[8]]
    twice.steps[0][4][0]["indices"] = [[8, 10, 12]]
    found = compare.same_data(trajectory(6), missing)
    assert found is not None
    assert (found.name, "1 not seen [10]" in found.b) == ("epoch 1", True)
    twice.steps[0][6][0]["indices"] = [[12, 8, 10]]
    found = compare.same_data(trajectory(6), twice)
    assert found is not None
    assert "3 seen more than once" in found.b
