"""The states that are saved: transformers with AdamW, and many small tensors.

Law: a state is the same bytes whoever builds it. Optimizer state is there from the start, as it is in the
middle of a training.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import xxhash
from torch import nn
from torch.nn import functional


@dataclass(frozen=True)
class Size:
    layers: int
    width: int
    vocabulary: int
    context: int


TRANSFORMERS = {
    "tiny": Size(2, 64, 512, 16),
    "20M": Size(6, 384, 25000, 64),
    "125M": Size(12, 768, 50257, 1024),
    "350M": Size(24, 1024, 50257, 1024),
}
VECTORS = {"few small tensors": (50, 1000), "5,000 tensors": (1250, 66_667), "50,000 tensors": (12_500, 6_667)}
"""How many parameters, of how many numbers each; AdamW makes four tensors of a parameter."""
FROZEN = {f"{name}, frozen but for a block": name for name in TRANSFORMERS}
"""A transformer of which the last block is trained, as a fine-tuning does it."""
STATES = [*TRANSFORMERS, *VECTORS, *FROZEN]


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.before = nn.LayerNorm(width)
        self.attention = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.between = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.heads = max(1, width // 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        parts = self.attention(self.before(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(functional.gelu(self.up(self.between(x))))


class Transformer(nn.Module):
    """GPT-2's shape; the output shares its matrix with the input."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.tokens = nn.Embedding(size.vocabulary, size.width)
        self.places = nn.Embedding(size.context, size.width)
        self.blocks = nn.ModuleList(Block(size.width) for _ in range(size.layers))
        self.last = nn.LayerNorm(size.width)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        x = self.tokens(words) + self.places(torch.arange(words.shape[1], device=words.device))
        for block in self.blocks:
            x = block(x)
        scores = self.last(x[:, :-1]) @ self.tokens.weight.T
        return functional.cross_entropy(scores.flatten(0, 1), words[:, 1:].flatten())


class Vectors(nn.Module):
    def __init__(self, count: int, length: int) -> None:
        super().__init__()
        self.parts = nn.ParameterList(nn.Parameter(torch.full((length,), float(index))) for index in range(count))


class TimedAdamW(torch.optim.AdamW):
    """`entered` is when the step's own work began: what pre-hooks do, such as waiting for a copy, lies before it."""

    entered = 0.0

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self.entered = time.perf_counter()
        super().step()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """For what is done to thousands of small tensors between measurements: OpenMP's threads wait for each other at each
    of them, which takes minutes where the cores have other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass
class State:
    name: str
    model: nn.Module
    optimizer: TimedAdamW

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self.model.state_dict().items()
        for index, parameter in enumerate(self.model.parameters()):
            if parameter.requires_grad:
                for name, value in self.optimizer.state[parameter].items():
                    yield f"optimizer.{index}.{name}", value

    @property
    def bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for _, tensor in self.tensors())

    def change(self) -> None:
        """Another value in each element that is trained, as a training step makes it."""
        frozen = {parameter.data_ptr() for parameter in self.model.parameters() if not parameter.requires_grad}
        with one_thread(), torch.no_grad():
            torch._foreach_add_([one for _, one in self.tensors() if one.data_ptr() not in frozen], 1e-3)

    def clear(self) -> None:
        """Zeros everywhere."""
        with one_thread(), torch.no_grad():
            torch._foreach_zero_([tensor for _, tensor in self.tensors()])

    def digest(self) -> str:
        whole = xxhash.xxh3_64()
        for name, tensor in self.tensors():
            whole.update(name.encode())
            whole.update(tensor.detach().reshape(-1).view(torch.uint8).numpy().data)
        return whole.hexdigest()

    def batch(self, seed: int, length: int) -> torch.Tensor:
        size = TRANSFORMERS[self.name]
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(size.vocabulary, (1, min(length, size.context)), generator=generator)


def build(name: str, device: str = "cpu") -> State:
    torch.manual_seed(0)
    size = TRANSFORMERS.get(FROZEN.get(name, name))
    model = Transformer(size) if size is not None else Vectors(*VECTORS[name])
    if name in FROZEN:
        assert isinstance(model, Transformer)
        model.requires_grad_(False)
        model.blocks[-1].requires_grad_(True)
    model.to(device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = TimedAdamW(trained, lr=1e-5, fused=True)
    with one_thread():
        for parameter in trained:
            parameter.grad = parameter.detach() * 0.01
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return State(name, model, optimizer)
