"""Gradient accumulation: four micro-batches to an optimizer step, in epochs of eight."""

import nasty
import torch
from parts import Model, Numbers

from autoresume import Run, autoresume


@autoresume
def main(run: Run) -> None:
    run.seed(3)
    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    run.track(model=model, optimizer=optimizer)
    loader = run.loader(Numbers(32), batch_size=4, shuffle=True)
    micro = 0
    for x in run.batches(loader, epochs=3, accumulate=4):
        loss = (model(x).squeeze(1) - x.sum(1)).square().mean() / 4
        loss.backward()
        micro += 1  # noqa: SIM113  (as scripts do it)
        if micro % 4 == 0:
            run.log(loss=loss.item(), epoch=run.epoch)
            optimizer.step()
            optimizer.zero_grad()
            nasty.place(run.step_count + 1)
    nasty.finish(model=model, optimizer=optimizer, samples=run.samples, steps=run.step_count)


main()
