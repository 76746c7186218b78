"""Slurm's programs: where they are, and installing them where apt can."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile

from one_machine.errors import PackagesMissing

# Program that must exist -> Debian's package of it.
SLURM = {
    "munged": "munge",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sinfo": "slurm-client",
}
ACCOUNTING = {
    "slurmdbd": "slurmdbd",
    # The -core packages hold the programs only: no system service that would start by itself.
    "mariadbd": "mariadb-server-core",
    "mariadb-install-db": "mariadb-server-core",
    "my_print_defaults": "mariadb-client-core",
}


def search_path() -> str:
    """PATH plus the system's own directories: an ordinary user's PATH often has no sbin."""
    parts = os.environ.get("PATH", "").split(":")
    for directory in ("/usr/local/sbin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"):
        if directory not in parts:
            parts.append(directory)
    return ":".join(filter(None, parts))


def locate(program: str) -> str | None:
    return shutil.which(program, path=search_path())


def program(name: str) -> str:
    path = locate(name)
    if path is None:
        raise PackagesMissing(f"{name} is not installed (any more)")
    return path


def ensure(accounting: bool) -> None:
    """Install what is missing, or say what to install."""
    needed = SLURM | (ACCOUNTING if accounting else {})
    missing = [name for name in needed if locate(name) is None]
    if not missing:
        return
    packages = sorted({needed[name] for name in missing})
    if os.getuid() != 0 or locate("apt-get") is None:
        raise PackagesMissing(
            f"not installed: {', '.join(missing)}; as root on Debian or Ubuntu:"
            f" apt-get install --no-install-recommends {' '.join(packages)}"
        )
    install(packages)
    still = [name for name in missing if locate(name) is None]
    if still:
        raise PackagesMissing(f"the packages {' '.join(packages)} are installed, but have no {' '.join(still)}")


def install(packages: list[str]) -> None:
    print(f"installing {' '.join(packages)}", flush=True)
    environment = {**os.environ, "PATH": search_path(), "DEBIAN_FRONTEND": "noninteractive"}
    apt_get = ["apt-get", "-o", "DPkg::Lock::Timeout=120"]
    with tempfile.TemporaryFile("w+") as log:

        def run(*arguments: str) -> int:
            return subprocess.call(
                [*apt_get, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )

        # One broken third-party source fails the update, yet the packages may be found.
        run("update")
        # --no-remove: better no cluster than a user's MySQL uninstalled.
        if run("install", "-y", "--no-install-recommends", "--no-remove", *packages) != 0:
            log.seek(0)
            last = "".join(log.readlines()[-15:])
            raise PackagesMissing(f"apt-get could not install {' '.join(packages)}:\n{last}")
