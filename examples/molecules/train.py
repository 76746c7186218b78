"""Atomistic potentials: a database that is built again by itself, the best model kept, restarts on another device.

python train.py --device auto
python predict.py            # loads the best model from the working directory
"""

import argparse

import numpy as np
import torch
from potential import Database, Potential, device_of
from torch import nn

from autoresume import Run, autoresume


@autoresume(run_dir="potential", save_every="2 minutes", keep_best="lowest valid_mae")
def main(run: Run, args: argparse.Namespace) -> None:
    run.seed(args.seed)
    run.configure(args)
    device = device_of(args.device)
    database = run.dataset(Database, atoms=4, size=args.size, seed=args.seed)
    model = Potential(width=16).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    controller = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=2)
    run.track(model=model, optimizer=optimizer, controller=controller)
    run.state.metrics = []  # of each evaluation so far
    loader = run.loader(database.train, batch_size=32, shuffle=True)
    for positions, energies in run.batches(loader, epochs=args.epochs):
        loss = nn.functional.mse_loss(model(positions.to(device)), energies.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log(loss=loss)
        if (run.step_count + 1) % len(loader) == 0:  # inside of the turn: what is saved is what was evaluated
            error = evaluate(model, database, device)
            controller.step(error)
            run.state.metrics = [*run.state.metrics, error]
            run.log(valid_mae=error, lr=optimizer.param_groups[0]["lr"])
            run.save()


@torch.no_grad()
def evaluate(model: nn.Module, database: Database, device: torch.device) -> float:
    positions, energies = (torch.stack(column) for column in zip(*database.valid))
    return float(np.abs((model(positions.to(device)).cpu() - energies).numpy()).mean())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    main(parser.parse_args())
