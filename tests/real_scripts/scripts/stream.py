"""An iterable dataset with a state, as torchdata asks for it: a stream of numbers."""

import torch
from torch.utils.data import IterableDataset, get_worker_info


class Stream(IterableDataset):
    def __init__(self, samples: int = 14) -> None:
        self.samples = samples
        self.position = 0
        self.resumed = False
        self.generator = torch.Generator().manual_seed(2)

    def __iter__(self):
        if not self.resumed:
            self.position = 0
        self.resumed = False
        return self.items()

    def items(self):
        worker = get_worker_info()
        each = 1 if worker is None else worker.num_workers
        number = 0 if worker is None else worker.id
        while self.position < self.samples:
            self.position += 1
            item = torch.randn(4, generator=self.generator)
            if self.position % each == number:
                yield item

    def state_dict(self):
        return {"position": self.position, "generator": self.generator.get_state()}

    def load_state_dict(self, state) -> None:
        self.position = state["position"]
        self.generator.set_state(state["generator"])
        self.resumed = True
