"""The options of a run: from the decorator, a YAML file, and the environment, in rising order of precedence.

Law: every option has a default that is right for nearly all, a line here and in the docs. An unknown
or misspelt one is an error that names the nearest.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from autoresume.checkpoint.retain import Keep
from autoresume.checkpoint.select import Best, direction
from autoresume.config.restore_request import RestoreRequest, from_environment, merge_request
from autoresume.errors import UsageError
from autoresume.handoff.signals import parse_signals

DEFAULT_FILE = "autoresume.yaml"
VARIABLES = {
    "CONFIG": "A file with options, in place of `autoresume.yaml` in the folder where the script is started.",
    "MEMORY": "The folder in memory where snapshots are held. Default: /dev/shm, or where temporary files lie.",
    "SIGNING_KEY": "A file with the key that signs checkpoints, of 16 to 64 bytes, that nobody else may read.",
}
"""What users may set beside the options."""
_INTERNAL = {*VARIABLES, "NODE_FOLDER", "NODES", "ROUND", "FAILPOINT", "SUCCESSOR", "JOB_END", "DRILL"}
"""No options."""
_UNITS = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60),
    **dict.fromkeys(("h", "hour", "hours"), 3600),
    **dict.fromkeys(("d", "day", "days"), 86400),
}
_NOTHING = RestoreRequest()
_OPTIONAL = {"run_dir", "keep_every", "keep_best", "seed", "stage", "backend", "profile"}
_BEST = re.compile(r"\s*(?:(\d+)\s+)?(?:(lowest|highest)\s+)?(\S+)\s*")


@dataclass(frozen=True)
class Options:
    """What can be set. `docs/options.md` says it at length."""

    run_dir: str | None = None
    """Where the run lives. Default: `runs/<script>`, with a short digest of the arguments, if there are any, and of the
    script's folder, if it is another one."""
    save_every: str | int = "auto"
    """"auto" (from the measured cost of a save), "500 steps", "10 minutes", or a number of steps."""
    keep: int = 3
    """How many of the last checkpoints stay."""
    keep_every: str | int | None = None
    """Keep one for ever each "1000 steps" or "2 hours"."""
    keep_best: str | None = None
    """Keep the best by a metric, too: "val_loss", "highest accuracy", "3 lowest val_loss"; `best` selects the first."""
    restore: RestoreRequest = _NOTHING
    """What a new run begins with, e.g. {"mode": "finetune", "from": "runs/base"}; see docs/restore.md."""
    stage: str | None = None
    """A stage of the run: a folder of its own in the run's, e.g. "pretrain"."""
    signals: str = "SIGTERM,SIGUSR1,SIGUSR2"
    """Signals that mean: save, and leave with exit code 75."""
    grace: float = 30.0
    """Seconds from such a signal until we are killed; a Slurm job learns its own."""
    seed: int | None = None
    """Seeds python, numpy and torch at each start, each rank differently; by default the script does that."""
    loggers: tuple[str, ...] = ()
    """Which loggers are fed from metrics.jsonl, e.g. ["tensorboard"]."""
    publish: str = "committed"
    """When loggers whose past can't be taken back (W&B) get a step: "committed", when a checkpoint knows it; "live"."""
    unchanged: str = "link"
    """Tensors that are as in the last checkpoint (frozen weights): "link" the file, or "write" them in each."""
    backend: str | None = None
    """Process group that autoresume makes at the start: "auto", "gloo", "nccl"; by default the script's own is used."""

    profile: int | None = None
    """How many steps of each life are recorded into traces/, with what autoresume does in them; none by default."""

    retrained: str = "warn"
    """Steps that are trained again after a crash are compared with what the life before noted of them: "warn" where
    they came out otherwise, "stop", or "off"."""

    rehearse: bool = False
    """`autoresume run` drills the first steps of a new run before it is begun. Not for the decorator: that is too
    late."""

    hang_after: str | float = "auto"
    """Seconds without a step after which ranks under a node daemon count as hanging; "auto" learns it from the run's
    own steps; "off"."""

    def __post_init__(self) -> None:
        _interval("save_every", self.save_every, allow_auto=True)
        _interval("keep_every", self.keep_every, allow_auto=False)
        parse_signals(self.signals)
        if self.keep < 1:
            raise UsageError(f"keep={self.keep}: at least 1 checkpoint is kept, since the run goes on from it")
        if self.hang_seconds is not None and not self.hang_seconds > 0:
            raise UsageError(f"hang_after={self.hang_after!r}: give 'auto', 'off', or seconds")
        if not 0 < self.grace < math.inf:
            raise UsageError(f"grace={self.grace}: give the seconds between a signal and the kill")
        if self.profile is not None and self.profile < 1:
            raise UsageError(f"profile={self.profile}: give a number of steps, at least 1, e.g. 50")
        if self.stage is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=+-]*", self.stage):
            raise UsageError(f"stage={self.stage!r}: give the name of a folder, e.g. 'pretrain'")
        _ = self.best
        if self.publish not in ("committed", "live"):
            raise UsageError(f"publish={self.publish!r}: give 'committed' or 'live'")
        if self.retrained not in ("warn", "stop", "off"):
            raise UsageError(f"retrained={self.retrained!r}: give 'warn', 'stop' or 'off'")
        if self.unchanged not in ("link", "write"):
            raise UsageError(f"unchanged={self.unchanged!r}: give 'link' or 'write'")
        if self.backend not in (None, "auto", "gloo", "nccl"):
            raise UsageError(f"backend={self.backend!r}: give 'auto', 'gloo' or 'nccl'")

    @property
    def save_steps(self) -> int | None:
        return _interval("save_every", self.save_every, allow_auto=True)[0]

    @property
    def save_seconds(self) -> float | None:
        """None where a number of steps was given; 0 for "auto"."""
        return _interval("save_every", self.save_every, allow_auto=True)[1]

    @property
    def hang_seconds(self) -> float | None:
        """None for "auto"."""
        if self.hang_after in ("auto", "off"):
            return None if self.hang_after == "auto" else 1e12
        if isinstance(self.hang_after, (int, float)):
            return float(self.hang_after)
        steps, seconds = _interval("hang_after", self.hang_after, allow_auto=False)
        return float(steps) if steps is not None else seconds

    @property
    def retention(self) -> Keep:
        steps, seconds = _interval("keep_every", self.keep_every, allow_auto=False)
        if self.best is None:
            return Keep(self.keep, steps, seconds)
        return Keep(self.keep, steps, seconds, self._best_count, self.best.metric, self.best.highest)

    @property
    def best(self) -> Best | None:
        """What the run calls its best checkpoint. Raises UsageError."""
        if self.keep_best is None:
            return None
        match = _BEST.fullmatch(self.keep_best)
        if match is None or match.group(1) == "0":
            raise UsageError(f"keep_best={self.keep_best!r}: give a metric, e.g. 'val_loss' or '3 highest accuracy'")
        try:
            return Best(match.group(3), match.group(2) == "highest") if match.group(2) else direction(match.group(3))
        except UsageError:
            raise UsageError(
                f"keep_best={self.keep_best!r}: is the lowest or the highest {match.group(3)} the best? Give e.g. "
                f"keep_best='1 lowest {match.group(3)}'"
            ) from None

    @property
    def _best_count(self) -> int:
        match = _BEST.fullmatch(self.keep_best or "")
        return int(match.group(1) or 1) if match else 0

    @property
    def stop_signals(self) -> tuple[signal.Signals, ...]:
        return parse_signals(self.signals)


def _interval(name: str, value: str | int | None, allow_auto: bool) -> tuple[int | None, float | None]:
    """(steps, seconds), one of them. Raises UsageError."""
    if value is None:
        return None, None
    if allow_auto and value == "auto":
        return None, 0.0
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", str(value).lower())
    if match:
        number, unit = float(match.group(1)), match.group(2)
        if unit in ("", "step", "steps") and number >= 1 and number == int(number):
            return int(number), None
        if unit in _UNITS and number > 0:
            return None, number * _UNITS[unit]
    raise UsageError(f"{name}={value!r}: give a number of steps, '500 steps', '10 minutes' or '2 hours'")


def load_options(
    given: Mapping[str, Any],
    environment: Mapping[str, str] = os.environ,
    folder: Path | None = None,
    restore: Mapping[str, str] | None = None,
) -> Options:
    """Options from `given`, then the YAML file, then AUTORESUME_* variables, then what the command line says about
    `restore`. Raises UsageError."""
    folder = folder or Path.cwd()
    merged: dict[str, Any] = {}
    _merge(merged, given, "the decorator")
    if merged.get("rehearse"):
        raise UsageError(
            "rehearse=True in the decorator comes too late: the run has begun. Give --rehearse to autoresume run or "
            "sbatch, or rehearse: true in autoresume.yaml"
        )
    path = Path(environment["AUTORESUME_CONFIG"]) if "AUTORESUME_CONFIG" in environment else folder / DEFAULT_FILE
    if path.exists():
        _merge(merged, _read_yaml(path), str(path))
    elif "AUTORESUME_CONFIG" in environment:
        raise UsageError(f"AUTORESUME_CONFIG names {path}, which does not exist")
    found = {
        key.removeprefix("AUTORESUME_").lower(): value
        for key, value in environment.items()
        if key.startswith("AUTORESUME_")
        and key.removeprefix("AUTORESUME_") not in _INTERNAL
        and not key.startswith("AUTORESUME_RESTORE_")
    }
    _merge(merged, found, "the environment", prefix="AUTORESUME_")
    _merge(merged, {"restore": from_environment(environment)}, "the environment")
    _merge(merged, {"restore": restore or {}}, "the command line")
    merged["restore"] = RestoreRequest(**(merged.get("restore") or {}))
    return Options(**merged)


def _read_yaml(path: Path) -> Mapping[str, Any]:
    import yaml

    try:
        value = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not YAML: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} must hold options by name, e.g. 'save_every: 10 minutes'")
    return value


def _merge(merged: dict[str, Any], more: Mapping[str, Any], source: str, prefix: str = "") -> None:
    known = {field.name: field for field in fields(Options)}
    for name, value in more.items():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            shown = prefix + (str(name).upper() if prefix else str(name))
            hint = f"did you mean {prefix + near[0].upper() if prefix else near[0]}?" if near else ""
            raise UsageError(f"unknown option {shown} in {source}; {hint or 'known are ' + ', '.join(sorted(known))}")
        if name == "restore":
            merged[name] = merge_request(merged.get(name), value, source)
        else:
            merged[name] = _convert(name, value, source)


def _convert(name: str, value: Any, source: str) -> Any:
    try:
        if name == "loggers":
            words = value.replace(",", " ").split() if isinstance(value, str) else value
            return tuple(str(word) for word in (words or ()))
        if value is None:
            if name not in _OPTIONAL:
                raise ValueError
            return None
        if name in ("keep", "seed", "profile"):
            if isinstance(value, bool) or (isinstance(value, float) and value != int(value)):
                raise ValueError
            return int(value)
        if name == "rehearse":
            word = str(value).lower()
            if word not in ("true", "false", "1", "0", "yes", "no"):
                raise ValueError
            return word in ("true", "1", "yes")
        if name == "grace":
            return float(value)
        if name == "hang_after" and isinstance(value, (int, float)) and not isinstance(value, bool):
            return value
        if name in ("save_every", "keep_every") and isinstance(value, int) and not isinstance(value, bool):
            return value
        if not isinstance(value, (str, os.PathLike)):
            raise ValueError
        return os.fspath(value)
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"{name}={value!r} in {source} can't be read as that option") from None
