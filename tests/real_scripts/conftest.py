from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real_scripts import harness


@pytest.fixture(scope="session")
def zygote() -> Iterator[harness.Zygote]:
    with harness.zygote() as made:
        yield made


@pytest.fixture
def stage(zygote: harness.Zygote, tmp_path: Path) -> harness.Stage:
    return harness.Stage(zygote, tmp_path)
