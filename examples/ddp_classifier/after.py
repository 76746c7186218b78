"""A small convolutional network learns to read digits, with one copy of it on each rank.

torchrun --nproc-per-node 2 after.py
"""

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from autoresume import Run, autoresume

EPOCHS = 3
GLYPHS = """
### .#. ### ### #.# ### ### ### ### ###
#.# ##. ..# ..# #.# #.. #.. ..# #.# #.#
#.# .#. ### .## ### ### ### .#. ### ###
#.# .#. #.. ..# ..# ..# #.# .#. #.# ..#
### ### ### ### ..# ### ### .#. ### ###
"""


def make_digits(count: int, seed: int) -> TensorDataset:
    """Images of 1 x 12 x 12 with a digit somewhere in the noise, and the digits."""
    generator = torch.Generator().manual_seed(seed)
    rows = [line.split() for line in GLYPHS.split("\n") if line]
    glyphs = torch.tensor([[[mark == "#" for mark in row[digit]] for row in rows] for digit in range(10)]).float()
    glyphs = glyphs.repeat_interleave(2, 1).repeat_interleave(2, 2)
    labels = torch.randint(10, (count,), generator=generator)
    images = 0.5 * torch.randn(count, 1, 12, 12, generator=generator)
    places = torch.stack([torch.randint(size, (count,), generator=generator) for size in (3, 7)], dim=1)
    for image, label, (top, left) in zip(images, labels, places.tolist()):
        image[0, top : top + 10, left : left + 6] += glyphs[label]
    return TensorDataset(images, labels)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(),
            nn.Dropout(0.2), nn.Linear(16 * 3 * 3, 10),
        )  # fmt: skip

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


@torch.no_grad()
def evaluate(model: nn.Module, data: TensorDataset, device: torch.device) -> float:
    model.eval()
    images, labels = (tensor.to(device) for tensor in data.tensors)
    accuracy = (model(images).argmax(1) == labels).float().mean().item()
    model.train()
    return accuracy


@autoresume
def main(run: Run) -> None:
    cuda = torch.cuda.is_available()
    dist.init_process_group("nccl" if cuda else "gloo")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    torch.manual_seed(dist.get_rank())
    train, test = make_digits(4096, seed=1), make_digits(512, seed=2)
    sampler = DistributedSampler(train)
    loader = DataLoader(train, batch_size=32, sampler=sampler)
    model = DistributedDataParallel(Network().to(device))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(loader))
    run.track(model=model, optimizer=optimizer, scheduler=scheduler)
    for epoch in run.epochs(EPOCHS):
        sampler.set_epoch(epoch)
        for images, labels in loader:
            loss = cross_entropy(model(images.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            run.step()
        accuracy = evaluate(model.module, test, device)
        if dist.get_rank() == 0:
            print(f"epoch {epoch}: {accuracy:.1%} of the test digits are read", flush=True)
    if dist.get_rank() == 0:
        torch.save(model.module.state_dict(), "classifier.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
