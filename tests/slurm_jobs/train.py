"""A DDP training on real text, that waits to be disturbed: from step HOLD on its first life is slow.

HOLD: the step at which rank 0 says "held" in the run's folder; with a file "go" there it is slow no more. ACCIDENT: hang or error, at HOLD + 2 on the last rank.
"""

import os
import sysconfig
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import Dataset

from autoresume import Run, autoresume

CONTEXT = 32
HOLD = int(os.environ.get("HOLD", "0"))


class Text(Dataset):
    def __init__(self) -> None:
        text = (Path(sysconfig.get_paths()["stdlib"]) / "argparse.py").read_bytes()[
            : 241 * CONTEXT
        ]  # 240 windows: 30 steps an epoch
        self.text = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()

    def __len__(self) -> int:
        return len(self.text) // CONTEXT - 1

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        window = self.text[index * CONTEXT : (index + 1) * CONTEXT + 1]
        return torch.where(torch.rand(CONTEXT) < 0.05, 32, window[:-1]), window[1:]


def disturb(run: Run) -> None:
    if not HOLD or run.incarnation > 1 or run.step_count < HOLD:
        return
    if run.rank == 0 and run.step_count == HOLD:
        (run.directory / "held").write_text("")
    if run.step_count == HOLD + 2 and run.rank == run.world_size - 1:
        if os.environ.get("ACCIDENT") == "hang":
            time.sleep(600)
        if os.environ.get("ACCIDENT") == "kill":
            os.kill(os.getpid(), 9)
    if (run.directory / "go").exists():
        return
    time.sleep(0.7 if run.step_count < HOLD + 20 else 3.0)  # it must not end before it is disturbed


@autoresume(save_every="10 steps", keep=2, backend="gloo", hang_after=float(os.environ.get("HANG", "60")))
def main(run: Run) -> None:
    run.seed(3)
    model = nn.Sequential(nn.Embedding(256, 32), nn.Linear(32, 64), nn.GELU(), nn.Dropout(0.1), nn.Linear(64, 256))
    wrapped = DDP(model) if run.world_size > 1 else model
    torch.manual_seed(100 + run.rank)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    loader = run.loader(Text(), batch_size=8 // run.world_size, shuffle=True)
    run.track(model=model, optimizer=optimizer)
    for seen, wanted in run.batches(loader, epochs=2):
        if os.environ.get("ACCIDENT") == "error" and run.step_count == HOLD:
            raise ValueError(f"the loss is nan at step {run.step_count}")
        loss = F.cross_entropy(wrapped(seen).flatten(0, 1), wanted.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log(loss=loss)
        disturb(run)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
