"""A training as in the README's first lines. STOP_AT is the step at which it is told to stop."""

import os
import signal
import sys

import torch

from autoresume import Run, autoresume

STEPS = 12


@autoresume(backend="gloo")
def main(run: Run) -> None:
    run.seed(7)
    run.state.total = torch.zeros(1)
    for step in run.steps(STEPS):
        run.state.total += torch.rand(1)
        run.log(total=run.state.total)
        if step == int(os.environ.get("STOP_AT", "-1")):
            os.kill(os.getpid(), signal.SIGTERM)
    undisturbed, expected = torch.Generator().manual_seed(7), torch.zeros(1)
    for _ in range(STEPS):
        expected += torch.rand(1, generator=undisturbed)
    told = "exact" if expected == run.state.total else "wrong"
    # One write: torchrun starts Python unbuffered, where print() writes a line and its end apart, and another rank between.
    sys.stdout.write(f"rank {run.rank} of {run.world_size}, life {run.incarnation}: {told}\n")


main()
