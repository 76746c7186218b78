"""Which code a run was started with: found, compared in words, and copied."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from autoresume.base import code_revision
from autoresume.errors import UsageError


def git(folder: Path, *words: str) -> None:
    own = ["-c", "user.name=ada", "-c", "user.email=ada@example.org", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", "-C", str(folder), *own, *words], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """src/train.py, lib.py, notes.txt; data/ and *.log are ignored."""
    folder = tmp_path / "project"
    (folder / "src").mkdir(parents=True)
    (folder / "data").mkdir()
    (folder / "src/train.py").write_text("import lib\n")
    (folder / "lib.py").write_text("x = 1\n")
    (folder / "notes.txt").write_text("a\n")
    (folder / ".gitignore").write_text("data/\n*.log\nruns/\n")
    (folder / "data/big.bin").write_bytes(b"x" * 1000)
    (folder / "out.log").write_text("noise")
    git(folder, "init")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "a")
    return folder


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_same_code_is_the_same(repository: Path) -> None:
    """Other files than code don't count."""
    before = code_revision.fingerprint(repository / "src/train.py")
    assert len(str(before["revision"])) == 40
    assert before["changes"] is None
    (repository / "notes.txt").write_text("b\n")
    (repository / "out.log").write_text("more noise")
    assert code_revision.difference(before, code_revision.fingerprint(repository / "src/train.py")) is None


def test_every_difference_in_words(repository: Path) -> None:
    """The script, what is not committed, the revision."""
    script = repository / "src/train.py"
    before = code_revision.fingerprint(script)
    (repository / "lib.py").write_text("x = 2\n")
    changed = code_revision.fingerprint(script)
    assert code_revision.difference(before, changed) == "uncommitted changes are other ones than before"
    script.write_text("import lib, os\n")
    assert code_revision.difference(changed, code_revision.fingerprint(script)) == (
        "the script has changed, uncommitted changes are other ones than before"
    )
    git(repository, "commit", "-am", "b")
    now = code_revision.fingerprint(script)
    assert code_revision.difference(before, now) == (
        f"the script has changed, the revision is {now['revision'][:10]}, and was {before['revision'][:10]}"
    )


def test_nothing_to_find_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No repository, no script, no git: never an error, and no difference that nobody can know."""
    script = tmp_path / "train.py"
    script.write_text("x\n")
    found = code_revision.fingerprint(script)
    assert (found["revision"], found["changes"]) == (None, None)
    assert code_revision.fingerprint(tmp_path / "nowhere.py")["script"] is None
    assert code_revision.difference(None, found) is None
    assert code_revision.difference({}, found) is None
    script.write_text("y\n")
    assert code_revision.difference(found, code_revision.fingerprint(script)) == "the script has changed"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert code_revision.fingerprint(script)["revision"] is None


def test_a_snapshot_holds_what_git_does_not_ignore(repository: Path) -> None:
    """As it is now, with what is new and without what was deleted; the copy of the script is named."""
    (repository / "new.py").write_text("y = 1\n")
    (repository / "lib.py").unlink()
    target = repository / "runs/a/code/0001"
    copy = code_revision.snapshot(repository / "src/train.py", target)
    assert copy == target / "src/train.py"
    assert files(target) == [".gitignore", "new.py", "notes.txt", "src/train.py"]


@pytest.mark.parametrize("with_git", [True, False])
def test_a_second_snapshot_does_not_hold_the_first(repository: Path, with_git: bool) -> None:
    """Where the runs are below the code and not ignored, each would be twice as large as the one before."""
    (repository / ".gitignore").write_text("data/\n*.log\n")
    if not with_git:
        subprocess.run(["rm", "-rf", str(repository / ".git")], check=True)
    script = repository / ("src/train.py" if with_git else "lib.py")
    code_revision.snapshot(script, repository / "runs/a/code/0001")
    first = files(repository / "runs/a/code/0001")
    code_revision.snapshot(script, repository / "runs/a/code/0002")
    assert files(repository / "runs/a/code/0002") == first


def test_an_ignored_script_is_copied_all_the_same(repository: Path) -> None:
    """It is what will be run."""
    (repository / "data/train.py").write_text("x\n")
    copy = code_revision.snapshot(repository / "data/train.py", repository / "runs/a/code/0001")
    assert copy.read_text() == "x\n"
    assert not (repository / "runs/a/code/0001/data/big.bin").exists()


def test_without_git_the_python_files(tmp_path: Path) -> None:
    """Those beside the script and below, but for hidden folders below it; wherever the project itself lies."""
    folder = tmp_path / ".hidden" / "project"
    for name in ("train.py", "model/net.py", ".venv/site.py", "data.bin"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    copy = code_revision.snapshot(folder / "train.py", tmp_path / "run/code/0001")
    assert copy.read_text() == "train.py"
    assert files(tmp_path / "run/code/0001") == ["model/net.py", "train.py"]


def test_a_snapshot_that_is_too_large_is_refused(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the largest file and the way out; nothing is copied."""
    monkeypatch.setattr(code_revision, "_MOST_BYTES", 100_000)
    (repository / "weights.pt").write_bytes(b"x" * 200_000)
    with pytest.raises(UsageError, match=r"has 0 MB, e\.g\. weights\.pt: .*Have git ignore what is no code"):
        code_revision.snapshot(repository / "src/train.py", repository / "runs/a/code/0001")
    assert not (repository / "runs").exists()
