from __future__ import annotations

from pathlib import Path

import pytest

from tests.real_scripts import harness


@pytest.fixture
def stage(tmp_path: Path) -> harness.Stage:
    return harness.Stage(tmp_path)
