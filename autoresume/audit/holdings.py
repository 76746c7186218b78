"""What a script holds, changes, and tracks nowhere: found at the first two saves, and told before it is missed.

Law: told is only what is state: the same object at both saves, of a kind that is made to go on (an optimizer, a
scheduler, a model, a generator, a tensor that is trained, something with a state_dict), that has changed in
between, and whose content is in no checkpoint. Plain variables are not told of: most of them are nothing.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from autoresume.audit import fingerprint, untracked
from autoresume.audit.causes import CONSEQUENCES, Suspect, place, track
from autoresume.audit.untracked import Look
from autoresume.errors import StateError
from autoresume.state.capture import capture
from autoresume.state.pickled import pickled

_SHOWN = 4


class Holdings:
    """`elsewhere` gives objects whose state is kept by other means: generators of loaders that are followed."""

    def __init__(self, elsewhere: Callable[[], Iterable[Any]]) -> None:
        self._elsewhere = elsewhere
        self._before: Held | None = None
        self._is_done = False
        self._groups: dict[str, int] = {}
        """Of each optimizer that was tracked before the restore: what a resumed life builds it with."""

    def restored(self, objects: Mapping[str, Any]) -> None:
        optimizers = {name: one for name, one in objects.items() if isinstance(one, torch.optim.Optimizer)}
        self._groups = {name: len(one.param_groups) for name, one in optimizers.items()}

    def late_groups(self, objects: Mapping[str, Any]) -> list[str]:
        """What is to be told of optimizers that got parameter groups since."""
        told = []
        for name, count in list(self._groups.items()):
            now = len(getattr(objects.get(name), "param_groups", ()))
            if now > count:
                del self._groups[name]
                told.append(
                    f"{name!r} was tracked with {_groups(count)}, and has {now} now: a life that resumes from here "
                    f"builds it with {count}, and can't take its state over. Keep a mark, e.g. run.state.unfrozen = "
                    "True; call run.restore(); add the groups if the mark is set; and track the optimizer behind that."
                )
        return told

    def told(self) -> None:
        """What is missing was told by other means in this life."""
        self._is_done = True

    def at_save(self, objects: Mapping[str, Any], given: Iterable[Any], state: Mapping[str, Any]) -> list[str]:
        """What is to be told. `objects` is what is tracked, `given` how the script gave it."""
        if self._is_done:
            return []
        now = look(objects, [*given, *self._elsewhere()], state)
        if self._before is None:
            self._before = now
            return []
        self._is_done = True
        found = [one for one in changed(self._before, now) if one.kind != "value"]
        self._before = None
        return [_words(one) for one in found[:_SHOWN]]


def _groups(count: int) -> str:
    return "1 parameter group" if count == 1 else f"{count} parameter groups"


def _words(one: Suspect) -> str:
    what = "" if one.kind == "tensor" else f" ({one.type})"
    return (
        f"{place(one.name)}{what} changes as the training goes on, and nothing tracks it: it {CONSEQUENCES[one.kind]}. "
        f"Write, before run.restore() or the loop: {track(one)}"
    )


class Held:
    """What was seen at one moment. Holds none of it."""

    def __init__(self, seen: Look) -> None:
        self.found, self.plain = seen.found, seen.plain
        self._same = {name: _identity(value) for name, value in seen.objects.items()}

    def is_same(self, name: str, other: Held) -> bool:
        """The very object of that name is there both times."""
        one, another = self._same.get(name), other._same.get(name)
        return one is not None and another is not None and one() is not None and one() == another()


def _identity(value: Any) -> Callable[[], int | None]:
    try:
        held = weakref.ref(value)
    except TypeError:
        number = id(value)
        return lambda: number
    return lambda: None if held() is None else id(held())


def look(objects: Mapping[str, Any], given: Iterable[Any], state: Mapping[str, Any]) -> Held:
    """What the script holds beside that. Called where the script's frames lead to."""
    known = untracked.ids_of(objects, state) | set(map(id, given))
    kept = _Kept(objects, state)
    seen = untracked.look_at_frames(known, kept.digest_of_rest)
    for name, value in objects.items():
        for one in untracked.inside(value):
            if isinstance(one, torch.optim.Optimizer):
                seen.attributes(name, one)
    for name, value in list(seen.objects.items()):
        wraps = any(id(inner) in known for inner in getattr(value, "__dict__", {}).values())
        if seen.found[name].kind == "object" and wraps:
            del seen.found[name], seen.objects[name]
    return Held(seen)


def changed(before: Held, now: Held) -> list[Suspect]:
    """What is another than before; of plain variables also those that are new."""
    found = []
    for name, (kind, text, shown) in now.found.items():
        was = before.found.get(name)
        if not text:  # a checkpoint holds all of it
            continue
        if was is None:
            is_other = name in now.plain
        else:
            is_other = was.digest != text and was.kind == kind and (kind == "value" or before.is_same(name, now))
        if is_other:
            found.append(Suspect(name, kind, shown, was.shown if was is not None else "", shown))
    return found


class _Kept:
    """What the next checkpoint holds: by its memory, and by its content."""

    def __init__(self, objects: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        leaves = []
        for name, value in objects.items():
            try:
                leaves += capture({name: value}, frozenset(), frozenset()).leaves
            except (StateError, RuntimeError):  # what can't be saved is another matter
                continue
        self._addresses = {_address(leaf.tensor) for leaf in leaves} - {0}
        self._contents = {
            fingerprint.of_value(leaf.tensor)
            for leaf in leaves
            if leaf.tensor.device.type == "cpu" and leaf.tensor.numel() > 1
        }
        self._wholes = {fingerprint.of_value(one) for one in _parts(state)}
        self._wholes |= {
            fingerprint.of_value(part)
            for value in objects.values()
            if isinstance(value, pickled)
            for part in _parts({"": value.value})
        }

    def digest_of_rest(self, value: Any) -> str:
        """Of what a checkpoint doesn't hold of it; empty where it holds all."""
        if isinstance(value, Mapping) and fingerprint.of_value(value) in self._wholes:
            return ""
        if isinstance(value, Mapping) and set(value) == {"state", "param_groups"}:
            value = value["state"]  # of an optimizer: its options are told of by the scheduler
        rest = self._rest(value, 0)
        return fingerprint.of_value(rest, waits=True) if rest is not _NOTHING else ""

    def _rest(self, value: Any, depth: int) -> Any:
        if isinstance(value, torch.Tensor):
            is_kept = _address(value) in self._addresses or (
                value.device.type == "cpu" and value.numel() > 1 and fingerprint.of_value(value) in self._contents
            )
            return _NOTHING if is_kept else value
        if isinstance(value, Mapping) and depth < 4:
            inside = {key: self._rest(item, depth + 1) for key, item in value.items()}
            left = {key: item for key, item in inside.items() if item is not _NOTHING}
            return left or _NOTHING
        return value


_NOTHING = object()


def _address(tensor: torch.Tensor) -> int:
    local = getattr(tensor, "_local_tensor", tensor)
    try:
        return int(local.data_ptr())
    except RuntimeError:  # of a tensor without memory of its own
        return 0


def _parts(state: Mapping[str, Any]) -> Iterable[Any]:
    """Values of run.state, and of one more level: a script may keep states of objects in a dict."""
    for value in state.values():
        yield value
        if isinstance(value, Mapping):
            yield from value.values()
