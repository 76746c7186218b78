"""A small GPT that learns to write Python from the standard library's own source.

An ordinary DDP script; the lines that mention `run` are autoresume's, and the one that mentions `cue` is the demo's.
"""

import argparse
import sysconfig
from pathlib import Path

import cue
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import Dataset

from autoresume import Run, autoresume

CONTEXT, WIDTH, HEADS, LAYERS, BATCH = 64, 128, 4, 3, 8


class Source(Dataset):
    """Windows of CONTEXT + 1 bytes of the text; a random few of each are shown as spaces."""

    def __init__(self) -> None:
        files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:80]
        text = b"".join(file.read_bytes() for file in files)[:61_504]  # 60 steps an epoch
        self.text = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()

    def __len__(self) -> int:
        return len(self.text) // CONTEXT - 1

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        window = self.text[index * CONTEXT : (index + 1) * CONTEXT + 1]
        seen = torch.where(torch.rand(CONTEXT) < 0.02, 32, window[:-1])
        return seen, window[1:]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH), nn.Dropout(0.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.blocks(self.token(tokens) + self.place.weight)))


@autoresume(save_every="20 steps", keep=3, loggers=["tensorboard"], backend="gloo")
def main(run: Run, epochs: int) -> None:
    torch.set_num_threads(1)
    run.seed(1337)
    model = DDP(GPT())
    torch.manual_seed(1337 + run.rank)  # another dropout on each rank
    loader = run.loader(Source(), batch_size=BATCH, shuffle=True, num_workers=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    run.track(model=model, optimizer=optimizer, scheduler=scheduler)
    for seen, wanted in run.batches(loader, epochs=epochs):
        cue.wait(run.step_count, run.rank)  # where the demo interrupts this training, it waits until that is done
        loss = F.cross_entropy(model(seen).flatten(0, 1), wanted.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        run.log(loss=loss, lr=scheduler.get_last_lr()[0])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=3)
    main(epochs=parser.parse_args().epochs)
