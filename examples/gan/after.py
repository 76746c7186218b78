"""A generator learns to put points where the data are, on a ring of eight spots; a discriminator tells them apart.

python after.py
"""

import math

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus
from torch.utils.data import DataLoader, TensorDataset

from autoresume import Run, autoresume

EPOCHS = 8
ANGLES = torch.arange(8) * math.pi / 4
SPOTS = torch.stack([ANGLES.cos(), ANGLES.sin()], dim=1)


def make_points(count: int) -> TensorDataset:
    which = torch.randint(8, (count,))
    return TensorDataset(SPOTS[which] + 0.05 * torch.randn(count, 2))


def perceptron(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, outputs)
    )


def spots_hit(points: torch.Tensor) -> int:
    """How many of the eight spots have at least ten points near them."""
    return int(((torch.cdist(points, SPOTS) < 0.25).sum(0) >= 10).sum())


@autoresume
def main(run: Run) -> None:
    torch.manual_seed(0)
    loader = DataLoader(make_points(4096), batch_size=128, shuffle=True, drop_last=True)
    generator, discriminator = perceptron(8, 2), perceptron(2, 1)
    optimizer_g = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.99))
    optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=2e-3, betas=(0.5, 0.99))
    fixed_noise = torch.randn(512, 8)
    run.track(generator=generator, discriminator=discriminator, optimizer_g=optimizer_g, optimizer_d=optimizer_d)
    for epoch in run.epochs(EPOCHS):
        for (real,) in loader:
            fake = generator(torch.randn(len(real), 8))
            loss_d = (softplus(-discriminator(real)) + softplus(discriminator(fake.detach()))).mean()
            optimizer_d.zero_grad()
            loss_d.backward()
            optimizer_d.step()

            answers = discriminator(fake)
            loss_g = binary_cross_entropy_with_logits(answers, torch.ones_like(answers))
            optimizer_g.zero_grad()
            loss_g.backward()
            optimizer_g.step()
            run.step()
        with torch.no_grad():
            hit = spots_hit(generator(fixed_noise))
        print(f"epoch {epoch}: {hit} of 8 spots", flush=True)
    torch.save(generator.state_dict(), "generator.pt")


if __name__ == "__main__":
    main()
