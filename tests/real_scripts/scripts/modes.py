"""A training whose beginning is looked at: what it took over is printed as JSON before its first step.

Arguments: --epochs, --lr, --width, --batch, --without NAME (not tracked), --optimizer, --tag STEP:TAG.
"""

import argparse
import json
import logging
import sys

import nasty
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import TensorDataset

from autoresume import Run, autoresume

SAMPLES = 32


class Net(nn.Module):
    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, width))
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--width", type=int, default=5)
    parser.add_argument("--classes", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--optimizer", default="AdamW")
    parser.add_argument("--without", action="append", default=[])
    parser.add_argument("--frozen", action="store_true")
    parser.add_argument("--tag", default="")
    train(parser.parse_args())


@autoresume(save_every="4 steps", keep=100, loggers=["tensorboard"], keep_best="2 lowest val")
def train(run: Run, args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    model = Net(args.width, args.classes)
    ema = AveragedModel(model, avg_fn=lambda old, new, count: 0.9 * old + 0.1 * new)
    optimizer = getattr(torch.optim, args.optimizer)(model.parameters(), lr=args.lr)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 100)
    generator = torch.Generator().manual_seed(args.seed + 1)
    x = torch.randn(SAMPLES, 3, generator=torch.Generator().manual_seed(7))
    data = TensorDataset(x, (x.sum(1) > 0).long())
    run.configure({key: value for key, value in vars(args).items() if key not in ("tag", "without")})
    everything = {"model": model, "ema": ema, "optimizer": optimizer, "scheduler": scheduler, "generator": generator}
    run.track(**{name: value for name, value in everything.items() if name not in args.without})
    loader = run.loader(data, batch_size=args.batch, shuffle=True)
    if args.frozen:
        model.body.requires_grad_(False)
    run.restore()
    began = {
        "model": nasty.digest(model.state_dict()),
        "head": nasty.digest(model.head.state_dict()),
        "body": nasty.digest(model.body.state_dict()),
        "ema": nasty.digest(ema.module.state_dict()),
        "optimizer": nasty.digest(optimizer.state_dict()["state"]),
        "lr": optimizer.param_groups[0]["lr"],
        "scheduler": scheduler.last_epoch,
        "generator": nasty.digest(generator.get_state()),
        "step": run.step_count,
        "epoch": run.epoch,
        "samples": run.samples,
        "resumed": run.is_resumed,
        "incarnation": run.incarnation,
        "folder": str(run.directory),
        "id": run.id,
    }
    print(json.dumps(began), flush=True)
    for features, target in run.batches(loader, epochs=args.epochs):
        loss = nn.functional.cross_entropy(model(features), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        ema.update_parameters(model)
        run.log(loss=loss, val=abs(run.step_count + 1 - 10) + 0.5, draw=float(torch.rand((), generator=generator)))
        nasty.place(run.step_count + 1)
        if args.tag and run.step_count + 1 == int(args.tag.partition(":")[0]):
            run.save(args.tag.partition(":")[2])
    nasty.finish(model=model.state_dict(), optimizer=optimizer.state_dict())


if __name__ == "__main__":
    logging.captureWarnings(True)
    sys.exit(main())
