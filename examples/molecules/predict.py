"""Uses the best model of the run in the working directory, without the script that trained it."""

import torch
from potential import Database, Potential

import autoresume

model = Potential(width=16)
model.load_state_dict(autoresume.load_model_state("potential", "best"))
database = autoresume.rebuild_dataset("potential", Database, select="best")
positions, energies = (torch.stack(column) for column in zip(*database.valid))
with torch.no_grad():
    print(f"mean absolute error {float((model(positions) - energies).abs().mean()):.4f}")
