"""Objects that can only be pickled, where the user asks for it.

Law: a pickle is read only where the same name is tracked as pickled again. What the script holds stays what
it holds: the object gets its content in place, so do the generators anywhere in it, and what refers to
the object from inside (a closure over self) refers to the same one afterwards.
"""

from __future__ import annotations

import copyreg
import importlib
import io
import pickle
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from autoresume.state.generator import GENERATOR_TYPES, GeneratorState, new_generator

T = TypeVar("T")

_ROOT = -1
"""The reference, in a pickle, to the tracked object itself; those from 0 on are generators."""


class pickled(Generic[T]):
    """Track an object that can only be pickled, `value`: `run.track(memory=pickled(memory))`. Stored in a file of its
    own, beside the tensors.

    A pickle runs code when it is loaded: it is read only where the same name is tracked as pickled
    again. After a restore the original object has taken over the restored one's content, and so have the
    generators in it, which the script may hold as well. Where that can't be (an array, another class
    than was stored) `value` is the restored object.
    """

    def __init__(self, value: T) -> None:
        self.value = value

    def dump(self) -> bytes:
        """What a checkpoint stores. Raises what pickle raises."""
        made, content = _taken_apart(self.value)
        generators: list[Any] = []
        data = _pickle(content, self.value if made is not None else None, generators)
        kind = type(self.value).__module__, type(self.value).__qualname__
        states = [GeneratorState(one).state_dict() for one in generators]
        return _pickle((kind, made, states), None, []) + data

    def load(self, data: bytes) -> None:
        """Take the content of what `dump` gave as `data`. It runs what the pickle says."""
        file = io.BytesIO(data)
        kind, made, states = pickle.load(file)  # noqa: S301  (the user's opt-in)
        # Not by identity: cloudpickle makes a class of __main__ anew.
        same = kind == (type(self.value).__module__, type(self.value).__qualname__)
        root: Any = self.value if same else made and made[0](*made[1])
        value = _Unpickler(file, root, self._generators(states)).load()
        if made is None and same and hasattr(root, "__dict__") and type(root) not in GENERATOR_TYPES:
            _put(root, vars(value), [], [])  # it has a way of its own to be made
        elif made is None:
            self.value = value
        else:
            self.value = root
            _put(root, *value)

    def _generators(self, states: list[dict[str, Any]]) -> list[Any]:
        """The generators in the live object with these states, or new ones where it has others."""
        made, content = _taken_apart(self.value)
        live: list[Any] = []
        _pickle(content, self.value if made is not None else None, live)
        kinds = [GeneratorState(one).state_dict()["kind"] for one in live]
        if kinds != [state["kind"] for state in states]:
            return [new_generator(state) for state in states]
        for generator, state in zip(live, states):
            GeneratorState(generator).load_state_dict(state)
        return live


def _taken_apart(value: Any) -> tuple[tuple[Callable[..., Any], Any] | None, Any]:
    """(how it is made, its content), as the pickle protocol has it; (None, value) where the two are not separate."""
    if type(value) in GENERATOR_TYPES:
        return None, value
    try:
        reduced = value.__reduce_ex__(4)
    except TypeError:  # a function, say, of which only cloudpickle knows
        return None, value
    plain = isinstance(reduced, tuple) and reduced[0] is getattr(copyreg, "__newobj__") and len(reduced[1]) == 1  # noqa: B009
    if not plain and not isinstance(value, deque):
        return None, value
    state, items, pairs = (*reduced[2:5], None, None, None)[:3]
    return (reduced[0], reduced[1]), (state, list(items or ()), list(pairs or ()))


def _put(live: Any, state: Any, items: list[Any], pairs: list[tuple[Any, Any]]) -> None:
    """Give an object its content, as unpickling would."""
    if isinstance(live, (list, dict, deque)):
        live.clear()
    if hasattr(live, "__setstate__"):
        if state is not None:
            live.__setstate__(state)
    else:
        attributes, slots = state if isinstance(state, tuple) else (state, None)
        if hasattr(live, "__dict__"):
            live.__dict__.clear()
            live.__dict__.update(attributes or {})
        for name, value in (slots or {}).items():
            setattr(live, name, value)
    if items:
        live.extend(items)
    for key, value in pairs:
        live[key] = value


def _pickle(value: Any, root: Any, generators: list[Any]) -> bytes:
    """The pickle of everything but `root` and the generators, which are noted in the order in which it meets them."""
    try:
        base: Any = importlib.import_module("cloudpickle").CloudPickler
    except ImportError:
        base = pickle.Pickler

    class Pickler(base):  # type: ignore[misc]
        def persistent_id(self, item: Any) -> int | None:
            if root is not None and item is root:
                return _ROOT
            if type(item) not in GENERATOR_TYPES:
                return None
            if not any(one is item for one in generators):
                generators.append(item)
            return next(index for index, one in enumerate(generators) if one is item)

    file = io.BytesIO()
    Pickler(file).dump(value)
    return file.getvalue()


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, root: Any, generators: list[Any]) -> None:
        super().__init__(file)
        self._root, self._generators = root, generators

    def persistent_load(self, index: Any) -> Any:
        return self._root if index == _ROOT else self._generators[int(index)]
