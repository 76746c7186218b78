"""What a script is made of, so that a later start can tell what has changed: settings, versions, objects, data.

Law: plain JSON, gathered without failing and without touching the objects. What a change means is judged by its name:
safe where training on with it is ordinary, risky where the restored state may not belong to it; else it is only told.
"""

from __future__ import annotations

import dataclasses
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from autoresume.base import code_revision

_PACKAGES = ("autoresume-hpc", "torch", "numpy", "lightning", "transformers")
_SAFE = (
    r"lr|initial_lr|learning_rate|batch|batch_size|epochs|max_epochs|n_epochs|steps|max_steps|augment\w*|callbacks?|workers|num_workers|"
    r"log\w*|save\w*|keep\w*|eval\w*|val_\w+|patience|weight_decay|dropout|momentum|accumulate|grad_clip|samples|"
    r"device|world_size|patch|verbose|debug|name|notes|tags|output\w*"
)
_RISKY = (
    r"class|arch\w*|model|model_name|layers?|n_layers?|num_layers|hidden\w*|dim|dims|d_model|embed\w*|emb\w*|heads?|"
    r"n_heads?|width|depth|vocab\w*|parameters|optimizer|seed|dataset|shuffle|groups"
)
_SHOWN = 60
"""Characters of a value."""


@dataclass(frozen=True)
class Change:
    """Something that is not as it was. `verdict` is safe, risky, or unknown."""

    what: str
    before: Any
    now: Any
    verdict: str

    def __str__(self) -> str:
        return f"{self.what}: {_short(self.before)} -> {_short(self.now)}"


def flatten_config(config: Any) -> dict[str, Any]:
    """Settings as a flat mapping of dotted names to plain values: of a mapping, a namespace, or a dataclass.

    Raises TypeError for anything else.
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = dataclasses.asdict(config)
    elif not isinstance(config, Mapping):
        config = vars(config)
    return dict(_flat("", config))


def _flat(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(f"{path}.{key}" if path else str(key), item)
    elif value is None or isinstance(value, (bool, int, float, str)):
        yield path, value
    elif isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        yield path, [_word(item) for item in value]
    else:
        yield path, _word(value)


def _word(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))  # an address is another one in each process


def installed_packages() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def compare_facts(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """What differs between the facts of two starts; what only one of them knows is no difference but in settings."""
    found = []
    for part in ("packages", "objects", "loaders"):
        was, is_now = dict(_flat(part, before.get(part) or {})), dict(_flat(part, now.get(part) or {}))
        found += [_judged(key, was[key], is_now[key]) for key in was if key in is_now and was[key] != is_now[key]]
    for part in ("config", "arguments"):
        old, new = before.get(part), now.get(part)
        if part == "arguments" and before.get("config") and now.get("config"):
            continue  # they say the same twice
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            keys = [key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]
            found += [_judged(f"{part}.{key}", old.get(key), new.get(key)) for key in keys]
    for part in ("world_size", "device"):
        if part in before and part in now and before[part] != now[part]:
            found.append(_judged(part, before[part], now[part]))
    said = code_revision.difference(before.get("code"), now["code"]) if now.get("code") else None
    if said:
        found.append(Change("code", "", said, "unknown"))
    return found


def parse_arguments(words: Sequence[str]) -> dict[str, Any]:
    """A command line as settings: `--lr 0.1 --fast x` is {"lr": "0.1", "fast": "x"}; the rest by its place."""
    found: dict[str, Any] = {}
    rest = list(words)
    place = 0
    while rest:
        word = rest.pop(0)
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word.removeprefix("--").partition("=")
            if not equals and rest and not rest[0].startswith("--"):
                value, equals = rest.pop(0), "="
            found[name.replace("-", "_")] = value if equals else True
        elif "=" in word and not word.startswith("-"):
            name, _, value = word.partition("=")
            found[name] = value  # as hydra has it
        else:
            found[str(place)] = word
            place += 1
    return found


def _judged(what: str, before: Any, now: Any) -> Change:
    name = re.split(r"[./]", what)[-1].lower()
    if what.startswith("packages."):
        verdict = "unknown"
    elif re.fullmatch(_RISKY, name):
        verdict = "risky"
    else:
        verdict = "safe" if re.fullmatch(_SAFE, name) else "unknown"
    return Change(what, before, now, verdict)


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
