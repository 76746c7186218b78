"""Objects that come late. Argument: "optimizer" (made in the loop), "meta" (a model without
memory until it is materialised), or "ema" (from the fourth step on)."""

import sys

import nasty
import torch
from parts import Model, train_step

from autoresume import Run, autoresume


@autoresume
def main(run: Run) -> None:
    what = sys.argv[1]
    run.seed(3)
    if what == "meta":
        with torch.device("meta"):
            model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    else:
        model = Model()
    run.track(model=model)
    ema = optimizer = None
    run.restore()
    if what == "meta":
        model.to_empty(device="cpu")
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)  # after restoring: it draws, and is overwritten
    for _ in run.steps(7):
        x = torch.randn(5, 4)
        if optimizer is None:
            optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
            run.track(optimizer=optimizer)
        if what == "ema" and run.step_count >= 3:
            if ema is None:
                ema = torch.optim.swa_utils.AveragedModel(model)
                run.track(ema=ema)
            ema.update_parameters(model)
        loss = train_step(model, optimizer, x)
        run.log(loss=loss, moments=nasty.digest(optimizer), ema=nasty.digest(ema) if ema else "")
        nasty.place(run.step_count + 1)
    nasty.finish(model=model)  # after a stop at the last boundary, the others are not even made


main()
