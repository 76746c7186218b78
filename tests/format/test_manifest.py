"""Parts and manifests: both ways, whatever the order, and nothing damaged is believed."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoresume.errors import CheckpointInvalid
from autoresume.format import names
from autoresume.format.digest import canonical, digest
from autoresume.format.manifest import Manifest, ManifestHead, PartEntry, entry_of, manifest_of
from autoresume.format.names import CheckpointName
from autoresume.format.part import Chunk, File, Labels, Part, PartHead

NAME = CheckpointName(step=12000, incarnation=4, epoch=3, samples=384000)
DTYPES = {"bool": 1, "bfloat16": 2, "float32": 4, "complex128": 16}

file_names = st.text("ab-_.", min_size=1, max_size=6).map(lambda text: f"pickles/x{text}")


@st.composite
def files(draw: st.DrawFn, name: st.SearchStrategy[str] = file_names, at_least: int = 0) -> File:
    size = at_least + draw(st.integers(0, 40))
    block = draw(st.integers(1, 50))
    return File(draw(name), size, block, tuple(digest(b"%d" % index) for index in range(-(-size // block))))


@st.composite
def chunks(draw: st.DrawFn) -> Chunk:
    whole = draw(st.lists(st.integers(0, 5), max_size=3))
    offset = tuple(draw(st.integers(0, size)) for size in whole)
    size = tuple(draw(st.integers(0, one - o)) for one, o in zip(whole, offset))
    return Chunk(
        key=draw(st.text(st.characters(codec=None), max_size=6)),
        dtype=draw(st.sampled_from(sorted(DTYPES))),
        shape=tuple(whole),
        offset=offset,
        size=size,
        shared=draw(st.booleans()),
        begin=draw(st.integers(0, 100)),
    )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
times = st.floats(0, 1e11)
numbers = st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False)
labels = st.builds(
    Labels,
    st.dictionaries(st.sampled_from(["loss", "chunks", "parts", 'a","chunks":[']), numbers, max_size=2),
    st.lists(st.text(max_size=4), max_size=2).map(tuple),
)


@st.composite
def parts(draw: st.DrawFn, rank: int | None = None, world_size: int | None = None) -> Part:
    world_size = world_size or draw(st.integers(1, 5))
    rank = draw(st.integers(0, world_size - 1)) if rank is None else rank
    held = tuple(draw(st.lists(chunks(), max_size=3)))
    room = max((chunk.begin + chunk.bytes for chunk in held), default=0)
    return Part(
        run_id=draw(st.just("run")),
        checkpoint=NAME,
        rank=rank,
        world_size=world_size,
        time=draw(times),
        shard=draw(files(st.just(names.shard_file(rank)), room)),
        unchanged=draw(st.none() | files(st.just(names.unchanged_file(rank)))),
        chunks=held,
        attachments=draw(st.dictionaries(st.text(max_size=4), files(), max_size=2)),
        labels=draw(labels),
        tree=draw(json_values),
        about=draw(st.dictionaries(st.text(max_size=3), json_values, max_size=2)),
    )


def part_of(rank: int = 0, world_size: int = 2, **changes: Any) -> Part:
    """A plain part; `changes` replace fields."""
    chunk = Chunk("model/w", "float32", (4, 2), (2 * rank, 0), (2, 2), True, 4096)
    shard = File(names.shard_file(rank), 4112, 4096, (digest(b"a"), digest(b"b")))
    pickled = File(names.pickle_file(rank, "env"), 3, 4096, (digest(b"c"),))
    tree = {"model": {"w": {"$": "tensor", "key": "model/w"}}}
    part = Part(
        "run",
        NAME,
        rank,
        world_size,
        1700000000.987,
        shard,
        {"env": pickled},
        Labels({"loss": 0.25}, ("good",)),
        (chunk,),
        tree,
        {"torch": "2.4"},
    )
    return replace(part, **changes)


def manifest(world_size: int = 2) -> Manifest:
    made = [part_of(rank, world_size) for rank in range(world_size)]
    return manifest_of([(part, entry_of(part, part.to_bytes())) for part in made])


# -- both ways ----------------------------------------------------------------------------------------


@given(parts())
def test_a_part_comes_back(part: Part) -> None:
    """What a rank noted of its files and state is read back equal, and has one spelling."""
    data = part.to_bytes()
    found = Part.from_bytes(data)
    assert found == part
    assert str(found.checkpoint) == str(part.checkpoint)
    assert found.to_bytes() == data


@given(parts())
def test_the_order_of_state_comes_back(part: Part) -> None:
    """Dictionaries of the state keep their order: a program may depend on it."""
    assert json.dumps(Part.from_bytes(part.to_bytes()).tree) == json.dumps(part.tree)


@settings(max_examples=20)
@given(st.lists(parts(rank=0, world_size=1), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_the_manifest_is_the_same_for_any_order_of_parts(made: list[Part], random: Any) -> None:
    """Whoever sees all parts, in whatever order a listing shows them, writes the same manifest."""
    world_size = len(made)
    found = []
    for rank, part in enumerate(made):
        shard = replace(part.shard, name=names.shard_file(rank))
        unchanged = part.unchanged and replace(part.unchanged, name=names.unchanged_file(rank))
        part = replace(part, rank=rank, world_size=world_size, shard=shard, unchanged=unchanged)
        found.append((part, entry_of(part, part.to_bytes())))
    first = manifest_of(list(found))
    shuffled = list(found)
    random.shuffle(shuffled)
    reread = [(PartHead.from_bytes(part.to_bytes()), entry) for part, entry in shuffled]
    assert manifest_of(shuffled).to_bytes() == manifest_of(reread).to_bytes() == first.to_bytes()
    assert Manifest.from_bytes(first.to_bytes()) == first
    assert first.time == made[0].time
    assert first.digest == digest(first.to_bytes())
    assert first.total_bytes == sum(
        len(part.to_bytes()) + sum(file.bytes for file in part.all_files) for part, _ in found
    )


def test_parts_of_different_checkpoints_make_no_manifest() -> None:
    """Another run, step, world size, or a missing or doubled rank: CheckpointInvalid, not a manifest of a mixture."""
    whole = part_of(0)
    others = [
        part_of(1, run_id="other"),
        part_of(1, checkpoint=replace(NAME, step=1)),
        part_of(1, world_size=3),
        part_of(0),
    ]
    for other in others:
        with pytest.raises(CheckpointInvalid):
            manifest_of([(whole, entry_of(whole, whole.to_bytes())), (other, entry_of(other, other.to_bytes()))])
    with pytest.raises(CheckpointInvalid, match="1 of 2 parts"):
        manifest_of([(whole, entry_of(whole, whole.to_bytes()))])


def test_parts_that_differ_only_in_epoch_or_samples_are_of_different_checkpoints() -> None:
    """Names are compared in full: epoch and samples belong to the folder, though not to the order of checkpoints."""
    one, other = part_of(0), part_of(1, checkpoint=replace(NAME, samples=1))
    with pytest.raises(CheckpointInvalid):
        manifest_of([(one, entry_of(one, one.to_bytes())), (other, entry_of(other, other.to_bytes()))])


def test_the_box_of_a_chunk_is_in_its_name() -> None:
    """A whole tensor is stored under its key, a box of it under the key and the box."""
    assert Chunk("w", "int8", (4, 2), (0, 0), (4, 2), True, 0).name == "w"
    assert Chunk("w", "int8", (4, 2), (1, 0), (3, 2), True, 0).name == "w[1:4,0:2]"
    assert Chunk("w", "int8", (), (), (), True, 0).name == "w"


@given(parts())
def test_the_head_of_a_part_is_read_without_the_rest(part: Part) -> None:
    """What a commit needs is the same whether all of a part is parsed or its beginning, whatever its names spell."""
    part = replace(part, run_id='run,"chunks":[,"tree":', attachments={**part.attachments, "chunks": part.shard})
    head = PartHead.from_bytes(part.to_bytes())
    assert head == PartHead(**{name: getattr(part, name) for name in PartHead.__dataclass_fields__})
    assert entry_of(head, part.to_bytes()) == entry_of(part, part.to_bytes())


@pytest.mark.parametrize("run_id", ["run", 'run,"parts":['])
def test_the_head_of_a_manifest_is_read_without_the_list_of_parts(run_id: str) -> None:
    """What a listing shows is the same as in the whole manifest."""
    whole = replace(manifest(3), run_id=run_id)
    head = ManifestHead.from_bytes(whole.to_bytes())
    assert head == ManifestHead(run_id, NAME, 3, whole.time, whole.total_bytes, whole.labels)
    assert str(head.checkpoint) == str(NAME)


# -- damage -------------------------------------------------------------------------------------------


def test_every_flipped_byte_of_a_manifest_is_noticed() -> None:
    """Whichever byte is changed to whatever other value: CheckpointInvalid, and no other error."""
    data = manifest(1).to_bytes()
    unnoticed, crashed = [], []
    for at in range(len(data)):
        for value in range(256):
            if value != data[at]:
                damaged = data[:at] + bytes([value]) + data[at + 1 :]
                for kind in (Manifest, ManifestHead):
                    try:
                        kind.from_bytes(damaged)
                    except CheckpointInvalid:
                        continue
                    except Exception as error:
                        crashed.append((at, damaged[at - 8 : at + 8], type(error).__name__, str(error)))
                    else:
                        unnoticed.append((at, damaged[at - 8 : at + 8]))
    assert unnoticed == []
    assert crashed == []


@pytest.mark.parametrize(
    ("run_id", "time"), [("run-é", 1700000000.5), ("run", 1e16), ("run", 1e-7)], ids=["letters", "great", "small"]
)
def test_a_manifest_has_one_spelling(run_id: str, time: float) -> None:
    """Bytes that mean the same but are not the same ("1E+16", "\\u00E9") are a damaged manifest, too."""
    data = replace(manifest(1), run_id=run_id, time=time).to_bytes()
    assert Manifest.from_bytes(data).run_id == run_id
    for at in range(len(data)):
        with pytest.raises(CheckpointInvalid):
            Manifest.from_bytes(data[:at] + bytes([data[at] ^ 0x20]) + data[at + 1 :])


@given(st.integers(0, 1000), st.binary(max_size=3))
def test_a_cut_or_longer_manifest_is_noticed(at: int, more: bytes) -> None:
    """Cut anywhere, also to nothing, or with bytes put in: CheckpointInvalid."""
    data = manifest().to_bytes()
    at = at % len(data)
    for kind in (Manifest, ManifestHead):
        with pytest.raises(CheckpointInvalid):
            kind.from_bytes(data[:at])
        for damaged in (data[:at] + more + data[at:], data + more):
            if damaged != data:
                with pytest.raises(CheckpointInvalid):
                    kind.from_bytes(damaged)


def places(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value inside a JSON value."""
    found = [way]
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in steps:
        found += places(item, (*way, key))
    return found


def with_replaced(value: Any, way: tuple[Any, ...], new: Any) -> Any:
    if not way:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[way[0]] = with_replaced(value[way[0]], way[1:], new)
    return copy


strange = st.one_of(
    json_values,
    st.sampled_from([-1, 0, 1, 2**61, 2**63, 1.0, True, "", "..", "../../x", "/x", [], [1], [[]], {}, "E0_U1_S0-0001"]),
)
sealed_manifest = json.loads(manifest().to_bytes())
plain_part = json.loads(part_of().to_bytes())


@given(st.sampled_from(places({k: v for k, v in sealed_manifest.items() if k != "digest"})[1:]), strange)
def test_a_manifest_of_another_form_is_refused(way: tuple[Any, ...], new: Any) -> None:
    """One with a right digest but anything else changed is CheckpointInvalid, or is a manifest: no other error."""
    value = with_replaced({k: v for k, v in sealed_manifest.items() if k != "digest"}, way, new)
    data = canonical({**value, "digest": digest(canonical(value))})
    with contextlib.suppress(CheckpointInvalid):
        assert type(ManifestHead.from_bytes(data).total_bytes) is int
    try:
        found = Manifest.from_bytes(data)
    except CheckpointInvalid:
        return
    for part in found.parts:
        assert all(names.is_inside(name) and size >= 0 for name, size in part.files)


@given(st.sampled_from(places(plain_part)[1:]), strange)
def test_a_part_of_another_form_is_refused(way: tuple[Any, ...], new: Any) -> None:
    """A part with anything changed is CheckpointInvalid, or is a part that stays inside its folder: no other error."""
    data = canonical(with_replaced(plain_part, way, new))
    with contextlib.suppress(CheckpointInvalid):
        assert all(names.is_inside(name) for name, _ in PartHead.from_bytes(data).files)
    try:
        found = Part.from_bytes(data)
    except CheckpointInvalid:
        return
    assert all(names.is_inside(file.name) for file in found.all_files)
    assert all(chunk.begin + chunk.bytes <= found.image_bytes for chunk in found.chunks)
    assert found.rank < found.world_size


@pytest.mark.parametrize(
    ("way", "new", "reason"),
    [
        pytest.param(("format_version",), 2, "newer autoresume", id="newer format"),
        pytest.param(("format_version",), 0, "format version 0", id="older format"),
        pytest.param(("format_version",), None, "format version None", id="no format"),
        pytest.param(("rank",), 2, "rank 2 of 2", id="rank outside of the world"),
        pytest.param(("rank",), 1, "names the shard", id="another rank's shard"),
        pytest.param(("rank",), -1, "not a count", id="negative rank"),
        pytest.param(("rank",), True, "not a count", id="a truth value as rank"),
        pytest.param(("run_id",), 5, "'run_id' is int", id="run id of another type"),
        pytest.param(("checkpoint",), "latest", "'latest' is not a checkpoint's name", id="no name"),
        pytest.param(("time",), "now", "'time' is str", id="time of another type"),
        pytest.param(("shard", "name"), "../x", "not a file inside", id="shard escapes"),
        pytest.param(("attachments", "env", "name"), "../../run.json", "not a file inside", id="attachment escapes"),
        pytest.param(("attachments", "env", "name"), "/etc/passwd", "not a file inside", id="attachment is absolute"),
        pytest.param(("attachments", "env"), [], "record is malformed", id="attachment of another type"),
        pytest.param(("shard", "block_bytes"), 0, "blocks of 0 bytes", id="blocks of nothing"),
        pytest.param(("shard", "bytes"), 9000, "don't cover", id="too few digests"),
        pytest.param(("shard", "digests"), [], "don't cover", id="no digests"),
        pytest.param(("chunks", 0), [1, 2], "chunk is malformed", id="short chunk"),
        pytest.param(("chunks", 0, 1), "float7", "float7", id="unknown dtype"),
        pytest.param(("chunks", 0, 2), [4], "another dimension", id="dimensions differ"),
        pytest.param(("chunks", 0, 3), [3, 0], "outside of its shape", id="box outside"),
        pytest.param(("chunks", 0, 4), "22", "not a list of sizes", id="sizes of another type"),
        pytest.param(("chunks", 0, 5), "no", "model/w", id="shared of another type"),
        pytest.param(("chunks", 0, 6), 4097, "outside of its shard", id="tensor outside of the file"),
        pytest.param(("about",), [], "'about' is list", id="about of another type"),
    ],
)
def test_the_reason_says_what_is_wrong_with_a_part(way: tuple[Any, ...], new: Any, reason: str) -> None:
    """Each way of being malformed has its reason, in words that name the thing."""
    with pytest.raises(CheckpointInvalid, match=reason):
        Part.from_bytes(canonical(with_replaced(plain_part, way, new)))


@pytest.mark.parametrize(
    ("way", "new", "reason"),
    [
        pytest.param(("format_version",), 2, "newer autoresume", id="newer format"),
        pytest.param(("world_size",), 3, "2 parts for 3 ranks", id="a part too few"),
        pytest.param(("world_size",), 2**61, "2 parts for", id="an absurd world"),
        pytest.param(("parts",), [], "0 parts", id="no parts"),
        pytest.param(("parts", 0, 0), 1, "parts", id="a rank twice"),
        pytest.param(("parts", 0), [0], "malformed", id="short entry"),
        pytest.param(("parts", 0, 3), 5, "malformed", id="files of another type"),
        pytest.param(("parts", 0, 3), [["a"]], "malformed", id="a file without size"),
        pytest.param(("parts", 0, 3, 0, 0), "../x", "not a file inside", id="file escapes"),
        pytest.param(("parts", 0, 3, 0, 1), -1, "not a count", id="negative size"),
        pytest.param(("checkpoint",), "E1_U1_S1-1", "not a checkpoint's name", id="no name"),
    ],
)
def test_the_reason_says_what_is_wrong_with_a_manifest(way: tuple[Any, ...], new: Any, reason: str) -> None:
    """The same for manifests whose digest is right: written by something that is not this format."""
    value = with_replaced({k: v for k, v in sealed_manifest.items() if k != "digest"}, way, new)
    with pytest.raises(CheckpointInvalid, match=reason):
        Manifest.from_bytes(canonical({**value, "digest": digest(canonical(value))}))


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"\xff\xfe", b"{", b"[" * 100_000, b"NaN", b'"x"', b"\0" * 64])
@pytest.mark.parametrize("kind", [Part, Manifest])
def test_what_is_no_json_object_is_refused(kind: type[Part] | type[Manifest], data: bytes) -> None:
    """Empty files, zeros, other encodings, endless nesting: CheckpointInvalid."""
    with pytest.raises(CheckpointInvalid):
        kind.from_bytes(data)


def test_a_manifest_with_what_json_does_not_allow_is_refused() -> None:
    """NaN and infinities, which Python's parser would accept, are CheckpointInvalid."""
    for word in ("NaN", "Infinity", "1e999"):
        with pytest.raises(CheckpointInvalid):
            Manifest.from_bytes(b'{"format_version":1,"digest":"x","time":' + word.encode() + b"}")


def test_a_manifest_lists_what_each_rank_wrote() -> None:
    """One entry for each rank: the part's bytes and digest, and the name and size of every other file."""
    found = manifest()
    data = part_of(1).to_bytes()
    assert found.parts[1] == PartEntry(
        rank=1,
        bytes=len(data),
        digest=digest(data),
        files=(("shards/rank-00001.safetensors", 4112), ("pickles/rank-00001-env.pkl", 3)),
    )
