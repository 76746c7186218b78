"""The `Run` handle: what a training script talks to.

Law: a step boundary is where `step` is called; everything that autoresume does to a script happens
there, at `restore`, or at the script's end. What is in the run's own state (counters, positions,
generators) is restored last, so that nothing that restoring does shows in it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from autoresume.base.call_site import call_site
from autoresume.checkpoint import sidefiles
from autoresume.data.loader import RunLoader
from autoresume.data.stateful import StatefulRunLoader
from autoresume.errors import UsageError
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
    """The run of this process, for code that gets no argument. Raises UsageError where none is open."""
    if _current is None:
        raise UsageError("there is no run: call current() inside of an @autoresume function, or after start()")
    return _current


class Run:
    """One training from first step to last, across any number of jobs.

    Made by `@autoresume` or `autoresume.start()`. Attributes are read-only, but for those of `state`.
    """

    state: Namespace
    """What the script keeps: attributes that it sets itself, such as `run.state.best = 0.0`."""

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
        """The run's folder, as an absolute path."""
        return self.life.resources.folder

    @property
    def id(self) -> str:
        """Of the run, the same in all its lives; drawn when its folder is made."""
        return self.life.resources.run_id

    @property
    def incarnation(self) -> int:
        """The number of this life of the run; 0 before `restore`."""
        return self.life.resources.number

    @property
    def rank(self) -> int:
        """Of this process: the process group's, before there is one the launcher's."""
        return self.life.resources.ranks.rank

    @property
    def world_size(self) -> int:
        """How many ranks there are, known as `rank` is."""
        return self.life.resources.ranks.world_size

    @property
    def step_count(self) -> int:
        """Steps completed, in all lives together; 0 before `restore`."""
        return self.life.step

    @property
    def samples(self) -> int:
        """What all ranks have trained on, as `run.loader`, `run.batches` and `step(samples)` count it."""
        return self.life.samples

    @property
    def is_resumed(self) -> bool:
        """`restore` has taken over a position, of this run or of another one; False with weights alone."""
        return self.life.is_resumed

    @property
    def restored(self) -> bool:
        """`restore` was called, or a loop of the run's has begun."""
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
        """Seed python, numpy and torch (CPU and accelerators) at the script's start; each rank with `value` itself."""
        rng.seed_all(value)

    def configure(self, config: Any, *, must_equal: bool = False, ignore: Collection[str] = ()) -> None:
        """Tell the run its settings. `config` is a mapping, argparse's namespace, or a dataclass; plain values, nested
        or not. Call it before `restore`.

        They are kept in each checkpoint, sent to the loggers, and compared at a resume: what changed is told, as safe
        or risky. Without it the command line is compared. With `must_equal` `restore` raises StateError for settings
        that differ, but for those in `ignore`, unless `restore.strict={"config": false}`. Raises UsageError.
        """
        if self.restored:
            raise UsageError("call run.configure(...) before run.restore(), or the loop: then it is compared")
        self.life.facts.configure(config, must_equal, frozenset(ignore))

    # -- what it remembers ------------------------------------------------------------------------

    def track(self, **objects: Any) -> None:
        """Make `objects` part of the run, by name: anything with state_dict and load_state_dict, and generators
        (random.Random, numpy's, torch's). `pickled` and `replicated` wrap others.

        Before `restore` they are only noted. After it, an object that comes into being late is loaded at once. From
        then on each checkpoint holds them. Wrappers (DDP, torch.compile) are looked through. Raises UsageError for what
        can't be tracked, StateError for a stored state that doesn't fit.
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
        """A DataLoader over `dataset` whose position is part of the run; `batch_size` is each rank's.

        `shuffle`, `drop_last` and further `options` (`num_workers`, `collate_fn`, ...) are torch's DataLoader's, and so
        are the batches. Map-style datasets are dealt out over the ranks by a global order that does not depend on their
        number; no DistributedSampler is needed. Iterable and stateful datasets go through torchdata's
        StatefulDataLoader. `fetched_ahead` is the number of batches that the loop holds at a step boundary without
        having trained on them. A loader that is made anew in each turn of `run.epochs` or `run.range` is the one of the
        turn before, one epoch on. `name` tells loaders apart if a script makes them in another order after a resume.
        Raises UsageError: options that the run sets itself (samplers), a dataset that is empty.
        """
        given = {"batch_size": batch_size, "shuffle": shuffle, "drop_last": drop_last, "fetched_ahead": fetched_ahead}
        return self.life.positions.make_loader(name, call_site(), dataset, options=options, **given)

    def follow(self, loader: L, follow: bool = True, *, fetched_ahead: int | None = None) -> L:
        """Say of a DataLoader of the script's own what the run can't know. Returns `loader`.

        All are followed, and go on where the script's loops stood. With `follow=False` the script does that itself.
        `fetched_ahead` is how many batches the loop holds at a boundary, untrained (0 if it keeps them itself); without
        it that is found out in the first steps. Raises UsageError for what is no torch DataLoader.
        """
        self.life.positions.following.say(loader, follow, fetched_ahead)
        return loader

    def dataset(self, make: Callable[..., T], *args: Any, name: str | None = None, **kwargs: Any) -> T:
        """`make(*args, **kwargs)`, noted with the run, so that each start has the data set that the first one had.

        A later start makes it with the arguments of the first, and says so if the script gives others now; with
        `restore.fresh=<name>` those count. `name` is by default what `make` is called. Arguments are plain values.
        They are noted in run.json by `restore`, or at once after it, and in each checkpoint, of which alone
        `autoresume.rebuild_dataset` makes it again. Raises UsageError (two of one name), StateError (arguments that are
        no plain values, another `make`).
        """
        return self.life.datasets.make(name or str(getattr(make, "__name__", type(make).__name__)), make, args, kwargs)

    def restore(self) -> bool:
        """Join the other ranks, claim the run, and load the newest checkpoint that is valid for all.

        True if the run was resumed. Called by `batches`, `steps`, `epochs`, `range` and `tasks` by themselves; a loop
        of one's own calls it once, when what it tracks is built. Every rank must call it. When it returns this life is
        on record: an older one that still lives stops writing. Raises RunIsLive, NoValidCheckpoint (the run is never
        started from scratch then), CheckpointInvalid (of another source), StateError (what doesn't fit), UsageError,
        AgreementError.
        """
        self.life.restore_once()
        return self.is_resumed

    # -- loops ------------------------------------------------------------------------------------

    def batches(self, loader: Any, epochs: int | None = None, accumulate: int = 1) -> Iterator[Any]:
        """Batches of `loader` from where the run stands, for all `epochs` (or for the rest of the loader's epoch).

        Each turn of the loop ends at a step boundary, as `step` makes it; with `accumulate`, every so many turns. Takes
        what `run.loader` made, and any other DataLoader or iterable.
        """
        return self._loops.batches(loader, call_site(), epochs, accumulate)

    def steps(self, count: int) -> Iterator[int]:
        """Step numbers from where the run stands up to, and without, `count`; each turn ends at a step boundary."""
        return self._loops.steps(count)

    def range(self, *bounds: int, name: str | None = None) -> Iterator[int]:
        """Python's range, of the same `bounds`, that goes on at the value it was interrupted in. Turns are not step
        boundaries: `step` is.

        Ranges may lie in each other; one that lies in another begins anew in each turn of that. `name` tells
        ranges apart if a script comes by them in another order after a resume. Raises UsageError for other bounds.
        """
        return self._loops.range("range", name, call_site(), bounds)

    def epochs(self, count: int) -> Iterator[int]:
        """Epochs from where the run stands up to, and without, `count`, as `range` gives them; sets `run.epoch`."""
        return self._loops.epochs(count, call_site())

    def tasks(self, count: int, *, save: str | None = "task", start: int = 0, stop: int | None = None) -> Iterator[int]:
        """Numbers of tasks that are learnt one after the other, from where the run stands up to, and without, `count`.

        A task's end is a step boundary of its own, without samples; with `save="task"` a checkpoint with the tag
        `task=<number>` is taken there, with "last" only after the last one, with None at none in particular. `start`
        and `stop` are the first task and the one not to begin any more, as in `range`. Raises UsageError.
        """
        return self._loops.tasks(call_site(), save, start, count if stop is None else min(stop, count))

    # -- the boundary -----------------------------------------------------------------------------

    def step(self, samples: int | None = None) -> None:
        """The step boundary: everything tracked is consistent now, on every rank. For every rank.

        Counts the step, saves when it is time, and leaves (SystemExit) when the run has to stop: what
        follows in the script is then not reached. `samples` is how many samples all ranks saw in the step, where no
        loader of the run's counts them. When it returns a save that was due is not durable yet: it is copied, and
        written while training goes on. When it leaves, the checkpoint is committed, or sealed in this node's memory,
        and its daemon commits it; one that was not in time is told. Raises UsageError, StateError (what can't be
        stored), StaleIncarnation, AgreementError.
        """
        if not self.restored:
            raise UsageError("call run.restore() once before the first run.step(), when what it tracks is built")
        self.life.at_boundary(samples)

    def save(self, tag: str | None = None) -> None:
        """Save at the next step boundary, the end of this turn of the loop, whatever the interval. For every rank.

        Nothing is saved yet when it returns. A checkpoint with a `tag` (up to 100 letters, digits and ._=+-) is never
        deleted by retention, and is selected by it, e.g. `restore.select=release`. It holds the metrics that were
        logged up to then. Raises UsageError for what can't be a tag.
        """
        self.life.request_save(tag)

    # -- metrics and side files -------------------------------------------------------------------

    def log(self, **values: Any) -> None:
        """Write metrics of the step in progress (`step_count` + 1). `values` by name: numbers, strings, one-element
        tensors (whose device is not waited for).

        They go to metrics.jsonl and from there to the loggers. Only rank 0's are kept. They are durable
        with the next checkpoint; after a resume each step is there exactly once. Raises UsageError before `restore`,
        TypeError for other values.
        """
        if not self.restored:
            raise UsageError("call run.restore() before run.log(): only then is it known which step comes next")
        self.life.metrics.log(self.step_count + 1, values)
        self.life.audit.logged(values)

    def logger(self, name: str) -> Any:
        """The own object of one of the run's loggers, by its `name`, for what it can and `run.log` can't: media.

        wandb's Run, TensorBoard's SummaryWriter, (client, run_id) of MLflow. None on other ranks than 0, where the tool
        can't be reached, and in a run without loggers. What is logged to it directly is not in metrics.jsonl, and is
        logged again by steps that are trained again. Raises UsageError before `restore`, and for one that is not there.
        """
        if not self.restored:
            raise UsageError("call run.restore() before run.logger(): only then are the loggers opened")
        return self.life.metrics.logger_object(name)

    def open(self, name: str, mode: str = "rb") -> AbstractContextManager[BinaryIO]:
        """A side file of the run, such as a script's own `best.pt`: `with run.open("best.pt", "wb") as file`.

        `name` is relative to `files/` in the run's folder, `mode` is "rb" or "wb". A written file is there when the
        block ends, whole and durable, and not at all if it raises; each checkpoint keeps them as they were, and a
        resume puts them back, so that they are never newer than the state. Write on one rank only. Raises OSError,
        UsageError.
        """
        return sidefiles.open_file(self.life.resources.storage, name, mode)

    # -- the end ----------------------------------------------------------------------------------

    def finish(self) -> None:
        """The training is over: save its last state, wait until that is committed, and mark the run finished.

        `@autoresume` calls it when the function returns. Every rank must come here. When it returns the last checkpoint
        is durable; a second call does nothing. Raises StorageFailed where it could not be saved, UsageError without
        `restore`; leaves (SystemExit) if the run has to stop before all ranks are here.
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
        """End this life without saving; `how` is interrupted, failed, or ended (left by the script before its end),
        `why` a sentence for `autoresume history`. Waits for what is being persisted. Mostly called by the run itself.
        """
        global _current
        if not self.life.over:
            self.life.close(how, why)
        if _current is self:
            _current = None
