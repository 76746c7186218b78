"""What a rank noted of a step, and what differs where the step is trained again. Pure.

Law: a note holds what the step depends on and what came of it, each bit for bit, none of it much: a line of text. What
leads to the rest comes first: the data, the losses, the learning rates, the generators, run.state, metrics.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

_ENCODER = json.JSONEncoder(separators=(",", ":"))


@dataclass
class Note:
    """Of one rank after `step`, in one life. `ranks` is how many there were."""

    step: int
    life: int
    ranks: int
    batches: list[str] = field(default_factory=list)
    """Fingerprints of what was trained on."""
    losses: list[Any] = field(default_factory=list)
    """What backward passes began from, if that was one number."""
    rates: list[Any] = field(default_factory=list)
    """Learning rates at the boundary, of each parameter group of each tracked optimizer."""
    generators: str = ""
    """Their fingerprints, at the boundary."""
    state: dict[str, Any] = field(default_factory=dict)
    """Counters, flags and words of run.state."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """Rank 0's, those that were logged as tensors or are called a loss."""
    machine: str = ""
    """In a life's first note."""

    def to_line(self) -> bytes:
        return _ENCODER.encode({name: value for name, value in vars(self).items() if value}).encode() + b"\n"

    @classmethod
    def of_line(cls, line: bytes) -> Note | None:
        """None for what is no note: a torn line, say."""
        try:
            found = cls(**json.loads(line))
        except (ValueError, TypeError, RecursionError):
            return None
        kinds = {name: type(value) for name, value in asdict(cls(0, 0, 0)).items()}
        return found if all(type(getattr(found, name)) is kind for name, kind in kinds.items()) else None


@dataclass(frozen=True)
class Difference:
    """`component` is batch, loss, option, generator, state or metric; `a` is what the life before had."""

    component: str
    name: str
    a: str
    b: str

    def words(self, life: int) -> str:
        what = {
            "batch": "the batches hold other values",
            "loss": "the loss differs",
            "option": f"{self.name} differs",
            "generator": f"the {self.name} generator stands elsewhere at the end of the step",
            "state": f"run.state.{self.name} differs",
            "metric": f"the metric {self.name} differs",
        }[self.component]
        return f"{what} ({self.a} in life {life}, {self.b} now)" if self.a or self.b else what


def differences(before: Note, now: Note, rates: list[str]) -> Iterator[Difference]:
    """In the order in which one leads to the other. `rates` says whose the learning rates are."""
    if before.batches != now.batches:
        counts = len(before.batches), len(now.batches)
        yield Difference("batch", "", *(map(_batches, counts) if counts[0] != counts[1] else ("", "")))
    for a, b in _pairs(before.losses, now.losses):
        yield Difference("loss", "", _shown(a), _shown(b))
    for index, (a, b) in enumerate(zip(before.rates, now.rates)):
        if repr(a) != repr(b):
            yield Difference("option", f"the lr of {rates[index]}", _shown(a), _shown(b))
    drawn = generators_in(before.generators), generators_in(now.generators)
    for component, one, other in (("generator", *drawn),
                                  ("state", before.state, now.state),
                                  ("metric", before.metrics, now.metrics)):  # fmt: skip
        shows = component != "generator"
        for name in dict.fromkeys([*one, *other]):
            a, b = one.get(name, _NOT_THERE), other.get(name, _NOT_THERE)
            if repr(a) != repr(b):
                yield Difference(component, name, _shown(a) if shows else "", _shown(b) if shows else "")


def generators_in(looked: str) -> dict[str, str]:
    """The fingerprints of a note, by the generators' names."""
    words = looked.split("-") if looked else []
    devices = (word.partition(":") for word in words[3:])
    return {**dict(zip(("python", "numpy", "torch"), words)), **{f"cuda:{index}": text for text, _, index in devices}}


_NOT_THERE = "not there"


def _batches(count: int) -> str:
    return f"{count} batch" if count == 1 else f"{count} batches"


def _pairs(one: list[Any], other: list[Any]) -> list[tuple[Any, Any]]:
    """The first that differ."""
    found = [(a, b) for a, b in zip(one, other) if repr(a) != repr(b)]
    if not found and len(one) != len(other):
        found = [(f"{len(one)} backward passes", f"{len(other)}")]
    return found[:1]


def _shown(value: Any) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def relative(difference: Difference) -> float | None:
    """How far two numbers are apart, beside the greater one."""
    try:
        a, b = float(difference.a), float(difference.b)
    except ValueError:
        return None
    return abs(a - b) / max(abs(a), abs(b), 1e-300)


def plain_state(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of run.state what counts and says; a float may be a time, which is another one each time."""
    return {
        name: value if type(value) is not str else value[:_MOST_TEXT]
        for name, value in values.items()
        if type(value) in (bool, int, str)
    }


_MOST_TEXT = 64
