"""A script without a main function: its variables are module globals, a configurator sets them by exec."""

import sys

import nasty
import torch
from parts import Model, train_step

import autoresume

max_iters = 4
lr = 0.1
for argument in sys.argv[1:]:
    exec(argument)

run = autoresume.start()
run.seed(3)
model = Model()
optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
run.track(model=model, optimizer=optimizer)
iter_num, best, batch = 0, float("inf"), torch.randn(5, 4)
if run.restore():
    iter_num, best, batch = run.state.loop
while iter_num < max_iters:  # not `while True` with a break at the end: the run may be resumed at its last boundary
    loss = train_step(model, optimizer, batch)
    best = min(best, loss)
    run.log(loss=loss, best=best, iter=iter_num)
    batch = torch.randn(5, 4)  # the next one, ahead of the boundary
    nasty.place(run.step_count + 1)
    iter_num += 1
    run.state.loop = iter_num, best, batch
    run.step()
if "dies = True" in sys.argv:
    raise ValueError("after the loop")
nasty.finish(model=model, best=best)
if "forgets = True" not in sys.argv:
    run.finish()
