"""Tells what a process sees of itself, as one line of JSON. With "twice", a child of its own tells it, too."""

import atexit
import json
import logging
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path


def world() -> dict:
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    main = sys.modules["__main__"]
    cmdline = Path("/proc/self/cmdline").read_bytes().decode().split("\0")
    told = Path("/proc/self/environ").read_bytes().decode().split("\0")
    return {
        "argv": sys.argv,
        "original": sys.orig_argv,
        "cmdline": cmdline,
        "name": status["Name"],
        "executable": sys.executable,
        "exe": os.readlink("/proc/self/exe"),
        "environment": sorted(os.environ.items()),
        "environment that /proc tells": sorted(told),
        "folder": os.getcwd(),
        "path": sys.path,
        "main": [main.__name__, main.__file__, main.__spec__ and main.__spec__.name],
        "umask": status.get("Umask"),
        "signals": [status[name] for name in ("SigBlk", "SigIgn", "SigCgt", "ShdPnd")],
        "handlers": {number.name: str(signal.getsignal(number)).partition(" at ")[0] for number in signal.Signals},
        "files": sorted(os.readlink(f"/proc/self/fd/{fd}").partition(":")[0] for fd in range(3)),
        "more files": len([fd for fd in os.listdir("/proc/self/fd") if int(fd) > 2]),
        "streams": [
            [each.name, each.encoding, each.errors, each.line_buffering, each.write_through]
            for each in (sys.stdin, sys.stdout, sys.stderr)
        ],
        "leads its session": os.getsid(0) == os.getpid(),
        "leads its group": os.getpgid(0) == os.getpid(),
        "limits": {
            name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name[:7] == "RLIMIT_"
        },
        "threads": [thread.name for thread in threading.enumerate()],
        "main thread": threading.current_thread() is threading.main_thread(),
        "ours": sorted(name for name in sys.modules if name.partition(".")[0] in ("autoresume", "tests", "helper")),
        "logging": [logging.root.level, logging.root.handlers, logging.getLogger("autoresume").level],
        "warnings are errors": any(each[0] == "error" for each in warnings.filters),
        "hooks": [sys.excepthook is sys.__excepthook__, sys.gettrace() is None],
        "no byte code": sys.dont_write_bytecode,
    }


def of_torch() -> dict:
    import torch

    return {
        "threads": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(),
        "type": str(torch.get_default_dtype()),
        "dist": torch.distributed.is_initialized(),
    }


if __name__ == "__main__":
    found = world()
    found["torch"] = of_torch()
    import torch

    found["random"] = [random.random(), torch.rand(1).item()]
    print(json.dumps(found), flush=True)
    if sys.argv[1:2] == ["twice"]:
        import helper  # of the same folder: a child does not have it

        assert helper
        logging.basicConfig(level=logging.DEBUG)
        logging.getLogger("autoresume").setLevel(logging.ERROR)
        warnings.simplefilter("error")
        signal.signal(signal.SIGTERM, lambda number, frame: print("the parent's handler"))
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        atexit.register(print, "the parent's end", flush=True)
        torch = sys.modules["torch"]
        torch.manual_seed(7)
        opened = open(__file__)
        sys.stdout.write("kept back until the end: ")
        parent = os.getpid()
        child = subprocess.Popen([sys.executable, "-u", __file__, "once"], cwd="/", env={**os.environ, "MORE": "1"},
                                 stdout=subprocess.PIPE, start_new_session=True, text=True)  # fmt: skip
        state = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        out, _ = child.communicate()
        assert int(state[1]) == parent, "its own child"
        print(f"a child ended with {child.returncode}")
        print(out, end="")
