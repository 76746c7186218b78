"""Six updates, each of which adds 1 to a weight. Argument: "own" (a loop whose way out comes before the boundary) or
"epochs" (nested loops, and a name that is bound in them and used behind them)."""

import sys

import nasty
import torch
from torch.utils.data import DataLoader, TensorDataset

import autoresume

model = torch.nn.Linear(1, 1, bias=False)
torch.nn.init.zeros_(model.weight)
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
loader = DataLoader(TensorDataset(torch.arange(6.0)), batch_size=2)
run = autoresume.start(save_every=100)
run.track(model=model, optimizer=optimizer)


def update(number: int) -> None:
    optimizer.zero_grad()
    (-model.weight).sum().backward()
    optimizer.step()
    nasty.place(number)


if sys.argv[1] == "own":
    done = run.state.done if run.restore() else 0
    while True:
        update(done + 1)
        done += 1
        if done == 6:
            break
        run.state.done = done
        run.step()
else:
    for _ in run.epochs(2):
        for _ in run.batches(loader):
            update(run.step_count + 1)
        reached = model.weight.item()
    assert reached == 6.0
nasty.finish(weight=model.weight.item(), expected=6.0)
run.finish()
