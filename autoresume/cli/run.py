"""autoresume run: training on this machine, again and again until it is finished.

Law: this process plays the part of the cluster: it starts the node daemon, preempts it if it is asked
to (the signal, a grace time, then the kill), and starts it anew after every interruption. It looks at
exit codes and at the run's progress, and at nothing inside.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click

from autoresume.cli.common import restore_options, restore_variables
from autoresume.cli.node import say
from autoresume.config import options
from autoresume.errors import EXIT_FINISHED, EXIT_HOPELESS, EXIT_INTERRUPTED, EXIT_STOPPED, UsageError
from autoresume.handoff.signals import SignalTrap, parse_signals
from autoresume.node import processes

log = logging.getLogger("autoresume")

_POLL_SECONDS = 0.05


@click.command(context_settings={"allow_interspersed_args": False})
@click.option(
    "--nproc", default=1, show_default=True, help="Ranks on this machine; more than one are started by torchrun."
)
@click.option(
    "--max-restarts", default=3, show_default=True, help="Crashes that are survived; preemptions don't count."
)
@click.option("--in-place", default=0, show_default=True, help="Restarts of the ranks that torchrun makes in place.")
@click.option("--preempt-after", default="", metavar="SECONDS[,SECONDS...]", help="Preempt so long after each start.")
@click.option("--preempt-signal", default="SIGTERM", show_default=True, help="Signal that announces the preemption.")
@click.option("--grace", default=30.0, show_default=True, help="Seconds between the signal and the kill.")
@click.option("--once", is_flag=True, help="One life: its exit code is this command's, 75 if it can go on.")
@click.option("--rehearse", is_flag=True, help="Drill the first steps of a new run before it is begun.")
@restore_options
@click.argument("script", type=click.UNPROCESSED)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(
    nproc: int,
    max_restarts: int,
    in_place: int,
    preempt_after: str,
    preempt_signal: str,
    grace: float,
    once: bool,
    rehearse: bool,
    script: str,
    arguments: tuple[str, ...],
    **restore: str | None,
) -> None:
    """Train SCRIPT with its ARGUMENTS here; it is started again after each interruption.

    Exit codes: 0 finished, 75 interrupted from outside and resumable, anything else failed.
    """
    if not Path(script).is_file():
        raise UsageError(f"there is no script {script!r} in {Path.cwd()}")
    if nproc < 1:
        raise UsageError(f"--nproc {nproc}: at least one rank trains")
    say("autoresume run")
    os.environ.update(restore_variables(restore))
    if rehearse or options.load_options({}).rehearse:
        _rehearse([f"--nproc={nproc}", f"--grace={grace}", script, *arguments])
    node = [
        sys.executable,
        "-m",
        "autoresume",
        "node",
        "--nodes",
        "1",
        "--ranks",
        str(nproc),
        "--grace",
        str(grace),
        "--",
    ]
    launch = [sys.executable, script, *arguments]
    if nproc > 1 or in_place:
        elastic = [f"--nproc-per-node={nproc}", "--nnodes=1", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
        elastic += [f"--max-restarts={in_place}", "--monitor-interval=0.1"]
        launch = [sys.executable, "-m", "autoresume.ranks.launcher", *elastic, script, *arguments]
    cluster = _Cluster(node + launch, _seconds(preempt_after), parse_signals(preempt_signal)[0], grace)
    sys.exit(cluster.live(None if once else max_restarts))


def _rehearse(words: list[str]) -> None:
    """Leaves with 1 where the run is refused."""
    if subprocess.run([sys.executable, "-m", "autoresume", "rehearse", *words], check=False).returncode:
        sys.exit(1)


def _seconds(text: str) -> list[float]:
    try:
        found = [float(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise UsageError(f"--preempt-after {text!r}: give seconds, e.g. 20 or 20,35,10") from None
    if any(value < 0 for value in found):
        raise UsageError(f"--preempt-after {text!r}: seconds can't be negative")
    return found


class _Cluster:
    """What a batch system would do with one job."""

    def __init__(self, job: list[str], preemptions: list[float], number: signal.Signals, grace: float) -> None:
        self.job, self.preemptions, self.signal, self.grace = job, preemptions, number, grace

    def live(self, max_restarts: int | None) -> int:
        """Run the job until it is finished, interrupted from outside, or has crashed too often; its exit code.

        None: one life, whatever it comes to.
        """
        trap = SignalTrap([signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP])
        user = SignalTrap([signal.SIGINT])
        processes.become_subreaper()
        trap.install()
        user.install()
        crashes = 0
        while True:
            began = time.monotonic()
            code = self._once(trap, user)
            if max_restarts is None:
                return EXIT_INTERRUPTED if code == EXIT_STOPPED else code
            if code in (EXIT_FINISHED, EXIT_STOPPED) or user.first is not None or trap.first is not None:
                return EXIT_INTERRUPTED if code == EXIT_STOPPED else code
            if code == EXIT_HOPELESS:
                log.error("not started again: see above why that would not help")
                return 1
            if code == EXIT_INTERRUPTED:
                log.info("interrupted and resumable: starting again")
                continue
            # A life that lasted is progress: only crashes in a row count.
            crashes = crashes + 1 if time.monotonic() - began < 600 else 1
            if crashes > max_restarts:
                log.error("failed with exit code %d, %d times in a row; not started again", code, crashes)
                return code
            log.warning("failed with exit code %d (%d of %d): starting again", code, crashes, max_restarts)

    def _once(self, trap: SignalTrap, user: SignalTrap) -> int:
        environment = {**os.environ, "AUTORESUME_GRACE": str(self.grace)}
        child = processes.spawn(self.job, environment, when_we_die=signal.SIGTERM)
        preempt_at = time.monotonic() + self.preemptions.pop(0) if self.preemptions else float("inf")
        kill_at, told = float("inf"), False
        while True:
            try:
                code = child.wait(_POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                pass
            processes.reap(sparing=child.pid)
            now = time.monotonic()
            if now >= preempt_at:
                log.info("preempting: %s, and %.0f s of grace", self.signal.name, self.grace)
                child.send_signal(self.signal)
                preempt_at, kill_at = float("inf"), now + self.grace
            if not told and (trap.first is not None or user.first is not None):
                closed = trap.first is signal.SIGHUP  # the terminal was closed: save, and stop
                child.send_signal(signal.SIGTERM if closed else trap.first or signal.SIGINT)
                told = True
                kill_at = now + self.grace if trap.first is not None else float("inf")
            if now >= kill_at:
                log.warning("the grace time is over: killing the job")
                processes.kill_tree()
                kill_at = float("inf")
        processes.kill_tree()  # what a daemon that was itself killed left
        return code if code >= 0 else 128 - code
