"""Data sets that a run can make again: what makes them is the script's, their arguments are the run's.

Law: the arguments of the first start count, since the order of the data, and how far it was consumed, are of those.
They are known before a checkpoint is chosen, because loaders need their data sets before that. Nothing is imported by a
stored name: the script, or whoever asks, says what is called.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from autoresume.checkpoint.discover import load_part
from autoresume.errors import StateError, UsageError
from autoresume.format import tree
from autoresume.restore import origins
from autoresume.run.resources import Resources

log = logging.getLogger("autoresume")

T = TypeVar("T")


class Datasets:
    """`noted` is filled with what was made, and goes into each checkpoint."""

    def __init__(self, resources: Resources, noted: dict[str, Any]) -> None:
        self._resources = resources
        self._noted = noted

    def make(self, name: str, make: Callable[..., T], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> T:
        """What `make` makes of the arguments that the run's first start gave it. Raises UsageError, StateError."""
        if name in self._noted:
            raise UsageError(f"two data sets are called {name!r}; give each its name: run.dataset(..., name='...')")
        given = {"made_by": _called(make), "arguments": encode(name, args, kwargs)}
        before = self._resources.run_file.datasets().get(name)
        try:
            return self._make(name, make, args, kwargs, before, given)
        finally:
            if self._resources.number:
                self.store()

    def _make(
        self,
        name: str,
        make: Callable[..., T],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        before: dict[str, Any] | None,
        given: dict[str, Any],
    ) -> T:
        if before is None or before == given or self._resources.options.restore.is_fresh(name):
            self._noted[name] = given
            return make(*args, **kwargs)
        if before["made_by"] != given["made_by"]:
            raise StateError(
                f"the data set {name!r} was made by {before['made_by']}, and would now be by {given['made_by']}; take "
                f"the new one with restore.fresh={name!r}, or choose another run directory"
            )
        log.warning(
            "the data set %r is made with the arguments of this run's first start, %s, and not with %s; take the new "
            "ones with restore.fresh=%s",
            name,
            before["arguments"],
            given["arguments"],
            name,
        )
        self._noted[name] = before
        return rebuild(make, before)

    def store(self) -> None:
        """Rank 0, once the run is claimed: the next start finds them."""
        if self._resources.ranks.rank == 0 and self._noted:
            self._resources.run_file.change(datasets={**self._resources.run_file.datasets(), **self._noted})


def rebuild_dataset(source: str | Path, make: Callable[..., T], name: str | None = None, select: str = "latest") -> T:
    """The data set that a run made with `run.dataset(make, ...)`, made again from a checkpoint alone.

    `source` and `select` are as in `restore`: a run's folder or a checkpoint's. `make` is called with the arguments
    that the checkpoint holds for `name`, by default what `make` is called. Raises UsageError, CheckpointInvalid.
    """
    place = origins.select_checkpoint(origins.find_origin(str(source), Path.cwd()), select)
    part = load_part(place.storage, place.manifest(), 0)
    noted = dict(part.about.get("datasets") or {})
    name = name or getattr(make, "__name__", type(make).__name__)
    if name not in noted:
        raise UsageError(f"{place.name} knows no data set {name!r}; it knows {', '.join(noted) or 'none'}")
    if noted[name]["made_by"] != _called(make):
        log.warning("the data set %r was made by %s, and now is by %s", name, noted[name]["made_by"], _called(make))
    return rebuild(make, noted[name])


def rebuild(make: Callable[..., T], noted: Mapping[str, Any]) -> T:
    """Call `make` with the arguments that were noted."""
    args, kwargs = tree.decode(noted["arguments"], _refuse)
    return make(*args, **kwargs)


def encode(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The arguments as JSON. Raises StateError for what is no plain value."""

    try:
        return tree.encode([list(args), dict(kwargs)], lambda key, value: None, "arguments")
    except StateError as error:
        raise StateError(
            f"run.dataset({name!r}): arguments are plain values (numbers, strings, paths, lists, dicts), so that the "
            f"run can keep them: {error}"
        ) from error


def _refuse(tagged: Any) -> Any:
    raise StateError(f"the noted arguments hold something that is no plain value: {tagged}")


def _called(make: Any) -> str:
    return f"{getattr(make, '__module__', '')}.{getattr(make, '__qualname__', type(make).__name__)}".replace(
        "__main__.", ""
    )
