"""autoresume stop on a real training: it saves, leaves, and is not started again; the next start goes on."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoresume.checkpoint import incarnation
from autoresume.checkpoint.discover import newest_step
from autoresume.storage.local import LocalStorage
from tests import warm
from tests.node.conftest import memory  # noqa: F401  (a fixture)
from tests.node.harness import Node, environment, wait_until

SCRIPT = Path(__file__).with_name("stoppable.py")


@pytest.fixture
def node(tmp_path: Path, memory: Path) -> Iterator[Node]:  # noqa: F811
    made = Node(tmp_path, memory)
    shutil.rmtree(tmp_path / "run")
    yield made
    made.close()


def stop(folder: Path) -> str:
    done = warm.run([sys.executable, "-m", "autoresume", "stop", "run"], cwd=folder, env=environment(), capture_output=True, text=True, timeout=60)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_training_is_stopped_and_goes_on(node: Node) -> None:
    """As a plain process, then below `autoresume run`, which does not start it again: 75 and 75; then to its end."""
    storage = LocalStorage(node.folder / "run")
    lives = [
        [sys.executable, str(SCRIPT)],
        [sys.executable, "-m", "autoresume", "run", str(SCRIPT)],
    ]
    for number, command in enumerate(lives, start=1):
        before = newest_step(storage) if number > 1 else 0
        process = node.start(command)
        wait_until((node.folder / f"at-{number}").exists, 60, f"life {number} to train")
        assert stop(node.folder) == "run is asked to stop: it saves at its next step and leaves\n"
        ended = node.wait(process, 60)
        assert ended.code == 75, ended.err
        assert ended.err.count("began at") == 1
        assert f"began at {before}\n" in ended.err
        record = incarnation.read(storage, number).ended
        assert record is not None
        assert (record["how"], record["step"]) == ("interrupted", newest_step(storage))
        assert "stop" in record["why"]
        assert newest_step(storage) > before
    assert len(incarnation.numbers(storage)) == 2, "it was started again"
    (node.folder / "finish").touch()
    before = newest_step(storage)
    ended = node.wait(node.start(lives[0]), 60)
    assert ended.code == 0, ended.err
    assert f"began at {before}\n" in ended.err, "the request to stop was cleared"
    assert [incarnation.read(storage, number).ended["how"] for number in (1, 2, 3)] == ["interrupted", "interrupted", "finished"]  # type: ignore[index]  # fmt: skip
    node.assert_nothing_is_left()
