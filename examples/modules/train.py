"""A trainer with modules and callbacks, as Lightning has them: the trainer knows nothing of the model, and callbacks
have a state of their own, which comes back by name, in whatever order they are given.

    python train.py                                          # configuration: config.yaml
    python train.py max_epochs=8 --restore.mode continue     # trains on for more epochs
    python train.py lr=0.0001 --restore.mode hotstart --restore.from runs/train --restore.fresh optimizer.lr
"""

import sys
from typing import Any

import torch
import yaml
from torch import nn
from torch.utils.data import TensorDataset

from autoresume import Run, autoresume


class Module(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        self.net = nn.Sequential(nn.Linear(8, config["hidden"]), nn.ReLU(), nn.Linear(config["hidden"], 1))

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return nn.functional.mse_loss(self.net(batch[0]).squeeze(-1), batch[1])

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.config["lr"])
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)


class EarlyStopping:
    def __init__(self, patience: int) -> None:
        self.patience, self.best, self.bad = patience, float("inf"), 0

    def on_validation(self, module: Module, loss: float) -> bool:
        self.bad = 0 if loss < self.best else self.bad + 1
        self.best = min(self.best, loss)
        return self.bad > self.patience

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "bad": self.bad}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.bad = state["best"], state["bad"]


class Average:
    """An exponential moving average of the weights."""

    def __init__(self, module: Module) -> None:
        self.shadow = {name: value.clone() for name, value in module.state_dict().items()}

    def on_step(self, module: Module) -> None:
        for name, value in module.state_dict().items():
            self.shadow[name].lerp_(value, 0.1)

    def state_dict(self) -> dict[str, Any]:
        return self.shadow

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.shadow = dict(state)


def fit(run: Run, config: dict[str, Any]) -> None:
    """The trainer."""
    run.configure(config)
    run.seed(config["seed"])
    module = Module(config)
    optimizer, scheduler = module.configure_optimizers()
    average, stopping = Average(module), EarlyStopping(config["patience"])
    run.track(module=module, optimizer=optimizer, scheduler=scheduler, average=average, early_stopping=stopping)
    inputs = torch.randn(256, 8, generator=torch.Generator().manual_seed(1))
    train, valid = TensorDataset(inputs, inputs.sum(1).sin()), inputs[:64]
    loader = run.loader(train, batch_size=config["batch_size"], shuffle=True)
    for batch in run.batches(loader, epochs=config["max_epochs"]):
        loss = module.training_step(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        average.on_step(module)
        run.log(loss=loss, lr=scheduler.get_last_lr()[0])
        if (run.step_count + 1) % len(loader) == 0:
            with torch.no_grad():
                val_loss = module.training_step((valid, valid.sum(1).sin())).item()
            run.log(val_loss=val_loss)
            run.save()
            if stopping.on_validation(module, val_loss):
                break


@autoresume(save_every="1 minute", keep=2, keep_best="3 lowest val_loss")
def main(run: Run, config: dict[str, Any]) -> None:
    fit(run, config)


if __name__ == "__main__":
    with open(sys.path[0] + "/config.yaml") as file:
        settings = yaml.safe_load(file)
    for override in sys.argv[1:]:
        key, _, value = override.partition("=")
        settings[key] = yaml.safe_load(value)
    main(settings)
