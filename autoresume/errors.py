"""Every error that autoresume raises by itself.

Law: a message says what is wrong, gives one example, says what happens next and what to do.
Nothing here imports anything of the project.
"""

from __future__ import annotations

EXIT_FINISHED = 0
"""The training came to its end, and its last state is durable."""

EXIT_INTERRUPTED = 75
"""Interrupted and resumable: sysexits.h's EX_TEMPFAIL, "try again later"."""

EXIT_HOPELESS = 70
"""From the node daemon alone: trying again would mend nothing; it has said why."""

EXIT_STOPPED = 76
"""From the node daemon alone: interrupted and resumable, but its user asked it to stop: not to be started again."""

EXIT_PORT_TAKEN = 71
"""From the launcher alone: somebody else took the port at which the nodes were to meet. Another port mends it."""


class AutoresumeError(Exception):
    """Base of all errors of autoresume."""


class UsageError(AutoresumeError):
    """The caller asked for something that can't be: an unknown option, a missing file, a wrong type."""


class StateError(AutoresumeError):
    """A tracked object can't be stored, or a stored one doesn't fit the live object."""


class NotReproduced(AutoresumeError):
    """A step that was trained again after a crash came out otherwise, and the option `retrained` says to stop then."""


class CheckpointInvalid(AutoresumeError):
    """A checkpoint, or one file of it, is not what its format says. The message is the reason."""


class NoValidCheckpoint(AutoresumeError):
    """The run has checkpoints, but none that can be restored. Nothing was started from scratch."""


class RunIsLive(AutoresumeError):
    """Another incarnation of this run is alive; two can't write to one run."""


class StaleIncarnation(AutoresumeError):
    """A newer incarnation claimed the run: this one may not write, commit, prune or log any more."""


class StorageFull(AutoresumeError):
    """Not enough free space for a checkpoint. Nothing that exists was deleted."""


class StorageFailed(AutoresumeError):
    """A checkpoint could not be written for another reason than space. Nothing that exists was deleted."""


class AgreementError(AutoresumeError):
    """The ranks could not agree, for example because one of them is gone."""
