"""A training that goes on until a file `finish` lies beside it; each life says where it began."""

import time
from pathlib import Path

import torch

import autoresume

run = autoresume.start(run_dir="run", save_every="1000000 steps")
run.track(model=torch.nn.Linear(2, 2))
run.restore()
print(f"began at {run.step_count}", flush=True)
while not Path("finish").exists():
    time.sleep(0.01)
    run.step()
    if run.step_count % 10 == 0:
        Path(f"at-{run.incarnation}").write_text(str(run.step_count))
run.finish()
