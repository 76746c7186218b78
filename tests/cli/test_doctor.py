"""autoresume doctor where there is no Slurm; with one, see tests/slurm_cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from autoresume.cli import cli
from autoresume.errors import UsageError
from tests.cli.runs import FakeRun


@pytest.fixture(autouse=True)
def without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of its commands is found, and this is no job."""
    monkeypatch.setenv("PATH", str(tmp_path / "without" / "slurm"))
    for name in ("SLURM_JOB_ID", "SLURM_JOB_NUM_NODES", "SLURM_CONF", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def invoke(*arguments: Any) -> Result:
    return CliRunner().invoke(cli, ["doctor", *map(str, arguments)])


def found(*arguments: Any, code: int = 0) -> dict[str, dict[str, str]]:
    result = invoke("--json", *arguments)
    assert result.exit_code == code, (result.output, result.exception)
    return {row["name"]: row for row in map(json.loads, result.stdout.splitlines())}


def test_without_slurm_the_machine_is_looked_at(tmp_path: Path) -> None:
    """It says that there is no Slurm and what works without; each finding is one object with five words."""
    rows = found("--state-size", "1MB")
    assert rows["Slurm"]["verdict"] == "unknown"
    assert "`autoresume run` trains here without it" in rows["Slurm"]["means"]
    assert {"machine", "python", "torch", "memory folder", "memory limit", "file system", "durable writes"} < set(rows)
    assert {"rename", "hard links", "direct writes", "write speed", "free space", "last save", "plain torchrun"} < set(
        rows
    )
    assert all(list(row) == ["name", "verdict", "found", "means", "remedy"] for row in rows.values())
    assert "runs" not in [path.name for path in tmp_path.iterdir()]


def test_a_state_of_unknown_size() -> None:
    """What depends on it is unknown, which is no failure; the remedy is told."""
    rows = found()
    unknown = {name for name, row in rows.items() if row["verdict"] == "unknown"}
    assert {"state", "memory folder", "free space", "last save"} <= unknown
    assert "--state-size 1.5GB" in rows["state"]["remedy"]


def test_a_table_and_a_summary_for_people() -> None:
    """The last line counts; a remedy has an arrow."""
    result = invoke("--state-size", "1MB")
    assert result.exit_code == 0
    assert "For a cluster, run this on its login node." in result.output
    assert " 0 fail, 2 unknown: " in result.output.splitlines()[-1]


def test_the_state_is_as_large_as_the_newest_checkpoint(tmp_path: Path) -> None:
    """In the run directory, divided by the nodes; --state-size overrules it."""
    FakeRun(tmp_path / "runs" / "gpt").checkpoint(10)
    rows = found()
    assert rows["last save"]["verdict"] == "pass"
    assert "by checkpoint E0_U10_S320-0001" in rows["state"]["found"]
    assert found("--state-size", "8GB", "--nodes", 4)["state"]["means"] == "2.0 GB on each of 4 nodes"
    share = found("--state-size", "8GB", "--nodes", 4)["memory folder"]["means"]
    assert share.startswith("2 snapshots of this node's 2.0 GB")


@pytest.mark.parametrize(("text", "said"), [("1.5GB", "1.5 GB"), ("1500m", "1.5 GB"), ("2 gib", "2.1 GB")])
def test_sizes(text: str, said: str) -> None:
    """With the units that people write, decimal and binary."""
    assert said in found("--state-size", text)["last save"]["found"]


@pytest.mark.parametrize("text", ["large", "0", "-1GB", "1.5XB", "GB"])
def test_a_size_that_is_none(text: str) -> None:
    """Says what would be one."""
    result = invoke(f"--state-size={text}")
    assert isinstance(result.exception, UsageError)
    assert "800MB, 1.5GB or 2GiB" in str(result.exception)


def test_what_fails_ends_with_1() -> None:
    """A state that fits nowhere is told by the exit code, too."""
    rows = found("--state-size", "900TB", code=1)
    assert rows["free space"]["verdict"] == "fail"
    assert rows["memory folder"]["verdict"] == "warn"


def test_a_container_without_slurm_in_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside of a job without Slurm's commands nobody could ask for a requeue."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    rows = found("--state-size", "1MB")
    assert rows["Slurm"]["verdict"] == "warn"
    assert "into the container" in rows["Slurm"]["remedy"]
    assert "remedy" in rows["file system"]


def test_a_configuration_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM_CONF with a slip is told at once; scontrol would wait a minute for the file."""
    (tmp_path / "bin").mkdir()
    for name in ("scontrol", "sbatch", "srun"):
        (tmp_path / "bin" / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("SLURM_CONF", "/no/slurm.conf")
    assert "/no/slurm.conf, which is not there" in found("--state-size", "1MB", code=1)["Slurm"]["found"]


def test_the_players_are_for_srun_alone(tmp_path: Path) -> None:
    """The hidden option explains itself outside of a step."""
    result = invoke("--meet", tmp_path)
    assert isinstance(result.exception, UsageError)
    assert "--two-nodes" in str(result.exception)
