"""A script that seeds before the run is opened, as most do at the top of the file. Argument: how it is opened."""

import random
import sys

import nasty
import numpy as np
import torch
from parts import Model, Numbers, train_step

import autoresume

random.seed(1)
np.random.seed(2)
torch.manual_seed(3)
model = Model()


def train(run) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    run.track(model=model, optimizer=optimizer)
    for x in run.batches(run.loader(Numbers(), batch_size=4, shuffle=True), epochs=2):
        run.log(loss=train_step(model, optimizer, x), first=x[0, 0].item())
        nasty.place(run.step_count + 1)
    nasty.finish(model=model)


if sys.argv[1] == "decorator":
    autoresume.autoresume(lambda run: train(run))()
else:
    opened = autoresume.start()
    train(opened)
    opened.finish()
