"""The training that `autoresume bench --profile` traces: python profiled.py BYTES, the size of its state.

Law: a script like any other, which only uses what a user has: some layers, AdamW, a save every few steps, a preemption.
"""

from __future__ import annotations

import signal
import sys

import torch

from autoresume import Run, autoresume

_WIDTH = 1024
_LAYER_BYTES = 12 * (_WIDTH * _WIDTH + _WIDTH)
"""Parameters and AdamW's two moments."""
STEPS, PREEMPTED_AT, SAVE_EVERY = 50, 25, 8


@autoresume(save_every=SAVE_EVERY, profile=PREEMPTED_AT, keep=1, backend="auto")
def main(run: Run) -> None:
    run.seed(0)
    layers = max(1, round(int(sys.argv[1]) / _LAYER_BYTES))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model: torch.nn.Module = torch.nn.Sequential(*(torch.nn.Linear(_WIDTH, _WIDTH) for _ in range(layers))).to(device)
    if run.world_size > 1:
        model = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters())
    run.track(model=model, optimizer=optimizer)
    for step in run.steps(STEPS):
        optimizer.zero_grad()
        loss = model(torch.randn(64, _WIDTH, device=device)).square().mean()
        loss.backward()
        optimizer.step()
        run.log(loss=loss)
        if run.incarnation == 1 and step == PREEMPTED_AT and run.rank == 0:
            signal.raise_signal(signal.SIGTERM)


if __name__ == "__main__":
    main()  # type: ignore[call-arg]  # the decorator gives it its run
