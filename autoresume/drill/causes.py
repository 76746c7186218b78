"""Why two trajectories part, and what to do about it. Pure: a likely cause, said to be likely.

Law: what is told is what was seen: a variable that nothing tracks and that differs in the first step after a resume, an
optimizer that steps and is not tracked, a generator that was moved between the restore and the first forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping

from autoresume.audit.causes import Cause, Evidence, Suspect, as_lines, telling
from autoresume.audit.causes import likely as likely_cause
from autoresume.drill.compare import Divergence, Noise
from autoresume.drill.record import Line, Trajectory

__all__ = ["Cause", "Suspect", "as_lines", "likely", "of_experiment", "suspects", "unnoticed"]

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
    return telling(found)


def likely(reference: Trajectory, other: Trajectory, at: Divergence, noise: Noise) -> Cause:
    """For a divergence of an interrupted run from a script that is deterministic."""
    a, b = reference.line(at.rank, at.step), other.line(at.rank, at.step)
    line: Line = b or {}
    return likely_cause(
        Evidence(
            at.component,
            at.name,
            suspects=suspects(reference, other, at, noise),
            loose=[one["type"] for one in line.get("optimizers", []) if one["name"] is None],
            has_tracked_optimizer=bool(line.get("tracked_optimizers")),
            workers=int(line.get("workers", 0)),
            moved=a is not None and b is not None and a["rng"] != b["rng"],
            first_after_resume=at.first_after_resume,
            at_restore=at.at_restore,
        )
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
    return telling(found.values())
