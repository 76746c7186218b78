"""Continual learning: one model learns tasks one after the other, with a replay buffer of what it saw before.

    python train.py --tasks 5
    python train.py --tasks 5 --restore.mode hotstart --restore.from runs/train --restore.select task=2

A checkpoint with the tag `task=<number>` stays after each task: with the arguments, the results so far and the buffer.
"""

import argparse
import random

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from autoresume import Run, autoresume

BUFFER = 64


def task_data(task: int, seed: int) -> TensorDataset:
    """Two classes of points; each task turns the border between them a little further."""
    generator = torch.Generator().manual_seed(seed + task)
    points = torch.randn(160, 2, generator=generator)
    angle = torch.tensor(0.5 * task)
    side = points @ torch.stack([torch.cos(angle), torch.sin(angle)])
    return TensorDataset(points, (side > 0).long() + 2 * task)


@autoresume(save_every="10 minutes")
def main(run: Run, args: argparse.Namespace) -> None:
    run.seed(args.seed)
    run.configure(args, must_equal=True, ignore=["tasks"])
    model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 2 * args.tasks))
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr)
    run.track(model=model, optimizer=optimizer)
    run.state.results = []  # a row of accuracies for each task that was learnt
    run.state.buffer = []  # (point, class) of earlier tasks

    for task in run.tasks(args.tasks, save="task"):
        data = run.dataset(task_data, task, args.seed, name=f"task-{task}")
        for points, classes in run.batches(run.loader(data, batch_size=16, shuffle=True), epochs=args.epochs):
            if run.state.buffer:
                old = [run.state.buffer[random.randrange(len(run.state.buffer))] for _ in range(16)]
                points = torch.cat([points, torch.tensor([point for point, _ in old])])
                classes = torch.cat([classes, torch.tensor([label for _, label in old])])
            loss = nn.functional.cross_entropy(model(points), classes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.log(loss=loss)
        room = BUFFER // (task + 1)
        kept = run.state.buffer[: BUFFER - room]
        run.state.buffer = kept + [(point.tolist(), int(label)) for point, label in list(data)[:room]]
        row = [accuracy(model, task_data(earlier, args.seed)) for earlier in range(task + 1)]
        run.state.results = [*run.state.results, row]
        run.log(accuracy=sum(row) / len(row))
    for row in run.state.results:
        print("  ".join(f"{value:.2f}" for value in row))


@torch.no_grad()
def accuracy(model: nn.Module, data: TensorDataset) -> float:
    right = sum(int((model(points).argmax(1) == classes).sum()) for points, classes in DataLoader(data, batch_size=64))
    return right / len(data)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    main(parser.parse_args())
