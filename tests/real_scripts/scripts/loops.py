"""Loops in loops, without a loader. Argument: "nested" (cycles, epochs, a counter in run.state, and steps
between), or "flat" (a range each turn of which ends with run.step())."""

import sys

import nasty
import torch
from parts import Model, train_step

from autoresume import Run, autoresume


@autoresume
def main(run: Run) -> None:
    run.seed(3)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    run.track(model=model, optimizer=optimizer)
    run.state.inner = 0
    run.restore()

    def step(**where: int) -> None:
        run.log(loss=train_step(model, optimizer, torch.randn(5, 4)), **where)
        nasty.place(run.step_count + 1)
        run.step()

    if sys.argv[1] == "flat":
        for turn in run.range(2, 12, 2):
            step(turn=turn)
    else:
        for cycle in run.range(2):
            for epoch in run.epochs(2):
                while run.state.inner < 2:
                    run.state.inner += 1
                    step(cycle=cycle, epoch=epoch, inner=run.state.inner)
                run.state.inner = 0
            for extra in run.range(2, name="extra"):
                if run.state.get("extra") != (cycle, extra):
                    run.state.extra = (cycle, extra)
                    step(cycle=cycle, extra=extra)
    nasty.finish(model=model, steps=run.step_count)


main()
