"""Where two trajectories part. Pure.

Law: steps in their order, in each step what leads to the rest first: the data, the generators, the optimizers' options,
the losses, the gradients, what is tracked, run.state, what was logged. The first that differs counts.
What differs between two undisturbed runs without touching anything else (a clock in a metric) is noise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from autoresume.drill.record import Line, Trajectory

SOFT = ("metric", "state")
"""Components in which a value of its own kind may differ between two undisturbed runs, such as a duration."""


@dataclass(frozen=True)
class Divergence:
    step: int
    rank: int
    component: str
    """samples, batch, generator, loss, gradients, option, object, state, metric, generator after, length, data."""
    name: str
    a: str
    b: str
    life: int = 0
    """Of the interrupted run."""
    first_after_resume: bool = False
    at_restore: bool = False
    """What was restored already differs from what the undisturbed run had there."""

    def words(self) -> str:
        what = {
            "samples": "other samples are drawn",
            "batch": "the batch holds other values",
            "generator": f"the {self.name} generator stands elsewhere when the forward pass begins",
            "loss": "the loss differs",
            "gradients": f"the gradients of {self.name} differ",
            "option": f"{self.name} differs",
            "object": f"{self.name} differs",
            "state": f"run.state.{self.name} differs",
            "metric": f"the metric {self.name} differs",
            "generator after": f"the {self.name} generator stands elsewhere at the end of the step",
            "length": f"{self.name}",
            "data": f"{self.name} did not see the same samples",
        }[self.component]
        values = f" ({self.a} undisturbed, {self.b} here)" if self.a or self.b else ""
        where = "right after the restore" if self.at_restore else f"step {self.step}"
        if self.component == "data":
            return f"{what}{values}"
        return f"{where}, rank {self.rank}: {what}{values}"


@dataclass
class Noise:
    """What differs between two undisturbed runs: component and name."""

    names: set[tuple[str, str]] = field(default_factory=set)
    variables: set[str] = field(default_factory=set)


def noise(reference: Trajectory, again: Trajectory) -> Noise:
    """Of the soft components, and of the variables, what differs anywhere."""
    found = Noise()
    for a, b in _pairs(reference, again):
        for component, name, _, _ in _differences(a, b):
            if component in SOFT:
                found.names.add((component, name))
        one, other = a["variables"], b["variables"]
        found.variables.update(name for name in {*one, *other} if one.get(name) != other.get(name))
    return found


def first(reference: Trajectory, other: Trajectory, ignored: Noise | None = None) -> Divergence | None:
    """Where `other` leaves the way of `reference`; None: they are the same, step by step, on all ranks."""
    skipped = ignored.names if ignored is not None else set()
    for step in range(1, max(reference.last_step, other.last_step) + 1):
        for rank in sorted(reference.steps):
            for found in _at(reference, other, rank, step):
                if (found.component, found.name) not in skipped:
                    return found
    return None


def _at(reference: Trajectory, other: Trajectory, rank: int, step: int) -> Iterator[Divergence]:
    """All that differs on a rank in a step, or in what was restored there. What was lost had to be the same, too."""
    a, lines = reference.line(rank, step), other.steps.get(rank, {}).get(step, [])
    if a is None:
        if lines:
            yield Divergence(step, rank, "length", "the step was made in addition", "", "")
        return
    for begin in other.begins.get(rank, []):
        if begin["step"] == step:
            for found in _restored(a, begin):
                yield Divergence(step, rank, *found, int(begin["life"]), at_restore=True)
    if not lines:
        yield Divergence(step, rank, "length", "the step was not made", "", "")
    for b in lines:
        life = int(b["life"])
        first_after_resume = step > 1 and _began(other, rank, life) == step - 1
        for found in _differences(a, b):
            yield Divergence(step, rank, *found, life, first_after_resume)


def same_data(reference: Trajectory, other: Trajectory) -> Divergence | None:
    """Where the number of ranks changes, so that batches do: whether each epoch saw the same samples, each of them, and
    none more often but for what fills up an epoch's last batch; and whether what was restored is what was saved."""
    for begin in other.begins.get(0, []):
        step, life = int(begin["step"]), int(begin["life"])
        saved = [line for line in other.steps.get(0, {}).get(step, []) if line["life"] < life]
        if step and saved:
            for component, name, left, right in _by_name("object", saved[-1]["objects"], begin["objects"]):
                return Divergence(step, 0, component, name, left, right, life, False, True)
    wanted, found = _epochs(reference), _epochs(other)
    for epoch, (samples, most) in sorted(wanted.items()):
        there, more = found.get(epoch, (Counter(), 0))
        missing = sorted(set(samples) - set(there))
        often = sorted(sample for sample, count in there.items() if count > 1)
        strange = sorted(set(there) - set(samples))
        if missing or strange or len(often) >= max(most, more, 1):
            words = f"{len(missing)} not seen {_few(missing)}, {len(often)} seen more than once {_few(often)}"
            words += f", {len(strange)} of no epoch {_few(strange)}" if strange else ""
            return Divergence(0, 0, "data", f"epoch {epoch}", f"{len(samples)} samples, each once", words)
    return None


def _epochs(trajectory: Trajectory) -> dict[int, tuple[Counter[int], int]]:
    """Of each epoch how often each sample was trained on, and how many samples its largest batch had: of each step only
    the life that made it last counts."""
    found: dict[int, tuple[Counter[int], int]] = {}
    for step in range(1, trajectory.last_step + 1):
        lines = [line for steps in trajectory.steps.values() for line in steps.get(step, [])]
        last = max((int(line["life"]) for line in lines), default=0)
        lines = [line for line in lines if line["life"] == last]
        batch = [sample for line in lines for indices in line["indices"] for sample in indices or ()]
        if lines:
            samples, most = found.get(int(lines[0]["epoch"]), (Counter[int](), 0))
            samples.update(batch)
            found[int(lines[0]["epoch"])] = samples, max(most, len(batch))
    return found


def knows_samples(trajectory: Trajectory) -> bool:
    """Whether the loaders told which samples they drew."""
    return any(samples for samples, _ in _epochs(trajectory).values())


def _few(samples: Sequence[int]) -> str:
    return _short([list(samples)]) if samples else ""


def _began(trajectory: Trajectory, rank: int, life: int) -> int:
    return next((int(line["step"]) for line in trajectory.begins.get(rank, []) if int(line["life"]) == life), 0)


def _pairs(one: Trajectory, other: Trajectory) -> Iterator[tuple[Line, Line]]:
    for rank, steps in one.steps.items():
        for step in sorted(steps):
            a, b = one.line(rank, step), other.line(rank, step)
            if a is not None and b is not None:
                yield a, b


Found = tuple[str, str, str, str]


def _restored(a: Line, begin: Line) -> Iterator[Found]:
    """What was restored, beside what the undisturbed run had at that step."""
    there = {name: text for name, text in begin["objects"].items() if name in a["objects"]}
    yield from _by_name("object", {name: a["objects"][name] for name in there}, there)
    yield from _shown_state(a, begin)
    yield from _by_name("generator after", a["rng"], begin["rng"])


def _differences(a: Line, b: Line) -> Iterator[Found]:
    """In the order in which one leads to the other."""
    if a["indices"] != b["indices"]:
        yield "samples", "", _short(a["indices"]), _short(b["indices"])
    if a["batches"] != b["batches"]:
        yield "batch", "", "", ""
    if a["rng_forward"] and b["rng_forward"]:
        yield from _by_name("generator", a["rng_forward"], b["rng_forward"])
    # An option counts before the step that it leads to, and the loss is what everybody looks at.
    for one, other in zip(a["optimizers"], b["optimizers"]):
        for group, (left, right) in enumerate(zip(one["options"], other["options"])):
            of = one["name"] or one["type"]
            where = f"{of}'s group {group}" if len(one["options"]) > 1 else of
            for name in left:
                if left[name] != right.get(name):
                    yield "option", f"{name} of {where}", _number(left[name]), _number(right.get(name))
    counts = len(a["optimizers"]), len(b["optimizers"])
    if counts[0] != counts[1]:
        yield "option", "the number of optimizer steps", str(counts[0]), str(counts[1])
    if a["losses"] != b["losses"]:
        pair = next(((x, y) for x, y in zip(a["losses"], b["losses"]) if x != y), ("", ""))
        yield "loss", "", _number(pair[0]), _number(pair[1])
    for one, other in zip(a["optimizers"], b["optimizers"]):
        if one["gradients"] != other["gradients"]:
            yield "gradients", one["name"] or one["type"], "", ""
    yield from _by_name("object", a["objects"], b["objects"])
    yield from _shown_state(a, b)
    for name in a["logged"]:
        if a["logged"][name] != b["logged"].get(name):
            yield "metric", name, _number(a["logged"][name]), _number(b["logged"].get(name))
    for name in [name for name in b["logged"] if name not in a["logged"]]:
        yield "metric", name, "", _number(b["logged"][name])
    yield from _by_name("generator after", a["rng"], b["rng"])


def _shown_state(a: Line, b: Line) -> Iterator[Found]:
    for name in [*a["state"], *(name for name in b["state"] if name not in a["state"])]:
        if a["state"].get(name) != b["state"].get(name):
            yield "state", name, a["shown"].get(name, "not there"), b["shown"].get(name, "not there")


def _by_name(component: str, a: dict[str, str], b: dict[str, str]) -> Iterator[Found]:
    """Names with more parts first: a tensor tells more than the object that holds it."""
    differ = [name for name in {**a, **b} if a.get(name) != b.get(name)]
    for name in sorted(differ, key=lambda name: "/" not in name):
        yield component, name, "" if name in a else "not there", "" if name in b else "not there"


def _short(indices: Sequence[Any]) -> str:
    flat = [item for batch in indices if batch for item in batch]
    return f"[{', '.join(map(str, flat[:6]))}{', ...' if len(flat) > 6 else ''}]"


def _number(value: Any) -> str:
    if isinstance(value, str):
        try:
            return f"{float.fromhex(value):.9g}"
        except ValueError:
            return value
    return str(value)


def numbers(lines: Sequence[Line]) -> list[float]:
    """The first loss of each line, for a plot; NaN where there is none."""
    found = []
    for line in lines:
        try:
            found.append(float.fromhex(line["losses"][0]))
        except (IndexError, ValueError, KeyError):
            found.append(float("nan"))
    return found
