"""Foreign evaluation loaders: each iter() of them may draw from the global generators.

Argument: "plain", "persistent" (workers that stay: only the first iter() in a process draws), or "shared"
(the same, from a generator that shuffles as well, and is tracked).
"""

import sys

import nasty
import torch
from parts import Model, Numbers, evaluate, train_step
from torch.utils.data import DataLoader

from autoresume import Run, autoresume


@autoresume
def main(run: Run) -> None:
    run.seed(3)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    run.track(model=model, optimizer=optimizer)
    train = run.loader(Numbers(augment=False), batch_size=4, shuffle=True)
    options = {"num_workers": 1, "persistent_workers": True} if sys.argv[1] != "plain" else {}
    if sys.argv[1] == "shared":
        generator = torch.Generator().manual_seed(4)
        options |= {"generator": generator, "shuffle": True}
        run.track(generator=generator)
    test = DataLoader(Numbers(7, augment=False), batch_size=4, **options)
    for _ in run.epochs(3):
        for x in run.batches(train):
            run.log(loss=train_step(model, optimizer, x))  # the dropout draws
            if run.step_count % 3 == 1:
                run.log(middle=evaluate(model, test))
            nasty.place(run.step_count + 1)
        for count, x in enumerate(test):
            run.log(**{f"first{count}": x[0, 0].item()})
        run.log(test=evaluate(model, test), draw=torch.rand(()).item())
    nasty.finish(model=model, optimizer=optimizer, steps=run.step_count)


main()
