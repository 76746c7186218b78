"""The commands that look at a run, and the one that prunes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from autoresume import __version__
from autoresume.checkpoint import incarnation
from autoresume.checkpoint.discover import judge, list_checkpoints, set_aside
from autoresume.cli import _COMMANDS, cli, common, ls
from autoresume.errors import AutoresumeError, CheckpointInvalid, RunIsLive, UsageError
from tests.cli.runs import FakeRun


@pytest.fixture
def run(tmp_path: Path) -> FakeRun:
    return FakeRun(tmp_path / "runs" / "gpt")


def invoke(*arguments: Any) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def output(*arguments: Any, code: int = 0) -> str:
    result = invoke(*arguments)
    assert result.exit_code == code, (result.output, result.exception)
    return result.stdout


def rows(*arguments: Any, code: int = 0) -> list[dict[str, Any]]:
    """The lines of a command's JSON."""
    return [json.loads(line) for line in output(*arguments, "--json", code=code).splitlines()]


def error(*arguments: Any, kind: type[AutoresumeError] = UsageError) -> str:
    """What a command that failed says; `main` prints it and ends with 1."""
    result = invoke(*arguments)
    assert isinstance(result.exception, kind), (result.output, result.exception)
    return str(result.exception)


# -- all of them ------------------------------------------------------------------------------------


def test_the_version_is_told() -> None:
    """`autoresume --version` says which one it is."""
    assert output("--version").split() == ["autoresume,", "version", __version__]


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_lists_every_command(option: str) -> None:
    """With one line for each; and each has a help of its own."""
    text = output(option)
    assert all(f"  {name} " in text for name in _COMMANDS)


@pytest.mark.parametrize("command", sorted(_COMMANDS))
def test_every_command_has_help(command: str) -> None:
    """Its use, its options with a word on each, and nothing is started."""
    text = output(command, "--help")
    assert text.startswith(f"Usage: cli {command}")
    assert "Options:" in text


@pytest.mark.parametrize(("typed", "meant"), [("verfiy", "verify"), ("frobnicate", None), ("histroy", "history")])
def test_a_misspelt_command_names_the_nearest(typed: str, meant: str | None) -> None:
    """Exit code 2, as for any wrong use."""
    result = invoke(typed, ".")
    assert result.exit_code == 2
    assert f"no such command: '{typed}'" in result.output
    assert ("Did you mean" in result.output) == (meant is not None)
    assert meant is None or f"'{meant}'" in result.output


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["ls", "--jsn"], "--json"),
        (["show", "--rnk", "1"], "--rank"),
        (["prune", "--dryrun"], "--dry-run"),
        (["run", "--noproc", "2", "train.py"], "--nproc"),
        (["run", "--grase", "5", "train.py"], "--grace"),
        (["node", "--rank", "2", "true"], "--ranks"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_a_misspelt_option_names_the_nearest(arguments: list[str], hint: str, tmp_path: Path) -> None:
    """An option of ours that isn't one is an error that says what was meant, also before a script's own options."""
    where = [] if arguments[0] in ("run", "node") else [tmp_path]
    result = invoke(*arguments, *where)
    assert result.exit_code not in (0, None)
    assert hint in result.output + str(result.exception)
    assert result.exception is None or isinstance(result.exception, (SystemExit, UsageError))


@pytest.mark.parametrize("command", ["ls", "show", "history", "verify", "prune"])
def test_a_folder_that_is_no_run_names_runs_nearby(command: str, run: FakeRun, tmp_path: Path) -> None:
    """A misspelt folder, or the folder of all runs: the error says where there are some."""
    assert f"Runs nearby: {run.folder}." in error(command, tmp_path / "runs" / "gtp")
    assert f"Runs nearby: {run.folder}." in error(command, tmp_path / "runs")
    lonely = error(command, tmp_path / "far" / "away")
    assert "is no run directory: it holds no run.json" in lonely
    assert "nearby" not in lonely


def test_a_damaged_run_json_is_an_error(run: FakeRun) -> None:
    """And says which file."""
    (run.folder / "run.json").write_text("{")
    assert f"{run.folder}/run.json is damaged" in error("ls", run.folder)
    (run.folder / "run.json").write_text("[]")
    assert "is damaged" in error("ls", run.folder)


def test_nothing_is_written_by_looking(run: FakeRun) -> None:
    """The commands that look change no file, and leave none."""
    run.checkpoint(100)
    run.life(1, 0, None)
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}
    for command in ("ls", "show", "history", "verify"):
        output(command, run.folder)
    output("prune", run.folder, "--dry-run")
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")} == before


# -- ls ---------------------------------------------------------------------------------------------


def test_ls_lists_the_newest_first(run: FakeRun) -> None:
    """What a checkpoint is and whether it is valid."""
    for step in (100, 300, 200):
        run.checkpoint(step)
    found = rows("ls", run.folder)
    assert [row["step"] for row in found] == [300, 200, 100]
    assert [row["valid"] for row in found] == [True] * 3
    assert {key: found[0][key] for key in ("checkpoint", "epoch", "samples", "incarnation", "ranks", "problem")} == {
        "checkpoint": "E3_U300_S9600-0001",
        "epoch": 3,
        "samples": 9600,
        "incarnation": 1,
        "ranks": 2,
        "problem": None,
    }
    assert found[0]["bytes"] == sum(
        path.stat().st_size
        for path in (run.folder / "checkpoints" / "E3_U300_S9600-0001").rglob("*")
        if path.is_file() and path.name != "manifest.json"
    )
    table = output("ls", run.folder)
    assert "E3_U300_S9600-0001" in table
    assert table.count("valid") == 3


def test_ls_says_what_is_wrong(run: FakeRun) -> None:
    """Uncommitted, damaged and put aside, each with its reason."""
    run.checkpoint(100)
    cut = run.checkpoint(200)
    run.checkpoint(300, parts=1)
    (run.folder / cut.shard(1)).write_bytes(b"short")
    aside = run.checkpoint(400)
    run.damage(aside.manifest, at=20)
    set_aside(run.storage, judge(run.storage, aside))
    found = {row["checkpoint"]: row for row in rows("ls", run.folder)}
    assert found["E3_U300_S9600-0001"]["problem"] == "it was never committed: 1 parts and no manifest.json"
    assert "shards/rank-00001.safetensors has 5 bytes instead of" in found[str(cut)]["problem"]
    assert found[f"aside/{aside}"]["problem"].startswith("put aside: ")
    assert [row["valid"] for row in found.values()] == [False, False, True, False]
    assert "never committed" in output("ls", run.folder)


def test_ls_of_very_many_files_looks_at_the_newest(run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once so many files were looked at, what is older is "committed": whole or not, its files are not looked at.

    A damaged manifest and a checkpoint that was never committed are told all the same; --deep looks at everything.
    """
    monkeypatch.setattr(ls, "_FILES_LOOKED_AT", 6)
    never, cut, torn, *_ = [run.checkpoint(step, parts=1 if step == 100 else None) for step in range(100, 800, 100)]
    (run.folder / cut.shard(1)).write_bytes(b"short")
    run.damage(torn.manifest, at=20)
    found = rows("ls", run.folder)
    assert [row["valid"] for row in found] == [True, True, None, None, False, None, False]
    assert {(row["ranks"], row["bytes"]) for row in found[:4]} == {(2, found[0]["bytes"])}
    assert "the manifest is" in found[4]["problem"]
    assert found[6]["checkpoint"] == str(never)
    assert output("ls", run.folder).count("committed") == 4, "three, and one that never was"
    deep = rows("ls", run.folder, "--deep")
    assert [row["valid"] for row in deep] == [True] * 4 + [False] * 3
    assert "shards/rank-00001.safetensors has 5 bytes instead of" in deep[5]["problem"]


def test_a_long_list_is_plain_text(run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand lines are aligned columns with their headings, and hold what the nice table does."""
    for step in (100, 20):
        run.checkpoint(step)
    monkeypatch.setattr(common, "_LONG_TABLE", 1)
    title, *lines = output("ls", run.folder).splitlines()
    assert title == f"{run.folder}: 2 checkpoints"
    assert [line.split()[0] for line in lines] == ["checkpoint", "E1_U100_S3200-0001", "E0_U20_S640-0001"]
    assert [line.split()[-1] for line in lines] == ["state", "valid", "valid"]
    assert len({line.index("valid") for line in lines[1:]} | {lines[0].index("state")}) == 1


def test_ls_of_a_young_run_is_empty(run: FakeRun) -> None:
    """No checkpoint yet is no error."""
    assert rows("ls", run.folder) == []
    assert "0 checkpoints" in output("ls", run.folder)


# -- show -------------------------------------------------------------------------------------------


def test_show_tells_tensors_and_state(run: FakeRun) -> None:
    """Shared tensors are put together from all ranks, own ones are the asked rank's; then the state."""
    run.checkpoint(100)
    *tensors, state = rows("show", run.folder)
    assert tensors == [
        {"tensor": "model/weight", "dtype": "float32", "shape": [10, 10], "bytes": 400, "ranks": [0, 1]},
        {"tensor": "own", "dtype": "int64", "shape": [3], "bytes": 24, "ranks": [0]},
    ]
    assert state["state"]["run"] == {"step": 100}
    assert rows("show", run.folder, "--rank", 1)[1]["ranks"] == [1]
    table = output("show", run.folder)
    assert "model/weight" in table
    assert "0.1" in table


def test_show_finds_a_checkpoint_by_name_and_by_step(run: FakeRun) -> None:
    """Its name, its step, U and its step; without any the newest."""
    run.checkpoint(100)
    run.checkpoint(200)
    for text in ("E1_U100_S3200-0001", "100", "U100"):
        assert rows("show", run.folder, text)[-1]["state"]["run"]["step"] == 100
    for arguments in ([], ["latest"]):
        assert rows("show", run.folder, *arguments)[-1]["state"]["run"]["step"] == 200


def test_show_shows_the_latest_that_can_be_shown(run: FakeRun) -> None:
    """While a newer one is still being written, the latest is the newest committed one."""
    run.checkpoint(100)
    run.checkpoint(200, parts=1)
    assert rows("show", run.folder)[-1]["state"]["run"]["step"] == 100


def test_show_says_what_there_is(run: FakeRun) -> None:
    """A checkpoint that isn't there lists those that are; so does a rank."""
    run.checkpoint(100)
    assert "there is no checkpoint '500'" in error("show", run.folder, "500")
    assert "E1_U100_S3200-0001" in error("show", run.folder, "500")
    result = invoke("show", run.folder, "--rank", 2)
    assert (result.exit_code, "ranks 0 to 1" in result.output) == (2, True)
    run.checkpoint(200, parts=1)
    assert "never committed" in error("show", run.folder, "200", kind=CheckpointInvalid)


# -- history ----------------------------------------------------------------------------------------


def test_history_tells_what_was_lost(run: FakeRun) -> None:
    """Each life: from where, to where, how and why it ended, and how many steps the next one had to do again."""
    run.life(1, 0, {"time": 1.0, "how": "interrupted", "step": 50, "why": "SIGTERM received"})
    run.life(2, 50, {"time": 1.0, "how": "died", "step": 77, "why": "rank 0 was killed, or crashed"})
    run.life(3, 60, None)
    run.life(4, 60, None)
    found = rows("history", run.folder)
    assert [(row["incarnation"], row["how"], row["steps_lost"]) for row in found] == [
        (1, "interrupted", 0),
        (2, "died", 17),
        (3, "unknown", None),
        (4, "running", None),
    ]
    assert (found[1]["began_at_step"], found[1]["ended_at_step"], found[1]["why"]) == (
        50,
        77,
        "rank 0 was killed, or crashed",
    )
    assert "SIGTERM received" in output("history", run.folder)


def test_history_of_a_run_that_never_began(run: FakeRun) -> None:
    """Is empty."""
    assert rows("history", run.folder) == []


# -- verify -----------------------------------------------------------------------------------------


def test_verify_ends_with_0_if_all_is_whole(run: FakeRun) -> None:
    """Every byte of every checkpoint was read."""
    for step in (100, 200):
        run.checkpoint(step)
    assert [row["valid"] for row in rows("verify", run.folder)] == [True, True]
    assert rows("verify", run.folder, "100")[0]["checkpoint"] == "E1_U100_S3200-0001"
    output("verify", run.folder)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("shards/rank-00001.safetensors", "shards/rank-00001.safetensors of E2_U200_S6400-0001 is damaged"),
        ("pickles/rank-00000-env.pkl", "pickles/rank-00000-env.pkl of E2_U200_S6400-0001 is damaged"),
        ("parts/rank-00000.json", "parts/rank-00000.json"),
        ("manifest.json", "manifest"),
    ],
)
def test_verify_ends_with_1_for_a_flipped_byte(run: FakeRun, file: str, said: str) -> None:
    """In any file; the others are told to be whole, and the damage is named."""
    run.checkpoint(100)
    damaged = run.checkpoint(200)
    run.damage(f"{damaged.folder}/{file}", at=-2)
    bad, good = rows("verify", run.folder, code=1)
    assert (good["valid"], bad["valid"]) == (True, False)
    assert said in bad["state"]
    output("verify", run.folder, "100")
    output("verify", run.folder, "200", code=1)


@pytest.mark.parametrize("file", ["shards/rank-00000.safetensors", "parts/rank-00001.json", "manifest.json"])
def test_verify_ends_with_1_for_a_missing_or_short_file(run: FakeRun, file: str) -> None:
    """Cut short, and then gone."""
    path = run.folder / run.checkpoint(100).folder / file
    path.write_bytes(path.read_bytes()[:-1])
    assert not rows("verify", run.folder, code=1)[0]["valid"]
    path.unlink()
    assert not rows("verify", run.folder, code=1)[0]["valid"]


# -- prune ------------------------------------------------------------------------------------------


def test_prune_keeps_what_it_is_told_to(run: FakeRun) -> None:
    """The last ones, and one of each so many steps; `--dry-run` only says so."""
    for step in range(100, 1001, 100):
        run.checkpoint(step)
    planned = rows("prune", run.folder, "--keep", 2, "--keep-every", 400, "--dry-run")
    assert {row["state"] for row in planned} == {"would be deleted"}
    assert len(list_checkpoints(run.storage)) == 10
    done = rows("prune", run.folder, "--keep", 2, "--keep-every", 400)
    assert [row["checkpoint"] for row in done] == [row["checkpoint"] for row in planned]
    assert [name.step for name in list_checkpoints(run.storage)] == [1000, 900, 800, 400]
    assert rows("prune", run.folder, "--keep", 2, "--keep-every", 400) == []


def test_prune_never_counts_a_damaged_one(run: FakeRun) -> None:
    """A damaged checkpoint is no successor: the last valid ones stay."""
    for step in (100, 200, 300):
        run.checkpoint(step)
    newest = list_checkpoints(run.storage)[0]
    (run.folder / newest.shard(0)).unlink()
    output("prune", run.folder, "--keep", 1)
    assert [name.step for name in list_checkpoints(run.storage)] == [300, 200]


def test_prune_refuses_while_the_run_trains(run: FakeRun) -> None:
    """A living incarnation prunes by itself; a dead one, and a dry run, are no hindrance."""
    for step in (100, 200):
        run.checkpoint(step)
    run.life(1, 0, None)
    output("prune", run.folder, "--keep", 1, "--dry-run")
    run.life(2, 0, None, processes=[incarnation.this_process()])
    assert "incarnation 2 is training" in error("prune", run.folder, "--keep", 1, kind=RunIsLive)
    assert len(list_checkpoints(run.storage)) == 2
    output("prune", run.folder, "--keep", 1, "--dry-run")
    incarnation.record_end(run.storage, 2, "interrupted", 200, "")
    output("prune", run.folder, "--keep", 1)
    assert [name.step for name in list_checkpoints(run.storage)] == [200]


def test_prune_keeps_at_least_one(run: FakeRun) -> None:
    """--keep 0 would be the end of the run."""
    run.checkpoint(100)
    assert "at least 1 checkpoint is kept" in error("prune", run.folder, "--keep", 0)
    assert len(list_checkpoints(run.storage)) == 1
