from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from . import harness


@pytest.fixture(scope="session")
def zygote() -> Iterator[harness.Zygote]:
    with harness.zygote() as made:
        yield made


@pytest.fixture
def stage(zygote: harness.Zygote, tmp_path: Path) -> harness.Stage:
    return harness.Stage(zygote, tmp_path)


KNOWN_GAPS = {
    "test_foreign_evaluation_loaders[persistent]": "a foreign loader's persistent workers draw once a process",
    **{
        f"test_loader_made_anew_for_each_epoch[{kind}]": "a loader made anew in each epoch needs a name"
        for kind in ("run", "foreign", "iterable")
    },
}
"""Traps that are not mended yet, each with its reason; docs/roadmap.md lists them for users."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for name, reason in KNOWN_GAPS.items():
            if item.nodeid.split("::")[-1].startswith(name) and "real_scripts" in item.nodeid:
                item.add_marker(pytest.mark.xfail(reason=reason, run=False))
