"""Bytes in and out of durable storage. Knows names and bytes, no checkpoints and no tensors."""

from __future__ import annotations

from autoresume.storage.base import Storage
from autoresume.storage.local import LocalStorage

__all__ = ["LocalStorage", "Storage"]
