"""From tensors of many ranks to files, and back to tensors of any number of ranks."""

from __future__ import annotations

import math
import mmap
import random
import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from autoresume.checkpoint.commit import commit_if_complete
from autoresume.checkpoint.discover import load_part
from autoresume.checkpoint.persist import Snapshot, persist
from autoresume.errors import CheckpointInvalid, StateError
from autoresume.format.digest import canonical
from autoresume.format.manifest import Manifest
from autoresume.format.names import CheckpointName, pickle_file
from autoresume.load.boxes import Box
from autoresume.load.load_state import load_state
from autoresume.load.read_checkpoint import choose_and_read
from autoresume.load.reader import CheckpointReader
from autoresume.ranks.agreement import Ranks
from autoresume.snapshot.copies import copy_all
from autoresume.snapshot.layout import Plan, make_plan, shares, signature
from autoresume.state.capture import Leaf, capture
from autoresume.state.decode import decode, tensor_keys
from autoresume.state.generator import new_generator
from autoresume.storage import LocalStorage
from autoresume.storage.reading import OpenFile

shared = settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])

NAME = CheckpointName(step=1, incarnation=1, epoch=0, samples=0)
DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint16, torch.uint32, torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.complex128),
]


MIB = 1024 * 1024


class Storage(LocalStorage):
    """Without waiting for the disk."""

    def _sync_file(self, descriptor: int, path: Path) -> None:
        """Forgo it."""

    def _sync_folder(self, folder: Path) -> None:
        """Forgo it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    """Equal for tensors that are equal bit by bit, NaNs and all."""
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return tensor.dtype, tuple(tensor.shape), plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b""


def copy(plan: Plan, leaves: list[Leaf], image: memoryview) -> None:
    plan.write_headers(image)
    copy_all(plan.copies, [leaf.tensor for leaf in leaves], image)


def write(
    storage: LocalStorage,
    leaves: list[list[Leaf]],
    trees: list[Any] | None = None,
    attachments: dict[str, bytes] | None = None,
    files: int = 2,
) -> Manifest:
    """A committed checkpoint of the leaves of each rank, in one or two tensor files a rank."""
    storage.remove(NAME.folder)
    world_size = len(leaves)
    for rank in range(world_size):
        plan = make_plan(leaves[rank], rank, world_size, {"format": "pt"})
        if files == 2:
            second = frozenset(chunk.name for chunk in plan.chunks if zlib.crc32(chunk.name.encode()) % 2)
            plan = make_plan(leaves[rank], rank, world_size, {"format": "pt"}, second)
        image = memoryview(mmap.mmap(-1, max(1, plan.bytes)))[: plan.bytes]
        copy(plan, leaves[rank], image)
        attached = {key: (pickle_file(rank, key), data) for key, data in (attachments or {}).items()}
        tree = trees[rank] if trees else {}
        persist(
            storage,
            Snapshot(
                "run",
                NAME,
                rank,
                world_size,
                1.0,
                image,
                plan.chunks_json,
                canonical(tree),
                {"rank": rank},
                attached,
                first_bytes=plan.first_bytes,
            ),
            lambda: None,
        )
    manifest = commit_if_complete(storage, NAME, lambda: None)
    assert manifest is not None
    return manifest


# -- who stores what ------------------------------------------------------------------------------------

tables = st.lists(st.tuples(st.integers(1, 50), st.sampled_from([1, 2, 4, 8, 400])), max_size=6)


@shared
@given(tables, st.integers(1, 40))
def test_every_row_is_stored_once(table: list[tuple[int, int]], world_size: int) -> None:
    """Whatever the tensors and the number of ranks: all shares together are each row of each tensor exactly once."""
    rows = [count for count, _ in table]
    sizes = [count * row_bytes for count, row_bytes in table]
    by_rank = [shares(sizes, rows, rank, world_size) for rank in range(world_size)]
    for tensor, count in enumerate(rows):
        stored = [row for mine in by_rank for row in range(*mine[tensor])]
        assert stored == list(range(count))


@shared
@given(tables.filter(bool), st.integers(1, 40))
def test_everybody_stores_about_as_much(table: list[tuple[int, int]], world_size: int) -> None:
    """A rank stores its part of the bytes, but for the one row at either end that can't be cut."""
    rows = [count for count, _ in table]
    row_bytes = [each for _, each in table]
    sizes = [count * each for count, each in table]
    for rank in range(world_size):
        mine = shares(sizes, rows, rank, world_size)
        stored = sum((last - first) * each for (first, last), each in zip(mine, row_bytes))
        assert abs(stored - sum(sizes) / world_size) <= max(row_bytes) + 1


def test_a_share_of_something_without_rows() -> None:
    """Tensors without elements, among others, are nobody's rows and disturb nobody."""
    assert [shares([0, 8, 0], [0, 2, 3], rank, 2)[1] for rank in range(2)] == [(0, 1), (1, 2)]


# -- there and back ---------------------------------------------------------------------------------------


def filled(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Random bits."""
    generator = torch.Generator().manual_seed(seed)
    size = math.prod(shape)
    if dtype is torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    raw = torch.randint(0, 256, (size * torch.empty((), dtype=dtype).element_size(),), generator=generator)
    return raw.to(torch.uint8).view(dtype).reshape(shape) if size else torch.empty(shape, dtype=dtype)


def laid_out(tensor: torch.Tensor, memory: str) -> torch.Tensor:
    """The same values, in memory of another form."""
    if memory == "transposed" and tensor.dim() >= 2:
        return tensor.transpose(0, 1).contiguous().transpose(0, 1)
    if memory == "strided" and tensor.dim() >= 1:
        wide = torch.empty((*tensor.shape[:-1], 2 * tensor.shape[-1]), dtype=tensor.dtype)
        wide[..., ::2].copy_(tensor)
        return wide[..., ::2]
    if memory == "offset":
        return torch.cat([torch.zeros(3, dtype=tensor.dtype), tensor.reshape(-1)])[3:].view(tensor.shape)
    if memory == "lazy" and tensor.is_complex():
        return torch.conj(torch.conj_physical(tensor))
    return tensor


@dataclass(frozen=True)
class Spec:
    """One tensor of a state. `kind`: split (equal on all ranks), own (each rank's), sharded (along `dim`)."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    kind: str
    memory: str
    dim: int

    def whole(self, number: int, rank: int) -> torch.Tensor:
        return filled(self.dtype, self.shape, 1000 * number + (rank if self.kind == "own" else 0))

    def box(self, rank: int, world_size: int) -> Box:
        """As FSDP2 cuts: equal pieces, rounded up, so that the last ranks may have less, or nothing."""
        dim = self.dim % len(self.shape)
        each = -(-self.shape[dim] // world_size)
        first = min(rank * each, self.shape[dim])
        last = min(first + each, self.shape[dim])
        offset = tuple(first if d == dim else 0 for d in range(len(self.shape)))
        return offset, tuple(last - first if d == dim else size for d, size in enumerate(self.shape))

    def leaf(self, number: int, rank: int, world_size: int) -> Leaf:
        tensor, name = self.whole(number, rank), str(self.dtype).removeprefix("torch.")
        if self.kind == "sharded" and self.shape:
            offset, size = self.box(rank, world_size)
            piece = laid_out(cut(tensor, (offset, size)), self.memory)
            return Leaf(f"t{number}", piece, name, self.shape, offset, split=False, shared=True)
        split = self.kind == "split" and tensor.numel() > 0
        return Leaf(f"t{number}", laid_out(tensor, self.memory), name, self.shape, (0,) * len(self.shape), split, split)


def cut(tensor: torch.Tensor, box: Box) -> torch.Tensor:
    return tensor[tuple(slice(o, o + s) for o, s in zip(*box))]


specs = st.builds(
    Spec,
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(0, 5), max_size=3).map(tuple) | st.just((3,)) | st.just((7, 2)),
    kind=st.sampled_from(["split", "split", "own", "sharded"]),
    memory=st.sampled_from(["contiguous", "transposed", "strided", "offset", "lazy"]),
    dim=st.integers(0, 2),
)


@shared
@given(st.lists(specs, max_size=5), st.integers(1, 4), st.integers(1, 5))
@example([Spec(torch.float32, (), "split", "contiguous", 0)], 3, 2)
@example([Spec(torch.bfloat16, (7, 3), "sharded", "transposed", 1)], 4, 3)
@example([Spec(torch.bool, (3,), "split", "strided", 0), Spec(torch.complex64, (2, 2), "own", "lazy", 0)], 4, 1)
def test_tensors_come_back_on_any_number_of_ranks(folder: Path, state: list[Spec], writers: int, readers: int) -> None:
    """Split, own and sharded tensors, of any dtype, shape and memory, are read bit by bit by any number of ranks.

    A rank that did not exist reads rank 0's own tensors; sharded ones are read in the reader's sharding.
    """
    storage = Storage(folder)
    manifest = write(
        storage, [[spec.leaf(n, rank, writers) for n, spec in enumerate(state)] for rank in range(writers)]
    )
    for rank in range(readers):
        reader = CheckpointReader(storage, manifest, rank)
        assert reader.exact == (rank < writers)
        wanted: dict[str, Box | None] = {}
        expected = {}
        for number, spec in enumerate(state):
            whole = spec.whole(number, rank if rank < writers else 0)
            box = spec.box(rank, readers) if spec.kind == "sharded" and spec.shape else None
            wanted[f"t{number}"] = box
            expected[f"t{number}"] = cut(whole, box) if box is not None else whole
        found = reader.read(wanted)
        assert {key: bits(tensor) for key, tensor in found.items()} == {
            key: bits(tensor) for key, tensor in expected.items()
        }


@pytest.mark.parametrize("readers", [1, 2, 3, 4, 5, 7])
def test_fewer_rows_than_ranks(folder: Path, readers: int) -> None:
    """A sharded tensor of three rows is read by seven ranks: those that hold nothing of it get nothing."""
    spec = Spec(torch.float32, (3, 2), "sharded", "contiguous", 0)
    storage = Storage(folder)
    manifest = write(storage, [[spec.leaf(0, rank, 2)] for rank in range(2)])
    for rank in range(readers):
        box = spec.box(rank, readers)
        found = CheckpointReader(storage, manifest, rank).read({"t0": box})["t0"]
        assert bits(found) == bits(cut(spec.whole(0, 0), box))


@shared
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.data())
def test_any_box_of_a_grid(folder: Path, rows: int, columns: int, cuts: int, data: st.DataObject) -> None:
    """A tensor that is stored in boxes of two dimensions is read in any other box."""
    whole = torch.arange(rows * columns, dtype=torch.int32).reshape(rows, columns)
    edges = [sorted({0, size, *data.draw(st.lists(st.integers(0, size), max_size=cuts))}) for size in (rows, columns)]
    boxes = [
        ((r, c), (r2 - r, c2 - c)) for r, r2 in zip(edges[0], edges[0][1:]) for c, c2 in zip(edges[1], edges[1][1:])
    ]
    leaves = [Leaf("w", cut(whole, box), "int32", (rows, columns), box[0], split=False, shared=True) for box in boxes]
    storage = Storage(folder)
    manifest = write(storage, [[leaf] for leaf in leaves])
    offset = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    size = data.draw(st.integers(0, rows - offset[0])), data.draw(st.integers(0, columns - offset[1]))
    reader = CheckpointReader(storage, manifest, 0)
    assert bits(reader.read({"w": (offset, size)})["w"]) == bits(cut(whole, (offset, size)))
    assert bits(reader.read({"w": None})["w"]) == bits(whole)


def test_the_files_open_with_plain_safetensors(folder: Path) -> None:
    """Without autoresume: safetensors.torch.load gives each tensor by its key, of its own dtype."""
    tensors = {f"model/{dtype}": filled(dtype, (3, 2), 5) for dtype in DTYPES}
    leaves = [
        Leaf(key, tensor, str(tensor.dtype).removeprefix("torch."), (3, 2), (0, 0), split=False, shared=False)
        for key, tensor in tensors.items()
    ]
    storage = Storage(folder)
    part = load_part(storage, write(storage, [leaves]), 0)
    assert part.unchanged is not None
    found = safetensors.torch.load(storage.read(NAME.shard(0)))
    assert 0 < len(found) < len(tensors)
    found |= safetensors.torch.load(storage.read(NAME.inside(part.unchanged.name)))
    assert set(found) == set(tensors)
    for key, tensor in tensors.items():
        assert bits(found[key]) == bits(torch.view_as_real(tensor) if tensor.is_complex() else tensor)


def test_a_tensor_that_looks_like_a_box_of_another(folder: Path) -> None:
    """A key "w[0:1]", beside a "w" of which row 0 is stored apart: both come back, or saving is refused."""
    whole, other = torch.tensor([1.0, 2.0]), torch.tensor([9.0])
    leaves = [
        [
            Leaf("w", whole, "float32", (2,), (0,), split=True, shared=True),
            Leaf("w[0:1]", other, "float32", (1,), (0,), split=False, shared=False),
        ]
        for _ in range(2)
    ]
    storage = Storage(folder)
    try:
        manifest = write(storage, leaves)
    except StateError:
        return
    found = CheckpointReader(storage, manifest, 0).read({"w": None, "w[0:1]": None})
    assert {key: tensor.tolist() for key, tensor in found.items()} == {"w": [1.0, 2.0], "w[0:1]": [9.0]}


def test_two_leaves_of_one_key_are_refused() -> None:
    """One of two tensors of the same key would be lost: an error that names the key."""
    leaves = [Leaf("w", torch.ones(2), "float32", (2,), (0,), split=False, shared=False) for _ in range(2)]
    with pytest.raises(StateError, match="'w'"):
        make_plan(leaves, 0, 1, {})


# -- plans are used again ---------------------------------------------------------------------------------


def test_a_plan_is_used_again_for_other_values(folder: Path) -> None:
    """As long as the state has the same form, one plan copies whatever the values are at the time."""
    spec = Spec(torch.float32, (4, 3), "split", "contiguous", 0)
    leaves = [spec.leaf(0, 0, 1)]
    plan = make_plan(leaves, 0, 1, {})
    image = memoryview(mmap.mmap(-1, plan.bytes))
    copy(plan, leaves, image)
    leaves[0].tensor.mul_(2)
    assert signature(leaves) == plan.signature
    again = memoryview(mmap.mmap(-1, plan.bytes))
    copy(plan, leaves, again)
    assert bytes(image[:4096]) == bytes(again[:4096])
    assert bytes(image[4096:]) == bits(spec.whole(0, 0))[2]
    assert bytes(again[4096:]) == bits(spec.whole(0, 0) * 2)[2]


BASE = Leaf("w", torch.ones(4, 2), "float32", (4, 2), (0, 0), split=False, shared=True)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param([], id="fewer"),
        pytest.param([BASE, Leaf("v", BASE.tensor, "float32", (4, 2), (0, 0), False, False)], id="more"),
        pytest.param([Leaf("v", BASE.tensor, "float32", (4, 2), (0, 0), False, True)], id="another key"),
        pytest.param([Leaf("w", BASE.tensor.int(), "int32", (4, 2), (0, 0), False, True)], id="another dtype"),
        pytest.param([Leaf("w", BASE.tensor.T, "float32", (2, 4), (0, 0), False, True)], id="another shape"),
        pytest.param([Leaf("w", BASE.tensor, "float32", (8, 2), (0, 0), False, True)], id="another whole"),
        pytest.param([Leaf("w", BASE.tensor, "float32", (4, 2), (4, 0), False, True)], id="another place"),
        pytest.param([Leaf("w", BASE.tensor, "float32", (4, 2), (0, 0), True, True)], id="split now"),
        pytest.param([Leaf("w", BASE.tensor, "float32", (4, 2), (0, 0), False, False)], id="each rank's own now"),
    ],
)
def test_another_form_needs_another_plan(other: list[Leaf]) -> None:
    """Whatever the plan and its chunks depend on is in the signature."""
    assert signature([BASE]) != signature(other)


# -- whole states -----------------------------------------------------------------------------------------


class Stateful:
    def __init__(self, state: Any) -> None:
        self.state = state

    def state_dict(self) -> Any:
        return self.state


def save_and_load(folder: Path, state: Any, writers: int = 1, promised: bool = False, reader: int = 0) -> Any:
    """Captured by each of `writers` ranks, written, committed, read by rank `reader`, decoded."""
    captured = [
        capture({"thing": Stateful(state)}, frozenset(), frozenset({"thing"} if promised else ()))
        for _ in range(writers)
    ]
    storage = Storage(folder)
    manifest = write(storage, [one.leaves for one in captured], [one.tree for one in captured])
    found = CheckpointReader(storage, manifest, reader)
    tensors = found.read(dict.fromkeys(tensor_keys(found.tree)))
    return decode(found.tree["thing"], tensors)


def model_and_optimizer() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 5, bias=False))
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.1), betas=(0.5, 0.9))
    for _ in range(2):
        model(torch.randn(4, 5)).pow(2).sum().backward()
        optimizer.step()
    return model, optimizer


def same(one: Any, other: Any) -> bool:
    """Equal types and values throughout; tensors and arrays bit by bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return bits(one) == bits(other)
    if isinstance(one, (np.ndarray, np.generic)):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, dict):
        pairs = list(zip(one.items(), other.items()))
        return len(one) == len(other) and all(same(a, c) and same(b, d) for (a, b), (c, d) in pairs)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other))
    return bool(one == other)


@pytest.mark.parametrize("reader", [0, 2])
@pytest.mark.parametrize("promised", [True, False], ids=["split", "own"])
@pytest.mark.parametrize("writers", [1, 3])
def test_a_model_and_its_optimizer(folder: Path, writers: int, promised: bool, reader: int) -> None:
    """A real training state, 0-dim counters and integer keys and all, comes back on ranks old and new."""
    model, optimizer = model_and_optimizer()
    state = {"model": OrderedDict(model.state_dict()), "optimizer": optimizer.state_dict()}
    state["model"].pop("_metadata", None)
    found = save_and_load(folder, state, writers, promised, reader)
    assert same(found, {key: dict(value) if key == "optimizer" else value for key, value in state.items()})
    optimizer.load_state_dict(found["optimizer"])
    model.load_state_dict(found["model"])


def test_split_state_is_stored_once(folder: Path) -> None:
    """What all ranks hold equal is stored once by all of them together, what they hold by themselves by each."""
    state = {"w": torch.arange(4096, dtype=torch.float32)}
    stored = {}
    for promised in (True, False):
        save_and_load(folder, state, writers=4, promised=promised)
        manifest = Manifest.from_bytes(Storage(folder).read(NAME.manifest))
        parts = [load_part(Storage(folder), manifest, rank) for rank in range(4)]
        stored[promised] = [sum(file.bytes - 4096 for _, file in part.tensor_files) for part in parts]
    assert stored[True] == [4096] * 4
    assert stored[False] == [4 * 4096] * 4


def test_tied_tensors_are_stored_once_and_come_back_as_often(folder: Path) -> None:
    """Two names of one tensor take its room once, and both are there afterwards; a view of another shape is apart."""
    tied = torch.randn(100, 10)
    state = {"a": tied, "b": {"c": tied}, "array": tied.numpy(), "view": tied[:50], "flat": tied.view(-1)}
    captured = capture({"thing": Stateful(state)}, frozenset(), frozenset())
    assert [leaf.key for leaf in captured.leaves] == ["thing/a", "thing/view", "thing/flat"]
    assert same(save_and_load(folder, state), state)


GENERATOR = torch.Generator().manual_seed(7)
VALUES: dict[str, Callable[[], Any]] = {
    "no dimension": lambda: torch.tensor(3.5),
    "no elements": lambda: [torch.empty(0), torch.empty(0, 3), torch.empty(2, 0, dtype=torch.bool)],
    "bool": lambda: torch.tensor([True, False]),
    "bfloat16": lambda: torch.tensor([1.5, float("nan"), -0.0], dtype=torch.bfloat16),
    "complex": lambda: torch.tensor([1 + 2j, complex(float("inf"), -0.0)]),
    "conjugated": lambda: torch.tensor([1 + 2j]).conj(),
    "expanded": lambda: torch.tensor([1.0]).expand(4),
    "every other": lambda: torch.arange(10)[::2],
    "channels last": lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "arrays": lambda: [np.arange(6.0).reshape(2, 3), np.array(2), np.zeros((0, 2), np.float16), np.array([1 + 2j])],
    "an array in Fortran's order": lambda: np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "an array backwards": lambda: np.arange(6)[::-1],
    "a read-only array": lambda: np.broadcast_to(np.int16(3), (2, 2)),
    "numbers of numpy": lambda: [np.float64(0.1), np.float32("nan"), np.int8(-3), np.bool_(True), np.uint64(2**63)],
    "torch's words": lambda: [torch.Size([1, 2]), torch.float16, torch.device("cpu"), torch.device("cuda", 1)],
    "a number and its digits as keys": lambda: {0: torch.zeros(2), "0": torch.ones(2)},
    "numbers of numpy as keys": lambda: {np.int64(1): "a", np.int64(2): "b"},
    "a Counter of an array": lambda: Counter(np.array([3, 1, 3, 2, 3])),
    "tensors in tuples in dicts": lambda: {"a": ({1: [torch.ones(1)]}, (torch.zeros(1),))},
    "keys that look like paths": lambda: {"a/b": torch.zeros(1), "a": {"b": torch.ones(1)}, "a~1b": torch.ones(2)},
    "order": lambda: {"z": 1, "a": 2, "m": {"y": 1, "b": 2}},
}


@pytest.mark.parametrize("make", VALUES.values(), ids=VALUES.keys())
@pytest.mark.parametrize("writers", [1, 2])
def test_values_come_back(folder: Path, make: Callable[[], Any], writers: int) -> None:
    """Each kind of value that a state may hold comes back with its type and all its bits."""
    value = make()
    assert same(save_and_load(folder, {"value": value}, writers, promised=writers > 1), {"value": value})


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: torch.Generator().manual_seed(3), id="torch"),
        pytest.param(lambda: np.random.default_rng(3), id="numpy"),
        pytest.param(lambda: np.random.Generator(np.random.MT19937(3)), id="numpy's Mersenne Twister"),
        pytest.param(lambda: random.Random(3), id="python"),
    ],
)
def test_generators_go_on(folder: Path, make: Callable[[], Any]) -> None:
    """A generator draws the same numbers after it came back as it would have drawn."""

    def draw(generator: Any) -> list[float]:
        if isinstance(generator, torch.Generator):
            return torch.rand(3, generator=generator).tolist()
        return [generator.normal() if hasattr(generator, "normal") else generator.gauss(0, 1) for _ in range(3)]

    generator = make()
    draw(generator)
    found = save_and_load(folder, {"generator": generator})["generator"]
    assert type(found) is type(generator)
    assert draw(found) == draw(generator)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_generator_of_a_device_that_is_not_there_seeds_another(caplog: pytest.LogCaptureFixture) -> None:
    """A run that is continued on a machine without GPU gets its CUDA generators as ones of the CPU: the same in each such
    resume, other ones for other states, and it is said."""

    def made(offset: int) -> torch.Generator:
        state = torch.tensor([42, 0, 0, 0, 0, 0, 0, 0, offset, 0, 0, 0, 0, 0, 0, 0], dtype=torch.uint8)
        found = new_generator({"kind": "torch", "device": "cuda:3", "state": state})
        assert isinstance(found, torch.Generator)
        return found

    first, again, other = (torch.rand(3, generator=made(offset)).tolist() for offset in (4, 4, 8))
    assert first == again != other
    assert "seeded with its state" in caplog.text


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: np.array([1, 2], dtype=">i4"), id="bytes in the other order"),
        pytest.param(lambda: np.ma.array([1, 2], mask=[True, False]), id="a masked array"),
        pytest.param(lambda: np.matrix([[1, 2]]), id="a matrix"),
        pytest.param(lambda: np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f4")]), id="a structured array"),
        pytest.param(lambda: np.array(["x", "yz"]), id="an array of strings"),
        pytest.param(lambda: np.array([object()]), id="an array of objects"),
        pytest.param(lambda: np.array(["2024-01-01"], dtype="datetime64[D]"), id="an array of dates"),
        pytest.param(lambda: np.longdouble(1) / 3, id="a long double"),
        pytest.param(lambda: np.str_("x"), id="a string of numpy"),
        pytest.param(lambda: torch.eye(2).to_sparse(), id="a sparse tensor"),
        pytest.param(lambda: torch.empty(2, device="meta"), id="a tensor without values"),
        pytest.param(lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), id="a quantized tensor"),
        pytest.param(lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]), id="a nested tensor"),
        pytest.param(lambda: torch.ones(2, dtype=torch.complex32), id="a half complex tensor"),
    ],
)
def test_what_can_not_come_back_is_refused(folder: Path, make: Callable[[], Any]) -> None:
    """A value comes back with its type and bits, or is a StateError that names its key: nothing is lost silently."""
    value = make()
    try:
        found = save_and_load(folder, {"deep": [value]})
    except StateError as error:
        message = str(error)
    else:
        assert same(found, {"deep": [value]})
        return
    assert "thing/deep/0" in message


# -- into sharded tensors ---------------------------------------------------------------------------------


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Any]:
    """A mesh of one device, so that real DTensors can be made in this process."""
    dist = torch.distributed
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        yield torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


def sharded(mesh: Any, rows: int, columns: int) -> torch.nn.Module:
    """A layer whose parameters are DTensors, sharded by rows."""
    from torch.distributed.tensor import Shard, distribute_tensor

    torch.manual_seed(rows)
    layer = torch.nn.Linear(columns, rows)
    for name, parameter in list(layer.named_parameters()):
        layer.register_parameter(name, torch.nn.Parameter(distribute_tensor(parameter.detach(), mesh, [Shard(0)])))
    return layer


def saved(storage: Storage, objects: dict[str, Any]) -> Manifest:
    captured = capture(objects, frozenset(), frozenset())
    return write(storage, [captured.leaves], [captured.tree])


def restore_into(storage: Storage, objects: dict[str, Any]) -> None:
    found = choose_and_read(storage, "run", Ranks(), lambda: None, objects)
    assert found is not None
    for name, target in objects.items():
        load_state(name, target, found.states[name])


def test_a_sharded_model_comes_back(tmp_path: Path, mesh: Any) -> None:
    """DTensors are stored in their boxes and come back as DTensors, in the model and in its optimizer."""
    layer = sharded(mesh, 6, 4)
    optimizer = torch.optim.AdamW(layer.parameters())
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    storage = Storage(tmp_path)
    saved(storage, {"layer": layer, "optimizer": optimizer})
    other = sharded(mesh, 6, 4)
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    other_optimizer = torch.optim.AdamW(other.parameters())
    restore_into(storage, {"layer": other, "optimizer": other_optimizer})
    for key, value in layer.state_dict().items():
        assert type(other.state_dict()[key]) is type(value)
        assert bits(other.state_dict()[key].to_local()) == bits(value.to_local())
    for one, two in zip(optimizer.state.values(), other_optimizer.state.values(), strict=True):
        assert bits(one["exp_avg"].to_local()) == bits(two["exp_avg"].to_local())


@pytest.mark.parametrize(("rows", "columns"), [(8, 4), (4, 4), (6, 2), (6, 8), (3, 8)])
def test_a_sharded_model_of_another_shape_is_refused(tmp_path: Path, mesh: Any, rows: int, columns: int) -> None:
    """A live model that is larger, or smaller, than the stored one: a StateError, as for a plain model.

    Nothing is cut to fit, and the checkpoint, which is whole, stays where it is.
    """
    storage = Storage(tmp_path)
    saved(storage, {"layer": sharded(mesh, 6, 4)})
    with pytest.raises(StateError, match="weight"):
        restore_into(storage, {"layer": sharded(mesh, rows, columns)})
    assert storage.list("checkpoints") == [str(NAME)]
    assert storage.list("aside") == []


# -- reading verifies -------------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path: Path) -> tuple[Storage, Manifest, dict[str, torch.Tensor]]:
    """Two tensors that begin and end in different blocks of digests, and a small one behind them."""
    storage = Storage(tmp_path)
    tensors = {
        "first": torch.arange(6 * MIB // 8, dtype=torch.int64),
        "second": torch.arange(12 * MIB // 8, dtype=torch.int64) * 3,
        "small": torch.ones(3),
    }
    leaves = [
        Leaf(key, one, str(one.dtype).removeprefix("torch."), tuple(one.shape), (0,), split=True, shared=True)
        for key, one in tensors.items()
    ]
    return storage, write(storage, [leaves], attachments={"env": b"an environment"}, files=1), tensors


def test_a_damaged_block_is_noticed_where_it_is_used(
    written: tuple[Storage, Manifest, dict[str, torch.Tensor]],
) -> None:
    """Reading what lies in a damaged block fails and says where; what lies in other blocks is read."""
    storage, manifest, tensors = written
    with open(storage.path(NAME.shard(0)), "r+b") as file:
        file.seek(9 * MIB)
        file.write(b"damage!!")
    reader = CheckpointReader(storage, manifest, 0)
    found = reader.read({"first": None, "small": None})
    assert same(found, {key: tensors[key] for key in ("first", "small")})
    with pytest.raises(CheckpointInvalid, match="damaged between byte 8388608 and 16777216"):
        reader.read({"small": None, "second": None})


def test_only_the_blocks_that_hold_what_is_wanted_are_read(
    written: tuple[Storage, Manifest, dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank that needs one tensor reads the blocks that it lies in, once each, and no others."""
    storage, manifest, _ = written
    read = []
    original = OpenFile.fill

    def noted(self: OpenFile, begin: int, *arguments: Any) -> Iterator[memoryview]:
        read.append(begin)
        return original(self, begin, *arguments)

    monkeypatch.setattr(OpenFile, "fill", noted)
    reader = CheckpointReader(storage, manifest, 0)
    for wanted, blocks in ((["first"], [0]), (["second"], [0, 1, 2]), (["small"], [2]), (["first", "small"], [0, 2])):
        read.clear()
        reader.read(dict.fromkeys(wanted))
        assert sorted(read) == [block * 8 * MIB for block in blocks]


@pytest.mark.parametrize(
    ("rank", "rows", "parts"),
    [
        pytest.param(3, (6, 2), [0, 3], id="its own"),
        pytest.param(3, (6, 1), [0, 3], id="less than its own"),
        pytest.param(3, (5, 2), [0, 1, 2, 3, 4], id="another's as well"),
        pytest.param(3, (0, 10), [0, 1, 2, 3, 4], id="everything"),
        pytest.param(0, (0, 2), [0], id="rank 0's own"),
        pytest.param(5, (0, 2), [0, 1, 2, 3, 4], id="a rank that did not exist then"),
    ],
)
def test_only_the_parts_that_are_needed_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, rank: int, rows: tuple[int, int], parts: list[int]
) -> None:
    """A rank whose own part holds what it wants reads no other but rank 0's: N ranks would read N parts each."""
    storage, whole = Storage(folder), torch.arange(20.0).view(10, 2)
    pieces = [
        Leaf("w", whole[2 * one : 2 * one + 2].clone(), "float32", (10, 2), (2 * one, 0), split=False, shared=True)
        for one in range(5)
    ]
    manifest = write(storage, [[piece] for piece in pieces])
    read: list[str] = []
    original = storage.read

    def noted(name: str, into: memoryview | None = None, offset: int = 0) -> bytes:
        read.append(name)
        return original(name, into, offset)

    monkeypatch.setattr(storage, "read", noted)
    reader = CheckpointReader(storage, manifest, rank)
    assert reader.describe("w").shape == (10, 2)
    found = reader.read({"w": ((rows[0], 0), (rows[1], 2))})["w"]
    assert found.equal(whole[rows[0] : rows[0] + rows[1]])
    assert sorted(set(read) & {NAME.part(one) for one in range(5)}) == [NAME.part(one) for one in parts]


@pytest.mark.parametrize(
    "wanted",
    [
        pytest.param({"nowhere": None}, id="an unknown key"),
        pytest.param({"first": ((0,), (10**9,))}, id="a box beyond the tensor"),
    ],
)
def test_what_is_not_there_is_an_error(written: tuple[Storage, Manifest, dict[str, torch.Tensor]], wanted: Any) -> None:
    """A key that no part has, or elements that none covers, are CheckpointInvalid that names the key."""
    storage, manifest, _ = written
    with pytest.raises(CheckpointInvalid, match=next(iter(wanted))):
        CheckpointReader(storage, manifest, 0).read(wanted)


def test_a_tensor_with_a_hole_is_an_error(folder: Path) -> None:
    """A shared tensor of which one rank's rows are in no part is not returned with anything in their place."""
    halves = [Leaf("w", torch.ones(2), "int64", (6,), (offset,), split=False, shared=True) for offset in (0, 4)]
    storage = Storage(folder)
    halves = [Leaf(h.key, h.tensor.long(), h.dtype, h.shape, h.offset, h.split, h.shared) for h in halves]
    reader = CheckpointReader(storage, write(storage, [[half] for half in halves]), 0)
    with pytest.raises(CheckpointInvalid, match="'w': the parts hold 4 of the 6"):
        reader.read({"w": None})
    assert reader.read({"w": ((4,), (2,))})["w"].tolist() == [1, 1]


def test_overlapping_boxes_do_not_hide_a_hole(folder: Path) -> None:
    """Rows that two parts hold are not counted for rows that none holds."""
    leaves = [
        Leaf("w", torch.ones(3, dtype=torch.int64), "int64", (6,), (offset,), split=False, shared=True)
        for offset in (0, 1)
    ]
    storage = Storage(folder)
    reader = CheckpointReader(storage, write(storage, [[leaf] for leaf in leaves]), 0)
    with pytest.raises(CheckpointInvalid, match="'w'"):
        reader.read({"w": None})


def test_of_a_box_that_two_ranks_stored_each_gets_its_own(folder: Path) -> None:
    """Two ranks both stored all of "w", with other values: each gets back what it stored, and nobody else anything.

    So it is with pipeline stages that number their layers from 0 on each, and shard them by themselves.
    """
    leaves = [
        Leaf("w", torch.full((3, 2), float(rank)), "float32", (3, 2), (0, 0), split=False, shared=True)
        for rank in range(2)
    ]
    storage = Storage(folder)
    manifest = write(storage, [[leaf] for leaf in leaves])
    for rank in range(2):
        assert CheckpointReader(storage, manifest, rank).read({"w": None})["w"].equal(leaves[rank].tensor)
    with pytest.raises(CheckpointInvalid, match=r"'w': the same elements are stored by several of the ranks \[0, 1\]"):
        CheckpointReader(storage, manifest, 2).read({"w": None})


def test_attachments_are_verified(written: tuple[Storage, Manifest, dict[str, torch.Tensor]]) -> None:
    """A pickle's bytes are compared with their digest before anybody may load them."""
    storage, manifest, _ = written
    reader = CheckpointReader(storage, manifest, 0)
    assert reader.attachment("env") == b"an environment"
    with pytest.raises(CheckpointInvalid, match="'other' of rank 0 is missing"):
        reader.attachment("other")
    for damage in (b"an enviromnent", b"an environment!", b"an env", b""):
        storage.write(NAME.inside(pickle_file(0, "env")), damage)
        with pytest.raises(CheckpointInvalid, match=r"env\.pkl"):
            reader.attachment("env")


def test_what_was_read_stays_when_the_file_changes(folder: Path) -> None:
    """Tensors are copies: pruning or damaging the checkpoint afterwards does not reach them."""
    storage = Storage(folder)
    spec = Spec(torch.float32, (4, 3), "own", "contiguous", 0)
    reader = CheckpointReader(storage, write(storage, [[spec.leaf(0, 0, 1)]]), 0)
    found = reader.read({"t0": None})["t0"]
    with open(storage.path(NAME.shard(0)), "r+b") as file:
        file.write(bytes(5000))
    found.add_(0)
    assert bits(found) == bits(spec.whole(0, 0).add(0))
