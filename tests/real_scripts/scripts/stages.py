"""Two trainings in one script, one after the other, each a run of its own."""

import nasty
import torch
from parts import Model, train_step

from autoresume import Run, autoresume


def train(run: Run, model: Model, lr: float) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    run.track(model=model, optimizer=optimizer)
    for _ in run.steps(4):
        run.log(loss=train_step(model, optimizer, torch.randn(5, 4)))
        nasty.place(run.step_count + 1, run.directory.name)
    torch.save(model.state_dict(), f"{run.directory.name}.pt")


@autoresume(run_dir="runs/one")
def one(run: Run) -> None:
    run.seed(3)
    train(run, Model(), 0.05)


@autoresume(run_dir="runs/two")
def two(run: Run) -> None:
    run.seed(4)
    model = Model()
    model.load_state_dict(torch.load("one.pt"))
    train(run, model, 0.01)


one()
two()
