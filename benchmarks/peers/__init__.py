"""Those who save and restore training state, each behind the same few verbs."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # whoever only wants the names needs no torch
    from benchmarks.measure import Group
    from benchmarks.peers.base import Rival
    from benchmarks.states import State

RIVALS = {
    "autoresume": "ours:Ours",
    "torch.save": "torch_save:TorchSave",
    "torch.load(mmap)": "torch_save:TorchMapped",
    "dcp.save": "dcp:Dcp",
    "dcp.async_save": "dcp:DcpAsync",
    "safetensors": "safetensors_file:Safetensors",
    "torchsnapshot": "torchsnapshot_take:Torchsnapshot",
    "DLRover": "dlrover_flash:DLRover",
    "Lightning Fabric": "fabric:Fabric",
}
_NEEDS = {"torchsnapshot": "torchsnapshot", "DLRover": "dlrover", "Lightning Fabric": "lightning_fabric"}
SAVERS = [name for name in RIVALS if name != "torch.load(mmap)"]
SLOW = ["dcp.save", "torchsnapshot", "Lightning Fabric"]
"""Measured half as often."""
LOADERS = ["autoresume", "torch.save", "torch.load(mmap)", "dcp.save", "safetensors", "torchsnapshot"]


def missing(name: str) -> str | None:
    """Why a rival can't be measured here, if what it needs isn't installed."""
    module = _NEEDS.get(name)
    if module is None or importlib.util.find_spec(module) is not None:
        return None
    return f"{module} is not installed (benchmarks/requirements.txt)"


def make(name: str, folder: Path, state: State, group: Group) -> Rival:
    """Raises ImportError where it isn't installed."""
    module, kind = RIVALS[name].split(":")
    rival: Rival = getattr(importlib.import_module(f"benchmarks.peers.{module}"), kind)(folder, state, group)
    return rival
