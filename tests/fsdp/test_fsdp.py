"""FSDP2 with several ranks: sharded state goes on bit for bit, and into another number of ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.real_scripts.harness import INTERRUPTED, Place, Stage

SCRIPT = str(Path(__file__).with_name("train.py"))


@pytest.mark.parametrize(
    ("kind", "ranks"), [("plain", 2), ("meta", 4), ("tensor", 4), ("mixed", 2), ("dcp", 2), ("late", 2)]
)
def test_it_goes_on_bit_for_bit(stage: Stage, kind: str, ranks: int) -> None:
    """Interrupted and resumed: the same losses, and the same full weights and optimizer state, as undisturbed."""
    stage.compare(SCRIPT, kind, nasty=["TERM@2"] if ranks == 4 else ["KILL@5"], ranks=ranks, save_every="2")


def stopped_at(place: Place, kind: str, ranks: int, nasty: str) -> dict:
    """What a run holds, in full tensors, at the step that it was stopped at."""
    ends = place.run_ranks(ranks, SCRIPT, kind, NASTY=nasty)
    assert {ended.code for ended in ends} == {INTERRUPTED}, ends[0].err
    (life,) = lives(place, 1)
    return json.loads((place.folder / f"step-{life['ended']['step']}.json").read_text())


def lives(place: Place, count: int) -> list[dict]:
    found = place.incarnations()
    assert len(found) == count
    return found


def restored(place: Place, kind: str, ranks: int, life: int) -> dict:
    """What it holds after a restore, before its next step."""
    run = f"{place.run_folder}"
    ends = place.run_ranks(ranks, SCRIPT, kind, "peek", AUTORESUME_RUN_DIR=run)
    assert {ended.code for ended in ends} == {0}, ends[0].err
    assert lives(place, life)[-1]["began"]["step"] > 0
    return json.loads((place.folder / f"restored-{life}.json").read_text())


@pytest.mark.parametrize(
    ("kind", "first", "others"),
    [
        ("plain", 4, [2, 1]),
        ("meta", 4, [2]),
        ("tensor", 4, [2]),
        ("mixed", 2, [3]),
        ("dcp", 2, [4]),
    ],
)
def test_another_number_of_ranks_holds_the_same(stage: Stage, kind: str, first: int, others: list[int]) -> None:
    """Full weights, and the full optimizer state, of each parameter: equal bit for bit on any number of ranks."""
    place = stage.place("run")
    expected = stopped_at(place, kind, first, "TERM@2")
    assert expected["slots"] > 0
    for life, ranks in enumerate(others, 2):
        assert restored(place, kind, ranks, life) == expected


def test_before_the_optimizers_first_step(stage: Stage) -> None:
    """No state is a state: an optimizer that has not stepped yet is restored without any."""
    place = stage.place("run")
    expected = stopped_at(place, "late", 2, "TERM@1")
    assert expected["slots"] == 0
    assert restored(place, "late", 4, 2) == expected


def test_replicas_store_each_shard_once(stage: Stage) -> None:
    """On a 2-D mesh the second replica's ranks store nothing of the model: what is replicated is known to be equal."""
    place = stage.place("run")
    stopped_at(place, "meta", 4, "TERM@2")
    (checkpoint,) = place.run_folder.glob("checkpoints/*")
    boxes = [
        (chunk[0], tuple(chunk[3]), tuple(chunk[4]), rank)
        for rank in range(4)
        for chunk in json.loads((checkpoint / f"parts/rank-{rank:05d}.json").read_text())["chunks"]
        if chunk[5] and 0 not in chunk[4] and chunk[0].startswith(("model/", "optimizer/"))
    ]
    assert {rank for _, _, _, rank in boxes} == {0, 1}
    assert len({box[:3] for box in boxes}) == len(boxes)
    rows = sum(box[2][0] for box in boxes if box[0] == "model/0.weight")
    assert rows == 7


def test_all_ranks_are_told_that_one_could_not_write(stage: Stage) -> None:
    """Without a daemon no rank waits for a commit that another rank's full disk has made impossible."""
    place = stage.place("run")
    ends = place.run_ranks(2, str(Path(__file__).with_name("awaiting.py")), "2012")
    assert [ended.code for ended in ends] == [0, 0], ends[0].err + ends[1].err
    for rank in range(2):
        assert json.loads((place.folder / f"told-{rank}.json").read_text()) == [True, False, False, True]


@pytest.mark.parametrize(("kind", "first", "then"), [("plain", 3, 1), ("mixed", 2, 4), ("tensor", 4, 2)])
def test_pytorchs_own_loading(stage: Stage, kind: str, first: int, then: int) -> None:
    """dcp.load fills sharded models and optimizers from our folder, on any number of ranks, and without a run."""
    place = stage.place("run")
    expected = stopped_at(place, kind, first, "TERM@2")
    (checkpoint,) = place.run_folder.glob("checkpoints/*")
    ends = place.run_ranks(then, str(Path(__file__).with_name("loading.py")), kind, str(checkpoint))
    assert {ended.code for ended in ends} == {0}, ends[0].err
    assert json.loads((place.folder / "loaded.json").read_text()) == expected
