"""Three ranks under DDP, whose parameters are not used in the order in which they were made."""

import nasty
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from autoresume import Run, autoresume


class Crossed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last, self.first, self.middle = nn.Linear(37, 1), nn.Linear(5, 53), nn.Linear(53, 37)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.middle(torch.tanh(self.first(x)))))


@autoresume
def main(run: Run) -> None:
    dist.init_process_group("gloo")
    run.seed(3)
    model = DistributedDataParallel(Crossed())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run.track(model=model, optimizer=optimizer)
    torch.manual_seed(10 + run.rank)
    for _ in run.steps(8):
        x = torch.randn(7, 5)
        optimizer.zero_grad()
        loss = (model(x).squeeze(1) - x.sum(1)).square().mean()
        loss.backward()
        optimizer.step()
        run.log(loss=loss, weights=nasty.digest(model))
        nasty.place(run.step_count + 1)
    nasty.finish(model=model)


main()
