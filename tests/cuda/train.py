"""A training on the GPU with mixed precision, dropout and a gradient scaler; or on the CPU, without them."""

import os
import signal

import torch
from torch import nn

from autoresume import Run, autoresume

DEVICE = os.environ.get("DEVICE", "cuda")
MIXED = DEVICE == "cuda" and "FULL_PRECISION" not in os.environ


class Points(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 200

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.rand(16) + index / 200, torch.tensor(index % 4)


@autoresume(save_every="9 steps", backend=os.environ.get("BACKEND"))
def main(run: Run) -> None:
    run.seed(3)
    model = nn.Sequential(nn.Linear(16, 256), nn.GELU(), nn.Dropout(0.2), nn.Linear(256, 4)).to(DEVICE)
    wrapped = nn.parallel.DistributedDataParallel(model) if os.environ.get("BACKEND") else model
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=0.01, fused=True)
    scaler = torch.amp.GradScaler(DEVICE, enabled=MIXED)
    loader = run.loader(Points(), batch_size=10, shuffle=True, num_workers=1, pin_memory=DEVICE == "cuda")
    run.track(model=wrapped, optimizer=optimizer, scaler=scaler)
    run.state.noise = torch.Generator(DEVICE).manual_seed(7)
    for x, y in run.batches(loader, epochs=3):
        x, y = x.to(DEVICE, non_blocking=True), y.to(DEVICE, non_blocking=True)
        x = x + 0.1 * torch.randn(x.shape, device=DEVICE, generator=run.state.noise)
        with torch.autocast(DEVICE, dtype=torch.float16, enabled=MIXED):
            loss = nn.functional.cross_entropy(wrapped(x), y)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        run.log(loss=loss)
        if run.incarnation == 1 and run.step_count == int(os.environ.get("STOP", "-1")):
            os.kill(os.getpid(), signal.Signals[os.environ.get("SIGNAL", "SIGTERM")])


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    main()
