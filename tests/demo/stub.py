"""Stands for `autoresume run` in the demo's tests: as few seconds as possible, and as bad as asked for."""

import os
import subprocess
import sys
import time
from pathlib import Path

from demo import cue

place = Path(os.environ["STUB_FOLDER"])
what = os.environ["STUB"]
if what == "trains":
    for step in range(20):
        cue.wait(step, rank=1)
        with (place / "steps").open("a") as file:
            file.write(f"{step}\n")
    sys.exit()
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], start_new_session=True)
print("the disk is on fire", flush=True)
(place / "memory").write_text(os.environ["AUTORESUME_MEMORY"])
if what == "fails":
    sys.exit(3)
(place / "there").touch()
time.sleep(300)
