"""The examples of trainings that begin from others: tasks one after the other, a database that is built again, modules
and callbacks."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

from tests.real_scripts.harness import Place, Stage

EXAMPLES = Path(__file__).parents[2] / "examples"


def copy(stage: Stage, name: str, example: str) -> tuple[Place, str]:
    """A place with the example in it, and the script's path there."""
    place = stage.place(name)
    shutil.copytree(EXAMPLES / example, place.folder)
    return place, str(place.folder / "train.py")


def steps_with(run: Path, tag: str) -> list[int]:
    manifests = [json.loads(path.read_text()) for path in run.glob("checkpoints/*/manifest.json")]
    return [int(one["checkpoint"].split("_")[1][1:]) for one in manifests if tag in one["labels"]["tags"]]


def test_tasks_one_after_the_other(stage: Stage) -> None:
    """A checkpoint stays after each task; interrupted in the second, the training goes on in it, bit for bit; and a new
    run begins behind a task, with the buffer and the results so far."""
    whole, script = copy(stage, "whole", "task_wise")
    torn, torn_script = copy(stage, "torn", "task_wise")
    done = whole.run(script, "--tasks", "3")
    assert done.code == 0, done.err
    assert [len(steps_with(whole.run_folder, f"task={task}")) for task in range(3)] == [1, 1, 1]
    often = {"AUTORESUME_SAVE_EVERY": "5 steps"}
    killed = torn.run(torn_script, "--tasks", "3", AUTORESUME_FAILPOINT="save.begin:11", **often)
    assert killed.code == -signal.SIGKILL
    again = torn.run(torn_script, "--tasks", "3", **often)
    assert 31 < torn.incarnations()[1]["began"]["step"] < 62, "in the second task"
    assert again.out.splitlines()[-3:] == done.out.splitlines()[-3:]
    assert torn.metrics == whole.metrics
    behind = whole.run(
        script,
        "--tasks",
        "3",
        "--restore.mode=hotstart",
        f"--restore.from={whole.run_folder}",
        "--restore.select=task=1",
    )
    assert behind.out.splitlines()[-3:] == done.out.splitlines()[-3:], "only the last task was trained again"
    assert "hotstart of" in behind.err


def test_other_arguments_are_refused_unless_allowed(stage: Stage) -> None:
    """A task-wise training goes on with the arguments that it began with."""
    place, script = copy(stage, "run", "task_wise")
    variables = {"AUTORESUME_RUN_DIR": "run"}
    assert place.run(script, "--tasks", "2", "--epochs", "1", **variables).code == 0
    words = (
        "--restore.mode=hotstart",
        "--restore.from=run",
        "--restore.select=task=0",
        "--tasks",
        "2",
        "--epochs",
        "1",
    )
    refused = place.run(script, *words, "--lr", "0.2")
    assert refused.code == 1
    assert "1 settings are not those that the checkpoint was made with: lr: 0.1 -> 0.2" in refused.err
    assert place.run(script, *words, "--lr", "0.2", "--restore.strict=config=false").code == 0


def test_a_database_is_built_again_and_the_best_model_used(stage: Stage) -> None:
    """Other arguments for the data set are not taken by a run that has begun; the best checkpoint stays, and is loaded
    from the working directory by a script that knows nothing but the classes."""
    place, script = copy(stage, "run", "molecules")
    done = place.run(script, "--epochs", "3", AUTORESUME_KEEP="1")
    assert done.code == 0, done.err
    run = place.folder / "potential"
    errors = {step: values["valid_mae"] for step, values in metrics(run).items() if "valid_mae" in values}
    best = min(errors, key=lambda step: errors[step])
    kept = [json.loads(path.read_text())["checkpoint"] for path in run.glob("checkpoints/*/manifest.json")]
    assert f"_U{best}_" in " ".join(kept)
    predicted = place.run(str(place.folder / "predict.py"))
    assert predicted.code == 0, predicted.err
    assert predicted.out.strip() == f"mean absolute error {errors[best]:.4f}"
    more = place.run(script, "--epochs", "4", "--size", "512", "--restore.mode=continue", "--restore.from=potential")
    assert more.code == 0, more.err
    assert "is made with the arguments of this run's first start" in more.err
    assert "config.size: 256 -> 512" in more.err


def metrics(run: Path) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        found.setdefault(record["step"], {}).update(record["values"])
    return found


def test_modules_and_callbacks(stage: Stage) -> None:
    """More epochs than first planned, a lower learning rate from the end of another run, and callbacks by their names."""
    place, script = copy(stage, "run", "modules")
    assert place.run(script, AUTORESUME_RUN_DIR="run").code == 0
    more = place.run(script, "max_epochs=6", "--restore.mode=continue", "--restore.from=run")
    assert more.code == 0, more.err
    assert "config.max_epochs: 4 -> 6" in more.err
    assert max(metrics(place.folder / "run")) == 48
    lower = place.run(
        script, "max_epochs=5", "lr=0.0001", "--restore.mode=hotstart", "--restore.from=run", "--restore.select=E3",
        "--restore.fresh=optimizer.lr", AUTORESUME_RUN_DIR="lower",
    )  # fmt: skip
    assert lower.code == 0, lower.err
    assert json.loads((place.folder / "lower/reports/0001.json").read_text())["reset"] == ["optimizer.lr"]
    state = json.loads((place.folder / "lower/reports/0001.json").read_text())["restored"]
    assert set(state) == {"module", "optimizer", "scheduler", "average", "early_stopping"}
