"""The size of the state, and whether a last save fits."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoresume.base.findings import Verdict
from autoresume.checks import saving, software
from autoresume.checks.folder import Writing
from tests.cli.runs import FakeRun

GB = 10**9


def test_the_newest_valid_checkpoint_tells_the_size(tmp_path: Path) -> None:
    """Of a run, or of the newest run in a folder of runs; what is damaged or not committed doesn't count."""
    assert saving.newest(tmp_path) is None
    old, new = FakeRun(tmp_path / "old"), FakeRun(tmp_path / "new")
    old.checkpoint(5)
    first = new.checkpoint(10, ranks=4)
    new.damage(new.checkpoint(20).manifest)
    (tmp_path / "new" / new.checkpoint(25).shard(1)).unlink()
    new.checkpoint(30, parts=1)

    alone, among_others = saving.newest(tmp_path / "new"), saving.newest(tmp_path)
    assert alone is not None
    assert str(first) in alone.told_by
    assert alone == among_others
    written = sum(path.stat().st_size for path in (tmp_path / "new" / first.folder).rglob("*") if path.is_file())
    assert alone.bytes == written - (tmp_path / "new" / first.manifest).stat().st_size


@pytest.mark.parametrize(
    ("speed", "share", "window", "verdict", "words"),
    [
        (1e9, 2 * GB, 30.0, Verdict.PASS, "about 2.0 s for this node's 2.0 GB of 30 s that are left"),
        (1e9, 20 * GB, 30.0, Verdict.WARN, "more than half of the 30 s"),
        (1e8, 20 * GB, 30.0, Verdict.WARN, "longer than the 30 s"),
        (1e9, None, 30.0, Verdict.UNKNOWN, "--state-size"),
        (None, GB, 30.0, Verdict.UNKNOWN, "the speed of writing is not known"),
        (1e9, GB, None, Verdict.PASS, "about 1.0 s"),
    ],
)
def test_a_last_save_is_compared_with_the_time_that_is_left(
    speed: float | None, share: int | None, window: float | None, verdict: Verdict, words: str
) -> None:
    """By the speed that was measured."""
    estimate = None if share is None else saving.seconds(Writing(speed, 0.005), share)
    finding = saving.fits(estimate, window, share)
    assert finding.verdict is verdict
    assert words in f"{finding.found} {finding.means} {finding.remedy}"


def test_small_writes_count(tmp_path: Path) -> None:
    """Where each takes a second, so does the smallest checkpoint, several times."""
    assert saving.seconds(Writing(1e9, 1.0), 1) == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("configured", "estimate", "verdict", "words"),
    [
        (None, 1.0, Verdict.PASS, "30 s after a signal, by default"),
        (None, 20.0, Verdict.WARN, "cut short"),
        ("120", 20.0, Verdict.PASS, "120 s"),
        ("8", 5.0, Verdict.WARN, "8 s"),
        (None, None, Verdict.PASS, "does not run it again"),
        ("soon", 1.0, Verdict.FAIL, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=soon"),
    ],
)
def test_torchruns_own_patience(configured: str | None, estimate: float | None, verdict: Verdict, words: str) -> None:
    """It kills its workers some time after a signal, whatever they are about to save."""
    finding = saving.torchrun(configured, estimate)
    assert finding.verdict is verdict
    assert words in finding.found + finding.means


@pytest.mark.parametrize(
    ("version", "verdict"),
    [(None, Verdict.FAIL), ("2.3.1", Verdict.FAIL), ("2.4.0+cu121", Verdict.PASS), ("2.13.0", Verdict.PASS)],
)
def test_torch_is_new_enough(version: str | None, verdict: Verdict) -> None:
    """By its version as installed."""
    assert software.torch(version).verdict is verdict


def test_the_installed_torch_is_found() -> None:
    """With the version that it tells itself."""
    from importlib.metadata import version

    python, torch = software.look()
    assert python.verdict is torch.verdict is Verdict.PASS
    assert torch.found == version("torch")
