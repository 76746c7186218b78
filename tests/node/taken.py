"""Plays a launcher whose port is taken: python taken.py LAST_ROUND FILE COMMAND: from then on, it is COMMAND."""

import os
import sys
from pathlib import Path

last, file, command = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
if int(os.environ["AUTORESUME_ROUND"]) <= last:
    if os.environ["RANK"] == "0":
        with file.open("a") as ports:
            ports.write(os.environ["MASTER_PORT"] + "\n")
        sys.exit(71)
    sys.exit(0)
os.execvp(command[0], command)
