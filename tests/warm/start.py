"""Starts processes through the fork server: the names of `subprocess`, with the same meaning."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests import cost

SITE = str(Path(__file__).with_name("site"))
"""In PYTHONPATH, it has launchers fork their ranks."""
SERVER = Path(__file__).with_name("server.py")
# Its frames lie below those of every script: they are to look like the interpreter's own.
_BOOT = "import os, sys; exec(compile(open(sys.argv[2]).read(), os.__file__.replace('os.py', 'warm.py'), 'exec'))"


class Server:
    """The fork server, as its user sees it; see server.py."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._line = ours
        plain = ("AUTORESUME_", "SLURM_", "TORCHELASTIC_", "MASTER_", "PYTHONPATH", "PYTEST_", "COLD")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(plain)}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, str(theirs.fileno()), str(SERVER)],
                env={**environment, "OMP_NUM_THREADS": "1"},
                pass_fds=[theirs.fileno()],
                cwd="/",
            )
        assert self._line.recv(2), "the fork server did not start"
        self._owner = os.getpid()
        cost.elsewhere.append(self.used_seconds)

    def used_seconds(self) -> float:
        return cost.seconds_of(self._process.pid) if self._process.returncode is None else 0.0

    def ask(self, files: tuple[int, ...] = (), **request: Any) -> dict[str, Any]:
        assert os.getpid() == self._owner
        socket.send_fds(self._line, [json.dumps(request).encode()], list(files))
        answer: dict[str, Any] = json.loads(self._line.recv(1 << 16))
        return answer

    def close(self) -> None:
        if os.getpid() == self._owner and self._process.returncode is None:
            self._line.close()
            self._process.wait()


_servers: list[Server] = []


def server() -> Server:
    """This test process's."""
    if not _servers:
        _servers.append(Server())
    return _servers[0]


def close() -> None:
    """At the end of the tests."""
    while _servers:
        _servers.pop().close()


def cold() -> bool:
    return bool(os.environ.get("COLD"))


def _umask() -> int:
    found = os.umask(0o022)
    os.umask(found)
    return found


class Popen(subprocess.Popen):  # type: ignore[type-arg]
    """A process that may be warm. Its parent is the fork server then, and what it does is its own affair."""

    _server: Server | None = None

    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, close_fds: bool, pass_fds: Any, cwd: Any,
        env: Any, startupinfo: Any, creationflags: Any, shell: bool, p2cread: int, p2cwrite: int, c2pread: int,
        c2pwrite: int, errread: int, errwrite: int, restore_signals: bool, gid: Any, gids: Any, uid: Any, umask: int,
        start_new_session: bool, *more: Any) -> None:  # fmt: skip
        plain = not shell and gid is None and gids is None and uid is None and (not more or more[0] in (-1, None))
        if (
            plain
            and not pass_fds
            and preexec_fn is None
            and executable is None
            and not cold()
            and not isinstance(args, str)
        ):
            files = [given if given >= 0 else ours for given, ours in zip((p2cread, c2pwrite, errwrite), (0, 1, 2))]
            answer = server().ask(
                tuple(files),
                argv=[os.fspath(word) for word in args],
                environment=dict(os.environ if env is None else env),
                folder=os.fspath(cwd) if cwd is not None else os.getcwd(),
                session=start_new_session,
                umask=umask if umask >= 0 else _umask(),
            )
            if answer["pid"]:
                self._server, self.pid, self._child_created = server(), answer["pid"], True
                self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)
                return
        super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags,
            shell, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, restore_signals, gid, gids, uid, umask,
            start_new_session, *more)  # fmt: skip

    def _internal_poll(self, *args: Any, **named: Any) -> int | None:
        if self._server is None:
            return super()._internal_poll(*args, **named)
        if self.returncode is None and self._server.used_seconds():
            self.returncode = self._server.ask(ended=self.pid)["code"]
        return self.returncode

    def _wait(self, timeout: float | None) -> int | None:
        if self._server is None:
            return super()._wait(timeout)
        if self.returncode is None:
            deadline = None if timeout is None else time.monotonic() + timeout
            waiting = os.pidfd_open(self.pid)
            try:
                while self._internal_poll() is None:
                    left = None if deadline is None else deadline - time.monotonic()
                    if left is not None and left <= 0:
                        raise subprocess.TimeoutExpired(self.args, timeout)
                    select.select([waiting], [], [], left)
            finally:
                os.close(waiting)
        return self.returncode


def run(*words: Any, input: Any = None, capture_output: bool = False, timeout: float | None = None, check: bool = False,
    **options: Any) -> subprocess.CompletedProcess[Any]:  # fmt: skip
    """`subprocess.run`."""
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if input is not None:
        options["stdin"] = subprocess.PIPE
    with Popen(*words, **options) as process:
        try:
            out, err = process.communicate(input, timeout=timeout)
        except BaseException:
            process.kill()
            raise
        code = process.poll()
        assert code is not None
        if check and code:
            raise subprocess.CalledProcessError(code, process.args, out, err)
    return subprocess.CompletedProcess(process.args, code, out, err)
