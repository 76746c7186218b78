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
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import torch

from autoresume.format import tree
from autoresume.format.digest import canonical
from autoresume.snapshot.layout import signature
from autoresume.snapshot.object_form import FormChanged, ObjectForm
from autoresume.state.capture import Leaf, Walker
from autoresume.state.pickled import pickled
from autoresume.state.stateful import state_of


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
        self._objects: dict[str, ObjectForm] = {}
        self._others: dict[str, tuple[Any, ...]] = {}
        """The signatures of the leaves of objects that are walked through each time."""
        self._identities: set[tuple[Any, ...]] = set()

    def capture(self, objects: Mapping[str, Any], known_equal: frozenset[int], promised: frozenset[str]) -> Recaptured:
        """The state of all `objects`, as `capture` reads it. Raises StateError."""
        if self._names == tuple(objects) and self._known == (known_equal, promised):
            try:
                return self._again(objects, known_equal, promised)
            except FormChanged:
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
            path, state = tree.join("", name), state_of(value)
            leaf, visit, seen, others = len(walker.leaves), len(walker.visits), len(walker.seen), walker.others
            encoded = tree.encode(state, walker.leaf, path)
            texts.append(canonical(encoded))
            form = ObjectForm.of(state, encoded, path, walker.visits[visit:]) if walker.others == others else None
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
            state = state_of(value)
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
                    raise FormChanged
                tensors += [leaf.tensor for leaf in leaves]
            texts.append(text)
        if not self._identities.isdisjoint(walker.seen):
            raise FormChanged  # a tensor of one of the others is now the same memory as one of a remembered object
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


def _pickled(name: str, value: Any, attachments: dict[str, bytes]) -> bytes:
    attachments[name] = value.dump()
    return canonical({tree.TAG: "pickled", "attachment": name})


def _joined(names: Mapping[str, Any], texts: list[bytes]) -> bytes:
    return b"{" + b",".join(canonical(name) + b":" + text for name, text in zip(names, texts)) + b"}"


# -- one object's form --------------------------------------------------------------------------------
