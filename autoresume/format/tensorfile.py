"""The tensor file of one rank: a plain safetensors file, laid out before the first byte is copied.

Law: only header bytes and offsets; no tensor, no I/O. Differences from what the safetensors library
itself writes, all within its specification: the header is padded with spaces so that the data begin
at a multiple of 4096 (direct I/O, aligned copies), and tensors are ordered by item size, so that
each begins at a multiple of its own item size.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autoresume.errors import StateError

ALIGNMENT = 4096
MAX_HEADER_BYTES = 100_000_000
"""The safetensors library refuses larger headers."""

_CODES = {
    "bool": ("BOOL", 1),
    "uint8": ("U8", 1),
    "int8": ("I8", 1),
    "float8_e4m3fn": ("F8_E4M3", 1),
    "float8_e5m2": ("F8_E5M2", 1),
    "int16": ("I16", 2),
    "uint16": ("U16", 2),
    "float16": ("F16", 2),
    "bfloat16": ("BF16", 2),
    "int32": ("I32", 4),
    "uint32": ("U32", 4),
    "float32": ("F32", 4),
    "int64": ("I64", 8),
    "uint64": ("U64", 8),
    "float64": ("F64", 8),
}
# Complex numbers are stored as pairs of reals: the last dimension of the file's tensor is 2.
_PAIRS = {"complex64": ("F32", 8), "complex128": ("F64", 16)}
_KNOWN = {**_CODES, **_PAIRS}


def item_bytes(dtype: str) -> int:
    """Bytes of one element. Raises StateError for a dtype that safetensors can't hold."""
    if dtype not in _KNOWN:
        raise StateError(f"tensors of dtype {dtype} can't be stored; known are {', '.join(sorted(_KNOWN))}")
    return _KNOWN[dtype][1]


def aligned(size: int) -> int:
    """Where the next file begins in an image that holds several: at the next multiple of ALIGNMENT."""
    return size + -size % ALIGNMENT


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its name, dtype (torch's word without "torch."), and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * item_bytes(self.dtype)


@dataclass(frozen=True)
class Layout:
    """Where everything is. `begins[i]` is the absolute offset in bytes of `entries[i]`."""

    header: bytes
    entries: tuple[Entry, ...]
    begins: tuple[int, ...]
    size: int


def lay_out(entries: Sequence[Entry], metadata: dict[str, str]) -> Layout:
    """Plan a file of `entries`, in the order of item size, then as given. The same input gives the same bytes."""
    ordered = sorted(entries, key=lambda entry: -item_bytes(entry.dtype))
    header: dict[str, Any] = {"__metadata__": metadata}
    offset, offsets = 0, []
    for entry in ordered:
        name, shape = entry.name, list(entry.shape)
        if name in header:
            raise StateError(f"two tensors are called {name!r}; names of tracked state must be unique")
        if not name.isascii():
            _refuse_surrogates(name)
        code, item = _KNOWN[entry.dtype]
        end = offset + math.prod(shape) * item
        if entry.dtype in _PAIRS:
            shape.append(2)
        offsets.append(offset)
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=True).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES:
        raise StateError(f"{len(entries)} tensors need a header of {len(text)} bytes; safetensors allows 100 MB")
    begin = 8 + len(text)
    return Layout(
        header=len(text).to_bytes(8, "little") + text,
        entries=tuple(ordered),
        begins=tuple(begin + value for value in offsets),
        size=begin + offset,
    )


def _refuse_surrogates(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise StateError(f"tensor {name!r} has a name that is no text: it holds lone surrogates") from None
