#!/usr/bin/env python3
"""Makes a virtual environment for this checkout: `python3 tools/environment.py FOLDER EXTRA`.

Law: it says beforehand what it does and about how long that takes, one line a stage while it does it, and one line if
it can't: what is missing, and what to do. What pip says is in FOLDER/install.log; FOLDER/.installed is there when all
is, and until then the same command goes on. Written in the Python of 3.6, and with nothing but its library: it is what
tells that a Python is too old.
"""

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time

OLDEST = (3, 10)
OTHERS = ("python3.13", "python3.12", "python3.11", "python3.10", "python3.14")
"""Looked for, in this order, where the given one is too old."""
NEEDED_BYTES = 2 * 10**9
CHECKOUT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
QUIET_SECONDS = 15.0
"""After so long without news it is said that it still goes on."""
UNREACHABLE = (
    "NewConnectionError|Name or service not known|Temporary failure in name resolution|Network is unreachable|"
    "Connection refused|ConnectTimeout|ReadTimeout|timed out|ProxyError|SSLError|CERTIFICATE_VERIFY_FAILED|"
    "RemoteDisconnected|Connection aborted|Connection reset"
)


class Missing(Exception):
    """What is missing, and what to do: one line."""


# -- before anything is made --------------------------------------------------------------------


def too_old(version):
    """What is said of a Python that is too old; None if it isn't."""
    if version >= OLDEST:
        return None
    words = ".".join(str(number) for number in version)
    need = ".".join(str(number) for number in OLDEST)
    return (
        f"autoresume needs Python {need} or later, and this is {words} ({sys.executable}). "
        "Install a newer one, or name one that is there: make PYTHON=/path/to/python3 ..."
    )


def newer():
    """The path of a Python that is new enough, if there is one."""
    for name in OTHERS:
        path = shutil.which(name)
        if path is not None:
            try:
                said = subprocess.check_output([path, "-c", "import sys; print(sys.version_info >= (3, 10))"])
            except (OSError, subprocess.CalledProcessError):
                continue  # a shim of a version that is not installed
            if said.strip() == b"True":
                return path
    return None


def check(folder):
    """Raises Missing."""
    if not sys.platform.startswith("linux"):
        raise Missing(f"autoresume runs on Linux, and this is {sys.platform}.")
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError as error:
        raise Missing(
            f"{sys.executable} can't make virtual environments: its module {error.name} is missing. "
            f"On Debian and Ubuntu: apt install python{sys.version_info[0]}.{sys.version_info[1]}-venv"
        ) from None
    parent = os.path.dirname(os.path.abspath(folder))
    if not os.access(folder if os.path.isdir(folder) else parent, os.W_OK):
        raise Missing(f"{parent} can't be written by you: work in a checkout of your own.")
    free = shutil.disk_usage(parent).free
    if free < NEEDED_BYTES and not os.path.exists(os.path.join(folder, "install.log")):
        raise Missing(no_space(parent, free))


def no_space(place, free):
    return (
        f"{place} has {free / 1e9:.1f} GB free; an environment with PyTorch takes 2 GB, or 7 GB with CUDA's libraries. "
        "Free some; pip's temporary files go to TMPDIR."
    )


# -- pip ----------------------------------------------------------------------------------------


def explain(said, folder):
    """One line for what pip said before it failed."""
    if re.search("No space left on device|Errno 28|Disk quota exceeded|Errno 122", said):
        return no_space(os.path.dirname(os.path.abspath(folder)), shutil.disk_usage(folder).free)
    if re.search(UNREACHABLE, said):
        return (
            "pip can't reach its package index: is there a network? A mirror is named by PIP_INDEX_URL, a proxy by "
            "https_proxy. Then the same command goes on."
        )
    unknown = re.search("No matching distribution found for ([^ \n]+)", said)
    if unknown:
        here = f"Python {sys.version_info[0]}.{sys.version_info[1]} on {os.uname().machine}"
        return f"there is no {unknown.group(1)} for {here}. Another Python may have it: make PYTHON=python3.12 ..."
    errors = re.findall("(?m)^ *(?:ERROR|error): *(.+)$", said)
    return errors[0] if errors else (said.strip().splitlines() or ["pip said nothing"])[-1]


def worth_telling(line):
    """What of pip's output is shown: big downloads, the installation itself, a network that does not answer."""
    line = line.strip()
    found = re.match(r"Downloading (?:\S*/)?([^-/ ]+)-\S* \(([\d.]+ [MG]B)\)", line)
    if found:
        return "downloading {} ({})".format(*found.groups())
    if line.startswith("Installing collected packages:"):
        return "installing {} packages".format(line.count(",") + 1)
    if line.startswith("WARNING: Retrying"):
        return "the package index does not answer; pip tries again"
    return None


class Stages:
    """Commands that are run one after the other; what they say goes to the log."""

    def __init__(self, folder):
        self.folder, self.began = folder, time.time()
        self.log = open(os.path.join(folder, "install.log"), "ab")

    def tell(self, text):
        print(f"  {time.time() - self.began:>4.0f} s  {text}")
        sys.stdout.flush()

    def run(self, title, command):
        """Raises Missing if it fails."""
        self.tell(title)
        environment = dict(os.environ, PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INPUT="1", PYTHONUNBUFFERED="1")
        environment["PIP_ROOT_USER_ACTION"] = "ignore"
        child = subprocess.Popen(
            command,
            cwd=CHECKOUT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            said = self._follow(child)
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        if child.returncode != 0:
            raise Missing(f"{explain(said, self.folder)} (all of it: {self.log.name})")

    def _follow(self, child):
        said, rest, last, told_at = b"", b"", None, time.time()
        while True:
            if select.select([child.stdout], [], [], 1.0)[0]:
                some = os.read(child.stdout.fileno(), 65536)
                if not some:
                    child.wait()
                    return said.decode(errors="replace")
                said += some
                self.log.write(some)
                self.log.flush()
                lines = (rest + some).split(b"\n")
                rest = lines.pop()
                for line in lines:
                    news = worth_telling(line.decode(errors="replace"))
                    if news is not None and news != last:
                        self.tell("  " + news)
                        last, told_at = news, time.time()
            if time.time() - told_at > QUIET_SECONDS:
                self.tell("  ...")
                told_at = time.time()


def make(folder, extra):
    check(folder)
    print(
        f"making the environment {folder}: PyTorch, autoresume and what is needed besides ({extra}).\n"
        "This downloads 0.3 GB where pip takes PyTorch for the CPU, 3 GB where it takes CUDA's libraries with it: "
        "1 to 10 minutes."
    )
    sys.stdout.flush()
    os.makedirs(folder, exist_ok=True)
    stages, python = Stages(folder), os.path.join(folder, "bin", "python")
    pip = [python, "-m", "pip", "install", "--progress-bar", "off", "--constraint", "constraints.txt"]
    stages.run("1 of 3: an empty environment", [sys.executable, "-m", "venv", folder])
    stages.run("2 of 3: PyTorch, the largest part", [*pip, "torch", "numpy"])
    stages.run(f"3 of 3: autoresume[{extra}]", [*pip, "--editable", f".[{extra}]"])
    open(os.path.join(folder, ".installed"), "w").close()
    stages.tell("done")


def leave(number, frame):
    raise KeyboardInterrupt


def main():
    signal.signal(signal.SIGTERM, leave)
    folder, extra = os.path.abspath(sys.argv[1]), sys.argv[2]
    if sys.version_info < OLDEST:
        other = newer()
        if other is not None:
            print(f"{sys.executable} is too old: {other} is taken")
            sys.stdout.flush()
            os.execv(other, [other, *sys.argv])  # noqa: S606  (no shell is wanted)
    problem = too_old(tuple(sys.version_info[:3]))
    try:
        if problem is not None:
            raise Missing(problem)
        make(folder, extra)
    except Missing as missing:
        sys.exit(f"environment: {missing}")
    except KeyboardInterrupt:
        sys.exit("environment: stopped; the same command goes on")
    except OSError as error:
        sys.exit(f"environment: {error.strerror or error}: {error.filename or folder}")


if __name__ == "__main__":
    main()
