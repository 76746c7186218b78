"""What the command line costs: an import, and a command that looks at a run, each as a whole process."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.measure import Recorder

_MAKE = """
import autoresume, sys
run = autoresume.start(run_dir=sys.argv[1], save_every=1)
run.restore()
for _ in range(3):
    run.step()
run.finish()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state")
    parser.add_argument("--rival", required=True)
    parser.add_argument("--world", type=int)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--disk", type=Path, required=True)
    parser.add_argument("--out", required=True)
    given = parser.parse_args()
    run = str(given.disk / "run")
    subprocess.run([sys.executable, "-c", _MAKE, run], check=True)
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "import autoresume.cli": [sys.executable, "-c", "import autoresume.cli"],
        "autoresume ls": [sys.executable, "-m", "autoresume", "ls", run],
        "import torch": [sys.executable, "-c", "import torch"],
    }
    record = Recorder(given.out, "startup", "", 1, given.rival)
    for _ in range(given.times):
        for name, command in commands.items():
            began = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            record.add(name, "s", time.perf_counter() - began)


if __name__ == "__main__":
    main()
