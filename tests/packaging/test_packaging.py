"""The package as a user gets it: built, installed beside its declared dependencies alone, and used outside of the repository."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

import pytest

import autoresume
from autoresume.cli import _COMMANDS
from tests.once import once
from tests.packaging import closure
from tests.real_scripts.harness import environment

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "autoresume"
SCRIPTS = Path(__file__).with_name("scripts")
BUILD = "import sys; from hatchling import build; build.build_{kind}(sys.argv[1])"
DEPENDENCIES = closure.declared(REPOSITORY / "pyproject.toml")


def build(kind: str, source: Path, target: Path) -> None:
    """What an installer has the backend do, in the running environment: nothing is downloaded."""
    subprocess.run([sys.executable, "-c", BUILD.format(kind=kind), str(target)], cwd=source, check=True)


def make(folder: Path) -> None:
    """An sdist, the wheel that is made of it, and an environment with that wheel."""
    build("sdist", REPOSITORY, folder)
    (sdist,) = folder.glob("*.tar.gz")
    (folder / "unpacked").mkdir()
    subprocess.run(["tar", "-xzf", str(sdist), "-C", str(folder / "unpacked")], check=True)
    (unpacked,) = (folder / "unpacked").iterdir()
    build("wheel", unpacked, folder)
    (wheel,) = folder.glob("*.whl")

    clean, links = folder / "clean", folder / "links"
    venv.create(clean, symlinks=True, with_pip=False)
    quietly = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    pip = [sys.executable, "-m", "pip", "--python", str(clean / "bin" / "python"), "--isolated", "install"]
    subprocess.run([*pip, *quietly, str(wheel)], check=True)
    links.mkdir()
    distributions = closure.closure(DEPENDENCIES)
    closure.link(distributions, links)
    closure.write_scripts(distributions, clean / "bin")
    (packages,) = clean.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(f"{links}\n")


class Made:
    """What `make` made, and a folder outside of the repository to use it in."""

    def __init__(self, folder: Path, work: Path) -> None:
        self.folder, self.work = folder, work
        self.binaries = folder / "clean" / "bin"
        shutil.copytree(SCRIPTS, work, dirs_exist_ok=True)

    def run(self, *words: str, code: int = 0, **variables: str) -> str:
        """A command as a user of that environment starts it, and all that it says."""
        ours = {key: value for key, value in environment(**variables).items() if not key.startswith("PYTHON")}
        ours["PATH"] = f"{self.binaries}:{ours['PATH']}"
        command = [str(self.binaries / words[0]), *words[1:]]
        done = subprocess.run(
            command, cwd=self.work, env=ours, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120
        )
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}"
        return done.stdout

    @property
    def logged_steps(self) -> list[int]:
        (journal,) = self.work.glob("runs/*/metrics.jsonl")
        return [json.loads(line)["step"] for line in journal.read_text().splitlines()]


@pytest.fixture
def made(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Made:
    return Made(once(tmp_path_factory, "packaging", make), tmp_path)


def files_of_package() -> set[str]:
    found = (path.relative_to(REPOSITORY) for path in PACKAGE.rglob("*") if path.is_file())
    return {str(path) for path in found if "__pycache__" not in path.parts}


def test_a_wheel_holds_the_package_and_its_licence(made: Made) -> None:
    """Every file of the package is in it, whatever its kind, and nothing else but what tells about it."""
    (wheel,) = made.folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    about = f"{wheel.name.partition('-py3')[0]}.dist-info"
    told = ["METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"]
    assert names == files_of_package() | {f"{about}/{name}" for name in told}
    assert "autoresume/py.typed" in names


def test_an_sdist_holds_what_makes_the_wheel_and_tells_about_it(made: Made) -> None:
    """Nothing of tests, benchmarks and the machine that made it is there; all of the package is."""
    (unpacked,) = (made.folder / "unpacked").iterdir()
    tops = {path.name for path in unpacked.iterdir()}
    files = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    told = {"CHANGELOG.md", "LICENSE", "README.md", "PKG-INFO", "pyproject.toml"}
    assert tops - {".gitignore"} == told | {"autoresume", "docs", "examples"}  # hatchling adds what it looks into
    assert {name for name in files if name.startswith("autoresume/")} == files_of_package()
    assert not [name for name in files if "__pycache__" in name or "/runs/" in name]


def metadata(made: Made) -> Message:
    (told,) = made.folder.glob("clean/lib/python*/site-packages/autoresume_hpc-*.dist-info/METADATA")
    return HeaderParser().parsestr(told.read_text())


def test_a_package_index_is_told_what_it_is(made: Made) -> None:
    """Version, licence, the Python versions, that it has types, and the README as its description."""
    told = metadata(made)
    assert told["Version"] == autoresume.__version__
    assert told["License-Expression"] == "Apache-2.0"
    assert told["Requires-Python"] == ">=3.10"
    assert "Typing :: Typed" in told.get_all("Classifier", [])
    assert told["Description-Content-Type"] == "text/markdown"
    assert str(told.get_payload()).startswith("# autoresume")


def test_a_script_is_interrupted_and_goes_on(made: Made) -> None:
    """`python train.py`, told to stop, leaves with 75; the same command again ends as an undisturbed run, and logs each step
    once."""
    made.run("python", "train.py", code=75, STOP_AT="5")
    assert "rank 0 of 1, life 2: exact" in made.run("python", "train.py")
    assert made.logged_steps == list(range(1, 13))


def test_torchrun(made: Made) -> None:
    """`torchrun --nproc-per-node 2 train.py`."""
    said = made.run("torchrun", "--nproc-per-node", "2", "train.py")
    assert {"rank 0 of 2, life 1: exact", "rank 1 of 2, life 1: exact"} <= set(said.splitlines())


def test_autoresume_run(made: Made) -> None:
    """`autoresume run --nproc 2 train.py`: the node daemon, its launcher and its ranks."""
    said = made.run("autoresume", "run", "--nproc", "2", "train.py")
    assert {"rank 0 of 2, life 1: exact", "rank 1 of 2, life 1: exact"} <= set(said.splitlines())


def test_every_command_tells_what_it_does(made: Made) -> None:
    """`autoresume COMMAND --help` works without an extra, for every command, and so does `python -m autoresume`."""
    assert autoresume.__version__ in made.run("python", "-m", "autoresume", "--version")
    listed = made.run("autoresume", "--help")
    each = "from autoresume.cli import _COMMANDS, cli\nfor name in _COMMANDS: cli([name, '--help'], standalone_mode=False)\n"
    told = made.run("python", "-c", each)
    for name in _COMMANDS:
        assert re.search(rf"^  {name}\b", listed, re.MULTILINE)
        assert re.search(rf"^Usage: .* {name}\b", told, re.MULTILINE)


def test_a_lacking_extra_is_named(made: Made) -> None:
    """What only an extra brings is a clear message where it is asked for: a loader over a stream, each logger, S3."""
    told = [line for line in made.run("python", "lacking.py").splitlines() if "pip install" in line]
    extras = ["stateful", "mlflow", "tensorboard", "wandb", "s3"]  # csv needs nothing
    assert [line for line in told if "autoresume-hpc" not in line] == []
    assert re.findall(r"pip install 'autoresume-hpc\[(\w+)\]'", "\n".join(told)) == extras


def test_what_is_not_declared_is_not_there(made: Made) -> None:
    """The environment of these tests would show an import that no dependency brings."""
    assert "No module named 'pytest'" in made.run("python", "-c", "import pytest", code=1)


USER = """
from autoresume import Run, autoresume, start

@autoresume(save_every="10 minutes")
def main(run: Run) -> None:
    reveal_type(run.step_count)
    run.trakc(model=None)

reveal_type(start())
reveal_type(main)
"""


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")
def test_a_type_checker_sees_the_types(made: Made) -> None:
    """A user's script is checked against the package's own types: what it misspells is found."""
    (made.work / "user.py").write_text(USER)
    skipped = [f"{re.sub('[-.]', '_', one.name.lower())}.*" for one in closure.closure(DEPENDENCIES)]
    (made.work / "mypy.ini").write_text(f"[mypy]\n[mypy-{','.join(skipped)},yaml.*]\nfollow_imports = skip\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--python-executable", str(made.binaries / "python"), "user.py"],
        cwd=made.work,
        capture_output=True,
        text=True,
    )
    assert 'Revealed type is "int"' in done.stdout.replace("builtins.", ""), done.stdout + done.stderr
    assert 'Revealed type is "autoresume.run.handle.Run"' in done.stdout
    assert '"Run" has no attribute "trakc"' in done.stdout
    assert "import" not in done.stdout.replace("import-", "")
