"""A training whose curve is looked at in the tools that it is sent to."""

import os

import nasty
import torch

import autoresume

run = autoresume.start(save_every="5 steps")
run.configure({"lr": 0.1, "model": {"width": 3}})
torch.manual_seed(0)
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
run.track(model=model, optimizer=optimizer)
run.restore()
for step in run.steps(int(os.environ.get("STEPS", "30"))):
    loss = model(torch.randn(4, 2)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    run.log(loss=loss)
    run.log(phase="warm-up" if step < 10 else "main")
    if step % 7 == 3:
        run.log(accuracy=step / 30)
    if os.environ.get("DIRECT") and step % 10 == 9:
        run.logger("wandb").log({"extra": step + 1})
        run.logger("tensorboard").add_scalar("extra", step + 1, step + 1)
    nasty.place(step + 1)
nasty.finish(model=model)
run.finish()
