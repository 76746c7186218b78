"""What lives without torch lie with the tests of checkpoints and of storage."""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent
sys.path[:0] = [str(TESTS / "checkpoint"), str(TESTS / "storage")]
