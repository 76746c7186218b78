"""How runs begin: the modes, where from, which checkpoint, what may differ, and what is told of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from autoresume.cli import cli
from tests.real_scripts.harness import INTERRUPTED, Place, Stage

STEPS = 16  # 2 epochs of 8


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A run that came to its end: checkpoints after steps 4, 8, 12 and 16, the metric val lowest at step 10."""
    place = Place(tmp_path_factory.mktemp("base"))
    ended = place.run("modes.py", "--tag", "6:half")
    assert ended.code == 0, ended.err
    return place


def began(
    place: Place, *arguments: object, code: int = 0, script: str = "modes.py", **variables: str
) -> dict[str, Any]:
    """Start the script; what it printed before its first step."""
    ended = place.run(script, *map(str, arguments), **variables)
    assert ended.code == code, ended.err
    return json.loads(ended.out.splitlines()[0])


def refused(place: Place, *arguments: object, **variables: str) -> str:
    """Start the script, which has to end with a message, and no traceback; the message, on one line."""
    ended = place.run("modes.py", *map(str, arguments), **variables)
    assert ended.code == 1, (ended.out, ended.err)
    assert "Traceback" not in ended.err
    return " ".join(ended.err.split())


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(path.parent.name.split("_")[1][1:]) for path in folder.glob("checkpoints/*/manifest.json"))


def curve(folder: Path) -> list[int]:
    """The steps of the loss, as TensorBoard shows them."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return [event.step for event in events.Scalars("loss")]


def report(folder: str, number: int = 1) -> dict[str, Any]:
    return json.loads((Path(folder) / "reports" / f"{number:04d}.json").read_text())


def run_id(place: Place) -> str:
    return str(json.loads((place.run_folder / "run.json").read_text())["run_id"])


# -- the truth table ----------------------------------------------------------------------------------


def test_the_modes_take_over_what_the_table_says(base: Place, stage: Stage) -> None:
    """null: nothing; finetune: the weights; hotstart: weights and trainer state in a new logging run; continue: all,
    in the same logging run. By the objects themselves, and by what TensorBoard holds."""
    source = ("--restore.from", base.run_folder)
    scratch = began(stage.place("null"), "--seed", 3)
    finetune = began(stage.place("finetune"), "--seed", 3, "--restore.mode", "finetune", *source)
    hotstart = began(stage.place("hotstart"), "--seed", 3, "--restore.mode", "hotstart", *source, "--epochs", 3)
    copied = stage.place("continue")
    shutil.copytree(base.folder, copied.folder)
    again = began(copied, "--seed", 3, "--restore.mode", "continue", "--restore.from", copied.run_folder, "--epochs", 3)

    assert (scratch["step"], scratch["resumed"]) == (0, False)
    weights, trainer = ("model", "ema"), ("optimizer", "scheduler", "generator", "step", "epoch", "samples")
    for key in weights:
        assert finetune[key] == hotstart[key] == again[key] != scratch[key]
    for key in trainer:
        assert hotstart[key] == again[key] != finetune[key] == scratch[key], key
    assert (finetune["resumed"], hotstart["resumed"], hotstart["step"]) == (False, True, STEPS)
    assert again["folder"] == str(copied.run_folder)
    assert len({one["id"] for one in (scratch, finetune, hotstart)}) == 3
    assert curve(Path(finetune["folder"])) == list(range(1, STEPS + 1))
    assert curve(Path(hotstart["folder"])) == list(range(STEPS + 1, 25))
    assert curve(Path(again["folder"])) == list(range(1, 25)), "one curve, from the first step on"
    parents = [json.loads((Path(one["folder"]) / "run.json").read_text()).get("parent") for one in (finetune, again)]
    assert parents[0]["run_id"] == run_id(base)
    assert parents[0]["origin"].startswith("finetune of")
    assert parents[1] is None


def test_a_run_that_is_started_again_goes_on_by_itself(base: Place, stage: Stage) -> None:
    """A hotstart that is preempted goes on from its own checkpoint with the same command, not from the other run's."""
    place = stage.place("run")
    words = ("--restore.mode=hotstart", f"--restore.from={base.run_folder}", "--epochs", "4")
    first = began(place, *words, code=INTERRUPTED, NASTY="TERM@21")
    second = began(place, *words)
    assert (first["step"], second["step"], second["incarnation"]) == (STEPS, 21, 2)
    whole = stage.place("whole")
    assert began(whole, *words)["step"] == STEPS
    assert whole.final == place.final
    assert whole.metrics == place.metrics


def test_words_in_yaml_environment_and_decorator_mean_the_same(base: Place, stage: Stage) -> None:
    """The same words wherever they are said; the command line counts most, then the environment, then the file."""
    place = stage.place("yaml")
    place.folder.mkdir()
    (place.folder / "autoresume.yaml").write_text(f"restore:\n  mode: finetune\n  from: {base.run_folder}\n")
    assert report(began(place)["folder"])["origin"].startswith("finetune of")
    assert report(began(place, "--seed", 1, AUTORESUME_RESTORE_MODE="hotstart")["folder"])["origin"].startswith("hotst")
    scratch = began(place, "--seed", 2, "--restore.mode", "null", "--restore.from", "null", AUTORESUME_RESTORE_MODE="x")
    assert (scratch["step"], scratch["resumed"]) == (0, False)


def test_what_makes_no_sense_is_said(base: Place, stage: Stage) -> None:
    """A mode without a source, a source without a mode, and an unknown mode each get a message that says what to do."""
    place, source = stage.place("run"), ("--restore.from", base.run_folder)
    assert "needs to know from where" in refused(place, "--restore.mode", "finetune")
    assert "without restore.mode" in refused(place, *source)
    for word in ("null", "finetune", "hotstart", "continue"):
        assert word in refused(place, "--restore.mode", "hotstrat", *source)
    assert "Did you mean 'hotstart'?" in refused(place, "--restore.mode", "hotstrat", *source)
    assert "has no checkpoint to go on from" in refused(place, "--restore.mode", "continue")
    assert "did you mean restore.from?" in refused(place, "--restore.ckpt_or_run_path", "x")
    missing = refused(place, "--restore.mode", "finetune", "--restore.from", "outputs/epoch=10.ckpt")
    assert f"there is no {place.folder}/outputs/epoch=10.ckpt" in missing
    assert "absolute" in missing
    assert "there is no checkpoint 'E9'" in refused(
        place, "--restore.mode", "hotstart", *source, "--restore.select", "E9"
    )
    assert not list(place.folder.glob("runs/*")), "nothing half made is left behind"


def test_nothing_left_to_train_is_said(base: Place, stage: Stage) -> None:
    """A start from the end of a training, with no more epochs than it had, is finished at once, and says why."""
    place = stage.place("run")
    assert began(place, "--restore.mode", "hotstart", "--restore.from", base.run_folder)["step"] == STEPS
    assert "nothing was left to train: the checkpoint stands after step 16" in " ".join(place.ended[-1].err.split())


def test_a_run_that_has_begun_is_not_begun_otherwise(base: Place, stage: Stage) -> None:
    """A mode for a directory that holds a run already is refused, and nothing is lost."""
    place = stage.place("run")
    assert began(place, AUTORESUME_RUN_DIR="mine", NASTY="TERM@6", code=INTERRUPTED)["step"] == 0
    said = refused(place, "--restore.mode", "finetune", "--restore.from", base.run_folder, AUTORESUME_RUN_DIR="mine")
    assert "has begun already" in said
    assert began(place, AUTORESUME_RUN_DIR="mine")["step"] == 6


# -- which run, and which checkpoint ------------------------------------------------------------------


def test_where_from(base: Place, stage: Stage) -> None:
    """A run's folder, id or name, a checkpoint's folder, a copy of it that lies and is called otherwise, and the folder
    of a logger lead to the same state."""
    place = stage.place("run")
    shutil.copytree(base.folder / "runs", place.folder / "runs")
    run = next(place.folder.glob("runs/*"))
    (last,) = run.glob(f"checkpoints/*_U{STEPS}_*")
    shutil.copytree(last, place.folder / "backup")
    run_id = json.loads((run / "run.json").read_text())["run_id"]
    found = [
        began(place, "--seed", number, "--restore.mode", "hotstart", "--restore.from", source, "--epochs", 2)
        for number, source in enumerate(
            (run.relative_to(place.folder), run_id, run.name, last, "backup", run / "tensorboard", run / "run.json")
        )
    ]
    assert {one["step"] for one in found} == {STEPS}
    assert len({one["model"] for one in found}) == 1


@pytest.mark.parametrize(
    ("selector", "step", "why"),
    [
        ("latest", 16, "the latest"),
        ("best", 8, "lowest val = 2.5"),
        ("best.val:max", 4, "highest val = 6.5"),
        ("U8", 8, "the newest at U8"),
        ("8", 8, "the newest at U8"),
        ("E1", 16, "the newest at E1, of 2"),
        ("S32", 8, "the newest at S32"),
        ("E0_U4", 4, "the newest at E0_U4"),
        ("half", 6, "the newest with the tag 'half'"),
    ],
)
def test_which_checkpoint(base: Place, stage: Stage, selector: str, step: int, why: str) -> None:
    """latest, best, a metric's extreme, a place by epoch, step or samples, and a tag; what was chosen and why is said."""
    place = stage.place("run")
    words = ("--restore.mode", "hotstart", "--restore.from", base.run_folder, "--restore.select", selector)
    found = began(place, *words)
    assert found["step"] == step
    assert why in report(found["folder"])["origin"]
    assert why in place.ended[-1].err


def test_a_selector_that_means_nothing_lists_what_there_is(base: Place, stage: Stage) -> None:
    """The message has the checkpoints, their tags, and the metrics that they have."""
    words = ("--restore.mode", "hotstart", "--restore.from", base.run_folder, "--restore.select")
    said = refused(stage.place("run"), *words, "E77")
    assert "E1_U16_S64-0001" in said
    assert "(half)" in said
    assert "they have draw, loss, val" in refused(stage.place("run"), *words, "best.accuracy")
    assert "best.draw:min or best.draw:max" in refused(stage.place("run"), *words, "best.draw")


def test_continue_goes_back_once(base: Place, stage: Stage) -> None:
    """continue from an earlier checkpoint goes on in the run itself: what is newer is put aside, whole, and the curve is
    cut. The same command again goes on from the newest."""
    place = stage.place("run")
    shutil.copytree(base.folder, place.folder)
    run = place.run_folder
    words = ("--restore.mode", "continue", "--restore.from", run, "--restore.select", "U8")
    first = began(place, *words, code=INTERRUPTED, NASTY="TERM@14")
    assert first["step"] == 8
    assert sorted(path.name.split("_")[1] for path in run.glob("aside/*")) == ["U12", "U16"]
    assert began(place, *words)["step"] == 14
    assert curve(run) == list(range(1, STEPS + 1))
    assert checkpoints(run)[-1] == STEPS
    assert place.final == base.final, "the same steps again, bit for bit"


def test_stages_begin_from_each_other(stage: Stage) -> None:
    """A stage is a run of its own in the run's folder; another one begins with its weights, or goes on with all."""
    place = stage.place("run")
    assert began(place, AUTORESUME_STAGE="pretrain", AUTORESUME_RUN_DIR="exp")["step"] == 0
    words = ("--restore.mode", "hotstart", "--restore.stage", "pretrain", "--restore.select", "U8")
    second = began(place, *words, AUTORESUME_STAGE="more", AUTORESUME_RUN_DIR="exp")
    assert (second["step"], Path(second["folder"])) == (8, place.folder / "exp" / "more")
    words = ("--restore.mode", "finetune", "--restore.from", "exp", "--restore.stage", "more")
    third = began(place, *words, AUTORESUME_RUN_DIR="other")
    assert third["step"] == 0
    assert "several stages: more, pretrain" in refused(
        place, "--restore.mode", "finetune", "--restore.from", "exp", AUTORESUME_RUN_DIR="third"
    )
    again = began(
        place, "--restore.mode", "continue", "--restore.from", "exp", "--restore.stage", "more", "--epochs", 3
    )
    assert (again["step"], again["folder"]) == (STEPS, second["folder"])


# -- what may differ ----------------------------------------------------------------------------------


def test_training_on_with_other_settings(base: Place, stage: Stage) -> None:
    """More epochs, another batch size and another learning rate: said as safe; the restored learning rate counts
    unless the script's is asked for."""
    words = (
        "--restore.mode",
        "hotstart",
        "--restore.from",
        base.run_folder,
        "--epochs",
        3,
        "--batch",
        8,
        "--lr",
        0.001,
    )
    kept = began(stage.place("kept"), *words)
    assert kept["lr"] == 0.01
    said = report(kept["folder"])
    verdicts = {change["what"]: change["verdict"] for change in said["changes"]}
    assert verdicts["config.lr"] == verdicts["config.batch"] == verdicts["config.epochs"] == "safe"
    assert any("restore.fresh=optimizer.lr" in note for note in said["notes"])
    taken = began(stage.place("taken"), *words, "--restore.fresh", "optimizer.lr")
    assert taken["lr"] == 0.001
    assert taken["optimizer"] == kept["optimizer"]
    assert report(taken["folder"])["reset"] == ["optimizer.lr"]


def test_risky_changes_are_called_so(base: Place, stage: Stage) -> None:
    """Another seed is told as risky; the optimizer's type too, and its state does not fit."""
    words = ("--restore.mode", "hotstart", "--restore.from", base.run_folder, "--seed", 9, "--epochs", 3)
    place = stage.place("run")
    changes = {change["what"]: change["verdict"] for change in report(began(place, *words)["folder"])["changes"]}
    assert changes["config.seed"] == "risky"
    assert "which the restored state may not fit: config.seed: 0 -> 9" in " ".join(place.ended[-1].err.split())
    assert "another kind of optimizer" in refused(stage.place("sgd"), *words, "--optimizer", "SGD")
    other = stage.place("other")
    found = began(other, *words, "--optimizer", "SGD", "--restore.strict", "optimizer=false")
    changes = {change["what"]: change["verdict"] for change in report(found["folder"])["changes"]}
    assert changes["config.optimizer"] == changes["objects.optimizer.class"] == "risky"


def test_missing_state_refuses_with_the_option_that_allows_it(base: Place, stage: Stage) -> None:
    """State that the script doesn't track, and objects that the checkpoint lacks, are refused by name; strict=false for
    the name, or for all, goes on and says what was left out."""
    words = ("--restore.mode", "hotstart", "--restore.from", base.run_folder, "--without", "ema", "--epochs", 3)
    assert "holds state of ema" in refused(stage.place("strict"), *words)
    found = began(stage.place("lenient"), *words, "--restore.strict", "ema=false")
    assert found["step"] == STEPS
    assert report(found["folder"])["unused"] == ["ema"]
    words = ("--restore.mode", "hotstart", "--restore.from", found["folder"], "--epochs", 4)
    assert "holds no state for ema" in refused(stage.place("missing"), *words)
    assert report(began(stage.place("all"), *words, "--restore.strict", "false")["folder"])["missing"] == ["ema"]


def test_another_shape_is_listed_and_taken_as_far_as_it_fits(base: Place, stage: Stage) -> None:
    """A head with other classes: both shapes are listed, nothing is loaded; named as fresh, the body alone is loaded."""
    words = ("--restore.mode", "finetune", "--restore.from", base.run_folder, "--classes", 7)
    said = refused(stage.place("strict"), *words)
    assert "head.weight has shape [2, 5] there and [7, 5] here" in said
    found = began(stage.place("fresh"), *words, "--restore.fresh", "model.head.*,ema", "--restore.remove", r"^head\.")
    body = began(stage.place("same"), "--restore.mode", "finetune", "--restore.from", base.run_folder)["body"]
    assert found["body"] == body
    assert "matches" in refused(stage.place("none"), *words, "--restore.remove", ".*")


def test_ema_weights_into_the_model(base: Place, stage: Stage) -> None:
    """restore.weights={"model": "ema"} trains on from the averaged weights."""
    source = ("--restore.mode", "finetune", "--restore.from", base.run_folder)
    plain = began(stage.place("plain"), *source)
    averaged = began(stage.place("averaged"), *source, "--restore.weights", "model=ema", "--restore.fresh", "ema")
    assert averaged["model"] == plain["ema"] != plain["model"]


def test_weights_that_were_there_already(base: Place, stage: Stage) -> None:
    """It is an error when nothing changed: weights that the script itself has made, or loaded, already."""
    place = stage.place("run")
    assert began(place, "--epochs", 0)["step"] == 0  # its checkpoint holds the very weights that the seed makes
    said = refused(place, "--restore.mode", "finetune", "--restore.from", next(place.folder.glob("runs/*")))
    assert "has the same weights as before" in said


def test_the_second_half_with_frozen_layers(base: Place, stage: Stage) -> None:
    """Trained on with the body frozen: the body stays as it is, the head goes on."""
    words = ("--restore.mode", "hotstart", "--restore.from", base.run_folder, "--epochs", 3, "--frozen")
    first = stage.place("first")
    at_begin = began(first, *words)
    later = began(
        stage.place("later"),
        "--restore.mode",
        "hotstart",
        "--restore.from",
        at_begin["folder"],
        "--epochs",
        4,
        "--frozen",
    )
    assert later["body"] == at_begin["body"]
    assert later["head"] != at_begin["head"]


def test_two_ranks_begin_together(base: Place, stage: Stage) -> None:
    """Two ranks hotstart from a run of one, and both tell the same state; the report names what differs by rank."""
    place = stage.place("run")
    words = ("--restore.mode", "hotstart", "--restore.from", str(base.run_folder), "--epochs", "3", "--batch", "2")
    ends = place.run_ranks(2, "modes.py", *words, AUTORESUME_BACKEND="gloo")
    assert [ended.code for ended in ends] == [0, 0], ends[0].err
    found = [json.loads(ended.out.splitlines()[0]) for ended in ends]
    assert found[0]["model"] == found[1]["model"]
    assert {one["step"] for one in found} == {STEPS}
    said = report(found[0]["folder"])
    assert {change["what"]: change["verdict"] for change in said["changes"]}["world_size"] == "safe"
    assert said["ranks"] == {}, "both took over the same"


# -- whose run it is ----------------------------------------------------------------------------------


def test_a_loggers_name_finds_the_run(base: Place, stage: Stage) -> None:
    """What a logger calls a run, `entity/project/run_id`, leads to it by its run.json, without asking anybody."""
    place = stage.place("run")
    shutil.copytree(base.folder / "runs", place.folder / "runs")
    path = next(place.folder.glob("runs/*/run.json"))
    value = json.loads(path.read_text())
    value["loggers"]["wandb"] = {"path": "lab/vision/3fk2a9", "id": "3fk2a9"}
    path.write_text(json.dumps(value))
    for name in ("lab/vision/3fk2a9", "3fk2a9"):
        words = ("--restore.mode", "hotstart", "--restore.from", name, "--restore.select", "U8")
        assert began(place, *words, AUTORESUME_RUN_DIR=f"by-{len(name)}")["step"] == 8


def test_a_lone_checkpoint_names_its_logging_run(base: Place, stage: Stage) -> None:
    """continue from a copy of a checkpoint that lies in no run: a new folder, and the same logging run, which the
    checkpoint names; with all settings that it was made with."""
    place = stage.place("run")
    (last,) = base.run_folder.glob("checkpoints/*_U8_*")
    shutil.copytree(last, place.folder / "kept")
    found = began(place, "--restore.mode", "continue", "--restore.from", "kept")
    assert (found["step"], found["id"] != run_id(base)) == (8, True)
    loggers = json.loads((Path(found["folder"]) / "run.json").read_text())["loggers"]
    before = json.loads((base.run_folder / "run.json").read_text())["loggers"]
    assert loggers.keys() == before.keys() == {"tensorboard"}
    about = json.loads((place.folder / "kept/parts/rank-00000.json").read_text())["about"]
    assert about["run"]["loggers"] == before
    assert about["config"]["lr"] == 0.01
    assert about["packages"]["torch"]


def test_another_run_is_only_read(base: Place, stage: Stage) -> None:
    """A run that begins from another one neither writes, moves nor deletes anything there, also where it finds a
    damaged checkpoint; and its retention deletes only its own."""
    place = stage.place("run")
    shutil.copytree(base.folder, stage.place("other").folder)
    other = stage.place("other").run_folder
    (shard,) = other.glob(f"checkpoints/*_U{STEPS}_*/shards/*")
    shard.write_bytes(shard.read_bytes()[:-1])
    before = {path: path.stat().st_mtime_ns for path in other.rglob("*")}
    words = ("--restore.mode", "hotstart", "--restore.from", other, "--epochs", 3)
    assert "can't be restored" in refused(place, *words)
    assert began(place, *words, "--restore.select", "U12", AUTORESUME_KEEP="1", AUTORESUME_RUN_DIR="kept")["step"] == 12
    assert {path: path.stat().st_mtime_ns for path in other.rglob("*")} == before


def test_a_model_by_its_name(base: Place, stage: Stage) -> None:
    """Of several models one is named; without a word, those of the same names, and an error lists what there is."""
    place = stage.place("run")
    source = ("--restore.mode", "finetune", "--restore.from", base.run_folder)
    said = refused(place, *source, "--restore.weights", "model=teacher")
    assert "tracked models are model, ema; stored ones are model, ema" in said


def test_weights_of_others(base: Place, stage: Stage) -> None:
    """finetune from a file of another library, by its path and by a URL, which is downloaded into the run; the modes that
    need more than weights are refused for it."""
    place = stage.place("run")
    place.folder.mkdir()
    exported = CliRunner().invoke(
        cli,
        ["export", str(base.run_folder), "--model", "model", "--format", "torch", "--to", str(place.folder / "m.pt")],
    )
    assert exported.exit_code == 0, exported.output
    by_path = began(place, "--restore.mode", "finetune", "--restore.from", "m.pt", "--restore.fresh", "ema")
    url = f"file://{place.folder}/m.pt"
    by_url = began(place, "--restore.mode", "finetune", "--restore.from", url, "--restore.fresh", "ema")
    plain = began(place, "--restore.mode", "finetune", "--restore.from", base.run_folder)
    assert by_path["model"] == by_url["model"] == plain["model"]
    assert list(Path(by_url["folder"]).glob("sources/*/m.pt"))
    assert "only weights are read" in refused(place, "--restore.mode", "hotstart", "--restore.from", "m.pt")
