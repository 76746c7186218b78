"""Mistakes, one for each argument; what is told then is the promise. Each is a life of the same small run."""

import os
import signal
import sys

import nasty
import torch
from parts import train_step

import autoresume
from autoresume import Run, pickled


class Environment:
    """Only cloudpickle can store it: its reward is a lambda."""

    def __init__(self) -> None:
        self.reward = lambda action: 2 * action
        self.steps = 0


class Stateful:
    def __init__(self, **state: object) -> None:
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


@autoresume.autoresume(run_dir="runs/run", **({"save_evry": 3} if "misspelt" in sys.argv else {}))
def main(run: Run) -> None:
    wishes = set(sys.argv[1:])
    run.seed(3)
    width = 8 if "wide" in wishes else 4
    model = torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.Linear(width, 1))
    if "deeper" in wishes:
        model.append(torch.nn.Linear(1, 1))
    if "double" in wishes:
        model[1].double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    run.track(model=model)
    if "fewer" not in wishes:
        run.track(optimizer=optimizer)
    if "more" in wishes:
        run.track(teacher=torch.nn.Linear(2, 2))
    environment = Environment()
    if "pickled" in wishes:
        run.track(environment=pickled(environment))
    if "stateful" in wishes:
        run.track(environment=Stateful(steps=0))
    if "bare" in wishes:
        run.track(environment=environment)
    if "unstorable" in wishes:
        run.track(thing=Stateful(outer={"list": [1, object()]}))
    if "late unstorable" in wishes:
        run.restore()
        run.state.callback = print
    run.restore()
    if "handles" in wishes:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    for step in run.steps(4):
        environment.steps += environment.reward(step)
        run.log(loss=train_step(model, optimizer, torch.randn(5, 4)), steps=environment.steps)
        if "hangs" in wishes:
            with open(os.environ["FIFO"]) as fifo:  # until the test opens it
                fifo.read()
        if "fails" in wishes:
            raise ValueError("the script's own mistake")
        if "exits" in wishes and run.step_count == 3:
            sys.exit(0)
        if "enough" in wishes and run.step_count == 3:
            run.finish()
            sys.exit(0)
        nasty.place(run.step_count + 1)
    nasty.finish(model=model, steps=environment.steps)


main()
