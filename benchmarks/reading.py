"""How fast a checkpoint is read back, beside what the machine can do and what others do.

Law: the ways take turns, in one process, on the same bytes; each round gives every way one time. What is told are
rates and, of each round, the ratio to the machine's limit, since disks and neighbours change by the minute.

    python benchmarks/reading.py FOLDER [--rounds 5] [--tensors 5000] [--cold] [--warm] [--ranks 2]

With --ranks: as many ranks of a node that each restore all of it, beside one that does, from the disk.

FOLDER is where files are made (1.5 GB for each of four kinds), on the disk that is to be measured. The page cache
is emptied of these files by posix_fadvise, which needs no rights.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import multiprocessing
import os
import shutil
import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from autoresume.checkpoint.commit import commit_if_complete
from autoresume.checkpoint.persist import Snapshot, persist
from autoresume.format.digest import canonical
from autoresume.format.names import CheckpointName
from autoresume.load.load_state import load_state
from autoresume.load.read_checkpoint import choose_and_read
from autoresume.ranks.agreement import Ranks
from autoresume.snapshot.copies import copy_all
from autoresume.snapshot.layout import make_plan
from autoresume.state.capture import capture
from autoresume.storage import LocalStorage

NAME = CheckpointName(step=1, incarnation=1, epoch=0, samples=0)
BLOCK = 8 * 1024 * 1024


class Block(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = torch.nn.ModuleList([torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)])
        self.attention = torch.nn.ModuleList([torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)])
        self.mlp = torch.nn.ModuleList([torch.nn.Linear(width, 4 * width), torch.nn.Linear(4 * width, width)])


def state(tensors: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A GPT-2 of 125M parameters, or as many bytes in `tensors` small ones; with the state of its AdamW."""
    model: torch.nn.Module
    if tensors:
        size = 124_000_000 * 3 // tensors
        model = torch.nn.ParameterList([torch.nn.Parameter(torch.rand(size)) for _ in range(tensors // 4)])
    else:
        model = torch.nn.Sequential(
            torch.nn.Embedding(50257, 768),
            torch.nn.Embedding(1024, 768),
            *(Block(768) for _ in range(12)),
            torch.nn.LayerNorm(768),
        )
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.rand_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return model, optimizer


def flat(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    found = {f"model.{key}": value for key, value in model.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        found.update((f"optimizer.{index}.{key}", value) for key, value in values.items())
    return found


def restore(storage: LocalStorage, objects: dict[str, Any]) -> None:
    found = choose_and_read(storage, "run", Ranks(), lambda: None, objects)
    assert found is not None
    for name, target in objects.items():
        load_state(name, target, found.states[name])


class Bench:
    def __init__(self, folder: Path, tensors: int) -> None:
        self.folder = folder
        self.model, self.optimizer = state(tensors)
        self.storage = LocalStorage(folder / "run")
        self.objects = {"model": self.model, "optimizer": self.optimizer}
        captured = capture(self.objects, frozenset(), frozenset(self.objects))
        plan = make_plan(captured.leaves, 0, 1, {"format": "pt"})
        image = memoryview(mmap.mmap(-1, plan.bytes))
        plan.write_headers(image)
        copy_all(plan.copies, [leaf.tensor for leaf in captured.leaves], image)
        persist(
            self.storage,
            Snapshot("run", NAME, 0, 1, 1.0, image, plan.chunks_json, canonical(captured.tree), {}),
            lambda: None,
        )
        commit_if_complete(self.storage, NAME, lambda: None)
        self.bytes = plan.bytes
        self.shard = self.storage.path(NAME.shard(0))
        self.others = {"safetensors": folder / "peer.safetensors", "torch": folder / "peer.pt"}
        safetensors.torch.save_file(flat(self.model, self.optimizer), self.others["safetensors"])
        torch.save(flat(self.model, self.optimizer), self.others["torch"])
        self.flat = torch.ones(self.bytes, dtype=torch.uint8)
        self.windows = [memoryview(mmap.mmap(-1, BLOCK)) for _ in range(8)]
        for window in self.windows:
            window[:] = bytes(BLOCK)

    # -- the machine's limits ---------------------------------------------------------------------

    def raw_direct(self) -> None:
        """Eight threads that read 8 MiB each past the page cache, and do nothing with them."""
        descriptor = os.open(self.shard, os.O_RDONLY | os.O_DIRECT)
        free = list(self.windows)

        def read(begin: int) -> None:
            window = free.pop()
            os.preadv(descriptor, [window], begin)
            free.append(window)

        with contextlib.closing(_Descriptor(descriptor)), ThreadPoolExecutor(8) as pool:
            list(pool.map(read, range(0, self.bytes, BLOCK)))

    def page_cache_copy(self) -> None:
        """All of the file in one multi-threaded copy, from the page cache to memory that is there already."""
        with open(self.shard, "rb") as file:
            memory = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        self.flat.copy_(torch.frombuffer(memory, dtype=torch.uint8))

    # -- ways to restore --------------------------------------------------------------------------

    def autoresume(self) -> None:
        """Everything: choosing, judging, reading, verifying all digests, loading both objects."""
        restore(self.storage, self.objects)

    def autoresume_fresh(self) -> None:
        """The same with an optimizer that has no state yet, as when a job starts."""
        restore(self.storage, {"model": self.model, "optimizer": torch.optim.AdamW(self.model.parameters())})

    def safetensors(self) -> None:
        self._copy(safetensors.torch.load_file(self.others["safetensors"]))

    def torch_mmap(self) -> None:
        self._copy(torch.load(self.others["torch"], mmap=True, weights_only=True))

    def _copy(self, found: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for key, target in flat(self.model, self.optimizer).items():
                target.copy_(found[key])

    # -- taking turns -----------------------------------------------------------------------------

    def files(self) -> list[Path]:
        return [*self.shard.parents[1].rglob("*.*"), *self.others.values()]

    def forget(self) -> None:
        for path in self.files():
            if path.is_file():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def remember(self) -> None:
        buffer = bytearray(BLOCK)
        for path in (self.shard, *self.others.values()):
            with open(path, "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    def compare(self, what: str, ways: list[Callable[[], None]], rounds: int, before: Callable[[], None]) -> None:
        times: dict[str, list[float]] = {way.__name__: [] for way in ways}
        costs: dict[str, list[float]] = {way.__name__: [] for way in ways}
        for _ in range(rounds):
            for way in ways:
                before()
                began, cost = time.perf_counter(), time.process_time()
                way()
                times[way.__name__].append(time.perf_counter() - began)
                costs[way.__name__].append(time.process_time() - cost)
        limit = times[ways[0].__name__]
        print(f"{what}: {self.bytes / 1e9:.2f} GB, {rounds} rounds")
        for name, seconds in times.items():
            ratios = [one / other for one, other in zip(limit, seconds)]
            print(
                f"  {name:18} {self.bytes / 1e9 / statistics.median(seconds):6.2f} GB/s, best "
                f"{self.bytes / 1e9 / min(seconds):5.2f}; of the limit: median {statistics.median(ratios):.2f}, "
                f"of bests {min(limit) / min(seconds):.2f}; CPU {min(costs[name]):.2f} s",
                flush=True,
            )


def node(bench: Bench, tensors: int, ranks: int, rounds: int) -> None:
    """One rank and `ranks` of them in turns; what is told is the time until the last one has all."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(ranks + 1), context.Queue()
    arguments = (bench.folder, tensors, ranks, rounds, barrier, results)
    children = [context.Process(target=_rank, args=(rank, *arguments), daemon=True) for rank in range(ranks)]
    for child in children:
        child.start()
    times: dict[int, list[float]] = {1: [], ranks: []}
    read: dict[int, list[float]] = {1: [], ranks: []}
    for _ in range(rounds):
        for together in (1, ranks):
            bench.forget()
            barrier.wait(300)
            found = [results.get() for _ in range(together)]
            times[together].append(max(seconds for seconds, _ in found))
            read[together].append(sum(count for _, count in found) / bench.bytes)
            barrier.wait(300)
    ratios = [several / one for one, several in zip(times[1], times[ranks])]
    print(f"cold, ranks of a node: {bench.bytes / 1e9:.2f} GB, {rounds} rounds")
    for together in (1, ranks):
        rate = bench.bytes / 1e9 / statistics.median(times[together])
        print(
            f"  {together} rank(s): {rate:.2f} GB/s; read from the disk {statistics.median(read[together]):.3f} times"
        )
    print(
        f"  time of {ranks} / time of 1: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}"
    )


def _rank(rank: int, folder: Path, tensors: int, ranks: int, rounds: int, barrier: Any, results: Any) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks))
    model, optimizer = state(tensors)
    storage = LocalStorage(folder / "run")
    for _ in range(rounds):
        for together in (1, ranks):
            os.environ.update(LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(together))
            barrier.wait(300)
            if rank < together:
                began, before = time.perf_counter(), _read_bytes()
                restore(storage, {"model": model, "optimizer": optimizer})
                results.put((time.perf_counter() - began, _read_bytes() - before))
            barrier.wait(300)


def _read_bytes() -> int:
    """What this process has had read from disks."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


class _Descriptor:
    def __init__(self, number: int) -> None:
        self.number = number

    def close(self) -> None:
        os.close(self.number)


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tensors", type=int, default=0, help="that many small tensors instead of a GPT-2's")
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--warm", action="store_true")
    parser.add_argument("--ranks", type=int, default=0)
    options: Any = parser.parse_args()
    options.folder.mkdir(parents=True)
    try:
        bench = Bench(options.folder, options.tensors)
        restores = [bench.autoresume, bench.autoresume_fresh, bench.safetensors, bench.torch_mmap]
        bench.autoresume()
        if options.ranks:
            node(bench, options.tensors, options.ranks, options.rounds)
            return
        if options.warm or not options.cold:
            bench.compare("warm", [bench.page_cache_copy, *restores], options.rounds, bench.remember)
        if options.cold or not options.warm:
            bench.compare("cold", [bench.raw_direct, *restores], options.rounds, bench.forget)
    finally:
        shutil.rmtree(options.folder)


if __name__ == "__main__":
    main()
