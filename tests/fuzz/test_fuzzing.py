"""Readers under coverage-guided fuzzing, from real files, with a fixed seed and number of runs."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz import corpus

RUNS = 8_000 * (50 if os.environ.get("TORTURE") == "full" else 1)
TARGETS = ["manifest", "part", "tree", "incarnation", "metrics", "name", "pickle"]


@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None and not os.environ.get("CI"),
    reason="atheris has no wheel for this Python",
)
@pytest.mark.parametrize("target", TARGETS)
def test_a_reader_is_fuzzed(tmp_path: Path, target: str, record_property: Any) -> None:
    """Whatever it is given it raises its own error, in time and in memory; and it reads back what it writes."""
    seeds = tmp_path / "corpus"
    seeds.mkdir()
    for number, data in enumerate(corpus.of(target)):
        (seeds / str(number)).write_bytes(data)
    command = [sys.executable, "-m", "tests.fuzz.fuzz", target, f"-runs={RUNS}", "-seed=1", "-max_len=8192"]
    done = subprocess.run(
        [*command, f"-artifact_prefix={tmp_path}/", "-print_final_stats=1", str(seeds)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    assert len(list(seeds.iterdir())) > len(corpus.of(target)), "it has found its way to new code"
    executed = re.search(r"number_of_executed_units:\s*(\d+)", done.stderr)
    assert executed is not None, done.stderr[-2000:]
    record_property("torture inputs fuzzed", int(executed.group(1)))
