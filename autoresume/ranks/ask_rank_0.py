"""What rank 0 alone finds out, for all ranks: its word, or its error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from autoresume.errors import AutoresumeError, NoValidCheckpoint, StorageFailed
from autoresume.ranks.agreement import Ranks


def ask_rank_0(ranks: Ranks, make: Callable[[], dict[str, Any]] | None) -> dict[str, Any]:
    """What rank 0 says, or the error that it met, raised on every rank."""
    value: dict[str, Any] = {}
    failure: BaseException | None = None
    if make is not None:
        try:
            value = make()
        except AutoresumeError as error:
            failure, value = error, {"error": str(error), "kind": type(error).__name__}
        except OSError as error:
            failure = StorageFailed(
                f"the run directory can't be used: {error}. Nothing was started or lost; once it can be written "
                "(free space, permissions), start the same command again."
            )
            value = {"error": str(failure), "kind": "StorageFailed"}
    value = ranks.broadcast(value)
    if failure is not None:
        raise failure
    if "error" in value:
        kind = NoValidCheckpoint if value["kind"] == "NoValidCheckpoint" else AutoresumeError
        raise kind(f"rank 0: {value['error']}")
    return value
