"""sbatch's options, as far as a command line has to be told apart from a script and its arguments.

Law: a table. Values are passed on as they are: Slurm judges them. Options that autoresume sets itself are named
with the reason.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field

from autoresume.errors import UsageError

_VALUED = frozenset(
    """
    account acctg-freq array batch bb bbf begin chdir cluster-constraint clusters comment constraint container
    container-id core-spec cores-per-socket cpu-freq cpus-per-gpu cpus-per-task deadline delay-boot dependency
    distribution error exclude export-file extra extra-node-info gid gpu-bind gpu-freq gpus gpus-per-node
    gpus-per-socket gpus-per-task gres gres-flags hint input job-name licenses mail-type mail-user mcs-label mem
    mem-bind mem-per-cpu mem-per-gpu mincpus network nodefile nodelist nodes ntasks ntasks-per-core ntasks-per-gpu
    ntasks-per-node ntasks-per-socket open-mode output partition power prefer priority profile qos reservation segment
    signal sockets-per-node switches thread-spec threads-per-core time time-min tmp tres-bind tres-per-task uid
    wait-all-nodes wckey
    """.split()  # noqa: SIM905  (a table of a hundred words reads better so)
)
_FLAGS = frozenset(
    """
    contiguous hold ignore-pbs kill-on-invalid-dep no-kill no-requeue overcommit oversubscribe quiet reboot requeue
    resv-ports spread-job stepmgr use-min-nodes verbose
    """.split()  # noqa: SIM905  (a table of a hundred words reads better so)
)
_EITHER = ("exclusive", "export", "get-user-env", "nice", "propagate")
"""Flags that take a value after an equals sign only."""
_SHORT = {
    "a": "array", "A": "account", "b": "begin", "c": "cpus-per-task", "d": "dependency", "D": "chdir", "e": "error",
    "h": "help", "H": "hold", "i": "input", "J": "job-name", "k": "no-kill", "L": "licenses",
    "M": "clusters", "m": "distribution",
    "n": "ntasks", "N": "nodes", "o": "output", "O": "overcommit", "p": "partition", "q": "qos", "Q": "quiet",
    "s": "oversubscribe", "S": "core-spec", "t": "time", "v": "verbose", "C": "constraint", "F": "nodefile",
    "w": "nodelist", "W": "wait", "x": "exclude", "G": "gpus",
}  # fmt: skip
_OURS = {
    "ntasks-per-node": "a node runs one daemon, which starts the ranks: say how many with --nproc",
    "ntasks": "a node runs one daemon, which starts the ranks: say how many with --nproc",
    "ntasks-per-gpu": "a node runs one daemon, which starts the ranks: say how many with --nproc",
    "wrap": "give the training script instead",
    "requeue": "that is always so",
    "no-requeue": "the job has to be requeued; autoresume stop and cancel end it for good",
    "open-mode": "the logs of all lives are appended",
    "parsable": "--json prints the job for programs",
    "wait": "autoresume status --watch waits",
    "test-only": "--dry-run shows the script",
}


@dataclass
class Parsed:
    """sbatch's options by their long names (True for a flag), ours, and what is left: the script and its arguments."""

    slurm: dict[str, str | bool] = field(default_factory=dict)
    ours: dict[str, list[str]] = field(default_factory=dict)
    rest: list[str] = field(default_factory=list)


def parse(words: Sequence[str], ours: dict[str, bool]) -> Parsed:
    """Split a command line. `ours` maps our own options to whether they take a value. Raises UsageError."""
    found = Parsed()
    left = list(words)
    while left:
        word = left.pop(0)
        if word == "--":
            break
        if not word.startswith("-") or word == "-":
            left.insert(0, word)
            break
        name, given, value = _split(word)
        if name in ours:
            found.ours.setdefault(name, []).append(_value(name, ours[name], given, value, left))
        elif name in _OURS:
            raise UsageError(f"--{name} can't be given to autoresume sbatch: {_OURS[name]}")
        elif name in _VALUED:
            found.slurm[name] = _value(name, True, given, value, left)
        elif name in _FLAGS or name in _EITHER:
            if given and name in _FLAGS:
                raise UsageError(f"--{name} takes no value")
            found.slurm[name] = value if given else True
        else:
            near = difflib.get_close_matches(name, [*ours, *_VALUED, *_FLAGS, *_EITHER], n=3)
            hint = "did you mean " + " or ".join(f"--{one}" for one in near) + "?" if near else "see sbatch --help."
            raise UsageError(
                f"unknown option {word.partition('=')[0]}; {hint} Options of the script come after its name"
            )
    found.rest = left
    return found


def _split(word: str) -> tuple[str, bool, str]:
    """(long name, whether a value was attached, the value)"""
    if word.startswith("--"):
        name, equals, value = word[2:].partition("=")
        return name.replace("_", "-"), bool(equals), value
    name = _SHORT.get(word[1], word[1])
    rest = word[2:].removeprefix("=")
    return name, bool(rest), rest


def _value(name: str, takes: bool, given: bool, value: str, left: list[str]) -> str:
    if not takes:
        if given:
            raise UsageError(f"--{name} takes no value")
        return ""
    if given:
        return value
    if not left:
        raise UsageError(f"--{name} needs a value")
    return left.pop(0)
