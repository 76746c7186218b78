"""For jobs on Slurm, whose processes are started by Slurm and so cold: a launcher's ranks are forked from the launcher.

Law: Python imports it by itself where its folder is in PYTHONPATH. It changes nothing until a launcher, which has imported
torch, starts its first rank.
"""

import os
import subprocess
import sys
from pathlib import Path

if sys.orig_argv[1:3] == ["-m", "autoresume.ranks.launcher"] and not os.environ.get("COLD"):
    cold_start = subprocess.Popen._execute_child  # type: ignore[attr-defined]

    def first_start(self, *args, **named):
        subprocess.Popen._execute_child = cold_start
        source = Path(__file__).parents[1] / "server.py"
        code = compile(source.read_text(), os.__file__.replace("os.py", "warm.py"), "exec")
        exec(code, {"__name__": "warm", "__file__": str(source)})
        return subprocess.Popen._execute_child(self, *args, **named)

    subprocess.Popen._execute_child = first_start
