"""A whole drill: undisturbed twice, interrupted as the schedule says, compared, and explained.

Law: what is measured and found is one `Result`, from which every report is made.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from autoresume.checkpoint import incarnation
from autoresume.drill import causes, compare
from autoresume.drill import schedule as schedules
from autoresume.drill.causes import Cause, Suspect
from autoresume.drill.cluster import for_slurm
from autoresume.drill.compare import Divergence, Noise
from autoresume.drill.driver import Life, Plan, Run
from autoresume.drill.record import Trajectory
from autoresume.drill.schedule import Interruption
from autoresume.errors import UsageError
from autoresume.format import names
from autoresume.loggers.journal import read as read_journal
from autoresume.storage.local import LocalStorage

IDENTICAL, DIVERGED, NOT_DETERMINISTIC = "identical", "diverged", "not deterministic"
SAME_DATA = "same data"
"""With another number of ranks in each life."""
INCONCLUSIVE = "inconclusive"
"""No life trained on from a checkpoint, so that nothing was shown."""
_SAVES_A_LIFE = 3


@dataclass
class Result:
    verdict: str
    steps: int
    ranks: int
    seed: int
    schedule: list[Interruption]
    lives: list[Life] = field(default_factory=list)
    divergence: Divergence | None = None
    cause: Cause | None = None
    suspects: list[Suspect] = field(default_factory=list)
    """What nobody tracks and what differs after the resume."""
    unnoticed: list[Suspect] = field(default_factory=list)
    """Where the verdict is identical: the same, without an effect so far."""
    not_compared: list[str] = field(default_factory=list)
    """What differs between the undisturbed runs, and means nothing: durations, say."""
    final: list[str] = field(default_factory=list)
    """What of the final state, and of the metrics as they are kept, is another."""
    save_seconds: float | None = None
    """Of the slowest last save: from the order to its commit."""
    checkpoint_bytes: int = 0
    grace: float = 0.0

    @property
    def lost_steps(self) -> int:
        return sum(self._lost(index) for index in range(len(self.lives)))

    def _lost(self, index: int) -> int:
        """Steps of that life that the next one made again."""
        if index + 1 >= len(self.lives):
            return 0
        return max(0, self.lives[index].reached_step - self.lives[index + 1].resumed_step)

    def lost(self) -> list[int]:
        return [self._lost(index) for index in range(len(self.lives))]

    @property
    def lost_without(self) -> int:
        """Steps that plain restarts, from the beginning, would have made again."""
        return sum(life.reached_step for life in self.lives[:-1])

    def to_json(self) -> dict[str, Any]:
        found = asdict(self)
        found["lives"] = [
            {**asdict(life), "words": life.words, "lost_steps": lost} for life, lost in zip(self.lives, self.lost())
        ]
        found["divergence"] = {**asdict(self.divergence), "words": self.divergence.words()} if self.divergence else None
        return {**found, "lost_steps": self.lost_steps, "lost_by_plain_restarts": self.lost_without}


Tell = Callable[[str], None]


class Drill:
    """`compare_states` compares the latest checkpoints of two run directories; `make` makes runs of a plan."""

    def __init__(
        self, tell: Tell, compare_states: Callable[[str, str], list[str]], make: Callable[..., Run] = Run
    ) -> None:
        self._tell, self._compare_states, self._make = tell, compare_states, make

    def run(
        self,
        plan: Plan,
        seed: int,
        kills: int,
        given: Sequence[Interruption] | None = None,
        max_seconds: float | None = None,
    ) -> Result:
        """Twice undisturbed, then interrupted: as a schedule of so many `kills` says, or as the `given` one.

        Raises DrillFailed where a life fails by itself, UsageError.
        """
        if plan.folder.exists():
            shutil.rmtree(plan.folder)
        self._tell("undisturbed, once")
        sizes, plan = plan.sizes, replace(plan, sizes=())
        one = self._make(plan, "undisturbed")
        one.life(stop_after=max_seconds)
        reference = one.trajectory
        if not reference.last_step:
            raise UsageError(
                f"{plan.script} made no step: does its loop run under run.batches, run.steps, or call run.step()? What "
                f"it said is in {one.folder / 'life-1.log'}"
            )
        if plan.slurm is not None:
            plan = replace(plan, ranks=len(reference.steps))
        if not one.is_over:  # the time was over
            plan = replace(plan, until=min(max(steps, default=0) for steps in reference.steps.values()))
        self._tell(f"undisturbed, again ({reference.last_step} steps)")
        two = self._make(plan, "again")
        two.life()
        again = two.trajectory
        noise = compare.noise(reference, again)
        steps = reference.last_step
        chosen = list(given or ())
        if given is None:
            chosen = schedules.make(seed, kills, steps, plan.ranks, reference.evaluates)
        if plan.slurm is not None:
            chosen = [for_slurm(one) for one in chosen]
        result = Result(IDENTICAL, steps, plan.ranks, seed, chosen, grace=plan.grace)
        apart = compare.first(reference, again, noise)
        if apart is not None:
            result.verdict, result.divergence = NOT_DETERMINISTIC, apart
            result.cause = self._experiments(plan, apart, noise)
            return result
        result.not_compared = sorted(f"{component} {name}" for component, name in noise.names)
        self._interrupt(replace(plan, sizes=sizes), result, reference, noise, one)
        return result

    def _interrupt(self, plan: Plan, result: Result, reference: Trajectory, noise: Noise, undisturbed: Run) -> None:
        chosen = result.schedule
        every = max(1, result.steps // (_SAVES_A_LIFE * (len(chosen) + 1)))
        plan = replace(plan, save_every=plan.save_every or f"{every} steps")
        run = self._make(plan, "interrupted")
        run.coming = list(chosen)
        for interruption in chosen:
            if run.is_over:
                break
            life = run.life(interruption)
            self._tell(f"life {life.number}: {life.words}: steps {life.resumed_step + 1} to {life.reached_step}")
        while not run.is_over:
            life = run.life()
            self._tell(f"life {life.number}: to the end: steps {life.resumed_step + 1} to {life.reached_step}")
        result.lives = run.lives
        _measure(result, run)
        other = run.trajectory
        if plan.sizes:
            _resized(result, reference, other)
            return
        apart = compare.first(reference, other, noise)
        if apart is not None:
            result.verdict, result.divergence = DIVERGED, apart
            result.cause = causes.likely(reference, other, apart, noise)
            result.suspects = causes.suspects(reference, other, apart, noise)
            return
        result.final = _metrics(undisturbed.run_folder, run.run_folder, noise)
        result.final += self._compare_states(str(undisturbed.run_folder), str(run.run_folder))
        if result.final:
            result.verdict = DIVERGED
            result.cause = Cause(
                "end of the script",
                "all steps are the same, and the final state is not",
                "look at what the script does behind its loop, or to what is tracked, after the last step",
            )
        result.unnoticed = causes.unnoticed(reference, other, noise)
        if result.verdict == IDENTICAL and not any(life.trained_on for life in result.lives):
            result.verdict = INCONCLUSIVE

    def _experiments(self, plan: Plan, apart: Divergence, noise: Noise) -> Cause:
        """Which of the usual reasons makes two undisturbed runs the same, up to the step in which they parted."""
        short = replace(plan, until=max(1, apart.step))
        for name in causes.EXPERIMENTS:
            self._tell(f"the undisturbed runs differ from step {apart.step} on: trying {causes.EXPERIMENTS[name][0]}")
            variables = {"hash": {"PYTHONHASHSEED": "0"}, "seed": {"AUTORESUME_SEED": "0"}}.get(name, {})
            found = []
            for number in (1, 2):
                run = self._make(short, f"{name}-{number}", [name], variables)
                run.life()
                found.append(run.trajectory)
            if compare.first(found[0], found[1], noise) is None:
                return causes.of_experiment(name)
        return causes.UNKNOWN_NONDETERMINISM


def _resized(result: Result, reference: Trajectory, other: Trajectory) -> None:
    result.divergence = compare.same_data(reference, other)
    result.verdict = SAME_DATA if result.divergence is None else DIVERGED
    if result.divergence is not None:
        result.cause = Cause(
            "position in the data",
            "the loader deals its samples out by the number of ranks, or begins anew",
            "make it with run.loader(dataset, ...), whose order does not depend on the number of ranks",
        )
    elif not compare.knows_samples(other) or not any(life.trained_on for life in result.lives):
        result.verdict = INCONCLUSIVE


def _measure(result: Result, run: Run) -> None:
    storage = LocalStorage(run.run_folder)
    seconds = [(record.ended or {}).get("save_seconds") for record in incarnation.history(storage)]
    result.save_seconds = max((float(value) for value in seconds if value is not None), default=None)
    folders = sorted((run.run_folder / names.CHECKPOINTS).glob("*/"))
    if folders:
        result.checkpoint_bytes = sum(path.stat().st_size for path in folders[-1].rglob("*") if path.is_file())


def _metrics(undisturbed: Path, interrupted: Path, noise: Noise) -> list[str]:
    """The journals, and what a logger was given: each step once, with the same values."""
    found = []
    a, b = (list(read_journal(folder / names.JOURNAL)) for folder in (undisturbed, interrupted))
    ignored = {name for component, name in noise.names if component == "metric"}

    def kept(values: Mapping[str, Any]) -> str:
        return json.dumps({name: repr(value) for name, value in values.items() if name not in ignored})

    if [(one.step, kept(one.values)) for one in a] != [(one.step, kept(one.values)) for one in b]:
        found.append(f"metrics.jsonl: {len(a)} lines undisturbed, {len(b)} interrupted, or other values")
    ignored.add("time")
    if _rows(undisturbed, ignored) != _rows(interrupted, ignored):
        found.append("metrics.csv: the logger holds other rows")
    return found


def _rows(folder: Path, ignored: set[str]) -> list[dict[str, str]]:
    path = folder / "metrics.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{key: value for key, value in row.items() if key not in ignored} for row in csv.DictReader(file)]
