"""autoresume status, logs, stop, cancel and requeue on hand-made run directories, with Slurm's commands of our own."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from autoresume.checkpoint import incarnation, requests
from autoresume.cli import cli
from autoresume.cli.status import describe
from autoresume.errors import AutoresumeError
from autoresume.format import names
from tests.cli.runs import FakeRun
from tests.slurm.conftest import Programs, programs  # noqa: F401  (a fixture)

LINE = "JobId={id} JobName=a UserId=me(1) JobState={state} Reason={reason} Requeue=1 Restarts=0 EndTime=Unknown NodeList=n1"
ALIVE = [incarnation.this_process()]


@pytest.fixture
def run(tmp_path: Path) -> FakeRun:
    return FakeRun(tmp_path / "runs" / "gpt")


@pytest.fixture
def slurm(programs: Programs) -> Programs:  # noqa: F811
    says(programs, "")
    programs.make("scancel")
    return programs


def says(slurm: Programs, state: str, reason: str = "None", id: str = "71") -> None:
    """Of the job; nothing: Slurm has forgotten it."""
    line = LINE.format(id=id, state=state, reason=reason)
    forgotten = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
    slurm.make("scontrol", f"echo '{line}'" if state else forgotten)


def submitted(folder: Path, job: str = "71") -> None:
    (folder / "submissions").mkdir(parents=True)
    (folder / "submissions/0001.json").write_text(json.dumps({"job": job}))


def output(*arguments: object) -> str:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def error(*arguments: object) -> str:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert isinstance(result.exception, AutoresumeError), (result.output, result.exception)
    return str(result.exception)


def ended(how: str, step: int | None = 100, **more: Any) -> dict[str, Any]:
    return {"time": time.time(), "how": how, "step": step, "why": "because", **more}


def state_of(run: FakeRun) -> tuple[str, str]:
    found = describe(run.storage)
    return found["state"], found["why"]


# -- status -----------------------------------------------------------------------------------------


def test_the_state_of_a_run_without_slurm(run: FakeRun) -> None:
    """From its records and the processes that are here."""
    assert state_of(run) == ("new", "it has never been started")
    run.life(1, 0, ended("failed", then="restart here: error: the ranks are started again in this job", cause="error"))
    assert state_of(run) == ("failed", "restart here: error: the ranks are started again in this job")
    run.life(2, 100, ended("interrupted"))
    assert state_of(run) == ("interrupted", "because")
    run.life(3, 100, None)
    assert state_of(run)[0] == "dead"
    run.life(4, None, None, processes=ALIVE)
    assert state_of(run)[0] == "starting"
    run.life(5, 100, None, processes=ALIVE)
    assert state_of(run)[0] == "training"
    run.life(6, 100, ended("finished", 300))
    assert state_of(run) == ("finished", "after step 300")
    assert describe(run.storage)["lives"] == 6


@pytest.mark.parametrize(("seconds", "state"), [(5, "training"), (300, "dead")])
def test_a_life_on_another_machine_is_judged_by_its_heartbeat(run: FakeRun, seconds: float, state: str) -> None:
    """Its processes can't be seen from here."""
    run.life(1, 0, None, boot="another", host="node7")
    run.storage.write(names.heartbeat_file(1), repr(time.time() - seconds).encode())
    assert state_of(run)[0] == state
    assert "node7" in state_of(run)[1]


@pytest.mark.parametrize(
    ("job", "state", "why"),
    [
        ("PENDING", "waiting", "job 71 is pending (Priority)"),
        ("RUNNING", "starting", "job 71 runs on n1, and has not claimed the run yet"),
        ("", "interrupted", "because"),
        ("COMPLETED", "interrupted", "because"),
    ],
)
def test_the_state_of_a_run_with_a_job(run: FakeRun, slurm: Programs, job: str, state: str, why: str) -> None:
    """Between two lives the job says more than the record of the last one."""
    run.life(1, 0, ended("interrupted"), job={"id": "71", "spelled": "71"})
    says(slurm, job, "Priority" if job == "PENDING" else "None")
    assert state_of(run) == (state, why)


def test_slurm_is_asked_once_for_each_job_and_its_absence_is_told(run: FakeRun, slurm: Programs) -> None:
    """A controller that is away hides nothing else; a run without jobs asks nobody."""
    run.life(1, 0, ended("interrupted"))
    assert describe(run.storage)["slurm"] is None
    assert slurm.calls() == []
    submitted(run.folder)
    slurm.make("scontrol", "echo 'Unable to contact slurm controller (connect failure)' >&2; exit 1")
    assert "Unable to contact slurm controller" in describe(run.storage)["slurm"]
    assert len(slurm.calls()) == 1
    assert "Unable to contact" in output("status", run.folder)


def test_the_last_word_of_a_life_counts(run: FakeRun) -> None:
    """Its record knows of steps that rank 0's last word did not; a life that goes on has used up no budget."""
    run.life(1, 0, ended("interrupted", 130, cause="killed"))
    run.storage.write(names.PROGRESS, json.dumps({"incarnation": 1, "step": 104, "time": time.time()}).encode())
    assert describe(run.storage)["step"] == 130
    run.life(2, 130, None, processes=ALIVE)
    incarnation.update(run.storage, 2, lambda record: record.began.update(time=time.time()))
    assert describe(run.storage)["budgets"] == {"killed": "1 of 5"}


def test_progress_checkpoints_and_budgets(run: FakeRun) -> None:
    """Everything of `--json`, in the table as well."""
    newest = run.checkpoint(200, life=2)
    run.checkpoint(300, life=2, parts=1)
    for number in (1, 2):
        run.life(number, 0, ended("died", 200, cause="killed"))
    run.life(3, 200, None, processes=ALIVE)
    progress = {"incarnation": 3, "step": 240, "epoch": 2, "step_seconds": 0.25, "time": time.time(), "next_save": "in 30 s", "save_cost_seconds": 1.5, "save_durable_seconds": 3.25, "failure_seconds": 14400.0, "save_every_seconds": 207.8}  # fmt: skip
    run.storage.write("progress.json", json.dumps(progress).encode())
    requests.ask_to_stop(run.storage, "autoresume stop by ada on login1")
    found = json.loads(output("status", run.folder, "--json"))
    assert (found["step"], found["checkpoint"], found["next_save"]) == (240, str(newest), "in 30 s")
    assert {key: found[key] for key in ("save_durable_seconds", "failure_seconds", "save_every_seconds")} == {
        "save_durable_seconds": 3.25,
        "failure_seconds": 14400.0,
        "save_every_seconds": 207.8,
    }
    assert found["budgets"] == {"killed": "2 of 5"}
    assert found["stop_asked"] == "autoresume stop by ada on login1"
    assert [life["cause"] for life in found["history"]] == ["killed", "killed", None]
    text = output("status", run.folder)
    for words in ("step 240 (epoch 2), 0.25 s a step", "killed: 2 of 5", "asked to stop: autoresume stop by ada", str(newest), "steps 0 to 200", "training", "in 30 s; a save stops training for 1.5 s, is durable after 3.2 s, 4.0 h lie between failures: every 3 min"):  # fmt: skip
        assert words in text


@pytest.mark.parametrize("rubbish", [b"", b"{", b"[]", b"null"])
def test_a_damaged_note_of_the_progress_hides_nothing(run: FakeRun, rubbish: bytes) -> None:
    """The newest checkpoint's step stands for it."""
    run.checkpoint(200)
    run.life(1, 0, ended("interrupted", 200))
    run.storage.write("progress.json", rubbish)
    assert describe(run.storage)["step"] == 200
    assert "step 200" in output("status", run.folder)


def test_all_runs_below_the_folder(run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line each; a damaged one does not hide the others; without any that is said."""
    other = FakeRun(run.folder.parent / "bert")
    other.life(1, 0, ended("finished", 9))
    monkeypatch.chdir(run.folder.parent.parent)
    found = [json.loads(line) for line in output("status", "--json").splitlines()]
    assert [(one["run"], one["state"]) for one in found] == [("runs/bert", "finished"), ("runs/gpt", "new")]
    monkeypatch.chdir(run.folder)
    assert "there are no runs below ./runs" in error("status")


def test_a_run_that_was_submitted_and_not_yet_started(tmp_path: Path, slurm: Programs) -> None:
    """What sbatch tells its user to type works at once: status, stop, cancel."""
    folder = tmp_path / "fresh"
    submitted(folder)
    says(slurm, "PENDING", "Resources")
    found = json.loads(output("status", folder, "--json"))
    assert (found["state"], found["why"]) == ("waiting", "job 71 is pending (Resources)")
    assert output("stop", folder) == "job 71 was waiting, and is cancelled\n"
    assert output("cancel", folder) == "job 71 is cancelled\n"
    assert slurm.calls("scancel") == ["scancel --state=PENDING 71", "scancel 71"]


# -- logs -------------------------------------------------------------------------------------------


def test_logs_of_all_lives_in_order(run: FakeRun) -> None:
    """Oldest first, as the jobs wrote them; the last lines, if only those are wanted."""
    (run.folder / "logs").mkdir()
    for index, (job, text) in enumerate([("9", "one\ntwo\n"), ("10", "three\nf\xfcnf".encode("latin1"))]):
        file = run.folder / f"logs/{job}.log"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        os.utime(file, (index, index))
    result = CliRunner().invoke(cli, ["logs", str(run.folder)])
    assert result.stdout_bytes == b"one\ntwo\nthree\nf\xfcnf"
    assert CliRunner().invoke(cli, ["logs", "-n", "2", str(run.folder)]).stdout_bytes == b"three\nf\xfcnf"
    assert output("logs", "-n", "0", run.folder) == ""
    assert CliRunner().invoke(cli, ["logs", "-n", "-3", str(run.folder)]).exit_code == 2


def test_following_ends_with_the_jobs(run: FakeRun, slurm: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lost between what was shown and what follows, and nothing shown twice."""
    from autoresume.cli import logs

    monkeypatch.setattr(logs, "_ASK_SECONDS", 0.0)
    monkeypatch.setattr(logs, "_LOOK_SECONDS", 0.01)
    (run.folder / "logs").mkdir()
    log = run.folder / "logs/71.log"
    log.write_text("one\n")
    submitted(run.folder)
    line = LINE.format(id=71, state="RUNNING", reason="None")
    slurm.make("scontrol", f'[ "$count" -lt 2 ] || exit 0; echo "line $count" >> {log}; echo "{line}"')
    assert output("logs", "-f", run.folder) == "one\nline 0\nline 1\n"


def test_a_run_without_logs(run: FakeRun, tmp_path: Path) -> None:
    """Says why there are none; a folder that is no run is named."""
    assert "its jobs were not submitted by autoresume sbatch" in error("logs", run.folder)
    assert "is no run directory" in error("logs", tmp_path / "nowhere")


# -- stop, cancel, requeue --------------------------------------------------------------------------


def test_stopping_what_trains(run: FakeRun) -> None:
    """The request lies in the run's folder, with who made it."""
    run.life(1, 0, None, processes=ALIVE)
    assert output("stop", run.folder) == f"{run.folder} is asked to stop: it saves at its next step and leaves\n"
    assert (requests.stop_requested(run.storage) or "").startswith("autoresume stop by ")


@pytest.mark.parametrize("how", [None, "finished"])
def test_stopping_what_does_not_train(run: FakeRun, how: str | None) -> None:
    """It has ended, or died without a word: nobody would hear the request, and none is left for later."""
    run.life(1, 0, ended(how) if how else None)
    assert "is not training" in error("stop", run.folder)
    assert requests.stop_requested(run.storage) is None


def test_stopping_a_job_that_is_starting(run: FakeRun, slurm: Programs) -> None:
    """It runs, and has not claimed the run: it is asked, and nothing is cancelled."""
    submitted(run.folder)
    says(slurm, "RUNNING")
    assert "is asked to stop" in output("stop", run.folder)
    assert requests.stop_requested(run.storage)
    assert slurm.calls("scancel") == []


def test_stopping_an_array(tmp_path: Path, slurm: Programs) -> None:
    """All tasks that train are asked; those that wait are cancelled, and only those."""
    folder = tmp_path / "sweep"
    submitted(folder)
    tasks = [FakeRun(folder / f"task-{number}") for number in (1, 2)]
    for task in tasks:
        task.life(1, 0, None, processes=ALIVE)
    lines = [LINE.format(id=72, state="RUNNING", reason="None") + " ArrayJobId=71 ArrayTaskId=1", LINE.format(id=71, state="PENDING", reason="JobArrayTaskLimit") + " ArrayJobId=71 ArrayTaskId=3-9"]  # fmt: skip
    slurm.make("scontrol", "".join(f"echo '{line}';" for line in lines))
    text = output("stop", folder)
    assert "job 71 was waiting, and is cancelled" in text
    assert "is asked to stop" in text
    assert slurm.calls("scancel") == ["scancel --state=PENDING 71"]
    assert all(requests.stop_requested(task.storage) for task in tasks)
    rows = [json.loads(line) for line in output("status", "--json", folder).splitlines()]
    assert [row["run"] for row in rows] == [str(task.folder) for task in tasks]


def test_requeue_and_cancel_act_on_the_runs_jobs(run: FakeRun, slurm: Programs) -> None:
    """A requeue only of one that runs; without any that is said."""
    submitted(run.folder)
    for words in ("cancel", "requeue"):
        assert "no job of" in error(words, run.folder)
    says(slurm, "PENDING")
    assert "is running: it waits already" in error("requeue", run.folder)
    says(slurm, "RUNNING")
    assert output("requeue", run.folder) == "job 71 is requeued\n"
    assert "scontrol requeue 71" in slurm.calls()
    assert output("cancel", run.folder) == "job 71 is cancelled\n"
    assert slurm.calls("scancel") == ["scancel 71"]


def test_commands_that_need_slurm_say_so(run: FakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is none."""
    submitted(run.folder)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "there is no scontrol on this machine" in error("cancel", run.folder)
