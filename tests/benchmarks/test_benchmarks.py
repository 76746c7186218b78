"""The benchmarks run from end to end; how long anything takes is not looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests import warm

ROOT = Path(__file__).resolve().parents[2]


def test_quick_results_and_a_table(tmp_path: Path) -> None:
    """Two rivals are measured in processes of their own; there is a line for each figure, a table with both, and a reason for
    the one that isn't there. Nothing else is left behind."""
    words = ["--quick", "--only", "save", "--world", "1", "--rivals", "autoresume,torch.save,Lightning Fabric"]
    done = warm.run(
        [sys.executable, "-m", "benchmarks.run", *words, "--output", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    about, *lines = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert about["about"]["versions"]["torch"] != "not installed"
    measured = {(line["rival"], line["figure"]) for line in lines if "figure" in line}
    figures = {"first stall", "stall", "stall / copy", "complete", "durable", "raw write / durable", "processor"}
    assert {(rival, figure) for rival in ("autoresume", "torch.save") for figure in figures} <= measured
    assert {("limit", "copy"), ("limit", "raw write")} <= measured
    text = (tmp_path / "report.md").read_text()
    assert "**tiny, 0.00 GB, 112 tensors, 1 rank**" in text
    assert text.count("\n| autoresume | ") == text.count("\n| torch.save | ") == 1
    if "Lightning Fabric" not in {rival for rival, _ in measured if rival != "limit"}:
        assert "| Lightning Fabric | failed: lightning_fabric is not installed (benchmarks/requirements.txt) |" in text
    assert {path.name for path in tmp_path.iterdir()} == {"results.jsonl", "report.md", "plots"}


def test_a_rival_that_does_not_exist() -> None:
    """It is refused by its name, before anything is measured."""
    words = ["--rivals", "autoresume,torch.sav"]
    done = subprocess.run([sys.executable, "-m", "benchmarks.run", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "there is no 'torch.sav'" in done.stderr


def test_a_report_of_what_was_measured(tmp_path: Path) -> None:
    """Samples of all processes are put together: their median, the best (the largest, where more is better), and how many
    there were; what failed has a line with its reason."""
    about = {"suite": "save", "state": "125M", "world": 2}
    figures = [
        ("autoresume", "bytes", [1.5e9]),
        ("autoresume", "stall", [0.3, 0.1]),
        ("autoresume", "stall", [0.2]),
        ("autoresume", "raw write / durable", [0.5, 0.7, 0.6]),
        ("limit", "copy", [4.0, 8.0, 6.0]),
    ]
    lines = [
        {**about, "rival": rival, "figure": figure, "unit": "", "samples": some} for rival, figure, some in figures
    ]
    lines.append({**about, "rival": "DLRover", "problem": "it broke | here"})
    text = "\n".join(json.dumps(line) for line in [{"about": {"command": "make bench"}}, *lines])
    (tmp_path / "results.jsonl").write_text(text)
    subprocess.run(
        [sys.executable, "-m", "benchmarks.report", "--output", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    report = (tmp_path / "report.md").read_text()
    assert "Commands: `make bench`" in report
    assert "**125M, 1.50 GB, 2 ranks**: median (best)" in report
    assert "| autoresume |  | 0.2 (0.1) |  |  |  | 0.6 (0.7) |  | 3 |" in report
    assert "| DLRover | failed: it broke / here |" in report
    assert "Limits in the same processes: copy 6 (8) GB/s." in report
