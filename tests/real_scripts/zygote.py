"""Starts scripts as processes of their own without importing torch anew for each: a fork server.

Law: what it starts is a real process (own pid, own session, own signals, own `__main__`, own end with
threads joined and atexit functions called). Only what every script imports anyway is there already; nothing of
autoresume is. Requests and answers are JSON lines on stdin and stdout, one at a time.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import random
import signal
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil
import rich.progress
import safetensors
import torch
import torch.distributed.tensor
import torchdata.stateful_dataloader
import xxhash
import yaml

torch.optim.Adam(torch.nn.Linear(1, 1).parameters())  # imports torch._dynamo, 2 s, without a thread
LOADED = (click, np, psutil, rich.progress, safetensors, torch.distributed.tensor, torchdata, xxhash, yaml)


def main() -> None:
    """Answer until stdin ends. In a child it returns, and the caller runs the script at the top level."""
    gc.freeze()  # what is loaded here is not looked through, and so not copied, in each child
    for line in sys.stdin:
        request = json.loads(line)
        if "script" in request:
            pid = os.fork()
            if pid == 0:
                become(request)
                return
            answer(pid=pid)
        elif "poll" in request:
            done, status = os.waitpid(request["poll"], os.WNOHANG)
            answer(code=os.waitstatus_to_exitcode(status) if done else None)
        elif "wait" in request:
            answer(code=wait(request["wait"], request["seconds"]))
        elif "store" in request:
            pid, port = store()
            answer(pid=pid, port=port)
    os._exit(0)


def answer(**value: Any) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def become(request: dict[str, Any]) -> None:
    """In the child: be the process that `python script arguments` would have made."""
    global CHILD
    os.setsid()
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    for descriptor, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, request["stdout"], os.O_WRONLY | os.O_CREAT | os.O_APPEND),
        (2, request["stderr"], os.O_WRONLY | os.O_CREAT | os.O_APPEND),
    ):
        opened = os.open(path, flags, 0o644)
        os.dup2(opened, descriptor)
        os.close(opened)
    random.seed()  # as in a fresh process: python's and numpy's from the system's entropy,
    np.random.seed()
    torch.manual_seed(torch.default_generator.initial_seed())  # torch's from its own constant
    sys.argv = [request["script"], *request["arguments"]]
    sys.path[0:1] = [item for item in request["environment"].get("PYTHONPATH", "").split(":") if item]
    sys.path.insert(0, str(Path(request["script"]).resolve().parent))
    CHILD = request["script"]


CHILD: str | None = None


def wait(pid: int, seconds: float) -> int | None:
    """The exit code (negative: the signal), or None and an end to it after so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        time.sleep(0.005)


def store() -> tuple[int, int]:
    """A process with a rendezvous store at a free port, as torchrun's agent has one."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        kept = torch.distributed.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
        os.write(writing, str(kept.port).encode())
        os.close(writing)
        while True:
            signal.pause()
    os.close(writing)
    with os.fdopen(reading) as pipe:
        return pid, int(pipe.read())


def run(path: str) -> int:
    """Run a script as `__main__`; its exit code, found as the interpreter finds it."""
    module = types.ModuleType("__main__")
    module.__file__ = path
    sys.modules["__main__"] = module
    try:
        exec(compile(Path(path).read_text(), path, "exec"), module.__dict__)
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        print(error.code, file=sys.stderr)
        return 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


main()
assert CHILD is not None
code = run(CHILD)
# The interpreter's own end, but for taking torch's modules apart, which takes a second.
threading._shutdown()
atexit._run_exitfuncs()
sys.stdout.flush()
sys.stderr.flush()
os._exit(code & 0xFF)
