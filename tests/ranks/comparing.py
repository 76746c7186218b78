"""Two ranks that compare numbers, at moments of their own: rank 1 leaves out one question, and then asks others."""

import os

import numpy as np
import torch.distributed as dist

from autoresume.ranks.comparison import Comparison

dist.init_process_group("gloo")
rank = dist.get_rank()
comparison = Comparison(dist.new_group(backend="gloo"))
store = dist.distributed_c10d._get_default_store()


def wait_for(what: str) -> None:
    store.set(f"{what}-{rank}", "")
    store.wait([f"{what}-0", f"{what}-1"])


def asked(name: str, numbers: list[int], known: bool = True) -> list[tuple[str, list[int]]]:
    assert comparison.ask(name, np.array(numbers, dtype=np.int64), known)
    wait_for(name)
    return [(one.name, np.flatnonzero(one.differs).tolist()) for one in comparison.answers()]


largest, least = 2**63 - 1, -(2**63)
assert asked("same", [1, -5, largest, least]) == [("same", [])]
assert asked("first and last", [rank, 7, -rank]) == [("first and last", [0, 2])]
assert asked("given up by rank 1", [rank, 7, -rank], known=rank == 0) == [("given up by rank 1", [])]
if rank == 0:
    assert comparison.answers() == []
    assert comparison.ask("only rank 0's", np.array([1, 2, 3]))
    assert comparison.answers() == [], "nobody else has asked: that is not waited for"
    wait_for("alone")
    assert asked("fourth", [1, 2, 3]) == []
else:
    wait_for("alone")
    assert asked("fourth", [4, 5, 6]) == [], "answers to another question"
print("as it should be", os.getpid())
