"""The lines after the training: an interrupted run must not reach them. And a side file, best.pt, that the loop
reads at each step and the end of the script loads."""

import nasty
import torch
from parts import Model, train_step

from autoresume import Run, autoresume


@autoresume
def main(run: Run):
    run.seed(3)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    run.track(model=model, optimizer=optimizer)
    run.state.best = float("inf")
    for _ in run.steps(9):
        try:
            loss = train_step(model, optimizer, torch.randn(6, 4))
        except Exception:
            continue
        seen = ""
        if run.step_count:
            with run.open("best.pt") as file:
                seen = nasty.digest(torch.load(file))
        run.log(loss=loss, seen=seen)
        if loss < run.state.best:
            run.state.best = loss
            with run.open("best.pt", "wb") as file:
                torch.save(model.state_dict(), file)
        nasty.place(run.step_count + 1)
    torch.save(model.state_dict(), "final.pt")
    with run.open("best.pt") as file:
        model.load_state_dict(torch.load(file))
    nasty.finish(model=model, best=run.state.best)
    return model


print("trained", main())
