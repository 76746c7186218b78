"""A crash is a drill: steps that are trained again are compared, and what parts them is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from autoresume.audit import verdict
from autoresume.audit.verdict import Retrained
from autoresume.cli import cli
from tests.drill.test_planted import PLANTED
from tests.real_scripts.harness import Ended, Place

TRAINER = str(Path(__file__).parents[1] / "drill" / "scripts" / "trainer.py")
KILLED, RESUMED = 13, {"AUTORESUME_SAVE_EVERY": "5 steps"}
CAUSES = {**{mistake: name for mistake, (name, _) in PLANTED.items()}, "time-shuffle": "not seeded"}


def crashed(place: Place, mistake: str, **more: str) -> Ended:
    """The second life, after one that was killed some steps behind its last checkpoint."""
    first = place.run(TRAINER, mistake, KILL_AFTER=str(KILLED), **RESUMED)
    assert first.code == -9, first.err
    return place.run(TRAINER, mistake, **RESUMED, **more)


def told(place: Place) -> Retrained:
    (found,) = verdict.read(place.run_folder)
    return found


@pytest.mark.parametrize("mistake", CAUSES)
def test_a_planted_mistake_is_named_after_a_crash(tmp_path: Path, mistake: str) -> None:
    """Each of the drill's mistakes is found in the first step or the second that is trained again, with its cause, in the
    log, in the record, and in the run's last words."""
    place = Place(tmp_path)
    second = crashed(place, mistake)
    assert second.code == 0, second.err
    found = told(place)
    assert found.difference is not None
    assert found.difference["cause"] == CAUSES[mistake], found
    assert found.difference["step"] <= found.first + 1
    assert f"Likely cause: {CAUSES[mistake]}" in second.err
    assert f"in life 2 step {found.difference['step']}, trained again" in second.err


@pytest.mark.parametrize("mistake", ["none", "none-workers"])
def test_a_script_that_resumes_rightly(tmp_path: Path, mistake: str) -> None:
    """All steps that were lost came out bit for bit the same, which is told, and nothing else is."""
    place = Place(tmp_path)
    second = crashed(place, mistake)
    assert second.code == 0, second.err
    found = told(place)
    assert found.difference is None
    assert (found.life, found.before, found.last) == (2, 1, KILLED)
    assert f"steps {found.first} to {KILLED}, trained again, came out bit for bit as in life 1" in second.err
    assert "were trained again after crashes, and came out bit for bit the same" in second.err
    assert "nothing tracks it" not in place.ended[0].err + second.err


def test_one_of_two_ranks(tmp_path: Path) -> None:
    """What is wrong on one rank alone parts that one first, which says so; the others, which it pulls along in the next
    step, say nothing more."""
    place = Place(tmp_path)
    first = place.run_ranks(2, TRAINER, "generator-1", "6", KILL_AFTER=str(KILLED), **RESUMED)
    assert -9 in [ended.code for ended in first], first
    second = place.run_ranks(2, TRAINER, "generator-1", "6", **RESUMED)
    assert [ended.code for ended in second] == [0, 0], second
    found = told(place)
    assert found.difference is not None
    assert (found.rank, found.difference["step"], found.difference["cause"]) == (
        1,
        found.first,
        "generator not tracked",
    )
    assert ["Likely cause" in ended.err for ended in second] == [False, True]


def test_status_and_history_tell_it(tmp_path: Path) -> None:
    """In words, and as JSON."""
    place = Place(tmp_path)
    crashed(place, "generator")
    run = str(place.run_folder)
    table = CliRunner().invoke(cli, ["history", run], catch_exceptions=False).output
    assert "life 2, step 1" in table or "life 2, step 6" in table
    assert "likely cause: generator not tracked" in table
    rows = CliRunner().invoke(cli, ["history", run, "--json"], catch_exceptions=False).output.splitlines()
    assert [json.loads(row)["retrained"] for row in rows] == ["", "differs"]
    status = json.loads(CliRunner().invoke(cli, ["status", run, "--json"], catch_exceptions=False).output)
    assert "trained again: the loss differs" in status["retrained"]
    assert "the loss differs" in CliRunner().invoke(cli, ["status", run], catch_exceptions=False).output


def test_what_was_changed_is_no_fault(tmp_path: Path) -> None:
    """Where the script itself has changed since, that is what is told, without a warning."""
    script = tmp_path / "trainer.py"
    script.write_text(Path(TRAINER).read_text())
    place = Place(tmp_path / "run")
    assert place.run(str(script), "none", KILL_AFTER=str(KILLED), **RESUMED).code == -9
    script.write_text(script.read_text().replace("nn.Dropout(0.2)", "nn.Dropout(0.3)"))
    second = place.run(str(script), "none", **RESUMED)
    assert second.code == 0, second.err
    found = told(place)
    assert found.difference is not None
    assert not found.is_fault
    assert "this has changed since: code" in second.err
    assert "Likely cause" not in second.err


def test_a_run_may_be_stopped(tmp_path: Path) -> None:
    """With retrained="stop" it ends before anything of it is saved, again and again; with "warn" it is trained on."""
    place = Place(tmp_path)
    second = crashed(place, "generator", AUTORESUME_RETRAINED="stop")
    assert second.code == 1
    assert "Likely cause: generator not tracked" in second.err
    assert place.incarnations()[1]["ended"]["how"] == "failed"
    third = place.run(TRAINER, "generator", **RESUMED, AUTORESUME_RETRAINED="stop")
    assert third.code == 1
    began = [life["began"]["step"] for life in place.incarnations()]
    assert began[1] == began[2]
    assert place.run(TRAINER, "generator", **RESUMED).code == 0


def test_it_may_be_left_out(tmp_path: Path) -> None:
    """With retrained="off" nothing is noted and nothing compared."""
    place = Place(tmp_path)
    off = {"AUTORESUME_RETRAINED": "off"}
    assert place.run(TRAINER, "generator", KILL_AFTER=str(KILLED), **RESUMED, **off).code == -9
    second = place.run(TRAINER, "generator", **RESUMED, **off)
    assert second.code == 0
    assert "trained again" not in second.err
    assert not (place.run_folder / "notes").exists()
