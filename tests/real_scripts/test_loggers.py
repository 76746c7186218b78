"""Runs that are killed and preempted, and what the tools that show them hold afterwards: each step exactly once."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from autoresume.loggers.wandb import rows_in
from tests.real_scripts.harness import Place, Stage

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = list(range(1, 31))


def expected(place: Place, name: str) -> list[tuple[int, float]]:
    return [(step, values[name]) for step, values in place.metrics.items() if name in values]


def of_tensorboard(run: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def of_csv(run: Path, name: str) -> list[tuple[int, float]]:
    with open(run / "metrics.csv", newline="") as file:
        return [(int(row["step"]), float(row[name])) for row in csv.DictReader(file) if row[name]]


def of_mlflow(run: Path, name: str, uri: str = "") -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    identity = json.loads((run / "run.json").read_text())["loggers"]["mlflow"]
    client = MlflowClient(tracking_uri=uri or identity["tracking_uri"])
    return [(one.step, one.value) for one in client.get_metric_history(identity["run_id"], name)]


def of_wandb(run: Path, name: str) -> list[tuple[int, float]]:
    """All rows of all its files, as they would be sent."""
    found = []
    for path in sorted((run / "wandb").glob("offline-run-*/*.wandb")):
        found += [(int(row["step"]), float(row[name])) for row in rows_in(path) if name in row]
    return found


READ: dict[str, Callable[[Path, str], list[tuple[int, float]]]] = {
    "tensorboard": of_tensorboard,
    "csv": of_csv,
    "mlflow": of_mlflow,
    "wandb": of_wandb,
}


@pytest.mark.parametrize("tool", READ)
def test_each_step_exactly_once(tool: str, stage: Stage) -> None:
    """Killed, preempted and killed again: the tool's own store holds one run, in which each step stands once, in order,
    with the journal's value; also of a metric that is logged now and then."""
    place = stage.place("run")
    lives = place.live(
        "logged.py", nasty=["KILL@12", "TERM@19", "KILL@28", ""], AUTORESUME_LOGGERS=tool, WANDB_SILENT="true"
    )
    assert lives == 4
    for name in ("loss", "accuracy"):
        found = READ[tool](place.run_folder, name)
        wanted = expected(place, name)
        assert [step for step, _ in found] == [step for step, _ in wanted], name
        assert [value for _, value in found] == pytest.approx([value for _, value in wanted], rel=1e-6)
    assert [step for step, _ in expected(place, "loss")] == STEPS
    assert len(set(place.run_folder.glob("incarnations/*.json"))) == 4
    assert list(json.loads((place.run_folder / "run.json").read_text())["loggers"]) == [tool]


def test_the_logging_run_goes_by_the_mode(stage: Stage) -> None:
    """continue goes on in the tools' same run, in which each step stands once; hotstart and finetune have a new one, which
    names its parent and how it began. By what MLflow and W&B hold."""
    place = stage.place("run")
    tools = {"AUTORESUME_LOGGERS": "mlflow,wandb", "WANDB_SILENT": "true"}
    assert place.run("logged.py", AUTORESUME_RUN_DIR="base", **tools).code == 0
    before = identities(place.folder / "base")
    words = ("--restore.from", "base", "--restore.mode")
    more = place.run("logged.py", *words, "continue", STEPS="34", **tools)
    assert more.code == 0, more.err
    assert identities(place.folder / "base") == before
    for tool in ("mlflow", "wandb"):
        assert [step for step, _ in READ[tool](place.folder / "base", "loss")] == [*STEPS, 31, 32, 33, 34]
    for mode, tool, key, first in (("hotstart", "mlflow", "run_id", 35), ("finetune", "wandb", "id", 1)):
        variables = {**tools, "AUTORESUME_LOGGERS": tool, "AUTORESUME_RUN_DIR": mode}
        done = place.run("logged.py", *words, mode, STEPS="36", **variables)
        assert done.code == 0, done.err
        found = identities(place.folder / mode)
        assert found[tool][key] != before[tool][key]
        assert [step for step, _ in READ[tool](place.folder / mode, "loss")] == list(range(first, 37))
    from mlflow import MlflowClient

    identity = identities(place.folder / "hotstart")["mlflow"]
    tags = MlflowClient(identity["tracking_uri"]).get_run(identity["run_id"]).data.tags
    assert tags["autoresume.parent"] == before["mlflow"]["run_id"]
    assert tags["autoresume.origin"].startswith("hotstart of base")


def identities(run: Path) -> dict[str, dict[str, str]]:
    return dict(json.loads((run / "run.json").read_text())["loggers"])


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[Callable[[], str]]:
    """A function that starts a real server over one store (the same port each time), and stops a running one."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri, running = f"http://127.0.0.1:{port}", list[subprocess.Popen[bytes]]()

    def toggle() -> str:
        if running:
            running[0].terminate()
            running.pop().wait(30)
            return uri
        store = f"sqlite:///{tmp_path}/server.db"
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--backend-store-uri", store,
                   "--workers", "1"]  # fmt: skip
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        running.append(
            subprocess.Popen(
                command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        )
        deadline = time.monotonic() + 300
        while True:
            try:
                with urllib.request.urlopen(f"{uri}/health", timeout=5):
                    return uri
            except (urllib.error.URLError, OSError):
                assert running[0].poll() is None, "the server ended by itself"
                assert time.monotonic() < deadline
                time.sleep(0.1)

    yield toggle
    if running:
        toggle()


@pytest.mark.timeout(900)
def test_a_server_that_is_down_meanwhile(mlflow_server: Callable[[], str], stage: Stage) -> None:
    """A run that began while the server was up comes to its end while it is down: training never waits for it, what was
    not given is said, and `autoresume publish` gives it; a second time nothing is given twice."""
    place = stage.place("run")
    uri = mlflow_server()
    variables = {"AUTORESUME_LOGGERS": "mlflow", "MLFLOW_TRACKING_URI": uri}
    assert place.run("logged.py", NASTY="TERM@11", **variables).code == 75
    mlflow_server()
    down = place.run("logged.py", **variables)
    assert down.code == 0, down.err
    assert "the logger 'mlflow' failed" in down.err
    assert "mlflow did not take everything in time: `autoresume publish RUN` gives them" in down.err
    mlflow_server()
    for _ in range(2):
        command = [sys.executable, "-m", "autoresume", "publish", str(place.run_folder)]
        published = subprocess.run(command, capture_output=True, text=True, timeout=100)
        assert published.returncode == 0, published.stderr
        assert "mlflow: everything up to step 30 is there" in published.stdout
        assert [step for step, _ in of_mlflow(place.run_folder, "loss", uri)] == STEPS
    from mlflow import MlflowClient

    run = MlflowClient(tracking_uri=uri).get_run(identities(place.run_folder)["mlflow"]["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params == {"lr": "0.1", "model.width": "3"}
    assert run.data.tags["autoresume.run_dir"] == str(place.run_folder)


def test_direct_calls_to_the_tool(stage: Stage) -> None:
    """`run.logger(name)` is the tool's own object: what a script logs to it stands beside our rows, and takes the place
    of none, though those come later, with the commits."""
    place = stage.place("run")
    done = place.run("logged.py", DIRECT="1", AUTORESUME_LOGGERS="wandb,tensorboard,csv", WANDB_SILENT="true")
    assert done.code == 0, done.err
    (path,) = (place.run_folder / "wandb").glob("offline-run-*/*.wandb")
    rows = list(rows_in(path))
    assert [int(row["step"]) for row in rows if "loss" in row] == STEPS
    assert [json.loads(row["extra"]) for row in rows if "extra" in row] == [10, 20, 30]
    assert [event.step for event in EventAccumulator(str(place.run_folder / "tensorboard")).Reload().Scalars("extra")] == [
        10, 20, 30]  # fmt: skip
