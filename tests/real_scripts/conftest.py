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
    "test_borders_with_workers[shuffled-persistent]": "a foreign loader's persistent workers draw once a process",
    "test_foreign_evaluation_loaders[persistent]": "a foreign loader's persistent workers draw once a process",
    "test_batches_fetched_ahead": "a batch held over the border of an epoch is not yet exact",
    "test_iterable_dataset_and_a_look_at_it": "a look at an iterable dataset's loader takes its restored position",
    "test_loader_made_anew_for_each_epoch": "a loader made anew in each epoch has no name that survives a resume",
    "test_nested_loops_of_ones_own": "an inner run.range begins where the outer turn before left it",
    "test_a_range_whose_turns_end_with_a_step": "run.range can't tell that a step ended its turn: use run.steps",
    "test_a_script_that_seeds_nothing": "a script that seeds nothing builds another model at each start",
    "test_another_data_set_at_each_start": "the warning names generators, not yet the data set",
    "test_signal_handlers_of_frameworks[after]": "a handler put on later is not chained until restore",
    "test_two_scripts_of_one_name": "two scripts of one name in one folder share a default run directory",
    "test_the_script_s_own_failures": "not every ending of a script has its word in the record",
    "test_late_objects[meta]": "a model that is materialised after restore is loaded at its first forward pass only",
    "test_pickle_only_where_asked_for": "a pickled object's own generator is not yet exact",
}
"""Traps that are not mended yet, each with its reason; docs/roadmap.md lists them for users."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for name, reason in KNOWN_GAPS.items():
            if item.nodeid.split("::")[-1].startswith(name) and "real_scripts" in item.nodeid:
                item.add_marker(pytest.mark.xfail(reason=reason, run=False))
