"""Fingerprints of what a step sees: a batch, and the generators of this process. Cheap enough for each step.

Law: a look, which draws nothing, changes nothing and waits for no device. The same content gives the same
fingerprint in every process; of a large tensor some windows are read, so that a difference may be missed, and none
is made up.
"""

from __future__ import annotations

import ctypes
import functools
import random
import struct
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import xxhash

_WINDOWS, _WINDOW_BYTES = 4, 512
_MOST_TENSORS = 16
_MOST_ITEMS = 64
_DEPTH = 6
_MOST_TEXT = 256
_DIGITS = 8


def of_bytes(*data: bytes) -> str:
    """8 hexadecimal digits."""
    return xxhash.xxh3_64_hexdigest(b"".join(data))[:_DIGITS]


def of_value(value: Any, waits: bool = False) -> str:
    """Of a batch, or anything like it: nested collections, tensors, arrays, plain values, attributes. With `waits` some
    numbers of tensors on a device, too, for which it is waited."""
    return of_bytes(*_Walk(waits).parts(value, 0))


class _Walk:
    def __init__(self, waits: bool) -> None:
        self._waits = waits
        self._tensors = 0

    def parts(self, value: Any, depth: int) -> Iterator[bytes]:
        if isinstance(value, torch.Tensor):
            yield self._head(value.dtype, value.shape)
            if self._tensors <= _MOST_TENSORS:
                yield from windows(_some(value) if self._waits and value.device.type != "cpu" else value)
        elif isinstance(value, np.ndarray):
            yield self._head(value.dtype, value.shape)
            if self._tensors <= _MOST_TENSORS and value.dtype != object:
                yield np.ascontiguousarray(value.reshape(-1)[: _WINDOWS * _WINDOW_BYTES]).tobytes()
        elif isinstance(value, (str, bytes)):
            yield repr((len(value), value[:_MOST_TEXT])).encode()
        elif isinstance(value, (bool, int, float, complex, type(None), np.generic)):
            yield repr(value).encode()
        elif depth < _DEPTH:
            yield f"{type(value).__qualname__}(".encode()
            yield from self._inside(value, depth)

    def _head(self, dtype: Any, shape: Any) -> bytes:
        self._tensors += 1
        return f"{dtype}{tuple(shape)}".encode()

    def _inside(self, value: Any, depth: int) -> Iterator[bytes]:
        if isinstance(value, Mapping):
            for key in list(value)[:_MOST_ITEMS]:
                yield repr(key).encode()
                yield from self.parts(value[key], depth + 1)
        elif isinstance(value, (list, tuple)):
            yield str(len(value)).encode()
            for item in value[:_MOST_ITEMS]:
                yield from self.parts(item, depth + 1)
        elif isinstance(value, (set, frozenset)):
            yield str(len(value)).encode()  # in another order in each process
        else:
            for name, item in list(getattr(value, "__dict__", {}).items())[:_MOST_ITEMS]:
                yield name.encode()
                yield from self.parts(item, depth + 1)


def _some(tensor: torch.Tensor) -> torch.Tensor:
    """Numbers of a tensor on a device, in this process's memory."""
    flat = getattr(tensor, "_local_tensor", tensor).detach().reshape(-1)
    return flat[:: max(1, flat.numel() // _MOST_ITEMS)].cpu()


def windows(tensor: torch.Tensor) -> Iterator[bytes]:
    """Some bytes of a tensor in this process's memory, all of a small one; nothing of one on a device."""
    tensor = getattr(tensor, "_local_tensor", tensor)
    if tensor.device.type != "cpu" or tensor.layout is not torch.strided or not tensor.numel():
        return
    if not (tensor.is_contiguous() or (tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last))):
        yield from _rows(tensor)
        return
    begin, size = tensor.data_ptr(), tensor.numel() * tensor.element_size()
    if size <= _WINDOWS * _WINDOW_BYTES:
        yield ctypes.string_at(begin, size)
        return
    stride = (size - _WINDOW_BYTES) // (_WINDOWS - 1)
    for number in range(_WINDOWS):
        yield ctypes.string_at(begin + number * stride, _WINDOW_BYTES)


def _rows(tensor: torch.Tensor) -> Iterator[bytes]:
    """The first, a middle and the last row of a part of another tensor."""
    shape, strides, item = tensor.shape, tensor.stride(), tensor.element_size()
    for part in (0.0, 0.5, 1.0):
        offset = sum(int((count - 1) * part) * stride for count, stride in zip(shape[:-1], strides))
        begin = tensor.data_ptr() + offset * item
        if strides[-1] == 1:
            yield ctypes.string_at(begin, min(shape[-1] * item, _WINDOW_BYTES))
        else:
            yield ctypes.string_at(begin, item)


class Generators:
    """Those of this process. `look` gives a fingerprint of each, in one word: python's, numpy's, torch's, and of
    devices those that were drawn from.

    A Mersenne Twister is known by its place in its block of words, and some of these. They are read where they lie:
    asking for whole states would cost more than all the rest of a step's note. Where that is not as it was tried at
    the start they are asked for.
    """

    def __init__(self) -> None:
        self._python = _reader_of_python()
        self._numpy: tuple[Any, Callable[[], bytes]] = None, bytes

    def look(self) -> str:
        bits = np.random.mtrand._rand._bit_generator
        if self._numpy[0] is not bits:
            self._numpy = bits, _reader_of_numpy(bits)
        state = torch.default_generator.get_state()
        found = (
            f"{zlib.crc32(self._python()):08x}-{zlib.crc32(self._numpy[1]()):08x}-"
            f"{zlib.crc32(ctypes.string_at(state.data_ptr(), _TORCH_BYTES)):08x}"
        )
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            for index, one in enumerate(torch.cuda.default_generators):
                if one.get_offset():
                    found += f"-{zlib.crc32(b'%d %d' % (one.initial_seed(), one.get_offset())):08x}:{index}"
        return found


_WORDS, _SHOWN = 624, 16
_TORCH_BYTES = 256
"""In front of torch's state are its seed and its place."""


def _reader_of_python() -> Callable[[], bytes]:
    """CPython keeps the index and the words behind an object's head."""
    generator = random._inst
    address, size = id(generator) + object.__basicsize__, 4 * (_WORDS + 1)
    if sys.implementation.name == "cpython" and generator.__sizeof__() >= object.__basicsize__ + size:
        _, words, _ = generator.getstate()
        if ctypes.string_at(address, size) == struct.pack(f"i{_WORDS}I", words[-1], *words[:-1]):
            return functools.partial(ctypes.string_at, address, 4 * (1 + _SHOWN))
    return lambda: repr(generator.getstate()).encode()


def _reader_of_numpy(bits: Any) -> Callable[[], bytes]:
    """numpy tells where the state of a generator lies; of its Mersenne Twister that is the words and the position."""
    if type(bits) is np.random.MT19937:
        address, size = bits.ctypes.state_address, 4 * (_WORDS + 1)
        state = bits.state["state"]
        if ctypes.string_at(address, size) == state["key"].tobytes() + struct.pack("i", state["pos"]):
            return functools.partial(ctypes.string_at, address + 4 * (_WORDS - _SHOWN), 4 * (_SHOWN + 1))
    return lambda: repr(np.random.get_state(legacy=False)).encode()
