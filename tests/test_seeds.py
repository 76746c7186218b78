"""docs/seeds.md promises nothing that no test shows."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "seeds.md"


def rows() -> list[list[str]]:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in cells if not row[0].startswith(("**", "what"))]


def test_each_row_says_how_and_names_a_test_that_is_there() -> None:
    """No row is empty, and each test that one names exists."""
    there = {
        name for path in TESTS.rglob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    assert len(rows()) > 40
    for row in rows():
        assert len(row) == 3, row
        named = re.findall(r"`(test_\w+)`", row[2])
        assert row[1], row
        assert named, row
        assert set(named) <= there, f"{row[0]}: {sorted(set(named) - there)}"
