"""All ranks decide one thing.

Law: this is the only module with collectives of our own. They run on a gloo group of our own, so they
never meet the user's (NCCL or gloo) in another order. They happen when a run starts, when the layout
changes, and, without a node daemon, once every few steps for one word, launched at one boundary and
read at a later one so that nobody waits.
"""

from __future__ import annotations

import datetime
import json
import os
from typing import Any

import torch
import torch.distributed as dist

from autoresume.errors import AgreementError
from autoresume.handoff.fence import Order

_TIMEOUT = datetime.timedelta(minutes=30)
_TARGET_SECONDS = 0.1
_MAX_INTERVAL = 64


def ranks_from_environment() -> tuple[int, int]:
    """(rank, world size) as the launcher tells it: torchrun's variables, else Slurm's for a plain srun."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return 0, 1


def known_ranks() -> tuple[int, int]:
    """(rank, world size) as far as it is known now: the default process group's where there is one (mp.spawn and MPI
    tell it nobody else), else what the launcher says."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return ranks_from_environment()


class Ranks:
    """This rank among the others, and what they tell each other."""

    def __init__(
        self,
        rank: int = 0,
        world_size: int = 1,
        group: dist.ProcessGroup | None = None,
        background: dist.ProcessGroup | None = None,
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self.group = group
        self.background = background
        """For what ranks tell each other at moments of their own, while `group` is in use."""

    @classmethod
    def join(cls, backend: str | None = None) -> Ranks:
        """Make the group, and the default process group as well where the user left that to us.

        Every rank must call it. Raises AgreementError when they can't find each other.
        """
        _, world_size = ranks_from_environment()
        if not (dist.is_available() and dist.is_initialized()):
            if world_size == 1:
                return cls()
            init_process_group(backend)
        if dist.get_world_size() == 1:
            return cls()
        try:
            group, background = (dist.new_group(backend="gloo", timeout=_TIMEOUT) for _ in range(2))
        except RuntimeError as error:
            raise AgreementError(f"the ranks can't form a gloo group: {error}") from error
        return cls(dist.get_rank(), dist.get_world_size(), group, background)

    def broadcast(self, value: Any, source: int = 0) -> Any:
        """`value` of rank `source`, which must be JSON-ready."""
        if self.group is None:
            return value
        data = json.dumps(value).encode() if self.rank == source else b""
        length = torch.tensor([len(data)])
        dist.broadcast(length, source, group=self.group)
        buffer = torch.frombuffer(bytearray(data or bytes(int(length))), dtype=torch.uint8)
        dist.broadcast(buffer, source, group=self.group)
        return json.loads(bytes(buffer.numpy()))

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in the order of ranks, on every rank. Values are JSON-ready."""
        if self.group is None:
            return [value]
        data = json.dumps(value).encode()
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        dist.all_gather(lengths, torch.tensor([len(data)]), group=self.group)
        longest = max(int(length) for length in lengths)
        padded = torch.frombuffer(bytearray(data.ljust(longest)), dtype=torch.uint8)
        buffers = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.world_size)]
        dist.all_gather(buffers, padded, group=self.group)
        return [json.loads(bytes(buffer.numpy())) for buffer in buffers]


def init_process_group(backend: str | None) -> None:
    """Make the default process group, if there is none yet: gloo for the CPU, and NCCL for CUDA where that is."""
    if dist.is_initialized():
        return
    if backend in (None, "auto"):
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, rank=0, world_size=1, store=torch._C._distributed_c10d.HashStore())


class LaggedOrders:
    """Orders agreed by a reduction that is launched at one boundary and read at a later one.

    Without a node daemon. Each rank brings its own wish (a signal, a save that is due on rank 0); all
    get the strongest, at the same boundary. How many steps lie between two rounds is part of what is
    agreed, and follows the measured step time, so that a round costs little whatever a step takes.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._wish = Order.NOTHING
        self._pending: tuple[dist.Work, torch.Tensor] | None = None
        self._until_next = 0
        self._left = False

    def request(self, order: Order) -> None:
        self._wish = max(self._wish, order)

    def at_boundary(self, step: int, step_seconds: float) -> Order:
        """The boundary after `step`. Every rank calls it at every boundary, in step."""
        if self.ranks.group is None:
            order, self._wish = self._wish, Order.NOTHING
            return order
        order = Order.NOTHING
        if self._until_next > 0:
            self._until_next -= 1
            return order
        if self._pending is not None:
            order, interval = self._read()
            self._until_next = interval - 1
        self._launch(step_seconds)
        return order

    def after_loop(self, step_seconds: float) -> tuple[Order, bool]:
        """For a rank that has left its loop: one more round; (order, whether all have left)."""
        if self.ranks.group is None:
            return Order.NOTHING, True
        self._left = True
        if self._pending is None:
            self._launch(step_seconds)
        order, _ = self._read()
        done = self._all_left
        if not done:
            self._launch(step_seconds)
        return order, done

    def _launch(self, step_seconds: float) -> None:
        interval = min(_MAX_INTERVAL, max(1, round(_TARGET_SECONDS / max(step_seconds, 1e-6))))
        # One MAX serves all: the strongest wish, the shortest interval, and whether anybody is still training.
        word = torch.tensor([int(self._wish), -interval, 0 if self._left else 1])
        self._wish = Order.NOTHING
        work = dist.all_reduce(word, op=dist.ReduceOp.MAX, group=self.ranks.group, async_op=True)
        self._pending = (work, word)

    def _read(self) -> tuple[Order, int]:
        assert self._pending is not None
        work, word = self._pending
        self._pending = None
        try:
            work.wait()
        except RuntimeError as error:
            raise AgreementError(f"another rank is gone: {error}") from error
        self._all_left = int(word[2]) == 0
        return Order(int(word[0])), -int(word[1])
