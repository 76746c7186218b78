"""Two ranks. Arguments: who makes the process group ("own", "backend", "none"), and what else is done:
"plain", "ema" (on rank 0 alone), "promise" (an EMA on each, said to be the same, that isn't), "evaluate" (on rank 0 alone), "late" (rank 1 has an object of its own), "zero" (each rank has a share of the optimizer's state), "hook" (one that looks at DDP's buckets), "hook-anew" (which
DDP lays out anew)."""

import sys

import nasty
import torch
import torch.distributed as dist
from parts import Model, Numbers, evaluate, train_step
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from autoresume import Run, autoresume, replicated

GROUP, WHAT = sys.argv[1:3]


def by_bucket(state, bucket):
    """Rounds by the greatest number of a bucket: of another bucket it is another one."""
    gradients = bucket.buffer()
    scale = gradients.abs().max().clamp_min(1e-12) / 127
    gradients.copy_((gradients / scale).round() * scale)
    return allreduce_hook(None, bucket)


@autoresume(backend="gloo" if GROUP == "backend" else None)
def main(run: Run) -> None:
    if GROUP == "own":
        dist.init_process_group("gloo")
    run.seed(3)
    model = Model()
    if GROUP != "none":
        # Each rank normalises by its own statistics: the buffers differ from rank to rank.
        keeps = WHAT == "hook"
        model = DistributedDataParallel(model, broadcast_buffers=False, find_unused_parameters=keeps)
    if "hook" in WHAT:
        model.register_comm_hook(None, by_bucket)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    if WHAT == "zero":
        optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.Adam, lr=0.02)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    run.track(model=model, optimizer=optimizer, scheduler=scheduler)
    ema = None
    if WHAT == "ema" and run.rank == 0:
        ema = torch.optim.swa_utils.AveragedModel(model.module)
        run.track(ema=ema)
    if WHAT == "promise":
        ema = torch.optim.swa_utils.AveragedModel(model.module, use_buffers=True)
        run.track(ema=replicated(ema))
    torch.manual_seed(10 + run.rank)  # dropout differs
    data = Numbers(28)
    if GROUP == "own":
        sampler = DistributedSampler(data, shuffle=True)
        train = DataLoader(data, batch_size=4, sampler=sampler)
    else:
        train = run.loader(data, batch_size=4, shuffle=True)
    tests = DataLoader(Numbers(7, augment=False), batch_size=4)
    for _ in run.epochs(3):
        for x in run.batches(train):
            loss = train_step(model, optimizer, x)
            if ema is not None:
                ema.update_parameters(model.module)
            run.log(loss=loss, first=x[0, 0].item())
            if WHAT == "late" and run.rank == 1:
                run.state.setdefault("seen", []).append(x[0, 0].item())
            nasty.place(run.step_count + 1)
        if WHAT == "evaluate" and run.rank == 0:
            inner = getattr(model, "module", model)
            run.log(test=evaluate(inner, tests), draw=torch.rand(()).item())
        scheduler.step()
    nasty.finish(
        model=model,
        optimizer=optimizer.optim if WHAT == "zero" else optimizer,
        rate=optimizer.param_groups[0]["lr"],
        ema=ema,
        mean=getattr(model, "module", model).inner[1].running_mean,
        seen=run.state.get("seen"),
        samples=run.samples,
    )


main()
