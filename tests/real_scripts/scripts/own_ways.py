"""A model of parts that load in their own way. Argument: "kept", or "changed" (only the first life compiles a part)."""

import os
import sys

import nasty
import torch
from parts import Numbers
from torch import nn

from autoresume import Run, autoresume


class Scaled(nn.Linear):
    """Divides by the greatest input of late, as FP8 layers do: a history that grows, in extra state."""

    history: tuple[float, ...] = ()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.history = (*self.history, float(x.detach().abs().max()))[-6:]
        return super().forward(x / max(self.history))

    def get_extra_state(self) -> torch.Tensor:
        return torch.tensor(self.history, dtype=torch.float64)

    def set_extra_state(self, state: torch.Tensor) -> None:
        self.history = tuple(state.tolist())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lazy, self.normed, self.scaled = nn.LazyLinear(6), nn.LazyBatchNorm1d(), Scaled(6, 1)
        self.register_buffer("where", torch.linspace(0, 1, 6).expand(4, -1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scaled(self.normed(self.lazy(x)).tanh() + self.where[: len(x)])


@autoresume(save_every=2)
def main(run: Run) -> None:
    run.seed(3)
    model = Net()
    if sys.argv[1] == "kept" or not os.path.exists("was_here"):
        model.scaled = torch.compile(model.scaled, backend="eager")
    open("was_here", "w").close()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    run.track(model=model, optimizer=optimizer)
    loader = run.loader(Numbers(20), batch_size=4, shuffle=True)
    for x in run.batches(loader, epochs=3):
        loss = (model(x).squeeze(1) - x.sum(1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log(loss=loss)
        nasty.place(run.step_count + 1)
    nasty.finish(parameters=list(model.parameters()), buffers=list(model.buffers()), optimizer=optimizer)


main()
