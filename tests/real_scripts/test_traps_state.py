"""Traps around state: objects of every kind, late ones, ones that can't be stored or don't fit."""

from __future__ import annotations

import pytest

from tests.real_scripts.harness import INTERRUPTED, Place, Stage

EACH_STEP = ["TERM@+1!"]


def test_every_kind_of_object(stage: Stage) -> None:
    """All of torch's optimizers (before their first step, too) and schedulers, GradScaler, EMA, channels_last,
    generators of torch, numpy and python, and every storable value in run.state, changed in place: bit for bit."""
    stage.compare("zoo.py", nasty=EACH_STEP)


def test_every_kind_of_object_after_a_kill(stage: Stage) -> None:
    """The same when the process is killed between two periodic saves."""
    stage.compare("zoo.py", nasty=["KILL@4", "KILL@6"], save_every="1")


@pytest.mark.parametrize("what", ["optimizer", "ema", "meta"])
def test_late_objects(stage: Stage, what: str) -> None:
    """An optimizer made in the loop, an EMA that begins at the fourth step, a model without memory until it is
    materialised and initialised: restoring waits for them, at every border, and what that draws leaves no trace."""
    stage.compare("late.py", what, nasty=EACH_STEP)


def test_a_batch_ahead_in_module_globals(stage: Stage) -> None:
    """autoresume.start() in a script without main: counters and the batch drawn ahead go through run.state, a
    configurator execs into the globals; and what comes back computes the same bits (its memory lies as before)."""
    stage.compare("globals.py", "max_iters = 7", nasty=EACH_STEP)


def stopped(stage: Stage, *arguments: str) -> Place:
    """A run of errors.py that was interrupted after its second step."""
    place = stage.place("run")
    assert place.run("errors.py", *arguments, NASTY="TERM@2").code == INTERRUPTED
    return place


def told(place: Place, *arguments: str) -> str:
    """What the same run says when it is started with other arguments, and refuses; it loses nothing by that."""
    before = sorted(place.run_folder.glob("checkpoints/*/*"))
    ended = place.run("errors.py", *arguments)
    assert ended.code == 1, ended.err
    assert "Traceback" not in ended.err
    assert sorted(place.run_folder.glob("checkpoints/*/*")) == before
    return ended.err


def test_state_that_does_not_fit(stage: Stage) -> None:
    """Another shape, another dtype, another set of parameters, fewer and more tracked objects: each is refused
    with the names on both sides, and the run goes on when the script is as it was."""
    place = stopped(stage)
    wide = told(place, "wide")
    assert "0.weight has shape (4, 4) in the checkpoint and (8, 4) here" in wide
    assert "differ in 3 places" in wide
    assert "only in the live object: 2.weight" in told(place, "deeper")
    assert "1.weight has dtype torch.float32 in the checkpoint and torch.float64 here" in told(place, "double")
    fewer = told(place, "fewer")
    assert "state of optimizer, which this script doesn't track" in fewer
    more = told(place, "more")
    assert "no state for teacher" in more
    assert "it holds model, optimizer" in more
    assert place.run("errors.py").code == 0
    assert len(place.metrics) == 4


def test_state_that_can_not_be_stored(stage: Stage) -> None:
    """An object that can't be stored is refused with its key: before the first step where that can be known."""
    place = stage.place("run")
    unstorable = place.run("errors.py", "unstorable")
    assert unstorable.code == 1
    assert "'thing/outer/list/1' is a builtins.object" in unstorable.err
    assert "pickled(" in unstorable.err
    assert not place.run_folder.joinpath("metrics.jsonl").exists()
    late = place.run("errors.py", "late unstorable")
    assert late.code == 1
    assert "'state/callback' is a" in late.err
    bare = place.run("errors.py", "bare")
    assert bare.code == 1
    assert "pickled(environment)" in bare.err


def test_pickle_only_where_asked_for(stage: Stage) -> None:
    """An object that only pickles is stored with pickled(...), and its content comes back; without the opt-in on
    the loading side it is refused, and so is a pickle where none was stored."""
    place = stopped(stage, "pickled")
    assert "'environment' was stored as a pickle" in told(place, "stateful")
    assert "state of environment" in told(place)
    assert place.run("errors.py", "pickled").code == 0
    assert [values["steps"] for values in place.metrics.values()] == [0, 2, 6, 12]
    other = Place(stage.folder / "other")
    assert other.run("errors.py", "stateful", NASTY="TERM@2").code == INTERRUPTED
    assert "'environment' was stored without pickle" in told(other, "pickled")


def test_what_run_state_holds_is_what_the_script_holds(stage: Stage) -> None:
    """A bare tensor that is trained, held by its optimizer and by `run.state`: both go on with the stored one."""
    stage.compare("bare.py", nasty=["TERM@2", "KILL@5"], save_every="1")


def test_unknown_options(stage: Stage) -> None:
    """A misspelt option, in the decorator or in the environment, is refused with the nearest one, and nothing runs."""
    place = stage.place("run")
    decorator = place.run("errors.py", "misspelt")
    assert (decorator.code, "save_evry" in decorator.err, "did you mean save_every?" in decorator.err) == (
        1,
        True,
        True,
    )
    variable = place.run("errors.py", AUTORESUME_KEPP="2")
    assert (variable.code, "did you mean AUTORESUME_KEEP?" in variable.err) == (1, True)
    value = place.run("errors.py", AUTORESUME_SAVE_EVERY="sometimes")
    assert (value.code, "'10 minutes'" in value.err) == (1, True)
    assert not list(place.folder.glob("runs/*/incarnations/*"))


@pytest.mark.parametrize("parts", ["kept", "changed"])
def test_parts_that_load_in_their_own_way(stage: Stage, parts: str) -> None:
    """Extra state that grows, lazy layers, an expanded buffer, and a part that is compiled, in all lives or in the first
    alone: exact."""
    stage.compare("own_ways.py", parts, nasty=["TERM@3", "KILL@8", "TERM@11"])
