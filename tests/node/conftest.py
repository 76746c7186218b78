from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.node.harness import Node


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder on tmpfs for this test alone."""
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="autoresume-test-", dir=parent))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def node(tmp_path: Path, memory: Path) -> Iterator[Node]:
    made = Node(tmp_path, memory)
    yield made
    made.close()
