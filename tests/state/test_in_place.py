"""What is read straight into live tensors, and what is not."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoresume.checkpoint.commit import commit_if_complete
from autoresume.checkpoint.persist import Snapshot, persist
from autoresume.errors import NoValidCheckpoint, StateError
from autoresume.format.digest import canonical
from autoresume.format.names import CheckpointName
from autoresume.load.load_state import load_state
from autoresume.load.read_checkpoint import choose_and_read
from autoresume.load.reader import CheckpointReader
from autoresume.ranks.agreement import Ranks
from autoresume.snapshot.copies import copy_all
from autoresume.snapshot.layout import make_plan
from autoresume.state.capture import capture
from autoresume.state.in_place import in_place_targets
from autoresume.storage import LocalStorage

shared = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])


class Storage(LocalStorage):
    """Without waiting for the disk."""

    def _sync_file(self, descriptor: int, path: Path) -> None:
        """Forgo it."""

    def _sync_folder(self, folder: Path) -> None:
        """Forgo it."""


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path)


def named(step: int) -> CheckpointName:
    return CheckpointName(step=step, incarnation=1, epoch=0, samples=0)


def save(storage: Storage, objects: dict[str, Any], step: int = 1) -> CheckpointReader:
    name = named(step)
    captured = capture(objects, frozenset(), frozenset())
    plan = make_plan(captured.leaves, 0, 1, {"format": "pt"})
    image = memoryview(bytearray(plan.bytes))
    plan.write_headers(memoryview(image))
    copy_all(plan.copies, [leaf.tensor for leaf in captured.leaves], image)
    persist(
        storage,
        Snapshot("run", name, 0, 1, float(step), image, plan.chunks_json, canonical(captured.tree), {}),
        lambda: None,
    )
    manifest = commit_if_complete(storage, name, lambda: None)
    assert manifest is not None
    return CheckpointReader(storage, manifest, 0)


def restore(storage: Storage, objects: dict[str, Any]) -> None:
    found = choose_and_read(storage, "run", Ranks(), lambda: None, objects)
    assert found is not None
    for name, target in objects.items():
        load_state(name, target, found.states[name])


def trained(model: torch.nn.Module, seed: int) -> dict[str, Any]:
    """A model with random values in all its tensors, and its optimizer with state."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1 * (seed + 1))
    with torch.no_grad():
        for value in model.state_dict().values():
            value.copy_(torch.rand(value.shape, generator=generator) * 100)
    for parameter in model.parameters():
        parameter.grad = torch.rand(parameter.shape, generator=generator).to(parameter.dtype)
    optimizer.step()
    return {"model": model, "optimizer": optimizer}


def values(objects: dict[str, Any]) -> list[tuple[str, torch.Tensor]]:
    """Every tensor of the state, cloned."""
    captured = capture(objects, frozenset(), frozenset())
    return [(leaf.key, leaf.tensor.detach().clone()) for leaf in captured.leaves]


def equal(one: list[tuple[str, torch.Tensor]], other: list[tuple[str, torch.Tensor]]) -> bool:
    return [key for key, _ in one] == [key for key, _ in other] and all(
        torch.equal(a, b) and a.stride() == b.stride() for (_, a), (_, b) in zip(one, other)
    )


def convolutions() -> torch.nn.Module:
    made = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(5, 2))
    return made.to(memory_format=torch.channels_last)


def tied() -> torch.nn.Module:
    model = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 9, bias=False))
    model[1].weight = model[0].weight
    return model


def untied() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 9, bias=False))


def spectral() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(4, 3)))


class Scaled(torch.nn.Linear):
    """Stores its weight otherwise than it keeps it."""

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self.weight.detach() * 2

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        state = {**state, prefix + "weight": state[prefix + "weight"] / 2}
        super()._load_from_state_dict(state, prefix, *rest)


def hooked() -> torch.nn.Module:
    """Its hook changes what is loaded, in place."""
    model = torch.nn.Linear(4, 3)

    def halve(module: Any, state: Any, *rest: Any) -> None:
        state["weight"].div_(2)

    def double(module: Any, state: Any, *rest: Any) -> Any:
        return {**state, "weight": state["weight"] * 2}

    model.register_load_state_dict_pre_hook(halve)
    model._register_state_dict_hook(double)
    return model


MODELS: dict[str, Callable[[], torch.nn.Module]] = {
    "plain": lambda: torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3), torch.nn.BatchNorm1d(3)),
    "channels last": convolutions,
    "tied": tied,
    "parametrized": spectral,
    "its own way to load": lambda: Scaled(4, 3),
    "hooks that change what is loaded": hooked,
    "half": lambda: torch.nn.Linear(4, 3).half(),
}


@pytest.mark.parametrize("what", MODELS)
@pytest.mark.parametrize("has_state", [True, False])
def test_everything_comes_back(storage: Storage, what: str, has_state: bool) -> None:
    """Whatever a module does when it is loaded, and whether its optimizer has stepped or not: the live tensors have
    the stored values in the end, with their strides, and stay the parameters that they were."""
    before = trained(MODELS[what](), 1)
    save(storage, before)
    after = trained(MODELS[what](), 2)
    if not has_state:
        after["optimizer"] = torch.optim.AdamW(after["model"].parameters())
    parameters = list(after["model"].parameters())
    addresses = [parameter.data_ptr() for parameter in parameters]
    restore(storage, after)
    assert equal(values(before), values(after))
    assert after["optimizer"].param_groups[0]["lr"] == before["optimizer"].param_groups[0]["lr"]
    assert all(a is b for a, b in zip(parameters, after["model"].parameters()))
    assert [parameter.data_ptr() for parameter in parameters] == addresses


@pytest.mark.parametrize(
    ("what", "model", "optimizer"),
    [
        ("plain", 9, 18),
        ("tied", 1, 3),
        ("channels last", 9, 18),
        ("its own way to load", 0, 6),
        ("hooks that change what is loaded", 0, 6),
    ],
)
def test_what_is_read_in_place(storage: Storage, what: str, model: int, optimizer: int) -> None:
    """Stock modules and optimizers are read to where they live; a module with a way of its own gets tensors to load."""
    after = trained(MODELS[what](), 2)
    reader = save(storage, trained(MODELS[what](), 1))
    found = in_place_targets(after, reader.tree, reader.describe)
    assert [sum(key.startswith(name) for key in found) for name in ("model/", "optimizer/")] == [model, optimizer]
    live = {tensor.data_ptr() for tensor in after["model"].state_dict().values()}
    assert {found[key].data_ptr() for key in found if key.startswith("model/")} <= live


def test_the_state_of_a_restored_optimizer_is_its_memory_of_before(storage: Storage) -> None:
    """An optimizer that has state already gets no second copy of it."""
    save(storage, trained(MODELS["plain"](), 1))
    after = trained(MODELS["plain"](), 2)

    def addresses() -> list[int]:
        return [value.data_ptr() for state in after["optimizer"].state.values() for value in state.values()]

    before = addresses()
    restore(storage, after)
    assert addresses() == before


def differently(change: str) -> dict[str, Any]:
    model = MODELS["plain"]()
    if change == "a shape":
        model[0] = torch.nn.Linear(5, 3)
    elif change == "a dtype":
        model[0] = torch.nn.Linear(4, 3).double()
    elif change == "a name":
        model.append(torch.nn.Linear(1, 1))
    objects = trained(model, 2)
    if change == "another object":
        objects["other"] = torch.nn.Linear(1, 1)
    if change == "an optimizer of fewer parameters":
        objects["optimizer"] = torch.optim.AdamW(list(model.parameters())[1:])
    return objects


@pytest.mark.parametrize(
    "change", ["a shape", "a dtype", "a name", "another object", "an optimizer of fewer parameters"]
)
def test_what_does_not_fit_is_not_touched(storage: Storage, change: str) -> None:
    """Where anything that can be seen without the data doesn't fit, no live tensor has been written to."""
    save(storage, trained(MODELS["plain"](), 1))
    after = differently(change)
    before = values(after)
    choose_and_read(storage, "run", Ranks(), lambda: None, after)
    assert equal(values(after), before)
    if change in ("a shape", "a dtype", "a name"):
        with pytest.raises(StateError, match="Nothing was loaded"):
            restore(storage, after)
        assert equal(values(after), before)


def test_tensors_that_are_tied_in_one_place_only(storage: Storage) -> None:
    """Stored as one and living as two, both get the values; stored as two and living as one, the last one's, as
    `load_state_dict` has it."""
    save(storage, {"model": tied()})
    apart = untied()
    restore(storage, {"model": apart})
    assert torch.equal(apart[0].weight, apart[1].weight)
    assert apart[0].weight.data_ptr() != apart[1].weight.data_ptr()
    two = untied()
    save(storage, {"model": two}, 2)
    one = tied()
    restore(storage, {"model": one})
    assert torch.equal(one[0].weight, two[1].weight)


def test_an_object_that_shares_a_tensor_gets_one_of_its_own(storage: Storage) -> None:
    """A tensor that two objects shared when it was stored does not tie a live parameter to another object."""

    class Holder:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor = tensor

        def state_dict(self) -> dict[str, Any]:
            return {"tensor": self.tensor}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.tensor = state["tensor"]

    model = torch.nn.Linear(4, 3)
    save(storage, {"model": model, "holder": Holder(model.weight.detach())})
    after = {"model": torch.nn.Linear(4, 3), "holder": Holder(torch.zeros(1))}
    restore(storage, after)
    assert torch.equal(after["holder"].tensor, model.weight)
    after["holder"].tensor.zero_()
    assert torch.equal(after["model"].weight, model.weight)


def test_a_damaged_checkpoint_leaves_nothing_behind(storage: Storage) -> None:
    """Of a checkpoint that proves to be damaged in its middle nothing stays in the live tensors: the older one has
    overwritten all. Where there is no older one the training does not begin."""
    model = functools.partial(torch.nn.Linear, 1500, 1500)
    older, newer = trained(model(), 1), trained(model(), 2)
    save(storage, older, 1)
    for step in (2, 1):
        if step == 2:
            save(storage, newer, 2)
        with open(storage.path(named(step).shard(0)), "r+b") as file:
            file.seek(20_000_000)
            file.write(b"damage!!")
        after = trained(model(), 3)
        if step == 2:
            restore(storage, after)
            assert equal(values(after), values(older))
        else:
            with pytest.raises(NoValidCheckpoint, match="damaged between byte 16777216"):
                restore(storage, after)


@shared
@given(
    widths=st.lists(st.integers(0, 40), min_size=2, max_size=5),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    strided=st.booleans(),
    stepped=st.booleans(),
)
def test_in_place_is_as_good_as_the_plain_way(
    tmp_path_factory: pytest.TempPathFactory, widths: list[int], dtype: torch.dtype, strided: bool, stepped: bool
) -> None:
    """Any stack of layers: read straight into the live tensors, and read to the side and loaded, are the same."""

    def make() -> torch.nn.Module:
        layers = [torch.nn.Linear(a, b) for a, b in pairwise(widths) if a and b] or [torch.nn.Linear(1, 1)]
        model = torch.nn.Sequential(*layers).to(dtype)
        if strided:
            for layer in layers:
                layer.weight = torch.nn.Parameter(layer.weight.detach().t().contiguous().t())
        return model

    storage = Storage(tmp_path_factory.mktemp("run"))
    save(storage, trained(make(), 1))
    one, two = trained(make(), 2), trained(make(), 3)
    if not stepped:
        one["optimizer"] = torch.optim.AdamW(one["model"].parameters())
    restore(storage, one)
    found = choose_and_read(storage, "run", Ranks(), lambda: None, {})
    assert found is not None
    for name, target in two.items():
        load_state(name, target, copy.deepcopy(found.states[name]))
    assert equal(values(one), values(two))
