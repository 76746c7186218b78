"""The core of the suite with other versions of torch and Python: `python3 tools/versions.py [TORCH-PYTHON...]`.

Law: an environment of gigabytes is made only where it is asked for by name (oldest-3.10, newest-3.13, 2.8.0-3.12);
without a name, what is there is used. Each version gets a line that says what became of it, or why it was left out.
"""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PROMISED = ("oldest-3.10", "newest-3.13")
"""The ends of what pyproject.toml promises."""
OLDEST = REPOSITORY / "constraints-oldest.txt"
CORE = [
    "tests/format",
    "tests/checkpoint",
    "tests/state",
    "tests/snapshot",
    "tests/load",
    "tests/data",
    "tests/run",
    "--ignore=tests/run/test_traces.py",  # needs TensorBoard's plugin
    "tests/real_scripts/test_traps_data.py",
    "tests/real_scripts/test_traps_process.py",
    "tests/real_scripts/test_traps_ranks.py",
    "tests/real_scripts/test_traps_state.py",
]
"""What meets torch, numpy and Python: format, state, snapshots, loading, data, and scripts that must resume exactly."""


def main(asked: list[str]) -> int:
    names = asked or [name for name in PROMISED if (folder(name) / "pyvenv.cfg").exists()]
    told = {name: attempt(name, make=bool(asked)) for name in names}
    for name in PROMISED if not asked else ():
        told.setdefault(name, f"not tried here (make test-versions VERSIONS={name} downloads gigabytes, and does)")
    if not asked:
        print(f"versions: the whole suite with {versions(sys.executable)}: passed")
    for name, outcome in told.items():
        print(f"versions: the core with {name}: {outcome}")
    bad = ("FAILED", "skipped") if os.environ.get("CI") and asked else ("FAILED",)
    return int(any(outcome.startswith(bad) for outcome in told.values()))


def folder(name: str) -> Path:
    torch, _, python = name.partition("-")
    return REPOSITORY / f".venv-torch-{torch}-py{python}"


def attempt(name: str, make: bool) -> str:
    """Run the core with these versions; what became of it, in one line."""
    torch, _, python = name.partition("-")
    if make:
        interpreter = find_python(python)
        if interpreter is None:
            return f"skipped: there is no python{python} on this machine"
        program = [interpreter, str(REPOSITORY / "tools" / "environment.py"), str(folder(name)), "test"]
        program += [f"--constraint={OLDEST if torch == 'oldest' else ''}"]
        program += [f"--torch=torch=={torch}"] if torch not in ("oldest", "newest") else []
        if subprocess.run(program, cwd=REPOSITORY).returncode:
            return "FAILED: no environment could be made"
    binaries = folder(name) / "bin"
    environment = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "PYTHONDONTWRITEBYTECODE": ""}
    tests = [binaries / "python", "-m", "pytest", "-n", "3", "--dist", "worksteal", "-p", "no:cacheprovider", *CORE]
    outcome = "passed" if subprocess.run(tests, cwd=REPOSITORY, env=environment).returncode == 0 else "FAILED"
    return f"{outcome} with {versions(binaries / 'python')}"


def versions(python: str | Path) -> str:
    code = "import platform, importlib.metadata as m; "
    code += "print(m.version('torch'), m.version('numpy'), platform.python_version())"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    return "torch {}, numpy {}, Python {}".format(*done.stdout.split()) if done.returncode == 0 else done.stderr.strip()


def find_python(version: str) -> str | None:
    """An interpreter that runs: pyenv's commands are there for versions that it does not have active, too."""
    found = [
        shutil.which(f"python{version}"),
        *sorted(glob.glob(f"{Path.home()}/.pyenv/versions/{version}.*/bin/python")),
    ]
    for candidate in filter(None, found):
        if subprocess.run([candidate, "-c", ""], capture_output=True).returncode == 0:
            return candidate
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
