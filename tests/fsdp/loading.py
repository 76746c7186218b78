"""PyTorch's own loading into an FSDP2 model, without a run. Arguments: KIND CHECKPOINT."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

sys.path.insert(0, str(Path(__file__).parent))
from train import build, note

from autoresume.load.dcp import CheckpointStorageReader

dist.init_process_group("gloo")
torch.manual_seed(99)
model, optimizer = build(dist.get_world_size())
model(torch.zeros(2, 5)).sum().backward()
optimizer.step()  # so that there is a state to load into
state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
dcp.load(state, storage_reader=CheckpointStorageReader(sys.argv[2]))
model.load_state_dict(state["model"])
optimizer.load_state_dict(state["optimizer"])
note("loaded.json", model, optimizer)
dist.destroy_process_group()
