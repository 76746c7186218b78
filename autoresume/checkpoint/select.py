"""Choosing a checkpoint by what a person writes: `latest`, `best`, `best.val_loss`, `E10`, `U1200`, a tag, a name.

Law: pure. What is chosen, and why, is told; nothing, or several, is an error that lists what there is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from autoresume.checkpoint.retain import Committed, best_first
from autoresume.errors import UsageError
from autoresume.format.names import CheckpointName

LATEST = "latest"
_PLACE = re.compile(r"(?:[EUS]\d+)(?:_[EUS]\d+)*", re.ASCII)
_LISTED = 8
_LOWER_IS_BETTER = (
    "loss",
    "error",
    "err",
    "perplexity",
    "ppl",
    "mae",
    "mse",
    "rmse",
    "fid",
    "wer",
    "cer",
    "nll",
    "bpb",
)
_HIGHER_IS_BETTER = ("acc", "accuracy", "f1", "auc", "auroc", "precision", "recall", "bleu", "rouge", "map", "miou",
                     "iou", "psnr", "ssim", "reward", "return", "score", "r2", "top1", "top5")  # fmt: skip


@dataclass(frozen=True)
class Best:
    """A metric, and whether its highest or its lowest value is the best one."""

    metric: str
    highest: bool

    @property
    def words(self) -> str:
        return f"{'highest' if self.highest else 'lowest'} {self.metric}"


@dataclass(frozen=True)
class Chosen:
    """What was chosen, and a phrase that says why."""

    name: CheckpointName
    why: str


def select(selector: str, committed: Sequence[Committed], best: Best | None = None, where: str = "there") -> Chosen:
    """The checkpoint that `selector` means, of the committed ones. `best`: what the run calls its best.

    `best.<metric>` may end in `:min` or `:max`. A place names any of epoch, update (step) and samples, `E3`, `U1200` or
    `E3_U1200`; the newest that has all of them is taken. Raises UsageError.
    """
    newest_first = sorted(committed, key=lambda one: one.name, reverse=True)
    if not newest_first:
        raise UsageError(f"{selector!r}: there is no committed checkpoint in {where}")
    if selector == LATEST:
        return Chosen(newest_first[0].name, "the latest")
    if selector == "best" or selector.startswith("best."):
        return _best(selector, newest_first, best, where)
    for one in newest_first:
        if str(one.name) == selector:
            return Chosen(one.name, "by its name")
    tagged = [one for one in newest_first if selector in one.labels.tags]
    if tagged:
        return Chosen(tagged[0].name, f"the newest with the tag {selector!r}")
    place = f"U{selector}" if selector.isdecimal() else selector
    if _PLACE.fullmatch(place):
        found = [one for one in newest_first if _is_at(one.name, place)]
        if found:
            several = f", of {len(found)}" if len(found) > 1 else ""
            return Chosen(found[0].name, f"the newest at {place}{several}")
    raise UsageError(f"there is no checkpoint {selector!r} in {where}; there are {_listed(newest_first)}. {_HINT}")


_HINT = "Give latest, best, best.<metric>, a place such as E3, U1200 or S38400, a tag, or a whole name."


def _best(selector: str, newest_first: Sequence[Committed], best: Best | None, where: str) -> Chosen:
    metrics = sorted({name for one in newest_first for name in one.labels.metrics})
    known = f"they have {', '.join(metrics)}" if metrics else "they have none: none was logged before they were saved"
    if selector == "best":
        if best is None:
            raise UsageError(
                f"'best' by which metric? The run in {where} names none (option keep_best); give best.<metric>: {known}"
            )
    else:
        best = direction(selector.removeprefix("best."), best, metrics)
    found = best_first(newest_first, best.metric, best.highest)
    if not found:
        raise UsageError(f"no checkpoint in {where} has the metric {best.metric!r}; {known}")
    return Chosen(found[0].name, f"{best.words} = {found[0].labels.metrics[best.metric]:g}")


def direction(text: str, best: Best | None = None, metrics: Sequence[str] = ()) -> Best:
    """What `<metric>`, `<metric>:min` or `<metric>:max` means. Raises UsageError where its name doesn't tell."""
    name, _, word = text.rpartition(":")
    if word in ("min", "max") and name and text not in metrics:
        return Best(name, word == "max")
    if best is not None and best.metric == text:
        return best
    words = set(re.split(r"[^a-z0-9]+", text.lower()))
    lower, higher = bool(words.intersection(_LOWER_IS_BETTER)), bool(words.intersection(_HIGHER_IS_BETTER))
    if lower == higher:
        raise UsageError(f"is the best {text} the lowest or the highest? Give best.{text}:min or best.{text}:max")
    return Best(text, higher)


def _is_at(name: CheckpointName, place: str) -> bool:
    there = {"E": name.epoch, "U": name.step, "S": name.samples}
    return all(there[word[0]] == int(word[1:]) for word in place.split("_"))


def _listed(newest_first: Sequence[Committed]) -> str:
    def one(committed: Committed) -> str:
        tags = f" ({', '.join(committed.labels.tags)})" if committed.labels.tags else ""
        return f"{committed.name}{tags}"

    more = f" and {len(newest_first) - _LISTED} more" if len(newest_first) > _LISTED else ""
    return ", ".join(map(one, newest_first[:_LISTED])) + more
