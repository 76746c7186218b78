"""Shares of what was to be the same on all ranks are put together only where nothing speaks against it."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoresume.checkpoint.commit import commit_if_complete
from autoresume.checkpoint.discover import complete_commits, judge
from autoresume.errors import CheckpointInvalid
from autoresume.format.part import PartHead, Replicas
from autoresume.storage import LocalStorage
from tests.checkpoint.two_ranks import NEWEST, OLD, assert_is, restore, write

SAME = Replicas("form", 3, "one")


@pytest.mark.parametrize("other", [SAME, Replicas("form", 4, "two"), Replicas("form", -1, "all")])
def test_what_agrees_is_committed(other: Replicas, tmp_path: Path) -> None:
    """The same bytes at the same turn; at different turns nothing is known against it."""
    storage = LocalStorage(tmp_path)
    write(storage, NEWEST, replicas=(SAME, other))
    assert_is(restore(storage), NEWEST)
    assert [PartHead.from_bytes(storage.read(NEWEST.part(rank))).replicas for rank in range(2)] == [SAME, other]


@pytest.mark.parametrize("other", [Replicas("form", 3, "two"), Replicas("other", 4, "one"), None])
def test_a_mixture_is_never_committed(other: Replicas | None, tmp_path: Path) -> None:
    """Other bytes at the same turn, or other tensors: whoever sees all parts refuses to commit, in this life and in the
    next, which says why and goes on from the checkpoint before."""
    storage = LocalStorage(tmp_path)
    write(storage, OLD)
    write(storage, NEWEST, commit=False, replicas=(SAME, other))
    with pytest.raises(CheckpointInvalid, match="on ranks 0 and 1 tensors differ that were the same before"):
        commit_if_complete(storage, NEWEST, lambda: None)
    assert complete_commits(storage, lambda: None) == []
    found = restore(storage)
    assert_is(found, OLD)
    assert found is not None
    (reason,) = found.rejected
    assert "a mixture of the ranks' states" in reason
    assert "a mixture" in (judge(storage, NEWEST).problem or "")
