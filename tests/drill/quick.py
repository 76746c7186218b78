"""A drill whose lives are started by a fork server, without the daemon: a tenth of the time, the same records."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from autoresume.cli.drill import compare_states
from autoresume.drill.drill import Drill, Result
from autoresume.drill.driver import Plan, Run
from autoresume.drill.schedule import Interruption
from tests import warm
from tests.real_scripts import harness

SCRIPTS = Path(__file__).parent / "scripts"


class Quick(Run):
    def start(self, environment: dict[str, str], ranks: int, grace: float, log: Path) -> Any:
        kept = {key: value for key, value in environment.items() if key.startswith("AUTORESUME_")}
        with open(log, "ab") as output:
            return warm.Popen(
                [sys.executable, str(SCRIPTS / self.plan.script), *self.plan.arguments],
                cwd=self.folder,
                env=harness.environment(**kept),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def end(self, child: Any) -> None:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
        child.wait(30)


def quick(folder: Path, script: str, *arguments: str, interruptions: list[Interruption]) -> Result:
    plan = Plan(str(SCRIPTS / script), arguments, folder / "drill", save_every="1 steps")
    return Drill(lambda text: None, compare_states, Quick).run(plan, 0, 1, interruptions)


KILL = [Interruption("kill-rank", "step", 11)]
