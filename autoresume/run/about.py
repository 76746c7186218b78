"""What this start is made of, and what its checkpoints say of the run they belong to.

Law: gathered once, before anything is restored: options of an optimizer are those that the script gave. Only rank 0's
are kept, in each of its checkpoints, so that one of them alone tells which run it is of, and with which settings.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from autoresume.config.command_line import command_line
from autoresume.errors import StateError, UsageError
from autoresume.restore import changes
from autoresume.run.positions import Positions
from autoresume.run.resources import Resources
from autoresume.state.generator import GeneratorState
from autoresume.state.pickled import pickled

_SCHEDULER = torch.optim.lr_scheduler.LRScheduler


class Facts:
    """`config` holds the settings that the script told of (`run.configure`)."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._gathered: dict[str, Any] = {}
        self.datasets: dict[str, Any] = {}
        self.config: dict[str, Any] = {}
        self.must_equal = False
        """A start with other settings refuses to take the state over."""
        self.may_differ: frozenset[str] = frozenset()

    def configure(self, config: Any, must_equal: bool, may_differ: frozenset[str]) -> None:
        """Raises UsageError for what holds no settings by name."""
        try:
            self.config = changes.flatten_config(config)
        except TypeError:
            raise UsageError(
                f"run.configure takes a mapping, a namespace or a dataclass, not a {type(config).__name__}"
            ) from None
        self.must_equal, self.may_differ = must_equal, may_differ

    def gather(self, objects: Mapping[str, Any], positions: Positions) -> None:
        """Before anything is restored."""
        self._gathered = {
            "objects": {name: _object(value) for name, value in objects.items()},
            "loaders": positions.describe(),
            "packages": changes.installed_packages(),
            "device": _device(objects),
            "arguments": changes.parse_arguments(command_line()[1:]),
        }

    def refuse_others(self, before: Mapping[str, Any]) -> None:
        """Raises StateError where the settings have to equal those of a checkpoint, and don't."""
        if not self.must_equal or self._resources.options.restore.is_lenient("config"):
            return
        pair = [{key: value for key, value in one.items() if key not in self.may_differ}
                for one in (dict(before.get("config") or {}), self.config)]  # fmt: skip
        differ = changes.compare_facts({"config": pair[0]}, {"config": pair[1]})
        if differ:
            raise StateError(
                f"{len(differ)} settings are not those that the checkpoint was made with: "
                f"{'; '.join(str(one).removeprefix('config.') for one in differ[:8])}. Nothing was taken over. Give "
                'the same settings, or allow it with restore.strict={"config": false}.'
            )

    def about(self) -> dict[str, Any]:
        """What goes into a checkpoint's part: rank 0's tells of the run, the others' nothing but its size."""
        resources = self._resources
        size = {"world_size": resources.ranks.world_size}
        if resources.ranks.rank != 0:
            return size
        run = {
            "folder": str(resources.folder.absolute()),
            "stage": resources.options.stage,
            "command": command_line(),
            "loggers": resources.run_file.loggers,
        }
        settings = {"config": self.config, "datasets": self.datasets}
        return {**size, "run": run, "code": resources.record.code, **settings, **self._gathered}


def _object(value: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": _kind(value), "class": _class(value)}
    if isinstance(value, torch.nn.Module):
        sized = (parameter for parameter in value.parameters() if not torch.nn.parameter.is_lazy(parameter))
        found["parameters"] = sum(parameter.numel() for parameter in sized)
    if isinstance(value, torch.optim.Optimizer):
        found["groups"] = len(value.param_groups)
        for group in value.param_groups[:1]:
            found |= {key: item for key, item in group.items() if type(item) in (bool, int, float, str)}
    return found


def _kind(value: Any) -> str:
    kinds = ((torch.nn.Module, "module"), (torch.optim.Optimizer, "optimizer"), (_SCHEDULER, "scheduler"),
             (GeneratorState, "generator"), (pickled, "pickled"))  # fmt: skip
    return next((word for kind, word in kinds if isinstance(value, kind)), "other")


def _class(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("__main__.")


def _device(objects: Mapping[str, Any]) -> str:
    for value in objects.values():
        if isinstance(value, torch.nn.Module):
            for parameter in value.parameters():
                return _name_of(parameter.device)
    return "cpu"


def _name_of(device: torch.device) -> str:
    if device.type == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_name(device)
    return device.type if device.type != "cpu" else os.uname().machine
