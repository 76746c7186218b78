"""Taking, filling and giving up the state directory.

Only one command at a time changes it: it holds a lock on the directory itself.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from one_machine import cgroups, configuration, daemons
from one_machine.errors import ClusterError
from one_machine.layout import Layout
from one_machine.packages import program
from one_machine.plan import Plan


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold the directory; it is made if missing, and removed if it is empty in the end."""
    descriptor = lock(root)
    try:
        check_owner(root, descriptor)
        yield
    finally:
        with suppress(OSError):  # not empty: a cluster lives in it; or removed with its cluster
            root.rmdir()
        os.close(descriptor)


_ATTEMPTS = 2
"""On a busy machine its bootstrap server was seen to give up once."""


def lock(root: Path) -> int:
    while True:
        try:
            root.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            raise ClusterError(f"can't use {root} as state directory: {error.strerror}") from error
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # While this waited, a `down` may have removed the directory whose lock it now has.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.lstat(root)):
                return descriptor
        os.close(descriptor)


def check_owner(root: Path, descriptor: int) -> None:
    """In /tmp anybody can make a directory of our name, with pids in it for us to kill."""
    state = os.fstat(descriptor)
    if state.st_uid != os.getuid():
        raise ClusterError(f"{root} belongs to another user (uid {state.st_uid})")
    if state.st_mode & stat.S_IWOTH:
        raise ClusterError(f"{root} can be written to by everybody; choose another --dir")


def check_claimable(layout: Layout) -> None:
    """`down` removes the directory, so it may hold nothing but a cluster."""
    content = sorted(os.listdir(layout.root))
    if content:
        raise ClusterError(f"{layout.root} is not empty (e.g. {content[0]}) and holds no cluster; choose another --dir")


def closed_parent(layout: Layout) -> Path | None:
    """A directory on the way that users other than its owner and group can't pass."""
    for directory in (layout.root, *layout.root.parents):
        if not directory.stat().st_mode & stat.S_IXOTH:
            return directory
    return None


def fill(plan: Plan, layout: Layout) -> None:
    """Make what is missing; what is there stays, it may have been edited for an experiment."""
    for directory in (layout.munge_key.parent, layout.spool, layout.logs, layout.pids):
        directory.mkdir(exist_ok=True)
    layout.state.mkdir(mode=0o700, exist_ok=True)
    write(layout.slurm_conf, configuration.slurm_conf(plan, layout))
    write(layout.munge_key, secrets.token_bytes(128), mode=0o400)
    write(layout.cgroup_conf, configuration.cgroup_conf(plan))
    cgroups.prepare(plan)
    if plan.options.gpus:
        write(layout.gres_conf, configuration.gres_conf(plan, layout))
        pretend_gpus(plan.options.gpus, layout)
    if plan.options.accounting:
        layout.database.mkdir(mode=0o700, exist_ok=True)
        write(layout.slurmdbd_conf, configuration.slurmdbd_conf(plan, layout), mode=0o600)
        install_database(plan, layout)


def write(path: Path, content: str | bytes, mode: int = 0o644) -> None:
    """Complete or not at all, as an existing file is taken for a good one."""
    if path.exists():
        return
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    # Made with its mode: a key that all users could read for a moment is no key.
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
    partial.rename(path)


def pretend_gpus(count: int, layout: Layout) -> None:
    """Slurm wants a character device for each GPU, and follows links to one."""
    layout.gpus.mkdir(exist_ok=True)
    for number in range(count):
        device = layout.gpus / f"gpu{number}"
        if not device.is_symlink():
            device.symlink_to("/dev/null")


def install_database(plan: Plan, layout: Layout) -> None:
    data = layout.database / "data"
    if data.exists():
        return
    partial = layout.database / "data.partial"
    log = layout.log("mariadb-install-db")
    for _ in range(_ATTEMPTS):
        shutil.rmtree(partial, ignore_errors=True)
        with log.open("ab") as output:
            status = subprocess.call(
                [
                    program("mariadb-install-db"),
                    "--no-defaults",
                    f"--user={plan.user}",
                    f"--datadir={partial}",
                    "--auth-root-authentication-method=normal",
                    "--innodb-log-file-size=8M",
                    "--skip-test-db",
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=daemons.environment(layout),
            )
        if status == 0:
            break
    else:
        raise daemons.failure("mariadb-install-db failed", log)
    partial.rename(data)
