"""The option `restore`: what a new start takes over, and from where.

Law: values and their meaning, no I/O. The same words in the decorator, in YAML, in the environment and on the command
line. A run that is started again goes on by itself: this is about how a run begins.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from autoresume.errors import UsageError

MODES = ("finetune", "hotstart", "continue")
PREFIX = "--restore."
_VARIABLE = "AUTORESUME_RESTORE_"
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_ELSEWHERE = {
    "ckpt_or_run_path": "from",
    "path": "from",
    "resume_from_checkpoint": "from",
    "resume_run_id": "from",
    "run_id": "from",
    "resume_checkpoint": "select",
    "checkpoint": "select",
    "resume_stage_name": "stage",
    "keys_to_remove": "remove",
    "patterns_to_remove": "remove",
    "patterns_to_rename": "rename",
    "patterns_to_instantiate": "fresh",
    "model_info": "weights",
    "model_name": "weights",
}
"""What others call it."""


@dataclass(frozen=True)
class RestoreRequest:
    """How a run begins. `docs/restore.md` says it at length.

    | | none | finetune | hotstart | continue |
    |---|---|---|---|---|
    | model weights | - | x | x | x |
    | trainer state | - | - | x | x |
    | logging run | - | - | - | x |
    """

    mode: str | None = None
    """What is taken over: finetune, hotstart or continue; null is nothing."""
    source: str | None = None
    """`from`: a run's folder or id, a checkpoint's folder, a file, a URL, a logger's name for a run."""
    select: str = "latest"
    """Which checkpoint of it."""
    stage: str | None = None
    """Which stage of it; alone: another stage of this run."""
    lenient: frozenset[str] = frozenset()
    """Of `strict`: the objects that need not fit, or be there. `strict=false` is all, "*"; `strict={"model": false}`
    is one."""
    fresh: tuple[str, ...] = ()
    """What stays as the script made it: an object, a parameter group's option (`optimizer.lr`), or a pattern of a
    model's keys (`model.head.*`)."""
    rename: Mapping[str, str] = field(default_factory=dict)
    """Regular expressions of stored keys, and what to write instead."""
    remove: tuple[str, ...] = ()
    """Patterns of stored keys that are not taken over."""
    weights: Mapping[str, str] = field(default_factory=dict)
    """Which stored object's weights a tracked one gets, where it isn't the one of its name: {"model": "ema"}."""

    def __post_init__(self) -> None:
        if self.mode is not None and self.mode not in MODES:
            near = difflib.get_close_matches(str(self.mode), MODES, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UsageError(
                f"restore.mode={self.mode!r}: the modes are null (nothing), finetune (the weights), hotstart (weights, "
                f"optimizer, position and all else, in a new logging run), continue (that and the logging run).{hint}"
            )
        if self.mode in ("finetune", "hotstart") and self.source is None and self.stage is None:
            raise UsageError(
                f"restore.mode={self.mode!r} needs to know from where: give restore.from, e.g. a run's folder, a "
                "checkpoint's, or a file; or restore.mode=null to begin from scratch"
            )
        if self.mode is None and (self.source is not None or self.stage is not None):
            raise UsageError(
                f"restore.from={self.source or self.stage!r} without restore.mode: say what to take over: "
                "restore.mode=finetune (the weights), hotstart (all, in a new logging run) or continue (the run itself)"
            )
        for pattern in self.rename:
            try:
                re.compile(pattern)
            except re.error as error:
                raise UsageError(f"restore.rename: {pattern!r} is no regular expression: {error}") from None

    def is_lenient(self, name: str) -> bool:
        return "*" in self.lenient or name in self.lenient

    def is_fresh(self, name: str) -> bool:
        """Whether the whole object `name` stays as the script made it."""
        return name in self.fresh

    def fresh_inside(self, name: str) -> list[str]:
        """The patterns and options inside of the object `name` that stay."""
        return [word.removeprefix(f"{name}.") for word in self.fresh if word.startswith(f"{name}.")]

    def to_json(self) -> dict[str, Any]:
        """What makes a request the same as an earlier one."""
        return {
            "mode": self.mode,
            "from": self.source,
            "select": self.select,
            "stage": self.stage,
            "lenient": sorted(self.lenient),
            "fresh": list(self.fresh),
            "rename": dict(self.rename),
            "remove": list(self.remove),
            "weights": dict(self.weights),
        }


FIELDS = ("mode", "from", "select", "stage", "strict", "fresh", "rename", "remove", "weights")


def merge_request(base: Mapping[str, Any] | None, given: Any, where: str) -> dict[str, Any]:
    """Fields of a RestoreRequest: `base`, with what `given` says, a mapping (of YAML, of the decorator, of a
    configuration library) or a RestoreRequest. Whether they fit together is looked at when one is made of them.
    Raises UsageError."""
    values = dict(base or {})
    if given is None:
        return values
    if isinstance(given, RestoreRequest):
        return {one.name: getattr(given, one.name) for one in fields(RestoreRequest)}
    if not isinstance(given, Mapping):
        raise UsageError(f"restore={given!r} in {where}: give its parts by name, e.g. {{'mode': ..., 'from': ...}}")
    for word, value in given.items():
        name, converted = _convert(str(word), value, where)
        values[name] = converted
    return values


def variable_name(word: str) -> str:
    """The environment variable that says this part."""
    return f"{_VARIABLE}{word.upper()}"


def from_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """AUTORESUME_RESTORE_MODE=... and the like, as a mapping."""
    found = {key: value for key, value in environment.items() if key.startswith(_VARIABLE)}
    return {key.removeprefix(_VARIABLE).lower(): value for key, value in found.items()}


def take_from_arguments(arguments: list[str]) -> dict[str, str]:
    """Take `--restore.mode X`, `--restore.from=Y` out of a command line, in place; what they say. Raises UsageError."""
    found, rest, index = {}, [], 0
    while index < len(arguments):
        word = arguments[index]
        if word == "--":
            rest += arguments[index:]
            break
        if not word.startswith(PREFIX):
            rest.append(word)
        elif "=" in word:
            name, _, value = word.removeprefix(PREFIX).partition("=")
            found[name] = value
        else:
            index += 1
            if index == len(arguments):
                raise UsageError(f"{word} needs a value, e.g. {word} {'hotstart' if word.endswith('mode') else '...'}")
            found[word.removeprefix(PREFIX)] = arguments[index]
        index += 1
    arguments[:] = rest
    for name in found:
        _known(name, "the command line")
    return found


def _known(word: str, where: str) -> None:
    if word in FIELDS:
        return
    near = [_ELSEWHERE[word]] if word in _ELSEWHERE else difflib.get_close_matches(word, FIELDS, n=1)
    hint = f"did you mean restore.{near[0]}?" if near else f"known are {', '.join(FIELDS)}"
    raise UsageError(f"unknown restore.{word} in {where}; {hint}")


def _convert(word: str, value: Any, where: str) -> tuple[str, Any]:
    _known(word, where)
    try:
        if word == "mode":
            return "mode", None if value is None or str(value).lower() in ("null", "none", "") else str(value).lower()
        if word in ("from", "stage"):
            return {"from": "source", "stage": "stage"}[word], _text(value)
        if word == "select":
            return "select", _text(value) or "latest"
        if word == "strict":
            return "lenient", _lenient(value)
        if word in ("fresh", "remove"):
            return word, _words(value)
        return word, _pairs(value)
    except (TypeError, ValueError):
        raise UsageError(f"restore.{word}={value!r} in {where} can't be read; see docs/options.md") from None


def _text(value: Any) -> str | None:
    if value is None:
        return None
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else str(value)
    return None if text.lower() in ("", "null", "none") else str(text)


def _words(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        return tuple(word for word in re.split(r"[,\s]+", value) if word)
    if isinstance(value, Sequence):
        return tuple(str(word) for word in value)
    raise TypeError


def _pairs(value: Any) -> dict[str, str]:
    """Of {"a": "b"}, or of "a=b,c=d"."""
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return {str(key): str(item) for key, item in value.items()}
    return dict(word.split("=", 1) for word in _words(value))  # a word without "=" is a ValueError


def _flag(value: Any) -> bool:
    text = str(value).lower()
    if text not in _TRUE + _FALSE:
        raise ValueError
    return text in _TRUE


def _lenient(value: Any) -> frozenset[str]:
    """Of true, false, {"model": false} or "model=false,ema=false"."""
    if isinstance(value, Mapping) or (isinstance(value, str) and "=" in value):
        return frozenset(name for name, strict in _pairs(value).items() if not _flag(strict))
    return frozenset() if _flag(value) else frozenset("*")
