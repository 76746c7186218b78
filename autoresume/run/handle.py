"""The `Run` handle: what a training script talks to.

Law: a step boundary is where `step` is called; everything that autoresume does to a script happens
there, at `restore`, or at the script's end. What is in the run's own state (counters, positions,
generators) is restored last, so that nothing that restoring does shows in it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from autoresume.base.call_site import call_site
from autoresume.data.loader import RunLoader
from autoresume.data.stateful import StatefulRunLoader
from autoresume.errors import UsageError
from autoresume.format import names
from autoresume.restore import changes
from autoresume.run.life import Life
from autoresume.run.loops import Loops
from autoresume.run.resources import Resources
from autoresume.state import rng
from autoresume.state.namespace import Namespace

log = logging.getLogger("autoresume")

T = TypeVar("T")
L = TypeVar("L")

_current: Run | None = None


def current() -> Run:
    """The run of this process, for code that gets no argument. Raises UsageError outside of one."""
    if _current is None:
        raise UsageError(
            "there is no run: call autoresume.current() inside of an @autoresume function, or after start()"
        )
    return _current


class Run:
    """One training from first step to last, across any number of jobs.

    Made by `@autoresume` or `autoresume.start()`. Read-only attributes: `directory`, `id`, `rank`,
    `world_size`, `step_count` (steps completed), `epoch`, `samples` (seen by all ranks), `is_resumed`,
    `should_stop`, `incarnation`.
    """

    def __init__(self, resources: Resources) -> None:
        global _current
        self.state = Namespace()
        self.life = Life(resources, self.state)
        self._loops = Loops(self.life)
        if resources.options.seed is not None:
            rng.seed_all(rng.mix_seed(resources.run_file.seed, resources.ranks.rank) % 2**32)
        _current = self

    # -- what it is -------------------------------------------------------------------------------

    @property
    def directory(self) -> Path:
        return self.life.resources.folder

    @property
    def id(self) -> str:
        return self.life.resources.run_id

    @property
    def incarnation(self) -> int:
        """The number of this life of the run; 0 before `restore`."""
        return self.life.resources.number

    @property
    def rank(self) -> int:
        return self.life.resources.ranks.rank

    @property
    def world_size(self) -> int:
        return self.life.resources.ranks.world_size

    @property
    def step_count(self) -> int:
        return self.life.step

    @property
    def samples(self) -> int:
        return self.life.samples

    @property
    def is_resumed(self) -> bool:
        return self.life.is_resumed

    @property
    def restored(self) -> bool:
        return self.life.restored

    @property
    def over(self) -> bool:
        """`finish` or `close` was called."""
        return self.life.over

    @property
    def epoch(self) -> int:
        """The epoch that the training loader is in (or that `run.epochs` is at)."""
        return self.life.epoch

    @property
    def should_stop(self) -> bool:
        """True once a stop signal reached this rank. The run leaves by itself at the next agreed boundary;
        code between two boundaries that takes long may look here and hurry."""
        return self.life.resources.trap.first is not None

    def seed(self, value: int) -> None:
        """Seed python, numpy and torch, as scripts do at their start; on each rank with `value` itself."""
        rng.seed_all(value)

    def configure(self, config: Any, *, must_equal: bool = False, ignore: Collection[str] = ()) -> None:
        """Tell the run its settings: a mapping, a namespace (of argparse), or a dataclass; plain values, nested or not.

        They are kept in each checkpoint, sent to the loggers, and compared at a resume: what changed is told, as safe
        or risky. Without it the command line is compared. With `must_equal` a resume refuses settings that differ, but
        for those in `ignore`, unless `restore.strict={"config": false}`. Before `restore`. Raises UsageError.
        """
        if self.restored:
            raise UsageError("call run.configure(...) before run.restore(), or the loop: then it is compared")
        try:
            self.life.facts.config = changes.flatten_config(config)
        except TypeError:
            raise UsageError(
                f"run.configure takes a mapping, a namespace or a dataclass, not a {type(config).__name__}"
            ) from None
        self.life.facts.must_equal, self.life.facts.may_differ = must_equal, frozenset(ignore)

    # -- what it remembers ------------------------------------------------------------------------

    def track(self, **objects: Any) -> None:
        """Make objects part of the run: anything with state_dict and load_state_dict, and generators.

        Before `restore` they are only noted. After it, an object that comes into being late is loaded
        at once. Wrappers (DDP, torch.compile) are looked through. Raises UsageError, StateError.
        """
        for name, value in objects.items():
            self.life.tracked.add(name, value)
            loaded = self.is_resumed and self.life.tracked.load(name)
            if self.is_resumed and not loaded and not self.life.stepped and self.rank == 0:
                log.warning("%r came into being after the checkpoint, which holds no state for it: it is new", name)

    def loader(
        self,
        dataset: Any,
        batch_size: int = 1,
        shuffle: bool = False,
        *,
        drop_last: bool = False,
        name: str | None = None,
        fetched_ahead: int = 0,
        **options: Any,
    ) -> RunLoader | StatefulRunLoader:
        """A DataLoader whose position is part of the run; `batch_size` is each rank's.

        Options are torch's DataLoader's. Map-style datasets are dealt out over the ranks by a global
        order that does not depend on their number; no DistributedSampler is needed. Iterable and
        stateful datasets go through torchdata's StatefulDataLoader. `fetched_ahead` is the number of
        batches that the loop holds at a step boundary without having trained on them. A loader that is
        made anew in each turn of `run.epochs` or `run.range` is the one of the turn before, one epoch on.
        `name` tells loaders apart if a script makes them in another order after a resume.
        """
        given = {"batch_size": batch_size, "shuffle": shuffle, "drop_last": drop_last, "fetched_ahead": fetched_ahead}
        return self.life.positions.make_loader(name, call_site(), dataset, options=options, **given)

    def follow(self, loader: L, follow: bool = True, *, fetched_ahead: int | None = None) -> L:
        """Say of a DataLoader of the script's own what the run can't know. Returns the loader.

        All are followed, and go on where the script's loops stood. False: the script does that itself. `fetched_ahead`
        is how many batches the loop holds at a boundary, untrained; 0 if it keeps them itself. Raises UsageError.
        """
        self.life.positions.following.say(loader, follow, fetched_ahead)
        return loader

    def dataset(self, make: Callable[..., T], *args: Any, name: str | None = None, **kwargs: Any) -> T:
        """`make(*args, **kwargs)`, noted with the run, so that each start has the data set that the first one had.

        A later start makes it with the arguments of the first, and says so if the script gives others now; with
        `restore.fresh=<name>` those count. `name` is by default what `make` is called. Arguments are plain values.
        `autoresume.rebuild_dataset` makes it again from a checkpoint alone. Raises UsageError, StateError.
        """
        return self.life.datasets.make(name or str(getattr(make, "__name__", type(make).__name__)), make, args, kwargs)

    def restore(self) -> bool:
        """Join the other ranks, claim the run, and load the newest checkpoint that is valid for all.

        True if the run was resumed. Called by `batches`, `steps`, `epochs` and `range` by themselves;
        a loop of one's own calls it once, when what it tracks is built. Every rank must call it. Raises
        RunIsLive, NoValidCheckpoint (it is never started from scratch then), StateError (what doesn't fit).
        """
        self.life.restore_once()
        return self.is_resumed

    # -- loops ------------------------------------------------------------------------------------

    def batches(self, loader: Any, epochs: int | None = None, accumulate: int = 1) -> Iterator[Any]:
        """Batches from where the run stands, for all `epochs` (or for the rest of the loader's epoch).

        Each turn of the loop ends at a step boundary; with `accumulate`, every so many turns. Takes what
        `run.loader` made, and any other DataLoader or iterable.
        """
        return self._loops.batches(loader, call_site(), epochs, accumulate)

    def steps(self, count: int) -> Iterator[int]:
        """Step numbers from where the run stands up to `count`; each turn ends at a step boundary."""
        return self._loops.steps(count)

    def range(self, *bounds: int, name: str | None = None) -> Iterator[int]:
        """Python's range, that goes on at the value it was interrupted in. Turns are not step boundaries.

        Ranges may lie in each other; one that lies in another begins anew in each turn of that. `name` tells
        ranges apart if a script comes by them in another order after a resume.
        """
        return self._loops.range("range", name, call_site(), bounds)

    def epochs(self, count: int) -> Iterator[int]:
        """Epochs from where the run stands up to `count`, for loops of one's own; sets `run.epoch`."""
        return self._loops.epochs(count, call_site())

    def tasks(self, count: int, *, save: str | None = "task", start: int = 0, stop: int | None = None) -> Iterator[int]:
        """Task numbers of a training over tasks one after the other (continual learning), from where the run stands.

        A task's end is a step boundary of its own, without samples; with `save="task"` a checkpoint with the tag
        `task=<number>` is taken there, with "last" only after the last one, with None at none in particular. `start`
        and `stop` are the first task and the one not to begin any more, as in `range`. Raises UsageError.
        """
        if save not in ("task", "last", None):
            raise UsageError(
                f"run.tasks(save={save!r}): give 'task' (after each task), 'last' (after the last) or None"
            )
        last = (count if stop is None else min(stop, count)) - 1

        def ended(task: int) -> None:
            if save == "task" or (save == "last" and task == last):
                self.save(f"task={task}")

        return self._loops.tasks(call_site(), (start, last + 1), ended)

    # -- the boundary -----------------------------------------------------------------------------

    def step(self, samples: int | None = None) -> None:
        """The step boundary: everything tracked is consistent now, on every rank.

        Counts the step, saves when it is time, and leaves (SystemExit) when the run has to stop: what
        follows in the script is then not reached, and the checkpoint is committed. `samples` is how many
        samples all ranks saw in the step, where no loader of ours counts them.
        """
        if not self.restored:
            raise UsageError("call run.restore() once before the first run.step(), when what it tracks is built")
        self.life.at_boundary(samples)

    def save(self, tag: str | None = None) -> None:
        """Save at the next step boundary, the end of this turn of the loop, whatever the interval. For every rank.

        A checkpoint with a tag is never deleted by retention, and is selected by it, e.g. `restore.select=release`.
        It holds the metrics that were logged up to then. Raises UsageError for what can't be a tag.
        """
        self.life.request_save(tag)

    # -- metrics and side files -------------------------------------------------------------------

    def log(self, **values: Any) -> None:
        """Write metrics of the step in progress (`step_count` + 1): numbers, strings, one-element tensors.

        They go to metrics.jsonl and from there to the loggers. Only rank 0's are kept. They are durable
        with the next checkpoint; after a resume each step is there exactly once.
        """
        if not self.restored:
            raise UsageError("call run.restore() before run.log(): only then is it known which step comes next")
        self.life.metrics.log(self.step_count + 1, values)
        self.life.audit.logged(values)

    def logger(self, name: str) -> Any:
        """The own object of one of the run's loggers, for what it can and `run.log` can't: media, histograms.

        wandb's Run, TensorBoard's SummaryWriter, (client, run_id) of MLflow. None on other ranks than 0, and where the
        tool can't be reached. What is logged to it directly is not in metrics.jsonl, and is logged again by steps that
        are trained again. Raises UsageError for a logger that the run does not have.
        """
        if not self.restored:
            raise UsageError("call run.restore() before run.logger(): only then are the loggers opened")
        return self.life.metrics.logger_object(name)

    @contextlib.contextmanager
    def open(self, name: str, mode: str = "rb") -> Iterator[BinaryIO]:
        """A side file of the run, such as a script's own `best.pt`: `with run.open("best.pt", "wb") as file`.

        Written files are published when the block ends, atomically and durably; each checkpoint keeps
        them as they were, and a resume puts them back, so that they are never newer than the state.
        Write on one rank only. Raises FileNotFoundError, UsageError.
        """
        if mode not in ("rb", "wb") or not names.is_inside(name):
            raise UsageError(f"run.open({name!r}, {mode!r}): give a plain relative name, and 'rb' or 'wb'")
        storage, inside = self.life.resources.storage, f"{names.FILES}/{name}"
        with storage.writer(inside) if mode == "wb" else open(storage.path(inside), "rb") as file:
            yield file

    # -- the end ----------------------------------------------------------------------------------

    def finish(self) -> None:
        """The training is over: save its last state, wait until that is committed, and mark the run finished.

        `@autoresume` calls it when the function returns. Every rank must come here.
        """
        if self.life.over:
            return
        if not self.restored:
            self.close("failed", "the script ended without run.restore()")
            raise UsageError(
                "the script ended without restoring or training: call run.restore(), or loop over run.batches"
            )
        self._loops.finish_turn()
        self.life.finish()
        self.close("finished", "")  # it is: nothing is left but to be no longer the current run

    def close(self, how: str, why: str) -> None:
        """End this incarnation; `how` is interrupted, failed, or ended (left by the script before its end).

        Waits for what is being persisted.
        """
        global _current
        if not self.life.over:
            self.life.close(how, why)
        if _current is self:
            _current = None
