"""Of the whole suite: in which order, what it cost, and what the torture chamber did."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests import cost, warm

# Of Hypothesis on a machine that is shared, in each room and in whichever order they are collected.
settings.register_profile("shared", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")

_tests: Counter[str] = Counter()
"""What this process's tests cost, in CPU-seconds."""
_account = pytest.StashKey[cost.Account]()


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def pytest_configure(config: pytest.Config) -> None:
    if not _is_worker(config):
        config.stash[_account] = cost.Account(bool(config.getoption("numprocesses", None)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Jobs on Slurm mostly wait: two workers (of four, each of which gets a quarter) begin with half of them each, while the
    others compute."""
    waiting = [item for item in items if {"slurm_jobs", "slurm_cluster"} & set(Path(item.path).parts)]
    held = set(waiting)
    others = [item for item in items if item not in held]
    first, second = waiting[::2], waiting[1::2]
    middle = max(0, len(items) // 2 - len(first))
    items[:] = [*first, *others[:middle], *second, *others[middle:]]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    with cost.measured(_tests, item.nodeid):
        return (yield)


def pytest_sessionfinish(session: pytest.Session) -> None:
    warm.close()
    if _is_worker(session.config):
        session.config.workeroutput["cost"] = dict(_tests)  # type: ignore[attr-defined]
    else:
        session.config.stash[_account].tests.update(_tests)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[_account].tests.update(getattr(node, "workeroutput", {}).get("cost", {}))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    told: Counter[str] = Counter()
    for report in terminalreporter.stats.get("passed", []) + terminalreporter.stats.get("failed", []):
        if report.when == "call":
            told.update({name[8:]: value for name, value in report.user_properties if name.startswith("torture ")})
    if told:
        terminalreporter.write_sep("-", "torture chamber")
        terminalreporter.write_line(", ".join(f"{value:,} {name}" for name, value in sorted(told.items())))
    for line in config.stash[_account].lines(int(os.environ.get("COST") or 0)):
        terminalreporter.write_line(line)
