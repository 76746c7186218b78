"""A drill whose lives are started by a fork server, without the daemon: a tenth of the time, the same records."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from autoresume.cli.drill import _states
from autoresume.drill.drill import Drill, Result
from autoresume.drill.driver import Plan, Run
from autoresume.drill.schedule import Interruption
from tests.real_scripts import harness

SCRIPTS = Path(__file__).parent / "scripts"


class Child:
    """What the driver needs of a child, of a process of the fork server's."""

    def __init__(self, zygote: harness.Zygote, pid: int) -> None:
        self.pid, self.returncode, self._zygote = pid, None, zygote

    def poll(self) -> int | None:
        if self.returncode is None:
            answer = self._zygote.ask(poll=self.pid)
            self.returncode = answer["code"]
        return self.returncode

    def wait(self) -> int | None:
        return self.poll() if self.returncode is not None else self._zygote.ask(wait=self.pid, seconds=30)["code"]

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        os.killpg(self.pid, signal.SIGKILL)


class Quick(Run):
    """`zygote` is set by whoever makes one."""

    zygote: harness.Zygote

    def start(self, environment: dict[str, str], ranks: int, grace: float, log: Path) -> Any:
        kept = {key: value for key, value in environment.items() if key.startswith("AUTORESUME_")}
        pid = self.zygote.ask(
            script=str(SCRIPTS / self.plan.script),
            arguments=list(self.plan.arguments),
            folder=str(self.folder),
            environment=harness.environment(**kept),
            stdout=str(log),
            stderr=str(log),
        )["pid"]
        return Child(self.zygote, pid)

    def end(self, child: Any) -> None:
        if child.poll() is None:
            child.kill()
        child.wait()


def made_by(zygote: harness.Zygote) -> type[Quick]:
    return type("Quick", (Quick,), {"zygote": zygote})


def quick_run(zygote: harness.Zygote, plan: Plan, name: str) -> Quick:
    return made_by(zygote)(plan, name)


def quick(
    zygote: harness.Zygote, folder: Path, script: str, *arguments: str, interruptions: list[Interruption]
) -> Result:
    plan = Plan(str(SCRIPTS / script), arguments, folder / "drill", save_every="1 steps")
    return Drill(lambda text: None, _states, made_by(zygote)).run(plan, 0, 1, interruptions)


KILL = [Interruption("kill-rank", "step", 11)]
