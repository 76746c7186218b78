"""The process tree below the daemon. Each test plays in a process of its own: it kills what is below it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

from tests.node.harness import is_gone, wait_until


def play(script: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_only_the_ranks_are_killed_and_the_launcher_keeps_its_exit_code() -> None:
    """Ranks die with what they started; the launcher lives on, and its status is left to its owner.

    A status that somebody else collected looks like 0: a failed job like a finished one.
    """
    script = """
import os, subprocess, sys
import psutil
from autoresume.node import processes
rank = "import subprocess, time; subprocess.Popen(['sleep', '60']); print('up', flush=True); time.sleep(60)"
launcher = f"import subprocess, sys; rank = subprocess.Popen([sys.executable, '-c', {rank!r}])"
launcher += "; print(rank.pid, flush=True); rank.wait(); sys.exit(3)"
child = subprocess.Popen([sys.executable, "-c", launcher], stdout=subprocess.PIPE)
pid = int(child.stdout.readline())
child.stdout.readline()
family = psutil.Process(child.pid).children(recursive=True)
started = psutil.Process(pid).create_time()
processes.kill([(pid, started + 100.0)])
print(len(family), [one.is_running() for one in family])
processes.kill([(pid, started)])
print(child.wait(), len(psutil.wait_procs(family, timeout=10)[1]))
"""
    assert play(script) == "2 [True, True]\n3 0\n"


def test_a_child_that_was_killed_is_not_taken_for_one_that_finished() -> None:
    """Who killed its tree learns from its child that it was killed, and not that it ended with 0."""
    script = """
import subprocess
from autoresume.node import processes
child = subprocess.Popen(["sleep", "600"])
processes.kill_tree()
print(child.wait())
"""
    assert play(script) == "-9\n"


def test_the_whole_tree_dies(tmp_path: Path) -> None:
    """Children, their children, and those that went into sessions of their own and lost their parents."""
    script = """
import subprocess, sys, time
from autoresume.node import processes
processes.become_subreaper()
inner = f"import subprocess; subprocess.Popen(['sleep', '600', {sys.argv[1]!r}], start_new_session=True)"
outer = "import subprocess, sys, time; subprocess.run([sys.executable, '-c', sys.argv[1]])"
outer += "; print('up', flush=True); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", outer, inner], stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
living = lambda: len([one for one in processes.descendants() if one.status() != "zombie"])
print(living())
processes.kill_tree()
print(living())
"""
    # `sleep` refuses a second argument that is no number, so the mark is a number, too.
    mark = str(abs(hash(tmp_path)) % 10**9)
    assert play(script, mark) == "2\n0\n"
    assert not [one for one in psutil.process_iter(["cmdline"]) if mark in (one.info["cmdline"] or [])]


def test_a_launcher_does_not_outlive_its_parent(tmp_path: Path) -> None:
    """What `spawn` started gets SIGHUP when its parent is killed, and is in a process group of its own."""
    script = """
import os, signal, sys
from autoresume.node import processes
child = processes.spawn([sys.executable, "-c", "import time; time.sleep(600)"], os.environ)
assert os.getpgid(child.pid) == child.pid
print(child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == -9, done.stderr
    pid = int(done.stdout)
    wait_until(lambda: is_gone(pid))
