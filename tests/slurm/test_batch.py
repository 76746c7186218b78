"""The batch system as the node daemon asks it: news, causes and requeues, with a real program as scontrol."""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autoresume.node import batch_job, policy
from autoresume.node.batch_job import SlurmCluster
from autoresume.node.causes import Cause
from autoresume.node.cluster import Notice
from autoresume.slurm import commands
from autoresume.slurm.environment import Task
from tests.node.harness import wait_until
from tests.slurm.conftest import Programs

AWAY = "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1"
DENIED = "echo 'Access/permission denied' >&2; exit 1"
EXIT = 75


class Slurm:
    """A controller that says what a test wants."""

    def __init__(self, programs: Programs) -> None:
        self.programs = programs
        self.exits, self.requeue, self.config = "(null)", "exit 0", ""
        self.says()

    def says(self, state: str = "RUNNING", *, reason: str = "None", restarts: int = 0, preempt: float | None = None, end: float | None = None, excluded: str = "(null)", flag: int = 1) -> None:  # fmt: skip
        """From now on of job 71."""
        line = (
            f"JobId=71 JobName=a UserId=me(1) JobState={state} Reason={reason} Requeue={flag} Restarts={restarts} "
            f"EndTime={moment(end) or 'Unknown'} PreemptTime={moment(preempt) or 'None'} ExcNodeList={excluded} NodeList=n1"
        )
        self.do(f"echo '{line}'")

    def do(self, body: str) -> None:
        """From now on when it is asked for the job."""
        config = self.config or f"echo 'KillWait                = 5 sec'; echo 'RequeueExit             = {self.exits}'"
        self.programs.make(
            "scontrol", f'case "$*" in *"show job"*) {body};; *config) {config};; requeue*) {self.requeue};; esac'
        )

    def asked(self) -> list[str]:
        return [call.removeprefix("scontrol ") for call in self.programs.calls() if "show" not in call]


def moment(value: float | None) -> str:
    return "" if value is None else datetime.datetime.fromtimestamp(value).isoformat(timespec="seconds")


@pytest.fixture
def slurm(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    monkeypatch.setattr(batch_job, "_LOOK_SECONDS", 600.0)
    monkeypatch.setattr(batch_job, "_HURRY_SECONDS", 0.02)
    monkeypatch.setattr(batch_job, "_PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(commands, "_RETRY_SECONDS", 0.02)
    return Slurm(programs)


Make = Callable[..., SlurmCluster]


@pytest.fixture
def cluster(slurm: Slurm, tmp_path: Path) -> Iterator[Make]:
    """One that has looked once."""
    all_made = list[SlurmCluster]()

    def make(successor: bool = False, restart: int = 0, end: float | None = None, look: bool = True) -> SlurmCluster:
        task = Task("71", restart, 0, 1, 0, 1, "n1", "low", end=end)
        made = SlurmCluster(task, tmp_path / "life", successor)
        all_made.append(made)
        if look:
            wait_until(lambda: slurm.programs.calls("scontrol show config"))
        return made

    yield make
    for one in all_made:
        one.close()


def next_news(cluster: SlurmCluster) -> Notice:
    """What a hurried daemon hears."""
    cluster.hurry()
    found = list[Notice]()

    def look() -> bool:
        notice = cluster.news()
        found.extend([notice] if notice is not None else [])
        return bool(found)

    wait_until(look, what="news")
    return found[0]


# -- news -------------------------------------------------------------------------------------------


def test_the_end_of_the_job_and_its_change(slurm: Slurm, cluster: Make) -> None:
    """The time limit is known; if somebody changes it that is news, and the same once more is not."""
    slurm.says(end=time.time() + 3600)
    made = cluster()
    first = next_news(made)
    assert first.end is not None
    assert abs(first.end - time.monotonic() - 3600) < 10
    assert (first.cause, first.requeued, first.cancelled, first.over) == (None, False, False, False)
    slurm.says(end=time.time() + 7200)
    second = next_news(made)
    assert second.end is not None
    assert 3590 < second.end - first.end < 3610


def test_what_is_not_new_is_not_news(slurm: Slurm, cluster: Make) -> None:
    """A job without a limit says the same again and again."""
    made = cluster()
    next_news(made)
    before = len(slurm.programs.calls("scontrol -o show job"))
    made.hurry()
    wait_until(lambda: len(slurm.programs.calls("scontrol -o show job")) > before + 3)
    assert made.news() is None


def test_a_signal_hurries(slurm: Slurm, cluster: Make) -> None:
    """Slurm is asked at once, and again soon: a state may follow the signal."""
    made = cluster()
    next_news(made)
    slurm.says(preempt=time.time(), end=time.time() + 60)
    notice = next_news(made)
    assert (notice.cause, notice.over, notice.requeued) == (Cause.PREEMPTED, True, False)
    assert notice.end is not None
    assert abs(notice.end - time.monotonic() - 60) < 10


def test_a_job_that_is_being_ended_has_kill_wait_left(slurm: Slurm, cluster: Make) -> None:
    """From when that was seen first, however often it is seen."""
    made = cluster()
    next_news(made)
    slurm.says("COMPLETING", restarts=1)
    notice = next_news(made)
    assert (notice.cause, notice.requeued, notice.over) == (Cause.REQUEUED, True, True)
    assert notice.end is not None
    assert 0 < notice.end - time.monotonic() <= 5
    assert made.why_stopped("SIGTERM").end == notice.end


def test_the_end_that_the_environment_names(slurm: Slurm, cluster: Make) -> None:
    """In a container without scontrol nothing else tells of the time limit."""
    slurm.do("exit 127")
    end = cluster(end=time.time() + 600, look=False).news()
    assert end is not None
    assert end.end is not None
    assert abs(end.end - time.monotonic() - 600) < 10


# -- why it was stopped -----------------------------------------------------------------------------


def test_the_cause_of_a_stop(slurm: Slurm, cluster: Make) -> None:
    """As Slurm tells it when it is asked."""
    made = cluster()
    assert made.why_stopped("SIGTERM received").cause is None
    assert made.why_stopped(policy.LIMIT_IS_NEAR).cause is Cause.TIME_LIMIT
    slurm.says("COMPLETING")
    assert made.why_stopped("SIGTERM received") == Notice(made.why_stopped("").end, Cause.CANCELLED, False, True, True)
    slurm.says("COMPLETING", reason="TimeLimit")
    assert made.why_stopped("SIGTERM received").cause is Cause.TIME_LIMIT


def test_a_preemption_that_has_ended_in_a_requeue_is_one(slurm: Slurm, cluster: Make) -> None:
    """At the end of the grace time Slurm only says that it was requeued: what was seen before is remembered."""
    slurm.says(preempt=time.time())
    made = cluster()
    slurm.says("COMPLETING", restarts=1)
    notice = made.why_stopped("SIGTERM received")
    assert (notice.cause, notice.requeued) == (Cause.PREEMPTED, True)


def test_without_the_configuration_the_job_is_known_all_the_same(slurm: Slurm, cluster: Make) -> None:
    """Only KillWait is guessed then."""
    slurm.config = AWAY
    slurm.says("COMPLETING")
    assert cluster(look=False).why_stopped("SIGTERM").cause is Cause.CANCELLED


def test_a_controller_that_is_away_at_the_end(slurm: Slurm, cluster: Make, caplog: pytest.LogCaptureFixture) -> None:
    """It is waited for, with a bound; then the job counts as given back, and the batch script asks later."""
    made = cluster()
    slurm.do(AWAY)
    began = time.monotonic()
    with caplog.at_level(logging.WARNING, "autoresume"):
        notice = made.why_stopped("SIGTERM received")
        assert (notice.cause, notice.cancelled, notice.requeued) == (Cause.SIGNAL, False, False)
        assert made.requeue("signal: the job is requeued", ()) == EXIT
    assert time.monotonic() - began < 20
    assert made.folder is not None
    assert (made.folder / "requeue").read_text() == "signal: the job is requeued\n"
    assert "Slurm does not answer" in caplog.text
    assert "the batch script tries it" in caplog.text


# -- requeues ---------------------------------------------------------------------------------------


def test_a_preempted_job_is_requeued(slurm: Slurm, cluster: Make) -> None:
    """Slurm does not do it for a job that exits in its grace time."""
    slurm.says(preempt=time.time())
    assert cluster().requeue("preempted: the job is requeued", ()) == EXIT
    assert slurm.asked() == ["requeue 71"]


@pytest.mark.parametrize(
    ("state", "restarts"), [("COMPLETING", 0), ("CANCELLED", 0), ("COMPLETING", 1), ("PENDING", 1), ("COMPLETED", 0)]
)
def test_who_must_not_be_requeued(slurm: Slurm, cluster: Make, state: str, restarts: int, tmp_path: Path) -> None:
    """Cancelled by its user meanwhile, requeued by Slurm, over: it is looked at again just before, and not asked for."""
    made = cluster()
    slurm.says(state, restarts=restarts)
    assert made.requeue("killed: the job is requeued", ()) == EXIT
    assert slurm.asked() == []
    assert not (tmp_path / "life" / "requeue").exists()


def test_a_forgotten_job_is_not_requeued(slurm: Slurm, cluster: Make) -> None:
    """Slurm has lost it."""
    made = cluster()
    slurm.do("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert made.requeue("killed", ()) == EXIT
    assert slurm.asked() == []


@pytest.mark.parametrize(
    ("state", "flag", "exclude", "code"),
    [
        ("RUNNING", 1, (), 85),
        ("RUNNING", 0, (), EXIT),
        ("RUNNING", 1, ("n7",), EXIT),
        ("COMPLETING", 1, (), EXIT),
    ],
)
def test_an_exit_code_asks_for_it_where_the_site_has_one(
    slurm: Slurm, cluster: Make, state: str, flag: int, exclude: tuple[str, ...], code: int, tmp_path: Path
) -> None:
    """Only of a job that runs and may be requeued, and if no node is to be left out; the batch script knows of it too,
    since srun's own code is another one if a task was killed. Otherwise scontrol asks."""
    slurm.exits = "85,90"
    slurm.says(state, reason="TimeLimit" if state == "COMPLETING" else "None", flag=flag)
    assert cluster().requeue("killed", exclude) == code
    assert slurm.asked()[:1] == ([] if code == 85 else ["requeue 71"])
    assert (tmp_path / "life" / "requeue").exists() == (code == 85)


def test_nodes_are_left_out_beside_those_that_are_already(slurm: Slurm, cluster: Make) -> None:
    """After the requeue, since Slurm takes the list of a waiting job only."""
    slurm.says(excluded="n7")
    cluster().requeue("killed", ("n1", "n2"))
    assert slurm.asked() == ["requeue 71", "update job=71 ExcNodeList=n7,n1,n2"]


def test_a_denied_requeue_is_left_to_the_batch_script(slurm: Slurm, cluster: Make, tmp_path: Path) -> None:
    """Which runs outside of the container, and as its user."""
    slurm.requeue = DENIED
    slurm.says()
    assert cluster().requeue("killed: the job is requeued", ()) == EXIT
    assert (tmp_path / "life" / "requeue").read_text() == "killed: the job is requeued\n"


def test_a_successor_goes_on_instead(slurm: Slurm, cluster: Make) -> None:
    """Where a job waits for the end of this one nothing is asked for; when nothing follows that is told to the script."""
    made = cluster(successor=True)
    assert made.requeue("killed", ()) == EXIT
    assert slurm.asked() == []
    made.ended(Cause.FINISHED, "the run is finished")
    assert made.folder is not None
    assert (made.folder / "done").read_text() == "finished: the run is finished\n"


def test_a_later_life_knows_its_number(slurm: Slurm, cluster: Make) -> None:
    """Two restarts are no news to the third life."""
    slurm.says(restarts=2)
    assert cluster(restart=2).requeue("killed", ()) == EXIT
    assert slurm.asked() == ["requeue 71"]
