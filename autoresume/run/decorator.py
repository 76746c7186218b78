"""`@autoresume` and `start()`: the two ways into a run.

Law: the wrapped function sees a run that is open and restores when it asks; it ends in exactly one of:
finished (it returned, or called `run.finish()`), interrupted (exit code 75), failed (its own exception,
unchanged), ended (it left by sys.exit(0) before its end: unfinished, with its own exit code).
"""

from __future__ import annotations

import atexit
import functools
import inspect
import logging
import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, overload

from autoresume.config.command_line import configure_logging, default_run_dir, take_restore_arguments
from autoresume.config.options import load_options
from autoresume.drill import recorder
from autoresume.errors import AutoresumeError, UsageError
from autoresume.format.digest import signing_key
from autoresume.restore.beginning import check_beginning, run_folder_of
from autoresume.run.handle import Run
from autoresume.run.life_record import finished_life
from autoresume.run.resources import Resources

log = logging.getLogger("autoresume")

F = TypeVar("F", bound=Callable[..., Any])

if recorder.VARIABLE in os.environ:
    recorder.freeze_clock()

_LAUNCH_FOLDER = Path.cwd()
"""Where the script was started: hydra and others change the directory before they call it."""


@overload
def autoresume(function: F, /) -> F: ...


@overload
def autoresume(**options: Any) -> Callable[[F], F]: ...


def autoresume(function: Any = None, /, **options: Any) -> Any:
    """Make a training `function` preemption-proof: `@autoresume`, or with `options`, `@autoresume(keep=5)`.

    The function gets the run as its first argument if it takes one called `run`, or annotated `Run`; else it asks
    `autoresume.current()`. When the call returns, the run is finished, and its last state durable. It raises SystemExit
    when the run is interrupted, and with code 1, and a message, for an error of autoresume's; the script's own errors
    pass through. It returns None, with a message, when the run is finished already.
    """
    if function is not None and not callable(function):
        raise UsageError("use it as @autoresume, or with options by name, e.g. @autoresume(save_every='10 minutes')")
    if function is None:
        return lambda decorated: _wrap(decorated, options)
    return _wrap(function, {})


def _wrap(function: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    takes_run = _takes_run(function)
    try:
        take_restore_arguments()  # before the script looks at its command line
    except AutoresumeError as error:
        configure_logging()
        _exit_with_message(error)

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        run = _open_run(options)
        if run is None:
            return None
        try:
            result = function(run, *args, **kwargs) if takes_run else function(*args, **kwargs)
            run.finish()
            return result
        except SystemExit as error:
            _record_exit(run, error)
            raise
        except AutoresumeError as error:
            run.close("failed", str(error))
            _exit_with_message(error)
        except BaseException as error:
            _record_exception(run, error)
            raise

    return wrapped


def start(**options: Any) -> Run:
    """Open the run of a script that has no main function, with `options`; its state lives in module globals.

    The run is finished by `run.finish()`. A script that ends without it, however it ends, is not finished, and goes on
    when it is started again. Leaves (SystemExit) with exit code 0 and a message when the run is finished already, and
    with 1 for an error of autoresume's.
    """
    run = _open_run(options)
    if run is None:
        raise SystemExit(0)
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if isinstance(error, AutoresumeError):
            run.close("failed", str(error))
            log.error("%s", error)
            return
        try:
            _record_exception(run, error)
        except SystemExit as interrupted:
            # An excepthook can't change the exit code by raising.
            sys.stderr.flush()
            os._exit(int(interrupted.code or 0))
        previous(kind, error, trace)

    sys.excepthook = hook
    atexit.register(_record_exit, run, None)
    return run


def _refuse_import_by_a_worker() -> None:
    """Raises UsageError in a process that multiprocessing has spawned, while it imports the script again."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise UsageError(
            "this process was spawned (as a data worker, say), and imports the script again, which would train once "
            "more in it. Guard what starts the training: `if __name__ == '__main__': main()`; or let workers be "
            "forked: multiprocessing_context='fork'."
        )


def _open_run(options: dict[str, Any]) -> Run | None:
    configure_logging()
    try:
        _refuse_import_by_a_worker()
        signing_key()
        loaded = load_options(options, folder=_LAUNCH_FOLDER, restore=take_restore_arguments())
        default = default_run_dir(sys.argv, _LAUNCH_FOLDER, loaded.restore)
        folder = run_folder_of(loaded, default, _LAUNCH_FOLDER)
        check_beginning(loaded, folder, _LAUNCH_FOLDER)
        resources = Resources(loaded, folder, _LAUNCH_FOLDER)
    except AutoresumeError as error:
        _exit_with_message(error)
        raise
    record = finished_life(resources.storage, loaded)
    if record is not None and record.ended is not None:
        resources.trap.restore()
        if resources.ranks.rank == 0:
            log.info(
                "the run in %s is finished: it ended after step %s. To train on, for more epochs, say, start the same "
                "command with AUTORESUME_RESTORE_MODE=continue in its environment, or `autoresume run` or `sbatch` "
                "with --restore.mode continue; to start a new one, give another run_dir (in the decorator, or "
                "AUTORESUME_RUN_DIR), or move the folder away.",
                resources.folder,
                record.ended["step"],
            )
        return None
    resources.init_process_group()
    return Run(resources)


def _exit_with_message(error: AutoresumeError) -> None:
    """A clear message in place of a traceback. Raises SystemExit."""
    log.error("%s", error)
    raise SystemExit(1) from error


def _record_exception(run: Run, error: BaseException) -> None:
    """Record an exception that ended the script. Raises SystemExit where a stop signal was its cause."""
    if run.should_stop and not isinstance(error, KeyboardInterrupt):
        # A signal that reached the whole process tree kills data workers, and torch raises in the rank.
        why = f"{type(error).__name__} after {run.life.resources.trap.first!r}: {error}"
        log.warning(
            "stopped by a signal in the middle of step %d (%s); the last checkpoint counts", run.step_count + 1, why
        )
        code = run.life.resources.exit_code
        run.close("interrupted", why)
        raise SystemExit(code) from error
    run.close("failed", f"{type(error).__name__}: {error}")


def _record_exit(run: Run, error: SystemExit | None) -> None:
    """Record that the script left by itself before its end. It is not finished: the record says so, not the exit code,
    which is the script's own. Raises SystemExit where a stop signal was the cause."""
    if run.over:
        return
    step = f"after step {run.step_count}"
    if error is not None and error.code not in (None, 0):
        run.close("failed", f"SystemExit({error.code!r})")
    elif run.should_stop:
        # A handler of the script's own that leaves by sys.exit(0): for whoever started it, that is no success.
        why = f"the script left by itself {step}, after {run.life.resources.trap.first!r}"
        log.warning("%s; the last checkpoint counts", why)
        code = run.life.resources.exit_code
        run.close("interrupted", why)
        if error is not None:
            raise SystemExit(code) from error
    else:
        why = f"the script left by itself {step}, without run.finish()"
        log.warning(
            "%s: it is unfinished, and goes on from its last checkpoint when it is started again. If the training is "
            "over at that place, call run.finish() there.",
            why,
        )
        run.close("ended", why)


def _takes_run(function: Callable[..., Any]) -> bool:
    for parameter in list(inspect.signature(function).parameters.values())[:1]:
        return parameter.name == "run" or parameter.annotation in (Run, "Run", "autoresume.Run")
    return False
