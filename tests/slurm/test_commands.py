"""Slurm's commands as real programs: refused, away for a while, away, hanging, missing."""

from __future__ import annotations

import time

import pytest

from autoresume.slurm import commands, queue
from autoresume.slurm.commands import SlurmAway, SlurmMissing, SlurmRefused
from tests.node.harness import is_gone, wait_until
from tests.slurm.conftest import Programs

AWAY = 'echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2; exit 1'
LINE = (
    "JobId=7 JobName=a UserId=me(1) JobState=RUNNING Reason=None Requeue=1 Restarts=0 ExcNodeList=node9 NodeList=node1"
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_RETRY_SECONDS", 0.02)


def test_what_a_command_says(programs: Programs) -> None:
    """Its standard output; arguments reach it as they are."""
    programs.make("scontrol", 'echo "$2"; echo noise >&2')
    assert commands.run(["scontrol", "-o", "a  b'"]) == "a  b'\n"
    assert commands.present("scontrol")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("slurm_update error: Access/permission denied", "scontrol: Access/permission denied"),
        ("scontrol: error: PMIx library not found\\nInvalid node name", "scontrol: Invalid node name"),
        ("scontrol: error: one\\nscontrol: error: two", "scontrol: one; two"),
        ("", "scontrol: exit code 3"),
    ],
)
def test_a_refusal_is_in_slurms_words(programs: Programs, said: str, words: str) -> None:
    """Without its noise; and it is not tried again."""
    programs.make("scontrol", f"printf '{said}' >&2; exit 3")
    with pytest.raises(SlurmRefused) as found:
        commands.run(["scontrol"], 10.0)
    assert str(found.value) == words
    assert len(programs.calls()) == 1


@pytest.mark.parametrize(
    "said",
    [
        "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
        "Unexpected message received for job 84",
        "slurm_load_jobs error: Zero Bytes were transmitted or received",
        "slurm_load_jobs error: Socket timed out on send/recv operation",
        "slurm_receive_msg: Transport endpoint is not connected",
        "slurm_load_jobs error: Slurm backup controller in standby mode",
    ],
)
def test_a_controller_that_is_away_is_asked_again(programs: Programs, said: str) -> None:
    """Whichever words say so; it comes back."""
    programs.make("scontrol", f'[ "$count" -ge 3 ] || {{ echo "{said}" >&2; exit 1; }}; echo back')
    assert commands.run(["scontrol"], 20.0) == "back\n"
    assert len(programs.calls()) == 4
    programs.make("scontrol", f'echo "{said}" >&2; exit 1')
    with pytest.raises(SlurmAway):
        commands.run(["scontrol"])


def test_patience_has_an_end(programs: Programs) -> None:
    """After it the error says what the command said."""
    programs.make("scontrol", AWAY)
    with pytest.raises(SlurmAway, match="Unable to contact slurm controller"):
        commands.run(["scontrol"], 0.2)
    assert len(programs.calls()) > 2


def test_a_command_that_hangs_is_ended(programs: Programs) -> None:
    """With what it started: a site's command may be a shell around the real one, which holds our pipe."""
    programs.make("scontrol", f"sleep 100 & echo $! > {programs.folder}/pid; wait")
    began = time.monotonic()
    with pytest.raises(SlurmAway, match="did not answer"):
        commands.run(["scontrol"], timeout_seconds=0.3)
    assert time.monotonic() - began < 20
    pid = int((programs.folder / "pid").read_text())
    wait_until(lambda: is_gone(pid))


def test_a_command_that_is_not_there(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Says so, and what works without Slurm; the same for a file that can't be run."""
    monkeypatch.setenv("PATH", str(programs.folder))
    assert not commands.present("scontrol")
    with pytest.raises(SlurmMissing, match="`autoresume run` trains here without it"):
        commands.run(["scontrol"], 10.0)
    (programs.folder / "scontrol").write_text("")
    with pytest.raises(SlurmMissing, match="scontrol can't be run on this machine: Permission denied"):
        commands.run(["scontrol"], 10.0)


@pytest.mark.parametrize(
    "said",
    [
        "error: Munge encode failed: Failed to access /run/munge/munge.socket.2: No such file or directory",
        "slurm_load_jobs error: Protocol authentication error",
        "error: Munge decode failed: Expired credential",
    ],
)
def test_a_credential_that_was_not_taken(programs: Programs, said: str) -> None:
    """Says what to look at."""
    programs.make("scontrol", f'echo "{said}" >&2; exit 1')
    with pytest.raises(SlurmRefused, match="is munged running here, and do the nodes' clocks agree"):
        commands.run(["scontrol"])


# -- asking for something ---------------------------------------------------------------------------


def test_looking_at_a_job(programs: Programs) -> None:
    """The job; None if Slurm has forgotten it; any other refusal is one."""
    programs.make("scontrol", f'echo "{LINE}"')
    view = queue.look("7")
    assert view is not None
    assert (view.state, view.excluded) == ("RUNNING", "node9")
    assert programs.calls() == ["scontrol -o show job 7"]
    assert [one.id for one in queue.look_at_all("7")] == ["7"]
    programs.make("scontrol", 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1')
    assert queue.look("7") is None
    assert queue.look_at_all("7") == []
    programs.make("scontrol", 'echo "Access denied" >&2; exit 1')
    for look in (queue.look, queue.look_at_all):
        with pytest.raises(SlurmRefused):
            look("7")


def test_a_requeue(programs: Programs) -> None:
    """Of this task of the array alone."""
    programs.make("scontrol")
    queue.requeue("71_2")
    assert programs.calls() == ["scontrol requeue 71_2"]


def test_a_requeue_that_slurm_was_quicker_with(programs: Programs) -> None:
    """That is no error, and nothing more is asked for."""
    programs.make("scontrol", 'echo "Job is pending execution for job 7" >&2; exit 1')
    queue.requeue("7")
    assert programs.calls() == ["scontrol requeue 7"]


@pytest.mark.parametrize("then", ["", 'echo "Job is pending execution for job 7" >&2; exit 1'])
def test_a_requeue_that_is_disabled(programs: Programs, then: str) -> None:
    """A job's user may enable it; and Slurm may be quicker then, too."""
    disabled = 'echo "Requested operation is presently disabled for job 7" >&2; exit 1'
    programs.make("scontrol", f'case "$count" in 0) {disabled};; 1) exit 0;; *) {then or "exit 0"};; esac')
    queue.requeue("7")
    assert programs.calls() == ["scontrol requeue 7", "scontrol update job=7 requeue=1", "scontrol requeue 7"]


def test_a_requeue_that_is_denied(programs: Programs) -> None:
    """Is an error, in Slurm's words."""
    programs.make("scontrol", 'echo "Access/permission denied for job 7" >&2; exit 1')
    with pytest.raises(SlurmRefused, match="permission denied"):
        queue.requeue("7")


def test_nodes_that_are_left_out_already_stay_out(programs: Programs) -> None:
    """The list is set as a whole: it must hold the old ones, each once."""
    programs.make("scontrol")
    queue.leave_out("7", ("node1", "node9"), "node9")
    queue.leave_out("7", ("node1",), "node[2,4-5],rack[2,4-5],gpu7")
    assert programs.calls() == [
        "scontrol update job=7 ExcNodeList=node9,node1",
        "scontrol update job=7 ExcNodeList=node[2,4-5],rack[2,4-5],gpu7,node1",
    ]


@pytest.mark.parametrize(
    ("text", "codes"),
    [("(null)", ()), ("", ()), ("85", (85,)), ("75,85", (75, 85)), ("1-3,9", (1, 2, 3, 9)), ("0", ())],
)
def test_exit_codes_that_requeue(text: str, codes: tuple[int, ...]) -> None:
    """Of RequeueExit; 0 is never used for that."""
    assert queue.requeue_codes(text) == codes


def test_the_configuration(programs: Programs) -> None:
    """Names and values as `scontrol show config` prints them, blanks and equals signs in values included."""
    programs.make(
        "scontrol",
        "cat <<'X'\nConfiguration data as of 2026-11-25T23:38:33\nKillWait                = 30 sec\n"
        "RequeueExit             = 85,90-92\nPrologFlags             = \nSlurmctldParameters     = a=b,c\n\n"
        "Slurmctld(primary) at host is UP\nX",
    )
    found = queue.configuration()
    assert (found["KillWait"], found["RequeueExit"], found["PrologFlags"]) == ("30 sec", "85,90-92", "")
    assert found["SlurmctldParameters"] == "a=b,c"
    assert queue.seconds(found["KillWait"]) == 30.0
    assert queue.seconds("(null)") is None
