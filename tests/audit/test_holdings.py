"""What a script changes and nobody tracks is told at the second save, by its name; and nothing else is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from autoresume.audit.gradients import Gradients
from autoresume.audit.holdings import Holdings
from autoresume.state.pickled import pickled
from autoresume.state.stateful import as_stateful


class Sharp(torch.optim.Optimizer):
    """An optimizer with another one inside; with `whole` that one's state is part of its own."""

    def __init__(self, parameters: Any, whole: bool = False) -> None:
        super().__init__(parameters, {})
        self.base = torch.optim.SGD(self.param_groups, lr=0.1, momentum=0.9)
        self.whole = whole

    def step(self, closure: Any = None) -> None:
        self.base.step()

    def state_dict(self) -> dict[str, Any]:
        return {"base": self.base.state_dict()} if self.whole else super().state_dict()


class Scale:
    """As a GradScaler: no module, and with state."""

    def __init__(self) -> None:
        self.scale = 1.0

    def state_dict(self) -> dict[str, float]:
        return {"scale": self.scale}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.scale = state["scale"]


class Tied:
    """Only a pickle can store it."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(1)


class Looks:
    """A training that saves twice; `tracked` are its objects by name."""

    def __init__(self) -> None:
        self.model = nn.Linear(3, 2)
        self.tracked: dict[str, Any] = {"model": self.model}
        self.state: dict[str, Any] = {}
        self.holdings = Holdings(list)

    def track(self, **objects: Any) -> None:
        self.tracked |= {name: as_stateful(name, value) for name, value in objects.items()}

    def save(self) -> list[str]:
        return self.holdings.at_save(self.tracked, list(self.tracked.values()), self.state)

    def train(self, *optimizers: torch.optim.Optimizer) -> None:
        self.model(torch.ones(1, 3)).sum().backward()
        for one in optimizers:
            one.step()


def an_optimizer(looks: Looks) -> list[str]:
    optimizer = torch.optim.AdamW(looks.model.parameters())
    looks.train(optimizer)
    looks.save()
    looks.train(optimizer)
    return looks.save()


def an_inner_optimizer(looks: Looks) -> list[str]:
    optimizer = Sharp(looks.model.parameters())
    looks.track(optimizer=optimizer)
    looks.train(optimizer)
    looks.save()
    looks.train(optimizer)
    return looks.save()


def a_scheduler(looks: Looks) -> list[str]:
    optimizer = torch.optim.SGD(looks.model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    looks.track(optimizer=optimizer)
    looks.save()
    looks.train(optimizer)
    scheduler.step()
    return looks.save()


def a_generator(looks: Looks) -> list[str]:
    noise = torch.Generator().manual_seed(1)
    looks.save()
    torch.rand(1, generator=noise)
    return looks.save()


def a_generator_of_an_object(looks: Looks) -> list[str]:
    environment = Tied()
    looks.save()
    environment.rng.random()
    return looks.save()


def an_average(looks: Looks) -> list[str]:
    ema = copy.deepcopy(looks.model)
    looks.save()
    for slow, fast in zip(ema.parameters(), looks.model.parameters()):
        slow.data.mul_(0.9).add_(fast.data + 1.0)
    return looks.save()


def a_trained_tensor(looks: Looks) -> list[str]:
    log_alpha = torch.zeros(1, requires_grad=True)
    looks.save()
    log_alpha.data -= 0.1
    return looks.save()


def a_scaler(looks: Looks) -> list[str]:
    scaler = Scale()
    looks.save()
    scaler.scale /= 2
    return looks.save()


TOLD: dict[Callable[[Looks], list[str]], tuple[str, str]] = {
    an_optimizer: ("`optimizer` in an_optimizer() (AdamW)", "run.track(optimizer=optimizer)"),
    an_inner_optimizer: ("`optimizer.base` (SGD)", "run.track(base=optimizer.base)"),
    a_scheduler: ("`scheduler` in a_scheduler() (StepLR)", "run.track(scheduler=scheduler)"),
    a_generator: ("`noise` in a_generator() (Generator)", "run.track(noise=noise)"),
    a_generator_of_an_object: ("`environment.rng` in a_generator_of_", "run.track(rng=environment.rng)"),
    an_average: ("`ema` in an_average() (Linear)", "run.track(ema=ema)"),
    a_trained_tensor: ("`log_alpha` in a_trained_tensor()", "run.state.log_alpha = log_alpha"),
    a_scaler: ("`scaler` in a_scaler() (Scale)", "run.track(scaler=scaler)"),
}


@pytest.mark.parametrize("script", TOLD, ids=lambda script: script.__name__)
def test_what_will_be_missing_is_told(script: Callable[[Looks], list[str]]) -> None:
    """By the author's own name for it, with the line to write, and once."""
    looks = Looks()
    (told,) = script(looks)
    name, line = TOLD[script]
    assert told.startswith(name)
    assert told.endswith(line)
    assert looks.save() == []


def all_tracked(looks: Looks) -> list[str]:
    optimizer = torch.optim.AdamW(looks.model.parameters())
    warm = torch.optim.lr_scheduler.LinearLR(optimizer)
    cool = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cool], [2])
    noise, scaler = torch.Generator().manual_seed(1), Scale()
    looks.track(optimizer=optimizer, scheduler=scheduler, noise=noise, scaler=scaler)
    for _ in range(3):
        looks.save()
        looks.train(optimizer)
        scheduler.step()
        torch.rand(1, generator=noise)
        scaler.scale *= 2
    return looks.save()


def an_inner_optimizer_that_is_part_of_the_state(looks: Looks) -> list[str]:
    optimizer = Sharp(looks.model.parameters(), whole=True)
    looks.track(optimizer=optimizer)
    looks.train(optimizer)
    looks.save()
    looks.train(optimizer)
    return looks.save()


def a_wrapper_of_what_is_tracked(looks: Looks) -> list[str]:
    optimizer = Sharp(looks.model.parameters())
    looks.track(base=optimizer.base)
    looks.train(optimizer)
    looks.save()
    looks.train(optimizer)
    return looks.save()


def a_state_that_the_script_keeps(looks: Looks) -> list[str]:
    scaler = Scale()
    for _ in range(2):
        scaler.scale *= 2
        looks.state["scaler"] = scaler.state_dict()
        told = looks.save()
    return told


def a_part_of_what_is_pickled(looks: Looks) -> list[str]:
    tied = Tied()
    rng = tied.rng
    looks.track(environment=pickled(tied))
    looks.save()
    rng.random()
    return looks.save()


def another_view_of_the_model(looks: Looks) -> list[str]:
    optimizer = torch.optim.AdamW(looks.model.parameters())
    looks.track(optimizer=optimizer)
    whole = nn.Sequential(looks.model, nn.ReLU())
    looks.save()
    looks.train(optimizer)
    whole(torch.ones(1, 3))
    return looks.save()


def a_teacher_that_stays(looks: Looks) -> list[str]:
    teacher = copy.deepcopy(looks.model)
    looks.save()
    teacher(torch.ones(1, 3))
    return looks.save()


def what_is_made_anew(looks: Looks) -> list[str]:
    for number in range(2):
        probe, rng = nn.Linear(3, 2), torch.Generator().manual_seed(number)
        inner = torch.optim.Adam(probe.parameters())
        probe(torch.rand(1, 3, generator=rng)).sum().backward()
        inner.step()
        told = looks.save()
    return told


def plain_variables(looks: Looks) -> list[str]:
    best, seen = float("inf"), []
    for number in range(2):
        best, loss = best / 2, torch.rand(3)
        seen.append(float(loss.sum()) + best + number)
        told = looks.save()
    return told


RIGHT = [all_tracked, an_inner_optimizer_that_is_part_of_the_state, a_wrapper_of_what_is_tracked]
RIGHT += [a_state_that_the_script_keeps, a_part_of_what_is_pickled, another_view_of_the_model]
RIGHT += [a_teacher_that_stays, what_is_made_anew, plain_variables]


@pytest.mark.parametrize("script", RIGHT, ids=lambda script: script.__name__)
def test_a_right_script_is_told_nothing(script: Callable[[Looks], list[str]]) -> None:
    """Nothing that is tracked, part of it, a wrapper of it, kept by other means, made anew, or never changed."""
    assert script(Looks()) == []


def test_parameter_groups_that_come_later() -> None:
    """Of an optimizer that is tracked before the restore; one that is tracked behind it is the script's to adapt."""
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    early, late = torch.optim.SGD(one.parameters(), lr=0.1), torch.optim.SGD(one.parameters(), lr=0.1)
    holdings = Holdings(list)
    holdings.restored({"early": early})
    assert holdings.late_groups({"early": early, "late": late}) == []
    for optimizer in (early, late):
        optimizer.add_param_group({"params": list(other.parameters())})
    (told,) = holdings.late_groups({"early": early, "late": late})
    assert told.startswith("'early' was tracked with 1 parameter group, and has 2 now")
    assert holdings.late_groups({"early": early, "late": late}) == []


def loop(order: str, to_none: bool = True) -> list[str]:
    """Six steps of a loop in which things come in that order: b(ackward), s(tep), z(ero), | (boundary)."""
    model, told = nn.Linear(3, 2), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gradients = Gradients(told.append)
    does = {
        "b": lambda: model(torch.ones(1, 3)).sum().backward(),
        "s": optimizer.step,
        "z": lambda: optimizer.zero_grad(set_to_none=to_none),
        "|": lambda: gradients.boundary({"model": model, "optimizer": optimizer}),
    }
    for letter in order * 6:
        does[letter]()
    gradients.close()
    return told


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("order", ["zbs|", "bsz|", "bbsz|", "zbbs|", "bs|z", "|zbs", "z|bs"])
def test_gradients_that_nobody_needs_behind_a_boundary(order: str, to_none: bool) -> None:
    """However a loop clears them, as long as it does so before they are used again: no word."""
    assert loop(order, to_none) == []


@pytest.mark.parametrize(("order", "said"), [("b|bsz|", "added up"), ("b|sz", "steps with"), ("b|b|bsz|", "added up")])
def test_gradients_that_a_checkpoint_lacks(order: str, said: str) -> None:
    """A boundary between backward passes whose gradients are added up, or between the last and the step: told, once."""
    (told,) = loop(order)
    assert said in told
    assert "run.step() behind optimizer.step()" in told
