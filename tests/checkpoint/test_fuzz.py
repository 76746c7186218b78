"""Files that nobody damaged by accident: every digest is right, and what they say can't be.

Only the project's own errors come out, whatever they say; no more memory is asked for than the checkpoint
has bytes; no name leads out of the run's folder; and nothing is imported or called by name.
"""

from __future__ import annotations

import contextlib
import copy
import json
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoresume.checkpoint.commit import commit_if_complete
from autoresume.checkpoint.discover import judge
from autoresume.checkpoint.incarnation import Incarnation
from autoresume.checkpoint.verify import verify
from autoresume.config.options import Options
from autoresume.errors import CheckpointInvalid, StorageFailed, UsageError
from autoresume.format import names, tree
from autoresume.format.digest import digest
from autoresume.format.manifest import Manifest
from autoresume.format.part import Part
from autoresume.load.read_checkpoint import read_without_ranks
from autoresume.run.run_file import RunFile
from autoresume.state.decode import decode, tensor_keys
from tests.checkpoint.two_ranks import NEWEST, RUN_ID, write
from tests.storage.forgetful import UnsyncedStorage

many = settings(deadline=None, max_examples=250, suppress_health_check=list(HealthCheck))
MORE_BYTES = 2**30


class WatchedStorage(UnsyncedStorage):
    """Refuses nothing, and checks that every name lies inside."""

    def path(self, name: str) -> Path:
        path = super().path(name)
        assert path.resolve().is_relative_to(self.root.resolve())
        return path


@pytest.fixture(scope="module", autouse=True)
def little_memory() -> Iterator[None]:
    """What claims to be huge must not be allocated: this process gets a gibibyte more than it has."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MORE_BYTES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> WatchedStorage:
    storage = WatchedStorage(tmp_path_factory.mktemp("run"))
    write(storage, NEWEST)
    return storage


# -- values that can't be -----------------------------------------------------------------------------------

NASTY_TEXTS = [
    *("../../etc/passwd", "/etc/passwd", "..", "", "a\0b", "shards/../../x", "manifest.json", "\ud800", "~", "$"),
    *("os.system", "tuple", "deque", "Counter", "generator", "tensor", "ndarray", "torch.device", "torch.Size", "path"),
    *("pickled", "model/w", "rng/state", "float32", "bool", "complex128", "object", "numpy", "python", "torch"),
]
NASTY_NUMBERS = [0, -1, 1, 2, 7, 2**31, 2**40, 2**61, 2**62, 2**64, 10**30, 0.5, 1e308, True, None]
atoms = st.sampled_from([*NASTY_TEXTS, *NASTY_NUMBERS]) | st.integers(-3, 20) | st.text(max_size=3)
values = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["$", "items", "key", "state", "value", "kind", "strides", "x"]), inner)
        | st.fixed_dictionaries({"$": st.sampled_from(NASTY_TEXTS), "items": st.lists(inner, max_size=3)})
        | st.fixed_dictionaries({"$": st.just("tensor"), "key": st.just("model/w"), "strides": st.lists(inner)})
        | st.fixed_dictionaries({"$": st.just("generator"), "state": inner})
    ),
    max_leaves=6,
)


def places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to everything in it."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*way, key)
        yield from places(item, (*way, key))


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """A value like it, in one to three places something else."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        ways = list(places(value))
        if not ways:
            break
        *way, last = draw(st.sampled_from(ways))
        inner = value
        for key in way:
            inner = inner[key]
        kind = draw(st.sampled_from(["replaced", "replaced", "replaced", "gone", "doubled"]))
        if kind == "replaced":
            inner[last] = draw(values)
        elif kind == "gone":
            del inner[last]
        elif isinstance(inner, list):
            inner.append(copy.deepcopy(inner[last]))
    return value


def spelled(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


# -- readers of bytes ---------------------------------------------------------------------------------------


@many
@given(st.binary(max_size=60) | values.map(spelled) | st.just(b"[" * 100_000) | st.just(b'{"a":' * 50_000))
def test_any_bytes(data: bytes) -> None:
    """Manifest and part: CheckpointInvalid, whatever the bytes are."""
    for reader in (Manifest, Part):
        with pytest.raises(CheckpointInvalid):
            reader.from_bytes(data)


@many
@given(values)
def test_any_tree(value: Any) -> None:
    """A value of a plain type, or CheckpointInvalid; nothing is imported."""
    before = set(sys.modules)
    import torch

    with contextlib.suppress(CheckpointInvalid):
        decode(value, dict.fromkeys(tensor_keys(value), torch.zeros(3)))
    assert {name for name in set(sys.modules) - before if not name.startswith(("numpy", "torch"))} == set()


@pytest.mark.parametrize(
    "value",
    [
        {"$": "torch.device", "name": "nowhere"},
        {"$": "generator", "state": {"kind": "torch", "device": "nowhere", "state": 1}},
        {"$": "generator", "state": {"kind": "numpy", "state": {"bit_generator": "PCG64", "state": 3}}},
        {"$": "generator", "state": {"kind": "python", "state": [1]}},
        {
            "$": "generator",
            "state": {
                "kind": "numpy",
                "state": {"bit_generator": "MT19937", "state": {"key": [], "pos": 0}},
            },
        },
        {"$": "tensor", "key": "w", "strides": [2**61]},
        {"$": "tensor", "key": "w", "strides": [2**40]},
        {"$": "tensor", "key": ["w"]},
        {"$": "tensor"},
        {"$": "ndarray", "key": {}},
        {"$": ["tuple"], "items": []},
        {"$": "deque", "items": [], "maxlen": -1},
        {"$": "range", "items": [0, 1, 0]},
        {"$": "set", "items": [[]]},
    ],
)
def test_a_tree_that_can_not_be(value: Any) -> None:
    """What torch, numpy or python refuse in their own words is a malformed tree."""
    import torch

    with pytest.raises(CheckpointInvalid):
        decode(value, dict.fromkeys(tensor_keys(value), torch.zeros(3)))


def test_a_tree_that_is_too_deep() -> None:
    """Nested beyond what the stack holds."""
    value: Any = {}
    for _ in range(sys.getrecursionlimit()):
        value = {"x": value}
    with pytest.raises(CheckpointInvalid, match="malformed"):
        tensor_keys(value)
    with pytest.raises(CheckpointInvalid, match="malformed"):
        tree.decode(value, lambda tagged: tagged)


# -- whole checkpoints --------------------------------------------------------------------------------------


def read_all(storage: WatchedStorage) -> None:
    """All that reads a checkpoint. Whatever it holds: a problem, or values; no other error than ours."""
    verify(storage, NEWEST, RUN_ID)
    judged = judge(storage, NEWEST, RUN_ID)
    if judged.problem is None and judged.manifest is not None:
        for rank in range(2):
            with contextlib.suppress(CheckpointInvalid):
                read_without_ranks(storage, judged.manifest, rank=rank)


@pytest.fixture(scope="module")
def original(storage: WatchedStorage) -> dict[str, bytes]:
    files = ("manifest.json", "parts/rank-00000.json", "parts/rank-00001.json")
    return {file: storage.read(NEWEST.inside(file)) for file in files}


def put(storage: WatchedStorage, manifest: dict[str, Any], part: bytes | None = None, rank: int = 0) -> None:
    """A manifest with a right digest; with a part, that lists it."""
    if part is not None:
        storage.write(NEWEST.part(rank), part)
        manifest["parts"][rank][1:3] = [len(part), digest(part)]
        manifest["bytes"] = sum(row[1] + sum(size for _, size in row[3]) for row in manifest["parts"])
    manifest.pop("digest", None)
    storage.write(NEWEST.manifest, spelled({**manifest, "digest": digest(spelled(manifest))}))


@many
@given(data=st.data())
def test_any_manifest(storage: WatchedStorage, original: dict[str, bytes], data: st.DataObject) -> None:
    """A manifest that is signed by its digest, and says what it likes."""
    put(storage, data.draw(changed(json.loads(original["manifest.json"]))))
    for rank in range(2):
        storage.write(NEWEST.part(rank), original[f"parts/rank-0000{rank}.json"])
    read_all(storage)


@settings(many, max_examples=500)
@given(data=st.data(), rank=st.integers(0, 1), listed=st.booleans())
def test_any_part(
    storage: WatchedStorage, original: dict[str, bytes], data: st.DataObject, rank: int, listed: bool
) -> None:
    """A part that the manifest lists with its digest, and, if `listed`, with the files that it names."""
    for other in range(2):
        storage.write(NEWEST.part(other), original[f"parts/rank-0000{other}.json"])
    part = data.draw(changed(json.loads(original[f"parts/rank-0000{rank}.json"])))
    manifest = json.loads(original["manifest.json"])
    if listed:
        try:
            read = Part.from_bytes(spelled(part))
        except CheckpointInvalid:
            return
        manifest["parts"][rank][3] = [[file.name, file.bytes] for file in read.all_files]
    put(storage, manifest, spelled(part), rank)
    read_all(storage)
    storage.remove(NEWEST.manifest)
    with contextlib.suppress(CheckpointInvalid, StorageFailed):
        commit_if_complete(storage, NEWEST, lambda: None)
    read_all(storage)


@pytest.mark.parametrize(
    ("dtype", "shape", "offset", "size"),
    [
        ("float32", [2**40], [0], [4]),
        ("float32", [2**40, 3], [0, 1], [1, 2]),
        ("uint8", [0] * 100, [0] * 100, [0] * 100),
        ("uint8", [2**50, 2**50, 0], [0, 0, 0], [2**50, 2**50, 0]),
        ("complex128", [2**61], [2**60], [1]),
        ("bool", [2**62 - 1], [0], [0]),
    ],
)
def test_shapes_that_claim_much(
    storage: WatchedStorage, original: dict[str, bytes], dtype: str, shape: list, offset: list, size: list
) -> None:
    """A header of a few bytes asks for no memory: the checkpoint is invalid, and nothing was allocated."""
    for rank in range(2):
        part = json.loads(original[f"parts/rank-0000{rank}.json"])
        for chunk in part["chunks"]:
            if chunk[0] == "model/w":
                chunk[1:5] = [dtype, shape, offset, size]
        manifest = json.loads(storage.read(NEWEST.manifest) if rank else original["manifest.json"])
        put(storage, manifest, spelled(part), rank)
    said = judge(storage, NEWEST, RUN_ID)
    if said.problem is None:
        assert said.manifest is not None
        with pytest.raises(CheckpointInvalid, match="model/w"):
            read_without_ranks(storage, said.manifest)


# -- records of lives ---------------------------------------------------------------------------------------

RECORD = json.loads(Incarnation(3, RUN_ID, "host", "boot", [(7, 1.5)], 2, ["train.py"], {"id": "9"}).to_bytes())


@many
@given(changed(RECORD).map(spelled) | st.binary(max_size=60) | st.just(b"[" * 100_000))
def test_any_record_of_a_life(data: bytes) -> None:
    """A record, or CheckpointInvalid; who reads it finds counts in it."""
    with contextlib.suppress(CheckpointInvalid):
        record = Incarnation.from_bytes(data)
        assert type(record.number) is int
        assert type(record.world_size) is int


@many
@given(
    changed({"run_id": "5f1e", "seed": 7, "loggers": {}}).map(spelled)
    | st.binary(max_size=60)
    | st.just(b"[" * 100_000)
)
def test_any_record_of_a_run(storage: WatchedStorage, data: bytes) -> None:
    """An identity and a seed, or a UsageError."""
    storage.write(names.RUN, data)
    with contextlib.suppress(UsageError):
        run_file = RunFile(storage, Options())
        assert (type(run_file.run_id), type(run_file.seed)) == (str, int)
