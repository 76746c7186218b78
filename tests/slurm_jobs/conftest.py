from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.once import once
from tests.slurm_cluster.harness import ORDINARY_USER, Cluster, must_be_up, new_root
from tests.slurm_jobs.harness import Job, reference

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Four nodes with a grace time of eight seconds, for jobs that do them no lasting harm."""
    result = Cluster(new_root())
    must_be_up(result, "--grace=8", "--cpus=4")
    yield result
    assert result("down").returncode == 0


@pytest.fixture(scope="session")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Undisturbed runs, one for each number of ranks that is asked for."""

    def get(ranks: int) -> Path:
        folder = once(tmp_path_factory, f"slurm-{ranks}", lambda folder: reference(folder, ranks))
        return folder / f"calm-{ranks}"

    return get


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that all users may write to."""
    path = Path(tempfile.mkdtemp(prefix="jobs-", dir="/tmp"))
    path.chmod(0o1777)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def other_cluster() -> Iterator[Cluster]:
    """A site with an exit code for a requeue, where preemption sends the job's own signal."""
    result = Cluster(new_root())
    must_be_up(result, "--nodes=2", "--grace=8", "--requeue-exit=85", "--preempt-send-user-signal")
    yield result
    assert result("down").returncode == 0


@pytest.fixture
def ordinary(folder: Path) -> Iterator[tuple[str, ...]]:
    """Words that start Python as an ordinary user, wherever root's Python and this checkout lie."""
    places = {"python": Path(sys.base_prefix), "packages": Path(torch.__file__).parents[1], "checkout": CHECKOUT}
    mounted = []
    try:
        for name, place in places.items():
            (folder / name).mkdir()
            subprocess.run(["mount", "--bind", place, folder / name], check=True)
            mounted.append(folder / name)
        python = folder / "python" / "bin" / f"python3.{sys.version_info.minor}"
        path = f"PYTHONPATH={folder / 'checkout'}:{folder / 'packages'}"
        memory = f"AUTORESUME_MEMORY={folder / 'memory'}"
        (folder / "memory").mkdir()
        (folder / "memory").chmod(0o1777)
        yield ("runuser", "-u", ORDINARY_USER, "--", "env", path, memory, f"HOME={folder}", str(python))
    finally:
        for place in mounted:
            subprocess.run(["umount", "--lazy", place], check=True)


@pytest.fixture
def job(cluster: Cluster, folder: Path) -> Iterator[Job]:
    made = Job(cluster, folder / "run")
    yield made
    if made.id:
        made.close()
