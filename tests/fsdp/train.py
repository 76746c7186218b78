"""FSDP2 on CPU. Arguments: KIND [PEEK]. Writes down the digest of all full tensors after each step, and at the start.

KIND: plain; mixed (a sharded part, plain parameters, buffers, an evaluation before the boundary); meta (replicas of
shards, built on the meta device); tensor (tensor parallel, and sharded over the other dimension of a mesh); dcp (the state goes through torch's get_state_dict and set_state_dict); late (the
optimizer is tracked after the restore, and steps every third time only). With PEEK the process leaves after the restore.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.utils.data import TensorDataset

from autoresume import Run, autoresume

sys.path.insert(0, str(Path(__file__).parent.parent / "real_scripts" / "scripts"))
import nasty

KIND, *PEEK = sys.argv[1:]
HERE = Path.cwd()
ROWS = 8 if KIND == "tensor" else 7


class Both:
    """Model and optimizer as PyTorch's own checkpoints hold them."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer

    def state_dict(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])


def build(world_size: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    mesh = init_device_mesh("cpu", (world_size,))
    if KIND == "meta":
        mesh = init_device_mesh("cpu", (2, world_size // 2), mesh_dim_names=("replicate", "shard"))
    with torch.device("meta" if KIND == "meta" else "cpu"):
        # Rows that no number of ranks divides; fewer rows than ranks; one-dimensional; a scalar can't be sharded.
        model = nn.Sequential(nn.Linear(5, ROWS), nn.LayerNorm(ROWS), nn.Dropout(0.1), nn.Linear(ROWS, 3, bias=False))
        if KIND == "mixed":
            model.append(nn.BatchNorm1d(3))
    if KIND == "tensor":
        grid = init_device_mesh("cpu", (2, world_size // 2), mesh_dim_names=("data", "tensor"))
        parallelize_module(model, grid["tensor"], {"0": ColwiseParallel(output_layouts=Replicate())})
        mesh = grid["data"]
    for part in (model[0], model[3], *([] if KIND in ("mixed", "tensor") else [model])):
        fully_shard(part, mesh=mesh)
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


def whole(value: Any) -> Any:
    if isinstance(value, DTensor):
        return value.detach().full_tensor()
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    return value


def note(file: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    found = {"model": nasty.digest(whole(model.state_dict())), "optimizer": nasty.digest(whole(optimizer.state_dict()))}
    found["slots"] = sum(len(slots) for slots in optimizer.state.values())
    if dist.get_rank() == 0:
        (HERE / file).write_text(json.dumps(found))


@autoresume(backend="gloo")
def main(run: Run) -> None:
    run.seed(1)
    model, optimizer = build(run.world_size)
    if KIND == "dcp":
        run.track(both=Both(model, optimizer))
    else:
        run.track(model=model, **({} if KIND == "late" else {"optimizer": optimizer}))
    # A sharded tensor that is nobody's parameter.
    run.state.table = distribute_tensor(torch.arange(5.0), init_device_mesh("cpu", (run.world_size,)), [Shard(0)])
    run.restore()
    if KIND == "meta":
        model.to_empty(device="cpu")
        torch.manual_seed(2)
        for layer in model:
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
    if KIND == "late":
        run.track(optimizer=optimizer)
    torch.manual_seed(10 + run.rank)
    loader = run.loader(TensorDataset(torch.randn(64, 5)), batch_size=8 // run.world_size, shuffle=True)
    batches = run.batches(loader, epochs=1)
    first = next(batches)
    note(f"restored-{run.incarnation}.json", model, optimizer)
    if PEEK:
        dist.barrier()
        os._exit(0)
    for (x,) in [first]:
        train(run, model, optimizer, x)
    for (x,) in batches:
        train(run, model, optimizer, x)
    nasty.finish(
        model=whole(model.state_dict()),
        optimizer=whole(optimizer.state_dict()),
        table=whole(run.state.table),
        draw=torch.rand(2),
    )


def train(run: Run, model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> None:
    step = run.step_count + 1
    loss = (model(x).sum(1) - x.sum(1)).square().mean()
    loss.backward()
    if KIND != "late" or step % 3 == 0:
        optimizer.step()
    optimizer.zero_grad()
    run.state.table *= 1.5
    run.log(loss=loss)
    if KIND == "mixed":
        with torch.no_grad():
            model(x)
    note(f"step-{step}.json", model, optimizer)
    nasty.place(step)


if __name__ == "__main__":
    main()
