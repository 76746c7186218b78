"""The fork server: it has imported torch, and forks itself into whatever Python process is asked for.

Law: it runs as a script, and no test imports it. It has one thread, starts nothing by itself, and has imported nothing of
autoresume. Requests and answers are JSON, one packet each, with the files that a process is to have. Where it is no
script (sitecustomize.py), it makes warm what the process that it is in starts.
"""

# ruff: noqa: E402

from __future__ import annotations

import atexit

kept_exits: list[tuple] = []
_register = atexit.register
atexit.register = lambda *call, **named: (kept_exits.append((call, named)), _register(*call, **named), call[0])[2]

import array
import contextlib
import ctypes
import faulthandler
import fcntl
import gc
import io
import itertools
import json
import linecache
import logging
import multiprocessing.process
import multiprocessing.util
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import types
import warnings
import weakref
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any, NoReturn

import click
import fsspec
import numpy as np
import psutil
import rich.progress
import safetensors
import torch
import torch.distributed.run
import torch.distributed.tensor
import torchdata.stateful_dataloader
import xxhash
import yaml

LOADED = (array, click, fsspec, psutil, rich.progress, safetensors, torchdata, xxhash, yaml, torch.distributed.run)
torch.optim.Adam(torch.nn.Linear(1, 1).parameters())  # imports torch._dynamo, without a thread

atexit.register = _register
HEEDED = ("PYTHON", "LD_", "LC_", "LANG", "OMP_", "MKL_")
"""Variables that are read as Python starts, or torch: where one differs from the server's, a start is cold,"""
HANDLED = ("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "PYTHONPATH")
"""but for these, which are heeded here."""
_PR_SET_MM, _PR_SET_MM_MAP = 35, 14


class Baseline:
    """What a Python that has imported only what is imported here looks like; each child begins with it."""

    def __init__(self) -> None:
        self.modules = dict(sys.modules)
        self.tops = {name.partition(".")[0] for name in self.modules} - {"__main__", "autoresume"}
        self.path = sys.path[1:]
        self.meta_path, self.filters = list(sys.meta_path), list(warnings.filters)
        self.hooks = sys.excepthook, sys.unraisablehook, threading.excepthook
        self.loggers = {logger: self._look(logger) for logger in self._all()}
        self.handlers = list(logging._handlerList)  # type: ignore[attr-defined]

    @staticmethod
    def _all() -> list[logging.Logger]:
        found = [one for one in logging.root.manager.loggerDict.values() if isinstance(one, logging.Logger)]
        return [logging.root, *found]

    @staticmethod
    def _look(logger: logging.Logger) -> tuple[Any, ...]:
        return logger.level, list(logger.handlers), list(logger.filters), logger.propagate, logger.disabled

    def restore(self) -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] not in self.tops]:
            kept.append(sys.modules.pop(name))
        sys.meta_path[:], warnings.filters[:] = self.meta_path, self.filters
        sys.excepthook, sys.unraisablehook, threading.excepthook = self.hooks
        sys.path_importer_cache.clear()
        linecache.clearcache()
        for logger in self._all():
            found = self.loggers.get(logger, (logging.NOTSET, [], [], True, False))
            logger.level, logger.propagate, logger.disabled = found[0], found[3], found[4]
            logger.handlers[:], logger.filters[:] = found[1], found[2]
        logging.root.manager._clear_cache()  # type: ignore[attr-defined]
        logging.disable(logging.NOTSET)
        logging._handlerList[:] = self.handlers  # type: ignore[attr-defined]


kept: list[Any] = []
"""Of the process that this one was forked from: not freed, since files in it would be closed whose numbers are others' now."""


# -- what a child becomes -----------------------------------------------------------------------------


def suits(argv: list[str], environment: dict[str, str], folder: str | None) -> bool:
    """Whether a fork can be what these words would start."""
    if argv[0] != sys.executable or os.environ.get("COLD"):
        return False
    words = argv[2:] if argv[1:2] == ["-u"] else argv[1:]
    if not words or (words[0].startswith("-") and (words[0] != "-m" or len(words) < 2)):
        return False
    if words[0] != "-m" and not (Path(folder or ".") / words[0]).is_file():
        return False
    for name in {*environment, *STARTED_WITH}:
        if name.startswith(HEEDED) and name not in HANDLED and environment.get(name, "1") != STARTED_WITH.get(name):
            return False  # without OMP_NUM_THREADS there is one thread, and not one for each core
    return folder is None or Path(folder).is_dir()


def become(
    argv: list[str],
    environment: dict[str, str],
    folder: str | None,
    files: tuple[int, int, int],
    keep: list[int],
    session: bool,
    umask: int,
    first: Any,
) -> NoReturn:
    """In a child, with all signals blocked: be the process that these words start, to its end."""
    gc.freeze()
    raised = [fcntl.fcntl(file, fcntl.F_DUPFD, 10) if file >= 0 else -1 for file in files]
    for number, file in enumerate(raised):
        if file >= 0:
            os.dup2(file, number)
    if folder is not None:
        os.chdir(folder)
    if umask >= 0:
        os.umask(umask)
    if session:
        os.setsid()
    forget_signals()
    if first is not None:
        first()
    for number in map(int, os.listdir("/proc/self/fd")):
        if number > 2 and number not in keep:
            with contextlib.suppress(OSError):
                os.close(number)
    os.environ.clear()
    os.environ.update(environment)
    tell(argv, environment)
    forget()
    unbuffered = bool(environment.get("PYTHONUNBUFFERED")) or argv[1] == "-u"
    open_streams(unbuffered)
    sys.dont_write_bytecode = bool(environment.get("PYTHONDONTWRITEBYTECODE"))
    sys.orig_argv = list(argv)
    words = argv[2:] if argv[1] == "-u" else argv[1:]
    more = [os.path.abspath(item) for item in environment.get("PYTHONPATH", "").split(":") if item]
    sys.path[:] = dict.fromkeys([*more, *baseline.path])
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    live(words)


def forget_signals() -> None:
    """What `exec` and then Python do: caught signals have their default again, ignored ones stay ignored."""
    signal.set_wakeup_fd(-1)
    faulthandler.disable()
    faulthandler.cancel_dump_traceback_later()
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(number) is not signal.SIG_IGN and number < 65:
            with contextlib.suppress(OSError):
                signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def forget() -> None:
    """What the process that this one was forked from has done since it was as the server is."""
    baseline.restore()
    atexit._clear()
    for call, named in kept_exits:
        atexit.register(*call, **named)
    kept.append(dict(weakref.finalize._registry))  # type: ignore[attr-defined]
    weakref.finalize._registry.clear()  # type: ignore[attr-defined]
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]
    multiprocessing.process._children.clear()  # type: ignore[attr-defined]
    multiprocessing.process._process_counter = itertools.count(1)  # type: ignore[attr-defined]
    kept.append(dict(multiprocessing.util._finalizer_registry))  # type: ignore[attr-defined]
    multiprocessing.util._finalizer_registry.clear()  # type: ignore[attr-defined]
    tempfile.tempdir = None
    random.seed()  # as in a fresh process, from the system's entropy
    np.random.seed()
    torch.seed()
    gc.enable()


def open_streams(unbuffered: bool) -> None:
    manners = [(each.encoding, each.errors) for each in STREAMS]
    kept.append((sys.stdin, sys.stdout, sys.stderr, sys.__stdin__, sys.__stdout__, sys.__stderr__))
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            raw = io.FileIO(number, "w" if number else "r", closefd=False)
        except OSError:
            stream = None
        else:
            raw.name = f"<{name}>"
            buffer: Any = io.BufferedReader(raw) if not number else raw if unbuffered else io.BufferedWriter(raw)
            stream = io.TextIOWrapper(
                buffer,
                encoding=manners[number][0],
                errors=manners[number][1],
                line_buffering=not unbuffered and (number == 2 or raw.isatty()),
                write_through=unbuffered,
            )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


class _Map(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in (
        "start_code", "end_code", "start_data", "end_data", "start_brk", "brk", "start_stack", "arg_start", "arg_end",
        "env_start", "env_end", "auxv")] + [("auxv_size", ctypes.c_uint32), ("exe_fd", ctypes.c_uint32)]  # fmt: skip


def tell(argv: list[str], environment: dict[str, str]) -> None:
    """Have /proc tell this command line and environment. Raises OSError where the kernel can't."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.sbrk.restype = ctypes.c_void_p
    words = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    field = {number: int(words[number - 3]) for number in (26, 27, 28, 45, 46, 47)}
    texts = [b"".join(os.fsencode(word) + b"\0" for word in argv)]
    texts += [b"".join(os.fsencode(f"{name}={value}") + b"\0" for name, value in environment.items()) or b"\0"]
    buffers = [ctypes.create_string_buffer(text, len(text)) for text in texts]
    kept.append(buffers)
    (arguments, variables) = (ctypes.addressof(buffer) for buffer in buffers)
    told = _Map(
        field[26], field[27], field[45], field[46], field[47], libc.sbrk(0), field[28], arguments,
        arguments + len(texts[0]), variables, variables + len(texts[1]), 0, 0, 2**32 - 1)  # fmt: skip
    if libc.prctl(_PR_SET_MM, _PR_SET_MM_MAP, ctypes.byref(told), ctypes.sizeof(told), 0):
        raise OSError(ctypes.get_errno(), "the command line can't be set")


def live(words: list[str]) -> NoReturn:
    """Run it as `__main__`, and end as the interpreter ends, but for taking torch's modules apart: that takes a second."""
    code, interrupted = 1, False
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    try:
        if words[0] == "-m":
            sys.path.insert(0, os.getcwd())
            sys.argv = ["-m", *words[2:]]
            runpy._run_module_as_main(words[1])  # type: ignore[attr-defined]
        else:
            path = os.path.abspath(words[0])
            sys.path.insert(0, os.path.dirname(os.path.realpath(path)))
            sys.argv = list(words)
            module.__file__, module.__loader__ = path, SourceFileLoader("__main__", path)
            exec(compile(Path(path).read_bytes(), path, "exec"), module.__dict__)
        code = 0
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            code = error.code or 0
        else:
            print(error.code, file=sys.stderr)
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        if error.__traceback__ is not None:
            error.__traceback__ = error.__traceback__.tb_next  # which is this frame's
        sys.excepthook(type(error), error, error.__traceback__)
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and not stream.closed:
                stream.flush()
    except BaseException:
        code = 120
    if interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code & 0xFF)


def forked(*what: Any) -> int:
    """The pid of a child that has become that."""
    before = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads, which the child has none of
        pid = os.fork()
    if pid == 0:
        try:
            become(*what)
        except BaseException as error:
            os.write(2, f"a warm start failed: {error!r}\n".encode())
        finally:
            os._exit(255)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


# -- what children start ------------------------------------------------------------------------------

cold_start = subprocess.Popen._execute_child  # type: ignore[attr-defined]


def warm_start(self: Any, args: Any, executable: Any, preexec_fn: Any, close_fds: bool, pass_fds: Any, cwd: Any, env: Any,
    startupinfo: Any, creationflags: Any, shell: bool, p2cread: int, p2cwrite: int, c2pread: int, c2pwrite: int,
    errread: int, errwrite: int, restore_signals: bool, gid: Any, gids: Any, uid: Any, umask: int, start_new_session: bool,
    *more: Any) -> None:  # fmt: skip
    """Of `subprocess.Popen`: the same Python need not be started anew."""
    argv = [os.fsdecode(word) for word in args] if isinstance(args, (list, tuple)) else [os.fsdecode(args)]
    environment = dict(os.environ if env is None else env)
    environment = {os.fsdecode(name): os.fsdecode(value) for name, value in environment.items()}
    folder = None if cwd is None else os.fsdecode(cwd)
    plain = not shell and gid is None and gids is None and uid is None and (not more or more[0] in (-1, None))
    if not plain or not close_fds or executable not in (None, argv[0]) or not suits(argv, environment, folder):
        cold_start(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell,
                   p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, restore_signals, gid, gids, uid, umask,
                   start_new_session, *more)  # fmt: skip
        return
    files = (p2cread, c2pwrite, errwrite)
    self.pid = forked(argv, environment, folder, files, list(pass_fds), start_new_session, umask, preexec_fn)
    self._child_created = True
    self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)


# -- the server ---------------------------------------------------------------------------------------


def serve(line: socket.socket) -> None:
    """Answer until nobody asks any more."""
    while True:
        data, files, _, _ = socket.recv_fds(line, 1 << 20, 3)
        if not data:
            os._exit(0)
        request = json.loads(data)
        if "argv" in request:
            argv, environment, folder = request["argv"], request["environment"], request["folder"]
            pid = 0
            if suits(argv, environment, folder):
                what = (tuple(files), [], request["session"], request["umask"], None)
                pid = forked(argv, environment, folder, *what)
            answer = {"pid": pid}
        elif "ended" in request:
            done, status = os.waitpid(request["ended"], os.WNOHANG)
            answer = {"code": os.waitstatus_to_exitcode(status) if done else None}
        else:
            pid, port = store()
            answer = {"pid": pid, "port": port}
        for file in files:
            os.close(file)
        line.send(json.dumps(answer).encode())


def store() -> tuple[int, int]:
    """A process with a rendezvous store at a free port, as torchrun's agent has one."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        made = torch.distributed.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
        os.write(writing, str(made.port).encode())
        os.close(writing)
        while True:
            signal.pause()
    os.close(writing)
    with os.fdopen(reading) as pipe:
        return pid, int(pipe.read())


STARTED_WITH = dict(os.environ)
STREAMS = (sys.__stdin__, sys.__stdout__, sys.__stderr__)
baseline = Baseline()
subprocess.Popen._execute_child = warm_start  # type: ignore[attr-defined]
if __name__ == "__main__":
    gc.collect()
    gc.freeze()  # what is loaded here is not looked through, and so not copied, in each child
    line = socket.socket(fileno=int(sys.argv[1]))
    line.send(b"{}")
    serve(line)
