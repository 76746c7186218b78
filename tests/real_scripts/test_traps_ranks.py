"""Traps around ranks: what is replicated and isn't, who makes the process group, who is told to stop."""

from __future__ import annotations

import sys

import pytest

from autoresume.checkpoint.discover import list_checkpoints, load_parts
from autoresume.format.manifest import Manifest
from autoresume.storage import LocalStorage
from tests import warm
from tests.real_scripts.harness import SCRIPTS, Place, Stage, assert_same, environment


@pytest.mark.parametrize("group", ["own", "backend", "none"])
def test_two_ranks(stage: Stage, group: str) -> None:
    """Two ranks go on bit for bit, batch norm statistics and dropout that differ from rank to rank included:
    with the script's own process group, with one that autoresume makes, and with no DDP at all; whether both ranks
    get the signal or one."""
    whole, _ = stage.compare("ddp.py", group, "plain", nasty=["TERM@2", "TERM@5@1", "TERM@8@0"], ranks=2)
    one, two = whole.final.values()
    assert one["mean"] != two["mean"], "the trap is not set: the statistics are equal"
    assert (one["model"] == two["model"]) is False
    assert one["torch"] != two["torch"]


@pytest.mark.parametrize("when", ["before", "between"])
def test_ranks_that_the_environment_does_not_know(stage: Stage, when: str) -> None:
    """Ranks of mp.spawn or MPI, which only the process group knows, made before the run is opened or before its loader:
    each trains on batches of its own, and goes on bit for bit."""
    whole, _ = stage.compare("late_group.py", when, nasty=["TERM@2", "KILL@4"], ranks=2, save_every="1")
    one, two = ({*ended.out.split()[1:]} for ended in whole.ended)
    assert (len(one), len(two)) == (4, 4)
    assert not one & two


@pytest.mark.parametrize(("when", "said"), [("after", "late_group.py:30"), ("seed", "seed=5")])
def test_a_process_group_that_comes_too_late(stage: Stage, when: str, said: str) -> None:
    """Where all ranks would train on the same batches, or draw the same numbers, nothing is trained: the loader is named
    by its place, and what to call first."""
    place = stage.place("run")
    for ended in place.run_ranks(2, "late_group.py", when):
        assert ended.code == 1
        assert said in ended.err
        assert "Call torch.distributed.init_process_group(...) before" in ended.err
    assert not (place.run_folder / "metrics.jsonl").exists()


def test_killed_ranks(stage: Stage) -> None:
    """All ranks killed at once, with a save perhaps half done: the run goes on from a checkpoint that both have."""
    stage.compare("ddp.py", "own", "plain", nasty=["KILL@3", "KILL@5", "KILL@10"], ranks=2, save_every="2")


def test_an_optimizer_that_is_shared_out(stage: Stage) -> None:
    """ZeroRedundancyOptimizer: each rank's share goes on, and so do the options that a scheduler has set on the whole."""
    whole, _ = stage.compare("ddp.py", "own", "zero", nasty=["TERM@3", "KILL@8"], ranks=2, save_every="2")
    one, two = whole.final.values()
    assert one["optimizer"] != two["optimizer"], "the trap is not set: both ranks have the same state"


def test_a_communication_hook_that_looks_at_buckets(stage: Stage) -> None:
    """As PowerSGD does: exact where DDP keeps its buckets; where it lays them out anew, that is told at the first start, with
    what to do."""
    whole, _ = stage.compare("ddp.py", "own", "hook", nasty=["TERM@3", "KILL@8"], ranks=2, save_every="2")
    assert "communication hook" not in whole.ended[0].err
    place = stage.place("told")
    first, second = place.run_ranks(2, "ddp.py", "own", "hook-anew")
    assert "the communication hook by_bucket may look at DDP's buckets" in first.err
    assert "find_unused_parameters=True" in first.err
    assert "communication hook" not in second.err


def test_objects_of_one_rank(stage: Stage) -> None:
    """An EMA that exists on rank 0 alone is kept for rank 0."""
    whole, _ = stage.compare("ddp.py", "own", "ema", nasty=["TERM@3", "KILL@8"], ranks=2, save_every="2")
    one, two = whole.final.values()
    assert one["ema"] != two["ema"]


def test_a_promise_that_does_not_hold(stage: Stage) -> None:
    """An EMA that is tracked as replicated(...) but differs from rank to rank is not cut into pieces of each: it is
    found out, said, and kept for each rank."""
    whole, torn = stage.compare("ddp.py", "own", "promise", nasty=["TERM@3", "KILL@8"], ranks=2, save_every="2")
    one, two = whole.final.values()
    assert one["ema"] != two["ema"], "the trap is not set"
    assert "should be equal on all ranks differ, e.g. ema/" in torn.folder.joinpath("err-0").read_text()


def test_values_of_one_rank(stage: Stage) -> None:
    """A list that grows in run.state of rank 1 alone comes back there, and nowhere else."""
    stage.compare("ddp.py", "backend", "late", nasty=["TERM@3", "TERM@7@1"], ranks=2, save_every="2")


def test_evaluation_on_one_rank(stage: Stage) -> None:
    """An evaluation on rank 0 alone, between two epochs, which draws random numbers there: each rank has its own."""
    nasty = ["TERM@3", "TERM@4", "KILL@8", "TERM@8"]
    stage.compare("ddp.py", "own", "evaluate", nasty=nasty, ranks=2, save_every="2")


@pytest.mark.parametrize("loop", ["own", "epochs"])
@pytest.mark.parametrize("when", [4, 5, 6])
def test_a_stop_near_the_end(stage: Stage, loop: str, when: int) -> None:
    """Where all ranks have come to run.finish() there is nothing left to interrupt: the run is finished, and no state
    that no boundary belongs to is gone on from. What is bound in the last turn of a loop is there behind it."""
    torn = stage.place("torn")
    torn.live("near_end.py", loop, nasty=[f"TERM@{when}@0"], ranks=2)
    assert all(final["weight"] == final["expected"] for final in torn.final.values())
    assert torn.incarnations()[-1]["ended"]["how"] == "finished"


def test_three_ranks_sum_in_the_same_order(stage: Stage) -> None:
    """With three ranks, the order in which DDP sums gradients shows in their bits, and DDP changes it after the
    first step of a process: a resumed process sums as the undisturbed one does."""
    stage.compare("rings.py", nasty=["TERM@2", "TERM@5"], ranks=3)


@pytest.mark.parametrize("who", ["0", "1"])
def test_uneven_inputs(stage: Stage, who: str) -> None:
    """Ranks that are in different epochs at the same step, one of which leaves its loop long before the other: a stop
    before and after that is committed, and both go on from there."""
    nasty = [f"TERM@3@{who}", "TERM@9@1"]
    _, torn = stage.compare("uneven.py", "3", nasty=nasty, ranks=2)
    began = [record["began"]["step"] for record in torn.incarnations()]
    assert (began[1], 9 <= began[2] < 12) == (4, True), "from where they were stopped, and not from earlier"


def test_uneven_inputs_with_the_daemon(stage: Stage) -> None:
    """The same under `autoresume run`: the stop comes through the daemon to a rank that waits at its end, too."""
    whole, torn = stage.place("whole"), stage.place("torn")
    whole.live("uneven.py", "40", ranks=2)
    torn.folder.mkdir()
    command = [sys.executable, "-m", "autoresume", "run", "--nproc", "2", str(SCRIPTS / "uneven.py"), "40"]
    variables = environment(NASTY="TERM@9@1", WAIT="1", AUTORESUME_MEMORY=str(torn.folder))
    done = warm.run(command, cwd=torn.folder, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_same(whole, torn)
    records = torn.incarnations()
    assert [record["ended"]["how"] for record in records] == ["interrupted", "finished"]
    assert 9 <= records[1]["began"]["step"] < 160


PARTING = {
    "local": "first/state/0/exp_avg",
    "together": "first/state/0/exp_avg",
    "max_norm": "model/rows.weight",
    "statistics": "model/model.inner.1.running_mean",
    "skipped": "first/state/",
    "unfrozen": "model/model.inner.0.bias",
}


@pytest.mark.parametrize("how", PARTING)
def test_replicas_that_part_after_the_first_save(stage: Stage, how: str) -> None:
    """What all ranks held alike at the first save, and don't later, is not cut into pieces of each: what parted is
    named, each rank goes on with its own, and a rank that is killed meanwhile goes on from what was whole."""
    whole, _ = stage.compare("parting.py", how, nasty=["KILL@8", "TERM@9", "KILL@13"], ranks=2, save_every="2")
    one, two = whole.final.values()
    assert one != two, "the trap is not set"
    undisturbed = stage.place("saved")
    assert undisturbed.live("parting.py", how, ranks=2, AUTORESUME_SAVE_EVERY="2", AUTORESUME_KEEP="10") == 1
    told = undisturbed.ended[0].err
    assert told.count(" have parted") == 1, told
    assert PARTING[how] in told
    assert "Checkpoint E0_U6_S48-0001 would be a mixture, and is not committed" in told
    assert "Other parts of these tensors" not in told, "all of a small state is looked at each time"
    assert [step for step, _ in committed(undisturbed)] == [14, 12, 10, 8, 4, 2]


def committed(place: Place) -> list[tuple[int, Manifest]]:
    storage = LocalStorage(place.run_folder)
    names = [name for name in list_checkpoints(storage) if storage.size(name.manifest) is not None]
    return [(name.step, Manifest.from_bytes(storage.read(name.manifest))) for name in names]


def test_state_that_one_rank_has_before_the_other(stage: Stage) -> None:
    """An optimizer whose first step one rank leaves out: nobody waits for a question that the other rank does not ask,
    and both go on bit for bit."""
    stage.compare("parting.py", "begun", nasty=["KILL@8", "TERM@9", "KILL@13"], ranks=2, save_every="2")


def test_state_that_comes_later_is_stored_once(stage: Stage) -> None:
    """An optimizer whose state comes into being in the sixth step is compared while training goes on, and
    split over the ranks from then on, as what was there at first is. Nothing is told, and nothing is lost."""
    _, torn = stage.compare("parting.py", "second", nasty=["KILL@8", "TERM@9", "KILL@13"], ranks=2, save_every="2")
    assert not any("differ" in ended.err or "parted" in ended.err for ended in torn.ended)
    saved = stage.place("saved")
    assert saved.live("parting.py", "second", ranks=2, AUTORESUME_SAVE_EVERY="2", AUTORESUME_KEEP="10") == 1
    shares = {}
    storage = LocalStorage(saved.run_folder)
    for step, manifest in committed(saved):
        chunks = [chunk for part in load_parts(storage, manifest, range(2)) for chunk in part.chunks]
        shares[step] = {chunk.shared for chunk in chunks if chunk.key.startswith("other/state/")}
    assert shares == {2: set(), 4: set(), 6: {False}, 8: {True}, 10: {True}, 12: {True}, 14: {True}}


def test_one_row_of_what_is_looked_at_in_slices(stage: Stage) -> None:
    """Of a large state each save looks at a slice. A row that parted is found when its turn comes, or at a stop; the
    checkpoints that may have mixed it until then are named."""
    stage.compare("parting.py", "row", nasty=["TERM@8"], ranks=2)
    saved = stage.place("saved")
    assert saved.live("parting.py", "row", ranks=2, AUTORESUME_SAVE_EVERY="1") == 1
    told = saved.ended[0].err
    assert told.count(" have parted, e.g. model/rows.weight:") == 1, told
    assert "E0_U2_S16-0001 to E1_U13_S104-0001 were saved" in told, told
    assert "checkpoint E1_U14_S112-0001 is taken again" in told
    storage = LocalStorage(saved.run_folder)
    (last,) = [manifest for step, manifest in committed(saved) if step == 14]
    rows = [part.chunks for part in load_parts(storage, last, range(2))]
    assert all(not one.shared for chunks in rows for one in chunks if one.key == "model/rows.weight")
