"""Two ranks whose replicas are equal at the first save, and part later. Argument: how, from the sixth step on:
"local" (no_sync, and an average every four steps), "together" (the same, for two steps only), "max_norm" (an embedding
that each rank scales where it looks rows up), "statistics" (buffers that are not broadcast, said to be replicated),
"skipped" (rank 1 leaves out one step of its optimizer), "begun" (an optimizer of which rank 1 does not take the first
step), "unfrozen" (parameters that were frozen when DDP looked), "row" (one row of a weight, on rank 1, of a state that
is looked at in slices); or "second" (they don't part: another optimizer begins on both ranks)."""

import contextlib
import sys

import nasty
import torch
import torch.distributed as dist
from parts import Model, Numbers
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from autoresume import Run, autoresume, replicated
from autoresume.snapshot import looks

HOW = sys.argv[1]
EQUAL = 5
if HOW == "row":
    looks.SLICE_BYTES = 128


class Looked(nn.Module):
    """Rows of an embedding, chosen by what comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(1000, 4)
        self.model = Model()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x + 0.1 * self.rows((x.sum(1).abs() * 1000).long() % 1000))


def average(model: nn.Module) -> None:
    for parameter in model.parameters():
        dist.all_reduce(parameter.data)
        parameter.data /= 2


@autoresume
def main(run: Run) -> None:
    dist.init_process_group("gloo")
    run.seed(3)
    inner = Looked()
    inner.requires_grad_(HOW != "unfrozen")
    inner.model.inner[3].requires_grad_(True)
    model = DistributedDataParallel(inner, broadcast_buffers=False)
    first = torch.optim.Adam([one for one in inner.parameters() if one.requires_grad], lr=0.02)
    other = torch.optim.SGD(inner.parameters(), lr=0.02, momentum=0.9)
    run.track(model=replicated(inner) if HOW == "statistics" else inner, first=first, other=other)
    inner.eval()  # the statistics, and dropout, which differ from rank to rank
    torch.manual_seed(10 + run.rank)
    loader = run.loader(Numbers(56), batch_size=4, shuffle=True)
    for x in run.batches(loader, epochs=2):
        step, mine = run.step_count, run.rank == 1
        parts = step >= EQUAL
        if HOW == "statistics" and parts:
            inner.model.inner[1].train()
        if parts:
            inner.requires_grad_(True)
            inner.rows.max_norm = 1.0 if HOW == "max_norm" else None
        alone = HOW in ("local", "together") and parts and (HOW == "local" or step < EQUAL + 2)
        with model.no_sync() if alone else contextlib.nullcontext():
            loss = (model(x).squeeze(1) - x.sum(1)).square().mean()
            model.zero_grad()
            loss.backward()
        if not (HOW == "skipped" and step == EQUAL and mine):
            first.step()
        if HOW in ("unfrozen", "second", "begun") and parts and not (HOW == "begun" and step == EQUAL and mine):
            other.step()
        if (HOW == "local" and step % 4 == 3) or (HOW == "together" and step == EQUAL + 1):
            average(inner)
        if HOW == "row" and step == EQUAL and mine:
            inner.rows.weight.data[700] += 1.0
        run.log(loss=loss.item())
        nasty.place(run.step_count + 1)
    nasty.finish(model=inner, first=first, other=other)


main()
