"""The `Run` handle: what a training script talks to.

Law: a step boundary is where `step` is called; everything that autoresume does to a script happens
there, at `restore`, or at the script's end. What is in the run's own state (counters, positions,
generators) is restored last, so that nothing that restoring does shows in it.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from autoresume.errors import StateError, UsageError
from autoresume.failpoints import reach
from autoresume.format import names
from autoresume.format.names import CheckpointName
from autoresume.handoff.fence import Order
from autoresume.loggers.journal import Journal
from autoresume.loggers.publisher import Publisher
from autoresume.loops import ResumableRange
from autoresume.session import Session
from autoresume.training import reduction, restore, rng
from autoresume.training.loader import (
    ForeignLoader,
    Positioned,
    RunLoader,
    StatefulRunLoader,
    end_workers,
    make_loader,
)
from autoresume.training.restore import Restored
from autoresume.training.saver import Taken
from autoresume.training.state import Namespace, adapt, replicated

log = logging.getLogger("autoresume")

_RESERVED = {"run": "the run's own counters and generators", "state": "run.state"}
_TELL_SECONDS = 10.0
"""Saves are told of at most this often; the log at level DEBUG has all."""
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

    def __init__(self, session: Session) -> None:
        global _current
        self.session = session
        self.state = Namespace()
        self.step_count = 0
        self.samples = 0
        self.is_resumed = False
        self.restored = False
        self._epoch = 0
        self._data_seed = session.seed
        self._began: dict[str, str] = {}
        self._objects: dict[str, Any] = {}
        self._promised: set[str] = set()
        self._loaders: dict[str, Positioned] = {}
        self._ranges: dict[str, ResumableRange] = {}
        self._open_ranges: list[ResumableRange] = []
        self._told_of_range = False
        self._pending: dict[str, Any] = {}
        self._pending_own: dict[str, Any] = {}
        self._rng: dict[str, Any] | None = None
        self._reductions: dict[str, reduction.ReductionOrder] = {}
        self._journal: Journal | None = None
        self._publisher: Publisher | None = None
        self._saved_step: int | None = None
        self._last_name: CheckpointName | None = None
        self._first_step_noted = False
        self._over = False
        self._told = float("-inf")
        if session.options.seed is not None:
            rng.seed(rng.mix(session.seed, session.ranks.rank) % 2**32)
        _current = self

    # -- what it is -------------------------------------------------------------------------------

    @property
    def directory(self) -> Path:
        return self.session.folder

    @property
    def id(self) -> str:
        return self.session.run_id

    @property
    def incarnation(self) -> int:
        """The number of this life of the run; 0 before `restore`."""
        return self.session.number

    @property
    def rank(self) -> int:
        return self.session.ranks.rank

    @property
    def world_size(self) -> int:
        return self.session.ranks.world_size

    @property
    def epoch(self) -> int:
        """The epoch that the training loader is in (or that `run.epochs` is at)."""
        return self._epoch

    @property
    def should_stop(self) -> bool:
        """True once a stop signal reached this rank. The run leaves by itself at the next agreed boundary;
        code between two boundaries that takes long may look here and hurry."""
        return self.session.trap.first is not None

    def seed(self, value: int) -> None:
        """Seed python, numpy and torch, as scripts do at their start; on each rank with `value` itself."""
        rng.seed(value)

    # -- what it remembers ------------------------------------------------------------------------

    def track(self, **objects: Any) -> None:
        """Make objects part of the run: anything with state_dict and load_state_dict, and generators.

        Before `restore` they are only noted. After it, an object that comes into being late is loaded
        at once. Wrappers (DDP, torch.compile) are looked through. Raises UsageError, StateError.
        """
        for name, value in objects.items():
            if name in _RESERVED:
                raise UsageError(f"run.track({name}=...): {name!r} is {_RESERVED[name]}; choose another name")
            if isinstance(value, replicated):
                self._promised.add(name)
                value = value.value
            self._objects[name] = adapt(name, value)
            if self.restored and self.is_resumed:
                if name in self._pending:
                    self._load(name)
                elif not self._first_step_noted and self.rank == 0:
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
        batches that the loop holds at a step boundary without having trained on them. `name` tells
        loaders apart if a script makes them in another order after a resume.
        """
        name = name or f"loader{len(self._loaders)}"
        made = make_loader(
            dataset,
            batch_size=batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            rank=self.rank,
            world_size=self.world_size,
            seed=self._seed_of(name),
            fetched_ahead=fetched_ahead,
            before_first=self._before_first,
            options=options,
        )
        self._own(name, made)
        return made

    def _own(self, name: str, loader: Positioned) -> None:
        if name in self._loaders:
            raise UsageError(f"two loaders are called {name!r}; give each its name")
        self._loaders[name] = loader
        state = self._pending_own.get("loaders", {}).pop(name, None)
        if state is not None:
            loader.load_state_dict(state)

    def restore(self) -> bool:
        """Join the other ranks, claim the run, and load the newest checkpoint that is valid for all.

        True if the run was resumed. Called by `batches`, `steps`, `epochs` and `range` by themselves;
        a loop of one's own calls it once, when what it tracks is built. Every rank must call it. Raises
        RunIsLive, NoValidCheckpoint (it is never started from scratch then), StateError (what doesn't fit).
        """
        if self.restored:
            return self.is_resumed
        session = self.session
        before = session.ranks.rank
        self._began = rng.fingerprints()
        found = session.begin(lambda: restore.boxes(self._objects))
        self.restored = True
        if before != session.ranks.rank:
            log.warning("the launcher's variables said rank %d, the process group says %d", before, session.ranks.rank)
        if found is not None:
            self.is_resumed = True
            self._take_over(found)
        else:
            # A script that seeds torch gets the same order of data whenever it does; every rank gets rank 0's.
            self._set_data_seed(int(session.ranks.broadcast(torch.initial_seed() % 2**63)))
            there = {name: value for name, value in self._everything().items() if not _is_meta(value)}
            self.session.saver.check(there, frozenset(self._promised))
        self.session.put_back_files(found)
        self._settle_reductions(found)
        if self._rng is not None:
            rng.put(self._rng)
        self._open_journal()
        self._say_hello(found)
        if self.session.ranks.rank == 0:
            reach("restore.done")
        return self.is_resumed

    def _take_over(self, found: Restored) -> None:
        states = dict(found.states)
        own, user_state = states.pop("run"), states.pop("state")
        missing = [name for name in self._objects if name not in states]
        if missing:
            raise StateError(
                f"the checkpoint holds no state for {', '.join(sorted(missing))}, which this script tracks; it holds "
                f"{', '.join(sorted(states)) or 'nothing else'}. Nothing was lost; track what was tracked when the "
                "checkpoint was written, or choose another run directory to start anew."
            )
        self._pending = states
        for name in [name for name in self._objects if name in states]:
            self._load(name)
        self.state.load_state_dict(user_state)
        self._set_data_seed(int(own["data_seed"]))
        self._compare_beginnings(own["began"])
        self.step_count, self.samples, self._epoch = int(own["step"]), int(own["samples"]), int(own["epoch"])
        self._pending_own = {"loaders": dict(own["loaders"]), "ranges": dict(own["ranges"])}
        for name, loader in self._loaders.items():
            state = self._pending_own["loaders"].pop(name, None)
            if state is not None:
                loader.load_state_dict(state)
        self._saved_step = self.step_count
        if found.exact:
            self._rng = own["rng"]
        else:
            rng.seed(rng.mix(self.session.seed, self.rank, self.step_count) % 2**32)
            log.warning("rank %d is new since the checkpoint: its generators are seeded anew", self.rank)

    def _compare_beginnings(self, before: dict[str, str]) -> None:
        """What a script builds from random numbers before it restores is the same only if it seeds them."""
        differ = [name for name, value in self._began.items() if before.get(name, value) != value]
        if differ and self.rank == 0:
            log.warning(
                "the random numbers of %s stand elsewhere than at this point of the run's first start: this script "
                "does not seed them. A split or data set that it draws at its start is another one each time, which no "
                "checkpoint mends. Seed at the start, e.g. run.seed(0) or the option seed.",
                " and ".join(differ),
            )
        self._began = before

    def _set_data_seed(self, seed: int) -> None:
        self._data_seed = seed
        for name, loader in self._loaders.items():
            loader.reseed(self._seed_of(name))

    def _seed_of(self, loader: str) -> int:
        return rng.mix(self._data_seed, *loader.encode())  # by name: the order of their making may change

    def _settle_reductions(self, found: Restored | None) -> None:
        """Let DDP add up gradients in the order in which it did before the interruption, bit for bit."""
        self._reductions = reduction.find(self._objects, self.world_size)
        noted: dict[str, list[int]] = found.states["run"].get("reductions", {}) if found is not None else {}
        for name, one in self._reductions.items():
            order = noted.get(name)
            ready = order is not None and len(order) == len(one.parameters) and one.can_rehearse()
            if all(self.session.ranks.gather(ready)) and order is not None:
                one.rehearse(order)
            else:
                one.watch()
                if order is not None and self.rank == 0:
                    log.warning(
                        "%s: DDP adds up the first step's gradients in another order than before, since hooks on "
                        "gradients or communication are set: the last bits may differ",
                        name,
                    )

    def _load(self, name: str) -> None:
        target = self._objects[name]
        if _is_meta(target):
            # Nothing to load into yet. Its first forward pass is the last moment to do it.
            target.register_forward_pre_hook(lambda module, _: self._load_materialised())
            return
        restore.load(name, target, self._pending.pop(name))

    def _load_materialised(self) -> None:
        for name in [name for name in self._pending if name in self._objects and not _is_meta(self._objects[name])]:
            restore.load(name, self._objects[name], self._pending.pop(name))

    def _before_first(self) -> None:
        """The first batch after a resume: whatever making iterators drew is undone."""
        if self._rng is not None:
            rng.put(self._rng)
            self._rng = None

    def _everything(self) -> dict[str, Any]:
        return {"run": _Own(self), "state": self.state, **self._objects}

    # -- loops ------------------------------------------------------------------------------------

    def batches(self, loader: Any, epochs: int | None = None, accumulate: int = 1) -> Iterator[Any]:
        """Batches from where the run stands, for all `epochs` (or for the rest of the loader's epoch).

        Each turn of the loop ends at a step boundary; with `accumulate`, every so many turns. Takes what
        `run.loader` made, and any other DataLoader or iterable.
        """
        ours = self._positioned(loader)
        self.restore()
        self._load_materialised()
        while True:
            ours.advance()
            self._epoch = epoch = ours.epoch
            if epochs is not None and epoch >= epochs:
                return
            for turn, batch in enumerate(ours.drive(), start=1):
                yield batch
                if turn % accumulate == 0:
                    self.step()
            if epochs is None:
                return

    def _positioned(self, loader: Any) -> Positioned:
        if isinstance(loader, (RunLoader, StatefulRunLoader)):
            return loader
        for known in self._loaders.values():
            if isinstance(known, ForeignLoader) and known.loader is loader:
                return known
        made = ForeignLoader(loader, self.world_size, self._before_first)
        self._own(f"loader{len(self._loaders)}", made)
        return made

    def steps(self, count: int) -> Iterator[int]:
        """Step numbers from where the run stands up to `count`; each turn ends at a step boundary."""
        self.restore()
        self._load_materialised()
        while self.step_count < count:
            self._before_first()
            yield self.step_count
            self.step()

    def range(self, *bounds: int, name: str = "range") -> Iterator[int]:
        """Python's range, that goes on at the value it was interrupted in. Turns are not step boundaries."""
        self.restore()
        made = self._ranges.get(name)
        if made is None:
            made = self._ranges[name] = ResumableRange(self._pending_own.get("ranges", {}).pop(name, None))
        return self._turns(made, bounds)

    def _turns(self, made: ResumableRange, bounds: tuple[int, ...]) -> Iterator[int]:
        if self._open_ranges:
            self._open_ranges[-1].inner.add(made)
        self._open_ranges.append(made)
        try:
            for value in made.iterate(*bounds):
                before = self.step_count
                yield value
                if self.step_count == before + 1 and not self._loaders and not self._told_of_range:
                    self._told_of_range = True
                    log.warning(
                        "each turn of run.range ends with run.step(): a turn that is interrupted there is entered "
                        "again after the resume. Use `for step in run.steps(count)`, which ends its turns by itself."
                    )
        finally:
            self._open_ranges.remove(made)

    def epochs(self, count: int) -> Iterator[int]:
        """Epochs from where the run stands up to `count`, for loops of one's own; sets `run.epoch`."""
        for epoch in self.range(count, name="epochs"):
            self._epoch = epoch
            yield epoch

    # -- the boundary -----------------------------------------------------------------------------

    def step(self, samples: int | None = None) -> None:
        """The step boundary: everything tracked is consistent now, on every rank.

        Counts the step, saves when it is time, and leaves (SystemExit) when the run has to stop: what
        follows in the script is then not reached, and the checkpoint is committed. `samples` is how many
        samples all ranks saw in the step, where no loader of ours counts them.
        """
        if not self.restored:
            raise UsageError("call run.restore() once before the first run.step(), when what it tracks is built")
        self.step_count += 1
        consumed = 0
        for loader in self._loaders.values():
            consumed += loader.commit()
        self.samples += consumed if samples is None else samples
        for reduction_order in self._reductions.values():
            reduction_order.note()
        if not self._first_step_noted:
            self._note_first_step()
        order = self.session.boundary(self.step_count)
        if order:
            self._obey(order, self.step_count)

    def _note_first_step(self) -> None:
        if self._pending:
            raise StateError(
                f"the checkpoint holds state of {', '.join(sorted(self._pending))}, which this script doesn't track: "
                "it would be lost. Track it before the first step, or choose another run directory to start anew."
            )
        self._first_step_noted = True
        self.session.note_first_step()

    def _obey(self, order: Order, step: int) -> None:
        if order in (Order.SAVE, Order.STOP) and self._saved_step != self.step_count:
            self._save(step)
        if order in (Order.STOP, Order.LEAVE):
            self._leave()

    def _save(self, step: int, epoch: int | None = None, samples: int | None = None) -> None:
        self._flush_journal()
        epoch = self._epoch if epoch is None else epoch
        samples = self.samples if samples is None else samples
        name = CheckpointName(step=step, incarnation=self.incarnation, epoch=epoch, samples=samples)
        about = {"world_size": self.world_size}
        taken = self.session.save(name, self._everything(), frozenset(self._promised), about)
        self._saved_step, self._last_name = self.step_count, name
        if self.rank == 0:
            self._tell_of(taken)

    def _tell_of(self, taken: Taken) -> None:
        now = time.monotonic()
        level = logging.INFO if now - self._told >= _TELL_SECONDS else logging.DEBUG
        if level == logging.INFO:
            self._told = now
        megabytes, milliseconds = taken.bytes / 1e6, taken.stall_seconds * 1e3
        log.log(level, "step %d: snapshot of %.1f MB in %.0f ms", taken.name.step, megabytes, milliseconds)

    def _leave(self) -> None:
        """Stop here and now: the checkpoint is committed, or, with a daemon, sealed. Raises SystemExit."""
        session, why = self.session, "asked to stop by the node daemon or another rank"
        if session.trap.first is not None:
            why = f"{session.trap.first.name} received"
        name = self._last_name
        ours = name is not None and session.node is None  # a daemon outlives us, and commits by itself
        if ours and name is not None and not session.await_commit(name, session.leave_by) and self.rank == 0:
            log.warning("checkpoint %s could not be committed in time; the one before it counts", name)
        if self.rank == 0:
            log.info("%s: stopped after step %d; start the same command again and it goes on", why, self.step_count)
        self.close("interrupted", why)
        raise SystemExit(session.exit_code)

    # -- metrics ----------------------------------------------------------------------------------

    def log(self, **values: Any) -> None:
        """Write metrics of the step in progress (`step_count` + 1): numbers, strings, one-element tensors.

        They go to metrics.jsonl and from there to the loggers. Only rank 0's are kept. They are durable
        with the next checkpoint; after a resume each step is there exactly once.
        """
        if not self.restored:
            raise UsageError("call run.restore() before run.log(): only then is it known which step comes next")
        if self._journal is not None:
            record = self._journal.append(self.step_count + 1, values)
            if self._publisher is not None:
                self._publisher.put(record)

    def _open_journal(self) -> None:
        if self.rank != 0:
            return
        self._journal = Journal(self.directory / names.JOURNAL)
        self.session.bury_previous(self._journal.cut(self.step_count))
        if self.session.options.loggers:
            self._publisher = Publisher(self.session.options.loggers)
            identities = self._publisher.open(
                self.id, self.directory.name, self.directory, self.session.identities(), self.step_count
            )
            self.session.remember_identities(identities)

    def _flush_journal(self) -> None:
        if self._journal is not None:
            self._journal.flush()

    def _say_hello(self, found: Restored | None) -> None:
        if self.rank != 0:
            return
        if found is None:
            log.info("run %s, incarnation %d: starts from scratch", self.directory, self.incarnation)
        else:
            log.info(
                "run %s, incarnation %d: goes on after step %d, from %s",
                self.directory,
                self.incarnation,
                self.step_count,
                found.manifest.checkpoint,
            )

    # -- side files -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def open(self, name: str, mode: str = "rb") -> Iterator[BinaryIO]:
        """A side file of the run, such as a script's own `best.pt`: `with run.open("best.pt", "wb") as file`.

        Written files are published when the block ends, atomically and durably; each checkpoint keeps
        them as they were, and a resume puts them back, so that they are never newer than the state.
        Write on one rank only. Raises FileNotFoundError, UsageError.
        """
        if mode not in ("rb", "wb") or not names.is_inside(name):
            raise UsageError(f"run.open({name!r}, {mode!r}): give a plain relative name, and 'rb' or 'wb'")
        storage, inside = self.session.storage, f"{names.FILES}/{name}"
        with storage.writer(inside) if mode == "wb" else open(storage.path(inside), "rb") as file:
            yield file

    # -- the end ----------------------------------------------------------------------------------

    def finish(self) -> None:
        """The training is over: save its last state, wait until that is committed, and mark the run finished.

        `@autoresume` calls it when the function returns. Every rank must come here.
        """
        if self._over:
            return
        if not self.restored:
            self.close("failed", "the script ended without run.restore()")
            raise UsageError(
                "the script ended without restoring or training: call run.restore(), or loop over run.batches"
            )
        while True:
            order, step = self.session.rest(self.step_count)
            if order is Order.NOTHING:
                break
            self._saved_step = None  # the others are further on: they need this rank's part under their step
            self._obey(order, step)
        # All have left by now. Uneven inputs: the last checkpoint is named by the rank that came furthest.
        ends = self.session.ranks.gather([self.step_count, self._epoch, self.samples])
        last = max(end[0] for end in ends)
        if self._saved_step != self.step_count or any(end != ends[0] for end in ends):
            self._save(last, epoch=ends[0][1], samples=ends[0][2])
        if self._last_name is not None and not self.session.await_commit(self._last_name):
            log.warning("the last state, %s, could not be saved", self._last_name)
        if self.rank == 0:
            log.info("run %s is finished after step %d", self.directory, self.step_count)
        self.close("finished", "the script came to its end")

    def close(self, how: str, why: str) -> None:
        """End this incarnation; `how` is finished, interrupted or failed. Waits for what is being persisted."""
        global _current
        if self._over:
            return
        self._over = True
        if self._publisher is not None:
            self._publisher.close(how == "finished")
        if self._journal is not None:
            self._journal.close()
        self.session.end(how, self.step_count, why)
        if how == "finished":
            # The script may go on with other loaders; whatever workers are left at its end, it must not wait for.
            for loader in self._loaders.values():
                loader.end()
            atexit.register(end_workers, [])
        else:
            end_workers(self._loaders.values())
        if _current is self:
            _current = None


def _is_meta(value: Any) -> bool:
    """A module that is not materialised yet."""
    if not isinstance(value, torch.nn.Module):
        return False
    return any(isinstance(item, torch.Tensor) and item.is_meta for item in value.state_dict().values())


class _Own:
    """The run's own state: counters, positions, generators. Read at a boundary; never loaded as a whole."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def state_dict(self) -> dict[str, Any]:
        run = self._run
        waiting: Mapping[str, Any] = run._pending_own
        return {
            "step": run.step_count,
            "epoch": run._epoch,
            "samples": run.samples,
            "data_seed": run._data_seed,
            "began": run._began,
            "reductions": {name: one.order for name, one in run._reductions.items() if one.order is not None},
            "loaders": {**waiting.get("loaders", {}), **{n: item.state_dict() for n, item in run._loaders.items()}},
            "ranges": {**waiting.get("ranges", {}), **{n: item.value for n, item in run._ranges.items()}},
            "rng": rng.get(),
        }


def default_directory(arguments: list[str], folder: Path) -> Path:
    """runs/<script>, with a digest of what else makes the command: arguments, and a script that lies elsewhere.

    The same command is the same run, and another script of the same name is another.
    """
    from autoresume.format.digest import digest

    stem = Path(arguments[0]).stem if arguments and arguments[0] else "interactive"
    path = folder / arguments[0] if arguments and arguments[0] else folder / stem
    elsewhere = [] if path.resolve().parent == folder.resolve() else [os.path.relpath(path.resolve(), folder.resolve())]
    rest = "\0".join([*elsewhere, *arguments[1:]])
    return folder / "runs" / (f"{stem}-{digest(rest.encode())[:8]}" if rest else stem)


def configure_logging() -> None:
    """Say what happens on standard error, unless the script has set up logging by itself."""
    logger = logging.getLogger("autoresume")
    if logger.handlers or logging.getLogger().handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    rank = os.environ.get("RANK", "0")
    prefix = "autoresume" if rank == "0" else f"autoresume[{rank}]"
    handler.setFormatter(logging.Formatter(f"{prefix}: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
