"""A command line of `autoresume sbatch`, told apart: Slurm's options, ours, the script and what is the script's."""

from __future__ import annotations

import pytest

from autoresume.errors import UsageError
from autoresume.slurm import options
from autoresume.slurm.options import Parsed

OURS = {"nproc": True, "setup": True, "dry-run": False, "help": False}


def parse(*words: str) -> Parsed:
    return options.parse(words, OURS)


@pytest.mark.parametrize("words", [("-N2",), ("-N", "2"), ("-N=2",), ("--nodes=2",), ("--nodes", "2")], ids=" ".join)
def test_every_way_to_give_a_value(words: tuple[str, ...]) -> None:
    """As sbatch takes it; what follows is the script."""
    found = parse(*words, "train.py")
    assert (found.slurm, found.rest) == ({"nodes": "2"}, ["train.py"])


@pytest.mark.parametrize(
    ("word", "slurm"),
    [
        ("--exclusive", {"exclusive": True}),
        ("--exclusive=user", {"exclusive": "user"}),
        ("--export=NONE", {"export": "NONE"}),
        ("--nice", {"nice": True}),
        ("-k", {"no-kill": True}),
        ("-H", {"hold": True}),
        ("--gpus-per-node=a100:4", {"gpus-per-node": "a100:4"}),
        ("--ntasks_per_core=1", {"ntasks-per-core": "1"}),
        ("--comment=a=b c", {"comment": "a=b c"}),
        ("--output=", {"output": ""}),
        ("-t1:00:00", {"time": "1:00:00"}),
        ("-Ja=b", {"job-name": "a=b"}),
    ],
)
def test_values_flags_and_both(word: str, slurm: dict[str, str | bool]) -> None:
    """Flags take no word that follows; values are passed on as they are."""
    found = parse(word, "train.py", "--lr", "1")
    assert (found.slurm, found.rest) == (slurm, ["train.py", "--lr", "1"])


def test_our_options_may_be_repeated() -> None:
    """They are kept apart from Slurm's, in order."""
    found = parse("--setup", "module load cuda", "-N2", "--nproc=4", "--setup=source env", "--dry-run", "train.py")
    assert found.ours == {"setup": ["module load cuda", "source env"], "nproc": ["4"], "dry-run": [""]}
    assert found.slurm == {"nodes": "2"}


@pytest.mark.parametrize(
    "own", [["-h", "5"], ["--nodes=9"], ["-N", "2"], ["--help"], ["--", "x"], ["--dry-run"], ["-"], [""], ["--bogus"]]
)
def test_the_scripts_own_options_are_left_alone(own: list[str]) -> None:
    """Whatever they look like: after the script's name nothing is ours."""
    found = parse("-N1", "train.py", *own)
    assert (found.slurm, found.ours, found.rest) == ({"nodes": "1"}, {}, ["train.py", *own])


def test_two_dashes_end_our_options() -> None:
    """A script whose name begins with a dash can be given."""
    assert parse("-N1", "--", "-odd.py", "--", "-x").rest == ["-odd.py", "--", "-x"]


def test_a_short_h_asks_for_help() -> None:
    """As it does with sbatch."""
    assert "help" in parse("-h").ours


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--node=2"], "unknown option --node; did you mean --nodes"),
        (["--partion", "gpu"], "did you mean --partition"),
        (["--nprocs=2"], "did you mean --nproc"),
        (["--xyzzy"], r"unknown option --xyzzy; see sbatch --help\. Options of the script come after its name"),
        (["-z"], "unknown option -z"),
        (["--ntasks=8"], "say how many with --nproc"),
        (["-n", "8"], "say how many with --nproc"),
        (["--ntasks-per-node=8"], "say how many with --nproc"),
        (["--wrap=python x.py"], "give the training script instead"),
        (["--no-requeue"], "autoresume stop and cancel end it for good"),
        (["--requeue"], "that is always so"),
        (["--open-mode=truncate"], "the logs of all lives are appended"),
        (["--parsable"], "--json prints the job"),
        (["-W"], "status --watch waits"),
        (["--test-only"], "--dry-run shows the script"),
        (["--hold=1"], "--hold takes no value"),
        (["--dry-run=1"], "--dry-run takes no value"),
        (["--nodes"], "--nodes needs a value"),
        (["-N"], "--nodes needs a value"),
        (["--nproc"], "--nproc needs a value"),
    ],
)
def test_what_is_wrong_is_said_with_the_way_out(words: list[str], said: str) -> None:
    """A misspelt option, one that is ours to set, a value too many or too few."""
    with pytest.raises(UsageError, match=said):
        parse(*words)
