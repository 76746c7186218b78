"""What is started warm is what a cold start makes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import warm

WORLD = Path(__file__).with_name("world.py")


def both(*words: str, **options: Any) -> tuple[Any, Any]:
    """The same command, started cold and warm."""
    command = [sys.executable, *words]
    options = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": 120, **options}
    return subprocess.run(command, **options), warm.run(command, **options)


def worlds(text: str) -> list[dict[str, Any]]:
    """What each process saw; the random numbers of no two of them are the same."""
    found = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    seen.extend(number for one in found for number in one.pop("random"))
    assert len(seen) == len(set(seen))
    return found


seen: list[float] = []


@pytest.mark.parametrize("words", [[str(WORLD), "a", "--b"], ["-u", str(WORLD)], ["-m", "tests.warm.world", "x"]])
def test_a_process_sees_the_same(tmp_path: Path, words: list[str]) -> None:
    """Words, environment, files, signals, limits, paths, modules, torch's first random numbers: as after a cold start."""
    environment = {**os.environ, "PYTHONPATH": str(WORLD.parents[2]), "OMP_NUM_THREADS": "1", "A": "b c"}
    before = os.umask(0o027)
    try:
        cold, hot = both(*words, cwd=tmp_path, env=environment, start_new_session=True)
    finally:
        os.umask(before)
    assert (cold.returncode, hot.returncode) == (0, 0), cold.stderr + hot.stderr
    assert cold.stderr == hot.stderr
    (expected,), (got,) = worlds(cold.stdout), worlds(hot.stdout)
    assert got == expected


def test_what_it_starts_sees_the_same() -> None:
    """A child of a warm process is its child, and has nothing of what its parent imported, set or has to say."""
    cold, hot = both(str(WORLD), "twice", env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert (cold.returncode, hot.returncode) == (0, 0), cold.stderr + hot.stderr
    expected, got = worlds(cold.stdout), worlds(hot.stdout)
    assert got == expected
    assert len(got) == 2
    plain = [[line for line in done.stdout.splitlines() if not line.startswith("{")] for done in (cold, hot)]
    assert plain[0] == plain[1] == ["kept back until the end: a child ended with 0", "the parent's end"]


ENDS = {
    "by itself": ("print('done')", 0),
    "with a code": ("raise SystemExit(75)", 75),
    "with a word": ("raise SystemExit('no')", 1),
    "with an error": ("def f():\n    raise ValueError('x')\nf()", 1),
    "killed": ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL),
    "terminated": ("import os; os.kill(os.getpid(), 15)", -signal.SIGTERM),
    "interrupted": (
        "import os, signal, time\nsignal.signal(2, signal.default_int_handler)\nos.kill(os.getpid(), 2); time.sleep(9)",
        -signal.SIGINT,
    ),
    "after its threads": ("import threading, time\nthreading.Timer(0.1, print, ['last']).start()\nprint('first')", 0),
    "with what is registered": ("import atexit; atexit.register(print, 'bye'); print('hello')", 0),
    "in a syntax error": ("x = = 3", 1),
}


@pytest.mark.parametrize("how", ENDS)
def test_an_end_is_the_same(tmp_path: Path, how: str) -> None:
    """Its exit code, the signal that killed it, what it says, and its traceback."""
    text, code = ENDS[how]
    (tmp_path / "script.py").write_text(text + "\n")
    cold, hot = both("script.py", cwd=tmp_path)
    assert (cold.returncode, hot.returncode) == (code, code)
    assert (hot.stdout, hot.stderr) == (cold.stdout, cold.stderr)


def test_what_a_fork_can_not_make_is_cold(tmp_path: Path) -> None:
    """Another Python, options and variables that Python reads as it starts, a script that is not there."""
    seeded = "import os, sys; print(os.environ['PYTHONHASHSEED'], hash('a'))"
    (tmp_path / "script.py").write_text(seeded)
    cold, hot = both("script.py", cwd=tmp_path, env={**os.environ, "PYTHONHASHSEED": "3"})
    assert cold.stdout == hot.stdout
    assert hot.stdout
    for words in (["-c", "import sys; print('torch' in sys.modules)"], ["-I", "script.py"], ["nowhere.py"]):
        cold, hot = both(*words, cwd=tmp_path)
        assert (cold.returncode, cold.stdout, cold.stderr) == (hot.returncode, hot.stdout, hot.stderr)
    echoed = warm.run(["echo", "a word"], capture_output=True, text=True)
    assert echoed.stdout == "a word\n"


def test_signals_waiting_and_files(tmp_path: Path) -> None:
    """A warm process is waited for, with a time limit, gets signals and what is written to it, and writes to a file."""
    (tmp_path / "script.py").write_text(
        "import sys\nfor line in sys.stdin:\n    print(line.upper(), end='', flush=True)\n"
    )
    command = [sys.executable, str(tmp_path / "script.py")]
    with warm.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        assert process.communicate("one\ntwo\n")[0] == "ONE\nTWO\n"
    assert process.returncode == 0
    with open(tmp_path / "log", "w") as log, warm.Popen(command, stdin=subprocess.PIPE, stdout=log) as process:
        process.terminate()
        assert process.wait() == -signal.SIGTERM
