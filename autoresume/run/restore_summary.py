"""What a start took over, told in the log and kept in reports/NNNN.json.

Law: only rank 0 tells; what is another for other ranks is gathered from them. Every rank must call `summarise`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import torch

from autoresume.format import names
from autoresume.load.read_checkpoint import Restored
from autoresume.restore.beginning import Beginning
from autoresume.restore.changes import compare_facts
from autoresume.restore.report import RestoreReport
from autoresume.run.resources import Resources

log = logging.getLogger("autoresume")


def log_beginning(resources: Resources, found: Restored | None, begin: Beginning | None) -> None:
    """The first line that a life says."""
    if resources.ranks.rank != 0:
        return
    if begin is not None:
        log.info("run %s, incarnation %d: %s", resources.folder, resources.number, begin.description)
    elif found is None:
        log.info("run %s, incarnation %d: starts from scratch", resources.folder, resources.number)
    else:
        checkpoint = found.manifest.checkpoint
        message = "run %s, incarnation %d: goes on after step %d, from %s"
        log.info(message, resources.folder, resources.number, checkpoint.step, checkpoint)


def warn_of_unseeded(differ: list[str]) -> None:
    """`differ` are generators that stand elsewhere than when the run's first life restored."""
    log.warning(
        "the random numbers of %s stand elsewhere than at this point of the run's first start: this script "
        "does not seed them. A split or data set that it draws at its start is another one each time, which no "
        "checkpoint mends. Seed at the start, e.g. run.seed(0) or the option seed.",
        " and ".join(differ),
    )


class RestoreSummary:
    """Of one life. `report` is filled while things are loaded."""

    def __init__(self, resources: Resources, report: RestoreReport) -> None:
        self._resources, self._report = resources, report

    def summarise(
        self, found: Restored | None, begin: Beginning | None, facts: Mapping[str, Any], objects: Mapping[str, Any]
    ) -> list[str]:
        """Tell and keep what this start took over; what has changed since, in words. `facts` are this start's."""
        if found is None and begin is None:
            return []
        report, ranks = self._report, self._resources.ranks
        lists = ranks.gather(report.lists())
        if ranks.rank == 0:
            self._tell(found, begin, facts, objects, lists)
        changes: list[str] = ranks.broadcast([str(change) for change in report.changes])
        return changes

    def _tell(
        self,
        found: Restored | None,
        begin: Beginning | None,
        facts: Mapping[str, Any],
        objects: Mapping[str, Any],
        lists: list[dict[str, list[str]]],
    ) -> None:
        report = self._report
        before: Mapping[str, Any] = begin.about if begin is not None else {}
        report.origin = begin.description if begin is not None else ""
        if found is not None:
            before = found.about
            report.origin = report.origin or f"{found.manifest.checkpoint} of this run"
        report.changes = compare_facts(before, facts)
        report.notes += self._restored_options(objects)
        report.log()
        self._write(lists)

    def note_given_up(self) -> None:
        """Rank 0: some of what the checkpoint holds was never asked for."""
        log.warning("not taken over: %s", ", ".join(self._report.unused))
        self._write([self._report.lists()])

    def _write(self, ranks: list[dict[str, list[str]]]) -> None:
        text = json.dumps(self._report.to_json(ranks), indent=1)
        self._resources.storage.write(names.report_file(self._resources.number), text.encode() + b"\n")

    def _restored_options(self, objects: Mapping[str, Any]) -> list[str]:
        """What the script sets otherwise than before, where the restored value counts all the same."""
        report, found = self._report, []
        for change in report.changes:
            kind, _, rest = change.what.partition(".")
            name, _, _ = rest.rpartition(".")
            is_optimizer = isinstance(objects.get(name), torch.optim.Optimizer)
            if kind == "objects" and is_optimizer and name in report.restored and rest not in report.reset:
                found.append(f"the restored {rest} counts, not the script's {change.now}; else: restore.fresh={rest}")
        return found
