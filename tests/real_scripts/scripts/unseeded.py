"""A script that seeds nothing. Argument: "inside" (all is built in the training function) or "outside" (the
split is drawn when the module is read, before anybody can seed)."""

import random
import sys

import nasty
import torch
from parts import Model, Numbers, train_step
from torch.utils.data import Subset, random_split

from autoresume import Run, autoresume

indices = random.sample(range(40), 20)


@autoresume
def main(run: Run) -> None:
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    run.track(model=model, optimizer=optimizer)
    if sys.argv[1] == "inside":
        train, _ = random_split(Subset(Numbers(40), random.sample(range(40), 30)), [20, 10])
    else:
        train = Subset(Numbers(40), indices)
    loader = run.loader(train, batch_size=4, shuffle=True, name="train")
    for x in run.batches(loader, epochs=2):
        run.log(loss=train_step(model, optimizer, x))
        nasty.place(run.step_count + 1)
    nasty.finish(model=model)


main()
