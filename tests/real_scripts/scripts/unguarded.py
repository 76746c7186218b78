"""main() stands unguarded at the end, and workers are started as the argument says. GUARD=1 guards it."""

import os
import sys

import nasty
import torch
from parts import Model, Numbers, train_step

from autoresume import Run, autoresume


@autoresume
def main(run: Run) -> None:
    run.seed(3)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    run.track(model=model, optimizer=optimizer)
    loader = run.loader(Numbers(8), batch_size=4, num_workers=1, multiprocessing_context=sys.argv[1])
    for x in run.batches(loader, epochs=1):
        run.log(loss=train_step(model, optimizer, x))
    nasty.finish(model=model)


if __name__ == "__main__" or not os.environ.get("GUARD"):
    main()
