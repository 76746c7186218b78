"""Claims a run: python claimer.py RUN_FOLDER GO_FILE STAY. Prints the number, or why not, and stays alive if asked."""

from __future__ import annotations

import os
import socket
import sys
import time

from autoresume.checkpoint import incarnation
from autoresume.checkpoint.incarnation import Incarnation
from autoresume.errors import RunIsLive
from autoresume.storage.local import LocalStorage


def main() -> None:
    folder, go, stay = sys.argv[1:]
    storage = LocalStorage(folder)
    own = [incarnation.this_process()]

    def make(number: int) -> Incarnation:
        return Incarnation(
            number, "run", socket.gethostname(), incarnation.boot_id(), own, 1, sys.argv, began={"pid": os.getpid()}
        )

    print("ready", flush=True)
    while not os.path.exists(go):
        time.sleep(0.001)
    try:
        print(incarnation.claim(storage, make, own).number, flush=True)
    except RunIsLive as error:
        print(f"RunIsLive: {error}", flush=True)
    if stay == "stay":
        sys.stdin.read()


if __name__ == "__main__":
    main()
