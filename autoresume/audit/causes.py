"""Why a resumed training parts from the one before, and what to do about it. Pure: a likely cause, said to be likely.

Law: what is told is what was seen: something that nobody tracks and that changes, an optimizer that steps and is not
tracked, a generator that was moved between the restore and the first step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_FIRST = ("scheduler", "generator", "optimizer", "model", "tensor", "object", "value")


@dataclass(frozen=True)
class Cause:
    name: str
    why: str
    remedy: str


@dataclass(frozen=True)
class Suspect:
    """Something that the script holds and nobody tracks, and that changes. `a` and `b` show it where it is as it should
    be, and as it is."""

    name: str
    kind: str
    type: str
    a: str
    b: str


@dataclass(frozen=True)
class Evidence:
    """What was seen where two trainings part."""

    component: str
    """samples, batch, generator, loss, gradients, option, object, state, metric, generator after, length."""
    name: str = ""
    suspects: Sequence[Suspect] = ()
    loose: Sequence[str] = ()
    """Types of optimizers that step and are not tracked."""
    has_tracked_optimizer: bool = False
    workers: int = 0
    left_alone: bool = False
    """A loader that the run was told not to follow is among them."""
    moved: bool = False
    """Generators of the process stand elsewhere, too."""
    first_after_resume: bool = False
    at_restore: bool = False
    """It was there before a step was made."""
    machines: tuple[str, str] | None = None
    """Where the two were made, where they are different kinds."""
    is_rounding: bool = False
    """The numbers are as close as those of another order of the same sums."""
    unseeded: Sequence[str] = ()
    """Generators that stood elsewhere when the script began."""
    undisturbed: bool = True
    """`suspects` were compared with an undisturbed run; else with themselves, when the life began."""


def telling(found: Iterable[Suspect]) -> list[Suspect]:
    """The likeliest first: objects, then plain values. Tensors, mostly made anew in each step, only without others."""
    known = sorted(found, key=lambda one: _FIRST.index(one.kind))
    return [one for one in known if one.kind != "value" or one.a != one.b] or known


def likely(seen: Evidence) -> Cause:
    """For a script that is deterministic."""
    return (
        _of_the_restore(seen)
        or _of_the_optimizer(seen)
        or _untracked(seen, ("scheduler", "generator"))
        or _of_the_data(seen)
        or _of_what_runs_again(seen)
        or _untracked(seen, ("optimizer", "model", "tensor", "object"))
        or _of_seeds(seen)
        or (_of_the_kernels(seen) if seen.is_rounding else None)
        or _of_variables(seen)
        or _of_the_kernels(seen)
        or Cause("unknown", "nothing that was seen explains it", "look at what the script does before its first step")
    )


def _of_the_restore(seen: Evidence) -> Cause | None:
    if not seen.at_restore:
        return None
    return Cause(
        "incomplete state",
        f"{seen.name or seen.component} is restored otherwise than it was: its state_dict does not hold all of it, or "
        "the script changes it before the restore is over",
        "make state_dict and load_state_dict exact inverses; restore before anything is changed",
    )


def _of_the_optimizer(seen: Evidence) -> Cause | None:
    """One that steps, and that nobody tracks."""
    if not seen.loose:
        return None
    if seen.has_tracked_optimizer:
        return Cause(
            "optimizer rebuilt",
            f"the {seen.loose[0]} that steps is not the optimizer that is tracked: it was made anew after the restore, "
            "and is without its moments",
            "make the optimizer once, before run.restore(), and track the one that steps",
        )
    return Cause(
        "optimizer not tracked",
        f"the {seen.loose[0]} that steps is not tracked, so that its moments begin anew",
        "run.track(optimizer=optimizer)",
    )


CONSEQUENCES = {
    "scheduler": "begins anew after a resume",
    "generator": "draws the same numbers again after a resume",
    "optimizer": "has no moments after a resume",
    "model": "begins anew after a resume (an EMA, a target or a teacher network?)",
    "tensor": "begins anew after a resume",
    "object": "begins anew after a resume",
}


def _untracked(seen: Evidence, kinds: Sequence[str]) -> Cause | None:
    one = next((one for one in seen.suspects if one.kind in kinds), None)
    if one is None:
        return None
    why = f"the {one.type} in {place(one.name)} is not tracked, and {CONSEQUENCES[one.kind]}"
    return Cause(f"{one.kind} not tracked", why, track(one))


def track(one: Suspect) -> str:
    """The line to write."""
    if one.kind == "tensor":
        return f"run.state.{_word(one.name)} = {_expression(one.name)}"
    line = f"run.track({_word(one.name)}={_expression(one.name)})"
    return f"use numpy.random.default_rng(...) in its place, and {line}" if one.type == "RandomState" else line


def _of_the_data(seen: Evidence) -> Cause | None:
    if seen.component not in ("samples", "batch"):
        return None
    if seen.workers and seen.component == "batch" and not seen.left_alone:
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


def _of_what_runs_again(seen: Evidence) -> Cause | None:
    """Between the restore and the first step of a life."""
    if seen.component == "state" and seen.first_after_resume:
        return Cause(
            "counted twice",
            f"run.state.{seen.name} was restored rightly, and is changed by what runs again after a resume",
            "change it where a step, or an epoch, ends, and not where it begins; or loop over run.epochs(...)",
        )
    if "generator" in seen.component or (seen.component == "loss" and seen.moved):
        return Cause(
            "seeded again",
            "the script seeds, or draws, between the restore and the first step of a life: after a resume the "
            "generators stand where they stood at the start",
            "seed before run.restore() (or before the loop, which restores), so that the restored state counts",
        )
    return None


def _of_seeds(seen: Evidence) -> Cause | None:
    if not seen.unseeded:
        return None
    return Cause(
        "not seeded",
        f"the random numbers of {' and '.join(seen.unseeded)} stood elsewhere than when the run was first started: "
        "what the script draws before it restores is another thing each time",
        "seed at the start with a constant, e.g. run.seed(0)",
    )


def _of_variables(seen: Evidence) -> Cause | None:
    found = seen.suspects
    if not found:
        return None
    word = _word(found[0].name)
    if not seen.undisturbed:
        return Cause(
            "state in variables",
            "it may be a variable that changes and that nothing tracks: "
            f"{', '.join(place(one.name) for one in found[:4])}",
            "keep what the next step depends on in run.state; `autoresume drill` tells which it is",
        )
    return Cause(
        "state in variables",
        f"nothing tracks {', '.join(as_lines(found[:3]))}",
        f"keep it in run.state, e.g. run.state.{word}",
    )


def _of_the_kernels(seen: Evidence) -> Cause | None:
    if seen.component not in ("loss", "gradients", "object"):
        return None
    if seen.machines is not None:
        return Cause(
            "another machine",
            f"all that leads to it is the same, up to the generators, and sums are made in another order on "
            f"{seen.machines[1]} than on {seen.machines[0]}",
            "ask for one kind of node, e.g. --constraint in Slurm, if bits matter more than the choice",
        )
    return Cause(
        "nondeterministic kernels",
        "all that leads to it is the same, up to the generators: the same sums came out otherwise",
        "torch.use_deterministic_algorithms(True); on GPUs CUBLAS_WORKSPACE_CONFIG=:4096:8",
    )


def place(name: str) -> str:
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
        f"{place(one.name)}: {one.a} undisturbed, {one.b} after resumes"
        if one.a != one.b
        else f"{place(one.name)}: a {one.type} in another state"
        for one in found
    ]
