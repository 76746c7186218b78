"""Choosing checkpoints, keeping the best of them, and tags."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoresume.checkpoint import tags
from autoresume.checkpoint.retain import Committed, Keep, superfluous
from autoresume.checkpoint.select import Best, direction, select
from autoresume.errors import UsageError
from autoresume.format.names import CheckpointName
from autoresume.format.part import Labels
from autoresume.storage.local import LocalStorage


def committed(step: int, *with_tags: str, incarnation: int = 1, **metrics: float) -> Committed:
    name = CheckpointName(step=step, incarnation=incarnation, epoch=step // 10, samples=step * 4)
    return Committed(name, float(step), Labels(metrics, with_tags))


HISTORY = [
    committed(5, loss=3.0),
    committed(10, loss=1.0, accuracy=0.5),
    committed(15, "release", loss=1.0, accuracy=0.9),
    committed(20, loss=2.0, accuracy=0.9),
]


@pytest.mark.parametrize(
    ("selector", "step"),
    [
        ("latest", 20),
        ("best.loss", 10),
        ("best.accuracy", 15),
        ("best.loss:max", 5),
        ("E1", 15),
        ("U15", 15),
        ("S40", 10),
        ("E1_U10", 10),
        ("10", 10),
        ("release", 15),
        ("E0_U5_S20-0001", 5),
    ],
)
def test_each_word_means_one_checkpoint(selector: str, step: int) -> None:
    """By place, by metric (the earlier of equals), by tag, by name."""
    assert select(selector, HISTORY).name.step == step


def test_best_is_what_the_run_calls_so() -> None:
    """`best` needs the run's word, and takes it; the metric named there has its direction."""
    assert select("best", HISTORY, Best("accuracy", False)).name.step == 10
    assert select("best.accuracy", HISTORY, Best("accuracy", False)).name.step == 10
    with pytest.raises(UsageError, match=r"'best' by which metric.*they have accuracy, loss"):
        select("best", HISTORY)


@pytest.mark.parametrize("selector", ["E7", "U11", "nothing", "best.draw:min", "E1_U5"])
def test_what_is_not_there_is_said_with_what_is(selector: str) -> None:
    """No word is ever taken for something near it."""
    with pytest.raises(UsageError, match="in there"):
        select(selector, HISTORY)
    with pytest.raises(UsageError, match="no committed checkpoint"):
        select(selector, [])


@pytest.mark.parametrize(
    ("metric", "highest"), [("val_loss", False), ("Top1", True), ("eval/accuracy", True), ("x:max", True)]
)
def test_a_metrics_name_tells_its_direction(metric: str, highest: bool) -> None:
    """Losses are better low, accuracies high; other names need a word."""
    assert direction(metric).highest is highest
    with pytest.raises(UsageError, match="lowest or the highest"):
        direction("temperature")


def test_the_best_and_the_tagged_stay() -> None:
    """Beside the last ones: the best by value, equal values once (the earliest), and whatever has a tag."""
    assert [name.step for name in superfluous(HISTORY, Keep(last=1, best=1, metric="loss"))] == [5]
    assert [name.step for name in superfluous(HISTORY, Keep(last=1, best=2, metric="accuracy", highest=True))] == [5]
    assert [name.step for name in superfluous(HISTORY, Keep(last=1))] == [5, 10]


@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False, width=16), min_size=1, max_size=8),
    st.integers(1, 3),
    st.booleans(),
)
def test_no_better_value_is_ever_deleted(values: list[float], best: int, highest: bool) -> None:
    """Whatever is deleted, so many better values are kept; a history with deletions keeps the same ones."""
    history = [committed(step, metric=value) for step, value in enumerate(values)]
    keep = Keep(1, best=best, metric="metric", highest=highest)
    gone = set(superfluous(history, keep))
    kept = [one for one in history if one.name not in gone]
    sign = -1 if highest else 1
    for one in (one for one in history if one.name in gone):
        value = sign * one.labels.metrics["metric"]
        better = {sign * other.labels.metrics["metric"] for other in kept}
        as_good = {sign * other for other in values if sign * other <= value}
        assert sum(other <= value for other in better) >= min(best, len(as_good))
    assert superfluous(kept, keep) == []


def test_tags_are_given_moved_and_taken(tmp_path) -> None:
    """A tag is a file of its own: a later one of the same name moves it; foreign files are no tags."""
    storage = LocalStorage(tmp_path)
    tags.add_tag(storage, HISTORY[0].name, "good")
    tags.add_tag(storage, HISTORY[1].name, "good")
    tags.add_tag(storage, HISTORY[1].name, "task=3")
    (tmp_path / "tags" / "latest.json").write_text("{}")
    (tmp_path / "tags" / "torn.json").write_text("{")
    assert tags.given_tags(storage) == {str(HISTORY[1].name): ("good", "task=3")}
    assert tags.remove_tag(storage, "good")
    assert not tags.remove_tag(storage, "good")
    for word in ("latest", "best", "best.loss", "E3", "U1_S2", "12", "../x", "", "a b"):
        with pytest.raises(UsageError):
            tags.check_tag(word)
