"""Rank 0's part can't be written, rank 1's can: what each rank is told of the commit."""

import json
import sys
from pathlib import Path

import torch

from autoresume.checkpoint.retain import Keep
from autoresume.format.names import CheckpointName
from autoresume.ranks.agreement import Ranks
from autoresume.snapshot.saver import Saver
from autoresume.snapshot.sinks import ThreadSink, await_commit
from autoresume.storage import LocalStorage

ranks = Ranks.join("gloo")
storage = LocalStorage(Path.cwd() / "run")
sink = ThreadSink(storage, Keep(), lambda: None)
saver = Saver("a-run", ranks, sink, None, lambda: sink)
told, problems = [], set()


def note():
    problems.update(outcome.checkpoint for outcome in sink.outcomes() if outcome.problem)
    return problems


for step, broken in enumerate(sys.argv[1], 1):
    name = CheckpointName(step=step, incarnation=1, epoch=0, samples=0)
    if ranks.rank == int(broken) < 2:
        (storage.path(name.shard(ranks.rank))).mkdir(parents=True)
    saver.save(name, {"model": torch.nn.Linear(2, 2)}, frozenset(), {})
    told.append(await_commit(storage, name, sink, note, lambda: None, float("inf"), ranks))
Path(f"told-{ranks.rank}.json").write_text(json.dumps(told))
saver.close()
