"""The model and the data of this example: clusters of atoms with a Lennard-Jones energy."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import Subset, TensorDataset


class Database:
    """Positions (size, atoms, 3) and energies (size,), split into a part to train on and one to validate with."""

    def __init__(self, atoms: int, size: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        positions = 1.5 * torch.randn(size, atoms, 3, generator=generator)
        distance = pairs(positions).clamp(min=0.8)
        energies = (4 * (distance**-12 - distance**-6)).sum(-1).clamp(-5, 5)
        data = TensorDataset(positions, energies)
        border = size * 4 // 5
        self.train = Subset(data, range(border))
        self.valid = Subset(data, range(border, size))


class Potential(nn.Module):
    """A sum over pairs of atoms of a function of their distance."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, 1))

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        return self.net(1 / pairs(positions).clamp(min=0.8).unsqueeze(-1)).sum((-1, -2))


def pairs(positions: torch.Tensor) -> torch.Tensor:
    """The distances of all pairs: (size, atoms * (atoms - 1) / 2)."""
    first, second = torch.triu_indices(positions.shape[1], positions.shape[1], offset=1)
    return (positions[:, first] - positions[:, second]).norm(dim=-1)


def device_of(word: str) -> torch.device:
    """ "auto" is the accelerator, if there is one."""
    if word != "auto":
        return torch.device(word)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
