"""The tensor file: what we lay out, the plain safetensors library opens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st

from autoresume.errors import StateError
from autoresume.format.tensorfile import ALIGNMENT, Entry, Layout, item_bytes, lay_out

# Our word, safetensors' code, bytes of one element, and the last dimension that a pair adds.
DTYPES = {
    "bool": ("BOOL", 1, ()),
    "uint8": ("U8", 1, ()),
    "int8": ("I8", 1, ()),
    "float8_e4m3fn": ("F8_E4M3", 1, ()),
    "float8_e5m2": ("F8_E5M2", 1, ()),
    "int16": ("I16", 2, ()),
    "uint16": ("U16", 2, ()),
    "float16": ("F16", 2, ()),
    "bfloat16": ("BF16", 2, ()),
    "int32": ("I32", 4, ()),
    "uint32": ("U32", 4, ()),
    "float32": ("F32", 4, ()),
    "int64": ("I64", 8, ()),
    "uint64": ("U64", 8, ()),
    "float64": ("F64", 8, ()),
    "complex64": ("F32", 8, (2,)),
    "complex128": ("F64", 16, (2,)),
}

tensor_names = st.text(max_size=12).filter(lambda name: name != "__metadata__")
shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)
entries = st.lists(
    st.builds(Entry, tensor_names, st.sampled_from(sorted(DTYPES)), shapes),
    max_size=8,
    unique_by=lambda entry: entry.name,
)


def filled(layout: Layout) -> tuple[bytes, dict[str, bytes]]:
    """A whole file, and what was put into each tensor."""
    image = bytearray(layout.size)
    image[: len(layout.header)] = layout.header
    content = {}
    for number, (entry, begin) in enumerate(zip(layout.entries, layout.begins)):
        data = bytes((number * 31 + place) % 251 for place in range(entry.bytes))
        image[begin : begin + entry.bytes] = data
        content[entry.name] = data
    return bytes(image), content


def opened(file: bytes) -> dict[str, dict[str, Any]]:
    return dict(safetensors.deserialize(file))


@given(entries, st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3))
def test_the_safetensors_library_opens_it(wanted: list[Entry], metadata: dict[str, str]) -> None:
    """Any tensors, whatever their names, dtypes and shapes, are found by the plain library, bytes and all."""
    file, content = filled(lay_out(wanted, metadata))
    found = opened(file)
    assert set(found) == {entry.name for entry in wanted}
    for entry in wanted:
        code, _, pair = DTYPES[entry.dtype]
        assert found[entry.name]["dtype"] == code
        assert tuple(found[entry.name]["shape"]) == (*entry.shape, *pair)
        assert bytes(found[entry.name]["data"]) == content[entry.name]


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (2, 3)], ids=str)
@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_every_dtype_and_shape_alone(dtype: str, shape: tuple[int, ...]) -> None:
    """Each known dtype, without dimension, without elements, and plain: size and offset are right."""
    layout = lay_out([Entry("x", dtype, shape)], {})
    code, size, pair = DTYPES[dtype]
    assert item_bytes(dtype) == size
    assert layout.entries[0].bytes == math.prod(shape) * size
    assert layout.size == layout.begins[0] + layout.entries[0].bytes
    file, content = filled(layout)
    found = opened(file)["x"]
    assert (found["dtype"], tuple(found["shape"]), bytes(found["data"])) == (code, (*shape, *pair), content["x"])


@given(entries)
def test_everything_is_aligned_and_nothing_overlaps(wanted: list[Entry]) -> None:
    """The data begin at a multiple of 4096, each tensor at a multiple of its item size, one after the other."""
    layout = lay_out(wanted, {"format": "pt"})
    assert len(layout.header) % ALIGNMENT == 0
    end = len(layout.header)
    for entry, begin in zip(layout.entries, layout.begins):
        assert begin == end
        assert begin % item_bytes(entry.dtype) == 0
        end = begin + entry.bytes
    assert layout.size == end
    assert sorted(layout.entries, key=repr) == sorted(wanted, key=repr)


@given(entries)
def test_the_same_input_gives_the_same_bytes(wanted: list[Entry]) -> None:
    """A layout is a function of its entries: two ranks, or two lives, get the same header."""
    assert lay_out(wanted, {"a": "b"}) == lay_out(list(wanted), {"a": "b"})


def test_names_must_be_unique() -> None:
    """Two tensors of one name would overwrite each other: the error says which."""
    with pytest.raises(StateError, match="'w'"):
        lay_out([Entry("w", "int8", ()), Entry("v", "int8", ()), Entry("w", "int8", (2,))], {})


def test_the_metadata_s_name_is_not_for_tensors() -> None:
    """The one name that safetensors reserves is refused."""
    with pytest.raises(StateError, match="__metadata__"):
        lay_out([Entry("__metadata__", "int8", ())], {})


@pytest.mark.parametrize("dtype", ["qint8", "complex32", "float7", "", "torch.float32"])
def test_other_dtypes_are_refused(dtype: str) -> None:
    """A dtype that the format has no code for is a StateError that lists the known ones."""
    with pytest.raises(StateError, match="bfloat16, bool"):
        item_bytes(dtype)
    with pytest.raises(StateError):
        lay_out([Entry("x", dtype, ())], {})


def test_a_name_that_is_no_text_is_refused_or_opens() -> None:
    """A key with a lone surrogate must not make a file that other readers can't open."""
    try:
        layout = lay_out([Entry("\ud800", "int8", ())], {})
    except StateError:
        return
    assert set(opened(filled(layout)[0])) == {"\ud800"}


def names_of(wanted: Sequence[Entry]) -> list[str]:
    return [entry.name for entry in wanted]


def test_order_is_by_item_size_then_as_given() -> None:
    """Tensors of greater items come first, of equal items in the order that they were given in."""
    wanted = [Entry("a", "int8", ()), Entry("b", "float64", ()), Entry("c", "int8", ()), Entry("d", "complex128", ())]
    assert names_of(lay_out(wanted, {}).entries) == ["d", "b", "a", "c"]
