"""A framework's own signal handlers. Argument: "before" (put on before the run is opened), "between" (after it
is opened, chaining what was there), "replacing" (between, without chaining), or "after" (at the third
step, as `trainer.fit()` does, without chaining)."""

import signal
import sys

import nasty
import torch
from parts import Model, train_step

from autoresume import Run, autoresume

WHEN = sys.argv[1]


class Framework:
    """It counts signals; `previous` is what it chains, as pytorch-lightning and others do."""

    def __init__(self, chain: bool = True) -> None:
        self.count = 0
        self.chain = chain

    def install(self) -> None:
        self.previous = signal.signal(signal.SIGTERM, self.handle)

    def handle(self, number, frame) -> None:
        self.count += 1
        if self.chain and callable(self.previous):
            self.previous(number, frame)


framework = Framework(chain=WHEN in ("before", "between"))
if WHEN == "before":
    framework.install()


def leave() -> None:
    mine = signal.getsignal(signal.SIGTERM)
    print("signals", framework.count, "put back", getattr(mine, "__self__", None) is framework, flush=True)


@autoresume
def main(run: Run) -> None:
    run.seed(3)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    run.track(model=model, optimizer=optimizer)
    if WHEN in ("between", "replacing"):
        framework.install()
    run.restore()
    for _ in run.steps(8):
        if WHEN == "after" and not framework.count and run.step_count == 2:
            framework.install()
        run.log(loss=train_step(model, optimizer, torch.randn(5, 4)))
        nasty.place(run.step_count + 1)
    nasty.finish(model=model)


try:
    main()
finally:
    leave()
