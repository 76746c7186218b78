from __future__ import annotations

from tests.real_scripts.conftest import zygote

__all__ = ["zygote"]
