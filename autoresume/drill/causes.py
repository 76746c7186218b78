"""Why two trajectories part, and what to do about it. Pure: a likely cause, said to be likely.

Law: what is told is what was seen: a variable that nothing tracks and that differs in the first step after a resume, an
optimizer that steps and is not tracked, a generator that was moved between the restore and the first forward pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autoresume.drill.compare import Divergence, Noise
from autoresume.drill.record import Trajectory

_FIRST = ("scheduler", "generator", "optimizer", "model", "value")


@dataclass(frozen=True)
class Cause:
    name: str
    why: str
    remedy: str


@dataclass(frozen=True)
class Suspect:
    """Something that the script holds and nobody tracks, and that differs in the first step after the resume."""

    name: str
    kind: str
    type: str
    a: str
    b: str


EXPERIMENTS: Mapping[str, tuple[str, str, str]] = {
    "hash": (
        "hash order",
        "with the hash seed fixed (PYTHONHASHSEED=0) both undisturbed runs are the same: the script depends on the "
        "order of a set, or of a dict made from one, which is another one in each process",
        "sort what comes out of a set before it is used, e.g. for name in sorted(names)",
    ),
    "clock": (
        "wall clock",
        "with the time of day fixed both undisturbed runs are the same: the script's data or seeds depend on it",
        "seed with a constant, e.g. run.seed(0), and keep what has to change in run.state",
    ),
    "seed": (
        "not seeded",
        "with the option seed=0 both undisturbed runs are the same: the script draws random numbers, and never seeds",
        "seed at the start: run.seed(0), or the option seed",
    ),
    "kernels": (
        "nondeterministic kernels",
        "with deterministic kernels on one thread both undisturbed runs are the same: sums are made in another order "
        "each time",
        "torch.use_deterministic_algorithms(True) and torch.set_num_threads(1), if bits matter more than speed",
    ),
}
"""What is tried where two undisturbed runs differ, in this order: cause, why, remedy."""

UNKNOWN_NONDETERMINISM = Cause(
    "not deterministic",
    "two undisturbed runs differ already, and neither a fixed hash seed, nor a fixed clock, nor seeds, nor "
    "deterministic kernels make them the same",
    "look at what is read from outside: files, the network, threads, other processes",
)


def of_experiment(name: str) -> Cause:
    return Cause(*EXPERIMENTS[name])


def suspects(reference: Trajectory, other: Trajectory, at: Divergence, noise: Noise) -> list[Suspect]:
    """In the first step after the resume that leads to the divergence, the likeliest first."""
    begin = other.first_of_life(at.rank, at.life)
    if begin is None:
        return []
    a = reference.line(at.rank, int(begin["step"]))
    if a is None:
        return []
    found = []
    for name, (kind, text, shown) in begin["variables"].items():
        before = a["variables"].get(name)
        if before is not None and before[1] != text and name not in noise.variables:
            found.append(Suspect(name, kind, shown, before[2], shown))
    return _telling(found)


def _telling(found: Iterable[Suspect]) -> list[Suspect]:
    """The likeliest first: objects, then plain values. Tensors, mostly made anew in each step, only without others."""
    known = sorted(found, key=lambda one: _FIRST.index(one.kind))
    return [one for one in known if one.kind != "value" or one.a != one.b] or known


def likely(reference: Trajectory, other: Trajectory, at: Divergence, noise: Noise) -> Cause:
    """For a divergence of an interrupted run from a script that is deterministic."""
    found = suspects(reference, other, at, noise)
    line = other.line(at.rank, at.step) or {}
    return (
        _of_the_restore(at)
        or _of_the_optimizer(line)
        or _untracked(found, ("scheduler", "generator"))
        or _of_the_data(at, line)
        or _of_what_runs_again(reference, other, at)
        or _untracked(found, ("optimizer", "model"))
        or _of_variables(found)
        or _of_the_kernels(at)
        or Cause("unknown", "nothing that was seen explains it", "look at what the script does before its first step")
    )


def _of_the_restore(at: Divergence) -> Cause | None:
    if not at.at_restore:
        return None
    return Cause(
        "incomplete state",
        f"{at.name or at.component} is restored otherwise than it was: its state_dict does not hold all of it, or the "
        "script changes it before the restore is over",
        "make state_dict and load_state_dict exact inverses; restore before anything is changed",
    )


def _of_the_optimizer(line: Mapping[str, Any]) -> Cause | None:
    """One that steps, and that nobody tracks."""
    loose = [one["type"] for one in line.get("optimizers", []) if one["name"] is None]
    if not loose:
        return None
    if line.get("tracked_optimizers"):
        return Cause(
            "optimizer rebuilt",
            f"the {loose[0]} that steps is not the optimizer that is tracked: it was made anew after the restore, and "
            "is without its moments",
            "make the optimizer once, before run.restore(), and track the one that steps",
        )
    return Cause(
        "optimizer not tracked",
        f"the {loose[0]} that steps is not tracked, so that its moments begin anew",
        "run.track(optimizer=optimizer)",
    )


_UNTRACKED = {
    "scheduler": "begins anew after a resume",
    "generator": "draws the same numbers again after a resume",
    "optimizer": "has no moments after a resume",
    "model": "begins anew after a resume (an EMA, a target or a teacher network?)",
}


def _untracked(found: Sequence[Suspect], kinds: Sequence[str]) -> Cause | None:
    one = next((one for one in found if one.kind in kinds), None)
    if one is None:
        return None
    remedy = f"run.track({_word(one.name)}={_expression(one.name)})"
    if one.type == "RandomState":
        remedy = f"use numpy.random.default_rng(...) in its place, and {remedy}"
    why = f"the {one.type} in {_place(one.name)} is not tracked, and {_UNTRACKED[one.kind]}"
    return Cause(f"{one.kind} not tracked", why, remedy)


def _of_the_data(at: Divergence, line: Mapping[str, Any]) -> Cause | None:
    if at.component not in ("samples", "batch"):
        return None
    if line.get("workers") and at.component == "batch":
        return Cause(
            "worker randomness",
            "the data workers draw random numbers that depend on their whole past, which a resume in the middle of an "
            "epoch does not repeat",
            "make the loader with run.loader(dataset, ...): each sample's randomness is then its own",
        )
    return Cause(
        "position in the data",
        "the data after a resume are others: the loader begins anew, or its order depends on something that is not "
        "restored",
        "make it with run.loader(dataset, ...), or let a torch DataLoader be followed (no run.follow(loader, False))",
    )


def _of_what_runs_again(reference: Trajectory, other: Trajectory, at: Divergence) -> Cause | None:
    """Between the restore and the first step of a life."""
    if at.component == "state" and at.first_after_resume:
        return Cause(
            "counted twice",
            f"run.state.{at.name} was restored rightly, and is changed by what runs again after a resume",
            "change it where a step, or an epoch, ends, and not where it begins; or loop over run.epochs(...)",
        )
    a, b = reference.line(at.rank, at.step), other.line(at.rank, at.step)
    moved = a is not None and b is not None and a["rng"] != b["rng"]
    if "generator" in at.component or (at.component == "loss" and moved):
        return Cause(
            "seeded again",
            "the script seeds, or draws, between the restore and the first step of a life: after a resume the "
            "generators stand where they stood at the start",
            "seed before run.restore() (or before the loop, which restores), so that the restored state counts",
        )
    return None


def _of_variables(found: Sequence[Suspect]) -> Cause | None:
    if not found:
        return None
    word = _word(found[0].name)
    return Cause(
        "state in variables",
        f"nothing tracks {', '.join(as_lines(found[:3]))}",
        f"keep it in run.state, e.g. run.state.{word}",
    )


def _of_the_kernels(at: Divergence) -> Cause | None:
    if at.component not in ("loss", "gradients", "object"):
        return None
    return Cause(
        "nondeterministic kernels",
        "all that leads to it is the same, up to the generators: the same sums came out otherwise",
        "torch.use_deterministic_algorithms(True); on GPUs CUBLAS_WORKSPACE_CONFIG=:4096:8",
    )


def unnoticed(reference: Trajectory, other: Trajectory, noise: Noise) -> list[Suspect]:
    """Where nothing diverged: what nobody tracks, and what differs in the last step all the same."""
    last = reference.last_step
    found: dict[str, Suspect] = {}
    for rank in sorted(reference.steps):
        a, b = reference.line(rank, last), other.line(rank, last)
        if a is None or b is None:
            continue
        for name, (kind, text, shown) in b["variables"].items():
            before = a["variables"].get(name)
            if before is not None and before[1] != text and name not in noise.variables:
                found.setdefault(name, Suspect(name, kind, shown, before[2], shown))
    return _telling(found.values())


def _place(name: str) -> str:
    function, colon, variable = name.partition(": ")
    return f"`{variable}` in {function}()" if colon else f"`{name}`"


def _expression(name: str) -> str:
    return name.rpartition(": ")[2]


def _word(name: str) -> str:
    """A name for it that Python takes."""
    last = _expression(name).rpartition(".")[2]
    return "".join(letter if letter.isalnum() or letter == "_" else "_" for letter in last) or "it"


def as_lines(found: Sequence[Suspect]) -> list[str]:
    return [
        f"{_place(one.name)}: {one.a} undisturbed, {one.b} after resumes"
        if one.a != one.b
        else f"{_place(one.name)}: a {one.type} in another state"
        for one in found
    ]
