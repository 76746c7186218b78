"""What @hydra.main does to a script: it parses the arguments, makes a folder named by the time, changes into
it, sets up logging, and catches what the function raises. The argument "steps=N" overrides."""

import functools
import logging
import os
import sys
import time
from types import SimpleNamespace

import nasty
import torch
from parts import Model, train_step

from autoresume import Run, autoresume


def hydra_main(function):
    @functools.wraps(function)
    def decorated():
        configuration = SimpleNamespace(steps=3, lr=0.01)
        for word in sys.argv[1:]:
            key, _, value = word.partition("=")
            setattr(configuration, key, type(getattr(configuration, key))(value))
        folder = f"outputs/{time.time_ns()}"
        os.makedirs(folder)
        os.chdir(folder)
        logging.basicConfig(filename="train.log", level=logging.INFO)
        try:
            return function(configuration)
        except Exception as error:
            print(f"Error executing job: {error}", file=sys.stderr)
            sys.exit(1)

    return decorated


@hydra_main
@autoresume
def main(run: Run, configuration) -> None:
    run.seed(3)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=configuration.lr, momentum=0.9)
    run.track(model=model, optimizer=optimizer)
    for _ in run.steps(configuration.steps):
        run.log(loss=train_step(model, optimizer, torch.randn(5, 4)))
        nasty.place(run.step_count + 1)
    torch.save(model.state_dict(), "final.pt")  # in hydra's folder
    nasty.finish(model=model)


main()
