"""What the scripts are made of: a small data set with random augmentation, and a small model."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

SAMPLES = 14


class Numbers(Dataset[torch.Tensor]):
    """Vectors of 4 numbers; with `augment`, noise from python's, numpy's and torch's generators."""

    def __init__(self, samples: int = SAMPLES, augment: bool = True) -> None:
        generator = torch.Generator().manual_seed(1)
        self.data = torch.randn(samples, 4, generator=generator)
        self.augment = augment

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> torch.Tensor:
        item = self.data[index]
        if self.augment:
            item = item * (1 + 0.1 * random.random()) + 0.1 * float(np.random.rand()) + 0.1 * torch.rand(4)
        return item


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> float:
    loss = (model(x).squeeze(1) - x.sum(1)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


@torch.no_grad()
def evaluate(model: nn.Module, batches: object) -> float:
    model.eval()
    losses = [(model(x).squeeze(1) - x.sum(1)).square().sum().item() for x in batches]  # type: ignore[attr-defined]
    model.train()
    return sum(losses)
