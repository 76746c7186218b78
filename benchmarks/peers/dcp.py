"""torch.distributed.checkpoint: as it is called simplest, and in its best configuration for periodic saves."""

from __future__ import annotations

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

from benchmarks.measure import Group
from benchmarks.peers.base import Rival, app_state
from benchmarks.states import State


class Dcp(Rival):
    def save(self, number: int) -> None:
        dcp.save(app_state(self.state), checkpoint_id=self.place(number), no_dist=self.group.world == 1)

    def load(self, number: int) -> None:
        dcp.load(app_state(self.state), checkpoint_id=self.place(number), no_dist=self.group.world == 1)


class DcpAsync(Dcp):
    """The plan is cached, the stager keeps its memory, and a thread writes. From a GPU it copies into pinned memory
    while training goes on."""

    def __init__(self, folder, state: State, group: Group) -> None:  # type: ignore[no-untyped-def]
        super().__init__(folder, state, group)
        device = any(tensor.is_cuda for _, tensor in state.tensors())
        staging = StagingOptions(
            use_pinned_memory=device, use_shared_memory=False, use_async_staging=device, use_non_blocking_copy=device
        )
        self._stager = DefaultStager(staging)
        self._last = None

    def save(self, number: int) -> None:
        self._last = dcp.async_save(
            app_state(self.state),
            checkpoint_id=self.place(number),
            planner=DefaultSavePlanner(enable_plan_caching=True),
            async_checkpointer_type=AsyncCheckpointerType.THREAD,
            async_stager=self._stager,
            no_dist=self.group.world == 1,
        )

    def join(self) -> None:
        if hasattr(self._last, "staging_completion"):
            self._last.staging_completion.result()

    def wait(self) -> None:
        last = self._last
        (last if hasattr(last, "result") else last.upload_completion).result()  # type: ignore[union-attr]

    def close(self) -> None:
        self._stager.close()
