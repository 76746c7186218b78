"""Traces of a life's first steps: torch.profiler's, with what autoresume itself does in them.

Law: a trace is written once in a life, to traces/ in the run's folder, one file for each rank, named so that
TensorBoard's profiler plugin (torch-tb-profiler) shows each rank of each life as a worker. It holds the spans of
this process and of the node daemon, which works for it in a process of its own. A trace that can't be written is
told of, and harms nothing else.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import torch

from autoresume.base import spans
from autoresume.format import names

log = logging.getLogger("autoresume")


class Tracing:
    """Of `rank`, for the first `steps` step boundaries after `start`."""

    def __init__(self, folder: Path, rank: int, steps: int) -> None:
        self._folder, self._rank, self._left = folder, rank, steps
        self._profiler: Any = None

    def start(self) -> None:
        spans.set_recording(True)
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        # With a schedule the profiler marks the steps.
        always = torch.profiler.ProfilerAction.RECORD
        self._profiler = torch.profiler.profile(activities=activities, schedule=lambda _: always)
        self._profiler.start()

    def step(self, incarnation: int) -> bool:
        """A step boundary. True when the trace was written at it."""
        if self._profiler is None:
            return False
        self._left -= 1
        if self._left > 0:
            self._profiler.step()
            return False
        self.close(incarnation)
        return True

    def close(self, incarnation: int) -> None:
        """End the trace, and write it."""
        profiler, self._profiler = self._profiler, None
        if profiler is None:
            return
        profiler.stop()
        worker = names.trace_worker(incarnation, self._rank)
        target = self._folder / names.TRACES / f"{worker}.{time.time_ns()}.pt.trace.json"
        try:
            target.parent.mkdir(exist_ok=True)
            profiler.export_chrome_trace(str(target))
            trace = json.loads(target.read_text())
            merge(trace, spans.take_recorded())
            target.write_text(json.dumps(trace))
            if self._rank == 0:
                log.info("traces of the first steps are in %s; look at them with tensorboard --logdir", target.parent)
        except (OSError, ValueError, RuntimeError) as error:
            log.warning("the trace %s could not be written: %s", target, error)
        finally:
            spans.set_recording(False)


def merge(trace: dict[str, Any], found: list[spans.Span]) -> None:
    """Put spans among the events of a trace of torch.profiler, as annotations of the user's.

    Its times are microseconds since `baseTimeNanoseconds`.
    """
    base = int(trace.get("baseTimeNanoseconds", 0))
    for one in found:
        trace["traceEvents"].append(
            {
                "ph": "X",
                "cat": "user_annotation",
                "name": f"autoresume: {one.name}",
                "pid": one.process,
                "tid": one.thread,
                "ts": (one.begin - base) / 1000,
                "dur": (one.end - one.begin) / 1000,
                "args": {},
            }
        )
