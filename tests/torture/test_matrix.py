"""Each failpoint, each fault: a real training meets it, and goes on afterwards as if nothing had been.

All of it with TORTURE=full (`make torture`); in the suite a part in which each failpoint and each fault is.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from autoresume.base.failpoints import ERRORS, FAULTS
from autoresume.checkpoint import incarnation
from autoresume.checkpoint.discover import newest_step
from autoresume.cli import cli
from autoresume.drill import compare
from autoresume.drill.driver import Life, Plan
from autoresume.drill.record import Trajectory
from autoresume.drill.schedule import Interruption
from autoresume.storage.local import LocalStorage
from tests.drill.quick import Quick

SOURCES = Path(__file__).parents[2] / "autoresume"
STORAGE = ["storage.write.before_sync", "storage.write.before_rename", "storage.write.before_folder_sync"]
STORAGE += ["storage.remove.renamed", "prune.before_remove", "prune.after_remove", "persist.room"]
STORAGE += ["persist.shard_written", "persist.part_written", "commit.before_manifest", "commit.after_manifest"]
READING = ["restore.chosen", "restore.read"]
OTHERS = ["incarnation.claimed", "restore.done", "save.begin", "save.copied", "save.sealed"]
ELSEWHERE = {
    "daemon.persist": "of the daemon: tests/node",
    "storage.write.block": "of large files: tests/checkpoint/test_kills, tests/faults/test_bytes",
}
ALONE = [fault for fault in FAULTS if fault != "kill-parent"]  # there is a parent only under the daemon


def combinations() -> list[tuple[str, str]]:
    """What makes sense: a disk can't fail where nobody asks it anything."""
    found = [(point, fault) for point in STORAGE for fault in ALONE]
    found += [
        (point, fault) for point in READING for fault in ALONE if fault in ("eio", "kill", "slow", "clock", "storm")
    ]
    found += [(point, fault) for point in OTHERS for fault in ALONE if fault not in ERRORS]
    if os.environ.get("TORTURE") == "full":
        return found
    # An eighth of each point's faults, another for each point; of those that have few, one.
    points = list(dict.fromkeys(point for point, _ in found))
    chosen = [(point, fault) for point, fault in found if (points.index(point) + ALONE.index(fault)) % 8 == 0]
    return chosen + [(point, "kill") for point in points if point not in dict(chosen)]


def test_the_matrix_has_every_failpoint() -> None:
    """One that is added to the sources is added here; and the part that the suite tries has each point and each fault."""
    there = {name for path in SOURCES.rglob("*.py") for name in re.findall(r'failpoint\("([^"]+)"\)', path.read_text())}
    assert there == {*STORAGE, *READING, *OTHERS, *ELSEWHERE}
    assert {point for point, _ in combinations()} == {*STORAGE, *READING, *OTHERS}
    assert {fault for _, fault in combinations()} == {*ALONE}


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trajectory, Path]:
    """What the training does undisturbed; and the folder of one that was stopped after four steps."""
    folder = tmp_path_factory.mktemp("calm")
    whole = Quick(Plan("trainer.py", ["none"], folder, save_every="1 steps"), "whole")
    whole.life()
    torn = Quick(Plan("trainer.py", ["none"], folder, save_every="1 steps"), "torn")
    torn.life(Interruption("term", "step", 4))
    return whole.trajectory, torn.folder


@pytest.mark.parametrize(("point", "fault"), combinations(), ids=lambda value: str(value))
def test_a_fault(
    tmp_path: Path,
    calm: tuple[Trajectory, Path],
    point: str,
    fault: str,
    record_property: Any,
) -> None:
    """Some committed checkpoint restores and none is torn; no more steps are lost than the cadence allows, or than a disk
    that fails makes impossible to save; each step is logged once, with its values; nothing is left running."""
    reference, stopped = calm
    shutil.copytree(stopped, tmp_path / "torn")
    plan = Plan("trainer.py", ["none"], tmp_path, save_every="1 steps")
    run = Quick(plan, "torn")
    run.lives.append(Life(1, None, 75, True, 4, 0, None, 0.0))
    committed = newest_step(LocalStorage(run.run_folder))
    assert committed == 4
    failed = run.life(Interruption("kill", "save", point=f"{point}{_time(point)}={fault}"))
    assert failed.code in (0, 1, 75, -9), (failed, log(run))
    assert "Traceback" not in log(run) or failed.code == 1, log(run)
    while not run.is_over:
        assert len(run.lives) < 5, log(run)
        last = run.life()
        assert last.code == 0, log(run)
    apart = compare.first(reference, run.trajectory, compare.Noise({("metric", "seconds")}))
    assert apart is None, (apart, log(run))
    verified = CliRunner().invoke(cli, ["verify", str(run.run_folder)])
    assert verified.exit_code == 0, verified.output
    lost = max(0, failed.reached_step - run.lives[2].resumed_step) if len(run.lives) > 2 else 0
    assert lost <= 3 or fault in ERRORS, (lost, log(run))
    steps = [line.partition(",")[0] for line in (run.run_folder / "metrics.csv").read_text().splitlines()[1:]]
    assert steps == [str(step) for step in range(1, 19)]
    ended = [(record.ended or {}).get("how") for record in incarnation.history(LocalStorage(run.run_folder))]
    assert None not in ended, "each life's end is known"
    assert not left_running(run.folder)
    record_property("torture faults", 1)
    record_property("torture steps lost", lost)
    record_property("torture lives", len(run.lives) - 1)


def _time(point: str) -> str:
    """The second time in a life, where there is one."""
    return "" if point in (*READING, "incarnation.claimed", "restore.done") else ":2"


def log(run: Quick) -> str:
    return "".join(path.read_text() for path in sorted(run.folder.glob("life-*.log"))[1:])


def left_running(folder: Path) -> list[str]:
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        try:
            if process.info["status"] != psutil.STATUS_ZOMBIE and process.environ().get("AUTORESUME_DRILL") == str(
                folder
            ):
                found.append(str(process.info))
        except psutil.Error:
            continue
    return found
