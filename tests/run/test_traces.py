"""Traces: what a life's first steps did, for TensorBoard."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from autoresume.base import spans
from autoresume.run.tracing import merge
from tests import warm

SCRIPT = """
import os
import torch
from torch.utils.data import TensorDataset
from autoresume import autoresume

@autoresume(save_every=4, profile=12)
def main(run):
    model = torch.nn.Linear(300, 300)
    optimizer = torch.optim.AdamW(model.parameters())
    run.track(model=model, optimizer=optimizer)
    loader = run.loader(TensorDataset(torch.randn(120, 300)), batch_size=4)
    for (x,) in run.batches(loader, epochs=1):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        if run.step_count % 4 == 1:
            run.life.saves.await_last()  # what the daemon did is in the trace if it comes while steps are recorded
        if run.incarnation == 1 and run.step_count == 17:
            run.life.saves.await_last()
            os.kill(os.getpid(), 9)

main()
"""
OURS = {"agreement", "capture", "plan", "copy", "join", "persist", "digest", "commit", "hand over"}


def test_each_life_is_a_worker_in_tensorboard(tmp_path: Path) -> None:
    """A run that was killed and went on has a trace of each life, with what autoresume did in the ranks and in the node
    daemon; TensorBoard's profiler plugin loads them, and shows each life as a worker."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "AUTORESUME_RUN_DIR": str(tmp_path / "run"), "AUTORESUME_MEMORY": str(tmp_path)}
    command = [sys.executable, "-m", "autoresume", "run", "--nproc", "1", str(script)]
    done = warm.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    files = sorted((tmp_path / "run" / "traces").iterdir())
    assert [re.sub(r"\.\d+\..*", "", path.name) for path in files] == ["life-0001-rank-00000", "life-0002-rank-00000"]
    for path in files:
        events = json.loads(path.read_text())["traceEvents"]
        ours = [event for event in events if str(event.get("name")).startswith("autoresume: ")]
        assert {event["name"].removeprefix("autoresume: ") for event in ours} >= OURS
        steps = [event for event in events if str(event.get("name")).startswith("ProfilerStep#")]
        first, last = steps[0]["ts"], steps[-1]["ts"] + steps[-1]["dur"]
        inside = [event for event in ours if event["name"] == "autoresume: agreement"]
        assert all(first <= event["ts"] <= last for event in inside[1:-1]), "the clocks differ"
    assert "read" in {event["name"].removeprefix("autoresume: ") for event in ours}
    workers = ask_tensorboard(tmp_path / "run" / "traces", "workers?run=traces&view=Trace")
    assert workers == ["life-0001-rank-00000", "life-0002-rank-00000"]


def ask_tensorboard(folder: Path, what: str) -> Any:
    """The plugin's answer, as soon as it has loaded what is there."""
    command = [sys.executable, "-m", "tensorboard.main", f"--logdir={folder}", "--port=0", "--load_fast=false"]
    quiet = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "start_new_session": True}
    with subprocess.Popen(command, text=True, **quiet) as server:
        try:
            assert server.stderr is not None
            said = []
            for line in server.stderr:
                said.append(line)
                found = re.search(r"http://\S+:(\d+)/", line)
                if found:
                    break
            else:
                pytest.fail("".join(said))
            address = f"http://localhost:{found.group(1)}/data/plugin/pytorch_profiler"
            deadline = time.monotonic() + 100
            while time.monotonic() < deadline:
                runs = json.loads(_get(f"{address}/runs") or "{}")
                if runs.get("runs") and not runs["loading"]:
                    return json.loads(_get(f"{address}/{what}") or "null")
                time.sleep(0.2)
            pytest.fail("TensorBoard does not show the traces")
        finally:
            os.killpg(server.pid, signal.SIGKILL)  # with the processes that the plugin reads in


def _get(address: str) -> bytes | None:
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:
            return answer.read()
    except urllib.error.URLError:
        return None


def test_spans_are_put_where_they_happened() -> None:
    """Times of another process and times of the profiler are of one clock, whatever its base is."""
    trace = {"baseTimeNanoseconds": 1_000_000_000, "traceEvents": []}
    merge(trace, [spans.Span("persist", 1_000_500_000, 1_002_000_000, 7, 8)])
    (event,) = trace["traceEvents"]
    assert (event["ts"], event["dur"], event["pid"], event["tid"]) == (500.0, 1500.0, 7, 8)


def test_nothing_is_recorded_unless_it_is_asked_for() -> None:
    """Without a trace spans leave nothing behind."""
    with spans.span("copy"):
        pass
    assert spans.take_recorded() == []
    spans.set_recording(True)
    try:
        with spans.span("copy"):
            pass
        spans.add_recorded([["persist", 1, 2, 3, 4]])
        assert [one.name for one in spans.take_recorded()] == ["copy", "persist"]
    finally:
        spans.set_recording(False)
    assert spans.take_recorded() == []
