"""safetensors: one file, written by rank 0; scalars and hyper-parameters would have to be kept elsewhere."""

from __future__ import annotations

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.peers.base import Rival


class Safetensors(Rival):
    def save(self, number: int) -> None:
        if self.group.rank == 0:
            self.place(number).mkdir(parents=True)
            save_file(dict(self.state.tensors()), self.place(number) / "state.safetensors")
        self.group.barrier()

    def load(self, number: int) -> None:
        live = dict(self.state.tensors())
        with safe_open(self.place(number) / "state.safetensors", "pt") as file, torch.no_grad():
            for name in file.keys():  # noqa: SIM118  (it is no dict)
                live[name].copy_(file.get_tensor(name))
