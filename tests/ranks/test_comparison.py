"""Promises of numbers that ranks compare while training goes on."""

from __future__ import annotations

from pathlib import Path

from tests.real_scripts.harness import Place


def test_ranks_compare_numbers_at_moments_of_their_own(tmp_path: Path) -> None:
    """Which numbers differ is known once all have asked, whatever they are; one who doesn't know its own speaks for
    none; who is asked nothing more is not waited for; and answers to different questions are never compared."""
    for ended in Place(tmp_path).run_ranks(2, str(Path(__file__).with_name("comparing.py"))):
        assert ended.code == 0, ended.err
        assert "as it should be" in ended.out
