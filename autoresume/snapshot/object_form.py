"""One object's state dict, as it was read the last time: whether it has kept its form, and what it holds now.

Law: what comes out is what walking through it would give, byte for byte, or FormChanged is raised.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch

from autoresume.format import tree
from autoresume.format.digest import canonical
from autoresume.state.capture import Walker
from autoresume.state.sharded import is_sharded

_PLAIN = {torch.Tensor, torch.nn.Parameter}

_CONTAINERS = (dict, OrderedDict, list, tuple)

_SIMPLE = {int, str, bool, type(None)}
"""Equal values of one of these types are written alike, which floats are not: 0.0 == -0.0."""


class FormChanged(Exception):
    """The form is another one."""


class ObjectForm:
    """The form of one object's state dict. `look` raises _Changed when it is another one."""

    def __init__(self) -> None:
        self.root: Any = None
        self._pieces: list[bytes] = []
        """Of the text that comes next."""
        self.texts: list[bytes] = []
        """What stands before, between and after the plain values in the tree's text."""
        self.paths: list[str] = []
        self.values: list[Any] = []
        self.value_texts: list[bytes] = []
        self.views: list[Any] = []
        self.own: list[int] | None = None
        """Which of the tensors are leaves of this rank; None: all."""

    @classmethod
    def of(cls, state: Any, encoded: Any, path: str, visits: list[tuple[str, int | None]]) -> ObjectForm | None:
        """None where the state can't be remembered."""
        if any(key != path and not key.startswith(path + "/") for key, _ in visits):
            return None  # memory that another object holds, too
        form = cls()
        try:
            form.root = form._node(state, encoded, path)
            form._end_text()
            tensors, _ = form._flat(state)
            form.views = _views(tensors)
        except FormChanged:
            return None
        if len(tensors) != len(visits):
            return None
        first: dict[int, int] = {}
        for index, (_, leaf) in enumerate(visits):
            if leaf is not None:
                first.setdefault(leaf, index)
        own = list(first.values())
        form.own = own if own != list(range(len(visits))) else None
        return form

    def _node(self, value: Any, encoded: Any, path: str) -> Any:
        """A container's node; _TENSOR; or _VALUE, with its text noted."""
        if isinstance(value, torch.Tensor):
            self._pieces.append(canonical(encoded))
            return _TENSOR
        if type(value) not in _CONTAINERS:
            self.paths.append(path)
            self.values.append(value)
            self.value_texts.append(canonical(encoded))
            self._end_text()
            return _VALUE
        if isinstance(value, dict):
            tagged = tree.TAG in encoded
            keys = [key for key, _ in encoded["items"]] if tagged else list(encoded)
            items = [item for _, item in encoded["items"]] if tagged else list(encoded.values())
            starts = [b"[" + canonical(key) + b"," if tagged else canonical(key) + b":" for key in keys]
            names, values = list(value), list(value.values())
        else:
            tagged = type(value) is tuple
            items = encoded["items"] if tagged else encoded
            starts = [b""] * len(items)
            names, values = list(range(len(value))), list(value)
        opening = b"[" if tagged or isinstance(value, list) else b"{"
        if tagged:
            self._pieces += (b'{"$":', canonical(type(value).__name__), b',"items":')
        self._pieces.append(opening)
        children = []
        for number, (name, start, item, inner) in enumerate(zip(names, starts, values, items)):
            self._pieces += (b"," if number else b"", start)
            children.append(self._node(item, inner, tree.join(path, name)))
            if tagged and isinstance(value, dict):
                self._pieces.append(b"]")
        self._pieces += (b"]" if opening == b"[" else b"}", b"}" if tagged else b"")
        by_key = isinstance(value, dict)
        key_types = set(map(type, names)) if by_key else None
        return _Node(
            type(value),
            names if by_key else len(names),
            key_types,
            children,
            all(child is _TENSOR for child in children),
        )

    def _end_text(self) -> None:
        self.texts.append(b"".join(self._pieces))
        self._pieces.clear()

    def look(self, state: Any) -> tuple[bytes, list[torch.Tensor]]:
        """The tree's text of now, and this rank's own tensors."""
        tensors, values = self._flat(state)
        if _views(tensors) != self.views or list(map(type, values)) != list(map(type, self.values)):
            raise FormChanged
        text = self._text(values)
        local = [_local(tensor) for tensor in tensors]
        return text, local if self.own is None else [local[index] for index in self.own]

    def _flat(self, state: Any) -> tuple[list[torch.Tensor], list[Any]]:
        tensors: list[torch.Tensor] = []
        values: list[Any] = []
        if isinstance(self.root, _Node):
            self.root.flatten(state, tensors, values)
        else:
            (tensors if self.root is _TENSOR else values).append(state)
        return tensors, values

    def _text(self, values: list[Any]) -> bytes:
        for index, value in enumerate(values):
            if type(value) not in _SIMPLE or value != self.values[index]:
                self.value_texts[index] = _plain_text(self.paths[index], value)
        self.values = values
        pieces = [b""] * (2 * len(values) + 1)
        pieces[::2], pieces[1::2] = self.texts, self.value_texts
        return b"".join(pieces)


_TENSOR, _VALUE = "tensor", "value"


class _Node:
    """A container: its type, its keys or its length, and what each of its items is."""

    __slots__ = ("children", "key_types", "keys", "tensors_only", "type")

    def __init__(self, kind: type, keys: Any, key_types: Any, children: list[Any], tensors_only: bool) -> None:
        self.type, self.keys, self.key_types = kind, keys, key_types
        self.children, self.tensors_only = children, tensors_only

    def flatten(self, value: Any, tensors: list[torch.Tensor], values: list[Any]) -> None:
        if type(value) is not self.type:
            raise FormChanged
        items: Any = value
        if self.key_types is not None:
            if list(items) != self.keys or set(map(type, items)) != self.key_types:
                raise FormChanged
            items = items.values()
        else:
            if len(items) != self.keys:
                raise FormChanged
        if self.tensors_only:
            tensors.extend(items)
            return
        for child, item in zip(self.children, items):
            if child is _TENSOR:
                tensors.append(item)
            elif child is _VALUE:
                values.append(item)
            else:
                child.flatten(item, tensors, values)


def _views(tensors: list[torch.Tensor]) -> list[Any]:
    """What memory the tensors are, and how they see it. Raises _Changed for kinds that are not looked at here."""
    kinds = list(map(type, tensors))
    sharded = None
    if not _PLAIN.issuperset(kinds):
        if not all(kind in _PLAIN or is_sharded(tensor) for kind, tensor in zip(kinds, tensors)):
            raise FormChanged
        sharded = [None if kind in _PLAIN else tensor._spec for kind, tensor in zip(kinds, tensors)]  # type: ignore[attr-defined]
        tensors = [_local(tensor) for tensor in tensors]
    try:
        addresses = list(map(torch.Tensor.data_ptr, tensors))
    except RuntimeError as error:  # sparse, say: `capture` says it better
        raise FormChanged from error
    return [
        kinds,
        sharded,
        addresses,
        [tensor.shape for tensor in tensors],
        list(map(torch.Tensor.stride, tensors)),
        [tensor.dtype for tensor in tensors],
        list(map(torch.Tensor.is_neg, tensors)),
        list(map(torch.Tensor.is_conj, tensors)),
    ]


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if type(tensor) in _PLAIN else tensor._local_tensor  # type: ignore[attr-defined]


def _plain_text(path: str, value: Any) -> bytes:
    walker = Walker(frozenset())
    encoded = tree.encode(value, walker.leaf, path)
    if walker.visits or walker.others:
        raise FormChanged
    return canonical(encoded)
