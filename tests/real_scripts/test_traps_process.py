"""Traps around the process: who owns the entry point and the signals, how a run ends, and who may go on with it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.real_scripts.harness import INTERRUPTED, Place, Stage, assert_same


def test_hydra_like_main(stage: Stage) -> None:
    """A decorator that parses arguments and changes into a new folder before it calls the function: the run is
    still found beside the script's start, and other arguments are another run."""
    _, torn = stage.compare("hydra_like.py", "steps=5", nasty=["TERM@2", "KILL@4"], save_every="1")
    assert len(list(torn.folder.glob("outputs/*"))) == 3
    assert len(list(torn.folder.glob("outputs/*/final.pt"))) == 1
    assert torn.run("hydra_like.py", "steps=2").code == 0
    assert len(list(torn.folder.glob("runs/*"))) == 2


@pytest.mark.parametrize("when", ["before", "between", "replacing", "after"])
def test_signal_handlers_of_frameworks(stage: Stage, when: str) -> None:
    """A framework's handler, put on before the run is opened, after it, or in the middle of training, chaining or
    not: the run stops at the next boundary, the framework hears of the signal once, and has its handler back."""
    _, torn = stage.compare("signals.py", when, nasty=["TERM@4"])
    assert torn.ended[0].out == "signals 1 put back True\n"


def test_lines_after_the_training(stage: Stage) -> None:
    """An interrupted run never comes to the script's last lines: no final model is saved before the end."""
    place = stage.place("torn")
    for step in (2, 5):
        ended = place.run("ending.py", NASTY=f"TERM@{step}")
        assert (ended.code, ended.out) == (INTERRUPTED, "")
        assert not place.folder.joinpath("final.pt").exists()
    assert place.run("ending.py").out.startswith("trained Model(")
    whole = stage.place("whole")
    whole.live("ending.py")
    assert_same(whole, place)


def test_side_files_are_never_newer_than_the_state(stage: Stage) -> None:
    """A best.pt that was written after the checkpoint that a killed run goes on from is put back as it was."""
    stage.compare("ending.py", nasty=["KILL@3", "KILL@6", "KILL@8"], save_every="2")


def test_one_run_in_tensorboard(stage: Stage) -> None:
    """Whatever a script calls its attempts, and after any interruption, TensorBoard has one run with each step once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, torn = stage.compare("ending.py", nasty=["TERM@2", "KILL@5"], save_every="1", AUTORESUME_LOGGERS="tensorboard")
    (folder,) = {path.parent for path in torn.folder.rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(folder)).Reload().Scalars("loss")
    assert [event.step for event in events] == list(torn.metrics)
    assert [event.value for event in events] == pytest.approx([values["loss"] for values in torn.metrics.values()])


def test_a_script_without_main(stage: Stage) -> None:
    """autoresume.start(): finished by run.finish(), after which a start says so and leaves with 0. A script that
    ends without it, or by an exception, is recorded as that, and goes on when it is started again."""
    place = stage.place("one")
    dies = place.run("globals.py", "dies = True")
    assert (dies.code, "ValueError: after the loop" in dies.err) == (1, True)
    assert place.incarnations()[-1]["ended"]["how"] == "failed"
    forgets = stage.place("two")
    assert forgets.run("globals.py", "forgets = True").code == 0
    assert "run.finish()" in forgets.incarnations()[-1]["ended"]["why"]
    finished = stage.place("three")
    assert finished.run("globals.py").code == 0
    assert finished.incarnations()[-1]["ended"]["how"] == "finished"
    metrics = finished.metrics
    again = finished.run("globals.py")
    assert (again.code, "is finished: it ended after step 4" in again.err) == (0, True)
    assert (len(finished.incarnations()), finished.metrics) == (1, metrics)
    assert "AUTORESUME_RESTORE_MODE=continue" in again.err, "which a script that parses its own command line takes, too"
    assert finished.run("globals.py", AUTORESUME_RESTORE_MODE="continue").code == 0
    assert [life["ended"]["how"] for life in finished.incarnations()] == ["finished", "finished"]


@pytest.mark.parametrize("kind", ["run", "stream", "batches", "held", "other", "before", "stateful"])
def test_a_signal_to_the_whole_process_group(stage: Stage, kind: str) -> None:
    """SIGTERM that reaches data workers as well, as a batch system sends it: workers live on until the boundary, whoever
    made their loader, before the run was opened or after, and no step is lost. Nobody is left behind and the exit does
    not hang."""
    _, torn = stage.compare("workers.py", kind, nasty=["GROUP@3", "GROUP@6"], save_every="1")
    assert [record["ended"]["how"] for record in torn.incarnations()] == ["interrupted", "interrupted", "finished"]
    assert [record["ended"]["step"] for record in torn.incarnations()] == [3, 6, 10]


@pytest.mark.parametrize("how", ["spawn", "forkserver"])
def test_a_script_that_its_workers_import_again(stage: Stage, how: str) -> None:
    """Workers that are not forked import the script: where that starts the training, they say how it is guarded, and
    train nothing; guarded it trains."""
    place = stage.place("run")
    unguarded = place.run("unguarded.py", how)
    assert unguarded.code == 1
    assert "if __name__ == '__main__': main()" in unguarded.err
    assert len(place.incarnations()) == 1
    if how == "spawn":
        guarded = place.run("unguarded.py", how, GUARD="1")
        assert guarded.code == 0, guarded.err


def test_a_second_life_is_refused(stage: Stage) -> None:
    """Two can't write to one run: the second start is refused with the first one's process, and the first goes on."""
    place = stage.place("run")
    fifo = stage.folder / "fifo"
    os.mkfifo(fifo)
    first = place.start("errors.py", "hangs", FIFO=str(fifo), NASTY="TERM@1")
    with open(fifo, "w"):  # opens when the first is in its step
        second = place.run("errors.py", "hangs", FIFO=str(fifo))
    assert second.code == 1
    assert f"process {first.pid} on" in second.err
    assert "incarnation 1 of this run is alive" in second.err
    assert place.wait(first).code == INTERRUPTED
    assert place.run("errors.py").code == 0
    assert len(place.metrics) == 4


def test_a_finished_run(stage: Stage) -> None:
    """Starting a finished run again says that it is finished and how to begin another one, and changes nothing."""
    place = stage.place("run")
    assert place.run("errors.py").code == 0
    before = {path: path.stat().st_mtime_ns for path in place.run_folder.rglob("*")}
    again = place.run("errors.py")
    assert again.code == 0
    assert "is finished: it ended after step 4" in again.err
    assert "AUTORESUME_RUN_DIR" in again.err
    assert {path: path.stat().st_mtime_ns for path in place.run_folder.rglob("*")} == before


def test_two_trainings_in_one_script(stage: Stage) -> None:
    """The first one's interruption does not let the script run on into the second; a finished first is passed over."""
    place = stage.place("torn")
    for nasty in ("TERM@2/one", "TERM@3/two", "KILL@4/two"):
        place.run("stages.py", NASTY=nasty, AUTORESUME_SAVE_EVERY="1")
        assert place.folder.joinpath("one.pt").exists() == ("one" not in nasty)
    assert place.run("stages.py").code == 0
    whole = stage.place("whole")
    assert whole.run("stages.py").code == 0
    for name in ("one.pt", "two.pt"):
        assert whole.folder.joinpath(name).read_bytes() == place.folder.joinpath(name).read_bytes()


def test_two_scripts_of_one_name(stage: Stage) -> None:
    """`python a/train.py` and `python b/train.py` from one folder are two runs, or the second is told that the run
    is the first one's; it never passes for finished without having trained."""
    place = stage.place("project")
    (source,) = (Path(__file__).parent / "scripts").glob("ending.py")
    for name in ("a", "b"):
        place.folder.joinpath(name).mkdir(parents=True)
        place.folder.joinpath(name, "train.py").write_text(
            f"import sys\nsys.path.insert(0, {str(source.parent)!r})\n{source.read_text()}"
        )
    assert place.run(str(place.folder / "a" / "train.py")).out.startswith("trained Model(")
    second = place.run(str(place.folder / "b" / "train.py"))
    if second.code == 0:
        assert second.out.startswith("trained Model(")
    else:
        assert "a/train.py" in second.err


def test_the_script_s_own_failures(stage: Stage) -> None:
    """An exception of the script's keeps its traceback and exit code; sys.exit(0) in the middle is no end of the
    training, which is said. The run goes on when it is started again."""
    place = stage.place("run")
    assert place.run("errors.py", NASTY="TERM@2").code == INTERRUPTED
    fails = place.run("errors.py", "fails")
    assert (fails.code, "ValueError: the script's own mistake" in fails.err) == (1, True)
    exits = place.run("errors.py", "exits", AUTORESUME_SAVE_EVERY="1")
    assert exits.code == 0
    assert "left by itself after step 3, without run.finish(): it is unfinished" in exits.err
    ends = [(record["ended"]["how"], record["ended"]["step"]) for record in place.incarnations()]
    assert ends == [("interrupted", 2), ("failed", 2), ("ended", 3)]
    again = place.run("errors.py")
    assert (again.code, "goes on after step 3" in again.err) == (0, True)
    assert len(place.metrics) == 4


def test_a_script_that_leaves_when_it_has_enough(stage: Stage) -> None:
    """sys.exit(0) after run.finish() is an end: nothing goes on afterwards. An update that was made before it, and behind
    the last boundary, is a step."""
    place = stage.place("run")
    assert place.run("errors.py", "enough").code == 0
    again = place.run("errors.py")
    assert (again.code, "is finished: it ended after step 4" in again.err) == (0, True)
    assert [record["ended"]["how"] for record in place.incarnations()] == ["finished"]


def test_a_handler_that_leaves(stage: Stage) -> None:
    """A script's own handler of the stop signal that calls sys.exit(0) does not make an interrupted run look like a
    success: exit code 75, and it goes on."""
    place = stage.place("run")
    left = place.run("errors.py", "handles", NASTY="TERM@3", AUTORESUME_SAVE_EVERY="1")
    assert left.code == INTERRUPTED
    assert [record["ended"]["how"] for record in place.incarnations()] == ["interrupted"]
    assert place.run("errors.py").code == 0
    assert len(place.metrics) == 4


def damage(checkpoint: Path) -> None:
    """Flip one bit in the middle of the first shard."""
    (shard, *_) = sorted(checkpoint.glob("shards/*"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)


def checkpoints(place: Place) -> list[Path]:
    """Oldest first."""
    found = place.run_folder.glob("checkpoints/*")
    return sorted(found, key=lambda path: int(re.findall(r"U(\d+)", path.name)[0]))


def test_damaged_checkpoints(stage: Stage) -> None:
    """A damaged checkpoint is put aside with the reason and the one before it serves, with the same result. When
    none is left the run refuses, and leaves them all; it is never begun from scratch."""
    whole, torn = stage.place("whole"), stage.place("torn")
    assert whole.live("epochs.py", "run", "0") == 1
    assert torn.run("epochs.py", "run", "0", NASTY="TERM@6", AUTORESUME_SAVE_EVERY="2").code == INTERRUPTED
    newest = checkpoints(torn)[-1]
    damage(newest)
    ended = torn.run("epochs.py", "run", "0", NASTY="TERM@8", AUTORESUME_SAVE_EVERY="2")
    assert ended.code == INTERRUPTED
    assert f"{newest.name} is put aside" in ended.err
    assert "goes on after step 4" in ended.err
    for checkpoint in checkpoints(torn):
        damage(checkpoint)
    rows = torn.metrics
    refused = torn.run("epochs.py", "run", "0")
    assert refused.code == 1
    assert "not started from scratch" in refused.err
    assert torn.metrics == rows
    assert torn.run("epochs.py", "run", "0").code == 1  # all are where they were
    (good,) = [checkpoint for checkpoint in checkpoints(torn) if "U8" in checkpoint.name]
    damage(good)  # the same bit again: it was the storage, and that is well now
    assert torn.run("epochs.py", "run", "0").code == 0
    assert_same(whole, torn)


def test_a_run_directory_that_can_not_be_written(stage: Stage) -> None:
    """It is said before anything is built, with the folder, the reason and the way out."""
    place = stage.place("run")
    place.folder.mkdir()
    place.folder.joinpath("file").write_text("")
    for folder in ("file/run", "/proc/no/such"):
        ended = place.run("globals.py", AUTORESUME_RUN_DIR=folder)
        assert ended.code == 1
        assert "can't be used" in ended.err
        assert folder in ended.err
        assert "AUTORESUME_RUN_DIR" in ended.err
        assert "Traceback" not in ended.err
