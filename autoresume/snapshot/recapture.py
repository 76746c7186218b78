"""The state read again and again: what has kept its form since the last time is looked at, and not walked through.

Law: what comes out is what `capture` would give, byte for byte, or `capture` is what is done. An object has kept
its form when its state dict has the same containers, keys and types, and its tensors are the same memory, seen in
the same way. Its tree then is the last one's text with the plain values of now, and its tensors have the places
that they had. Objects whose state holds anything else (arrays, generators, memory that another object holds, too)
are walked through each time, and are small as a rule. No tensor is kept alive between two captures.
"""

from __future__ import annotations

import contextlib
import gc
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import torch

from autoresume.format import tree
from autoresume.format.digest import canonical
from autoresume.snapshot.layout import signature
from autoresume.state.pickled import pickled
from autoresume.state.sharded import is_sharded
from autoresume.state.state import Leaf, Walker

_PLAIN = {torch.Tensor, torch.nn.Parameter}
_CONTAINERS = (dict, OrderedDict, list, tuple)
_SIMPLE = {int, str, bool, type(None)}
"""Equal values of one of these types are written alike, which floats are not: 0.0 == -0.0."""


@dataclass
class Recaptured:
    """What was captured. `tensors` are those of the leaves; `leaves` is None where `form` is the last one's.

    While `form` is the same object, the leaves whose numbers are in `steady` are the same memory, seen in the same way.
    """

    form: object
    steady: AbstractSet[int]
    tree: bytes
    tensors: list[torch.Tensor]
    leaves: list[Leaf] | None
    attachments: dict[str, bytes]


class Recapture:
    """Captures one run's state, and remembers the form that it had."""

    def __init__(self) -> None:
        self._form = object()
        self._steady: set[int] = set()
        self._names: tuple[str, ...] = ()
        self._known: Any = None
        self._objects: dict[str, _Form] = {}
        self._others: dict[str, tuple[Any, ...]] = {}
        """The signatures of the leaves of objects that are walked through each time."""
        self._identities: set[tuple[Any, ...]] = set()

    def capture(self, objects: Mapping[str, Any], known_equal: frozenset[int], promised: frozenset[str]) -> Recaptured:
        """The state of all `objects`, as `capture` reads it. Raises StateError."""
        if self._names == tuple(objects) and self._known == (known_equal, promised):
            try:
                return self._again(objects, known_equal, promised)
            except _Changed:
                pass
        self._names = ()  # nothing is remembered if it fails
        taken = self._anew(objects, known_equal, promised)
        self._names, self._known = tuple(objects), (known_equal, promised)
        return taken

    def forget(self) -> None:
        """Read everything anew the next time."""
        self._names = ()

    # -- the first time, and whenever the form has changed -----------------------------------------

    def _anew(self, objects: Mapping[str, Any], known_equal: frozenset[int], promised: frozenset[str]) -> Recaptured:
        self._form, self._steady = object(), set()
        self._objects, self._others, self._identities = {}, {}, set()
        walker = Walker(known_equal)
        texts: list[bytes] = []
        attachments: dict[str, bytes] = {}
        for name, value in objects.items():
            if isinstance(value, pickled):
                texts.append(_pickled(name, value, attachments))
                continue
            walker.promised = name in promised
            path, state = tree.join("", name), value.state_dict()
            leaf, visit, seen, others = len(walker.leaves), len(walker.visits), len(walker.seen), walker.others
            encoded = tree.encode(state, walker.leaf, path)
            texts.append(canonical(encoded))
            form = _Form.of(state, encoded, path, walker.visits[visit:]) if walker.others == others else None
            if form is not None:
                self._objects[name] = form
                self._steady.update(range(leaf, len(walker.leaves)))
                self._identities.update(list(walker.seen)[seen:])
            else:
                self._others[name] = signature(walker.leaves[leaf:])
        tensors = [leaf.tensor for leaf in walker.leaves]
        return Recaptured(self._form, self._steady, _joined(objects, texts), tensors, walker.leaves, attachments)

    # -- the other times --------------------------------------------------------------------------

    def _again(self, objects: Mapping[str, Any], known_equal: frozenset[int], promised: frozenset[str]) -> Recaptured:
        texts: list[bytes] = []
        attachments: dict[str, bytes] = {}
        tensors: list[torch.Tensor] = []
        walker = Walker(known_equal)
        for name, value in objects.items():
            if isinstance(value, pickled):
                texts.append(_pickled(name, value, attachments))
                continue
            state = value.state_dict()
            form = self._objects.get(name)
            if form is not None:
                text, own = form.look(state)
                tensors += own
            else:
                walker.promised = name in promised
                first = len(walker.leaves)
                text = canonical(tree.encode(state, walker.leaf, tree.join("", name)))
                leaves = walker.leaves[first:]
                if signature(leaves) != self._others[name]:
                    raise _Changed
                tensors += [leaf.tensor for leaf in leaves]
            texts.append(text)
        if not self._identities.isdisjoint(walker.seen):
            raise _Changed  # a tensor of one of the others is now the same memory as one of a remembered object
        return Recaptured(self._form, self._steady, _joined(objects, texts), tensors, None, attachments)


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """Thousands of small objects come and go when a state is read, and each collection would look at all there are."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


class _Changed(Exception):
    """The form is another one."""


def _pickled(name: str, value: Any, attachments: dict[str, bytes]) -> bytes:
    attachments[name] = value.dump()
    return canonical({tree.TAG: "pickled", "attachment": name})


def _joined(names: Mapping[str, Any], texts: list[bytes]) -> bytes:
    return b"{" + b",".join(canonical(name) + b":" + text for name, text in zip(names, texts)) + b"}"


# -- one object's form --------------------------------------------------------------------------------


class _Form:
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
    def of(cls, state: Any, encoded: Any, path: str, visits: list[tuple[str, int | None]]) -> _Form | None:
        """None where the state can't be remembered."""
        if any(key != path and not key.startswith(path + "/") for key, _ in visits):
            return None  # memory that another object holds, too
        form = cls()
        try:
            form.root = form._node(state, encoded, path)
            form._end_text()
            tensors, _ = form._flat(state)
            form.views = _views(tensors)
        except _Changed:
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
            raise _Changed
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
            raise _Changed
        items: Any = value
        if self.key_types is not None:
            if list(items) != self.keys or set(map(type, items)) != self.key_types:
                raise _Changed
            items = items.values()
        else:
            if len(items) != self.keys:
                raise _Changed
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
            raise _Changed
        sharded = [None if kind in _PLAIN else tensor._spec for kind, tensor in zip(kinds, tensors)]  # type: ignore[attr-defined]
        tensors = [_local(tensor) for tensor in tensors]
    try:
        addresses = list(map(torch.Tensor.data_ptr, tensors))
    except RuntimeError as error:  # sparse, say: `capture` says it better
        raise _Changed from error
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
        raise _Changed
    return canonical(encoded)
